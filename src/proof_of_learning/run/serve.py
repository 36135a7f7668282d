"""A script in a replay worker: run up to its first request, from where children answer what the verifier asks.

Beside it waits a process that was forked before the script began: it runs the set-up again where a first state under another key is
asked for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NoReturn

import torch

from proof_of_learning.errors import PolError, StrayedError, TaskError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.replay import fork, protocol
from proof_of_learning.run import script, seeds, shadow
from proof_of_learning.run.conducting import Conductor
from proof_of_learning.run.facts import facts
from proof_of_learning.run.jobs import job_for
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.run.probing import Left
from proof_of_learning.run.ranks import Local
from proof_of_learning.run.replay import Job, Replaying
from proof_of_learning.state.state import State
from proof_of_learning.task import task_code

Pulse = Callable[[int, int], None]


def serve(request: protocol.Open, requests: BinaryIO, answers: BinaryIO, pulse: Pulse) -> None:
    """Answer requests about a script until they end. ``request``: the first, which names it."""
    device = "cpu"
    if request.environment is not None:
        environments.apply(request.environment, lasting=True)
        if request.environment.device.type == "cuda" and torch.cuda.is_available():
            device = "cuda"
    here = environments.current(device)
    children = device == "cpu" and fork.possible(here.threads)
    opened = protocol.Opened(here, children)
    if request.ranks == 1:
        server = _Server(request, requests, answers, pulse, children)
        protocol.send(answers, opened)
        server.run()
    else:
        # Processes are told of no pace of their own: each says by itself that it is alive.
        conductor = Conductor(
            request.ranks, lambda local, asks, tells: _one_of_several(request, asks, tells, children, local)
        )
        protocol.send(answers, opened)
        conductor.run(requests, answers, pulse)


def _one_of_several(
    request: protocol.Open, requests: BinaryIO, answers: BinaryIO, children: bool, local: Local
) -> None:
    def pulse(done: int, total: int) -> None:
        protocol.send(answers, protocol.Working(done, total))

    local.enter()
    _Server(request, requests, answers, pulse, children, local).run()


class _Server:
    def __init__(
        self,
        opened: protocol.Open,
        requests: BinaryIO,
        answers: BinaryIO,
        pulse: Pulse,
        children: bool,
        local: Local | None = None,
    ) -> None:
        """``local``: the process group, of one of several processes."""
        self._opened, self._requests, self._answers, self._children = opened, requests, answers, children
        self.pulse = pulse
        self._local, self._number = local, 0  # of the request under way
        self._leaving: Any = None  # a file in memory, for what a child leaves
        self._asked = False  # whether this process is to answer a request
        self._others = _Others(lambda key: _start(opened, key, local))

    def run(self) -> None:
        if self._opened.derived:
            ACTIVE.seeds = seeds.map_through(bytes.fromhex(self._opened.key))
        ACTIVE.start = self._run
        shadow.install()
        try:
            _execute(self._opened)
            error: PolError = TaskError(
                "the script ended before it took a step" if ACTIVE.begun
                else f"the script holds no pol.Run that watches its loop{script.OR_TASK}"
            ) if not self._asked else StrayedError("the script ended before the recorded steps did")  # fmt: skip
        except PolError as raised:
            error = raised
        if self._asked:
            self._answer(protocol.Failed(type(error).__name__, str(error)), ())
        while True:  # whatever is asked of a script that cannot be run
            try:
                protocol.receive(self._requests, protocol.AnyRequest)  # type: ignore[arg-type]
            except EOFError:
                return
            protocol.send(self._answers, protocol.Failed(type(error).__name__, str(error)))

    def second(self, key: str) -> State:
        return self._others.ask(key)

    @property
    def resumes(self) -> bool:
        return self._children and self._local is None

    def leave(self, message: protocol.Probed, states: Sequence[State]) -> NoReturn:
        protocol.send(self._leaving, message, states)
        os._exit(0)

    def _found(self) -> Left | None:
        """What the child that ended left to be gone on with."""
        if not self.resumes:
            return None
        with self._leaving as file:
            file.seek(0)
            try:
                return Left.read(*protocol.receive(file, protocol.Probed))
            except EOFError:
                return None

    def _run(self, given: Given) -> Replaying:
        ACTIVE.begun += 1
        if ACTIVE.begun > 1:
            raise TaskError("the script makes a second pol.Run; one is recorded")
        return Replaying(given, self._wait)

    def _wait(self, clock: Replaying) -> Job:
        """The parent stays here; a child returns with its job."""
        if self._local is not None:
            self._local.leave(clock.given.parts)
        while True:
            try:
                request, states = protocol.receive(self._requests, protocol.AnyRequest)  # type: ignore[arg-type, var-annotated]
            except EOFError:
                os._exit(0)
            self._number += 1
            left: Left | None = None
            while not self._asked:
                if self.resumes:
                    self._leaving = os.fdopen(os.memfd_create("left"), "w+b")
                if not self._children or fork.child():
                    self._asked = True
                    if self._local is not None:
                        self._local.rejoin(clock.given.parts, f"request-{self._number}")
                    return job_for(clock, request, states, self._answer, self, left)
                left = self._found()
                if left is None:
                    break
            del request, states

    def _answer(self, answer: protocol.AnyAnswer, states: Sequence[State]) -> NoReturn:
        protocol.send(self._answers, answer, states)
        if self._local is not None and not isinstance(answer, protocol.Failed):
            self._requests.read(1)  # once all have answered: until then another one may need this process
        os._exit(0)


def _execute(opened: protocol.Open) -> None:
    with task_code(f"running {os.path.basename(opened.task)}"):
        script.execute(opened.task, opened.arguments)


def _start(opened: protocol.Open, key: str, local: Local | None) -> State:
    """In a child: the script's state before its first step, with every seed mapped through ``key``."""

    class Found(BaseException):
        pass

    kept: list[State] = []

    class Stopping:
        place = None

        def clocked(self, walk: object) -> None:
            kept.append(facts(clocks[0].given, walk.source).capture())  # type: ignore[attr-defined]
            raise Found

        beside = clocked

        def closed(self) -> None:
            raise TaskError("the script called close() before its first step")

    clocks: list[Replaying] = []
    if local is not None:
        local.name = f"setup-{key}"

    def run(given: Given) -> Replaying:
        clocks.append(Replaying(given, lambda clock: Stopping()))
        return clocks[-1]

    mapped = seeds.map_through(bytes.fromhex(key))
    ACTIVE.seeds = mapped if opened.derived else None
    shadow.install()
    ACTIVE.start = run
    try:
        _execute(opened)
    except TaskError as error:
        if not isinstance(error.__cause__, Found):
            raise
    if not kept:
        raise TaskError("the script ended before it took a step")
    return kept[0]


