"""Schedules that follow training: schedulers whose ``step`` has to be given a metric, and the metric of the standard step."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from proof_of_learning.errors import TaskError

_METRICS = ("metric", "loss")  # in the name of what ``step`` has to be given


def driven_by_metric(name: str, scheduler: Any) -> bool:
    """Whether ``step`` has to be given a metric, as that of ``ReduceLROnPlateau``. TaskError where it needs anything else."""
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (AttributeError, TypeError, ValueError):  # a signature that cannot be read
        return False
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed and not (len(needed) == 1 and any(word in needed[0].lower() for word in _METRICS)):
        raise TaskError(
            f"the scheduler {name!r} cannot be stepped without {', '.join(needed)}; use one whose step() takes nothing or a metric, "
            "or make it a further part and step it in a custom step"
        )
    return bool(needed)


def epoch_means(losses: Iterable[float], steps_per_epoch: int) -> tuple[float, ...]:
    """The mean loss of each whole epoch, with the very bits that the standard step gives a scheduler."""
    means, total = [], 0.0
    for count, loss in enumerate(losses, 1):
        total += loss
        if count % steps_per_epoch == 0:
            means.append(total / steps_per_epoch)
            total = 0.0
    return tuple(means)
