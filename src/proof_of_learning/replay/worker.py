"""The replay worker: builds the task, and takes the steps that it is told to take from the state that it is given.

It runs in a child process started with the recorded numeric environment (``python -m proof_of_learning.replay.worker``),
or in the verifier's own process for tasks without a reference. It is blind (see :mod:`replay.protocol`), and each request finds
the task as it was after loading: nothing that its objects hold besides the given state passes from one segment to the next.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.data.commit import Dataset, commit
from proof_of_learning.data.opened import OpenedData
from proof_of_learning.errors import FormatError, PolError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric.portable import ARITHMETICS, NATIVE, using
from proof_of_learning.replay import fork, probe, protocol
from proof_of_learning.replay.origins import origin
from proof_of_learning.replay.protocol import AnyRequest, Reply
from proof_of_learning.state.names import weight_name
from proof_of_learning.state.parts import of_kind
from proof_of_learning.state.state import State, live_settings
from proof_of_learning.task import Task, TaskReference, is_script, load_task, task_code
from proof_of_learning.training.batches import DerivedOrder, Feed, Order, RecordedOrder
from proof_of_learning.training.steps import Session
from proof_of_learning.training.uncompiled import defer_compiler

Pulse = Callable[[int, int], None]


class Worker:
    """Carries out requests on one task. ``task``: one that is at hand already, for a worker in the verifier's own process."""

    def __init__(self, pulse: Pulse = lambda done, total: None, task: Task | None = None) -> None:
        self.pulse, self._given = pulse, task
        self._task: Task | None = task
        self._arithmetic, self._taken = NATIVE, False
        self._base: State | None = None
        self._data: Dataset | None = None
        self._opened: OpenedData | None = None
        self._session: Session | None = None

    def answer(self, request: AnyRequest, states: Sequence[State] = ()) -> Reply:
        """The answer to one request; raises PolError, whatever goes wrong: a proof may bring about what nobody thought of."""
        try:
            return self._answer(request, states)
        except PolError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            what = "it needs more memory than there is" if isinstance(error, MemoryError) else canonical.brief(told)
            raise WorkerError(f"the replay failed: {what}") from error

    def prepare(self) -> None:
        """Load what every request but the first needs, so that children that answer them find it loaded."""
        _ = self.data, self.session

    def forget(self) -> None:
        """Be as after opening: what the task's objects hold besides recorded state must not reach the next request."""
        self._data = self._session = None

    def _answer(self, request: AnyRequest, states: Sequence[State]) -> Reply:
        match request:
            case protocol.Open():
                return self._open(request, states), ()
            case protocol.Describe():
                return self._describe(), ()
            case protocol.CommitData():
                return self._commit(), ()
            case protocol.Start():
                return self._start(request)
            case protocol.Rates():
                return self._schedule(request, states), ()
            case protocol.Take():
                return self._take(request, states[0])
            case protocol.Evaluate():
                self.session.restore(states[0])
                return protocol.Evaluated(self.session.evaluate()), ()
            case protocol.Probe():
                return probe.probe(self.session, self.data, request, states, self.pulse), ()
            case protocol.SelfTest():
                from proof_of_learning.numeric.portable import selftest

                return protocol.SelfTested(selftest.differing(self._device)), ()

    # ---- requests ------------------------------------------------------------------------------------

    def _open(self, request: protocol.Open, states: Sequence[State]) -> protocol.Opened:
        self._key, self._device, self._arithmetic = bytes.fromhex(request.key), "cpu", request.arithmetic
        if self._arithmetic not in ARITHMETICS:
            raise FormatError(f"the arithmetic {self._arithmetic[:40]!r} is not known here")
        if request.environment is not None:
            environments.apply(request.environment, lasting=self._given is None)
            if request.environment.device.type == "cuda" and torch.cuda.is_available():
                self._device = "cuda"
        self._opened = None
        if request.samples is not None:
            *states, sent = states
            self._opened = OpenedData.of(request.samples, sent)
        self._base = states[0] if states else None
        self._task, self._taken = self._given or self._loaded(request), bool(request.program)
        if request.sealed and self._task.program is None:
            from proof_of_learning.program.sealed import task_of
            from proof_of_learning.program.tracing import seal

            with using(self._arithmetic), task_code("loading the data"):
                data = self._task.data()
            self._task = replace(task_of(seal(self._task, data), self._task.data), seed=self._task.seed)
        if request.seed is not None:
            self._task = replace(self._task, seed=request.seed)
        here = environments.current(self._device)
        return protocol.Opened(here, self._device == "cpu" and fork.possible(here.threads))

    def _loaded(self, request: protocol.Open) -> Task:
        """The task that is named, or the one that a sealed program is: then nothing of the prover's is imported."""
        if not request.program:
            return load_task(TaskReference(request.task, request.settings))
        from proof_of_learning.program.checking import parse
        from proof_of_learning.program.folder import samples
        from proof_of_learning.program.sealed import task_of

        folder = str(request.settings.get("data", ""))
        return task_of(parse(request.program), lambda: samples(folder))

    def _describe(self) -> protocol.Described:
        task, samples, session = self.task, len(self.data), self.session
        description = session.describe()
        return protocol.Described(
            digest=description.digest(),
            description=canonical.encode(description.content),
            sources=description.sources,
            steps=task.total_steps(samples),
            steps_per_epoch=task.steps_per_epoch(samples),
            samples=samples,
            batch=task.batch_size * task.accumulate,
            loop_schedule=task.step is None,
            metric=session.metric,
            evaluates=task.evaluate is not None,
            members=session.members(),
            optimizers=session.groups(),
            modules=list(of_kind(session.parts, "module")),
            taken=self._taken,
        )

    def _commit(self) -> protocol.Committed:
        total = len(self.data)
        with using(self._arithmetic), task_code("reading the data"):
            return protocol.Committed(commit(self.data, progress=lambda done: self.pulse(done, total)))

    def _start(self, request: protocol.Start) -> Reply:
        first = self.session
        state = first.capture(live=True)
        self.pulse(1, 2)
        second = self._built(bytes.fromhex(request.other)).capture(live=True)
        trainable = {weight_name(name) for name, p in first.model.named_parameters() if p.requires_grad}
        tensors = [
            origin(name, tensor, second.tensors.get(name), name in trainable, name in first.linked)
            for name, tensor in state.tensors.items()
        ]
        return protocol.Started(tensors), (state, second)

    def _schedule(self, request: protocol.Rates, states: Sequence[State]) -> protocol.RatesGiven:
        per_epoch, clock = self.task.steps_per_epoch(len(self.data)), self.session
        if states:
            clock.restore(states[0])
        if clock.progress.step != request.origin:
            raise FormatError(f"the state before step {request.origin} says it stands at step {clock.progress.step}")
        rates, settings = [], []
        for step, row in enumerate(clock.idle(request.stop, per_epoch, request.metrics), request.origin):
            if step % 1000 == 0:
                self.pulse(step, request.stop)
            if step < request.start:
                continue
            rates.append(row)
            if (step + 1) % request.interval == 0 or step + 1 == request.steps:
                settings.append(live_settings(clock.parts))
        return protocol.RatesGiven(rates, settings)

    def _take(self, request: protocol.Take, start: State) -> Reply:
        session = self.session
        session.restore(start)
        if session.progress.step != request.start:
            raise FormatError(f"the state before step {request.start} says it stands at step {session.progress.step}")
        feed = Feed(self.task, self.data, self._key, self._device)
        if request.indices is None or request.generators is None:
            steps = session.run(request.stop, feed, DerivedOrder(self.task, len(self.data), self._key))
        else:
            lists = [np.frombuffer(raw, dtype="<i8").copy() for raw in request.indices]
            order: Order = RecordedOrder(request.start, lists, len(self.data))
            snapshots = [protocol.snapshot(states) for states in request.generators]
            steps = session.run(request.stop, feed, order, rng=lambda step: snapshots[step - request.start])
        losses, rates = [], []
        stepping = time.perf_counter()
        for result in steps:
            losses.append(result.loss)
            rates.append(result.rates)
            self.pulse(result.step + 1 - request.start, request.stop - request.start)
        values = torch.stack(losses).double().cpu().tolist()
        stepped = time.perf_counter() - stepping
        return protocol.Taken(values, rates, stepped), (session.capture(live=True),)

    # ---- what is built once --------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        if self._task is None:
            raise WorkerError("the worker was asked before it was told the task")
        return self._task

    @property
    def data(self) -> Dataset:
        if self._opened is not None:
            return self._opened
        if self._data is None:
            with using(self._arithmetic), task_code("loading the data"):
                self._data = self.task.data()
                len(self._data)
        return self._data

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self._built(self._key)
        return self._session

    def _built(self, key: bytes) -> Session:
        return Session(self.task, key, self._device, self._base, self._arithmetic)


