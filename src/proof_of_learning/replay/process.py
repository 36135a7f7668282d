"""One worker: in a child process of its own, or in this process for a task that has no reference.

A process is started without torch in this one, so that both may load it at the same time; what is said to a worker needs it.
"""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from proof_of_learning import errors
from proof_of_learning.errors import PolError, TaskError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.replay.sandbox import Sandbox, hint

if TYPE_CHECKING:
    from proof_of_learning.replay import protocol
    from proof_of_learning.replay.protocol import AnyRequest, Reply
    from proof_of_learning.state.state import State
    from proof_of_learning.task import Task

DEFAULT_TIMEOUT = 600.0
PIPE = 1 << 15  # bytes that an empty pipe takes at once (Linux: 64 KiB)
START_TIMEOUT = 120.0  # for Python and PyTorch to start, before any of the task's code
OnWork = Callable[[int, int], None]
# What makes a worker fast and changes no bit; whoever sets one of them themselves is obeyed.
SPEED = {
    # Each segment is replayed by a fresh child, whose first step takes all its memory anew: page by page, that takes as long as half
    # of a small step. So memory comes in large pages where the system has them, and what is freed is kept (of glibc alone).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456",
    # Threads of GNU OpenMP that wait for others spin, for milliseconds, on processors that other workers and the verifier want; so
    # few times it would spin by itself if it knew of them (libgomp manual, GOMP_SPINCOUNT).
    "GOMP_SPINCOUNT": "1000",
}


def idle(done: int, total: int) -> None:
    """Nobody looks at the progress."""


def raised(answer: protocol.Failed, confined: bool = False) -> PolError:
    """The error that a worker tells of."""
    kind = getattr(errors, answer.error, WorkerError)
    message = hint(answer.message) if confined else answer.message
    return kind(message) if isinstance(kind, type) and issubclass(kind, PolError) else WorkerError(message)


class AnyWorker(Protocol):
    """What carries out requests.

    ``name``: what it is called in a verdict. ``died``: whether it ended by itself; ``spent``: whether it can take no further segment;
    ``silent``: whether it hung. ``expect`` says ahead what will be asked first, so that it may begin. ``kill`` may be called while
    another thread waits for an answer, which then fails.
    """

    @property
    def name(self) -> str: ...
    @property
    def died(self) -> bool: ...
    @property
    def spent(self) -> bool: ...
    @property
    def silent(self) -> bool: ...
    def expect(self, request: AnyRequest) -> None: ...
    def ask(self, request: AnyRequest, states: Sequence[State] = (), on_work: OnWork = idle) -> Reply: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


