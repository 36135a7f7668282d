"""``prove``: train a task while recording a proof."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from proof_of_learning.data.commit import check_deterministic, commit
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.reader import Proof
from proof_of_learning.recorder import Recorder, make_header
from proof_of_learning.task import Task, TaskReference, load_task, task_code
from proof_of_learning.training import environment as environments
from proof_of_learning.training import randomness
from proof_of_learning.training.steps import Session, derived_feed


@dataclass(frozen=True)
class Recording:
    """A finished recording: where it lies, its root, the trained model and what it achieves."""

    path: Path
    root: str
    model: torch.nn.Module
    steps: int
    interval: int
    evaluation: dict[str, float] | None


def prove(
    task: Task | str | TaskReference,
    path: str | os.PathLike[str],
    *,
    interval: int | None = None,
    device: str = "cpu",
    portable: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    progress: ProgressCallback = silent,
) -> Recording:
    """Train ``task`` and write its proof to ``path``; go on where an interrupted call stopped.

    interval: steps between checkpoints, k (default: about a thousand segments a run).
    device: ``cpu`` or ``cuda``; the deterministic switches are set while training and recorded.
    portable: pin threads and code paths to a level that other machines share (slower by about a tenth).
    seed: replaces the task's seed.
    Raises PolError subclasses, each with one line that says what to do.
    """
    task = load_task(task)
    if seed is not None:
        task = replace(task, seed=seed)
    environments.pin_process(portable=portable, device=device, threads=threads)
    if portable and threads is None:
        threads = environments.PORTABLE_THREADS
    with randomness.preserved(), environments.recording(device, threads) as environment:
        with task_code("loading the data"):
            data = task.data()
            total = len(data)
            check_deterministic(data)
            commitment = commit(data, progress=lambda done: progress("hashing the data", done, total))
        progress("hashing the data", total, total)
        session = Session(task, randomness.key_from_seed(task.seed), device)
        header = make_header(task, session, data, interval=interval, data_commitment=commitment)
        steps = header.training.steps
        with Recorder(path, header, session.parts, environment) as recorder:
            if recorder.complete:
                return _finished(session, path)
            feed, order = derived_feed(task, data, session.key, device)
            progress("training", recorder.steps_done, steps)
            for result in session.run(steps, feed, order):
                recorder.step(result.loss, result.rates)
                progress("training", recorder.steps_done, steps)
            evaluation = session.evaluate()
            root = recorder.close(evaluation)
    return Recording(Path(path), root, session.model, steps, header.training.interval, evaluation)


def _finished(session: Session, path: str | os.PathLike[str]) -> Recording:
    proof = Proof.open(path)
    session.restore(proof.state(proof.segments[-1].state))
    training = proof.header.training
    return Recording(Path(path), proof.root, session.model, training.steps, training.interval, proof.end.evaluation)
