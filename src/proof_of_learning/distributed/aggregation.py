"""From the updates of a round to one: mean, and the robust rules of the literature that it is compared with.

All of it is additions, comparisons and roundings of float64, element by element in the order of the slots, so that the bits
are the same on any machine. Updates are rows of float32, all of one length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import UsageError

Vector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

RULES = ("mean", "median", "trimmed-mean", "krum", "centred-clipping")
ITERATIONS = 3  # of centred clipping


def aggregate(rule: str, updates: Sequence[Vector], *, clip: float | None = None, dishonest: int = 0) -> Vector:
    """One update of the length of each.

    rule: one of RULES. clip: the largest l2 norm that an update counts with. dishonest: how many are assumed to be false, by rules
    that assume a number. Raises UsageError where there are too few updates for that.
    """
    check(rule, len(updates), dishonest)
    rows = [update.astype(np.float64) if clip is None else clipped(update, clip) for update in updates]
    found = {"mean": _mean, "median": _median, "centred-clipping": _centred}.get(rule)
    if found is not None:
        return found(rows).astype(np.float32)
    return (_trimmed if rule == "trimmed-mean" else _krum)(rows, dishonest).astype(np.float32)


def check(rule: str, count: int, dishonest: int) -> None:
    """Raise UsageError for a rule that does not exist, or that needs more than ``count`` updates."""
    if rule not in RULES:
        raise UsageError(f"there is no aggregation {rule[:40]!r}; choose one of {', '.join(RULES)}")
    least = {"trimmed-mean": 2 * dishonest + 1, "krum": dishonest + 3}.get(rule, 1)
    if count < least:
        raise UsageError(f"{rule} against {dishonest} dishonest updates needs {least} of them, and there are {count}")


def clipped(update: Vector, norm: float) -> Wide:
    """The update, scaled down where its l2 norm is above ``norm``."""
    wide = update.astype(np.float64)
    length = np.sqrt(total(wide * wide))
    return wide if length <= norm else wide * (norm / length)


def total(values: Wide) -> float:
    """The sum by halves, whose order depends on the length alone. (NumPy's own depends on the processor.)"""
    while len(values) > 1:
        half = (len(values) + 1) // 2
        folded = values[:half].copy()
        folded[: len(values) - half] += values[half:]
        values = folded
    return float(values[0]) if len(values) else 0.0


def _mean(rows: Sequence[Wide]) -> Wide:
    found = rows[0].copy()
    for row in rows[1:]:
        found += row
    return found / len(rows)


def _median(rows: Sequence[Wide]) -> Wide:
    ordered, middle = np.sort(np.stack(rows), axis=0), len(rows) // 2
    found: Wide = ordered[middle] if len(rows) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return found


def _trimmed(rows: Sequence[Wide], dishonest: int) -> Wide:
    """Yin et al., ICML 2018: of each coordinate, without the largest and smallest ``dishonest``."""
    return _mean(np.sort(np.stack(rows), axis=0)[dishonest : len(rows) - dishonest])  # type: ignore[arg-type]


def _krum(rows: Sequence[Wide], dishonest: int) -> Wide:
    """Blanchard et al., NeurIPS 2017: the one that is nearest to its n - f - 2 nearest."""
    apart = np.zeros((len(rows), len(rows)))
    for i, one in enumerate(rows):
        for j in range(i):
            apart[i, j] = apart[j, i] = total((one - rows[j]) ** 2)
    near = len(rows) - dishonest - 2
    scores = [sum(sorted(np.delete(apart[i], i).tolist())[:near]) for i in range(len(rows))]
    best: int = min(range(len(rows)), key=lambda i: (not np.isfinite(scores[i]), scores[i]))
    return rows[best]


def _centred(rows: Sequence[Wide]) -> Wide:
    """Karimireddy et al., ICML 2021. Rounds keep no memory, so it starts from the median, and clips at the median distance to it."""
    centre = _median(rows)
    for _ in range(ITERATIONS):
        away = [row - centre for row in rows]
        lengths = [np.sqrt(total(part * part)) for part in away]
        radius = sorted(lengths)[len(lengths) // 2]
        centre = centre + _mean(
            [part if n <= radius else part * (radius / n) for part, n in zip(away, lengths, strict=True)]
        )
    return centre
