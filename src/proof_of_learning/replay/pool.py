"""The pool: which process a request goes to. Whoever asks names a numeric environment, a request and the states it needs.

A pool on other machines, or of several processes, offers the same few methods; nothing above it would change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from proof_of_learning.errors import WorkerError
from proof_of_learning.numeric.portable import NATIVE
from proof_of_learning.replay import protocol
from proof_of_learning.replay.process import DEFAULT_TIMEOUT, AnyWorker, LocalWorker, OnWork, Reply, WorkerProcess, idle
from proof_of_learning.replay.protocol import AnyRequest
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.training import environment as environments
from proof_of_learning.training import randomness
from proof_of_learning.training.environment import Environment
from proof_of_learning.training.state import State

log = logging.getLogger(__name__)

AT_ONCE = 3  # environments that have workers at the same time
LOOKING, TAKING = "looking", "taking"  # see LocalPool
MAX_DEATHS = 8  # after so many no worker that ended by itself is started again


@dataclass(frozen=True)
class Job:
    """What workers are told of the run: the task, the key, the seed, and the weights that it starts from.

    ``arguments``: those that a script was recorded with, for a verifier who names no others. ``arithmetic``: what the
    task computes in.
    """

    task: Task | TaskReference
    key: str
    seed: int | None = None
    base: State | None = None
    arguments: tuple[str, ...] = ()
    arithmetic: str = NATIVE

    @property
    def reference(self) -> TaskReference | None:
        return self.task if isinstance(self.task, TaskReference) else self.task.reference


class Pool(Protocol):
    """Workers by numeric environment.

    ``ask`` gives an answer with the states behind it, or raises what went wrong; ``given``: the environment is the caller's choice,
    for which no other worker has to go. ``have`` is the environment that a worker for the named one really has.
    """

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
    ) -> Reply: ...
    def close(self) -> None: ...


class LocalPool:
    """Workers on this machine: processes of their own, or this process for a task that has no reference.

    Each environment has two processes: one takes steps, another does all else. What looks at states (probes, evaluations) is shown
    many of them, also those that segments end in, so it must have no way to tell, be it through a file, what takes the steps.
    """

    def __init__(self, job: Job, timeout: float = DEFAULT_TIMEOUT, sandbox: Sandbox | None = None) -> None:
        self._job, self._timeout, self._sandbox = job, timeout, sandbox
        self._launched: dict[str, AnyWorker] = {}  # by environment, the one used last at the end
        self._open: dict[str, Environment] = {}  # what those of them that were told the task really have
        self._deaths = 0
        self._exit = ExitStack()  # puts back what workers in this process set
        self.start_seconds = 0.0

    def begin(self, environment: Environment) -> None:
        """Start the process for an environment, so that it loads while something else is done."""
        if self._job.reference is not None:
            for role in (LOOKING, TAKING):
                self._launch(environment, role)

    def have(self, environment: Environment, given: bool = False) -> Environment:
        self._worker(environment, LOOKING, given)
        return self._open[self._name(environment, LOOKING)]

    def ask(
        self,
        environment: Environment,
        request: AnyRequest,
        states: Sequence[State] = (),
        on_work: OnWork = idle,
        *,
        given: bool = False,
    ) -> Reply:
        role = TAKING if isinstance(request, protocol.Take) else LOOKING
        return self._worker(environment, role, given).ask(request, states, on_work)

    def close(self) -> None:
        for worker in self._launched.values():
            worker.close()
        self._exit.close()

    def _name(self, environment: Environment, role: str) -> str:
        """What a worker is kept under; a task that is an object has one for everything."""
        return environment.digest() if self._job.reference is None else f"{environment.digest()} {role}"

    def _worker(self, environment: Environment, role: str, given: bool) -> AnyWorker:
        """A worker that was told the task."""
        name, begun = self._name(environment, role), time.perf_counter()
        worker = self._launch(environment, role, given)
        if name not in self._open:
            reference = self._job.reference
            request = protocol.Open(
                task="(in this process)" if reference is None else reference.target,
                settings={} if reference is None else dict(reference.settings),
                key=self._job.key,
                seed=self._job.seed,
                environment=environment,
                arguments=list(
                    self._job.arguments if reference is None or reference.arguments is None else reference.arguments
                ),
                arithmetic=self._job.arithmetic,
            )
            opened, _ = worker.ask(request, [] if self._job.base is None else [self._job.base])
            if not isinstance(opened, protocol.Opened):
                raise WorkerError("the replay worker answered something else than it was asked")
            self._open[name] = opened.environment
            self.start_seconds += time.perf_counter() - begun
        return worker

    def _launch(self, environment: Environment, role: str, given: bool = False) -> AnyWorker:
        """The worker for an environment: the one that is there, or a new one in place of another, but where the caller chose it."""
        name = self._name(environment, role)
        there = self._launched.get(name)
        # A step that hangs would hang again; that a look at some state hung says nothing of what is asked next.
        hung = there is not None and role == LOOKING and there.silent
        if there is not None and (there.died or there.spent or hung):
            self._deaths += there.died or hung
            log.info("a replay worker is given up (ended: %s, hung: %s)", there.died, hung)
            self._end(name)
        worker = self._launched.pop(name, None)
        if worker is None:
            if self._deaths > MAX_DEATHS:
                raise WorkerError(f"the replay worker ended unexpectedly {self._deaths} times; it is not started again")
            most = AT_ONCE * (1 if self._job.reference is None else 2)
            while len(self._launched) >= most and not given:
                self._end(next(iter(self._launched)))
            worker = self._new(environment)
        self._launched[name] = worker
        return worker

    def _new(self, environment: Environment) -> AnyWorker:
        reference = self._job.reference
        if reference is not None:
            return WorkerProcess(environment, self._timeout, self._sandbox and self._sandbox.serving(reference))
        assert isinstance(self._job.task, Task)
        if not self._launched:
            self._exit.enter_context(environments.restored())
            self._exit.enter_context(randomness.preserved())
        return LocalWorker(self._job.task, environment)

    def _end(self, name: str) -> None:
        self._open.pop(name, None)
        self._launched.pop(name).close()
