"""What the workers of a verification are told of the run, from the proof and from what the verifier named."""

from __future__ import annotations

from pathlib import Path

from proof_of_learning import canonical
from proof_of_learning.data.opened import Samples
from proof_of_learning.errors import UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.pool import Job
from proof_of_learning.state.state import State
from proof_of_learning.task import SEALED, Task, TaskReference


def job(proof: Proof, task: Task | TaskReference, start: Path | None, opened: Samples | None) -> Job:
    """``start``: the proof whose final weights the run starts from. ``opened``: samples that stand for the task's data set.

    Raises UsageError where what was named does not go with the proof.
    """
    seed = proof.header.randomness.seed
    named = task if isinstance(task, TaskReference) else task.reference
    arguments = tuple(proof.header.program.arguments)  # of a recorded script
    cut = [argument for argument in arguments if "…/" in argument]
    if named is not None and named.arguments is None and cut:
        raise UsageError(
            f"the script was recorded with the path {cut[0]!r}, whose folder a proof does not hold; call it with your own, "
            "behind the task: -- ARGUMENTS"
        )
    sealed, program = _sealed(proof, named)
    return Job(
        task, proof.header.randomness.key, None if seed is None else int(seed), base=None if start is None else _final_model(start),
        arguments=arguments, arithmetic=proof.header.arithmetic, samples=None if opened is None else proof.header.data.samples,
        opened=None if opened is None else opened.state(), sealed=sealed, program=program,
        derived=proof.header.program.kind == "script" and proof.header.randomness.mode == "derived",
        ranks=proof.header.ranks,
    )  # fmt: skip


def _sealed(proof: Proof, named: TaskReference | None) -> tuple[bool, bytes]:
    """Whether the run is replayed as a sealed program, and that program, where the verifier takes it from the proof."""
    sealed = proof.header.program.sealed is not None
    if named is None or named.target != SEALED:
        return sealed, b""
    if not sealed:
        raise UsageError("the proof has no sealed program (`pol prove --seal-program`); name the task instead (--task)")
    return True, canonical.encode(proof.header.task.description["program"])


def _final_model(path: Path) -> State:
    parent = Proof.open(path)
    return parent.state(parent.segments[-1].state).part("model")
