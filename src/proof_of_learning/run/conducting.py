"""Several processes of a script, replayed together on one machine: each runs the script as one rank, and answers for itself.

This process runs nothing of the script. It hands each request to all of them, each with what its own process drew, and puts their
answers together. Where they part, or one cannot go on, the answer says so.
"""

from __future__ import annotations

import os
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np

from proof_of_learning.errors import FormatError, PolError, StrayedError, TaskError, WorkerError
from proof_of_learning.limits import MAX_RANKS
from proof_of_learning.replay import fork, protocol
from proof_of_learning.run.events import course
from proof_of_learning.run.ranks import Local, Place, lost
from proof_of_learning.state.ranks import mean, of_all, of_rank
from proof_of_learning.state.state import State

GRACE = 10.0  # seconds for the others, once one has failed: they may wait for it for ever
Serve = Callable[[Local, BinaryIO, BinaryIO], None]
Reply = tuple[protocol.AnyAnswer, Sequence[State]]


class Conductor:
    """``serve``: answers the requests of one process until they end, in a child of this one."""

    def __init__(self, ranks: int, serve: Serve) -> None:
        if not 1 < ranks <= MAX_RANKS:
            raise FormatError(f"{ranks} processes are to train together; at most {MAX_RANKS} can be replayed")
        self._folder = tempfile.mkdtemp(prefix="ranks-")
        self._streams: list[Any] = []
        for rank in range(ranks):
            self._streams.append(self._start(Local(Place(rank, ranks), self._folder), serve))

    def _start(self, local: Local, serve: Serve) -> Any:
        ours, theirs = socket.socketpair()
        fork.settle()
        parent = os.getpid()
        if os.fork() == 0:
            fork.die_with(parent)
            ours.close()
            for other in self._streams:
                other.close()
            stream: Any = theirs.makefile("rwb", buffering=0)
            try:
                serve(local, stream, stream)
            finally:
                os._exit(0)
        theirs.close()
        return ours.makefile("rwb", buffering=0)

    def run(self, requests: BinaryIO, answers: BinaryIO, pulse: Callable[[int, int], None]) -> NoReturn:
        """Answer requests until they end."""
        while True:
            try:
                request, states = protocol.receive(requests, protocol.AnyRequest)  # type: ignore[arg-type, var-annotated]
            except EOFError:
                os._exit(0)
            hung = False
            try:
                told = [self._share(request, states, rank) for rank in range(len(self._streams))]
                del states
                for stream, (its, given) in zip(self._streams, told, strict=True):
                    protocol.send(stream, its, given)
                del told
                replies, hung = self._gather(pulse)
                for stream, (reply, _) in zip(self._streams, replies, strict=False):
                    if not hung and not isinstance(reply, protocol.Failed):
                        protocol.write_all(stream, b"\0")  # it may end
                answer = together(replies)
            except PolError as error:
                answer = protocol.Failed(type(error).__name__, str(error)), ()
            protocol.send(answers, *answer)
            if hung:
                os._exit(0)  # one of them may never answer; a new worker is started

    def _share(
        self, request: protocol.AnyRequest, states: Sequence[State], rank: int
    ) -> tuple[protocol.AnyRequest, Sequence[State]]:
        """A request with the states behind it, as one of the processes is told it."""
        own = [of_rank(state, rank) for state in states]
        if not isinstance(request, protocol.Take):
            return request, own
        if len(request.ranks) != len(self._streams) - 1 or request.loop is None:
            raise FormatError("the proof does not hold what each process drew")
        if not rank:
            return msgspec.structs.replace(request, ranks=[]), own
        its = request.ranks[rank - 1]
        if _courses(its.loop) != _courses(request.loop):
            raise FormatError(f"process {rank} is recorded with other batches of its loader than process 0")
        return protocol.Take(request.start, request.stop, its.indices, its.generators, its.loop), own

    def _gather(self, pulse: Callable[[int, int], None]) -> tuple[list[Reply], bool]:
        """An answer of each process; and whether some did not answer because another one failed."""
        found: dict[int, Reply] = {}
        end = None
        with selectors.DefaultSelector() as selector:
            for rank, stream in enumerate(self._streams):
                selector.register(stream, selectors.EVENT_READ, rank)
            while len(found) < len(self._streams):
                ready = selector.select(None if end is None else max(0.0, end - time.monotonic()))
                if not ready:
                    return [reply for _, reply in sorted(found.items())], True
                for key, _ in ready:
                    try:
                        answer, states = protocol.receive(key.fileobj, protocol.AnyAnswer)  # type: ignore[arg-type, var-annotated]
                    except EOFError:
                        answer, states = protocol.Failed("WorkerError", f"process {key.data} ended unexpectedly"), []
                        selector.unregister(key.fileobj)
                        found[key.data] = answer, states
                        end = time.monotonic()  # nobody can be asked again
                        continue
                    if isinstance(answer, protocol.Working):
                        pulse(answer.done, answer.total)
                        continue
                    selector.unregister(key.fileobj)
                    found[key.data] = answer, states
                    if isinstance(answer, protocol.Failed):
                        end = time.monotonic() + GRACE
        gone = any(
            isinstance(answer, protocol.Failed) and "ended unexpectedly" in answer.message
            for answer, _ in found.values()
        )
        return [reply for _, reply in sorted(found.items())], gone


