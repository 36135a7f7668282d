"""How likely a number that was rounded by a known noise is to be 0, by what a reader knows: an order, and no more than that.

``floor(x + noise)`` is 0 unless ``x`` reaches the nearer end of the unit that the noise leaves it; and how large ``x`` may be is told
by what lies in the same row and the same column of a momentum. Both are counted in eighths of an octave, from the bits of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.proof.codecs import noise
from proof_of_learning.proof.codecs.base import PIECE, batched, first_places

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

    def numel(self) -> int:
        return self.rows * self.columns

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Parts that fit a cache: which elements, which rows, and which columns they are."""
        high = max(1, PIECE // max(1, self.columns))
        for row in range(0, self.rows if self.columns else 0, high):  # without columns there may be any number of rows
            rows = slice(row, min(row + high, self.rows))
            for column in range(0, self.columns, PIECE):
                columns = slice(column, min(column + PIECE, self.columns))
                last = (rows.stop - 1) * self.columns + columns.stop
                yield slice(row * self.columns + column, last), rows, columns


def places(tables: Sequence[Table]) -> tuple[Places, npt.NDArray[np.bool_]]:
    """For each number of tensors end to end a place in the order, from 0 to 255: the higher, the likelier it is 0; and whether the
    nearer end is the lower one."""
    total, start = sum(table.numel() for table in tables), 0
    out, low = np.empty(total, np.uint8), np.empty(total, np.bool_)
    for batch in batched(tables, Table.numel):
        count = sum(table.numel() for table in batch)
        if len(batch) > 1:
            part = slice(start, start + count)
            found = _ends(noise.whole([table.salt for table in batch], [table.numel() for table in batch]), low[part])
            found -= _above_of_small(batch)
            out[part] = found.clip(0, LAST, out=found)
        else:
            (table,), above = batch, _above(batch[0])
            for block, across, down in table.blocks():
                part = slice(start + block.start, start + block.stop)
                found = _ends(noise.whole([table.salt], [block.stop - block.start], block.start), low[part])
                if above is not None:
                    here = found.reshape(across.stop - across.start, -1)
                    here -= above[0][across, None]
                    here -= above[1][down]
                out[part] = found.clip(0, LAST, out=found)
        start += count
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


def _above(table: Table) -> tuple[Eighths, Eighths] | None:
    """By row and by column, how far the product of their sums is above its mean; None where there is nothing, or no number."""
    if table.beside is None:
        return None
    blocks, largest = list(table.blocks()), 0.0
    for part, _, _ in blocks:
        ends = [abs(float(end)) for end in torch.aminmax(table.beside(part))]
        if not all(map(math.isfinite, ends)):
            return None
        largest = max(largest, *ends)
    if not largest:
        return None
    rows, columns = np.zeros(table.rows), np.zeros(table.columns)
    for part, across, down in blocks:
        here = _whole(table.beside(part), _factor(largest)).reshape(across.stop - across.start, -1)
        rows[across] += here.sum(1)
        columns[down] += here.sum(0)
    mean, high, wide = _eighths(np.array([rows.sum(), table.rows, table.columns], np.float64))
    return _eighths(rows) + (high - mean), _eighths(columns) + (wide - mean)


def _above_of_small(tables: Sequence[Table]) -> Eighths | int:
    """The same for tensors end to end, of which no two are large: of each number, what its row and its column come to."""
    tables = [table for table in tables if table.numel()]
    if all(table.beside is None for table in tables):
        return 0
    counts, high, wide = (
        np.array(sides) for sides in zip(*((t.numel(), t.rows, t.columns) for t in tables), strict=True)
    )
    flat = torch.cat([torch.zeros(t.numel()) if t.beside is None else t.beside(slice(0, t.numel())) for t in tables])
    starts = first_places(counts)
    largest = np.maximum(np.maximum.reduceat(flat.numpy(), starts), -np.minimum.reduceat(flat.numpy(), starts))
    sound = (largest > 0) & np.isfinite(largest)
    whole = _whole(flat, np.repeat(_factor(np.where(sound, largest, 1.0)), counts))
    lengths = np.repeat(wide, high)  # of rows
    begins = first_places(lengths)
    column = np.arange(len(flat)) - np.repeat(begins, lengths) + np.repeat(first_places(wide), counts)
    means, rows, columns = (
        _eighths(sums)
        for sums in (
            np.add.reduceat(whole, starts),
            np.add.reduceat(whole, begins),
            np.bincount(column, whole),
        )
    )
    rows += np.repeat(_eighths(high.astype(np.float64)) - means, high)
    columns += np.repeat(_eighths(wide.astype(np.float64)) - means, wide)
    above: Eighths = np.repeat(rows, lengths) + columns[column]
    above *= np.repeat(sound, counts)
    return above


def _factor(largest: Any) -> Any:
    """What brings numbers of up to ``largest`` to ``BITS`` bits."""
    return np.ldexp(1.0, BITS - np.frexp(largest)[1])


def _whole(values: Tensor, factor: Any) -> npt.NDArray[np.float64]:
    whole: npt.NDArray[np.float64] = np.multiply(values.numpy(), factor, dtype=np.float64)
    return np.abs(np.rint(whole, out=whole), out=whole)


def _eighths(sums: npt.NDArray[Any]) -> Eighths:
    """Of numbers of at least 1, about eight times their logarithms."""
    bits: Eighths = np.maximum(sums, 1.0).astype(np.float32).view(np.int32)
    return (bits >> EIGHTHS) - np.int32(127 << 3)
