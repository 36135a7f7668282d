"""Largest magnitudes, numbers on the grid of products, and exact sums, over one of three kinds of places.

A tensor is seen as [batch, c, r]: what is found for each ``c`` is taken over all ``r``. With strides s0, s1, s2 the number lies at
batch * s0 plus

- ``ROWS``: c * s1 + r (what is taken over lies side by side),
- ``COLUMNS``: c + r * s2,
- ``CHANNELS``: c * s1 + (r // B) * s2 + r % B (of images: B places of each channel of each sample).

Where there are few ``c`` for many ``r``, several programs share them (splits): each finds the largest of its part, and the next kernel
takes the largest of these. A sum is exact, so parts of it are added up in any order.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from proof_of_learning.numeric.portable.cuda.device import magnitude, on_grid, power
from proof_of_learning.numeric.portable.cuda.launching import f32, f64, i32, launch, power_of_two
from proof_of_learning.numeric.portable.grid import SUM_BITS, ceil_log2

ROWS, COLUMNS, CHANNELS = 0, 1, 2
ENOUGH = 264  # programs that keep a device busy
MOST_SPLITS = 64

_NUMBERS = ["C", "R", "B", "s0", "s1", "s2", "o0", "o1", "o2", "LENGTH", "ALL", "factor"]


# ---- kernels ----------------------------------------------------------------------------------------------


@triton.jit
def _place(c, r, B, s1, s2, KIND: tl.constexpr):
    if KIND == 0:
        return c * s1 + r
    elif KIND == 1:
        return c + r * s2
    else:
        return c * s1 + (r // B) * s2 + r % B


@triton.jit
def _largest(x, c, C, start, stop, B, s1, s2, KIND: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr):
    """The bits of the largest magnitude of each ``c`` [BLOCK_C, 1] among ``start`` to ``stop``."""
    found = tl.zeros([BLOCK_C, BLOCK_R], tl.int32)
    for begin in range(start, stop, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)[None, :]
        v = tl.load(x + _place(c, r, B, s1, s2, KIND), mask=(c < C) & (r < stop), other=0.0)
        found = tl.maximum(found, magnitude(v))
    return tl.max(found, 1, keep_dims=True)


@triton.jit
def _known(parts, c, C, ALL, SPLITS: tl.constexpr):
    """The same, from what the splits found."""
    split = tl.arange(0, SPLITS)[None, :]
    return tl.max(tl.load(parts + split * ALL + c, mask=(c < C) & (split < SPLITS), other=0), 1, keep_dims=True)


@triton.jit(do_not_specialize=_NUMBERS)
def largest_kernel(
    x, parts, C, R, B, s0, s1, s2, LENGTH, ALL, KIND: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """parts[split, batch * C + c] = the bits of the largest magnitude of that part."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    start, batch = tl.program_id(1) * LENGTH, tl.program_id(2)
    found = _largest(x + batch * s0, c, C, start, tl.minimum(start + LENGTH, R), B, s1, s2, KIND, BLOCK_C, BLOCK_R)
    tl.store(parts + tl.program_id(1) * ALL + batch * C + c, found, mask=c < C)


