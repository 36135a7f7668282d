"""The pool: which process a request goes to. Whoever asks names a numeric environment, a request and the states it needs.

Only how a worker is made depends on where it is (:class:`LocalPool`: on this machine). Who is free, who has died, what is asked
again elsewhere, is the same everywhere (:class:`WorkerPool`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proof_of_learning.errors import UsageError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.portable import NATIVE
from proof_of_learning.replay import protocol
from proof_of_learning.replay.early import LOOKING, TAKING, Started
from proof_of_learning.replay.process import DEFAULT_TIMEOUT, AnyWorker, LocalWorker, OnWork, WorkerProcess, idle
from proof_of_learning.replay.protocol import AnyAnswer, AnyRequest
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.state.state import State
from proof_of_learning.task import Task, TaskReference

log = logging.getLogger(__name__)

AT_ONCE = 3  # environments that have workers at the same time
MAX_DEATHS = 8  # after so many no worker of that role that ended by itself is started again
PATIENCE = 10.0  # seconds for those who wait for a worker that was killed
ATTEMPTS = 2  # at the same steps, where a worker ends over them: once more in another one
MAX_WORKERS = 4096


@dataclass(frozen=True)
class Job:
    """What workers are told of the run: the task, the key, the seed, and the weights that it starts from.

    ``arguments``: those that a script was recorded with, for a verifier who names no others;
    ``derived``: whether its randomness follows from the key; ``ranks``: how many processes of it train together.
    ``arithmetic``: what the task computes in. ``samples``, ``opened``: how many samples there are, and those that were opened, in the
    place of the task's data.
    ``sealed``: it is replayed as a sealed program, made of the task, or ``program`` where this is one.
    """

    task: Task | TaskReference
    key: str
    seed: int | None = None
    base: State | None = None
    arguments: tuple[str, ...] = ()
    arithmetic: str = NATIVE
    samples: int | None = None
    opened: State | None = None
    sealed: bool = False
    program: bytes = b""
    derived: bool = False
    ranks: int = 1

    @property
    def reference(self) -> TaskReference | None:
        return self.task if isinstance(self.task, TaskReference) else self.task.reference


class Carried(NamedTuple):
    """An answer, the states behind it, and the name of the worker that gave it."""

    answer: AnyAnswer
    states: Sequence[State]
    worker: str


class Pool(Protocol):
    """Workers by numeric environment.

    ``ask`` gives an answer with the states behind it, or raises what went wrong; ``given``: the environment is the caller's choice,
    for which no other worker has to go. It may be called from as many threads at once as there are ``workers``.
    ``have`` is the environment that the workers for the named one really have, all of them.
    """

    @property
    def workers(self) -> int: ...
    def begin(self, environment: Environment) -> None: ...
    def have(self, environment: Environment, given: bool = False) -> Environment: ...
    def ask(
        self,
        environment: Environment,
        request: AnyRequest,
        states: Sequence[State] = (),
        on_work: OnWork = idle,
        *,
        given: bool = False,
    ) -> Carried: ...
    def close(self) -> None: ...


MakePool = Callable[
    [Job, float, "Sandbox | None"], Pool
]  # from the job, the seconds of patience, and the workers' sandbox


@dataclass
class _Room:
    """The workers of one environment and role, by their place; ``barred``: whose machine has another environment."""

    environment: Environment
    role: str
    places: int
    workers: dict[int, AnyWorker] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    barred: dict[int, str] = field(default_factory=dict)

    @property
    def hung(self) -> int | None:
        """The place of a worker that hung, which is not started again: a step that hangs would hang again."""
        if self.role != TAKING:  # that a look at some state hung says nothing of what is asked next
            return None
        return next((place for place, worker in self.workers.items() if worker.silent), None)

    def free(self) -> int | None:
        """A place whose worker waits, one that was started if there is one; WorkerError where nobody can be waited for."""
        if len(self.barred) == self.places:
            raise WorkerError(next(iter(self.barred.values())))
        free = [place for place in range(self.places) if place not in self.busy and place not in self.barred]
        return min(free, key=lambda place: (place not in self.workers, place), default=None)


class _BarredError(WorkerError):
    """A worker's machine has another environment than those before it."""


