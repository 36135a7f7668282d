"""Exact sums: numbers are rounded to a grid on which every partial sum is a float64, so that the order of a sum cannot matter.

A grid is a power of two, chosen by the largest magnitude among what is added up. With 2**(e-1) <= largest < 2**e and p bits, every
number becomes a multiple of 2**(e-p), by adding and subtracting 1.5 * 2**(t+e-p), where t is the number of bits behind a float's
first (23 or 52): two IEEE operations, to the nearest, ties to even. A largest magnitude below 2**-126 counts as 2**-126, and where
it is infinite, NaN, or so large that the constant overflows, everything that is on this grid becomes NaN. ADR 0028 has the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.numeric.portable.table import building_block

SUM_BITS = 51  # less the bits of the number of terms
MOST_BITS = 22  # of an operand of a product: what float32 rounds in two operations
LEAST_BITS = 20
_BITS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}
_SMALLEST = 2.0**-126

Dims = tuple[int, ...]


def ceil_log2(n: int) -> int:
    """The smallest k with n <= 2**k; 0 for n = 0."""
    return max(0, n - 1).bit_length()


def largest(x: Tensor, dims: Dims) -> Tensor:
    """The largest magnitude over ``dims``, which are kept; at least 2**-126, NaN where there is one."""
    if x.numel() == 0:
        shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
        return torch.full(shape, _SMALLEST, dtype=x.dtype, device=x.device)
    if not dims:
        return x.abs().clamp_min_(_SMALLEST)
    return torch.maximum(x.amax(dims, keepdim=True), x.amin(dims, keepdim=True).neg_()).clamp_min_(_SMALLEST)


def power(magnitude: Tensor) -> Tensor:
    """2**(e-1), the power of two at or below each number; infinity where it is infinite or NaN. Overwrites ``magnitude``."""
    whole, exponent = _BITS[magnitude.dtype]
    return magnitude.view(whole).bitwise_and_(exponent).view(magnitude.dtype)


def product_bits(terms: int) -> tuple[int, int]:
    """Bits of each operand of a product that sums ``terms``, and how many of these are summed before a rounding.

    Twice the bits and those of the number of terms are at most 53.
    """
    bits = min(MOST_BITS, max(LEAST_BITS, (53 - ceil_log2(terms)) // 2))
    return bits, 1 << (53 - 2 * bits)


def quantise(x: Tensor, dims: Dims, bits: int) -> Tensor:
    """``x`` (float32) on the grid of ``bits`` bits, one for each place outside ``dims``, as float64."""
    constant = power(largest(x, dims)).mul_(1.5 * 2.0 ** (24 - bits))
    return x.add(constant).sub_(constant).to(torch.float64)


def gridded(x: Tensor, dims: Dims, terms: int) -> Tensor:
    """``x`` as float64 on the grid that makes sums of ``terms`` of it over ``dims`` exact."""
    constant = power(largest(x, dims)).to(torch.float64).mul_(1.5 * 2.0 ** (53 - SUM_BITS + ceil_log2(terms)))
    return x.to(torch.float64, copy=True).add_(constant).sub_(constant)


def exact_sum(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """The sum over ``dims`` (none: all of them) in float64: that of the numbers on their grid, without any rounding."""
    over = tuple(d % x.dim() for d in dims) if dims else tuple(range(x.dim()))
    if not over:
        return x.to(torch.float64)
    terms = 1
    for d in over:
        terms *= x.shape[d]
    return gridded(x, over, terms).sum(over, keepdim=keepdim)


@building_block("grid.total")
def total(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """:func:`exact_sum`, rounded to the type of ``x``."""
    return exact_sum(x, dims, keepdim).to(x.dtype)


def scattered(x: Tensor, terms: int, spread: Callable[[Tensor], Any]) -> Tensor:
    """What ``spread`` makes of ``x`` by adding up at most ``terms`` of its numbers in each place, rounded to float32."""
    found: Tensor = spread(gridded(x, tuple(range(x.dim())), terms))
    return found.to(torch.float32)
