"""Where a script's settings change most unlike they do elsewhere.

What a script's schedule gives cannot be computed without its loop, and a replay takes settings from the state that it starts from.
A rate falsified in one segment would hold from there on. So the segments are found in which settings change in a way that is rare,
or most unlike their neighbours' changes, and these are replayed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from proof_of_learning.state.state import decode_settings
from proof_of_learning.verifier.scalars import MAX_PATHS, RARE_SHARE, first

FLOOR = 1e-9  # of a change: below it is rounding
NEIGHBOURS = 2


def unusual(settings: Sequence[bytes | None], most: int) -> dict[int, str]:
    """Up to ``most`` segments, with the name of what changes. ``settings``: of every state, in order.

    What hardly ever changes comes first; then the most unusual change of each setting, the second of each, and so on, so that no
    setting that is erratic by itself hides another.
    """
    found: list[tuple[float, int, str]] = []
    for path, values in _series(settings).items():
        changes = [_change(a, b) for a, b in itertools.pairwise(values)]
        seldom = sum(change != 0.0 for change in changes) <= max(1, RARE_SHARE * len(changes))
        odd: list[tuple[float, int]] = []
        for index, change in enumerate(changes):
            if math.isnan(change):
                continue
            around = sorted(
                c for c in changes[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1] if not math.isnan(c)
            )
            apart = abs(change - around[len(around) // 2])
            if apart > FLOOR or (seldom and change != 0.0):
                odd.append((-apart, index))
        late = 0 if seldom else len(settings)
        found += [(late + rank, index, path) for rank, (_, index) in enumerate(sorted(odd))]
    return first(found, most)


def _series(settings: Sequence[bytes | None]) -> dict[str, list[Any]]:
    series: dict[str, list[Any]] = {}
    kept: tuple[bytes | None, dict[str, Any]] = (None, {})
    for position, raw in enumerate(settings):
        if raw is not None and raw != kept[0]:
            kept = raw, dict(_leaves(decode_settings(raw), ""))
        now = kept[1] if raw is not None else {}
        for path, value in now.items():
            if path in series or len(series) < MAX_PATHS:
                series.setdefault(path, [None] * position).append(value)
        for values in series.values():
            if len(values) <= position:
                values.append(None)
    return series


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{str(key)[:80]}")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _leaves(item, f"{path}/{position}")
    else:
        yield path, value


def _change(before: Any, after: Any) -> float:
    """How far a value moves: numbers by ratio where both are positive, else by difference; anything else 0 or 1."""
    if before is None and after is None:
        return 0.0
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (before, after))
    if not plain:
        return float(before != after)
    if before == after:
        return 0.0
    # Counters grow by a step's worth; a ratio of theirs says nothing.
    if isinstance(before, int) and isinstance(after, int):
        return float(max(-1e300, min(1e300, float(after - before) if abs(after - before) < 10**300 else 1e300)))
    if not (math.isfinite(before) and math.isfinite(after)):
        return 1e300
    if before > 0 and after > 0:
        return math.log(after) - math.log(before)
    return float(after) - float(before)
