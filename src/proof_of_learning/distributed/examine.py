"""Examining a finished run as a third party: journal, signatures, draws, bans and rollbacks, and that they belong to the proof.

The proof itself is verified as any other (``pol verify RUN/proof --task TASK``): it is the proof of the collective task.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PublicKey
from proof_of_learning.distributed import core, events, fraud, journal, messages
from proof_of_learning.distributed.coordinator import FRAUD, HEAD, JOURNAL, PROOF, RUN
from proof_of_learning.distributed.core import Book
from proof_of_learning.distributed.events import Assignment, Commitment
from proof_of_learning.distributed.messages import Head, Run
from proof_of_learning.distributed.rounds import Slices, samples_digest
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.portable import using
from proof_of_learning.proof.reader import Proof
from proof_of_learning.task import Task, TaskReference, load_task


@dataclass(frozen=True)
class Examination:
    """What a run comes to. ``findings``: one for each ban. ``problems``: what does not hold; empty for a run that is what it says."""

    book: Book
    root: str
    findings: tuple[fraud.Finding, ...]
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems


def examine(folder: str | os.PathLike[str], task: Task | str | TaskReference, coordinator: PublicKey) -> Examination:
    """Fold the journal again and hold it against the proof; check every fraud proof by replay.

    Raises FormatError or IntegrityError for a folder that cannot be read, or whose journal contradicts itself.
    """
    place, loaded = Path(folder), load_task(task)
    run = messages.read_run(_read(place / RUN))
    digest, problems = run.digest(), list[str]()
    if messages.public_key(run.coordinator, "the coordinator's key") != coordinator:
        raise IntegrityError(f"{RUN} is of another coordinator than the one that was named")
    head = messages.opened(_read(place / HEAD), Head, coordinator, HEAD)
    with randomness.preserved(), environments.recording("cpu"):
        slices = Slices(loaded, bytes.fromhex(run.key), run.arithmetic)
        with using(run.arithmetic):
            description = slices.session.describe()
    if description.digest() != run.task or description.sources_digest() != run.sources:
        problems.append("the run is of another task")
    if run.rules.slots != slices.rounds.slots:
        raise FormatError(f"{RUN} has {run.rules.slots:,} slices in a round, and the task has {slices.rounds.slots:,}")
    book, keys, states = Book(digest, run.rules, run.anchor), dict[str, PublicKey](), dict[int, str]()
    line = canonical.sha256(journal.FIRST.encode(), digest.encode())
    for event, told, _ in journal.read(place / JOURNAL, digest):
        line = told
        if isinstance(event, events.Joined):
            keys[event.worker] = key = messages.public_key(event.key, "a worker's key")
            if key.digest != event.worker:
                raise IntegrityError("a worker of the journal has the name of another key")
        elif isinstance(event, events.Committed):
            _signed(event, keys)
        book = core.advance(book, event)
        if isinstance(event, events.Opened):  # of the round that it was time for
            own = [samples_digest(slices.samples(event.round, slot)) for slot in range(run.rules.slots)]
            if own != event.samples:
                problems.append(f"round {event.round} was given out with other samples than its key says")
        elif isinstance(event, events.Applied):
            states[event.round] = event.state
    if (head.run, head.head, head.root) != (digest, line, book.root):
        problems.append("what the coordinator signed at the end is not the head of this journal with this proof's root")
    problems += _against_proof(place / PROOF, run, book, states)
    findings = []
    for ban in book.bans:
        worker = ban.work.assignment.worker
        proof = fraud.load(place / FRAUD / worker.removeprefix("sha256:"))
        found = fraud.check(proof, loaded, coordinator, slices)
        findings.append(found)
        if not found.proven or found.worker != worker:
            problems.append(f"the ban of worker {worker[7:19]} rests on nothing: {found.why}")
        elif messages.opened(proof.assignment, Assignment, coordinator, "the assignment").digest() != ban.work.name:
            problems.append(f"the ban of worker {worker[7:19]} rests on another slice than the fraud proof is about")
    return Examination(book, book.root or "", tuple(findings), tuple(problems))


def _signed(event: events.Committed, keys: dict[str, PublicKey]) -> None:
    try:
        raw = base64.b64decode(event.envelope, validate=True)
    except ValueError:
        raise FormatError("a commitment of the journal is not in base64") from None
    if event.worker not in keys:
        raise IntegrityError("a commitment of the journal is by a worker who never joined")
    told = messages.opened(raw, Commitment, keys[event.worker], "a commitment of the journal")
    if told != Commitment(event.assignment, event.result, event.steps):
        raise IntegrityError("the journal says something else than the commitment that it quotes")


def _against_proof(place: Path, run: Run, book: Book, states: dict[int, str]) -> list[str]:
    proof, found = Proof.open(place), list[str]()
    if proof.root != book.root:
        found.append("the proof has another root than the journal says")
    if (
        proof.header.randomness.key != run.key
        or proof.header.data.root != run.data
        or proof.header.task.digest != run.task
    ):
        found.append("the proof is of another task, other data or another key")
    if proof.header.arithmetic != run.arithmetic:
        found.append("the proof has another arithmetic")
    for segment in proof.segments:
        if states.get(segment.stop - 1) != segment.state:
            found.append(f"after {segment.stop} rounds, proof and journal have different states")
            break
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(messages.MAX_MESSAGE + 1)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > messages.MAX_MESSAGE:
        raise FormatError(f"{path} has more than {messages.MAX_MESSAGE:,} bytes")
    return raw
