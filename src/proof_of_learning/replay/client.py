"""Talking to replay workers: one per numeric environment, each in a process of its own where the task has a reference."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch

from proof_of_learning import errors
from proof_of_learning.errors import NumericEnvironmentError, PolError, TaskError, WorkerError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import protocol
from proof_of_learning.replay.protocol import AnyAnswer, AnyRequest
from proof_of_learning.replay.sandbox import Sandbox, hint
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.training import environment as environments
from proof_of_learning.training import randomness
from proof_of_learning.training.environment import Environment

DEFAULT_TIMEOUT = 600.0
START_TIMEOUT = 120.0  # for Python and PyTorch to start, before any of the task's code
# How much work a proof can make by the environments that it names:
MAX_ENVIRONMENTS = 64  # are tried at all,
AT_ONCE = 3  # have a worker at the same time,
MAX_THREADS = max(64, 4 * (os.cpu_count() or 1))  # are set at most;
MAX_DEATHS = 8  # after so many no worker that ended by itself is started again.
SETTINGS = ("capability", "threads", "interop_threads", "variables", "flags")  # what a started process can take on
OnWork = Callable[[int, int], None]


def _idle(done: int, total: int) -> None:
    pass


class LocalWorker:
    """A worker in this process, for a task that has no reference; its environment is the process's own."""

    died = False

    def __init__(self, task: Task, environment: Environment) -> None:
        from proof_of_learning.replay.worker import Worker

        self._on_work: OnWork = _idle
        self._environment = environment
        self._worker = Worker(lambda done, total: self._on_work(done, total), task)

    def ask(self, request: AnyRequest, on_work: OnWork = _idle) -> AnyAnswer:
        self._on_work = on_work
        environments.apply(self._environment, lasting=False)  # another worker of this process may have set its own
        return self._worker.answer(request)

    def close(self) -> None:
        """Nothing to end; what it set, :class:`Workers` puts back."""


