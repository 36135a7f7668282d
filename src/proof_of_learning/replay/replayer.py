"""The replayer: what checks ask of one proof, answered with the help of workers that never see it.

It decodes states, tells a worker where a segment starts, and hashes, encodes and measures what comes back; all of that in the
verifier's own process.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from proof_of_learning.data.opened import Samples
from proof_of_learning.errors import (
    DivergedError,
    MissingStateError,
    NumericEnvironmentError,
    PolError,
    WorkerError,
)
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment, Flags
from proof_of_learning.numeric.portable import PORTABLE, engine
from proof_of_learning.proof import files
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.proof.format import Segment
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import protocol, requests
from proof_of_learning.replay.ahead import Ahead, fitting
from proof_of_learning.replay.doubt import DoubtedPool, recorded
from proof_of_learning.replay.early import as_recorded
from proof_of_learning.replay.job import job
from proof_of_learning.replay.lanes import Stream
from proof_of_learning.replay.measure import compare, detail, distance, nudged, relative_errors, weights
from proof_of_learning.replay.pool import LocalPool, MakePool, Pool
from proof_of_learning.replay.process import DEFAULT_TIMEOUT, OnWork, idle
from proof_of_learning.replay.requests import PER_SEGMENT, AnyCheckAnswer, AnyCheckRequest
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.replay.twins import own_twins, stuck, twins
from proof_of_learning.replay.where import Where
from proof_of_learning.state.names import CARRYING
from proof_of_learning.state.ranks import of_process
from proof_of_learning.state.state import State
from proof_of_learning.task import Task, TaskReference

MAX_ENVIRONMENTS = 64  # of those that a proof names are tried at all
SETTINGS = ("capability", "threads", "interop_threads", "variables", "flags")  # what a started process can take on


class Replayer:
    """Answers requests about one proof; each goes to the environment that it belongs to."""

    def __init__(
        self,
        proof: Proof,
        task: Task | TaskReference,
        timeout: float = DEFAULT_TIMEOUT,
        start: Path | None = None,
        sandbox: Sandbox | None = None,
        reproduce: bool = True,
        pool: MakePool = LocalPool,
        opened: Samples | None = None,
        double_check: float | None = None,
    ) -> None:
        """``start``: the proof whose final weights the run starts from. ``sandbox``: of workers in processes of their own.

        ``opened``: samples that stand for the task's data set, under the proof's data root.

        ``reproduce``: start workers with the recorded environment, not with this process's own. ``pool``: where workers come from.

        ``double_check``: nobody vouches for the workers of ``pool``; so much of what they do is done again here (:mod:`.doubt`).
        """
        told = job(proof, task, start, opened)
        self.pool: Pool = pool(told, timeout, sandbox)
        self.doubted: DoubtedPool | None = None
        if double_check is not None:
            portable, here = proof.header.arithmetic == PORTABLE, LocalPool(told, timeout, sandbox)
            self.pool = self.doubted = DoubtedPool(self.pool, here, double_check, recorded(proof), anywhere=portable)
        self._proof, self._reproduce = proof, reproduce
        self._named = list(dict.fromkeys(segment.environment for segment in proof.segments))
        self._own: dict[str, Environment] = {}
        self.here: dict[str, Environment] = {}
        self._portable = proof.header.arithmetic == PORTABLE
        if self._portable:
            engine.prepare()  # here, once: workers find what was built, and a confined one could not build it
        # In portable arithmetic all are one, so that none need be left out.
        self._tried = frozenset(self._named if self._portable else self._named[:MAX_ENVIRONMENTS])
        self._untrue: list[str] | None = None  # what portable arithmetic gives other bits for here
        self._scratch = tempfile.TemporaryDirectory(prefix="pol-")
        self._lane = _Lane()
        self._ahead: Ahead | None = None
        self._finding = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._digests = proof.state_digests()
        self._final: dict[str, Tensor] | None = None
        self._described: protocol.Described | None = None
        self.other_start: State | None = (
            None  # the initial state under the verifier's second key, once it was asked for
        )

    # ---- environments --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the process of the run's first environment, so that it loads while the proof is read."""
        self.pool.begin(self._wanted(self._proof.segments[0].environment))

    def grouped(self, asked: Sequence[AnyCheckRequest]) -> list[AnyCheckRequest]:
        """The requests with those of one environment together, in their order: each worker is then needed once."""
        place: dict[str, int] = {}
        return sorted(asked, key=lambda request: place.setdefault(self._environment_of(request), len(place)))

    def differences(self, digest: str, *, start: bool = True) -> list[str]:
        """What the worker for that recorded environment could not reproduce.

        Without ``start``, where there was no worker for it yet, what can be said without one: in what the machine is another.
        """
        if digest not in self._tried:
            return [f"environments: recorded {len(self._named):,}, at most {MAX_ENVIRONMENTS} are tried"]
        if start and digest not in self.here:
            self._recorded(digest)
        recorded, wanted = self._proof.environments[digest], self._wanted(digest)
        settings = {name: getattr(wanted, name) for name in SETTINGS}
        here = self.here.get(digest) or msgspec.structs.replace(self._machine(recorded), **settings)
        found = environments.differences(recorded, here, own_numpy=self._proof.header.own_code, portable=self._portable)
        return found + (self._self_test(wanted) if self._portable and digest in self.here else [])

    def _self_test(self, environment: Environment) -> list[str]:
        """Where portable arithmetic is not what it was published to be, so that a difference speaks of this machine."""
        if self._untrue is None:
            where = Where(self.pool, environment, False, idle)
            self._untrue = where.ask(protocol.SelfTest(), protocol.SelfTested)[0].differing
        names = ", ".join(name[:40] for name in self._untrue[:3])
        return [f"self-test: {names} give other bits here than published (`pol selftest`)"] if self._untrue else []

    def _environment_of(self, request: AnyCheckRequest) -> str:
        return self._proof.segments[request.index if isinstance(request, PER_SEGMENT) else 0].environment

    def _recorded(self, digest: str) -> Environment:
        """The environment to ask for in the place of a recorded one."""
        if digest not in self._tried:
            raise NumericEnvironmentError(
                f"the proof names {len(self._named):,} numeric environments, of which at most {MAX_ENVIRONMENTS} are tried"
            )
        wanted = self._wanted(digest)
        self.here[digest] = self.pool.have(wanted)
        return wanted

    def _wanted(self, digest: str) -> Environment:
        """The environment that the worker for a recorded one is to have; what it does not get shows in its differences."""
        environment = self._proof.environments[digest]
        if self._portable:  # the same bits anywhere; with one thread each request is answered by a process of its own
            own = self._machine(environment)  # and no switch is the proof's to set: the self-test has to hold
            return msgspec.structs.replace(own, flags=Flags(), threads=1, interop_threads=1)
        if not self._reproduce:
            return msgspec.structs.replace(self._machine(environment), flags=environment.flags)
        return as_recorded(environment)

    def _machine(self, environment: Environment) -> Environment:
        """What this process has by itself, on the other's device; as it was before workers in this process changed it."""
        device = environment.device.type if torch.cuda.is_available() else "cpu"
        if device not in self._own:
            self._own[device] = environments.current(device)
        return self._own[device]

    def _target(self, request: AnyCheckRequest, environment: Environment | None) -> tuple[Environment, bool]:
        """Where a request goes: to the environment of its segment, else the run's first.

        Noise is measured in ``environment``, or where that is not given in another one that this machine has; from a nudged
        start it is measured where the segment is replayed.
        """
        digest = self._environment_of(request)
        if environment is not None:
            return environment, True
        if isinstance(request, requests.Noise) and request.nudge is None:
            return environments.another(self.here[digest] if digest in self.here else self._recorded(digest)), False
        return self._recorded(digest), False

    # ---- several at once -----------------------------------------------------------------------------

    def answers(self, asked: Sequence[AnyCheckRequest], on_work: OnWork = idle) -> Stream[AnyCheckAnswer]:
        """Ask for the answers to some requests: with one worker in their order, with several as they come, the costly ones first.

        ``on_work`` is told only where no two are answered at once.
        """
        chains = self._chains(asked)
        lanes = min(self.pool.workers, len(chains))
        if lanes <= 1:
            return Stream(chains, lambda positions: self._carry(asked, positions, on_work))
        if self._threads is None:
            # They live as long as the pool: a worker in a sandbox ends with the thread that started it.
            counts = (torch.get_num_threads(),)  # sums depend on it
            self._threads = ThreadPoolExecutor(self.pool.workers, "lane", torch.set_num_threads, counts)
        chains.sort(key=lambda chain: -sum(self._cost(asked[position]) for position in chain))
        return Stream(chains, lambda positions: self._carry(asked, positions, idle), self._threads, lanes)

    def _carry(
        self, asked: Sequence[AnyCheckRequest], positions: Iterable[int], on_work: OnWork
    ) -> Iterator[tuple[int, AnyCheckAnswer]]:
        """Requests in a row. What a replay could not carry out is an answer too, so that there is a verdict."""
        first = True
        for position in positions:
            request = asked[position]
            if first and isinstance(request, PER_SEGMENT) and not self._proof.has_state(self._digests[request.index]):
                self._lane.last = None  # so that as many steps are taken, whatever was answered here before
            first = False
            try:
                taken = self._ahead.take(request) if self._ahead is not None else None
                answer: AnyCheckAnswer = taken or self.ask(request, on_work)
            except PolError as error:
                if not isinstance(request, PER_SEGMENT):
                    raise
                answer = protocol.Failed(type(error).__name__, str(error))
            yield position, answer

    def _chains(self, asked: Sequence[AnyCheckRequest]) -> list[list[int]]:
        """Positions of requests that are answered in a row, by one thread: those of one segment, and where a start is missing and the
        replay before leads there.

        So as many steps are taken, whoever takes them.
        """
        held = [self._proof.has_state(digest) for digest in self._digests]
        chains, before = list[list[int]](), -1
        for position, request in enumerate(asked):
            index = request.index if isinstance(request, (requests.Replay, requests.Noise)) else -1
            here = index
            while here > 0 and not held[here] and here != before + 1:
                here -= 1
            linked = index >= 0 and before >= 0 and (index == before or (here == before + 1 and not held[here]))
            if linked:
                chains[-1].append(position)
            else:
                chains.append([position])
            before = index
        return chains

    def _cost(self, request: AnyCheckRequest) -> int:
        """Roughly the steps that an answer takes."""
        if not isinstance(request, (requests.Replay, requests.Noise)):
            return 0
        segment = self._segment(request.index)
        return request.steps or segment.stop - segment.start

    def ahead(self, indices: Iterable[int]) -> None:
        """Begin to replay segments that will be asked for, one by one, while states are looked at.

        Where it takes nothing from that: the worker for it would wait. What will be asked of a machine without the recorded
        environment is not known yet.
        """
        local = isinstance(self.pool, LocalPool) and self.pool.apart and self.pool.workers == 1
        found = fitting(self._proof, indices) if local else []
        if found and not self.differences(self._proof.segments[0].environment):
            self._ahead = Ahead(self.ask, found)

    # ---- requests ------------------------------------------------------------------------------------
    def ask(self, request: AnyCheckRequest, on_work: OnWork = idle, environment: Environment | None = None) -> Any:
        """The answer to a request, in ``environment`` where one is given."""
        where = Where(self.pool, *self._target(request, environment), on_work)
        match request:
            case requests.Replay():
                return self._replay(request, where)
            case requests.Noise():
                return self._noise(request, where)
            case requests.Initialize():
                return self._initialize(request, where)
            case requests.Evaluate():
                state = self._proof.state(self._segment(request.index).state)
                return where.ask(protocol.Evaluate(), protocol.Evaluated, [state])[0]
            case protocol.Describe():
                self._described = where.ask(request, protocol.Described)[0]
                return self._described
            case protocol.CommitData():
                return where.ask(request, protocol.Committed)[0]
            case protocol.Rates():
                return where.ask(request, protocol.RatesGiven, self._origin(request))[0]

    def _origin(self, request: protocol.Rates) -> list[State]:
        """The state that a schedule goes on from; none where it is the task's own first one."""
        ends = [segment.state for segment in self._proof.segments if 0 < segment.stop == request.origin]
        return [self._proof.state(digest) for digest in ends]

    def regenerate(self, index: int, on_work: OnWork = idle) -> tuple[State, State, int]:
        """Train from the nearest kept state to both ends of segment ``index``; how many steps that took."""
        segment = self._segment(index)
        where = Where(self.pool, self._recorded(segment.environment), False, on_work)
        before, walked = self._start(index, where)
        taken = self._take(before, segment, None, where)
        self._lane.last = ended = self._proof.continued(index, taken.state, before)
        return before, ended, walked + segment.stop - segment.start

    def probe(self, request: protocol.Probe, states: Sequence[State], on_work: OnWork = idle) -> list[protocol.Glimpse]:
        """What the task's networks put out in each of some states."""
        where = Where(self.pool, self._recorded(self._proof.segments[0].environment), False, on_work)
        glimpses = where.ask(request, protocol.Probed, states)[0].glimpses
        if len(glimpses) != len(states):
            raise WorkerError("the replay worker answered something else than it was asked")
        return glimpses

    def _initialize(self, request: requests.Initialize, where: Where) -> AnyCheckAnswer:
        started, (state, self.other_start) = where.ask(protocol.Start(request.other), protocol.Started, returns=2)
        comparison, relative, rest_fresh = None, dict[str, float](), True
        initial = self._proof.initial_state
        if state.digest() != initial and self._proof.has_state(initial):
            recorded = self._proof.state(initial)
            comparison = compare(state, recorded)
            relative = relative_errors(state, recorded)
            modules = set(self._description(where).modules)
            # A script that sets no seeds starts anywhere; its generators' states are then the prover's word, in each process.
            rest = [name for name in state.parts() if name not in modules and of_process(name)[0] != "generators"]
            rest_fresh = state.part(*rest).digest() == recorded.part(*rest).digest()
        several = self._proof.header.ranks > 1 and self._proof.has_state(initial)
        alike = own_twins(state, self._proof.state(initial)) if several else ()
        return requests.Initialized(state.digest(), comparison, relative, rest_fresh, started.tensors, alike)

    def _replay(self, request: requests.Replay, where: Where) -> requests.Replayed:
        begun = time.perf_counter()
        segment = self._segment(request.index)
        before, walked = self._start(request.index, where)
        taken = self._take(before, segment, request.steps, where)
        arrived = taken.state
        comparison = displacement = details = None
        if request.steps is not None:
            ended = arrived
            displacement = distance(before, arrived)
        else:
            ended = self._proof.continued(request.index, arrived, before)
            if arrived.digest() == segment.arrived and ended.digest() == segment.state:
                displacement = distance(before, ended)
            elif self._proof.has_state(segment.state):
                recorded = self._proof.state(segment.state)
                displacement = distance(before, recorded)
                wanted = recorded if ended is arrived else self._proof.codec.nearest(arrived, recorded, before)
                if arrived.digest() != segment.arrived:
                    comparison = compare(arrived, wanted)
                    if request.calibrate:
                        details = detail(arrived, wanted, before, self._final_weights(), self._momenta(where))
        twins_, stuck_ = tuple[str, ...](), tuple[str, ...]()
        if not (self._proof.has_state(self._digests[request.index]) and self._proof.has_state(segment.state)):
            twins_ = twins(arrived, before) if self._proof.header.ranks > 1 else ()
            stuck_ = stuck(arrived, before)
        if request.calibrate:
            self._keep(request, arrived)
        self._lane.last = None if request.calibrate else ended
        seconds = time.perf_counter() - begun
        return requests.Replayed(
            arrived.digest(), ended.digest(), taken.losses, taken.rates, comparison, displacement, details, seconds,
            taken.seconds, walked + len(taken.losses), taken.closed, taken.asked, where.workers, twins_, stuck_,
        )  # fmt: skip

    def _noise(self, request: requests.Noise, where: Where) -> requests.Replayed:
        begun = time.perf_counter()
        segment = self._segment(request.index)
        before, walked = self._start(request.index, where)
        kept, again = self._kept(request), 0.0
        if not kept.exists() and request.nudge is not None:
            reference = self._take(before, segment, request.steps, where)
            walked, again = walked + len(reference.losses), reference.seconds
            self._keep(request, reference.state)
        start = before
        if request.nudge is not None:
            key = bytes.fromhex(self._proof.header.randomness.key)
            start = nudged(before, randomness.derive(key, "nudge", request.index, request.nudge))
        taken = self._take(start, segment, request.steps, where)
        arrived = taken.state
        against = RawCodec().decode(files.read_bounded(kept, 2 * arrived.nbytes + (1 << 20)), None)
        if not request.keep:
            kept.unlink()
        return requests.Replayed(
            arrived.digest(), arrived.digest(), taken.losses, taken.rates, compare(arrived, against), None,
            detail(arrived, against, before, self._final_weights(), self._momenta(where)),
            time.perf_counter() - begun, again + taken.seconds, walked + len(taken.losses), workers=where.workers,
        )  # fmt: skip

    # ---- steps ---------------------------------------------------------------------------------------

    def _take(self, before: State, segment: Segment, count: int | None, where: Where) -> _Taken:
        """Replay (the first ``count`` steps of) a segment from ``before``."""
        stop = segment.stop if count is None else min(segment.stop, segment.start + count)
        indices = generators = loop = None
        ranks = list[protocol.Share]()
        if self._proof.header.own_loop:
            columns, steps = self._proof.columns(segment.index), stop - segment.start
            if columns.indices is not None and columns.rng is not None:
                indices, generators = protocol.recorded_steps(columns.indices[:steps], columns.rng[:steps])
            loop = protocol.recorded_loop(columns.loop, steps)
            for share in columns.ranks:
                drawn = protocol.recorded_steps((share.indices or [])[:steps], (share.rng or [])[:steps])
                ranks.append(protocol.Share(*drawn, protocol.recorded_loop(share.loop, steps) or []))
        request = protocol.Take(segment.start, stop, indices, generators, loop, ranks)
        taken, (state,) = where.ask(request, protocol.Taken, [before])
        if len(taken.losses) != stop - segment.start or len(taken.rates) != stop - segment.start:
            raise WorkerError("the replay worker took another number of steps than it was told")
        return _Taken(state, taken)

    def _start(self, index: int, where: Where) -> tuple[State, int]:
        """The recorded state that segment ``index`` starts from, which is often where the one before has just arrived.

        Where the proof no longer holds it, the segments since the nearest earlier state are replayed, and must arrive as recorded.
        Returns the steps that took, too.
        """
        digests = self._digests
        last, self._lane.last = self._lane.last, None  # at most one state is kept, and none while another is read
        here, state = index, None
        while state is None:
            if last is not None and last.digest() == digests[here]:
                state = last
            elif self._proof.has_state(digests[here]):
                last = None
                state = self._proof.state(digests[here], surveyed=True)
            elif here == 0:
                raise MissingStateError(
                    f"neither the state that segment {index} starts from nor any before it is in the proof, so that it cannot be "
                    "replayed; ask for the proof with its states, or (of a manifest) for an opening (`pol challenge`)"
                )
            else:
                here -= 1
        del last
        for segment in self._proof.segments[here:index]:
            arrived = self._take(state, segment, None, where.at(self._recorded(segment.environment))).state
            state = self._proof.continued(segment.index, arrived, state)
            if (arrived.digest(), state.digest()) != (segment.arrived, segment.state):
                if unlike := self.differences(segment.environment):
                    raise NumericEnvironmentError(
                        f"the way from the nearest state that was kept leads through segment {segment.index}, whose environment is "
                        f"not reproduced here ({unlike[0]})"
                    )
                raise DivergedError(
                    f"segment {segment.index}, replayed on the way to segment {index} from the nearest state that was kept, "
                    "arrives elsewhere"
                )
        return state, index * self._proof.header.training.interval - here * self._proof.header.training.interval

    def _keep(self, request: requests.Replay | requests.Noise, arrived: State) -> None:
        files.write_atomic(self._kept(request), RawCodec().encode(arrived, None).chunks())

    def _kept(self, request: requests.Replay | requests.Noise) -> Path:
        return Path(self._scratch.name) / f"{request.index}-{request.steps or 'all'}"

    def _final_weights(self) -> dict[str, Tensor] | None:
        last = self._proof.segments[-1].state
        with self._finding:
            if self._final is None and self._proof.has_state(last):
                self._final = weights(self._proof.state(last))
            return self._final

    def _momenta(self, where: Where) -> Mapping[str, str]:
        """The tensors in which the optimizers carry weights on, with the names of those weights."""
        members = self._description(where).members
        return {f"{entry}/{key}": weight for entry, weight in members.items() for key in CARRYING}

    def _description(self, where: Where) -> protocol.Described:
        if self._described is None:
            self._described = where.ask(protocol.Describe(), protocol.Described)[0]
        return self._described

    def _segment(self, index: int) -> Segment:
        if not 0 <= index < len(self._proof.segments):
            raise WorkerError(f"there is no segment {index}")
        return self._proof.segments[index]

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self.pool.close()
        if self._ahead is not None:
            self._ahead.join()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._scratch.cleanup()


class _Lane(threading.local):
    """What one thread keeps: the state that its last replay arrived at."""

    last: State | None = None


class _Taken:
    """Steps that a worker took, and where they arrived."""

    def __init__(self, state: State, told: protocol.Taken) -> None:
        self.state, self.losses, self.rates, self.seconds = state, told.losses, told.rates, told.seconds
        self.closed, self.asked = told.closed, told.asked
