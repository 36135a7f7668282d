"""What our reader says of a case of the conformance suite."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from proof_of_learning import canonical, check
from proof_of_learning.attestation import gathering, signatures, timestamps
from proof_of_learning.attestation.attested import Attested
from proof_of_learning.data.commit import DataCommitment
from proof_of_learning.data.opened import Samples
from proof_of_learning.disputes import documents, verifying
from proof_of_learning.disputes.documents import Second
from proof_of_learning.errors import FormatError, PolError
from proof_of_learning.proof.codecs.raw import decode_tensors
from proof_of_learning.proof.reader import Proof
from proof_of_learning.registration import violations
from proof_of_learning.signing import verdict_signers
from proof_of_learning.verifier.options import Options

ROOT = Path(__file__).parents[1] / "conformance" / "generator"
HOME = ROOT.parent / "v2"


def _load(name: str, folder: Path = ROOT) -> Any:
    """A module of the generator, which finds its own."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


suite = _load("suite")
assembled, entries = suite.assembled, suite.entries


def generated() -> dict[str, bytes]:
    """The whole suite, made anew."""
    files: dict[str, bytes] = _load("generate").make().tree()
    return files


def mutations() -> Any:
    """The fuzzer's damage."""
    return _load("mutations", ROOT.parents[1] / "tools")


def judged(home: Path, case: dict[str, Any], folder: Path) -> tuple[int, str]:
    """The status that a command would end with (0: it passes), and what is said. ``folder``: an empty one, for the case's files."""
    suite.write(assembled(home, case), folder)
    try:
        says = JUDGES[case["kind"]](folder, Given(home / "given", case["given"]))
    except PolError as error:
        return error.exit_status, str(error)
    return (1 if says else 0), says


class Given:
    """What the verifier brings to a case."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values

    def keys(self) -> list[str]:
        return [signatures.load_public(self.folder / name).digest for name in self.values["keys"]]

    def authorities(self) -> timestamps.Authorities:
        return timestamps.load_authorities([self.folder / name for name in self.values["roots"]])


def _canonical(path: Path, given: Given) -> str:
    canonical.decode((path / "value.json").read_bytes(), Any, "it")
    return ""


def _key(path: Path, given: Given) -> str:
    signatures.decode_public((path / "key.der").read_bytes(), "the key")
    return ""


def _proof(path: Path, given: Given) -> str:
    found = check(path)
    return "" if found.status == "pass" else found.summary


def _gathered(path: Path, given: Given) -> Attested:
    return gathering.gather(Proof.open(path), given.authorities())


def _signed(path: Path, given: Given) -> str:
    found = gathering.gather(Proof.open(path), timestamps.Authorities())
    if found.counted(given.keys()) >= given.values["threshold"]:
        return ""
    return f"signed by too few of the keys: {'; '.join(found.ignored)}"


def _stamped(path: Path, given: Given) -> str:
    found = _gathered(path, given)
    refused = [stamp.refused for stamp in found.stamps if stamp.kind == given.values["statement"]]
    return "" if "" in refused else f"nothing stamps it: {'; '.join([*refused, *found.false, *found.ignored])}"


def _heads(path: Path, given: Given) -> str:
    return "; ".join(_gathered(path, given).false)


def _registered(path: Path, given: Given) -> str:
    found, proof = _gathered(path, given), Proof.open(path)
    return found.unregistered or "; ".join(violations(proof.header, proof.environments))


def _timestamp(path: Path, given: Given) -> str:
    token = timestamps.parse((path / "token.tsr").read_bytes(), "it")
    if token.stamped != hashlib.sha256((path / "file").read_bytes()).hexdigest():
        return "it stamps another file"
    return timestamps.trusted(token, given.authorities())


def _verdict(path: Path, given: Given) -> str:
    envelope = (path / "verdict.json.dsse.json").read_bytes()
    found = verdict_signers((path / "verdict.json").read_bytes(), envelope)
    return "" if set(given.keys()) & set(found) else "none of the keys signed this verdict"


def _samples(path: Path, given: Given) -> str:
    data = DataCommitment(**given.values["data"])
    tensors, metadata = decode_tensors(bytearray((path / "samples.bin").read_bytes()))
    if metadata:
        raise FormatError("it carries metadata")
    Samples.read(tensors, data.salted).check(data)
    return ""


def _opening(path: Path, given: Given) -> str:
    mine = given.values["challenge"]
    second = None if mine is None else documents.load(given.folder / mine, Second)
    claims = replace(Options().claims, trusted_keys=tuple(given.keys()))
    opened = verifying.read(path, second, replace(Options(), claims=claims))
    verifying.fitting(opened, [index for index, _ in opened.second.segments])
    return _proof(path / "proof", given)


JUDGES: dict[str, Callable[[Path, Given], str]] = {
    "canonical": _canonical, "key": _key, "proof": _proof, "signed": _signed, "stamped": _stamped, "heads": _heads, "registered": _registered,
    "timestamp": _timestamp, "verdict": _verdict, "samples": _samples, "opening": _opening,
}  # fmt: skip