class LocalWorker:
    """A worker in this process, for a task that has no reference; its environment is the process's own."""

    name = "this process"
    died = False
    spent = False
    silent = False

    def __init__(self, task: Task, environment: Environment) -> None:
        from proof_of_learning.replay.worker import Worker

        self._on_work: OnWork = idle
        self._environment = environment
        self._worker = Worker(lambda done, total: self._on_work(done, total), task)

    def expect(self, request: AnyRequest) -> None:
        """Nothing is done here beside the verifier."""

    def ask(self, request: AnyRequest, states: Sequence[State] = (), on_work: OnWork = idle) -> Reply:
        self._on_work = on_work
        environments.apply(self._environment, lasting=False)  # another worker of this process may have set its own
        self._worker.forget()
        answer, arrived = self._worker.answer(request, states)
        return answer, [state.settled() for state in arrived]

    def kill(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to end; what it set, the pool puts back."""


class Beginning(NamedTuple):
    """All that a process is begun with, but for its folder of temporary files: of two that are equal, one can stand for the other."""

    command: list[str]
    variables: dict[str, str]
    folder: str


def beginning(environment: Environment | None, sandbox: Sandbox | None, folder: str | None = None) -> Beginning:
    """What a process would be begun with now: it follows from the variables, the folder that we are in, and the files that a sandbox
    shows and hides."""
    variables = dict(os.environ) if environment is None else environments.process_variables(environment)
    command, variables = [sys.executable, "-m", "proof_of_learning.replay.worker"], {**SPEED, **variables}
    if sandbox is not None:
        command = sandbox.command(command, gpu=environment is not None and environment.device.type == "cuda")
        variables = sandbox.variables(variables)
    if folder is None:
        with suppress(OSError):  # it is gone
            folder = os.getcwd()
    return Beginning(command, variables, folder or "")


class WorkerProcess:
    """A worker in a child process, started with ``environment``'s variables.

    ``timeout``: seconds without any sign of life after which the worker is given up. ``sandbox``: what it may see; it ends
    with the thread that started it. ``folder``: where it works, if not where we do. ``name``: for a verdict.
    """

    def __init__(
        self,
        environment: Environment | None,
        timeout: float = DEFAULT_TIMEOUT,
        sandbox: Sandbox | None = None,
        folder: str | None = None,
        name: str = "worker 1",
    ) -> None:
        self.name = name
        self._timeout, self._confined = timeout, sandbox is not None
        self._silent = ""  # why it was given up
        self._started = False
        self._forks = True
        self._expected: AnyRequest | None = None
        self.spent = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self.beginning = beginning(environment, sandbox, folder)
        # Of what is written outside of a sandbox nothing is left.
        self._scratch = tempfile.TemporaryDirectory(prefix="pol-")
        self._process = subprocess.Popen(
            self.beginning.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,  # so that `select` sees all there is to read
            env=self.beginning.variables | ({} if sandbox is not None else {"TMPDIR": self._scratch.name}),
            cwd=folder,
            start_new_session=True,  # no terminal that it could write to
        )

    @property
    def died(self) -> bool:
        """Whether it ended by itself: a replay may take more memory than there is, or end it in another way."""
        return not self._silent and self._process.poll() is not None

    @property
    def silent(self) -> bool:
        """Whether it was given up because it gave no sign of life."""
        return bool(self._silent)

    def expect(self, request: AnyRequest) -> None:
        """Send a request for whose answer ``ask`` will come, if its pipe is sure to hold it: nobody waits here."""
        from proof_of_learning.replay import protocol

        told = io.BytesIO()
        protocol.send(told, request)
        if self._expected is None and not self._started and len(told.getvalue()) <= PIPE and self._process.stdin:
            with suppress(BrokenPipeError):  # it has ended, as whoever asks will find
                self._process.stdin.write(told.getvalue())
                self._expected = request

    def ask(self, request: AnyRequest, states: Sequence[State] = (), on_work: OnWork = idle) -> Reply:
        """The answer to ``request``; raises what the worker raised, or WorkerError if it died or fell silent."""
        from proof_of_learning.replay import protocol

        assert self._process.stdin is not None and self._process.stdout is not None
        if self._silent:
            raise TaskError(self._silent)
        try:
            if request != self._expected:
                protocol.send(self._process.stdin, request, states)  # type: ignore[arg-type]
            self._expected = None
            while True:
                self._wait()
                answer, arrived = self._receive()
                if isinstance(answer, protocol.Failed):
                    raise raised(answer, self._confined)
                if isinstance(answer, protocol.Opened):
                    self._forks = answer.forks
                if not isinstance(answer, protocol.Working):
                    # Without children of its own it still holds what this request left behind.
                    self.spent = not self._forks and not isinstance(answer, protocol.Opened)
                    return answer, arrived
                on_work(answer.done, answer.total)
        except (EOFError, BrokenPipeError):
            raise WorkerError(f"the replay worker ended unexpectedly{self._last_words()}") from None

    def _receive(self) -> Reply:
        from proof_of_learning.replay import protocol

        assert self._process.stdout is not None
        try:
            return protocol.receive(self._process.stdout, protocol.AnyAnswer)  # type: ignore[arg-type]
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

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._scratch.cleanup()
