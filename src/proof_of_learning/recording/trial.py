"""Trying out, on objects that never train, what would otherwise fail after all the training."""

from __future__ import annotations

import torch

from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import TaskError, TrainingError
from proof_of_learning.recording.checkpoint import finite
from proof_of_learning.training.steps import Session, derived_feed


def try_evaluation(trial: Session) -> None:
    """Evaluate an untrained model: what fails here would fail after all the training. Raises TaskError or TrainingError."""
    try:
        finite(trial.evaluate() or {})
    except (TaskError, TrainingError) as error:
        raise type(error)(f"{error}; it was tried on the untrained model, nothing was recorded") from error


def try_gradients(trial: Session, data: Dataset) -> None:
    """Where a custom step leaves gradients behind, see that the next one does not build on them: a state holds none.

    The trial takes a step, and another one twice: with what the first left, and from its state alone. Raises TaskError.
    """
    if trial.task.step is None or trial.task.total_steps(len(data)) < 2:
        return

    def gradients() -> list[torch.Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in trial.model.parameters()]

    feed, order = derived_feed(trial.task, data, trial.key, trial.device)
    list(trial.run(1, feed, order))
    if not any(gradient is not None and bool(gradient.any()) for gradient in gradients()):
        return
    middle = trial.capture()
    list(trial.run(2, feed, order))
    kept = gradients()
    trial.restore(middle)
    list(trial.run(2, feed, order))
    if not all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(kept, gradients(), strict=True)
    ):
        raise TaskError(
            "a step adds to gradients that the step before it left, which no state holds; let one step take all batches of an "
            "update (`accumulate`), or clear the gradients when a step begins or ends"
        )
