"""The replay worker: builds the task, replays segments of a proof, and returns measurements.

It runs in a child process started with the recorded numeric environment (``python -m proof_of_learning.replay.worker``),
or in the verifier's own process for tasks without a reference. It never trusts the proof, and never hashes the whole data set unless
asked to commit to it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from proof_of_learning import canonical, memory
from proof_of_learning.data.batches import DerivedOrder, Feed, RecordedOrder
from proof_of_learning.data.commit import Dataset, commit
from proof_of_learning.errors import DivergedError, FormatError, PolError, WorkerError
from proof_of_learning.proof import files
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.proof.format import Segment
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import protocol
from proof_of_learning.replay.measure import compare, detail, nudged, relative_errors, weights
from proof_of_learning.replay.origins import rearranged
from proof_of_learning.replay.protocol import AnyAnswer, AnyRequest, TensorOrigin
from proof_of_learning.task import Task, TaskReference, load_task, task_code
from proof_of_learning.training import environment as environments
from proof_of_learning.training import randomness
from proof_of_learning.training.state import State, live_settings
from proof_of_learning.training.steps import Session

Pulse = Callable[[int, int], None]
CORRELATION_SIGMAS = 6.0  # two-key run: beyond this many standard errors, two draws are not independent


class Worker:
    """Carries out requests on one task and one proof."""

    def __init__(self, pulse: Pulse = lambda done, total: None, task: Task | None = None) -> None:
        self._pulse, self._given = pulse, task
        self._task: Task | None = task
        self._data: Dataset | None = None
        self._session: Session | None = None
        self._base: State | None = None
        self._feed: Feed | None = None
        self._order: DerivedOrder | None = None
        self._last: State | None = None
        self._final: dict[str, Tensor] | None = None
        self._scratch: Path | None = None
        self._clock: Session | None = None  # a session of which only the schedule runs

    def answer(self, request: AnyRequest) -> AnyAnswer:
        """The answer to one request; raises PolError, whatever goes wrong: a proof may bring about what nobody thought of."""
        try:
            return self._answer(request)
        except BaseException as error:
            self._session = None  # what broke off midway is not what a restored state would make of it
            if isinstance(error, PolError) or not isinstance(error, Exception):
                raise
            told = f"{type(error).__name__}: {error}"
            what = "it needs more memory than there is" if isinstance(error, MemoryError) else canonical.brief(told)
            raise WorkerError(f"the replay failed: {what}") from error

    def _answer(self, request: AnyRequest) -> AnyAnswer:
        match request:
            case protocol.Open():
                return self._open(request)
            case protocol.Describe():
                return self._describe()
            case protocol.CommitData():
                return self._commit()
            case protocol.Initialize():
                return self._initialize(request)
            case protocol.Rates():
                return self._schedule(request)
            case protocol.Replay():
                return self._replay(request)
            case protocol.Noise():
                return self._noise(request)
            case protocol.Regenerate():
                return self._regenerate(request)
            case protocol.Evaluate():
                return self._evaluate(request)

    # ---- requests ------------------------------------------------------------------------------------

    def _open(self, request: protocol.Open) -> protocol.Opened:
        self._proof = Proof.open(request.proof)
        self._key = bytes.fromhex(request.key)
        device = "cpu"
        if request.environment is not None:
            environments.apply(request.environment, lasting=self._given is None)
            if request.environment.device.type == "cuda" and torch.cuda.is_available():
                device = "cuda"
        self._device = device
        self._scratch = None if request.scratch is None else Path(request.scratch)
        if request.start is not None:
            parent = Proof.open(request.start)
            self._base = parent.state(parent.segments[-1].state).part("model")
        self._task = self._given or load_task(TaskReference(request.task, request.settings))
        if request.seed is not None:
            self._task = replace(self._task, seed=request.seed)
        return protocol.Opened(environments.current(device), self._proof.root)

    def _describe(self) -> protocol.Described:
        task, samples = self.task, len(self.data)
        description = self.session.describe()
        return protocol.Described(
            digest=description.digest(),
            description=canonical.encode(description.content),
            sources=description.sources,
            steps=task.total_steps(samples),
            steps_per_epoch=task.steps_per_epoch(samples),
            samples=samples,
            batch=task.batch_size * task.accumulate,
            loop_schedule=task.step is None,
            evaluates=task.evaluate is not None,
        )

    def _commit(self) -> protocol.Committed:
        total = len(self.data)
        with task_code("reading the data"):
            return protocol.Committed(commit(self.data, progress=lambda done: self._pulse(done, total)))

    def _initialize(self, request: protocol.Initialize) -> protocol.Initialized:
        first = self._fresh_session()
        state = first.capture(live=True)
        self._pulse(1, 2)
        second = Session(self.task, bytes.fromhex(request.other), self._device, self._base).capture(live=True)
        trainable = {f"model/parameters/{name}" for name, p in first.model.named_parameters() if p.requires_grad}
        tensors = [
            origin(name, tensor, second.tensors.get(name), name in trainable, name in first.linked)
            for name, tensor in state.tensors.items()
        ]
        comparison, relative, rest_fresh = None, dict[str, float](), True
        initial = self._proof.initial_state
        if state.digest() != initial and self._proof.has_state(initial):
            recorded = self._proof.state(initial)
            comparison = compare(state, recorded)
            relative = relative_errors(state, recorded)
            rest = [name for name, part in first.parts.items() if not isinstance(part, torch.nn.Module)]
            rest_fresh = state.part(*rest).digest() == recorded.part(*rest).digest()
        return protocol.Initialized(state.digest(), comparison, relative, rest_fresh, tensors)

    def _schedule(self, request: protocol.Rates) -> protocol.RatesGiven:
        per_epoch = self.task.steps_per_epoch(len(self.data))
        if self._clock is None or self._clock.progress.step > request.start:
            self._clock = self._fresh_session()
        for _ in self._clock.idle(request.start, per_epoch):
            pass
        rates, settings = [], []
        training = self._proof.header.training
        for step, row in enumerate(self._clock.idle(request.stop, per_epoch), request.start):
            rates.append(row)
            if (step + 1) % training.interval == 0 or step + 1 == training.steps:
                settings.append(live_settings(self._clock.parts))
            if step % 1000 == 0:
                self._pulse(step, request.stop)
        if request.stop == training.steps:
            self._clock = None
            gc.collect()  # what the sessions of the first checks took is not needed any more
            memory.trim()
        return protocol.RatesGiven(rates, settings)

    def _replay(self, request: protocol.Replay) -> protocol.Replayed:
        begun = time.perf_counter()
        segment = self._segment(request.index)
        before, walked = self._start(request.index)
        arrived, losses, rates, stepped = self._take(before, segment, request.steps)
        comparison = displacement = details = None
        if request.steps is not None:
            ended = arrived
            displacement = compare(before, arrived).overall
        else:
            ended = self._proof.continued(request.index, arrived, before)
            if arrived.digest() == segment.arrived and ended.digest() == segment.state:
                displacement = compare(before, ended).overall
            elif self._proof.has_state(segment.state):
                recorded = self._proof.state(segment.state)
                displacement = compare(before, recorded).overall
                wanted = recorded if ended is arrived else self._proof.codec.nearest(arrived, recorded, before)
                if arrived.digest() != segment.arrived:
                    comparison = compare(arrived, wanted)
                    if request.calibrate:
                        details = detail(arrived, wanted, before, self._final_weights(), self.session.momenta())
        if request.calibrate:
            self._keep(request, arrived)
        self._last = None if request.calibrate else ended
        seconds = time.perf_counter() - begun
        return protocol.Replayed(
            arrived.digest(), ended.digest(), losses, rates, comparison, displacement, details, seconds, stepped,
            walked + len(losses),
        )  # fmt: skip

    def _noise(self, request: protocol.Noise) -> protocol.Replayed:
        begun = time.perf_counter()
        segment = self._segment(request.index)
        before, walked = self._start(request.index)
        kept, again = self._kept(request), 0.0
        if not kept.exists() and request.nudge is not None:
            reference, losses, _, again = self._take(before, segment, request.steps)
            walked += len(losses)
            self._keep(request, reference)
        start = before
        if request.nudge is not None:
            start = nudged(before, randomness.derive(self._key, "nudge", request.index, request.nudge))
        arrived, losses, rates, stepped = self._take(start, segment, request.steps)
        reference = RawCodec().decode(files.read_bounded(kept, 2 * arrived.nbytes + (1 << 20)), None)
        if not request.keep:
            kept.unlink()
        return protocol.Replayed(
            arrived.digest(),
            arrived.digest(),
            losses,
            rates,
            compare(arrived, reference),
            None,
            detail(arrived, reference, before, self._final_weights(), self.session.momenta()),
            time.perf_counter() - begun,
            again + stepped,
            walked + len(losses),
        )

    def _take(
        self, before: State, segment: Segment, count: int | None
    ) -> tuple[State, list[float], list[list[float]], float]:
        """Replay (the first ``count`` steps of) a segment: the state arrived at, losses, rates, and the seconds of the steps alone."""
        session, feed = self.session, self.feed
        session.restore(before)
        if session.progress.step != segment.start:
            raise FormatError(
                f"the state before segment {segment.index} says it stands at step {session.progress.step}"
            )
        stop = segment.stop if count is None else min(segment.stop, segment.start + count)
        if self._proof.header.randomness.mode == "derived":
            steps = session.run(stop, feed, self.order)
        else:
            columns: Columns = self._proof.columns(segment.index)
            assert columns.indices is not None and columns.rng is not None
            snapshots, order = columns.rng, RecordedOrder(segment.start, columns.indices, len(self.data))
            steps = session.run(stop, feed, order, rng=lambda step: snapshots[step - segment.start])
        losses, rates = [], []
        stepping = time.perf_counter()
        for result in steps:
            losses.append(result.loss)
            rates.append(result.rates)
            self._pulse(result.step + 1 - segment.start, stop - segment.start)
        values = torch.stack(losses).double().cpu().tolist()
        stepped = time.perf_counter() - stepping
        return session.capture(), values, rates, stepped

    def _keep(self, request: protocol.Replay | protocol.Noise, arrived: State) -> None:
        files.write_atomic(self._kept(request), RawCodec().encode(arrived, None).chunks())

    def _kept(self, request: protocol.Replay | protocol.Noise) -> Path:
        if self._scratch is None:
            raise WorkerError("a calibrated replay needs a scratch folder")
        return self._scratch / f"{request.index}-{request.steps or 'all'}"

    def _final_weights(self) -> dict[str, Tensor] | None:
        last = self._proof.segments[-1].state
        if self._final is None and self._proof.has_state(last):
            self._final = weights(self._proof.state(last))
        return self._final

    def _start(self, index: int) -> tuple[State, int]:
        """The recorded state that segment ``index`` starts from, which is often where the one before has just arrived.

        Where the proof no longer holds it, the segments since the nearest earlier state are replayed, and must arrive as recorded.
        Returns the steps that took, too.
        """
        digests = self._proof.state_digests()
        last, self._last = self._last, None  # at most one state is kept, and none while another is read
        here, state = index, None
        while state is None:
            if last is not None and last.digest() == digests[here]:
                state = last
            elif self._proof.has_state(digests[here]):
                last = None
                state = self._proof.state(digests[here], surveyed=True)
            elif here == 0:
                raise FormatError(f"no state before segment {index} is in the proof, so that it cannot be replayed")
            else:
                here -= 1
        del last
        for segment in self._proof.segments[here:index]:
            arrived = self._take(state, segment, None)[0]
            state = self._proof.continued(segment.index, arrived, state)
            if (arrived.digest(), state.digest()) != (segment.arrived, segment.state):
                raise DivergedError(
                    f"segment {segment.index}, replayed on the way to segment {index} from the nearest state that was kept, "
                    "arrives elsewhere"
                )
        return state, index * self._proof.header.training.interval - here * self._proof.header.training.interval

    def _regenerate(self, request: protocol.Regenerate) -> protocol.Regenerated:
        segment = self._segment(request.index)
        before, walked = self._start(request.index)
        arrived = self._take(before, segment, None)[0]
        ended = self._proof.continued(request.index, arrived, before)
        assert self._scratch is not None
        for position, state in ((request.index, before), (request.index + 1, ended)):
            files.write_atomic(self._scratch / f"state-{position}", RawCodec().encode(state, None).chunks())
        self._last = ended
        return protocol.Regenerated(walked + segment.stop - segment.start)

    def _evaluate(self, request: protocol.Evaluate) -> protocol.Evaluated:
        session = self.session
        session.restore(self._proof.state(self._segment(request.index).state))
        return protocol.Evaluated(session.evaluate())

    # ---- what is built once --------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        if self._task is None:
            raise WorkerError("the worker was asked before it was told the task")
        return self._task

    @property
    def data(self) -> Dataset:
        if self._data is None:
            with task_code("loading the data"):
                self._data = self.task.data()
                len(self._data)
        return self._data

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self._fresh_session()
        return self._session

    def _fresh_session(self) -> Session:
        return Session(self.task, self._key, self._device, self._base)

    @property
    def feed(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self.task, self.data, self._key, self._device)
        return self._feed

    @property
    def order(self) -> DerivedOrder:
        if self._order is None:
            self._order = DerivedOrder(self.task, len(self.data), self._key)
        return self._order

    def _segment(self, index: int) -> Segment:
        if not 0 <= index < len(self._proof.segments):
            raise WorkerError(f"there is no segment {index}")
        return self._proof.segments[index]


def origin(name: str, a: Tensor, b: Tensor | None, trainable: bool, linked: bool = False) -> TensorOrigin:
    """Classify one initial tensor by its values under two keys (see TensorOrigin).

    Independent draws have a correlation of 0 ± 1/√n once their means are removed.
    """
    floating, n, correlation = a.is_floating_point(), a.numel(), 0.0
    if linked:
        where = "linked"
    elif n == 0 or bool((a == a.flatten()[0]).all()):
        where = "constant"
    elif b is None or b.shape != a.shape or torch.equal(a, b):
        where = "drawn" if b is None else "fixed"
    else:
        correlation = correlated(a.flatten(), b.flatten())
        where = "partly-fixed" if floating and abs(correlation) > CORRELATION_SIGMAS / np.sqrt(n) else "drawn"
        where = "rearranged" if where == "drawn" and rearranged(a, b) else where
    return TensorOrigin(name, n, where, trainable, floating, correlation)


def correlated(x: Tensor, y: Tensor) -> float:
    """The correlation of two vectors' entries; in pieces, for in double precision the whole would take much memory."""
    xx = yy = xy = 0.0
    means = [float(v.sum(dtype=torch.float64)) / len(v) for v in (x, y)]
    for start in range(0, len(x), 1 << 18):
        a, b = (v[start : start + (1 << 18)].double() - mean for v, mean in zip((x, y), means, strict=True))
        xx, yy, xy = xx + float(torch.dot(a, a)), yy + float(torch.dot(b, b)), xy + float(torch.dot(a, b))
    length = math.sqrt(xx) * math.sqrt(yy)
    return xy / length if length > 0 else 0.0


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
    importlib.import_module(
        "torch._dynamo"
    )  # which PyTorch loads with the first optimizer; now the verifier is busy too
    worker = Worker(pulse)
    while True:
        try:
            request: AnyRequest = protocol.receive(requests, AnyRequest)  # type: ignore[arg-type]
        except EOFError:
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = worker.answer(request)
        except PolError as error:
            answer = protocol.Failed(type(error).__name__, str(error))
        protocol.send(answers, answer)


if __name__ == "__main__":
    main()
