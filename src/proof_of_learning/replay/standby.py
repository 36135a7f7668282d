"""Workers on standby, for who verifies many proofs: when one has been verified, the processes for the next load PyTorch.

A process serves one verification and is told nothing before, so that what a task leaves behind in it reaches no other proof.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from proof_of_learning.numeric.environment import Environment
from proof_of_learning.replay.early import Name
from proof_of_learning.replay.pool import LocalPool, MakePool
from proof_of_learning.replay.process import WorkerProcess, beginning
from proof_of_learning.replay.sandbox import Sandbox


@contextmanager
def standby(workers: int = 1) -> Iterator[MakePool]:
    """Keep replay workers ready within the context: hand what it gives to each :func:`proof_of_learning.verify` as ``pool``.

    workers: how many take steps side by side (``workers`` of ``verify`` counts for nothing then).

    What is kept ready is what the verification before asked for: in another numeric environment, or with another task in the sandbox,
    a process starts as always, and so where variables, the working directory or the files that a sandbox shows are others by then.
    It takes the memory of as many idle processes (some 250 MB each, much of it shared).
    """
    ready = Standby(workers)
    try:
        yield partial(LocalPool, workers=workers, early=ready)
    finally:
        ready.close()


_Wanted = tuple[Name, Environment, Sandbox | None, float]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A process that was begun, and whom it is for."""

    wanted: _Wanted
    process: Future[WorkerProcess]


class Standby:
    """Hands out processes that were begun when the verification that took their like had ended: until then it needs the cores."""

    def __init__(self, workers: int) -> None:
        self._most = workers + 1  # with the one that looks at states
        self._waiting: list[_Waiting] = []
        self._taken: list[_Wanted] = []
        self._lock = threading.Lock()
        self._closed = False
        # One thread, which stays: a sandbox ends with the thread that began it.
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="pol-standby")

    def take(
        self, name: Name, environment: Environment, sandbox: Sandbox | None, timeout: float
    ) -> WorkerProcess | None:
        """The process that waits for this, None where none does."""
        wanted = (name, environment, sandbox, timeout)
        with self._lock:
            found = next((item for item in self._waiting if item.wanted == wanted), None)
            if found is not None:
                self._waiting.remove(found)
            self._taken.append(wanted)
        if found is None:
            return None
        try:
            process = found.process.result()
        except OSError:  # it could not be begun then
            return None
        # What a fresh one would be begun with may have changed since: variables, our folder, a file that the sandbox hides.
        if process.died or process.beginning != beginning(environment, sandbox):
            process.close()
            return None
        return process

    def ended(self) -> None:
        """A verification has ended: begin what the next one is likely to ask for."""
        with self._lock:
            wanted, self._taken = self._taken[-self._most :], []
            surplus, self._waiting = self._waiting, []
            for item in wanted if not self._closed else ():
                name, environment, sandbox, timeout = item
                begun = partial(WorkerProcess, environment, timeout, sandbox, name=f"worker {name[1] + 1}")
                self._waiting.append(_Waiting(item, self._starting.submit(begun)))
        for waiting in surplus:
            _end(waiting)

    def close(self) -> None:
        """End those that nobody took."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._closed = True
        for item in waiting:
            _end(item)
        self._starting.shutdown()


def _end(item: _Waiting) -> None:
    if not item.process.cancel() and item.process.exception() is None:
        item.process.result().close()