class _Others:
    """A process as it was before the script began, which runs ``make`` in a child of its own for each key."""

    def __init__(self, make: Callable[[str], State]) -> None:
        ours, theirs = socket.socketpair()
        self._make = make
        fork.settle()
        self._parent = os.getpid()
        if os.fork() == 0:
            ours.close()
            fork.die_with(self._parent)
            self._serve(theirs)
        theirs.close()
        self._stream: Any = ours.makefile("rwb", buffering=0)

    def ask(self, key: str) -> State:
        protocol.write_all(self._stream, bytes.fromhex(key))
        answer, states = protocol.receive(self._stream, protocol.AnyAnswer)  # type: ignore[arg-type, var-annotated]
        if isinstance(answer, protocol.Failed):
            raise TaskError(f"with other seeds, {answer.message}")
        return states[0]

    def _serve(self, theirs: socket.socket) -> NoReturn:
        stream: Any = theirs.makefile("rwb", buffering=0)
        while True:
            raw = bytearray()
            while len(raw) < 32:
                piece = stream.read(32 - len(raw))
                if not piece:
                    os._exit(0)
                raw += piece

            def work(key: str = raw.hex()) -> None:
                try:
                    answer: protocol.AnyAnswer = protocol.Started([])
                    states: Sequence[State] = (self._make(key),)
                except PolError as error:
                    answer, states = protocol.Failed(type(error).__name__, str(error)), ()
                protocol.send(stream, answer, states)

            fork.run(work)