def together(replies: Sequence[Reply]) -> Reply:
    """One answer of those of all processes, in order. Raises PolError where they part."""
    failures = [answer for answer, _ in replies if isinstance(answer, protocol.Failed)]
    if failures:  # that another process was lost is no cause
        causes = [failed for failed in failures if not lost(failed.message)]
        return (causes or failures)[0], ()
    answers = [answer for answer, _ in replies]
    first, states = answers[0], replies[0][1]
    if any(type(answer) is not type(first) for answer in answers):
        raise WorkerError("the processes answered something else than they were asked")
    if isinstance(first, protocol.Described):
        return _described(answers), ()
    if isinstance(first, protocol.Committed):
        if any(answer != first for answer in answers):
            raise TaskError(
                "the script's processes load other data than each other; each has to load the same data set"
            )
        return first, ()
    if isinstance(first, protocol.Started):
        return _started(replies)
    if isinstance(first, protocol.Taken):
        return _taken(replies)
    return first, states


def _described(answers: Sequence[Any]) -> protocol.Described:
    first = answers[0]
    for rank, its in enumerate(answers[1:], 1):
        if (its.digest, its.samples, its.place) != (first.digest, first.samples, first.place):
            raise TaskError(f"process {rank} of the script builds another model, optimizer or loader than process 0")
    own = [f"{name}@{rank}" for rank in range(1, len(answers)) for name in first.modules]
    described: protocol.Described = msgspec.structs.replace(first, modules=[*first.modules, *own])
    return described


def _started(replies: Sequence[Reply]) -> Reply:
    """With the further processes' own tensors, which each of them names as its own."""
    first: Any = replies[0][0]
    tensors = list(first.tensors)
    for rank, (its, _) in enumerate(replies[1:], 1):
        for tensor in its.tensors:  # type: ignore[union-attr]
            part, _, rest = tensor.name.partition("/")
            tensors.append(msgspec.structs.replace(tensor, name=f"{part}@{rank}/{rest}"))
    return protocol.Started(tensors), [
        of_all(s[0], s[1:]) for s in zip(*(states for _, states in replies), strict=True)
    ]


def _taken(replies: Sequence[Reply]) -> Reply:
    answers: list[Any] = [answer for answer, _ in replies]
    first = answers[0]
    for rank, its in enumerate(answers[1:], 1):
        if its.alike != first.alike:
            raise StrayedError(f"process {rank} arrives at other weights, or another optimizer, than process 0")
        if (its.rates, its.closed, its.asked) != (first.rates, first.closed, first.asked):
            raise StrayedError(f"process {rank} of the script's loop goes another way than process 0")
    losses = [mean(losses) for losses in zip(*(its.losses for its in answers), strict=True)]
    state = of_all(replies[0][1][0], [states[0] for _, states in replies[1:]])
    return msgspec.structs.replace(first, losses=losses, alike=""), (state,)


def _courses(loop: Sequence[bytes]) -> list[Any]:
    return [course(np.frombuffer(raw, dtype="<i8")) for raw in loop]