class WorkerProcess:
    """A worker in a child process, started with ``environment``'s variables.

    ``timeout``: seconds without any sign of life after which the worker is given up. ``sandbox``: what it may see; it ends
    with the thread that started it.
    """

    def __init__(
        self, environment: Environment | None, timeout: float = DEFAULT_TIMEOUT, sandbox: Sandbox | None = None
    ) -> None:
        self._timeout, self._confined = timeout, sandbox is not None
        self._silent = ""  # why it was given up
        self._started = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        variables = dict(os.environ) if environment is None else environments.process_variables(environment)
        command = [sys.executable, "-m", "proof_of_learning.replay.worker"]
        if sandbox is not None:
            command = sandbox.command(command, gpu=environment is not None and environment.device.type == "cuda")
            variables = sandbox.variables(variables)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,  # so that `select` sees all there is to read
            env=variables,
        )

    @property
    def died(self) -> bool:
        """Whether it ended by itself: a replay may take more memory than there is, or end it in another way."""
        return not self._silent and self._process.poll() is not None

    def ask(self, request: AnyRequest, on_work: OnWork = _idle) -> AnyAnswer:
        """The answer to ``request``; raises what the worker raised, or WorkerError if it died or fell silent."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._silent:
            raise TaskError(self._silent)
        try:
            protocol.send(self._process.stdin, request)  # type: ignore[arg-type]
            while True:
                self._wait()
                answer = self._receive()
                if isinstance(answer, protocol.Failed):
                    kind = getattr(errors, answer.error, WorkerError)
                    message = hint(answer.message) if self._confined else answer.message
                    raise kind(message) if issubclass(kind, PolError) else WorkerError(message)
                if not isinstance(answer, protocol.Working):
                    return answer
                on_work(answer.done, answer.total)
        except (EOFError, BrokenPipeError):
            raise WorkerError(f"the replay worker ended unexpectedly{self._last_words()}") from None

    def _receive(self) -> AnyAnswer:
        assert self._process.stdout is not None
        try:
            return protocol.receive(self._process.stdout, AnyAnswer)  # type: ignore[arg-type]
        except WorkerError:
            self.close()  # where the next answer would begin is not known
            raise

    def _wait(self) -> None:
        assert self._process.stdout is not None
        timeout = self._timeout if self._started else max(self._timeout, START_TIMEOUT)
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self.close()
            self._silent = (
                f"the task gave no sign of life for {timeout:.0f} seconds; it may hang. "
                "Raise --timeout if it is only slow"
            )
            raise TaskError(self._silent)
        self._started = True

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" (status {status}{': ' + lines[-1][:300] if lines else ''})"

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


class Workers:
    """The workers of one verification: opened on first use, one for each recorded environment."""

    def __init__(
        self,
        proof: Proof,
        task: Task | TaskReference,
        timeout: float = DEFAULT_TIMEOUT,
        start: Path | None = None,
        sandbox: Sandbox | None = None,
        reproduce: bool = True,
    ) -> None:
        """``start``: the proof whose final weights the run starts from. ``sandbox``: of workers in processes of their own.

        ``reproduce``: start workers with the recorded environment, not with this process's own.
        """
        self._sandbox, self._reproduce = sandbox, reproduce
        self._proof, self._task, self._timeout, self._start = proof, task, timeout, start
        self._launched: dict[str, LocalWorker | WorkerProcess] = {}  # by environment, the one used last at the end
        self._open: dict[str, Environment] = {}  # what those of them that were told the task really have
        self._named = list(dict.fromkeys(segment.environment for segment in proof.segments))
        self._own: dict[str, Environment] = {}
        self._deaths = 0
        self._exit = ExitStack()  # puts back what workers in this process set
        self.here: dict[str, Environment] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="pol-")
        self.start_seconds = 0.0

    def ask(self, request: AnyRequest, on_work: OnWork = _idle, environment: Environment | None = None) -> Any:
        """Send a request to the worker whose environment it belongs to: that of its segment, else the run's first.

        Noise is measured in ``environment``, or where that is not given in another one that this machine has; from a nudged
        start it is measured where the segment is replayed.
        """
        digest, given = self._environment_of(request), environment is not None
        if isinstance(request, protocol.Noise) and request.nudge is None and environment is None:
            environment = environments.another(self.here[digest] if digest in self.here else self._recorded(digest)[1])
        worker = self._recorded(digest)[0] if environment is None else self._worker(environment, given)[0]
        return worker.ask(request, on_work)

    def grouped(self, requests: Sequence[AnyRequest]) -> list[AnyRequest]:
        """The requests with those of one environment together, in their order: each worker is then needed once."""
        place: dict[str, int] = {}
        return sorted(requests, key=lambda request: place.setdefault(self._environment_of(request), len(place)))

    def _environment_of(self, request: AnyRequest) -> str:
        per_segment = (protocol.Replay, protocol.Noise, protocol.Evaluate)
        return self._proof.segments[request.index if isinstance(request, per_segment) else 0].environment

    @property
    def scratch(self) -> Path:
        """Where workers leave states for one another and for their caller."""
        return Path(self._scratch.name)

    def differences(self, digest: str, *, start: bool = True) -> list[str]:
        """What the worker for that recorded environment could not reproduce.

        Without ``start``, where there was no worker for it yet, what can be said without one: in what the machine is another.
        """
        if digest not in self._named[:MAX_ENVIRONMENTS]:
            return [f"environments: recorded {len(self._named):,}, at most {MAX_ENVIRONMENTS} are tried"]
        if start and digest not in self.here:
            self._recorded(digest)
        recorded, wanted = self._proof.environments[digest], self._wanted(digest)
        settings = {name: getattr(wanted, name) for name in SETTINGS}
        here = self.here.get(digest) or msgspec.structs.replace(self._machine(recorded), **settings)
        return environments.differences(recorded, here, own_numpy=self._proof.header.own_code)

    def _recorded(self, digest: str) -> tuple[LocalWorker | WorkerProcess, Environment]:
        """The worker for a recorded environment, and the environment that it really has."""
        if digest not in self._named[:MAX_ENVIRONMENTS]:
            raise NumericEnvironmentError(
                f"the proof names {len(self._named):,} numeric environments, of which at most {MAX_ENVIRONMENTS} are tried"
            )
        worker, here = self._worker(self._wanted(digest))
        self.here[digest] = here
        return worker, here

    def begin(self) -> None:
        """Start the process of the run's first environment, so that it loads while the proof is read."""
        if isinstance(self._task, TaskReference) or self._task.reference is not None:
            self._launch(self._wanted(self._proof.segments[0].environment))

    def _launch(self, environment: Environment, given: bool = False) -> LocalWorker | WorkerProcess:
        """The worker for an environment: the one that is there, or a new one in place of another, but where the caller chose it."""
        name = environment.digest()
        if name in self._launched and self._launched[name].died:
            self._deaths += 1
            self._end(name)
        worker = self._launched.pop(name, None)
        if worker is None:
            if self._deaths > MAX_DEATHS:
                raise WorkerError(f"the replay worker ended unexpectedly {self._deaths} times; it is not started again")
            while len(self._launched) >= AT_ONCE and not given:
                self._end(next(iter(self._launched)))
            worker = self._new(environment)
        self._launched[name] = worker
        return worker

    def _new(self, environment: Environment) -> LocalWorker | WorkerProcess:
        reference = self._reference()
        if reference is not None:
            files, scratch = (Path(self._proof.path), self._start), Path(self._scratch.name)
            confined = self._sandbox and self._sandbox.serving(reference, *files, scratch=scratch)
            return WorkerProcess(environment, self._timeout, confined)
        assert isinstance(self._task, Task)
        if not self._launched:
            self._exit.enter_context(environments.restored())
            self._exit.enter_context(randomness.preserved())
        return LocalWorker(self._task, environment)

    def _end(self, name: str) -> None:
        self._open.pop(name, None)
        self._launched.pop(name).close()

    def _reference(self) -> TaskReference | None:
        return self._task if isinstance(self._task, TaskReference) else self._task.reference

    def _wanted(self, digest: str) -> Environment:
        """The environment that the worker for a recorded one is to have; what it does not get shows in its differences."""
        environment = self._proof.environments[digest]
        if not self._reproduce:
            return msgspec.structs.replace(self._machine(environment), flags=environment.flags)
        counts = {name: getattr(environment, name) for name in ("threads", "interop_threads")}
        return msgspec.structs.replace(environment, **{n: c if c <= MAX_THREADS else 1 for n, c in counts.items()})

    def _machine(self, environment: Environment) -> Environment:
        """What this process has by itself, on the other's device; as it was before workers in this process changed it."""
        device = environment.device.type if torch.cuda.is_available() else "cpu"
        if device not in self._own:
            self._own[device] = environments.current(device)
        return self._own[device]

    def _worker(self, environment: Environment, given: bool = False) -> tuple[LocalWorker | WorkerProcess, Environment]:
        name, begun = environment.digest(), time.perf_counter()
        worker = self._launch(environment, given)
        if name not in self._open:
            reference = self._reference()
            seed = self._proof.header.randomness.seed
            opened = worker.ask(
                protocol.Open(
                    proof=str(Path(self._proof.path).resolve()),
                    task="(in this process)" if reference is None else reference.target,
                    settings={} if reference is None else dict(reference.settings),
                    key=self._proof.header.randomness.key,
                    seed=None if seed is None else int(seed),
                    environment=environment,
                    start=None if self._start is None else str(self._start.resolve()),
                    scratch=self._scratch.name,
                )
            )
            assert isinstance(opened, protocol.Opened)
            if opened.root != self._proof.root:
                raise WorkerError("the proof changed while it was verified")
            self._open[name] = opened.environment
            self.start_seconds += time.perf_counter() - begun
        return worker, self._open[name]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._launched.values():
            worker.close()
        self._exit.close()
        self._scratch.cleanup()
