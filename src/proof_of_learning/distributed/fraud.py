"""Fraud proofs: that a worker signed an update that is not what the coordinator signed that they should compute.

Anybody who has the task and its data can check one, and need trust neither of the two: the worker's signature is on digests of an
assignment, the assignment has the digests of start and samples, and the slice is computed again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proof_of_learning.attestation.signatures import PublicKey, to_pem
from proof_of_learning.distributed import messages
from proof_of_learning.distributed.events import Assignment, Commitment
from proof_of_learning.distributed.rounds import Slices, samples_digest, weights_digest
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.proof import files
from proof_of_learning.task import Task, TaskReference, load_task

MAX_START = 1 << 34  # bytes of weights


@dataclass(frozen=True)
class FraudProof:
    """run: what was agreed. assignment: signed by the coordinator. commitment: by the worker, whose key is ``worker``."""

    run: bytes
    assignment: bytes
    commitment: bytes
    worker: PublicKey
    start: bytes


@dataclass(frozen=True)
class Finding:
    """Whether a fraud proof proves a lie; if not, why not."""

    proven: bool
    why: str
    worker: str


_FILES = {
    "run": "run.json",
    "assignment": "assignment.dsse.json",
    "commitment": "commitment.dsse.json",
    "start": "start.f32",
}


_KEY = "worker.pub.pem"


def complete(folder: Path) -> bool:
    """Whether a fraud proof lies there whole."""
    return (folder / _KEY).exists()


def save(folder: Path, proof: FraudProof) -> None:
    with files.writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    for name, file in _FILES.items():
        files.write_atomic(folder / file, [getattr(proof, name)], durable=False)
    files.write_atomic(folder / _KEY, [to_pem(proof.worker)], durable=True)


def load(folder: str | os.PathLike[str]) -> FraudProof:
    """Raises FormatError or UsageError where it cannot be read."""
    from proof_of_learning.attestation.signatures import load_public

    place, found = Path(folder), {}
    for name, file in _FILES.items():
        limit = MAX_START if name == "start" else messages.MAX_MESSAGE
        found[name] = bytes(files.read_bounded(place / file, limit))
    return FraudProof(worker=load_public(place / _KEY), **found)


def check(
    proof: FraudProof, task: Task | str | TaskReference, coordinator: PublicKey, slices: Slices | None = None
) -> Finding:
    """Replay the slice. ``task``: the verifier's own copy; ``coordinator``: whose runs these are. FormatError for what cannot be
    read.

    Lies are proven only where workers are held to bits; with native arithmetic the checker must have the run's numeric environment.
    """
    run = messages.read_run(proof.run)
    worker = proof.worker.digest

    def no(why: str) -> Finding:
        return Finding(False, why, worker)

    if messages.public_key(run.coordinator, "the coordinator's key") != coordinator:
        return no("the run is another coordinator's")
    asked = messages.opened(proof.assignment, Assignment, coordinator, "the assignment")
    told = messages.opened(proof.commitment, Commitment, proof.worker, "the commitment")
    if not run.bits:
        return no(
            "workers of this run are not held to bits (calibrated limits, or no numeric environment that is fixed): nothing is proven"
        )
    if asked.run != run.digest() or asked.worker != worker or told.assignment != asked.digest():
        return no("run, assignment and commitment do not belong together")
    if len(proof.start) != 4 * run.size or weights_digest(np.frombuffer(proof.start, dtype="<f4")) != asked.start:
        return no("the start is not the one of the assignment")
    if not np.isfinite(np.frombuffer(proof.start, dtype="<f4")).all():
        return no("the start holds numbers that are not finite, from which no bits follow")
    task = load_task(task)
    with randomness.preserved(), environments.recording("cpu") as environment:
        if run.environment is not None and environment.digest() != run.environment:
            return no(
                "the numeric environment here is another than that of the run, so the bits may differ; nothing is known"
            )
        slices = slices or Slices(task, bytes.fromhex(run.key), run.arithmetic)
        if slices.identity != (run.task, run.sources, run.data):
            return no("the run is of another task, or of other data, than the ones here")
        if not (0 <= asked.round < run.rules.rounds and 0 <= asked.slot < run.rules.slots):
            return no("there is no such slice")
        if samples_digest(slices.samples(asked.round, asked.slot)) != asked.samples:
            return no(
                "the assignment names other samples than the run has there, so an honest worker would not have signed"
            )
        made = slices.compute(asked.round, asked.slot, np.frombuffer(proof.start, dtype="<f4").astype(np.float32))
    # Which NaN comes of an operation depends on the order of its operands in the machine.
    if not (np.isfinite(made.update).all() and np.isfinite(made.loss)):
        return no("the slice has no finite result, so that its bits are nobody's lie")
    if messages.result_digest(messages.pack(made)) == told.result and list(made.steps) == told.steps:
        return no("the worker committed to what the replay gives")
    return Finding(True, f"slice {asked.slot} of round {asked.round} is not what the worker signed", worker)
