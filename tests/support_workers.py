"""Replay workers for tests, forked from a process that has already imported what a worker imports.

Starting Python and importing PyTorch takes seconds; hundreds of tests start workers, and few are about how one starts. A worker
made here is as much a process of its own as a real one: the same ``main``, its own session, pipes, folder and variables. It only
inherits imports, made by a process that was started with the same variables of those that are read while importing, and it is in
no sandbox. Tests marked ``real_workers`` (of the start, of the sandbox), and all tests under ``POL_TEST_WORKERS=real``, use real ones.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from proof_of_learning.training.environment import VARIABLES

WORKER = [sys.executable, "-m", "proof_of_learning.replay.worker"]
# What may be read while Python, NumPy and PyTorch are loaded.
EARLY = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH", "NPY_")
IMPORTED = ("proof_of_learning.replay.worker", "torch._dynamo", "sklearn.datasets")  # the last for the digits example
AT_ONCE = 3  # each holds what PyTorch takes in memory
LONGEST = 1 << 20


class Forked:
    """A forked worker: what the product uses of ``subprocess.Popen``."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes], told: socket.socket) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._told, self._heard = told, list[int]()  # which process it is; how it ended

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
            os.kill(pid, signal.SIGKILL)

    def _listen(self, wanted: int, flags: int = 0) -> None:
        with suppress(BlockingIOError):
            while len(self._heard) < wanted:
                answer = self._told.recv(64, flags)
                if not answer:
                    raise OSError("what forks and watches the workers of tests has ended")
                self._heard.append(int(answer))
        if len(self._heard) == 2 and self.returncode is None:
            self.returncode = self._heard[1]
            self._told.close()


class Nursery:
    """Processes that fork workers, by the variables they were started with."""

    def __init__(self) -> None:
        self.real = False  # whether workers are started as they are outside of tests
        self._parents: dict[str, tuple[subprocess.Popen[bytes], socket.socket]] = {}

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[bytes] | Forked:
        """Stands in for ``subprocess.Popen``, for workers: what is to start one in a sandbox gets one without."""
        if self.real or command[-len(WORKER) :] != WORKER:
            return subprocess.Popen(command, **options)
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files = [stdin, stdout, options["stderr"].fileno(), tells.fileno()]
        message = json.dumps({"variables": options["env"], "folder": os.getcwd()}).encode("utf-8", "surrogateescape")
        try:
            socket.send_fds(self._parent(options["env"]), [message], files)
        finally:
            os.close(stdin)
            os.close(stdout)
            tells.close()
        return Forked(open(ours_in, "wb", buffering=0), open(ours_out, "rb", buffering=0), told)

    def close(self) -> None:
        for process, connection in self._parents.values():
            connection.close()
            process.wait()
        self._parents.clear()

    def _parent(self, variables: dict[str, str]) -> socket.socket:
        early = [item for item in sorted(variables.items()) if item[0].startswith(EARLY) or item[0] in VARIABLES]
        key = json.dumps(early)
        process, connection = self._parents.pop(key, (None, None))
        if process is None or connection is None or process.poll() is not None:
            while len(self._parents) >= AT_ONCE:
                oldest, its = self._parents.pop(next(iter(self._parents)))
                its.close()
                oldest.wait()
            connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=variables,
                start_new_session=True,
            )
            theirs.close()
        self._parents[key] = process, connection
        return connection


def serve(connection: socket.socket) -> None:
    """Fork a worker for each message, until nobody is there to send one."""
    import gc
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, files, *_ = socket.recv_fds(connection, LONGEST, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        if not message:
            return
        if os.fork() == 0:
            connection.close()
            os._exit(watch(message, files))
        for file in files:
            os.close(file)


def watch(message: bytes, files: list[int]) -> int:
    """Fork the worker, and say which process it is and how it ended."""
    *streams, told = files
    tells = socket.socket(fileno=told)
    worker = os.fork()
    if worker == 0:
        tells.close()
        os._exit(become(message, streams))
    for stream in streams:
        os.close(stream)
    tells.send(str(worker).encode())
    _, status = os.waitpid(worker, 0)
    tells.send(str(os.waitstatus_to_exitcode(status)).encode())
    return 0


def become(message: bytes, streams: list[int]) -> int:
    """Be a worker: what ``python -m proof_of_learning.replay.worker`` is once it has imported."""
    from proof_of_learning.replay import worker

    given = json.loads(message.decode("utf-8", "surrogateescape"))
    os.setsid()
    os.chdir(given["folder"])
    sys.path.insert(0, given["folder"])
    sys.argv[:] = [str(worker.__file__)]
    os.environ.clear()
    os.environ.update(given["variables"])
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    try:
        worker.main()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
