"""Hops: short stretches of a run with the states at both ends, and what a worker that gets only the first of them finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from proof_of_learning.errors import PolError, StrayedError, TaskError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.replay import protocol
from proof_of_learning.replay.pool import Job
from proof_of_learning.replay.process import DEFAULT_TIMEOUT, LocalWorker, WorkerProcess
from proof_of_learning.state.state import State
from proof_of_learning.task import Task
from proof_of_learning.training.batches import Indices

HASH_SEED = "PYTHONHASHSEED"


@dataclass
class Hop:
    """Steps ``start`` up to ``stop``: the states before and after, the losses; batches and generators where they are recorded.

    ``loop``: of a script, what happened in its steps; ``closed``: whether it called ``close()`` behind the last of them (None: not
    known). ``ranks``: what further processes drew that train together with this one.
    """

    start: int
    before: State
    stop: int = 0
    after: State | None = None
    losses: list[Tensor] = field(default_factory=list)
    indices: list[Indices] = field(default_factory=list)
    rng: list[RngSnapshot] = field(default_factory=list)
    loop: list[Indices] = field(default_factory=list)
    closed: bool | None = None
    ranks: list[protocol.Share] = field(default_factory=list)

    def add(self, loss: Tensor, indices: Indices | None, rng: RngSnapshot | None, loop: Indices | None) -> None:
        """Take note of the next step."""
        self.losses.append(loss)
        if indices is not None and rng is not None:
            self.indices.append(indices)
            self.rng.append(rng)
        if loop is not None:
            self.loop.append(loop)

    def request(self) -> protocol.Take:
        loop = [words.astype("<i8").tobytes() for words in self.loop] or None
        if not self.rng:
            return protocol.Take(self.start, self.stop, loop=loop)
        return protocol.Take(self.start, self.stop, *protocol.recorded_steps(self.indices, self.rng), loop, self.ranks)


@dataclass(frozen=True)
class Difference:
    """Where a replay of a hop parted from the run.

    step: the first at which it shows; ``forward``: whether in its loss, not only in what its update left.
    tensors: the names of those that differ at the hop's end; ``everything``: how many there are.
    refused: why the state could not be replayed at all, in a line.
    """

    start: int
    stop: int
    step: int
    forward: bool
    tensors: tuple[str, ...]
    everything: int
    refused: str = ""


@dataclass(frozen=True)
class Evidence:
    """A difference, and what was found out about it.

    unstable: whether two replays from one state, in one process, differ from each other.
    hashed: whether replays in processes with other hash seeds differ from each other (None: not asked).
    data_differ: whether a fresh process finds other data than were committed to (None: not asked).
    """

    difference: Difference
    unstable: bool = False
    hashed: bool | None = None
    data_differ: bool | None = None


class Player(Protocol):
    """Who carries out requests: a process of its own, or this one."""

    def ask(self, request: protocol.AnyRequest, states: Sequence[State] = ()) -> protocol.Reply: ...
    def close(self) -> None: ...


class ProcessPlayer:
    """A fresh process with its own data set and a hash seed of its own. It loads while something else is done."""

    def __init__(
        self,
        job: Job,
        environment: Environment,
        hash_seed: int,
        timeout: float = DEFAULT_TIMEOUT,
        folder: str | None = None,
    ) -> None:
        """``folder``: where the process works, if not here."""
        self._job, self._environment = job, environment
        variables = {**environment.variables, HASH_SEED: str(hash_seed)}
        self._worker = WorkerProcess(msgspec.structs.replace(environment, variables=variables), timeout, folder=folder)
        self._open = False

    def ask(self, request: protocol.AnyRequest, states: Sequence[State] = ()) -> protocol.Reply:
        if not self._open:
            reference = self._job.reference
            assert reference is not None
            opening = protocol.Open(
                reference.target, dict(reference.settings), self._job.key, self._job.seed, self._environment,
                list(reference.arguments or self._job.arguments), self._job.derived, self._job.arithmetic,
                ranks=self._job.ranks,
            )  # fmt: skip
            self._asked(opening, [] if self._job.base is None else [self._job.base])
            self._open = True
        return self._asked(request, states)

    def _asked(self, request: protocol.AnyRequest, states: Sequence[State]) -> protocol.Reply:
        try:
            return self._worker.ask(request, states)
        except TaskError as error:
            if self._worker.silent:  # slow, or compiling: no reason to condemn anything
                raise WorkerError(str(error)) from error
            raise

    def close(self) -> None:
        self._worker.close()


class LocalPlayer:
    """This process, for a task that is an object: with fresh objects, but with the globals that training uses."""

    def __init__(self, job: Job, environment: Environment) -> None:
        assert isinstance(job.task, Task)
        self._worker = LocalWorker(job.task, environment)
        self._opening: tuple[protocol.Open, list[State]] | None = (
            protocol.Open("(in this process)", {}, job.key, job.seed, environment, arithmetic=job.arithmetic),
            [] if job.base is None else [job.base],
        )

    def ask(self, request: protocol.AnyRequest, states: Sequence[State] = ()) -> protocol.Reply:
        with environments.restored(), randomness.preserved():
            if self._opening is not None:
                self._worker.ask(*self._opening)
                self._opening = None
            return self._worker.ask(request, states)

    def close(self) -> None:
        """Nothing to end."""


def replay(player: Player, hop: Hop) -> tuple[State, list[float]]:
    """Where the hop's steps arrive from its first state, and their losses. Raises what the worker raised."""
    answer, states = player.ask(hop.request(), [hop.before])
    if not isinstance(answer, protocol.Taken) or len(states) != 1:
        raise WorkerError("the replay worker answered something else than it was asked")
    if hop.closed is not None and answer.closed != hop.closed:
        raise StrayedError(
            f"the script's loop ends after {hop.stop} steps there, and went on here"
            if answer.closed
            else f"the script's loop goes on after {hop.stop} steps there, and ended here"
        )
    return states[0], answer.losses


