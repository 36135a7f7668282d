"""The driver of the core: signs, asks, replays, aggregates, and records what is final as one proof.

A run's folder holds ``run.json`` (what was agreed), ``journal.jsonl``, ``retained/`` (starts and updates that may still be needed),
``proof/``, ``fraud/`` (one for each ban), ``head.dsse.json`` (the end, signed) and ``secret`` (of the chain of draws).
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PrivateKey, PublicKey
from proof_of_learning.distributed import core, events, fraud, messages
from proof_of_learning.distributed.core import Book, Work
from proof_of_learning.distributed.events import Commitment, Rules
from proof_of_learning.distributed.journal import Blobs, Folder, Journal, Memory
from proof_of_learning.distributed.messages import Run
from proof_of_learning.distributed.rounds import Slice, Slices, conclude, flat, samples_digest, trained, weights_digest
from proof_of_learning.distributed.workers import Answer, Fault, Request, Transport
from proof_of_learning.errors import FormatError, IntegrityError, RecordingError, TrainingError, UsageError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.portable import NATIVE
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import files
from proof_of_learning.recording.header import make_header
from proof_of_learning.recording.recorder import Recorder
from proof_of_learning.state.state import State
from proof_of_learning.task import Task, TaskReference, load_task
from proof_of_learning.training.steps import Session, feed_epoch_end

log = logging.getLogger(__name__)

RUN, JOURNAL, SECRET, PROOF = "run.json", "journal.jsonl", "secret", "proof"
HEAD, RETAINED, FRAUD = "head.dsse.json", "retained", "fraud"
_DRAWS = 4096  # links of the chain beyond eight for each round


@dataclass(frozen=True)
class Outcome:
    """A finished run. exactness: ``bits`` or ``calibrated``. share: slices replayed over slices of the run."""

    book: Book
    root: str
    model: torch.nn.Module
    evaluation: dict[str, float] | None
    exactness: str

    @property
    def share(self) -> float:
        return self.book.counts.replays / (self.book.rules.rounds * self.book.rules.slots)


@dataclass
class _Stage:
    """A session that takes rounds from updates computed elsewhere, and stands before ``round``."""

    session: Session
    slices: Slices

    @property
    def round(self) -> int:
        return self.session.progress.step

    def weights(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return flat(trained(self.session.model))

    def apply(self, found: Sequence[Slice]) -> tuple[torch.Tensor, list[float]]:
        session, rounds = self.session, self.slices.rounds
        step = functools.partial(_conclude, rounds=rounds, found=found)
        session.task = dataclasses.replace(session.task, step=step)
        made = session.take(self.round, [], feed_epoch_end(self.slices.feed, self.round))
        return made.loss, made.rates


def _conclude(context: Any, batches: Sequence[Any], *, rounds: Any, found: Sequence[Slice]) -> torch.Tensor:
    return conclude(context, trained(context.model), rounds, found)


class Coordinator:
    """Trains a collective task with workers whom nobody trusts. Use as a context manager; :meth:`run` goes on where it was stopped."""

    def __init__(
        self,
        task: Task | str | TaskReference,
        rules: Rules,
        key: PrivateKey,
        transport: Transport,
        folder: str | os.PathLike[str] | None = None,
        *,
        arithmetic: str = NATIVE,
        interval: int = 1,
    ) -> None:
        """``folder``: where all is kept; None for a run that is neither recorded nor resumable. ``interval``: rounds of a segment."""
        events.check(rules)
        self.task, self.rules, self.key, self.transport = load_task(task), rules, key, transport
        self.folder = None if folder is None else Path(folder)
        self.arithmetic, self.interval = arithmetic, interval
        self.applied: dict[int, tuple[Work, ...]] = {}  # accepted slices of rounds that are not in the proof yet
        self.states: dict[int, str] = {}
        self.public: dict[str, PublicKey] = {}
        self.envelopes: dict[str, str] = {}  # commitments to the works at hand

    # ---- set-up --------------------------------------------------------------------------------------------------

    def run(self, progress: ProgressCallback = silent) -> Outcome:
        """Train to the end. WorkerError where nobody is left who works: call it again with others, and it goes on."""
        with randomness.preserved(), environments.recording("cpu") as environment:
            self._begin(environment)
            try:
                return self._loop(progress)
            finally:
                self.journal.close()
                if self.recorder is not None:
                    self.recorder.__exit__(RuntimeError, None, None)

    def _begin(self, environment: environments.Environment) -> None:
        key = randomness.key_from_seed(self.task.seed)
        self.slices = Slices(self.task, key, self.arithmetic)
        rounds = self.slices.rounds
        total = self.task.total_steps(len(self.slices.data))
        if rounds.clip is None:
            raise UsageError("untrusted updates need a largest norm that they count with; give Rounds(clip=…)")
        if (self.rules.rounds, self.rules.slots) != (total, rounds.slots):
            raise RecordingError(
                f"the rules say {self.rules.rounds} rounds of {self.rules.slots} slots, the task {total} of {rounds.slots}"
            )
        trial = Session(self.task, key, "cpu", None, self.arithmetic)
        header = make_header(self.task, trial, self.slices.data, interval=self.interval)
        secret = self._secret()
        links = core.chain(secret, 8 * total + _DRAWS)
        same = self.rules.limit is None and self.arithmetic == NATIVE
        self.agreed = Run(
            *self.slices.identity, key.hex(), self.arithmetic,
            environment.digest() if same else None, self.rules, links[0], messages.key_text(self.key.public), self.slices.size,
        )  # fmt: skip
        self.run_bytes, self.run_digest = canonical.encode(self.agreed), self.agreed.digest()
        self.blobs: Blobs = Memory() if self.folder is None else Folder(self.folder / RETAINED)
        if self.folder is not None:
            self._agree(self.folder / RUN)
        self.book = Book(self.run_digest, self.rules, links[0])
        self.links = {core_hash(link): link for link in links[1:]}
        self.journal = Journal(None if self.folder is None else self.folder / JOURNAL, self.run_digest)
        for event in self.journal.events:
            self._note(event)
        self.scribe = _Stage(Session(self.task, key, "cpu", None, self.arithmetic), self.slices)
        self.tip = _Stage(Session(self.task, key, "cpu", None, self.arithmetic), self.slices)
        self.recorder: Recorder | None = None
        if self.folder is not None:
            self.recorder = Recorder(self.folder / PROOF, header, self.scribe.session.parts, environment)
        self.base: State = self.scribe.session.capture()
        self._rewind()
        for number in [n for n in self.applied if n < self.scribe.round]:
            del self.applied[number], self.states[number]
        if self.book.root is not None:
            return
        if self.journal.events:
            self._event(events.Resumed())
        for public in self.transport.members():
            if self.book.member(public.digest) is None:
                self._event(events.Joined(public.digest, messages.key_text(public)))

    def _secret(self) -> bytes:
        if self.folder is None:
            return secrets.token_bytes(32)
        with files.writing(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
            place = self.folder / SECRET
            if not place.exists():
                files.write_atomic(place, [secrets.token_bytes(32)], durable=True)
                place.chmod(0o600)
            return place.read_bytes()

    def _agree(self, place: Path) -> None:
        if place.exists():
            if place.read_bytes() != self.run_bytes:
                raise RecordingError(
                    f"{place.parent} holds another run (task, rules, key, data or numeric environment differ); choose another folder"
                )
            return
        files.write_atomic(place, [self.run_bytes], durable=True)

    # ---- events --------------------------------------------------------------------------------------------------

    def _event(self, event: events.AnyEvent, durable: bool = False) -> None:
        self.journal.add(event, durable)
        self._note(event)

    def _note(self, event: events.AnyEvent) -> None:
        if isinstance(event, events.Applied):
            self.applied[event.round] = core.want(self.book).works
            self.states[event.round] = event.state
        elif isinstance(event, events.Joined):
            self.public[event.worker] = messages.public_key(event.key, "a worker's key")
        elif isinstance(event, events.Committed):
            self.envelopes.setdefault(event.assignment, event.envelope)
        elif isinstance(event, events.Opened):
            self.envelopes.clear()
        banned = len(self.book.bans)
        self.book = core.advance(self.book, event)
        if len(self.book.bans) > banned:
            ban = self.book.bans[-1]
            log.info("worker %s is banned: slice %d of round %d", *_told(ban.work))
            if self.folder is not None:
                self._prove_fraud(ban)

    def _prove_fraud(self, ban: core.Ban) -> None:
        assert self.folder is not None
        asked = ban.work.assignment
        place = self.folder / FRAUD / asked.worker.removeprefix("sha256:")
        if fraud.complete(place):
            return
        committed, start = base64.b64decode(self.envelopes[ban.work.name]), self.blobs.get(asked.start)
        envelope = messages.signed(asked, self.key)
        fraud.save(place, fraud.FraudProof(self.run_bytes, envelope, committed, self.public[asked.worker], start))

    # ---- the loop ------------------------------------------------------------------------------------------------

    def _loop(self, progress: ProgressCallback) -> Outcome:
        while True:
            wanted = core.want(self.book)
            if self.tip.round > self.book.round:
                self._rewind()
            match wanted.what:
                case "open":
                    progress("training", self.book.round, self.rules.rounds)
                    self._open()
                case "ask":
                    self._ask(wanted.works)
                case "draw":
                    if self.book.anchor not in self.links:
                        raise WorkerError(
                            "the coordinator's chain of draws is used up; too many rounds were done again"
                        )
                    self._event(events.Drawn(self.links[self.book.anchor]), durable=True)
                case "reveal":
                    self._reveal(wanted.works)
                case "replay":
                    self._replay(wanted.works[0])
                case "apply":
                    self._apply(wanted.works)
                case "workers":
                    raise WorkerError(
                        f"round {self.book.round}: of {len(self.book.members)} workers, {len(self.book.bans)} are banned, and the "
                        "others bring nothing that can be used; start again with further workers, and it goes on here"
                    )
                case "finish" | "nothing":
                    return self._finish(progress)

    def _open(self) -> None:
        row = self.tip.weights()
        start, number = weights_digest(row), self.book.round
        self.blobs.put(start, row.astype("<f4", copy=False).tobytes())
        samples = [samples_digest(self.slices.samples(number, slot)) for slot in range(self.rules.slots)]
        self._event(events.Opened(number, start, samples))

    def _ask(self, works: Sequence[Work]) -> None:
        requests = [
            Request(
                "work", w.assignment.worker, w.name, messages.signed(w.assignment, self.key),
                self.blobs.get(w.assignment.start),
            )
            for w in works
        ]  # fmt: skip
        answered = set()
        for request, found in self.transport.ask(requests, self.run_bytes):
            if request.what == "work":  # else it is late
                answered.add(request.assignment)
                self._event(self._commitment(request, found))
        for work in works:
            if work.name not in answered:
                self._event(events.Failed(work.assignment.worker, work.name, "no answer"))

    def _commitment(self, request: Request, found: Answer) -> events.AnyEvent:
        worker, name = request.worker, request.assignment
        if isinstance(found, Fault):
            return events.Failed(worker, name, found.why)
        try:
            told = messages.opened(found, Commitment, self.public[worker], "a commitment")
            if told.assignment != name or len(told.steps) != self.slices.rounds.local_steps:
                raise FormatError("it is a commitment to something else")
            if not all(map(_is_digest, (told.result, *told.steps))):
                raise FormatError("it has no digests")
        except FormatError as error:
            return events.Failed(worker, name, canonical.brief(error))
        return events.Committed(worker, name, told.result, told.steps, base64.b64encode(found).decode())

    def _reveal(self, works: Sequence[Work]) -> None:
        requests = [Request("reveal", w.assignment.worker, w.name) for w in works]
        wanted, answered = {w.name: w for w in works}, set()
        for request, found in self.transport.ask(requests, self.run_bytes):
            work, fault, finite = wanted.get(request.assignment), "", True
            if request.what != "reveal" or work is None or work.name in answered:
                continue  # late, or twice
            answered.add(work.name)
            try:
                if isinstance(found, Fault):
                    raise FormatError(found.why)
                update, loss = messages.unpack(found, self.slices.size)
                if messages.result_digest(found) != work.result:
                    raise FormatError("the update is not the one that was committed to")
                finite = bool(np.isfinite(update).all() and np.isfinite(loss))
                self.blobs.put(work.result, found)
            except FormatError as error:
                fault = canonical.brief(error) or "nothing"
            self._event(events.Revealed(request.worker, work.name, fault, finite))
        for work in works:
            if work.name not in answered:
                self._event(events.Revealed(work.assignment.worker, work.name, "no answer"))

    def _replay(self, work: Work) -> None:
        asked = work.assignment
        start = np.frombuffer(self.blobs.get(asked.start), dtype="<f4").astype(np.float32)
        made = self.slices.compute(asked.round, asked.slot, start)
        raw, error = messages.pack(made), None
        if self.rules.limit is not None and work.known:
            theirs, _ = messages.unpack(self.blobs.get(work.result), self.slices.size)
            error = relative_error(theirs, made.update)
        result = messages.result_digest(raw)
        if not (np.isfinite(made.update).all() and np.isfinite(made.loss)):  # nor has it bits to hold anybody to
            raise TrainingError(
                f"round {asked.round}: the update of slot {asked.slot} is not finite, although it was computed right"
            )
        self._event(events.Replayed(work.name, result, list(made.steps), error))

    def _apply(self, works: Sequence[Work]) -> None:
        self.tip.apply(self._found(works))
        self._event(events.Applied(self.book.round, self.tip.session.capture(live=True).digest()), durable=True)
        self._record()

    def _found(self, works: Sequence[Work]) -> list[Slice]:
        return [Slice(*messages.unpack(self.blobs.get(w.result), self.slices.size)) for w in works]

    # ---- what is final, and what was undone ------------------------------------------------------------------------

    def _rewind(self) -> None:
        """Put the tip where the book is: from the last final state, through the updates that were accepted since."""
        self.tip.session.restore(self.base)
        for number in range(self.tip.round, self.book.round):
            self.tip.apply(self._found(self.applied[number]))
            if self.tip.session.capture(live=True).digest() != self.states[number]:
                raise IntegrityError(
                    f"round {number} leads to another state than before; was the numeric environment changed?"
                )

    def _record(self) -> None:
        """Take the rounds that have become final into the proof, and forget what is not needed any more."""
        stepped = False
        while self.scribe.round < self.book.final:
            loss, rates = self.scribe.apply(self._found(self.applied[self.scribe.round]))
            if self.recorder is not None and self.recorder.steps_done < self.scribe.round:
                self.recorder.step(loss, rates)
            if (
                self.recorder is None
                or self.recorder.steps_done % self.interval == 0
                or self.scribe.round == self.rules.rounds
            ):
                stepped = True
        if stepped:
            self.base = self.scribe.session.capture()
            for number in [n for n in self.applied if n < self.scribe.round]:
                del self.applied[number], self.states[number]
            needed = [w for works in self.applied.values() for w in works]
            held = [w for w in (*self.book.works, *(self.book.slots or ())) if w is not None]
            names = {name for w in (*needed, *held) for name in (w.assignment.start, w.result)}
            self.blobs.keep(names | {self.book.start, *(start for _, start, _ in self.book.retained)})

    def _finish(self, progress: ProgressCallback) -> Outcome:
        self._record()
        progress("training", self.rules.rounds, self.rules.rounds)
        evaluation, root = self.scribe.session.evaluate(), ""
        if self.recorder is not None:
            root = self.recorder.close(evaluation)
        if self.book.root is None:
            self._event(events.Finished(root), durable=True)
        if self.folder is not None:
            head = messages.signed(messages.Head(self.run_digest, self.journal.head, root), self.key)
            files.write_atomic(self.folder / HEAD, [head], durable=True)
        exactness = "bits" if self.rules.limit is None else "calibrated"
        return Outcome(self.book, root, self.scribe.session.model, evaluation, exactness)


def core_hash(link: str) -> str:
    import hashlib

    return hashlib.sha256(bytes.fromhex(link)).hexdigest()


def relative_error(theirs: Any, own: Any) -> float:
    """The l2 distance over the l2 norm of our own; infinite where it is no number."""
    with np.errstate(all="ignore"):
        apart = float(np.linalg.norm(theirs.astype(np.float64) - own)) / max(
            float(np.linalg.norm(own.astype(np.float64))), 1e-30
        )
    return apart if np.isfinite(apart) else 1e300


def _is_digest(text: str) -> bool:
    return len(text) == 71 and text.startswith("sha256:") and all(c in "0123456789abcdef" for c in text[7:])


def _told(work: Work) -> tuple[str, int, int]:
    return work.assignment.worker[7:19], work.assignment.slot, work.assignment.round
