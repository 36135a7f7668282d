"""Where the steps of one request are taken: an environment of the pool, or, on the way to a missing start, several in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from proof_of_learning.errors import WorkerError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.replay import protocol
from proof_of_learning.replay.pool import Pool
from proof_of_learning.replay.process import OnWork
from proof_of_learning.state.state import State

A = TypeVar("A", bound=protocol.Answer)


class Where:
    """One environment of the pool, for one request of a check. ``given``: it was chosen by who asks, not by the proof."""

    def __init__(self, pool: Pool, environment: Environment, given: bool, on_work: OnWork) -> None:
        self._pool, self._environment, self._given, self._on_work = pool, environment, given, on_work
        self.workers: list[str] = []  # who took steps

    def at(self, environment: Environment) -> Where:
        """The same elsewhere; but what was given is kept to."""
        if self._given:
            return self
        other = Where(self._pool, environment, False, self._on_work)
        other.workers = self.workers
        return other

    def ask(
        self, request: protocol.AnyRequest, type_: type[A], states: Sequence[State] = (), returns: int | None = None
    ) -> tuple[A, Sequence[State]]:
        """The answer, which must be of the type that the request asks for."""
        answer, arrived, worker = self._pool.ask(self._environment, request, states, self._on_work, given=self._given)
        if type_ is protocol.Taken and worker not in self.workers:
            self.workers.append(worker)
        expected = returns if returns is not None else 1 if type_ is protocol.Taken else 0
        if not isinstance(answer, type_) or len(arrived) != expected:
            raise WorkerError("the replay worker answered something else than it was asked")
        return answer, arrived
