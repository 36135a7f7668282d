"""Talking to replay workers: one per numeric environment, each in a process of its own where the task has a reference."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch

from proof_of_learning import errors
from proof_of_learning.errors import PolError, TaskError, WorkerError
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
OnWork = Callable[[int, int], None]


def _idle(done: int, total: int) -> None:
    pass


class LocalWorker:
    """A worker in this process, for a task that has no reference; its environment is the process's own."""

    def __init__(self, task: Task, environment: Environment) -> None:
        from proof_of_learning.replay.worker import Worker

        self._on_work: OnWork = _idle
        self._environment = environment
        self._exit = ExitStack()
        self._exit.enter_context(environments.restored())
        self._exit.enter_context(randomness.preserved())
        self._worker = Worker(lambda done, total: self._on_work(done, total), task)

    def ask(self, request: AnyRequest, on_work: OnWork = _idle) -> AnyAnswer:
        self._on_work = on_work
        environments.apply(self._environment, lasting=False)  # another worker of this process may have set its own
        return self._worker.answer(request)

    def close(self) -> None:
        """Leave the process's flags, threads and generators as they were."""
        self._exit.close()


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

    def ask(self, request: AnyRequest, on_work: OnWork = _idle) -> AnyAnswer:
        """The answer to ``request``; raises what the worker raised, or WorkerError if it died or fell silent."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._silent:
            raise TaskError(self._silent)
        try:
            protocol.send(self._process.stdin, request)  # type: ignore[arg-type]
            while True:
                self._wait()
                answer: AnyAnswer = protocol.receive(self._process.stdout, AnyAnswer)  # type: ignore[arg-type]
                if isinstance(answer, protocol.Failed):
                    kind = getattr(errors, answer.error, WorkerError)
                    message = hint(answer.message) if self._confined else answer.message
                    raise kind(message) if issubclass(kind, PolError) else WorkerError(message)
                if not isinstance(answer, protocol.Working):
                    return answer
                on_work(answer.done, answer.total)
        except (EOFError, BrokenPipeError):
            raise WorkerError(f"the replay worker ended unexpectedly{self._last_words()}") from None

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
        self._open: dict[str, tuple[LocalWorker | WorkerProcess, Environment]] = {}
        self._launched: dict[str, LocalWorker | WorkerProcess] = {}
        self.here: dict[str, Environment] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="pol-")
        self.start_seconds = 0.0

    def ask(self, request: AnyRequest, on_work: OnWork = _idle, environment: Environment | None = None) -> Any:
        """Send a request to the worker whose environment it belongs to: that of its segment, else the run's first.

        Noise is measured in ``environment``, or where that is not given in another one that this machine has; from a nudged
        start it is measured where the segment is replayed.
        """
        per_segment = (protocol.Replay, protocol.Noise, protocol.Evaluate)
        index = request.index if isinstance(request, per_segment) else 0
        digest = self._proof.segments[index].environment
        if isinstance(request, protocol.Noise) and request.nudge is None and environment is None:
            environment = environments.another(self.here[digest] if digest in self.here else self._recorded(digest)[1])
        worker = self._recorded(digest)[0] if environment is None else self._worker(environment)[0]
        return worker.ask(request, on_work)

    @property
    def scratch(self) -> Path:
        """Where workers leave states for one another and for their caller."""
        return Path(self._scratch.name)

    def differences(self, digest: str) -> list[str]:
        """What the worker for that recorded environment could not reproduce."""
        return environments.differences(self._proof.environments[digest], self._recorded(digest)[1])

    def _recorded(self, digest: str) -> tuple[LocalWorker | WorkerProcess, Environment]:
        """The worker for a recorded environment, and the environment that it really has."""
        worker, here = self._worker(self._wanted(digest))
        self.here[digest] = here
        return worker, here

    def begin(self) -> None:
        """Start the process of the run's first environment, so that it loads while the proof is read."""
        if isinstance(self._task, TaskReference) or self._task.reference is not None:
            self._launch(self._wanted(self._proof.segments[0].environment))

    def _launch(self, environment: Environment) -> LocalWorker | WorkerProcess:
        name = environment.digest()
        if name not in self._launched:
            reference = self._reference()
            if reference is None:
                assert isinstance(self._task, Task)
                self._launched[name] = LocalWorker(self._task, environment)
            else:
                files, scratch = (Path(self._proof.path), self._start), Path(self._scratch.name)
                confined = self._sandbox and self._sandbox.serving(reference, *files, scratch=scratch)
                self._launched[name] = WorkerProcess(environment, self._timeout, confined)
        return self._launched[name]

    def _reference(self) -> TaskReference | None:
        return self._task if isinstance(self._task, TaskReference) else self._task.reference

    def _wanted(self, digest: str) -> Environment:
        """The environment that the worker for a recorded one is to have."""
        environment = self._proof.environments[digest]
        if not self._reproduce:
            own = environments.current(environment.device.type if torch.cuda.is_available() else "cpu")
            environment = msgspec.structs.replace(own, flags=environment.flags)
        return environment

    def _worker(self, environment: Environment) -> tuple[LocalWorker | WorkerProcess, Environment]:
        name = environment.digest()
        if name not in self._open:
            begun = time.perf_counter()
            worker, reference = self._launch(environment), self._reference()
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
            self._open[name] = (worker, opened.environment)
            self.start_seconds += time.perf_counter() - begun
        return self._open[name]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in reversed(self._launched.values()):  # each puts back what it found, so the first one last
            worker.close()
        self._scratch.cleanup()
