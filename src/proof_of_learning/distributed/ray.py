"""Replay workers on the nodes of a Ray cluster (https://docs.ray.io): the pool of ``replay.pool``, whose workers are actors.

An actor holds one worker process, started with the recorded numeric environment and in a sandbox of that node's, as on the verifier's
own machine: the process is blind and speaks the bounded protocol. Messages pass through Ray as the bytes of that protocol. Reading,
hashing, comparing and judging stay in the verifier's process.

The nodes are the verifier's: Ray runs whatever its members send each other, and a node that lies about what a worker arrived at is
believed. The data and the task have to be at the same paths on each node.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from proof_of_learning._version import __version__
from proof_of_learning.errors import PolError, UsageError, WorkerError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.replay import fork, protocol
from proof_of_learning.replay import sandbox as sandboxes
from proof_of_learning.replay.early import TAKING
from proof_of_learning.replay.pool import Job, MakePool, WorkerPool
from proof_of_learning.replay.process import OnWork, WorkerProcess, idle, raised
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.state.state import State
from proof_of_learning.task import TaskReference

LOCAL = "local"
START = 180.0  # seconds for an actor to be placed and to load
REACH = 10.0  # for somebody to answer at an address
MISSING = "--ray needs Ray: pip install 'proof-of-learning[ray]'"
_SAME = ("proof-of-learning", "python", "torch")  # of which every node needs the version that is here


@contextmanager
def cluster(address: str, workers: int) -> Iterator[MakePool]:
    """A pool of ``workers`` on the cluster at ``address``; ``"local"`` starts one on this machine, which ends with the context.

    A cluster that Ray is connected to already is used as it is. Raises UsageError where there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    if address == LOCAL and "RAY_AUTH_MODE" not in os.environ:  # nobody else on this machine may join
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise UsageError(MISSING) from None
    connected = ray.is_initialized()
    host, _, port = address.rpartition(":")
    if not connected and host and port.isdigit():  # Ray would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=REACH).close()
        except (OSError, OverflowError) as error:
            raise _nobody(address, error) from None
    if not connected:
        quiet = {"configure_logging": False, "log_to_driver": False, "include_dashboard": False}
        try:
            if address == LOCAL:
                ray.init(address=LOCAL, num_cpus=max(workers, fork.cores()), **quiet)
            else:
                del quiet["include_dashboard"]
                ray.init(address=address, **quiet)
        except Exception as error:
            raise _nobody(address, error) from None
    try:
        yield partial(_pool, workers)
    finally:
        if not connected:
            ray.shutdown()


def _nobody(address: str, error: Exception) -> UsageError:
    line = " ".join(str(error).split())[:300]
    return UsageError(
        f"--ray {address}: no cluster can be joined there ({line}); name the address of its head (HOST:PORT), {LOCAL!r}, and "
        "set RAY_AUTH_TOKEN where it asks for a token"
    )


def _pool(workers: int, job: Job, timeout: float, sandbox: Sandbox | None) -> WorkerPool:
    reference = job.reference
    if reference is None:
        raise UsageError("--ray needs a task that is named by reference (path.py:function); each node loads it")
    read = None if sandbox is None else tuple(map(str, sandbox.read))

    def launch(environment: Environment, role: str, place: int) -> RayWorker:
        return RayWorker(environment, role, place, timeout, reference, read)

    return WorkerPool(job, launch, workers, elsewhere=True)


