"""Several requests at once: a few threads, in which each waits for the worker that answers it."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

A = TypeVar("A")
Carry = Callable[[Iterable[int]], Iterator[tuple[int, A]]]


class Stream(Generic[A]):
    """Answers with the positions of what was asked, as they come: iterate over it once.

    chains: positions that belong together, answered in a row. carry: answers such a row, one by one. threads, lanes: where that is
    done, and how many rows at once; by default here, one after another.
    """

    def __init__(
        self, chains: Sequence[Sequence[int]], carry: Carry[A], threads: Executor | None = None, lanes: int = 1
    ) -> None:
        self._chains, self._carry, self._threads, self._lanes = iter(chains), carry, threads, lanes
        self._next = threading.Lock()
        self._last = math.inf

    def until(self, position: int) -> None:
        """Begin nothing more that stands behind ``position``; what was begun goes on."""
        self._last = min(self._last, position)

    def __iter__(self) -> Iterator[tuple[int, A]]:
        if self._threads is None:
            for chain in self._chains:
                yield from self._carry(self._wanted(chain))
            return
        told: queue.SimpleQueue[tuple[int, A] | BaseException | None] = queue.SimpleQueue()
        running = [self._threads.submit(self._serve, told) for _ in range(self._lanes)]
        try:
            for _ in running:
                while (item := told.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    yield item
        finally:
            self.until(-1)

    def _wanted(self, chain: Iterable[int]) -> Iterator[int]:
        return (position for position in chain if position <= self._last)

    def _serve(self, told: queue.SimpleQueue[tuple[int, A] | BaseException | None]) -> None:
        try:
            while True:
                with self._next:
                    chain = next(self._chains, None)
                if chain is None:
                    return
                for item in self._carry(self._wanted(chain)):
                    told.put(item)
        except BaseException as error:  # it is raised where somebody waits
            told.put(error)
        finally:
            told.put(None)
