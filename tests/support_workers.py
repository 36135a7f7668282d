"""Replay workers and commands for tests, forked from a process that has already imported what they import.

Starting Python and importing PyTorch takes seconds; hundreds of tests start workers, and few are about how one starts. A worker
made here is as much a process of its own as a real one: the same ``main``, its own session, pipes, folder and variables. It only
inherits imports, made by a process that was started with the same variables of those that are read while importing, and it is in
no sandbox. So is a command or a script (``Nursery.run``), and so are the workers that it starts. Tests marked ``real_workers``
(of the start, of the sandbox), and all tests under ``POL_TEST_WORKERS=real``, use real ones.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import platform
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import IO, Any

import torch

from proof_of_learning.cli.main import run
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import VARIABLES, Environment
from proof_of_learning.replay import process, protocol
from proof_of_learning.replay.process import AnyWorker, OnWork, WorkerProcess
from proof_of_learning.replay.protocol import AnyRequest, Reply
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.state.state import State
from proof_of_learning.task import TaskReference, is_script, load_task

WORKER = [sys.executable, "-m", "proof_of_learning.replay.worker"]
ALSO_IMPORTED = "POL_TEST_IMPORTED"  # names of modules that a test file's processes find imported
# What may be read while Python, NumPy and PyTorch are loaded.
EARLY = (
    "PYTHON",
    "LD_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "OPENBLAS_",
    "MKL_",
    "DNNL_",
    "ONEDNN_",
    "ATEN_",
    "TORCH",
    "NPY_",
    ALSO_IMPORTED,
)
LATE = {  # set anew in what is forked, or without meaning there
    "PYTHONIOENCODING",
    "PYTHONUSERBASE",
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONMALLOC",
    "TORCHINDUCTOR_CACHE_DIR",
}
IMPORTED = {  # what they import before they do anything, or as soon as they do it
    "worker": ("torch", "proof_of_learning.replay.worker", "proof_of_learning.run.serve", "numpy.ma"),
    "command": (
        "proof_of_learning.verifier.verify",
        "proof_of_learning.report.html",
        "proof_of_learning.run.command",
        "proof_of_learning.rehearsal.beside",
        "typer._adapters",
    ),
    "script": (),
}
# A fork copies the tables of all pages, and a worker forks for each request: large pages have short tables.
SPEED = {**process.SPEED, "PYTHONMALLOC": "malloc"}
AT_ONCE = 4  # each holds what PyTorch takes in memory
LONGEST = 1 << 20


def early(variables: Mapping[str, str]) -> str:
    """Which parent a process with these variables can have."""
    names = sorted(name for name in variables if name.startswith(EARLY) or name in VARIABLES)
    return json.dumps([(name, variables[name]) for name in names if name not in LATE])


@contextmanager
def imported(*names: str) -> Iterator[None]:
    """Processes that are started meanwhile find these modules imported."""
    os.environ[ALSO_IMPORTED] = " ".join(names)
    try:
        yield
    finally:
        del os.environ[ALSO_IMPORTED]


class Forked:
    """A forked process: what the product uses of ``subprocess.Popen``."""

    def __init__(self, told: socket.socket, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._told, self._heard = told, list[int]()  # which process it is; how it ended
        self._listening = threading.Lock()  # one thread may wait for the end while another kills

    @property
    def pid(self) -> int:
        self._listen(1)
        return self._heard[0]

    def poll(self) -> int | None:
        self._listen(2, socket.MSG_DONTWAIT)
        return self.returncode

    def wait(self) -> int:
        self._listen(2)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        pid = self.pid
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and nobody has said so yet
                os.kill(pid, signal.SIGKILL)

    def _listen(self, wanted: int, flags: int = 0) -> None:
        if not self._listening.acquire(blocking=not flags):
            return
        try:
            with suppress(BlockingIOError):
                while len(self._heard) < wanted:
                    answer = self._told.recv(64, flags)
                    if not answer:
                        raise OSError("what forks and watches the workers of tests has ended")
                    self._heard.append(int(answer))
            if len(self._heard) == 2 and self.returncode is None:
                self.returncode = self._heard[1]
                self._told.close()
        finally:
            self._listening.release()


class Nursery:
    """Processes that fork workers, by the variables they were started with."""

    def __init__(self, inherited: tuple[str, socket.socket] | None = None) -> None:
        self.real = False  # whether workers are started as they are outside of tests
        self.here = False  # whether workers that need not be processes are none
        self._ahead = Replayer.ahead
        self._parents: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._inherited = inherited  # in a forked command: what its parent was started with, and how to ask it

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[bytes] | Forked:
        """Stands in for ``subprocess.Popen``, for workers: what is to start one in a sandbox gets one without."""
        given = {
            name: value for name, value in os.environ.items() if name == ALSO_IMPORTED
        }  # which no sandbox lets through
        variables = {**options["env"], **given}
        other = self._inherited is not None and self._inherited[0] != early(variables)
        if self.real or other or command[-len(WORKER) :] != WORKER:
            return subprocess.Popen(command, **options)
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        try:
            streams = [stdin, stdout, options["stderr"].fileno()]
            told = self._fork("worker", [], variables, streams, options.get("cwd"))
        finally:
            os.close(stdin)
            os.close(stdout)
        return Forked(told, open(ours_in, "wb", buffering=0), open(ours_out, "rb", buffering=0))

    def worker(self, environment: Environment, timeout: float, sandbox: Sandbox | None, *, name: str) -> AnyWorker:
        """Stands in for the class of workers, where a verification starts one."""
        start = partial(process.WorkerProcess, environment, timeout, sandbox, name=name)
        return Here(environment, name, start) if self.here and not self.real else start()

    def ahead(self, replayer: Replayer, indices: Iterable[int]) -> None:
        """Stands in for what begins replays while states are looked at: in one process there is nothing beside."""
        if self.real or not self.here:
            self._ahead(replayer, indices)

    def run(
        self, arguments: Sequence[object], variables: dict[str, str], folder: Path | None = None, kind: str = "command"
    ) -> subprocess.CompletedProcess[bytes]:
        """The command ``pol`` with these arguments, in a process of its own without a terminal.

        ``kind``: ``script`` for the script that is the first of the arguments, with the others.
        """
        words = [str(argument) for argument in arguments]
        if kind == "script":  # PyTorch imports its compiler with the first optimizer, in a second
            variables = {ALSO_IMPORTED: "torch._dynamo", **variables}
        if self.real:
            ours = ["-c", "from proof_of_learning.cli.main import run; run()"] if kind == "command" else []
            start = [sys.executable, *ours, *words]
            return subprocess.run(start, capture_output=True, timeout=250, env=variables, cwd=folder)
        with open(os.devnull, "rb") as nothing, TemporaryFile() as out, TemporaryFile() as err:
            told = self._fork(kind, words, variables, [nothing.fileno(), out.fileno(), err.fileno()], folder)
            status = Forked(told).wait()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([kind, *words], status, out.read(), err.read())

    def close(self) -> None:
        for parent, connection in self._parents.values():
            connection.close()
            self._leaving.append(parent)
        for parent in self._leaving:
            parent.kill()  # nobody waits for what a test may have left behind
            parent.wait()
        self._parents.clear()

    def _fork(
        self, kind: str, words: list[str], variables: dict[str, str], streams: list[int], folder: Path | str | None
    ) -> socket.socket:
        """Have a process forked; what it is told of it comes from the socket."""
        given = {"kind": kind, "words": words, "variables": variables, "folder": str(folder or os.getcwd())}
        told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = json.dumps(given).encode("utf-8", "surrogateescape")
        with tells:
            socket.send_fds(self._parent(variables), [message], [*streams, tells.fileno()])
        return told

    def _parent(self, variables: dict[str, str]) -> socket.socket:
        key = early(variables)
        if self._inherited is not None:
            return self._inherited[1]
        parent, connection = self._parents.pop(key, (None, None))
        if parent is None or connection is None or parent.poll() is not None:
            while len(self._parents) >= AT_ONCE:
                oldest, its = self._parents.pop(next(iter(self._parents)))
                its.close()  # it ends with the last of what it forked
                self._leaving.append(oldest)
            connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            parent = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**variables, **SPEED},
                start_new_session=True,
            )
            theirs.close()
        self._parents[key] = parent, connection
        return connection


class Here:
    """A worker in this process, as for a task without a reference; for what only another process can do, ``process`` starts one."""

    def __init__(self, environment: Environment, name: str, process: Callable[[], WorkerProcess]) -> None:
        self.name, self._environment, self._process = name, environment, process
        self._worker: AnyWorker | None = None

    @property
    def died(self) -> bool:
        return self._worker is not None and self._worker.died

    @property
    def spent(self) -> bool:
        return self._worker is not None and self._worker.spent

    @property
    def silent(self) -> bool:
        return self._worker is not None and self._worker.silent

    def expect(self, request: AnyRequest) -> None:
        """What it is, it becomes with the first request."""

    def ask(self, request: AnyRequest, states: Sequence[State] = (), on_work: OnWork = process.idle) -> Reply:
        if self._worker is None:
            self._worker = self._opened(request)
        with environments.restored(), randomness.preserved():
            return self._worker.ask(request, states, on_work)

    def kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _opened(self, request: AnyRequest) -> AnyWorker:
        ours = {name: os.environ.get(name, "") for name in VARIABLES}
        named = {name: value for name, value in self._environment.variables.items() if value}
        if (
            not isinstance(request, protocol.Open)
            or request.program
            or is_script(request.task)
            or self._environment.threads != torch.get_num_threads()
            or self._environment.device.type != "cpu"
            or named != {name: value for name, value in ours.items() if value}
        ):
            return self._process()
        return process.LocalWorker(load_task(TaskReference(request.task, request.settings)), self._environment)


def serve(connection: socket.socket) -> None:
    """Fork a process for each message, and say which it is and how it ended, until nobody sends one any more and all have ended."""
    prepared = set[str]()
    prepare(prepared, "worker", os.environ.get(ALSO_IMPORTED, ""))
    key = early(os.environ)
    asking, ended = dict[int, socket.socket](), dict[int, tuple[int, socket.socket]]()  # by what the selector watches
    with selectors.DefaultSelector() as selector:

        def listen(to: socket.socket) -> None:
            asking[to.fileno()] = to
            selector.register(to.fileno(), selectors.EVENT_READ)

        listen(connection)
        while True:
            for ready, _ in selector.select():
                if ready.fd in ended:
                    child, tells = ended.pop(ready.fd)
                    selector.unregister(ready.fd)
                    os.close(ready.fd)
                    with tells, suppress(BrokenPipeError):
                        tells.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
                    if connection.fileno() < 0 and not ended:
                        return
                    continue
                message, files, *_ = socket.recv_fds(asking[ready.fd], LONGEST, 4)
                if not message:
                    selector.unregister(ready.fd)
                    asking.pop(ready.fd).close()
                    if connection.fileno() < 0 and not ended:
                        return
                    continue
                given = json.loads(message.decode("utf-8", "surrogateescape"))
                prepare(prepared, given["kind"])
                *streams, told = files
                tells = socket.socket(fileno=told)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                child = os.fork()
                if child == 0:
                    for each in (ours, tells, *asking.values(), *(its for _, its in ended.values())):
                        each.close()
                    for file in ended:
                        os.close(file)
                    os._exit(become(given, streams, (key, theirs)))
                theirs.close()
                for stream in streams:
                    os.close(stream)
                listen(ours)
                with suppress(BrokenPipeError):
                    tells.send(str(child).encode())
                end = os.pidfd_open(child)
                ended[end] = child, tells
                selector.register(end, selectors.EVENT_READ)


def prepare(ready: set[str], kind: str, more: str = "") -> None:
    """Import once what all processes of this kind would, and keep the garbage collector from touching it in each of them."""
    if kind not in ready:
        ready.add(kind)
        for name in (*IMPORTED[kind], *more.split()):
            importlib.import_module(name)
        sysconfig.get_paths()  # both look for once, outside of this process, what never changes
        platform.processor()
        gc.collect()
        gc.freeze()


def become(given: dict[str, Any], streams: list[int], parent: tuple[str, socket.socket]) -> int:
    """Be a worker (``python -m proof_of_learning.replay.worker``) or a command, whose workers have the same parent."""
    os.setsid()
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["variables"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    tempfile.tempdir = None  # the parent may have been started with another process's TMPDIR, which is gone
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    sys.stdout = open(1, "w", encoding=encoding or "utf-8", errors=errors or "strict", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding or "utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    atexit._clear()  # what the parent would do at its end
    try:
        if given["kind"] == "worker":
            parent[1].close()
            sys.path.insert(0, given["folder"])
            importlib.import_module("proof_of_learning.replay.worker").main()
        elif given["kind"] == "script":
            sys.path.insert(0, str(Path(given["words"][0]).parent))
            sys.argv[:] = given["words"]
            runpy.run_path(given["words"][0], run_name="__main__")
        else:
            sys.path.insert(0, "")
            sys.argv[:] = ["-c", *given["words"]]
            vars(process)["subprocess"] = SimpleNamespace(Popen=Nursery(parent).popen, PIPE=subprocess.PIPE)
            run()
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with suppress(BrokenPipeError):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
