"""Everything of a task that a replay would trip over, found before it is trained: what ``pol doctor`` does.

The task is trained for a while in this process; stretches of it are replayed in two fresh processes with different hash seeds.
Nothing is recorded. Where one thing is wrong, the others are looked for all the same.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import msgspec
from torch import Tensor

from proof_of_learning.data.commit import Dataset, check_deterministic, commit
from proof_of_learning.errors import PolError, TaskError, UsageError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.portable import ARITHMETICS, NATIVE, using
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.format import Header
from proof_of_learning.recording.header import make_header
from proof_of_learning.recording.setup import check_loading
from proof_of_learning.recording.trial import try_evaluation, try_gradients
from proof_of_learning.rehearsal import holdings
from proof_of_learning.rehearsal.beside import first_module, marks, rewritten
from proof_of_learning.rehearsal.causes import Finding, data_by_process, explain, in_place
from proof_of_learning.rehearsal.hops import Difference, Hop, Player, ProcessPlayer, examine, investigate, replay
from proof_of_learning.rehearsal.loading import check_described, check_start
from proof_of_learning.rehearsal.structure import altered, grown, structure
from proof_of_learning.replay import protocol
from proof_of_learning.replay.pool import Job
from proof_of_learning.run.diagnosing import look
from proof_of_learning.state import state as states
from proof_of_learning.state.schedules import epoch_means
from proof_of_learning.state.state import State
from proof_of_learning.task import TaskReference, is_script, load_task, task_code
from proof_of_learning.training.steps import Session, StepResult, derived_feed

STEPS = 200  # are taken at most where nobody says how many
SECONDS = 20.0  # of training, where nobody says how many steps
ROOM = 1 << 30  # bytes of states that are kept
SINGLE = 12  # steps at the beginning that are replayed one by one
SAMPLES = 64
HASH_SEEDS = (1, 2)


@dataclass(frozen=True)
class Diagnosis:
    """What was found: ``findings``, after how many ``steps`` in this process and ``replays`` in others.

    skipped: what could not be looked at, and why. notices: what replays, and is seldom meant.
    """

    task: str
    steps: int
    replays: int
    findings: list[Finding]
    skipped: list[str]
    seconds: float
    notices: list[str] = field(default_factory=list)

    def to_json(self) -> bytes:
        fields = {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "schema": "pol/doctor/v1"}
        return msgspec.json.format(
            msgspec.json.encode({**fields, "findings": [f.fields() for f in self.findings]}), indent=2
        )


@dataclass
class _Course:
    """A stretch of training in this process: what every step left, and the states at some."""

    session: Session
    states: dict[int, State] = field(default_factory=dict)
    results: list[StepResult] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.results)

    def hop(self, start: int, stop: int) -> Hop:
        losses: list[Tensor] = [result.loss for result in self.results[start:stop]]
        return Hop(start, self.states[start], stop, self.states[stop], losses)


def diagnose(
    task: str | TaskReference,
    *,
    interval: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    arithmetic: str = NATIVE,
    progress: ProgressCallback = silent,
) -> Diagnosis:
    """Train ``task`` for a while, replay it elsewhere, and name what differs. Of a script (a reference with its
    arguments), with what it writes.

    interval: steps between checkpoints, as :func:`proof_of_learning.prove` will be told. steps: how many are taken (default: into the
    second epoch, at most 200, for at most 20 seconds). device, threads, arithmetic: as for ``prove``.
    Raises UsageError or TaskError where the task cannot be loaded at all.
    """
    begun = time.monotonic()
    reference = (TaskReference(task) if isinstance(task, str) else task).absolute()
    if arithmetic not in ARITHMETICS:
        raise UsageError(f"there is no arithmetic {arithmetic[:40]!r}; choose one of {', '.join(ARITHMETICS)}")
    if steps is not None and steps < 2:
        raise UsageError(f"at least 2 steps are needed, not {steps}")
    environments.pin_process(portable=False, device=device, threads=threads)
    if is_script(reference.target):
        seen = look(reference.target, reference.arguments or (), interval=interval, steps=steps, progress=progress)
        return Diagnosis(
            reference.target,
            seen.steps,
            seen.replays,
            seen.findings,
            seen.skipped,
            time.monotonic() - begun,
            seen.notices,
        )
    with randomness.preserved(), environments.recording(device, threads) as environment:
        doctor = _Doctor(reference, interval, steps, device, environment, progress, arithmetic)
        try:
            doctor.look()
        finally:
            doctor.close()
    return Diagnosis(
        reference.target, doctor.taken, doctor.replays, doctor.findings, doctor.skipped, time.monotonic() - begun
    )


class _EndError(Exception):
    """Nothing further can be looked at; what was found is told."""


class _Doctor:
    """One diagnosis under way."""

    def __init__(
        self,
        reference: TaskReference,
        interval: int | None,
        steps: int | None,
        device: str,
        environment: Environment,
        progress: ProgressCallback,
        arithmetic: str,
    ) -> None:
        self.task = load_task(reference)
        self.findings: list[Finding] = []
        self.skipped: list[str] = []
        self.taken = self.replays = 0
        self._interval, self._steps, self._device, self._environment = interval, steps, device, environment
        self._progress, self._arithmetic = progress, arithmetic
        self._key = randomness.key_from_seed(self.task.seed)
        self._exit = ExitStack()

    def close(self) -> None:
        self._exit.close()

    def look(self) -> None:
        """All of it."""
        try:
            data = self._load()
            header = self._head(data)
            self._progress("trying the evaluation and two steps", 0, 0)
            with self._finding():
                try_evaluation(self._session())
            with self._finding():
                try_gradients(self._session(), data)
            players = self._players(header)
            held = self._train(data, header)
        except _EndError:
            self.skipped.append("training and replays: the task cannot be trained as it is")
            return
        course, changes, sample = held
        for number, player in enumerate(players):
            try:
                self._replays(player, header, course, changes, sample, first=number == 0, other=players[1 - number])
            except WorkerError as error:
                self.skipped.append(f"replays in a process with hash seed {HASH_SEEDS[number]}: {error}")

    # ---- before training -----------------------------------------------------------------------------

    def _load(self) -> Dataset:
        self._progress("loading the data", 0, 0)
        with self._finding(end=True), using(self._arithmetic), task_code("loading the data"):
            data = self.task.data()
            len(data)
        with self._finding(), using(self._arithmetic):
            check_deterministic(data)
        with self._finding(), using(self._arithmetic), task_code("loading the data"):
            check_loading(self.task, data)
        return data

    def _head(self, data: Dataset) -> Header:
        total = len(data)
        with self._finding(end=True), using(self._arithmetic), task_code("reading the data"):
            commitment = commit(data, progress=lambda done: self._progress("hashing the data", done, total))
        with self._finding(end=True):
            header = make_header(self.task, self._session(), data, interval=self._interval, data_commitment=commitment)
        return header

    def _session(self) -> Session:
        return Session(self.task, self._key, self._device, arithmetic=self._arithmetic)

    def _players(self, header: Header) -> list[Player]:
        """Both processes load while this one trains."""
        job = Job(self.task, header.randomness.key, self.task.seed, arithmetic=self._arithmetic)
        players: list[Player] = [ProcessPlayer(job, self._environment, seed) for seed in HASH_SEEDS]
        for player in players:
            self._exit.callback(player.close)
        return players

    # ---- training ------------------------------------------------------------------------------------

    def _train(self, data: Dataset, header: Header) -> tuple[_Course, list[holdings.Change], int | None]:
        training = header.training
        most = min(training.at_most, self._steps or min(STEPS, max(2 * SINGLE, training.steps_per_epoch + SINGLE)))
        session = self._session()
        course = _Course(session)
        feed, order = derived_feed(self.task, data, self._key, self._device)
        held = holdings.look(session.parts, self.task, data)
        before = marks(data, order.indices(0)[:SAMPLES])
        course.states[0] = session.capture()
        built = structure(course.states[0])
        room = max(4, ROOM // max(1, course.states[0].nbytes))
        keep = _kept(most, training.interval, training.steps_per_epoch, room)
        found = None
        begun = time.monotonic()
        try:
            for result in session.run(most, feed, order):
                course.results.append(result)
                self.taken = course.steps
                self._progress("training", course.steps, most)
                late = self._steps is None and time.monotonic() - begun > SECONDS
                if not math.isfinite(float(result.loss)):
                    raise TaskError(
                        f"the loss of step {result.step} is not finite; lower the learning rate or clip gradients"
                    )
                if course.steps in keep or course.steps <= 2 or course.steps == most or late:
                    course.states[course.steps] = session.capture()
                    found = altered(built, structure(course.states[course.steps]), course.steps)
                if found is not None:
                    self._add(found)
                    del course.states[course.steps]  # nothing can be replayed from it, which is said
                if found is not None or late:
                    break
        except PolError as error:
            self._nondeterministic(error)
        if course.steps == 0:
            raise _EndError
        with self._finding():
            sample = rewritten(before, marks(data, before))
            if sample is not None and training.at_most > training.steps_per_epoch:
                self._add(
                    Finding("a replay finds other data than training", "after the first steps", *in_place(sample))
                )
        return course, holdings.changed(held, holdings.look(session.parts, self.task, data)), sample

    def _nondeterministic(self, error: PolError) -> None:
        """An operation that has no deterministic form ends training by name; everything else that ends it, too."""
        text = str(error)
        operation = re.search(r"(\S+) does not have a deterministic implementation", text)
        if operation is None:
            self._add(_of_error(error))
            return
        self._add(
            Finding(
                f"the operation {operation[1]} is not deterministic on {self._device}",
                text.split(":", 1)[0].removeprefix("the task failed while "),
                "its result depends on the order in which threads arrive",
                "use another operation, or train where it is deterministic (PyTorch's page on reproducibility lists them)",
            )
        )

    # ---- replays -------------------------------------------------------------------------------------

    def _replays(
        self,
        player: Player,
        header: Header,
        course: _Course,
        changes: list[holdings.Change],
        sample: int | None,
        *,
        first: bool,
        other: Player,
    ) -> None:
        """What one process finds. Differences are explained once, by the first process that sees any."""
        where = f"replaying in process {1 if first else 2}"
        self._progress(where, 0, 0)
        with self._finding():
            self._add(check_described(player, header))
        with self._finding():
            for found in check_start(player, course.states[0]):
                self._add(found)
        self._data(player, header)
        hops = _hops(course, header.training.interval)
        for number, hop in enumerate(hops):
            self._progress(where, number, len(hops))
            self.replays += 1
            difference = examine(player, hop)
            if difference is not None:
                self._differs(player, other, hop, difference, course, changes, sample)
                break
        with self._finding():
            self._evaluation(player, course)
        if self.task.step is None:
            with self._finding():
                self._schedule(player, header, course)
        self._progress(where, len(hops), len(hops))

    def _data(self, player: Player, header: Header) -> None:
        with self._finding():
            answer, _ = player.ask(protocol.CommitData())
            if isinstance(answer, protocol.Committed) and answer.commitment != header.data:
                self._add(Finding("the data are others in a fresh process", "the task's data", *data_by_process()))

    def _differs(
        self,
        player: Player,
        other: Player,
        hop: Hop,
        difference: Difference,
        course: _Course,
        changes: list[holdings.Change],
        sample: int | None,
    ) -> None:
        evidence = investigate(player, hop, difference, None, None)
        evidence = replace(evidence, data_differ=any(f.cause == data_by_process()[0] for f in self.findings))
        if not difference.refused and not evidence.unstable:
            here, there = (replay(one, hop) for one in (player, other))
            evidence = replace(evidence, hashed=here[0].digest() != there[0].digest() or here[1] != there[1])
        module = None
        if difference.forward and difference.start in course.states:
            module = self._module(course, difference.start)
        for found in explain(evidence, changes, sample, module):
            self._add(found)

    def _module(self, course: _Course, step: int) -> str | None:
        """Where the live objects, put back to a state, and fresh ones first put out something else."""
        try:
            feed, order = derived_feed(self.task, self.task.data(), self._key, self._device)
            course.session.restore(course.states[step])
            return first_module(course.session, self._session(), feed, order)
        except Exception:  # it is only a name
            return None

    def _evaluation(self, player: Player, course: _Course) -> None:
        last = course.states.get(course.steps)
        if self.task.evaluate is None or last is None or any("evaluat" in f.what for f in self.findings):
            return
        course.session.restore(last)
        here = course.session.evaluate()
        answer, _ = player.ask(protocol.Evaluate(), [last])
        if isinstance(answer, protocol.Evaluated) and not _alike(answer.values, here):
            self._add(
                Finding(
                    "the evaluation gives other values in a fresh process",
                    f"after step {course.steps}: here {here}, there {answer.values}",
                    "it uses what no state holds, or data that differ from process to process",
                    "let `evaluate` use the model and data alone",
                )
            )

    def _schedule(self, player: Player, header: Header, course: _Course) -> None:
        """The rates and settings that the task's schedule gives without training, as the verifier asks for them."""
        interval = header.training.interval
        answer, _ = player.ask(
            protocol.Rates(
                0,
                course.steps,
                interval,
                header.training.at_most,
                epoch_means((result.loss.item() for result in course.results), header.training.steps_per_epoch)
                if course.session.metric
                else (),
            )
        )
        if not isinstance(answer, protocol.RatesGiven):
            return
        own = [result.rates for result in course.results]
        step = next((i for i, pair in enumerate(zip(own, answer.rates, strict=False)) if pair[0] != pair[1]), None)
        if step is None:
            ends = {(n + 1) * interval: given for n, given in enumerate(answer.settings)}
            step = next(
                (
                    at
                    for at, given in ends.items()
                    if at in course.states
                    and not grown(course.states[0], course.states[at])  # training itself changes its settings
                    and states.settings(course.states[at]) != given
                ),
                None,
            )
        if step is not None:
            self._add(
                Finding(
                    "the schedule alone gives other rates or settings than training",
                    f"first at step {step}",
                    "the scheduler follows what training does (a metric, a count of its own, frozen parameters)",
                    "drive it from a custom step, or use a schedule of the step alone",
                )
            )

    # ---- collecting ----------------------------------------------------------------------------------

    def _add(self, found: Finding | None) -> None:
        if found is not None and all((found.cause or found.what) != (f.cause or f.what) for f in self.findings):
            self.findings.append(found)

    @contextmanager
    def _finding(self, end: bool = False) -> Iterator[None]:
        """What is raised becomes a finding. ``end``: and nothing further can be looked at."""
        try:
            yield
        except WorkerError:
            raise
        except PolError as error:
            self._add(_of_error(error))
            if end:
                raise _EndError from error


