"""Softmax and LayerNorm: a row, and what is summed of it, stays within one program."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
from __future__ import annotations

from functools import lru_cache
from typing import Any

import triton
import triton.language as tl

from proof_of_learning.numeric.portable.cuda.device import divided, exact_sum, exp, inverse_root, log
from proof_of_learning.numeric.portable.cuda.launching import launch, power_of_two
from proof_of_learning.numeric.portable.grid import SUM_BITS, ceil_log2

LONGEST = 8192  # numbers of a row
SOFTMAX, LOG_SOFTMAX, SAFE_SOFTMAX = 0, 1, 2
_NUMBERS = ["C", "R", "factor", "count", "eps"]


@triton.jit
def _rounded_exp(x):
    return exp(x.to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=_NUMBERS)
def softmax_kernel(x, out, C, R, factor, WHICH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr):
    """``_softmax``, ``_log_softmax``, ``_safe_softmax``: largest, difference, exponential, sum, quotient, each rounded."""
    c, r = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], tl.arange(0, BLOCK_R)[None, :]
    mask = (c < C) & (r < R)
    v = tl.load(x + c * R + r, mask=mask, other=float("-inf"))
    high = tl.max(v, 1, keep_dims=True)
    below = v - high
    grown = tl.where(mask, _rounded_exp(below), 0.0)
    all_ = exact_sum(grown, factor, 1)
    if WHICH == 1:
        found = below - log(all_.to(tl.float64)).to(tl.float32)
    else:
        found = divided(grown, tl.broadcast_to(all_, [BLOCK_C, BLOCK_R]))
        if WHICH == 2:
            # A row that is masked throughout gives zeros.
            other = tl.max(tl.where(mask & (v != float("-inf")), 1, 0), 1, keep_dims=True)
            found = tl.where(other == 0, 0.0, found)
    tl.store(out + c * R + r, found, mask=mask)


@triton.jit(do_not_specialize=_NUMBERS)
def softmax_backward_kernel(g, y, out, C, R, factor, WHICH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr):
    """``_softmax_backward_data`` and ``_log_softmax_backward_data``."""
    c, r = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], tl.arange(0, BLOCK_R)[None, :]
    mask = (c < C) & (r < R)
    gv = tl.load(g + c * R + r, mask=mask, other=0.0)
    yv = tl.load(y + c * R + r, mask=mask, other=0.0)
    if WHICH == 1:
        found = gv - _rounded_exp(yv) * exact_sum(gv, factor, 1)
    else:
        part = gv * yv
        found = part - yv * exact_sum(part, factor, 1)
    tl.store(out + c * R + r, found, mask=mask)


@triton.jit(do_not_specialize=_NUMBERS)
def layer_norm_kernel(
    x, weight, bias, y, mean_out, inverse_out, C, R, factor, count, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """``native_layer_norm``; ``count`` is R as a float32."""
    c, r = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], tl.arange(0, BLOCK_R)[None, :]
    mask = (c < C) & (r < R)
    v = tl.load(x + c * R + r, mask=mask, other=0.0)
    n = tl.zeros([BLOCK_C, 1], tl.float32) + count
    mean = divided(exact_sum(v, factor, 1), n)
    away = tl.where(mask, v - mean, 0.0)
    inverse = inverse_root(divided(exact_sum(away * away, factor, 1), n) + eps)
    found = away * inverse
    if WEIGHT:
        found = found * tl.load(weight + r, mask=r < R, other=0.0)
    if BIAS:
        found = found + tl.load(bias + r, mask=r < R, other=0.0)
    tl.store(y + c * R + r, found, mask=mask)
    tl.store(mean_out + c, mean, mask=c < C)
    tl.store(inverse_out + c, inverse, mask=c < C)


@triton.jit(do_not_specialize=_NUMBERS)
def layer_norm_backward_kernel(
    g, x, mean, inverse, weight, by_input, part, C, R, factor, count,
    WEIGHT: tl.constexpr, INPUT: tl.constexpr, PART: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The gradient by the input of ``native_layer_norm``, and in ``part`` what is added up for that by the weights."""
    c, r = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], tl.arange(0, BLOCK_R)[None, :]
    mask = (c < C) & (r < R)
    gv = tl.load(g + c * R + r, mask=mask, other=0.0)
    v = tl.load(x + c * R + r, mask=mask, other=0.0)
    scale = tl.load(inverse + c, mask=c < C, other=0.0)
    normal = tl.where(mask, (v - tl.load(mean + c, mask=c < C, other=0.0)) * scale, 0.0)
    if PART:
        tl.store(part + c * R + r, gv * normal, mask=mask)
    if INPUT:
        if WEIGHT:
            gv = gv * tl.load(weight + r, mask=r < R, other=0.0)
        n = tl.zeros([BLOCK_C, 1], tl.float32) + count
        along = divided(exact_sum(gv * normal, factor, 1), n)
        found = ((gv - divided(exact_sum(gv, factor, 1), n)) - normal * along) * scale
        tl.store(by_input + c * R + r, found, mask=mask)


@lru_cache(4096)
def _shape(c: int, r: int) -> tuple[tuple[int, int, int], float, int, int, int]:
    """(grid, factor of the grid of sums, BLOCK_C, BLOCK_R, warps)."""
    block_r = power_of_two(r)
    block_c = min(power_of_two(c), max(1, 1024 // block_r))
    factor = 1.5 * 2.0 ** (53 - SUM_BITS + ceil_log2(r))
    return (-(-c // block_c), 1, 1), factor, block_c, block_r, 16 if block_r > 4096 else 8 if block_r > 1024 else 4


def run(
    kernel: Any, c: int, r: int, tensors: tuple[Any, ...], numbers: tuple[float, ...], constants: tuple[Any, ...]
) -> None:
    """Launch one of these for ``c`` rows of ``r`` numbers."""
    grid, factor, block_c, block_r, warps = _shape(c, r)
    launch(kernel, grid, tensors, (c, r, factor, *numbers), (*constants, block_c, block_r), warps)