def compare(hop: Hop, arrived: State, losses: Sequence[float]) -> Difference | None:
    """None where the replay has the run's bits."""
    assert hop.after is not None
    own = torch.stack([loss.detach().reshape(()) for loss in hop.losses]).double().cpu().tolist()
    parted = [i for i, pair in enumerate(zip(own, losses, strict=True)) if not _same(*pair)]
    if not parted and arrived.digest() == hop.after.digest():
        return None
    names = [*hop.after.tensors, *(name for name in arrived.tensors if name not in hop.after.tensors)]
    differ = tuple(
        name
        for name in names
        if name not in arrived.tensors
        or name not in hop.after.tensors
        or arrived.tensor_digest(name) != hop.after.tensor_digest(name)
    )
    step = hop.start + parted[0] if parted else hop.stop - 1
    return Difference(hop.start, hop.stop, step, bool(parted), differ, len(names))


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def examine(player: Player, hop: Hop) -> Difference | None:
    """Replay a hop and say where it parts from the run. WorkerError where the worker fails for reasons of its own."""
    try:
        return compare(hop, *replay(player, hop))
    except WorkerError as error:
        if not isinstance(error, StrayedError):
            raise
        return Difference(hop.start, hop.stop, hop.start, True, (), len(hop.before.tensors), str(error))
    except PolError as error:
        return Difference(hop.start, hop.stop, hop.start, True, (), len(hop.before.tensors), str(error))


def investigate(
    player: Player, hop: Hop, found: Difference, data_root: str | None, another: Callable[[], Player] | None
) -> Evidence:
    """What can be found out about a difference by asking on: the data, the same again, ``another`` process with its own hash seed."""
    evidence = Evidence(found)
    if data_root is not None:
        committed, _ = player.ask(protocol.CommitData())
        assert isinstance(committed, protocol.Committed)
        evidence = replace(evidence, data_differ=committed.commitment.root != data_root)
    if found.refused or evidence.data_differ:
        return evidence
    first, losses = replay(player, hop)
    again, losses_again = replay(player, hop)
    if first.digest() != again.digest() or losses != losses_again:
        return replace(evidence, unstable=True)
    if another is not None:
        other = another()
        try:
            elsewhere, losses_elsewhere = replay(other, hop)
        finally:
            other.close()
        evidence = replace(evidence, hashed=first.digest() != elsewhere.digest() or losses != losses_elsewhere)
    return evidence


def other_key() -> str:
    """A key under which the start is built a second time; what comes of it is not looked at."""
    return randomness.key_from_seed(2**64 - 1).hex()