class WorkerPool:
    """Workers wherever ``launch`` makes them, given an environment, a role and the number of the place.

    Each environment has ``workers`` that take steps, and another one that does all else. What looks at states (probes, evaluations) is
    shown many of them, also those that segments end in, so it must have no way to tell, be it through a file, what takes the steps.
    ``apart``: whether workers are processes of their own, of which there may be several. ``elsewhere``: whether they are on other
    machines, where the task may be another one.
    """

    def __init__(
        self,
        job: Job,
        launch: Callable[[Environment, str, int], AnyWorker],
        workers: int = 1,
        *,
        apart: bool = True,
        elsewhere: bool = False,
    ) -> None:
        if not 1 <= workers <= MAX_WORKERS:
            raise UsageError(f"{workers} workers make no sense; there can be 1 to {MAX_WORKERS:,}")
        self._job, self._launch, self._workers, self.apart, self._elsewhere = job, launch, workers, apart, elsewhere
        self._task: tuple[str, dict[str, str]] | None = None  # what the first worker loaded: description and sources
        self._rooms: dict[str, _Room] = {}  # by environment and role, the one used last at the end
        self._here: dict[str, Environment] = {}  # what the workers for an environment have
        self._changed = threading.Condition()
        self._deaths = Counter[str]()  # by role: two at once must not decide how many of the other are left
        self._closed = False

    @property
    def workers(self) -> int:
        return self._workers

    def begin(self, environment: Environment) -> None:
        """Start the processes for an environment, so that they load while something else is done."""
        if self.apart:
            for role in (LOOKING, TAKING):
                with self._changed:
                    room = self._room(environment, role, given=False)
                    for place in range(room.places):
                        self._worker(room, place)

    def have(self, environment: Environment, given: bool = False) -> Environment:
        with self._using(environment, LOOKING, given):
            return self._here[environment.digest()]

    def ask(
        self,
        environment: Environment,
        request: AnyRequest,
        states: Sequence[State] = (),
        on_work: OnWork = idle,
        *,
        given: bool = False,
    ) -> Carried:
        role = TAKING if isinstance(request, protocol.Take) else LOOKING
        attempts = ATTEMPTS if role == TAKING else 1
        while True:
            lost = False
            try:
                with self._using(environment, role, given) as worker:
                    try:
                        answer, arrived = worker.ask(request, states, on_work)
                        return Carried(answer, arrived, worker.name)
                    finally:
                        lost = worker.died
            except _BarredError:
                continue
            except WorkerError as error:
                attempts -= 1
                if not lost or not attempts or self._closed:
                    raise
                log.info("%s; another worker takes its steps", error)

    def close(self) -> None:
        """End every worker; whoever waits for one is told that it ended."""
        with self._changed:
            self._closed = True
            workers = [worker for room in self._rooms.values() for worker in room.workers.values()]
            for worker in workers:
                worker.kill()
            self._changed.notify_all()
            # Whoever listens to one hears of its end first: what it listens to must not be closed under it.
            self._changed.wait_for(lambda: not any(room.busy for room in self._rooms.values()), PATIENCE)
        for worker in workers:
            worker.close()

    # ---- who is free ---------------------------------------------------------------------------------

    @contextmanager
    def _using(self, environment: Environment, role: str, given: bool) -> Iterator[AnyWorker]:
        """A worker that was told the task, for oneself."""
        with self._changed:
            room = self._room(environment, role, given)
            place = room.hung
            while place is None:
                if (place := room.free()) is None:
                    self._changed.wait()
                    place = room.hung
            room.busy.add(place)
        try:
            with self._changed:
                worker = self._worker(room, place)
            if place not in room.opened:
                self._open(room, place, worker)
            yield worker
        finally:
            with self._changed:
                room.busy.discard(place)
                self._changed.notify_all()

    def _name(self, environment: Environment, role: str) -> str:
        return f"{environment.digest()} {role}" if self.apart else environment.digest()

    def _room(self, environment: Environment, role: str, given: bool) -> _Room:
        """The room for an environment, which may take the place of another one's, but where the caller chose it."""
        name = self._name(environment, role)
        room = self._rooms.pop(name, None)
        if room is None:
            most = AT_ONCE * (2 if self.apart else 1)
            idle = [other for other, its in self._rooms.items() if not its.busy]
            for other in idle[: max(0, len(self._rooms) - most + 1)] if not given else ():
                for worker in self._rooms.pop(other).workers.values():
                    worker.close()
            room = _Room(environment, role, self._workers if role == TAKING and self.apart else 1)
        self._rooms[name] = room
        return room

    def _worker(self, room: _Room, place: int) -> AnyWorker:
        """The worker at a place: the one that is there, or a new one."""
        if self._closed:
            raise WorkerError("the verification was ended")
        worker = room.workers.get(place)
        if worker is not None and (worker.died or worker.spent or (worker.silent and room.role == LOOKING)):
            self._deaths[room.role] += worker.died or worker.silent
            log.info("a replay worker is given up (ended: %s, hung: %s)", worker.died, worker.silent)
            del room.workers[place]
            room.opened.discard(place)
            worker.close()
            worker = None
        if worker is None:
            if (deaths := self._deaths[room.role]) > MAX_DEATHS:
                raise WorkerError(f"the replay worker ended unexpectedly {deaths} times; it is not started again")
            worker = room.workers[place] = self._launch(room.environment, room.role, place)
        return worker

    def _open(self, room: _Room, place: int, worker: AnyWorker) -> None:
        """Tell a worker the task."""
        request = self._opening(room.environment)
        opened, _ = worker.ask(request, self._opening_states)
        if not isinstance(opened, protocol.Opened):
            raise WorkerError("the replay worker answered something else than it was asked")
        # One without children of its own would go on with what the description left behind.
        task = self._task_of(worker) if self._elsewhere and opened.forks else None
        with self._changed:
            here = self._here.setdefault(room.environment.digest(), opened.environment)
            self._task = self._task or task
            if here != opened.environment:
                lines = environments.differences(here, opened.environment)[:3]
                room.barred[place] = f"{worker.name} has another numeric environment than the first: {'; '.join(lines)}"
            elif task is not None and task != self._task:
                room.barred[place] = (
                    f"{worker.name} loads another task than the first: its files differ on that machine"
                )
            if place in room.barred:
                log.warning("%s", room.barred[place])
                raise _BarredError(room.barred[place])
            room.opened.add(place)
            if room.role == LOOKING:
                self._open_ahead(room.environment)

    def _opening(self, environment: Environment) -> protocol.Open:
        reference = self._job.reference
        return protocol.Open(
            task="(in this process)" if reference is None else reference.target,
            settings={} if reference is None else dict(reference.settings),
            key=self._job.key,
            seed=self._job.seed,
            environment=environment,
            arguments=list(
                self._job.arguments if reference is None or reference.arguments is None else reference.arguments
            ),
            derived=self._job.derived,
            arithmetic=self._job.arithmetic,
            samples=self._job.samples,
            sealed=self._job.sealed,
            program=self._job.program,
            ranks=self._job.ranks,
        )

    @property
    def _opening_states(self) -> list[State]:
        return [state for state in (self._job.base, self._job.opened) if state is not None]

    def _open_ahead(self, environment: Environment) -> None:
        """Tell those that will take steps, and were begun, the task: they load it while states are looked at.

        Not before another one has loaded it: what a task writes when it is loaded is not written by two at once.
        """
        room = self._rooms.get(self._name(environment, TAKING))
        if room is None or not self.apart or self._opening_states:
            return
        for place, worker in room.workers.items():
            if place not in room.opened | room.busy:
                worker.expect(self._opening(environment))

    def _task_of(self, worker: AnyWorker) -> tuple[str, dict[str, str]]:
        described, _ = worker.ask(protocol.Describe())
        if not isinstance(described, protocol.Described):
            raise WorkerError("the replay worker answered something else than it was asked")
        return described.digest, described.sources


