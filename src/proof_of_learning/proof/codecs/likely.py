"""How likely a number that was rounded by a known noise is to be 0, by what a reader knows: an order, and no more than that.

``floor(x + noise)`` is 0 unless ``x`` reaches the nearer end of the unit that the noise leaves it; and how large ``x`` may be is told
by what lies in the same row and the same column of a momentum. Both are counted in eighths of an octave, from the bits of float32.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BITS = 15  # of the whole numbers that are added up: their sums are exact in any order
EIGHTHS = 20  # bits of a float32 below an eighth of an octave
MIDDLE = 160  # the place of the largest distance to an end, in a row and column of mean size
LAST = 255

Eighths = npt.NDArray[np.int32]
Places = npt.NDArray[np.uint8]


def places(noise: Tensor, beside: Tensor | None) -> Places:
    """For each number, from 0 to 255, a place in the order: the higher, the likelier it is 0. ``beside``: a momentum, in its shape."""
    nearer = torch.minimum(noise, 1.0 - noise)
    found: Eighths = (nearer.view(torch.int32) >> EIGHTHS).numpy()
    found = found + np.int32(MIDDLE - (126 << 3))  # the exponent of a half
    if beside is not None and beside.ndim:
        rows = found.reshape(len(beside), -1)
        rows -= _size(beside)
    return found.clip(0, LAST, out=found).astype(np.uint8)


def _size(beside: Tensor) -> Eighths:
    """By row and column, how far the product of their sums is above its mean; 0 where there is nothing, or no number."""
    table = beside.abs().reshape(len(beside), -1).numpy()
    largest = float(table.max(initial=0.0))
    if not largest or not math.isfinite(largest):
        return np.zeros((1, 1), dtype=np.int32)
    whole = np.rint(table * np.float64(2.0) ** (BITS - math.frexp(largest)[1]))
    rows, columns, both = whole.sum(1), whole.sum(0), whole.sum()
    offset = _eighths(np.array(whole.shape)).sum() - 2 * _eighths(both)
    return _eighths(rows)[:, None] + _eighths(columns)[None, :] + np.int32(offset)


def _eighths(sums: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> Eighths:
    """Of a number of at least 1, about eight times its logarithm."""
    return (np.maximum(sums, 1).astype(np.float32).view(np.int32) >> EIGHTHS) - np.int32(127 << 3)