class Host:
    """What lives on a node: one worker process. Everything that it gives and takes is plain values and bytes of the protocol."""

    def __init__(
        self,
        environment: bytes,
        timeout: float,
        task: bytes,
        read: tuple[str, ...] | None,
        variables: Mapping[str, str],
        name: str,
    ) -> None:
        """``read``: further files that the worker may see, None for one that is not confined."""
        import msgspec

        os.environ.update(variables)
        wanted = msgspec.msgpack.decode(environment, type=Environment)
        reference = TaskReference(**msgspec.msgpack.decode(task))
        sandbox = None
        if read is not None:
            sandbox = sandboxes.isolation("require", read).sandbox
        confined = None if sandbox is None else sandbox.serving(reference)
        self._worker = WorkerProcess(wanted, timeout, confined, name=name)

    def about(self) -> dict[str, str]:
        """Which node this is, and what has to be the same everywhere."""
        return {"node": platform.node(), **_versions()}

    def ask(self, raw: bytes) -> tuple[bytes, bool, bool, bool]:
        """The answer to a message, and whether the worker has died, is spent, or hangs."""
        request, states = protocol.receive(io.BytesIO(raw), protocol.AnyRequest)  # type: ignore[arg-type, var-annotated]
        answer: protocol.AnyAnswer
        arrived: Sequence[State] = ()
        try:
            answer, arrived = self._worker.ask(request, states)
        except PolError as error:
            answer = protocol.Failed(type(error).__name__, str(error))
        out = io.BytesIO()
        protocol.send(out, answer, arrived)
        return out.getvalue(), self._worker.died, self._worker.spent, self._worker.silent


class RayWorker:
    """A worker on some node, as the pool sees it."""

    def __init__(
        self,
        environment: Environment,
        role: str,
        place: int,
        timeout: float,
        task: TaskReference,
        read: tuple[str, ...] | None,
    ) -> None:
        import msgspec
        import ray

        self.name = f"worker {place + 1}"
        self.died = self.spent = self.silent = False
        self._ray, self._place, self._known = ray, place, False
        cores = environment.threads if role == TAKING else 0
        actor = ray.remote(Host).options(
            num_cpus=cores, num_gpus=1 if environment.device.type == "cuda" else 0, max_restarts=0, max_concurrency=1
        )
        named = {"target": task.target, "settings": dict(task.settings), "arguments": task.arguments}
        shared = {name: os.environ[name] for name in ("POL_DATA", "PYTHONPATH") if name in os.environ}
        self._cores = cores
        self._actor: Any = actor.remote(
            msgspec.msgpack.encode(environment), timeout, msgspec.msgpack.encode(named), read, shared, self.name
        )

    def expect(self, request: protocol.AnyRequest) -> None:
        """It is not known yet whether a node has room for it."""

    def ask(self, request: protocol.AnyRequest, states: Sequence[State] = (), on_work: OnWork = idle) -> protocol.Reply:
        out = io.BytesIO()
        protocol.send(out, request, states)
        if not self._known:
            self._meet()
        raw, self.died, self.spent, self.silent = self._await(self._actor.ask.remote(out.getvalue()))
        answer, arrived = protocol.receive(io.BytesIO(raw), protocol.AnyAnswer)  # type: ignore[arg-type, var-annotated]
        if isinstance(answer, protocol.Failed):
            raise raised(answer)
        return answer, arrived

    def _meet(self) -> None:
        """Wait for the actor; WorkerError where no node has room, UsageError where it has other versions."""
        try:
            about = self._await(self._actor.about.remote(), START)
        except self._ray.exceptions.GetTimeoutError:
            raise UsageError(
                f"--ray: no node has {self._cores:g} free cores for {self.name} within {START:.0f} s; ask for fewer --workers"
            ) from None
        self.name = f"worker {self._place + 1} on {str(about['node'])[:100]}"
        for what, version in _versions().items():
            if about[what] != version:
                raise UsageError(
                    f"--ray: {self.name} has {what} {str(about[what])[:50]}, here it is {version}; install that there"
                )
        self._known = True

    def _await(self, reference: Any, timeout: float | None = None) -> Any:
        try:
            return self._ray.get(reference, timeout=timeout)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause
                if isinstance(cause, PolError)
                else WorkerError(f"{self.name}: {' '.join(str(cause).split())[:300]}")
            ) from None
        except self._ray.exceptions.RayActorError as error:
            self.died = True
            lines = " ".join(str(error).split())[:300]
            raise WorkerError(f"{self.name}: the replay worker ended unexpectedly ({lines})") from None

    def kill(self) -> None:
        if self._ray.is_initialized():
            self._ray.kill(self._actor)

    def close(self) -> None:
        self.kill()


def _versions() -> dict[str, str]:
    return dict(
        zip(
            _SAME,
            (__version__, ".".join(map(str, sys.version_info[:2])), importlib.metadata.version("torch")),
            strict=True,
        )
    )


__all__ = ["LOCAL", "RayWorker", "cluster"]
