"""Recording several processes as one run: process 0 writes the proof, and the others tell it what is their own.

They speak through the store that the process group was made by, at the first batch, at each checkpoint and at ``close()``. No
collective is called, so that a process that goes another way holds up nobody's training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
import torch.distributed.distributed_c10d as c10d

from proof_of_learning.canonical import brief
from proof_of_learning.errors import RecordingError, UsageError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.codecs.raw import RawCodec, written
from proof_of_learning.proof.format import Header
from proof_of_learning.recording.checkpoint import Rows
from proof_of_learning.replay import protocol
from proof_of_learning.run.events import course
from proof_of_learning.run.ranks import ALIKE, Place, kinds_of, told
from proof_of_learning.state.ranks import divided, manifest, mean, of_all
from proof_of_learning.state.state import State, capture
from proof_of_learning.training.batches import Indices

PATIENCE = 120.0  # seconds in which the others come to the same place
SEALING = 10 * PATIENCE  # in which process 0 rehearses the last segment, and seals
ENDED = "ended"
_POLLS = (0.001, 0.05)  # seconds between looks at the store: at first, and at most
_REMEDY = "every process has to take the same steps, and to make pol.Run and close it"

T = TypeVar("T")


class Claimed(msgspec.Struct, frozen=True):
    """What each process says before its first step; all have to say the same."""

    task: str
    data: str
    interval: int
    environment: str


class Drawn(msgspec.Struct, frozen=True):
    """The steps of one process since the last checkpoint, and what its state is at it. ``own``: as the raw codec writes it."""

    stop: int
    losses: list[float]
    rates: list[list[float]]
    share: protocol.Share
    alike: dict[str, str]
    own: bytes

    @classmethod
    def of(cls, stop: int, rows: Rows, alike: dict[str, str], own: State) -> Drawn:
        losses = torch.stack(rows.losses).double().tolist() if rows.losses else []
        return cls(stop, losses, rows.rates, rows.share(), alike, written(own))

    def rows(self) -> Rows:
        return Rows(
            [torch.tensor(loss, dtype=torch.float64) for loss in self.losses],
            self.rates,
            [np.frombuffer(raw, dtype="<i8") for raw in self.share.indices],
            [protocol.snapshot(states) for states in self.share.generators],
            [np.frombuffer(raw, dtype="<i8") for raw in self.share.loop],
        )

    def state(self) -> State:
        return RawCodec().decode(bytearray(self.own), None)


class Ended(msgspec.Struct, frozen=True):
    steps: int


class Board:
    """Where processes leave each other messages."""

    def __init__(self, here: Place) -> None:
        self.here, self.told = here, False  # whether this process has given up
        self._store = c10d.PrefixStore("pol", c10d._get_default_store())

    def put(self, name: str, message: msgspec.Struct) -> None:
        self._set(f"{self.here.rank}/{name}", msgspec.msgpack.encode(message))

    def take(self, rank: int, name: str, kind: type[T], where: str) -> T:
        """What process ``rank`` left under a name. RecordingError where it does not come, or where a process gave up."""
        self._await(rank, name, where)
        return msgspec.msgpack.decode(self._get(f"{rank}/{name}", used=True), type=kind)

    def root(self) -> str:
        """What process 0 sealed."""
        self._await(0, "root", "to the proof's seal", SEALING)
        root = self._get("0/root").decode()
        self._set(f"{self.here.rank}/heard", b"")
        return root

    def sealed(self, root: str) -> None:
        """Tell the others the root; the store may end with this process, so they are given the time to read it."""
        self._set("0/root", root.encode())
        for rank in range(1, self.here.size):
            self._await(rank, "heard", "to read the root")

    def give_up(self, why: str) -> None:
        """Tell the others that there will be no proof."""
        self.told = True
        self._set("failed", f"process {self.here.rank}: {why}".encode())

    def failed(self) -> str:
        """Why another process gave up; nothing where none did."""
        return self._get("failed").decode() if self._holds("failed") else ""

    def _await(self, rank: int, name: str, where: str, patience: float = PATIENCE) -> None:
        end, pause = time.monotonic() + patience, _POLLS[0]
        while not self._holds(f"{rank}/{name}"):
            if why := self.failed():
                raise OtherGaveUpError(why)
            if name != ENDED and self._holds(f"{rank}/{ENDED}") and not self._holds(f"{rank}/{name}"):
                raise RecordingError(f"process {rank} called run.close() and did not come {where}; {_REMEDY}")
            if time.monotonic() > end:
                raise RecordingError(f"process {rank} did not come {where} within {patience:.0f} seconds; {_REMEDY}")
            time.sleep(pause)
            pause = min(2 * pause, _POLLS[1])

    def _set(self, name: str, value: bytes) -> None:
        with _reaching():
            self._store.set(name, value)  # type: ignore[arg-type]

    def _get(self, name: str, used: bool = False) -> bytes:
        with _reaching():
            found: bytes = self._store.get(name)
            if used:
                self._store.delete_key(name)
            return found

    def _holds(self, name: str) -> bool:
        with _reaching():
            return bool(self._store.check([name]))


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # PyTorch's own, where the process that keeps the store has ended
        raise OtherGaveUpError(f"the other processes cannot be reached any more ({brief(error)})") from error


class OtherGaveUpError(RecordingError):
    """Another process gave up, and has said why."""


class Gathering:
    """On process 0: puts together what the recorder writes."""

    def __init__(self, board: Board, header: Header, parts: Mapping[str, Any], environment: Environment) -> None:
        self._board, self._parts = board, parts
        self._others = range(1, board.here.size)
        mine = claimed(header, environment)
        for rank in self._others:
            its = board.take(rank, "claimed", Claimed, "to its first batch")
            for name, what in (
                (
                    "data",
                    "trains on other data than process 0; each has to load the same data set, and a sampler shares it out",
                ),
                ("task", "builds another model, optimizer or loader than process 0"),
                ("interval", "has another interval than process 0"),
                (
                    "environment",
                    "computes in another numeric environment than process 0 (threads, libraries, processor)",
                ),
            ):
                if getattr(its, name) != getattr(mine, name):
                    raise UsageError(f"process {rank} {what}")

    def join(self, state: State, rows: Rows, stop: int) -> tuple[State, Rows]:
        """The state of all processes, and the steps of all. RecordingError where they part."""
        common, _ = divided(state, kinds_of(self._parts), ALIKE)
        alike, drawn = manifest(common), []
        state._digests.update({name: digest for name, digest in alike.items() if name})
        for rank in self._others:
            its = self._board.take(rank, f"drawn/{stop}", Drawn, f"to its checkpoint after step {stop}")
            self._compare(rank, its, alike, rows, stop)
            drawn.append(its)
        own = torch.stack(rows.losses).double().tolist() if rows.losses else []
        losses = [mean(losses) for losses in zip(own, *(its.losses for its in drawn), strict=True)]
        means = list(torch.tensor(losses, dtype=torch.float64))
        all_rows = Rows(means, rows.rates, rows.indices, rows.rng, rows.loop, [its.rows() for its in drawn])
        return of_all(state, [its.state() for its in drawn]), all_rows

    def _compare(self, rank: int, its: Drawn, alike: Mapping[str, str], rows: Rows, stop: int) -> None:
        if its.rates != rows.rates:
            raise RecordingError(f"before step {stop} process {rank} trained at another learning rate than process 0")
        if [course(np.frombuffer(raw, dtype="<i8")) for raw in its.share.loop] != [course(row) for row in rows.loop]:
            raise RecordingError(
                f"before step {stop} process {rank} took other batches of its loader than process 0; {_REMEDY}"
            )
        odd = next(
            (name for name in sorted({*alike, *its.alike}) if name and alike.get(name) != its.alike.get(name)), None
        )
        if odd is not None or its.alike != alike:
            what = odd or "settings of an optimizer or scheduler"
            raise RecordingError(
                f"after step {stop} process {rank} has another {what} than process 0; what is trained by all has to be the same in all"
            )

    def seal(self, steps: int) -> None:
        """All processes are to be at their end."""
        for rank in self._others:
            ended = self._board.take(rank, ENDED, Ended, "to run.close()")
            if ended.steps != steps:
                raise RecordingError(f"process {rank} took {ended.steps:,} steps, and process 0 {steps:,}; {_REMEDY}")


class Following:
    """On every other process: has a recorder's place, and tells process 0 what that writes."""

    def __init__(self, board: Board, header: Header, parts: Mapping[str, Any], environment: Environment) -> None:
        self.header, self.parts, self.steps_done = header, dict(parts), 0
        self._board, self._rows = board, Rows()
        board.put("claimed", claimed(header, environment))
        self._tell()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is held."""

    def step(
        self,
        loss: torch.Tensor,
        rates: list[float],
        *,
        indices: Indices | None = None,
        rng: RngSnapshot | None = None,
        loop: Indices | None = None,
    ) -> bool:
        assert indices is not None and rng is not None and loop is not None
        self._rows.add(loss, rates, indices, rng, loop)
        self.steps_done += 1
        boundary = self.steps_done % self.header.training.interval == 0
        if boundary:
            self._tell()
        return boundary

    def close(self) -> str:
        """The root of the proof that process 0 seals."""
        if len(self._rows):
            self._tell()
        self._board.put(ENDED, Ended(self.steps_done))
        return self._board.root()

    def _tell(self) -> None:
        if why := self._board.failed():
            raise OtherGaveUpError(why)
        own, alike = told(self.parts, capture(self.parts, live=True))
        self._board.put(f"drawn/{self.steps_done}", Drawn.of(self.steps_done, self._rows, alike, own))
        self._rows = Rows()


def claimed(header: Header, environment: Environment) -> Claimed:
    return Claimed(header.task.digest, header.data.root, header.training.interval, environment.digest())