def _of_error(error: PolError) -> Finding:
    what, _, cure = str(error).partition("; ")
    return Finding(what, "", "", cure)


def _alike(a: dict[str, float] | None, b: dict[str, float] | None) -> bool:
    return a == b or repr(a) == repr(b)  # the same NaN


def _kept(steps: int, interval: int, per_epoch: int, room: int) -> set[int]:
    """The steps before which a state is kept: the first ones, those around an epoch's end, spread over the run; at most ``room``."""
    wanted = [0, 1, 2]
    middle = steps // 2
    for at in (middle, steps):
        wanted += [at]
    for number in range(1, 8):
        start = steps * number // 8 // interval * interval
        wanted += [start, min(steps, start + 1), min(steps, start + interval)]
    wanted += [per_epoch - 1, per_epoch, per_epoch + 1, *range(3, SINGLE + 2)]
    return set(list(dict.fromkeys(step for step in wanted if 0 <= step <= steps))[:room])


def _hops(course: _Course, interval: int) -> list[Hop]:
    """Single steps, segments, and the second half as a resumed run would take it; between states that were kept."""
    kept = sorted(course.states)
    pairs = [(start, start + 1) for start in kept if start + 1 in course.states]
    pairs += [(start, start + interval) for start in kept if interval > 1 and start + interval in course.states]
    half = [start for start in kept if 0 < start <= course.steps // 2]
    if half and kept[-1] > half[-1]:
        pairs.append((half[-1], kept[-1]))
    return [course.hop(*pair) for pair in dict.fromkeys(pairs)]
