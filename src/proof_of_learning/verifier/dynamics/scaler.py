"""The history of a gradient scaler (``torch.amp.GradScaler``): which states can follow from which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_NUMBERS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
_TOLERANCE = 1e-4  # of the scale, which is kept in single precision and multiplied step by step


def scaler_consistent(before: Mapping[str, Any], after: Mapping[str, Any], steps: int) -> str | None:
    """None if a scaler in the state ``before`` can be in the state ``after`` some steps later, else a sentence that says why not.

    A step grows the scale at most once, after ``growth_interval`` updates without overflow, or backs off once. Steps that do not
    update the scaler are allowed. An empty state is that of a disabled scaler.
    """
    if not before and not after:
        return None
    values = []
    for name, state in (("before", before), ("after", after)):
        missing = [key for key in _NUMBERS if key not in state]
        if missing:
            return f"the gradient scaler's state {name} the segment has no {missing[0]!r}"
        numbers = [_number(state[key]) for key in _NUMBERS]
        for key, number in zip(_NUMBERS, numbers, strict=True):
            if not math.isfinite(number):
                return f"the gradient scaler's {key} {name} the segment is not a finite number"
        scale, growth, backoff, interval, tracker = numbers
        if not scale > 0:
            return f"the gradient scaler's scale {name} the segment is {scale:g}, not positive"
        if not (growth > 1 and 0 < backoff < 1 and interval >= 1):
            return f"the gradient scaler's settings {name} the segment are none that a scaler can have"
        if not 0 <= tracker < interval or tracker != int(tracker) or interval != int(interval):
            return (
                f"the gradient scaler's tracker {name} the segment is {tracker:g}, outside its interval of {interval:g}"
            )
        values.append(numbers)
    (scale, *settings, tracker), (scale_after, *settings_after, tracker_after) = values
    if settings != settings_after:
        return "the gradient scaler's factors or interval change"
    growth, backoff, interval = settings
    if _reachable(scale, tracker, scale_after, tracker_after, growth, backoff, int(interval), steps):
        return None
    return (
        f"the gradient scaler goes from a scale of {scale:g} (tracker {tracker:g}) to {scale_after:g} (tracker {tracker_after:g}), "
        f"which {steps} updates cannot do"
    )


def _reachable(
    scale: float, tracker: float, goal: float, tracked: float, growth: float, backoff: float, interval: int, steps: int
) -> bool:
    if goal == scale and tracker <= tracked <= tracker + steps:
        return True
    largest = float(np.finfo(np.float32).max)
    # Fewest updates: growing first, while the tracker is ahead, then backing off, once an update.
    peak, needed = scale, 0.0
    for grown in range(steps // interval + 2):
        if grown:
            needed += interval - (tracker if grown == 1 else 0.0)
            if peak * growth <= largest:  # a scale that would overflow stays, and only the tracker starts again
                peak *= growth
        if needed + tracked > steps:
            return False
        backed = round((math.log(goal) - math.log(peak)) / math.log(backoff))
        close = backed >= 0 and abs(peak * backoff**backed - goal) <= _TOLERANCE * goal
        if close and grown + backed and needed + backed + tracked <= steps:
            return True
    return False


def _number(value: Any) -> float:
    if isinstance(value, (bool, str, bytes)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
