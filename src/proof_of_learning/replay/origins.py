"""Where an initial tensor's values come from.

Do two draws under unlike keys hold the same values in another order, or the same rows up to order and scale?

A factory that loads stolen weights and permutes and rescales hidden units by the key gives draws that correlate as little as honest
ones: W₂ relu(W₁ x) is the same function for P D W₁ and W₂ D⁻¹ Pᵀ, with any permutation P and any positive diagonal D. What such a
rearrangement keeps is, of each row, the sizes of its values over the row's norm as a set (a permutation of the layer before only
changes their order); of each column likewise; where both are rescaled, the logarithms of the sizes less the means of row and column;
and where nothing is, the values of the whole tensor. Independent draws of a continuous law share none of these.

Values that many elements have (zeros, signs, a quantised grid) are shared by honest draws too, and so are sets without information
that a task may shuffle by design (an identity, evenly spaced values). Only what is fine enough to tell draws apart counts.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.replay.protocol import TensorOrigin

CORRELATION_SIGMAS = 6.0  # two-key run: beyond this many standard errors, two draws are not independent
COLUMNS = 8  # fewer say too little about a row
ROWS = 256  # rows of the first draw whose like is looked for
LIKELY = 4096  # rows of the second that are looked at
ROUNDING = 8.0  # machine epsilons between a size and the same size, rescaled
SHARED = 0.25  # of the rows, or of the values: no honest pair shares as many by chance
VALUES = 64  # a tensor of no more different values is on a grid
SMALLEST = 16  # elements; the same values among fewer say little
TINY = 1e-300  # stands for zero, which has no logarithm
LOOK = 1 << 16  # elements in which values are counted
LARGE = 1 << 22  # elements from which on the last and dearest comparison is left out

Array = npt.NDArray[Any]


def origin(name: str, a: Tensor, b: Tensor | None, trainable: bool, linked: bool = False) -> TensorOrigin:
    """Classify one initial tensor by its values under two keys (see TensorOrigin).

    Independent draws have a correlation of 0 ± 1/√n once their means are removed.
    """
    floating, n, correlation = a.is_floating_point(), a.numel(), 0.0
    if linked:
        where = "linked"
    elif n == 0 or bool((a == a.flatten()[0]).all()):
        where = "constant"
    elif b is None or b.shape != a.shape or torch.equal(a, b):
        where = "fixed"  # also one whose name is another under another key: nothing shows that its values are
    else:
        correlation = correlated(a.flatten(), b.flatten())
        where = "partly-fixed" if floating and abs(correlation) > CORRELATION_SIGMAS / np.sqrt(n) else "drawn"
        where = "rearranged" if where == "drawn" and rearranged(a, b) else where
    return TensorOrigin(name, n, where, trainable, floating, correlation)


def correlated(x: Tensor, y: Tensor) -> float:
    """The correlation of two vectors' entries; in pieces, for in double precision the whole would take much memory."""
    xx = yy = xy = 0.0
    means = [float(v.sum(dtype=torch.float64)) / len(v) for v in (x, y)]
    for start in range(0, len(x), 1 << 18):
        a, b = (v[start : start + (1 << 18)].double() - mean for v, mean in zip((x, y), means, strict=True))
        xx, yy, xy = xx + float(torch.dot(a, a)), yy + float(torch.dot(b, b)), xy + float(torch.dot(a, b))
    length = math.sqrt(xx) * math.sqrt(yy)
    return xy / length if length > 0 else 0.0


