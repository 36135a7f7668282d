"""How likely a number that was rounded by a known noise is to be 0, by what a reader knows: an order, and no more than that.

``floor(x + noise)`` is 0 unless ``x`` reaches the nearer end of the unit that the noise leaves it; and how large ``x`` may be is told
by what lies in the same row and the same column of a momentum. Both are counted in eighths of an octave, from the bits of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.proof.codecs.base import PIECE

BITS = 15  # of the whole numbers that are added up: their sums are exact in any order
EIGHTHS = 20  # bits of a float32 below an eighth of an octave
MIDDLE = 160  # the place of the largest distance to an end, in a row and column of mean size
LAST = 255

Eighths = npt.NDArray[np.int32]
Places = npt.NDArray[np.uint8]


class Table(NamedTuple):
    """Flat values, part by part, of a tensor of ``rows`` times ``columns``."""

    rows: int
    columns: int
    part: Callable[[slice], Tensor]

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Parts that fit a cache: which elements, which rows, and which columns they are."""
        high = max(1, PIECE // max(1, self.columns))
        for row in range(0, self.rows if self.columns else 0, high):  # without columns there may be any number of rows
            rows = slice(row, min(row + high, self.rows))
            for column in range(0, self.columns, PIECE):
                columns = slice(column, min(column + PIECE, self.columns))
                last = (rows.stop - 1) * self.columns + columns.stop
                yield slice(row * self.columns + column, last), rows, columns


def places(noise: Table, beside: Table | None, out: Places, low: npt.NDArray[np.bool_]) -> None:
    """Into ``out``, for each number a place in the order, from 0 to 255: the higher, the likelier it is 0; into ``low``, whether the
    nearer end is the lower one. ``beside``: a momentum of the same shape."""
    rows, columns = (None, None) if beside is None else _size(beside)
    for part, across, down in noise.blocks():
        here = noise.part(part)
        torch.lt(here, 0.5, out=torch.from_numpy(low[part]))
        found: Eighths = (torch.minimum(here, 1.0 - here).view(torch.int32) >> EIGHTHS).numpy()
        found += np.int32(MIDDLE - (126 << 3))  # the exponent of a half
        if rows is not None and columns is not None:
            table = found.reshape(across.stop - across.start, -1)
            table -= rows[across, None]
            table -= columns[None, down]
        out[part] = found.clip(0, LAST, out=found)


def _size(beside: Table) -> tuple[Eighths, Eighths] | tuple[None, None]:
    """By row and by column, how far the product of their sums is above its mean; None where there is nothing, or no number."""
    largest = 0.0
    for part, _, _ in beside.blocks():
        ends = [abs(float(end)) for end in torch.aminmax(beside.part(part))]
        if not all(map(math.isfinite, ends)):
            return None, None
        largest = max(largest, *ends)
    if not largest:
        return None, None
    factor = np.float64(2.0) ** (BITS - math.frexp(largest)[1])
    rows, columns = np.zeros(beside.rows), np.zeros(beside.columns)
    for part, across, down in beside.blocks():
        whole = beside.part(part).numpy().astype(np.float64)
        whole *= factor
        np.abs(np.rint(whole, out=whole), out=whole)
        table = whole.reshape(across.stop - across.start, -1)
        rows[across] += table.sum(1)
        columns[down] += table.sum(0)
    mean = _eighths(rows.sum())
    return _eighths(rows) + _eighths(beside.rows) - mean, _eighths(columns) + _eighths(beside.columns) - mean


def _eighths(sums: npt.NDArray[np.float64] | float) -> Eighths:
    """Of a number of at least 1, about eight times its logarithm."""
    bits: Eighths = np.maximum(np.asarray(sums), 1.0).astype(np.float32).view(np.int32)
    return (bits >> EIGHTHS) - np.int32(127 << 3)
