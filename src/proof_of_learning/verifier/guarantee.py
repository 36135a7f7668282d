"""What random draws guarantee, computed exactly for draws without replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MISS_PROBABILITY = 0.01
MISSED_IN_PUBLIC = 1e-9  # where the draw is public: a prover can seal and stamp again until one suits
FORGED_FRACTION = 0.10  # of the segments, what the default number of uniform draws is chosen for

Weights = npt.NDArray[np.float64]


def uniform_miss(total: int, forged: int, draws: int) -> float:
    """Probability that ``draws`` of ``total`` segments, uniform without replacement, hit none of ``forged``: C(N-m, n) / C(N, n)."""
    if draws > total - forged:
        return 0.0
    return math.exp(sum(math.log((total - forged - j) / (total - j)) for j in range(draws)))


def forgeable_segments(total: int, draws: int, miss: float = MISS_PROBABILITY) -> int:
    """The largest number of forged segments that escapes with a probability above ``miss``."""
    low, high = 0, total
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if uniform_miss(total, middle, draws) > miss else (low, middle - 1)
    return low


def uniform_draws_needed(total: int, fraction: float = FORGED_FRACTION, miss: float = MISS_PROBABILITY) -> int:
    """The fewest draws by which forging more than ``fraction`` of the segments is missed with at most ``miss``."""
    forged = math.floor(fraction * total) + 1
    return next((n for n in range(total + 1) if uniform_miss(total, forged, n) <= miss), total)


def progress_miss(weights: Weights, share: float, draws: int) -> float:
    """A bound on the probability that successive draws proportional to ``weights``, without replacement, miss a set of that share.

    Each draw misses the set with probability 1 - share / (weight not yet drawn); the bound takes the smallest weights
    as drawn, the best case for a forger. It is exact for equal weights (then it is :func:`uniform_miss`).
    """
    ordered = np.sort(weights[weights > 0])
    if draws >= len(ordered):
        return 0.0
    drawn = np.concatenate([[0.0], np.cumsum(ordered)[: max(draws - 1, 0)]])[:draws] / ordered.sum()
    factors = (1.0 - share - drawn) / (1.0 - drawn)
    return 0.0 if (factors <= 0).any() else float(np.prod(factors))


def unexplained_progress(weights: Weights, draws: int, miss: float = MISS_PROBABILITY) -> float:
    """The largest share of progress whose forgery escapes with a probability above ``miss`` (to 1e-6)."""
    if not (weights > 0).any() or progress_miss(weights, 0.0, draws) <= miss:
        return 0.0
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if progress_miss(weights, middle, draws) > miss else (low, middle)
    return low


def progress_draws_needed(weights: Weights, fraction: float = FORGED_FRACTION, miss: float = MISS_PROBABILITY) -> int:
    """The fewest draws by which forging more than ``fraction`` of the progress is missed with at most ``miss``."""
    low, high = 0, int((weights > 0).sum())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if progress_miss(weights, fraction, middle) <= miss else (middle + 1, high)
    return low


def draw_uniform(candidates: Sequence[int], draws: int, keys: Weights) -> list[int]:
    """The ``draws`` candidates with the smallest of their independent uniform ``keys``."""
    order = np.argsort(keys[: len(candidates)], kind="stable")
    return [candidates[i] for i in order[:draws]]


def draw_weighted(weights: Weights, draws: int, keys: Weights) -> list[int]:
    """Successive draws in proportion to ``weights`` without replacement.

    Exponential races: the smallest of -ln(u)/w come first in just that distribution (Efraimidis and Spirakis, 2006).
    """
    positive = np.flatnonzero(weights > 0)
    times = -np.log1p(-keys[positive]) / weights[positive]
    return [int(positive[i]) for i in np.argsort(times, kind="stable")[:draws]]
