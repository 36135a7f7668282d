"""How what a verifier decided becomes workers: whether and how they are confined, and the replayer that asks them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from proof_of_learning.data.opened import Samples
from proof_of_learning.errors import UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import sandbox as sandboxes
from proof_of_learning.replay.pool import LocalPool, MakePool
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.sandbox import Isolation
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.verifier.options import Options, Runtime


def isolated(task: Task | TaskReference | None, runtime: Runtime, pool: MakePool | None = None) -> Isolation:
    """How the task's code will be confined; an object is replayed in this process. UsageError where options make no sense together."""
    if runtime.double_check is not None and pool is None:
        raise UsageError("--double-check is for workers on machines that are not yours; name them (--ray)")
    in_process = isinstance(task, Task) and task.reference is None
    return sandboxes.isolation(runtime.sandbox, runtime.allow_read, in_process=in_process)


def replayer(
    proof: Proof,
    task: Task | TaskReference,
    options: Options,
    isolation: Isolation,
    parent: Path | None = None,
    pool: MakePool | None = None,
    opened: Samples | None = None,
) -> Replayer:
    """A replayer for one proof. parent: the proof whose final weights the run starts from. pool: where workers come from, if not from
    this machine. opened: samples that stand for the data.
    """
    runtime = options.runtime
    return Replayer(
        proof,
        task,
        runtime.timeout,
        parent,
        isolation.sandbox,
        options.comparison.reproduce,
        pool or partial(LocalPool, workers=runtime.workers),
        opened,
        runtime.double_check,
    )