@triton.jit(do_not_specialize=_NUMBERS)
def quantise_kernel(
    x, parts, out, C, R, B, s0, s1, s2, o0, o1, o2, LENGTH, ALL, factor,
    KIND: tl.constexpr, OUT: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out = ``grid.quantise(x)``; SPLITS 0: the largest magnitudes are found here, else they are in ``parts``."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    start, batch = tl.program_id(1) * LENGTH, tl.program_id(2)
    stop = tl.minimum(start + LENGTH, R)
    x += batch * s0
    out += batch * o0
    if SPLITS == 0:
        largest = _largest(x, c, C, start, stop, B, s1, s2, KIND, BLOCK_C, BLOCK_R)
    else:
        largest = _known(parts + batch * C, c, C, ALL, SPLITS)
    constant = power(largest) * factor
    for begin in range(start, stop, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)[None, :]
        mask = (c < C) & (r < stop)
        v = tl.load(x + _place(c, r, B, s1, s2, KIND), mask=mask, other=0.0)
        tl.store(out + _place(c, r, B, o1, o2, OUT), ((v + constant) - constant).to(tl.float64), mask=mask)


@triton.jit(do_not_specialize=_NUMBERS)
def sum_kernel(
    x, parts, out, C, R, B, s0, s1, s2, LENGTH, ALL, factor, KIND: tl.constexpr, SQUARES: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out[split, c] = the sum on the grid of ``grid.gridded``, or of squares that of a 2-norm.

    SPLITS 0: all of it, rounded to float32; else a part in float64, and the largest magnitudes are in ``parts``.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    start = tl.program_id(1) * LENGTH
    stop = tl.minimum(start + LENGTH, R)
    if SPLITS == 0:
        largest = _largest(x, c, C, start, stop, B, s1, s2, KIND, BLOCK_C, BLOCK_R)
    else:
        largest = _known(parts, c, C, ALL, SPLITS)
    highest = power(largest).to(tl.float64)
    if SQUARES:
        highest = highest * highest
    constant = highest * factor
    found = tl.zeros([BLOCK_C, BLOCK_R], tl.float64)
    for begin in range(start, stop, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)[None, :]
        v = tl.load(x + _place(c, r, B, s1, s2, KIND), mask=(c < C) & (r < stop), other=0.0)
        if SQUARES:
            wide = v.to(tl.float64)
            found += (wide * wide + constant) - constant
        else:
            found += on_grid(v, constant)
    sums = tl.sum(found, 1, keep_dims=True)
    if SPLITS == 0:
        sums = sums.to(tl.float32)
    tl.store(out + tl.program_id(1) * ALL + c, sums, mask=c < C)


@triton.jit(do_not_specialize=_NUMBERS)
def gridded_kernel(
    x, parts, out, C, R, B, s0, s1, s2, LENGTH, ALL, factor, KIND: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out (float64, at the same places) = ``grid.gridded(x)``, for sums over ``r``."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    start = tl.program_id(1) * LENGTH
    stop = tl.minimum(start + LENGTH, R)
    constant = power(_known(parts, c, C, ALL, SPLITS)).to(tl.float64) * factor
    for begin in range(start, stop, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)[None, :]
        mask, place = (c < C) & (r < stop), _place(c, r, B, s1, s2, KIND)
        tl.store(out + place, on_grid(tl.load(x + place, mask=mask, other=0.0), constant), mask=mask)


@triton.jit(do_not_specialize=_NUMBERS)
def finish_kernel(parts, out, C, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[c] = the sum of parts[:, c] (float64), rounded to float32."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    split = tl.arange(0, SPLITS)[None, :]
    sums = tl.sum(tl.load(parts + split * C + c, mask=(c < C) & (split < SPLITS), other=0.0), 1, keep_dims=True)
    tl.store(out + c, sums.to(tl.float32), mask=c < C)


# ---- on the host ------------------------------------------------------------------------------------------

Layout = tuple[int, int, int, int]  # kind, s0, s1, s2


Run = tuple[
    Any, tuple[int, int, int], tuple[float, ...], tuple[Any, ...], int
]  # kernel, grid, numbers, constants, warps
KNOWN = 4096  # shapes for which it is remembered how kernels are run


def blocks(batch: int, c: int, r: int, kind: int) -> tuple[int, int, int]:
    """(BLOCK_C, BLOCK_R, splits): how many programs share the ``r`` of each ``c``."""
    if kind == ROWS:
        block_r = min(power_of_two(r), 1024)
        block_c = min(power_of_two(c), max(1, 1024 // block_r))
    elif kind == COLUMNS:
        block_c = min(power_of_two(c), 32)
        block_r = min(power_of_two(r), 4096 // block_c)
    else:
        block_c, block_r = 1, min(power_of_two(r), 2048)
    programs, turns = -(-c // block_c) * batch, -(-r // block_r)
    splits = 1
    while splits < MOST_SPLITS and turns > 8 * splits and programs * splits < ENOUGH:
        splits *= 2
    return block_c, block_r, splits


def _warps(block_c: int, block_r: int) -> int:
    return 8 if block_c * block_r >= 2048 else 4


def _length(r: int, splits: int, block_r: int) -> int:
    """Numbers of a split: whole blocks."""
    return -(-r // (splits * block_r)) * block_r


@lru_cache(KNOWN)
def _finding(batch: int, c: int, r: int, layout: Layout, places: int) -> tuple[Run, int]:
    """How the largest magnitudes are found, and in how many splits."""
    kind, *strides = layout
    block_c, block_r, splits = blocks(batch, c, r, kind)
    numbers = (c, r, places, *strides, _length(r, splits, block_r), batch * c)
    run = (
        largest_kernel,
        (-(-c // block_c), splits, batch),
        numbers,
        (kind, block_c, block_r),
        _warps(block_c, block_r),
    )
    return run, splits


def largest_parts(x: Tensor, batch: int, c: int, r: int, layout: Layout, places: int = 1) -> tuple[Tensor, int]:
    """(the bits of the largest magnitudes [splits, batch * c], splits)."""
    (kernel, grid, numbers, constants, warps), splits = _finding(batch, c, r, layout, places)
    parts = torch.empty((splits, batch * c), dtype=i32, device=x.device)
    launch(kernel, grid, (x, parts), numbers, constants, warps)
    return parts, splits


@lru_cache(KNOWN)
def quantising(batch: int, c: int, r: int, layout: Layout, to: Layout, bits: int, places: int = 1) -> tuple[Run, Any]:
    """How ``quantised`` is run, and what ``largest_parts`` is asked for before; None if for nothing."""
    kind, *strides = layout
    block_c, block_r, splits = blocks(batch, c, r, kind)
    numbers = (c, r, places, *strides, *to[1:], _length(r, splits, block_r), batch * c, 1.5 * 2.0 ** (24 - bits))
    constants = (kind, to[0], splits if splits > 1 else 0, block_c, block_r)
    run = (quantise_kernel, (-(-c // block_c), splits, batch), numbers, constants, _warps(block_c, block_r))
    return run, (batch, c, r, layout, places) if splits > 1 else None


def quantise_as(how: tuple[Run, Any], x: Tensor, out: Tensor) -> None:
    """Into ``out`` (float64): ``x`` on the grid that :func:`quantising` was told."""
    (kernel, grid, numbers, constants, warps), before = how
    parts = x if before is None else largest_parts(x, *before)[0]
    launch(kernel, grid, (x, parts, out), numbers, constants, warps)


def quantised(
    x: Tensor, out: Tensor, batch: int, c: int, r: int, layout: Layout, to: Layout, bits: int, places: int = 1
) -> None:
    """Into ``out`` (float64), which has the layout ``to``: ``x`` on the grid of ``bits`` bits, one for each [batch, c]."""
    quantise_as(quantising(batch, c, r, layout, to, bits, places), x, out)


@lru_cache(KNOWN)
def _summing(c: int, r: int, layout: Layout, places: int, squares: bool) -> tuple[Run, int]:
    kind, *strides = layout
    block_c, block_r, splits = blocks(1, c, r, kind)
    factor = 1.5 * 2.0 ** ((54 if squares else 53) - SUM_BITS + ceil_log2(r))
    length = r if splits == 1 else _length(r, splits, block_r)
    numbers = (c, r, places, *strides, length, c, factor)
    constants = (kind, squares, splits if splits > 1 else 0, block_c, block_r)
    return (sum_kernel, (-(-c // block_c), splits, 1), numbers, constants, _warps(block_c, block_r)), splits


def summed(x: Tensor, out: Tensor, c: int, r: int, layout: Layout, places: int = 1, squares: bool = False) -> None:
    """Into ``out`` [c], float32: the sum over ``r`` (with ``squares``: of squares), exact, then rounded."""
    (kernel, grid, numbers, constants, warps), splits = _summing(c, r, layout, places, squares)
    if splits == 1:
        launch(kernel, grid, (x, x, out), numbers, constants, warps)
        return
    parts, _ = largest_parts(x, 1, c, r, layout, places)
    sums = torch.empty((splits, c), dtype=f64, device=x.device)
    launch(kernel, grid, (x, parts, sums), numbers, constants, warps)
    block = min(power_of_two(c), 32)
    launch(finish_kernel, (-(-c // block), 1, 1), (sums, out), (c,), (splits, block))


def gridded(x: Tensor, out: Tensor, c: int, r: int, layout: Layout) -> None:
    """Into ``out`` (float64, of the same layout): ``x`` on the grid on which sums over ``r`` are exact."""
    kind, *strides = layout
    block_c, block_r, splits = blocks(1, c, r, kind)
    parts, _ = largest_parts(x, 1, c, r, layout)
    numbers = (c, r, 1, *strides, _length(r, splits, block_r), c, 1.5 * 2.0 ** (53 - SUM_BITS + ceil_log2(r)))
    constants, grid = (kind, splits, block_c, block_r), (-(-c // block_c), splits, 1)
    launch(gridded_kernel, grid, (x, parts, out), numbers, constants, _warps(block_c, block_r))


@lru_cache(KNOWN)
def _totalling(
    shape: tuple[int, ...], over: tuple[int, ...], keepdim: bool
) -> tuple[list[int], int, int, Layout, int, list[int]]:
    """(the result's shape, how many it has, of how many each, where they lie, places, or how dimensions are moved before)."""
    d, gone, count = len(shape), list(over), len(over)
    kept = [i for i in range(d) if i not in over]
    to = [1 if i in over else n for i, n in enumerate(shape) if keepdim or i in kept]
    c = prod(to)
    r = prod(shape) // c
    if c == 1 or gone == list(range(d - count, d)):
        return to, c, r, (ROWS, 0, r, 1), 1, []
    if gone == list(range(count)):
        return to, c, r, (COLUMNS, 0, 1, c), 1, []
    if kept == list(range(kept[0], kept[-1] + 1)):  # what is kept lies between
        places = prod(shape[kept[-1] + 1 :])
        return to, c, r, (CHANNELS, 0, places, c * places), places, []
    return to, c, r, (ROWS, 0, r, 1), 1, [*kept, *gone]


def total(x: Tensor, over: tuple[int, ...], keepdim: bool, squares: bool = False) -> Tensor:
    """The sums of a contiguous ``x`` over dimensions (sorted, from 0), as ``grid.total`` has them."""
    to, c, r, layout, places, moved = _totalling(x.shape, over, keepdim)
    out = torch.empty(to, dtype=f32, device=x.device)
    summed(x.permute(moved).contiguous() if moved else x, out, c, r, layout, places, squares)
    return out
