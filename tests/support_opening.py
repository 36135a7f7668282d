"""What the tests of challenge and open share: a proof on private data, challenged, answered and opened, and ways to falsify each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import support_private
from proof_of_learning import TaskReference, Verdict, prove
from proof_of_learning.attestation import signatures
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.data import salts
from proof_of_learning.disputes import answering, challenging, documents, opening, verifying
from proof_of_learning.disputes.answers import file_digest
from proof_of_learning.disputes.documents import AnswersHead, First, OpeningHead, Second
from proof_of_learning.disputes.verifying import Terms
from proof_of_learning.proof.reader import Proof
from proof_of_learning.verifier.options import Options
from support_attestation import Keys

STEPS, INTERVAL = 60, 1
OPTIONS = Options.of({"sandbox": "off"})


@dataclass(frozen=True)
class Table(Keys):
    """Everything that goes over the table between an owner and a verifier, in files. Read only."""

    task: TaskReference
    first: First
    second: Second
    root: str
    data: str

    def terms(self, **changes: Any) -> Terms:
        return Terms(
            **{"challenge": self.folder / "second.json", "data_root": self.data, "accept_budget": True, **changes}
        )

    def verify(self, path: Path | None = None, terms: Terms | None = None, options: Options = OPTIONS) -> Verdict:
        """As a verifier, who has no data."""
        with private(None):
            return verifying.verify_opening(path or self.folder / "opening", self.task, options, terms or self.terms())

    def copy(self, target: Path) -> Path:
        """A copy of the opening, to falsify."""
        return Path(shutil.copytree(self.folder / "opening", target))


@contextmanager
def private(folder: Path | None) -> Iterator[None]:
    """The folder with the data is there, or is not."""
    before = os.environ.get("POL_DATA")
    os.environ["POL_DATA"] = str(folder or "/nowhere")
    try:
        yield
    finally:
        if before is None:
            del os.environ["POL_DATA"]
        else:
            os.environ["POL_DATA"] = before


def honest(folder: Path, task: TaskReference) -> Path:
    """A proof of an honest run, whose data are salted."""
    salts.generate(folder / "data.salt")
    prove(task, folder / "run.pol", interval=INTERVAL, salt=folder / "data.salt", rehearse=False)
    return folder / "run.pol"


def build(
    folder: Path,
    make: Callable[[Path, TaskReference], Path] = honest,
    segments: int | None = 12,
    answered: Callable[[Proof], Proof] | None = None,
) -> Table:
    """The table in a new folder, around the proof that ``make`` makes where the data are at hand. ``answered``: the proof that is
    answered for, in its place."""
    folder.mkdir(exist_ok=True)
    data = support_private.write(folder / "data")
    task = TaskReference(f"{support_private.__file__}:task", {"steps": STEPS})
    for name in ("key.pem", "stranger.pem"):
        signatures.generate(folder / name)
    key = signatures.load_private(folder / "key.pem")
    with private(data):
        proof = make(folder, task)
        answering.manifest(proof, folder / "manifest.pol")
        first = challenging.challenge_first(folder / "manifest.pol")
        with pytest.MonkeyPatch.context() as patched:
            if answered is not None:
                patched.setattr(answering, "opened_proof", lambda path: answered(Proof.open(path)))
            answering.answer(proof, first, task, key, folder / "answers", segments=segments)
    with private(None):
        second, _ = challenging.challenge_second(
            folder / "manifest.pol", first, folder / "answers", task, options=OPTIONS
        )
    documents.write_new(folder / "first.json", first)
    documents.write_new(folder / "second.json", second)
    with private(data):
        prepared = opening.prepare(proof, first, folder / "answers", second, task, options=OPTIONS)
        salt = folder / "data.salt" if (folder / "data.salt").exists() else None
        opening.open_(prepared, task, key, folder / "opening", salt=salt)
    opened = Proof.open(folder / "manifest.pol")
    return Table(folder, task, first, second, opened.root, opened.header.data.root)


def resign(path: Path, key: PrivateKey, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Make the statement of the opening at ``path`` fit its files again, as a forger who holds the key would."""
    head = documents.load(path / "opening.json", OpeningHead)
    values = {name: getattr(head, name) for name in head.__struct_fields__}

    def digest(file: Path) -> str:
        return file_digest(file, file.stat().st_size)

    values["index"] = digest(path / "proof" / "index.jsonl")
    values["samples"] = digest(path / "samples.bin") if (path / "samples.bin").exists() else None
    values["challenge"] = documents.load(path / "second.json", Second).digest()
    if change is not None:
        change(values)
    made = OpeningHead(**values)
    (path / "opening.json").write_bytes(made.encoded())
    (path / "opening.dsse.json").write_bytes(documents.sign(made, key))


def reanswer(path: Path, key: PrivateKey, change: Callable[[dict[str, Any]], None]) -> AnswersHead:
    """Change ``answers.json`` in a folder of answers, with digests and signature that fit."""
    head = documents.load(path / "answers.json", AnswersHead)
    values = {name: getattr(head, name) for name in head.__struct_fields__}
    for name in ("states", "outputs"):
        file = path / f"{name}.bin"
        values[name] = file_digest(file, file.stat().st_size)
    change(values)
    made = AnswersHead(**values)
    (path / "answers.json").write_bytes(made.encoded())
    (path / "answers.dsse.json").write_bytes(documents.sign(made, key))
    return made
