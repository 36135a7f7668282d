"""Tests of the hypothesis that a law drew the elements of one tensor independently."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from proof_of_learning.verifier.initialization.laws import Array, Law

EXACT = 1000  # up to this many elements the Kolmogorov-Smirnov p-value is exact; see Sample.marginal
GRID = 1 << 16  # order statistics that Kolmogorov-Smirnov looks at; see Sample.deviation
SMALL_SIDE = 512  # up to this many rows or columns the spectrum is computed exactly
CHUNK = 1 << 14
REDUCED = 1e-5  # machine epsilon from which on a dtype counts as reduced precision (float16, bfloat16 …)
SPECTRUM_SIDE = 8  # fewer rows or columns are too far from the Tracy-Widom limit


class Sample:
    """The elements of one tensor, and the tests of the hypothesis that a law drew them independently."""

    def __init__(self, values: Tensor, rounding: float) -> None:
        flat = values.reshape(-1).numpy()
        self._matrix = values.reshape(len(values), -1) if values.ndim >= 2 else None
        self._sorted = np.sort(flat)
        self._sums = float(flat.sum(dtype=np.float64)), float(np.square(flat, dtype=np.float64).sum())
        self._coarse, self._fine = self._quantiles(256), self._quantiles(GRID)
        self._rounding = rounding
        self._tops: dict[float, float] = {}

    def _quantiles(self, count: int) -> tuple[npt.NDArray[np.int64], Array]:
        n = len(self._sorted)
        ranks = np.linspace(0, n - 1, min(n, count)).astype(np.int64)
        return ranks, self._sorted[ranks].astype(np.float64)

    def tests(self, law: Law) -> dict[str, Callable[[Law], float]]:
        """The tests that apply, cheapest first."""
        found: dict[str, Callable[[Law], float]] = {"marginal": lambda law: self.marginal(self.deviation(law))}
        if not law.symmetric:
            return found
        # Eleven bits and less shift means and variances by more than a sum over many elements forgives.
        precise = self._rounding < REDUCED
        if precise:
            found["size"] = self.size
        if self._matrix is not None:
            if precise and min(self._matrix.shape) >= 2:
                found["sums"] = self.sums
            if min(self._matrix.shape) >= SPECTRUM_SIDE:
                found["spectrum"] = self.spectrum
        return found

    def possible(self, law: Law) -> bool:
        slack = 4 * self._rounding * max(abs(law.low), abs(law.high)) if math.isfinite(law.low) else 0.0
        return bool(law.low - slack <= self._sorted[0] and self._sorted[-1] <= law.high + slack)

    def deviation(self, law: Law, coarse: bool = False) -> float:
        """The Kolmogorov-Smirnov statistic over all elements.

        It is evaluated at up to ``GRID`` evenly spaced order statistics. With more elements it comes out at most
        1/GRID too small, never too large; ``coarse`` gives a quick lower bound.
        """
        n = len(self._sorted)
        ranks, values = self._coarse if coarse else self._fine
        below = law.cdf(values)
        found = max(float(((ranks + 1) / n - below).max()), float((below - ranks / n).max()))
        # Rounding to few bits moves every value by up to a step, and the distribution function with it.
        return max(0.0, found - (self._rounding if self._rounding >= REDUCED else 0.0))

    def marginal(self, deviation: float, quick: bool = False) -> float:
        """The probability of at least this deviation: exact for small samples, else (or ``quick``) a bound from above.

        The bound of Dvoretzky, Kiefer, Wolfowitz and Massart (1990) holds for every n and is within 8 % of the exact
        p-value in the range that decides, whose computation would take seconds.
        """
        n = len(self._sorted)
        bound = min(1.0, 2 * math.exp(-2 * n * deviation**2))
        return bound if quick or n > EXACT else float(stats.kstwo.sf(deviation, n))

    def size(self, law: Law) -> float:
        n, (total, squares) = len(self._sorted), self._sums
        statistic = (squares - 2 * law.center * total + n * law.center**2) / law.std**2
        return min(1.0, 2 * min(float(stats.chi2.sf(statistic, n)), float(stats.chi2.cdf(statistic, n))))

    def sums(self, law: Law) -> float:
        assert self._matrix is not None
        rows, columns = self._matrix.shape
        sums = self._matrix.sum(dim=1, dtype=torch.float64).numpy() - columns * law.center
        return float(stats.chi2.sf(float(np.square(sums).sum()) / (columns * law.std**2), rows))

    def spectrum(self, law: Law) -> float:
        assert self._matrix is not None
        if law.center not in self._tops:
            self._tops[law.center] = largest_square(self._matrix - law.center if law.center else self._matrix)
        return spectrum_p_value(self._tops[law.center] / law.std**2, *self._matrix.shape)


def spectrum_p_value(square: float, rows: int, columns: int) -> float:
    """A bound on the probability that the largest singular value of a standard normal matrix has at least this square.

    The law of a small matrix has a heavier far tail than its limit; the exponent makes up for it from ``SPECTRUM_SIDE``
    rows and columns on, down to 1e-6 (``experiments/initialization.py`` measures it).
    """
    a, b = math.sqrt(rows - 0.5), math.sqrt(columns - 0.5)
    scale = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(tracy_widom((square - (a + b) ** 2) / scale) ** 0.85)


def tracy_widom(value: float) -> float:
    """The upper tail of the Tracy-Widom law (β = 1), approximated by a shifted gamma law (Chiani, 2014)."""
    return float(stats.gamma.sf(value + 9.84801, 46.446, scale=0.186054))


def largest_square(matrix: Tensor) -> float:
    """The square of the largest singular value; for large matrices a bound from below, which spares honest ones."""
    unit = float(matrix.abs().max()) or 1.0  # products of extreme values would overflow
    wide = (matrix if len(matrix) <= matrix.shape[1] else matrix.T) / unit
    side = len(wide)
    if side <= SMALL_SIDE:
        gram = torch.zeros(side, side, dtype=torch.float64)
        for start in range(0, wide.shape[1], CHUNK):
            part = wide[:, start : start + CHUNK].double()
            gram += part @ part.T
        return float(torch.linalg.eigvalsh(gram)[-1]) * unit**2

    def product(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        image: npt.NDArray[Any] = (wide @ (wide.T @ torch.from_numpy(vector.ravel()))).numpy()
        return image

    start_vector = np.random.default_rng(0).standard_normal(side).astype(wide.numpy().dtype)
    operator = LinearOperator((side, side), matvec=product, dtype=start_vector.dtype)
    try:
        found = eigsh(operator, k=1, v0=start_vector, tol=1e-4, maxiter=100, return_eigenvectors=False)[0]
    except ArpackNoConvergence:
        found = start_vector @ product(start_vector) / (start_vector @ start_vector)
    return float(found) * unit**2
