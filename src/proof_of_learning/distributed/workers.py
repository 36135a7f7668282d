"""Workers: what a coordinator asks, and the honest one who answers. Messages are bytes, whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PrivateKey, PublicKey
from proof_of_learning.distributed import messages
from proof_of_learning.distributed.aggregation import Vector
from proof_of_learning.distributed.events import Assignment, Commitment
from proof_of_learning.distributed.messages import Run
from proof_of_learning.distributed.rounds import Slice, Slices, samples_digest, weights_digest
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.task import Task


@dataclass(frozen=True)
class Request:
    """Asked of ``worker``: to ``work`` on an assignment, from ``start`` (bytes of float32), or to ``reveal`` its update."""

    what: Literal["work", "reveal"]
    worker: str
    assignment: str
    envelope: bytes = b""
    start: bytes = b""


@dataclass(frozen=True)
class Fault:
    """No answer, and why."""

    why: str


Answer = bytes | Fault


class Transport(Protocol):
    """What carries messages. Answers come in any order, late or twice; whoever does not answer in time gives a Fault."""

    def members(self) -> Sequence[PublicKey]: ...
    def ask(self, requests: Sequence[Request], run: bytes) -> Iterator[tuple[Request, Answer]]: ...


class Worker(Protocol):
    """Somebody who answers. They may raise anything, and return anything."""

    @property
    def public(self) -> PublicKey: ...
    def work(self, envelope: bytes, start: bytes, run: bytes) -> bytes: ...
    def reveal(self, assignment: str) -> bytes: ...


class Honest:
    """Computes what it is asked, and signs what it computed, after seeing that the coordinator asks for a slice of the run."""

    def __init__(self, task: Task, key: PrivateKey, slices: Slices | None = None) -> None:
        """``slices``: shared with others of this process, where many workers are imitated by one."""
        self.task, self.key = task, key
        self._slices = slices
        self._kept: dict[str, bytes] = {}
        self._run: tuple[bytes, Run, str] | None = None

    @property
    def public(self) -> PublicKey:
        return self.key.public

    def slices(self, run: Run) -> Slices:
        if self._slices is None:
            self._slices = Slices(self.task, bytes.fromhex(run.key), run.arithmetic)
        return self._slices

    def work(self, envelope: bytes, start: bytes, run: bytes) -> bytes:
        agreed, digest = self._agreed(run)
        coordinator = messages.public_key(agreed.coordinator, "the coordinator's key")
        asked = messages.opened(envelope, Assignment, coordinator, "the assignment")
        slices = self.slices(agreed)
        row = np.frombuffer(start, dtype="<f4").astype(np.float32)
        fits = (
            asked.run == digest
            and asked.worker == self.public.digest
            and asked.start == weights_digest(row)
            and asked.samples == samples_digest(slices.samples(asked.round, asked.slot))
            and len(row) == slices.size
            and bool(np.isfinite(row).all())  # from others no bits follow that an answer could be held to
        )
        if not fits:
            raise FormatError(
                "the assignment is not for this worker, this run, these samples or this start; nothing is signed"
            )
        made = self.make(slices, asked, row)
        raw = messages.pack(made)
        self._kept = {asked.digest(): raw, **dict(list(self._kept.items())[:64])}
        return messages.signed(Commitment(asked.digest(), messages.result_digest(raw), list(made.steps)), self.key)

    def make(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        """The update; what dishonest workers do otherwise."""
        return slices.compute(asked.round, asked.slot, start)

    def reveal(self, assignment: str) -> bytes:
        return self._kept[assignment]

    def _see(self, run: Run) -> None:
        """See that an honest answer is the one that everybody finds. FormatError, and nothing is signed, where it may not be."""
        if run.rules.limit is None and not run.bits:
            raise FormatError(
                "the run is held to bits that its arithmetic does not promise, so honest workers could be banned"
            )
        with randomness.preserved(), environments.recording("cpu") as here:
            if run.environment is not None and here.digest() != run.environment:
                raise FormatError(
                    "the numeric environment here is not the run's; ask the coordinator for portable arithmetic"
                )
            if self.slices(run).identity != (run.task, run.sources, run.data):
                raise FormatError(
                    "the run is of another task, or of other data, than the ones here; use the same version"
                )

    def _agreed(self, raw: bytes) -> tuple[Run, str]:
        if self._run is None or self._run[0] != raw:
            run = messages.read_run(raw)
            self._see(run)
            self._run = raw, run, run.digest()
        return self._run[1:]


class Here:
    """A transport to workers in this process, one after another."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers: Mapping[str, Worker] = {worker.public.digest: worker for worker in workers}

    def members(self) -> Sequence[PublicKey]:
        return [worker.public for worker in self._workers.values()]

    def ask(self, requests: Sequence[Request], run: bytes) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            worker = self._workers.get(request.worker)
            yield request, Fault("gone") if worker is None else answer(worker, request, run)


def answer(worker: Worker, request: Request, run: bytes) -> Answer:
    """What a worker answers; Fault where they raise something, or return no bytes."""
    call: Callable[[], object]
    if request.what == "work":
        call = lambda: worker.work(request.envelope, request.start, run)  # noqa: E731
    else:
        call = lambda: worker.reveal(request.assignment)  # noqa: E731
    try:
        found = call()
    except Exception as error:
        return Fault(canonical.brief(f"{type(error).__name__}: {error}"))
    return found if isinstance(found, bytes) else Fault("no bytes")
