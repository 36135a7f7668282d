"""What the kernels are handed: entries take float32 on a CUDA device in layouts that they know, the plain engine has the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from proof_of_learning.numeric.portable import drawing
from proof_of_learning.numeric.portable.composite import ROOT, TIMES_NUMBER
from proof_of_learning.numeric.portable.cuda import pointwise, reducing, rows
from proof_of_learning.numeric.portable.cuda.device import ONE, TWO
from proof_of_learning.numeric.portable.cuda.launching import MOST, f32, f64, given, launch, taken, takes
from proof_of_learning.numeric.portable.cuda.pointwise import BLOCK
from proof_of_learning.numeric.portable.cuda.reducing import COLUMNS, ROWS
from proof_of_learning.numeric.portable.functions import Kernel
from proof_of_learning.numeric.portable.grid import product_bits
from proof_of_learning.numeric.portable.table import cuda

Ints = Sequence[int]


# ---- products -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """How a matrix, or a batch of them, comes onto a grid for each row or column; ``copied`` before, ``turned`` afterwards."""

    copied: bool
    shape: tuple[int, ...]
    how: Any
    turned: bool


@dataclass(frozen=True)
class Product:
    left: Operand
    right: Operand
    terms: int
    stretch: int
    multiply: Any  # of matrices, or of batches


def _operand(shape: Ints, stride: Ints, along: int, bits: int) -> Operand:
    """For a sum over dimension ``along`` (-1 or -2)."""
    other = -3 - along  # the dimension that is kept
    copied = 1 not in (stride[along], stride[other])
    if copied:
        stride = (shape[-2] * shape[-1], shape[-1], 1)[-len(shape) :]
    batch, s0 = (shape[0], stride[0]) if len(shape) == 3 else (1, 0)
    c, r, s1, s2 = shape[other], shape[along], stride[other], stride[along]
    if s2 == 1:  # rows of what is summed, and the result too
        how = reducing.quantising(batch, c, r, (ROWS, s0, s1, 1), (ROWS, c * r, r, 1), bits)
        return Operand(copied, (*shape[:-2], c, r), how, along != -1)
    how = reducing.quantising(batch, c, r, (COLUMNS, s0, 1, s2), (COLUMNS, c * r, 1, c), bits)
    return Operand(copied, (*shape[:-2], r, c), how, along != -2)


def _near(shape: Ints, stride: Ints) -> bool:
    """Whether there are numbers, all places are 32 bits, and batches are few enough for a grid of programs."""
    span = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    return 0 < prod(shape) < MOST and span < MOST and (len(shape) == 2 or shape[0] < 1 << 16)


@lru_cache(reducing.KNOWN)
def _planned(a: Ints, a_stride: Ints, b: Ints, b_stride: Ints) -> Product | None:
    """How matrices of these shapes and strides are multiplied; None: by the plain engine."""
    if len(a) != len(b) or len(a) not in (2, 3) or not _near(a, a_stride) or not _near(b, b_stride):
        return None
    terms = a[-1]
    if terms != b[-2] or a[:-2] != b[:-2]:
        return None
    bits, stretch = product_bits(terms)
    left, right = _operand(a, a_stride, -1, bits), _operand(b, b_stride, -2, bits)
    return Product(left, right, terms, stretch, torch.mm if len(a) == 2 else torch.bmm)


def _quantised(x: Tensor, to: Operand) -> Tensor:
    if to.copied:
        x = x.contiguous()
    out = torch.empty(to.shape, dtype=f64, device=x.device)
    reducing.quantise_as(to.how, x, out)
    return out.mT if to.turned else out


def product(a: Tensor, b: Tensor) -> Any:
    """a [.., m, k] times b [.., k, n] in float64, before its rounding to float32."""
    if not (taken(a) and taken(b)):
        return NotImplemented
    plan = _planned(a.shape, a.stride(), b.shape, b.stride())
    if plan is None:
        return NotImplemented
    left, right, stretch = _quantised(a, plan.left), _quantised(b, plan.right), plan.stretch
    if plan.terms <= stretch:
        return plan.multiply(left, right)
    found = plan.multiply(left[..., :stretch], right[..., :stretch, :])
    for start in range(stretch, plan.terms, stretch):
        found = found + plan.multiply(left[..., start : start + stretch], right[..., start : start + stretch, :])
    return found


@cuda("products.matmul", "mm.default", "bmm.default")
def matmul(a: Tensor, b: Tensor) -> Any:
    found = product(a, b)
    return found if found is NotImplemented else found.to(f32)


@cuda("addmm.default", "baddbmm.default")
def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if alpha != 1 or beta != 1 or c.dim() != 1 or not given(c) or c.shape[0] != b.shape[-1]:
        return NotImplemented
    found = product(a, b)
    return found if found is NotImplemented else finished(found, c, 1)


def finished(y: Tensor, bias: Tensor, places: int) -> Tensor:
    """``y`` (contiguous, [.., bias, places]) rounded to float32, plus the bias."""
    out = torch.empty(y.shape, dtype=f32, device=y.device)
    n = out.numel()
    launch(pointwise.finish_product_kernel, (-(-n // BLOCK), 1, 1), (y, bias, out), (n, places, bias.numel()), (BLOCK,))
    return out


# ---- sums -----------------------------------------------------------------------------------------------


@cuda("grid.total")
def total(x: Tensor, dims: Ints, keepdim: bool = False) -> Any:
    if not takes(x) or not x.dim():
        return NotImplemented
    d = x.dim()
    return reducing.total(x.contiguous(), _over(d, dims), keepdim)


def _over(d: int, dims: Ints | None) -> tuple[int, ...]:
    """Dimensions of ``d`` from 0, sorted; none given: all."""
    return tuple(sorted({dim % d for dim in dims})) if dims else tuple(range(d))


@cuda("linalg_vector_norm.default")
def _norm(
    x: Tensor, order: float = 2, dim: Ints | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    if order != 2 or dtype is not None or not takes(x) or not x.dim():
        return NotImplemented
    return _root(reducing.total(x.contiguous(), _over(x.dim(), dim), keepdim, squares=True))


def _root(x: Tensor) -> Tensor:
    return one(ROOT, x, (), 0.0, False)


# ---- functions ------------------------------------------------------------------------------------------


@cuda("functions.apply")
def apply(kernel: Kernel, *inputs: Tensor) -> Any:
    function = (ONE if len(inputs) == 1 else TWO).get(kernel)
    if function is None or not takes(*inputs):
        return NotImplemented
    dense = [x.contiguous() for x in inputs]
    n, out = inputs[0].numel(), torch.empty(inputs[0].shape, dtype=f32, device=inputs[0].device)
    constants = (function, len(dense) == 2, 512)
    launch(pointwise.function_kernel, (-(-n // 512), 1, 1), (dense[0], dense[-1], out), (n,), constants)
    return out


@cuda("functions.square_root")
def square_root(x: Tensor) -> Any:
    return _root(x.contiguous()) if takes(x) else NotImplemented


def one(which: int, x: Tensor, others: Sequence[Tensor], number: float, into: bool) -> Tensor:
    """``pointwise.computed`` of contiguous tensors of one shape."""
    n, out = x.numel(), x if into else torch.empty(x.shape, dtype=f32, device=x.device)
    a, b = (*others, x, x)[:2]
    constants = (which, len(others), BLOCK)
    launch(pointwise.one_kernel, (-(-n // BLOCK), 1, 1), (x, a, b, out), (n, float(number)), constants)
    return out


def try_one() -> None:
    """Compile and run one kernel, for which Triton needs a C compiler and a folder to write to; raises whatever goes wrong."""
    x = torch.full((1,), 2.0, dtype=f32, device="cuda")
    if one(TIMES_NUMBER, x, (), 3.0, False).item() != 6:
        raise ArithmeticError("2 times 3 is not 6")


# ---- random bits ------------------------------------------------------------------------------------------


def _drawn(
    x: Tensor, out: Tensor, kept: Tensor, p: float, scale: float, dropout: bool, generator: Generator | None
) -> None:
    key, size = drawing.key_of(generator), 128
    low = key & 0xFFFFFFFF
    low -= (low & 0x80000000) << 1
    numbers = (x.numel(), low, key >> 32, round(p * 2**32) - 2**31, scale)
    launch(pointwise.drawn_kernel, (-(-x.numel() // (8 * size)), 1, 1), (x, out, kept), numbers, (dropout, size))


@cuda("bernoulli_.float")
def _bernoulli(x: Tensor, p: float = 0.5, *, generator: Generator | None = None) -> Any:
    if not given(x) or not 0 <= round(p * 2**32) < 2**32 or (generator is not None and generator.device.type != "cpu"):
        return NotImplemented
    _drawn(x, x, x, p, 1.0, False, generator)
    return x


@cuda("native_dropout.default")
def _dropout(x: Tensor, p: float, train: bool | None) -> Any:
    if train is False or p == 0 or not 0 < p <= 1 or not takes(x):
        return NotImplemented
    share = 1 - p
    scale = 0.0 if share == 0 else float(np.float32(1) / np.float32(share))
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=f32, device=x.device)
    kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    _drawn(x, out, kept.view(torch.int8), share, scale, True, None)
    return out, kept


@cuda("native_dropout_backward.default")
def _dropout_backward(g: Tensor, kept: Tensor, scale: float) -> Any:
    if not takes(g) or kept.dtype is not torch.bool or kept.shape != g.shape:
        return NotImplemented
    share = 1 / scale if scale else 0.0
    by = 0.0 if share == 0 else float(np.float32(1) / np.float32(share))
    g, n = g.contiguous(), g.numel()
    out, kept = torch.empty(g.shape, dtype=f32, device=g.device), kept.contiguous().view(torch.int8)
    launch(pointwise.kept_kernel, (-(-n // BLOCK), 1, 1), (g, kept, out), (n, by), (BLOCK,))
    return out


# ---- softmax and norms ----------------------------------------------------------------------------------


def _last(x: Tensor, dim: int) -> bool:
    return bool(x.dim()) and dim in (-1, x.dim() - 1) and x.shape[-1] <= rows.LONGEST


def _soft(which: int, x: Tensor, dim: int) -> Any:
    if not takes(x) or not _last(x, dim):
        return NotImplemented
    x, r = x.contiguous(), x.shape[-1]
    out = torch.empty(x.shape, dtype=f32, device=x.device)
    rows.run(rows.softmax_kernel, x.numel() // r, r, (x, out), (), (which,))
    return out


@cuda("_softmax.default")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return _soft(rows.SOFTMAX, x, dim)


@cuda("_log_softmax.default")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return _soft(rows.LOG_SOFTMAX, x, dim)


@cuda("_safe_softmax.default")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    return NotImplemented if dtype not in (None, f32) else _soft(rows.SAFE_SOFTMAX, x, dim)


def _soft_backward(which: int, g: Tensor, y: Tensor, dim: int) -> Any:
    if not takes(g, y) or not _last(y, dim) or g.shape != y.shape:
        return NotImplemented
    g, y, r = g.contiguous(), y.contiguous(), y.shape[-1]
    out = torch.empty(y.shape, dtype=f32, device=y.device)
    rows.run(rows.softmax_backward_kernel, y.numel() // r, r, (g, y, out), (), (which,))
    return out


@cuda("_softmax_backward_data.default")
def _softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Any:
    return _soft_backward(rows.SOFTMAX, g, y, dim)


@cuda("_log_softmax_backward_data.default")
def _log_softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Any:
    return _soft_backward(rows.LOG_SOFTMAX, g, y, dim)


@cuda("native_layer_norm.default")
def _layer_norm(x: Tensor, shape: Ints, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    n = prod(shape)
    if not takes(x) or not given(weight, bias) or n > rows.LONGEST:
        return NotImplemented
    x, outer = x.contiguous(), [*x.shape[: x.dim() - len(shape)], *([1] * len(shape))]
    y, both = torch.empty(x.shape, dtype=f32, device=x.device), torch.empty([2, *outer], dtype=f32, device=x.device)
    mean, inverse = both[0], both[1]
    tensors = (x, x if weight is None else weight, x if bias is None else bias, y, mean, inverse)
    rows.run(
        rows.layer_norm_kernel,
        x.numel() // n,
        n,
        tensors,
        (float(n), eps),
        (weight is not None, bias is not None),
    )
    return y, mean, inverse


@cuda("native_layer_norm_backward.default")
def _layer_norm_backward(
    g: Tensor, x: Tensor, shape: Ints, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Sequence[bool]
) -> Any:  # fmt: skip
    n = prod(shape)
    if not takes(g, x) or not given(mean, inverse, weight) or x.dim() == len(shape) or n > rows.LONGEST:
        return NotImplemented
    g, x = g.contiguous(), x.contiguous()
    outside = tuple(range(x.dim() - len(shape)))
    by_input = torch.empty(x.shape, dtype=f32, device=x.device) if mask[0] else None
    part = torch.empty(x.shape, dtype=f32, device=x.device) if mask[1] else None
    if mask[0] or mask[1]:
        tensors = (
            g,
            x,
            mean,
            inverse,
            g if weight is None else weight,
            g if by_input is None else by_input,
            g if part is None else part,
        )
        constants = (weight is not None, bool(mask[0]), bool(mask[1]))
        rows.run(rows.layer_norm_backward_kernel, x.numel() // n, n, tensors, (float(n),), constants)
    by_weight = None if part is None else reducing.total(part, outside, False)
    return by_input, by_weight, reducing.total(g, outside, False) if mask[2] else None


# ---- sums into places -----------------------------------------------------------------------------------


@cuda("embedding_dense_backward.default")
def _embedding_backward(g: Tensor, indices: Tensor, amount: int, padding: int, by_frequency: bool) -> Any:
    if by_frequency or padding >= 0 or not takes(g) or g.dim() < 2 or amount * g.shape[-1] >= MOST:
        return NotImplemented
    d = g.shape[-1]
    g, flat = g.contiguous().reshape(-1, d), indices.reshape(-1)
    n = flat.numel()
    added = torch.empty((n, d), dtype=f64, device=g.device)
    reducing.gridded(g, added, d, n, (COLUMNS, 0, 1, d))
    return torch.zeros((amount, d), dtype=f64, device=g.device).index_add_(0, flat, added).to(f32)