def rearranged(a: Tensor, b: Tensor) -> bool:
    """Whether ``b`` holds much of what ``a`` (of the same shape) holds, in another order or in rescaled rows and columns."""
    if not a.is_floating_point() or a.shape != b.shape or a.dtype != b.dtype or a.numel() < SMALLEST:
        return False
    eps = max(float(torch.finfo(a.dtype).eps), float(torch.finfo(torch.float32).eps))
    x, y = (t.detach().cpu().reshape(len(t), -1) for t in (a, b))
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        return False
    first, second = x.numpy(), y.numpy()
    if _same_values(first.ravel(), second.ravel(), eps):
        return True
    if a.ndim < 2 or min(len(np.unique(np.abs(m.ravel()[:LOOK]))) for m in (first, second)) <= VALUES:
        return False
    rng = np.random.default_rng(zlib.crc32(second.tobytes()))  # follows from the second key, which nobody could expect
    tolerance = ROUNDING * eps
    if any(
        _same_rows(_row_scaled(m), _row_scaled(n), tolerance, rng) for m, n in ((first, second), (first.T, second.T))
    ):
        return True
    if a.numel() > LARGE or not (first.all() and second.all()):
        return False
    m, n = _both_scaled(first), _both_scaled(second)
    return _same_rows(m, n, tolerance, rng) or _same_rows(m.T, n.T, tolerance, rng)


def _same_values(x: Array, y: Array, eps: float) -> bool:
    first, second = np.unique(x), np.unique(y)
    if len(first) < SMALLEST or _evenly_spaced(first):
        return False
    shared = len(np.intersect1d(first, second, assume_unique=True)) / len(first)
    # Honest draws meet where the law has few places: as often as each meets itself (twice that, and room for chance), or where
    # the random numbers that it is made of have; those of single precision have 2^24.
    meeting = 2.0 - len(first) / len(x) - len(second) / len(y)
    return shared > SHARED + 4.0 * meeting + 2.0 * eps * len(y)


def _evenly_spaced(values: Array) -> bool:
    steps = np.diff(values)
    return bool(np.ptp(steps) <= 1e-3 * np.abs(steps).max())


def _row_scaled(matrix: Array) -> Array:
    """The sizes over the row's norm."""
    norms = np.sqrt(np.square(matrix, dtype=np.float64).sum(axis=1, keepdims=True))
    return np.abs(matrix) / np.where(norms > 0, norms, 1.0)


def _both_scaled(matrix: Array) -> Array:
    """The sizes over the geometric means of row and column, for a matrix without zeros."""
    logarithms = np.log(np.abs(matrix).astype(np.float64))
    logarithms -= logarithms.mean(axis=1, keepdims=True)
    logarithms -= logarithms.mean(axis=0, keepdims=True)
    sizes: Array = np.exp(logarithms)
    return sizes


def _same_rows(x: Array, y: Array, tolerance: float, rng: np.random.Generator) -> bool:
    """Whether many rows of ``x`` are, sorted, rows of ``y``. Sizes [rows, columns]; tolerance: relative."""
    if len(x) < 2 or x.shape[1] < COLUMNS:
        return False
    left = _sorted(x[rng.choice(len(x), min(len(x), ROWS), replace=False)])
    # A row's like has its largest value: only such rows need be sorted.
    largest = np.log(np.maximum(y.max(axis=1), TINY))
    order = np.argsort(largest)
    likely = np.unique(np.concatenate([order[a:b] for a, b in _near(left[:, -1], largest[order], tolerance)]))
    if len(likely) > LIKELY:
        likely = rng.choice(likely, LIKELY, replace=False)
    right = _sorted(y[likely])
    right = right[np.argsort(right[:, -1])]
    found = sum(
        _fine(row) and bool((np.abs(right[a:b] - row).max(axis=1, initial=0.0) <= tolerance).any())
        for row, (a, b) in zip(left, _near(left[:, -1], right[:, -1], tolerance), strict=True)
        if b > a
    )
    return found > max(1.0, SHARED * len(left))


def _sorted(rows: Array) -> Array:
    """The logarithms of sizes, sorted in each row."""
    return np.sort(np.log(np.maximum(rows, TINY)), axis=1)


def _near(values: Array, among: Array, tolerance: float) -> list[tuple[int, int]]:
    """For each of the values, where in a sorted vector those within the tolerance lie."""
    low, high = np.searchsorted(among, values - tolerance), np.searchsorted(among, values + tolerance, side="right")
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _fine(row: Array) -> bool:
    """Whether a sorted row has enough values of its own to be told from others: not zeros, signs or a spike among them."""
    return int((np.diff(row) > 1e-6).sum()) >= max(COLUMNS, len(row) // 2) - 1
