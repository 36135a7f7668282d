"""How likely a number that was rounded by a known noise is to be 0, by what a reader knows: an order, and no more than that.

``floor(x + noise)`` is 0 unless ``x`` reaches the nearer end of the unit that the noise leaves it; and how large ``x`` may be is told
by what lies in the same row and the same column of a momentum. Both are counted in eighths of an octave, from the bits of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from proof_of_learning.proof.codecs import noise
from proof_of_learning.proof.codecs.base import PIECE, batched

BITS = 15  # of the whole numbers that are added up: their sums are exact in any order
EIGHTHS = 20  # bits of a float32 below an eighth of an octave
MIDDLE = 160  # the place of the largest distance to an end, in a row and column of mean size
LAST = 255
HALF = np.int32(noise.ONE // 2)

Eighths = npt.NDArray[np.int32]
Places = npt.NDArray[np.uint8]


class Table(NamedTuple):
    """A tensor of ``rows`` times ``columns``.

    salt: what makes its noise its own. beside: part by part, the flat values of a momentum.
    """

    rows: int
    columns: int
    salt: int
    beside: Callable[[slice], Tensor] | None

    def count(self) -> int:
        return self.rows * self.columns

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Parts that fit a cache: which elements, which rows, and which columns they are."""
        high = max(1, PIECE // max(1, self.columns))
        for row in range(0, self.rows if self.columns else 0, high):
            rows = slice(row, min(row + high, self.rows))
            for column in range(0, self.columns, PIECE):
                columns = slice(column, min(column + PIECE, self.columns))
                last = (rows.stop - 1) * self.columns + columns.stop
                yield slice(row * self.columns + column, last), rows, columns


def places(tables: Sequence[Table]) -> tuple[Places, npt.NDArray[np.bool_]]:
    """For each number of tensors end to end a place in the order, from 0 to 255: the higher, the likelier it is 0; and whether the
    nearer end is the lower one."""
    total, start = sum(table.count() for table in tables), 0
    out, low = np.empty(total, np.uint8), np.empty(total, np.bool_)
    for batch in batched(tables, Table.count):
        sizes = _sizes(batch)
        if len(batch) > 1:
            count = sum(table.count() for table in batch)
            part = slice(start, start + count)
            found = _ends(noise.whole([t.salt for t in batch], [t.count() for t in batch]), low[part])
            begin = 0
            for table, size in zip(batch, sizes, strict=True):
                if size is not None:
                    here = found[begin : begin + table.count()].reshape(table.rows, table.columns)
                    here -= size[0][:, None]
                    here -= size[1]
                begin += table.count()
            out[part] = found.clip(0, LAST, out=found)
            start += count
            continue
        (table,), (size,) = batch, sizes
        for block, across, down in table.blocks():
            part = slice(start + block.start, start + block.stop)
            found = _ends(noise.whole([table.salt], [block.stop - block.start], block.start), low[part])
            if size is not None:
                here = found.reshape(across.stop - across.start, -1)
                here -= size[0][across, None]
                here -= size[1][down]
            out[part] = found.clip(0, LAST, out=found)
        start += table.count()
    return out, low


def _ends(words: noise.Words, low: npt.NDArray[np.bool_]) -> Eighths:
    """How far the nearer end is; into ``low``, whether it is the lower one."""
    here = words.view(np.int32)
    np.less(here, HALF, out=low)
    np.minimum(here, noise.ONE - here, out=here)
    found: Eighths = here.astype(np.float32).view(np.int32)
    found >>= EIGHTHS
    found += np.int32(MIDDLE - (126 + noise.BITS << 3))  # the exponent of a half
    return found


def _sizes(batch: Sequence[Table]) -> list[tuple[Eighths, Eighths] | None]:
    """By row and by column, how far the product of their sums is above its mean; None where there is nothing, or no number."""
    sums = [_sums(table) for table in batch]
    flat = [side for found in sums if found is not None for side in found]
    if not flat:
        return [None] * len(batch)
    lengths = [len(side) for side in flat]
    eighths = iter(np.split(_eighths(np.concatenate(flat)), np.cumsum(lengths)[:-1]))
    return [None if found is None else _above(next(eighths), next(eighths), next(eighths)) for found in sums]


def _above(rows: Eighths, columns: Eighths, others: Eighths) -> tuple[Eighths, Eighths]:
    mean, high, wide = others
    return rows + (high - mean), columns + (wide - mean)


def _sums(table: Table) -> tuple[npt.NDArray[np.float64], ...] | None:
    """Of rows; of columns; of all, with the numbers of both."""
    if table.beside is None:
        return None
    blocks, largest = list(table.blocks()), 0.0
    for part, _, _ in blocks:
        values = table.beside(part).numpy()
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        largest = max(largest, high, -low)
    if not largest:
        return None
    factor = np.float64(2.0) ** (BITS - math.frexp(largest)[1])
    rows, columns = np.zeros(table.rows), np.zeros(table.columns)
    for part, across, down in blocks:
        whole = np.multiply(table.beside(part).numpy(), factor, dtype=np.float64)
        np.abs(np.rint(whole, out=whole), out=whole)
        here = whole.reshape(across.stop - across.start, -1)
        rows[across] += here.sum(1)
        columns[down] += here.sum(0)
    return rows, columns, np.array([rows.sum(), table.rows, table.columns], np.float64)


def _eighths(sums: npt.NDArray[np.float64]) -> Eighths:
    """Of numbers of at least 1, about eight times their logarithms."""
    bits: Eighths = np.maximum(sums, 1.0).astype(np.float32).view(np.int32)
    return (bits >> EIGHTHS) - np.int32(127 << 3)