def serve(worker: Worker, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until they end, each in a child of this process where that is possible."""
    forks = False
    while True:
        try:
            request, states = protocol.receive(requests, AnyRequest)  # type: ignore[arg-type, var-annotated]
        except EOFError:
            return

        if isinstance(request, protocol.Open) and is_script(request.task):
            from proof_of_learning.run import serve as scripts

            return scripts.serve(request, requests, answers, worker.pulse)

        def reply(request: AnyRequest = request, states: Sequence[State] = states) -> bool:
            reply: tuple[Any, Sequence[State]]
            with contextlib.redirect_stdout(sys.stderr):
                try:
                    reply = worker.answer(request, states)
                except PolError as error:
                    reply = protocol.Failed(type(error).__name__, str(error)), ()
            protocol.send(answers, *reply)
            return isinstance(reply[0], protocol.Opened) and reply[0].forks

        try:
            if not isinstance(request, protocol.Open):
                with contextlib.redirect_stdout(sys.stderr):
                    worker.prepare()
        except PolError as error:
            protocol.send(answers, protocol.Failed(type(error).__name__, str(error)))
            continue
        if forks:
            fork.run(reply)
        elif reply():
            forks = True
            _load(worker)
        del request, states, reply


def _load(worker: Worker) -> None:
    """Load what every request needs while none has come; what fails fails again when one does, and is told then."""
    with contextlib.suppress(PolError), contextlib.redirect_stdout(sys.stderr):
        worker.prepare()
    fork.settle()


def _warm_up() -> None:
    """What PyTorch sets up with its first step, so that no child has to; now the verifier is busy too."""
    defer_compiler()
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    torch.nn.functional.cross_entropy(network(torch.zeros(1, 2)), torch.zeros(1, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def main() -> None:
    """Serve requests from standard input; answers go to what was standard output, which the task's prints no longer reach."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the verifier decides when we end
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves nothing behind
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    last = [0.0]

    def pulse(done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > 0.2:
            last[0] = now
            protocol.send(answers, protocol.Working(done, total))

    pulse(0, 0)
    _warm_up()
    serve(Worker(pulse), requests, answers)


if __name__ == "__main__":
    main()
