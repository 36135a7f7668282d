"""A law of independent elements, such as an initialization draws a tensor's values from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A law of independent elements: normal (``scale`` is σ, perhaps truncated) or uniform (``scale`` is the half-width)."""

    label: str
    family: str
    center: float
    scale: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def numbers(self) -> tuple[str | float, ...]:
        """What makes two laws the same, whatever they are called."""
        return (self.family, *(float(f"{x:.12g}") for x in (self.center, self.scale, self.low, self.high)))

    def cdf(self, x: Array) -> Array:
        if self.family == "uniform":
            shares: Array = np.clip((x - self.low) / (self.high - self.low), 0.0, 1.0)
            return shares
        from scipy import special  # not at the top of the file: options are read before anything is tested

        values: Array = special.ndtr((x - self.center) / self.scale)
        if not self.truncated:
            return values
        below, above = special.ndtr([(self.low - self.center) / self.scale, (self.high - self.center) / self.scale])
        inside: Array = np.clip((values - below) / (above - below), 0.0, 1.0)
        return inside

    @property
    def truncated(self) -> bool:
        return self.family == "normal" and (math.isfinite(self.low) or math.isfinite(self.high))

    @property
    def symmetric(self) -> bool:
        """Then its tails are no heavier than the normal law's, which the tests of squared sums rely on."""
        return not self.truncated or math.isclose(self.center - self.low, self.high - self.center)

    @property
    def std(self) -> float:
        """The standard deviation of an element, truncation included."""
        if self.family == "uniform":
            return self.scale / math.sqrt(3)
        if not self.truncated:
            return self.scale
        cut = (self.high - self.center) / self.scale
        density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
        return self.scale * math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


def uniform(label: str, low: float, high: float) -> Law:
    return Law(label, "uniform", (low + high) / 2, (high - low) / 2, low, high)


def normal(label: str, std: float, mean: float = 0.0) -> Law:
    return Law(label, "normal", mean, std)


def truncated(label: str, std: float, cut: float) -> Law:
    """N(0, std²) cut at ±``cut``; a cut that no sample ever meets is none."""
    return Law(label, "normal", 0.0, std, -cut, cut) if cut < 8 * std else normal(label, std)