class LocalPool(WorkerPool):
    """Workers on this machine: processes of their own, or this process for a task that has no reference."""

    def __init__(
        self,
        job: Job,
        timeout: float = DEFAULT_TIMEOUT,
        sandbox: Sandbox | None = None,
        workers: int = 1,
        early: Started | None = None,
    ) -> None:
        """``early``: processes that were started before."""
        reference = job.reference
        if reference is None and workers > 1:
            raise UsageError(
                f"{workers} workers need a task that is named by reference (path.py:function), for they load it; one that is handed "
                "over as an object is replayed in this process"
            )
        super().__init__(job, self._new, workers, apart=reference is not None)
        self._timeout, self._sandbox = (
            timeout,
            sandbox if reference is None or sandbox is None else sandbox.serving(reference),
        )
        self._early = early
        self._exit = ExitStack()  # puts back what workers in this process set
        self._set = False

    def close(self) -> None:
        super().close()
        self._exit.close()
        if self._early is not None:
            self._early.ended()

    def _new(self, environment: Environment, role: str, place: int) -> AnyWorker:
        if self.apart:
            name = (role, place)
            started = None if self._early is None else self._early.take(name, environment, self._sandbox, self._timeout)
            return started or WorkerProcess(environment, self._timeout, self._sandbox, name=f"worker {place + 1}")
        assert isinstance(self._job.task, Task)
        if not self._set:
            self._set = True
            self._exit.enter_context(environments.restored())
            self._exit.enter_context(randomness.preserved())
        return LocalWorker(self._job.task, environment)
