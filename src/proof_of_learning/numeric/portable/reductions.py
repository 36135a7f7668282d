"""Sums, means, norms, softmax and the losses: exact sums, and single operations around them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from proof_of_learning.numeric.portable import functions
from proof_of_learning.numeric.portable.elementwise import divide, square_root
from proof_of_learning.numeric.portable.grid import SUM_BITS, ceil_log2, gridded, largest, power, scattered, total
from proof_of_learning.numeric.portable.table import RefusedError, as_they_are, portable, real, single

aten = torch.ops.aten
Dims = Sequence[int] | None

as_they_are(
    "amax.default", "amin.default", "max.default", "min.default", "any.default", "any.dim", "any.dims", "all.default", "all.dim",
    "all.dims", "count_nonzero.default", "count_nonzero.dim_IntList", "aminmax.default",
)  # fmt: skip


def _count(x: Tensor, dims: Dims) -> int:
    return prod(x.shape[d] for d in dims) if dims else x.numel()


@portable("sum.default", "sum.dim_IntList")
def _sum(x: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point() and (dtype is None or not dtype.is_floating_point):
        return aten.sum.dim_IntList(x, dim, keepdim, dtype=dtype)  # type: ignore[no-any-return]
    if dtype not in (None, torch.float32, torch.float64):
        raise RefusedError(
            f"a sum as {str(dtype).removeprefix('torch.')}; portable arithmetic has it for float32 and float64"
        )
    return total(real(x if dtype is None else x.to(dtype), "a sum"), dim or (), keepdim)


@portable("mean.default", "mean.dim")
def _mean(x: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return divide(_sum(real(x, "a mean"), dim, keepdim, dtype=dtype), _count(x, dim))


@portable("cumsum.default")
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point():
        return aten.cumsum.default(x, dim, dtype=dtype)  # type: ignore[no-any-return]
    x = single(x, "a cumulative sum")
    if not x.dim():
        return x.clone()
    return gridded(x, (dim % x.dim(),), x.shape[dim]).cumsum(dim).to(torch.float32)


def _moments(x: Tensor, dim: Dims, correction: float | None) -> tuple[Tensor, Tensor]:
    """(variance, mean), with the dimensions kept."""
    x = real(x, "a variance")
    dims = tuple(d % x.dim() for d in dim) if dim else tuple(range(x.dim()))
    n = _count(x, dims)
    mean = divide(total(x, dims, True), n)
    away = x - mean
    return divide(total(away.mul_(away), dims, True), max(0.0, n - (1 if correction is None else correction))), mean


def _kept(x: Tensor, dim: Dims, keepdim: bool, found: Tensor) -> Tensor:
    return found if keepdim else found.squeeze(tuple(dim) if dim else tuple(range(x.dim())))


@portable("var.correction")
def _var(x: Tensor, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return _kept(x, dim, keepdim, _moments(x, dim, correction)[0])


@portable("std.correction")
def _std(x: Tensor, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return square_root(_var(x, dim, correction=correction, keepdim=keepdim))


@portable("var_mean.correction")
def _var_mean(
    x: Tensor, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    var, mean = _moments(x, dim, correction)
    return _kept(x, dim, keepdim, var), _kept(x, dim, keepdim, mean)


@portable("linalg_vector_norm.default")
def _norm(
    x: Tensor, order: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    x = single(x, "a norm")
    if dtype not in (None, torch.float32) or order not in (1, 2, float("inf")):
        raise RefusedError(
            f"a norm of order {order}; portable arithmetic has those of order 1, 2 and infinity, in float32"
        )
    dims = tuple(d % x.dim() for d in dim) if dim else tuple(range(x.dim()))
    if order == 1:
        return total(x.abs(), dims, keepdim) if dims else x.abs()
    if order != 2:
        return x.abs().amax(dims, keepdim) if dims else x.abs()
    if not dims:
        return x.abs()
    # Squares are float64 without rounding, on the grid of the largest one.
    highest = power(largest(x, dims)).to(torch.float64)
    constant = (highest * highest).mul_(1.5 * 2.0 ** (54 - SUM_BITS + ceil_log2(_count(x, dims))))
    squares = x.to(torch.float64)
    squares.mul_(squares).add_(constant).sub_(constant)
    return square_root(squares.sum(dims, keepdim=keepdim).to(torch.float32))


@portable("norm.Scalar")
def _norm_of_all(x: Tensor, p: float = 2) -> Tensor:
    return _norm(x, p)


@portable("norm.ScalarOpt_dim")
def _norm_along(x: Tensor, p: float | None, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    return _norm(x, 2 if p is None else p, dim, keepdim)


# ---- places ---------------------------------------------------------------------------------------------


def _first_where(found: Tensor, dim: int, keepdim: bool) -> Tensor:
    """The first place along ``dim`` at which something is true."""
    places = torch.arange(found.shape[dim], device=found.device).reshape(
        [-1 if d == dim else 1 for d in range(found.dim())]
    )
    return torch.where(found, places, found.shape[dim] - 1).amin(dim, keepdim)


def _extreme(x: Tensor, dim: int | None, keepdim: bool, highest: bool) -> tuple[Tensor, Tensor]:
    if dim is None:
        values, places = _extreme(x.reshape(-1), 0, False, highest)
        return values, places.reshape([1] * x.dim()) if keepdim else places
    if not x.dim():
        return x.clone(), torch.zeros((), dtype=torch.int64, device=x.device)
    dim %= x.dim()
    values = x.amax(dim, keepdim=True) if highest else x.amin(dim, keepdim=True)
    places = _first_where((x == values) | (x != x), dim, keepdim)
    return values if keepdim else values.squeeze(dim), places


@portable("max.dim")
def _max(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _extreme(x, dim, keepdim, True)


@portable("min.dim")
def _min(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _extreme(x, dim, keepdim, False)


@portable("argmax.default")
def _argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _extreme(x, dim, keepdim, True)[1]


@portable("argmin.default")
def _argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _extreme(x, dim, keepdim, False)[1]


@portable("sort.default")
def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return aten.sort.stable(x, stable=True, dim=dim, descending=descending)  # type: ignore[no-any-return]


@portable("sort.stable")
def _stable_sort(x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return _sort(x, dim, descending)


@portable("topk.default")
def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    values, places = aten.sort.stable(x, stable=True, dim=dim, descending=largest)
    return values.narrow(dim, 0, k).contiguous(), places.narrow(dim, 0, k).contiguous()


# ---- softmax --------------------------------------------------------------------------------------------


def _exponentials(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x less its largest, the exponentials of that, their sum) along ``dim``."""
    below = x - x.amax(dim, keepdim=True)
    grown = functions.apply(functions.exp, below)
    return below, grown, total(grown, (dim,), True)


@portable("_softmax.default")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    _, grown, all_ = _exponentials(single(x, "softmax"), dim)
    return grown.div_(all_)


@portable("_safe_softmax.default")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """That of attention: a row that is masked throughout gives zeros."""
    masked = (x == -float("inf")).all(dim, keepdim=True)
    return torch.where(masked, torch.zeros_like(x), _softmax(x, dim, False))


@portable("_log_softmax.default")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    below, _, all_ = _exponentials(single(x, "log_softmax"), dim)
    return below.sub_(functions.apply(functions.log, all_))


@portable("_softmax_backward_data.default")
def _softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    part = g * y
    return part.sub_(y * total(part, (dim,), True))


@portable("_log_softmax_backward_data.default")
def _log_softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return g - functions.apply(functions.exp, y).mul_(total(g, (dim,), True))


@portable("logsumexp.default")
def _logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    x = single(x, "logsumexp")
    high = x.amax(tuple(dim), keepdim=True)
    high = torch.where(high.abs() == float("inf"), torch.zeros_like(high), high)
    all_ = total(functions.apply(functions.exp, x - high), tuple(dim), True)
    return _kept(x, dim, keepdim, functions.apply(functions.log, all_).add_(high))


# ---- losses ---------------------------------------------------------------------------------------------


def _reduced(values: Tensor, reduction: int) -> Tensor:
    """0: none, 1: mean, 2: sum."""
    if reduction == 0:
        return values
    whole = total(values, ())
    return divide(whole, values.numel()) if reduction == 1 else whole


def _spread(g: Tensor, values: Tensor, reduction: int) -> Tensor:
    return divide(g, values.numel()) if reduction == 1 else g


def _weights(target: Tensor, weight: Tensor | None, ignored: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(targets that are classes, what each of them counts)."""
    counts = target != ignored
    safe = torch.where(counts, target, 0)
    each = counts.to(like.dtype)
    return safe, each if weight is None else each.mul_(weight[safe])


@portable("nll_loss_forward.default", "nll_loss2d_forward.default")
def _nll(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> tuple[Tensor, Tensor]:
    x = single(x, "nll_loss")
    along = 1 if x.dim() > 1 else 0
    safe, each = _weights(target, weight, ignored, x)
    values = x.gather(along, safe.unsqueeze(along)).squeeze(along).neg_()
    values = torch.where(each == 0, torch.zeros_like(values), values * each)
    counted = total(each, ())
    if reduction == 0:
        return values, torch.zeros_like(counted)
    whole = total(values, ())
    return (divide(whole, counted) if reduction == 1 else whole), counted


@portable("nll_loss_backward.default", "nll_loss2d_backward.default")
def _nll_backward(
    g: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int, counted: Tensor
) -> Tensor:
    along = 1 if x.dim() > 1 else 0
    safe, each = _weights(target, weight, ignored, x)
    each = each.neg_() * (divide(g, counted) if reduction == 1 else g)
    return torch.zeros_like(x).scatter_(along, safe.unsqueeze(along), each.unsqueeze(along))


@portable("mse_loss.default")
def _mse(x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    away = single(x, "mse_loss") - y
    return _reduced(away.mul_(away), reduction)


@portable("mse_loss_backward.default")
def _mse_backward(g: Tensor, x: Tensor, y: Tensor, reduction: int) -> Tensor:
    away = (x - y).mul_(2)
    return away.mul_(_spread(g, away, reduction))


def _huber_values(x: Tensor, y: Tensor, turn: float, smooth: bool) -> Tensor:
    away = single(x - y, "a loss").abs()
    square = (away * away).mul_(0.5)
    near = divide(square, turn) if smooth and turn else square
    far = away - 0.5 * turn if smooth else (away - 0.5 * turn).mul_(turn)
    return torch.where(away < turn, near, far)


def _huber_slope(x: Tensor, y: Tensor, turn: float, smooth: bool) -> Tensor:
    away = single(x - y, "a loss")
    near = divide(away, turn) if smooth and turn else away
    return torch.where(away.abs() < turn, near, away.sign() if smooth else away.sign().mul_(turn))


@portable("smooth_l1_loss.default")
def _smooth_l1(x: Tensor, y: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    return _reduced(_huber_values(x, y, beta, True), reduction)


@portable("smooth_l1_loss_backward.default")
def _smooth_l1_backward(g: Tensor, x: Tensor, y: Tensor, reduction: int, beta: float) -> Tensor:
    slope = _huber_slope(x, y, beta, True)
    return slope.mul_(_spread(g, slope, reduction))


@portable("huber_loss.default")
def _huber(x: Tensor, y: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    return _reduced(_huber_values(x, y, delta, False), reduction)


@portable("huber_loss_backward.default")
def _huber_backward(g: Tensor, x: Tensor, y: Tensor, reduction: int, delta: float) -> Tensor:
    slope = _huber_slope(x, y, delta, False)
    return slope.mul_(_spread(g, slope, reduction))


@portable("binary_cross_entropy_with_logits.default")
def _bce_with_logits(
    x: Tensor, y: Tensor, weight: Tensor | None = None, positive: Tensor | None = None, reduction: int = 1
) -> Tensor:
    falling = functions.apply(functions.log_sigmoid, single(x, "a loss"))  # log of the probability
    if positive is not None:
        falling = falling * ((positive - 1) * y + 1)
    values = (1 - y) * x - falling
    return _reduced(values if weight is None else values * weight, reduction)


@portable("binary_cross_entropy.default")
def _bce(x: Tensor, y: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    x = single(x, "a loss")
    yes = functions.apply(functions.log, x).clamp_(min=-100)
    no = functions.apply(functions.log1p, -x).clamp_(min=-100)
    values = (y - 1) * no - y * yes
    return _reduced(values if weight is None else values * weight, reduction)


@portable("binary_cross_entropy_backward.default")
def _bce_backward(g: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    slope = divide(x - y, ((1 - x) * x).clamp_(min=1e-12))
    slope = slope if weight is None else slope * weight
    return slope * _spread(g, slope, reduction)


# ---- sums into places -----------------------------------------------------------------------------------


@portable("embedding_dense_backward.default")
def _embedding_backward(g: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool) -> Tensor:
    if by_frequency:
        raise RefusedError("an embedding scaled by frequency; leave scale_grad_by_freq out")
    g, flat = single(g, "an embedding").reshape(-1, g.shape[-1]), indices.reshape(-1)
    if padding >= 0:
        g = torch.where((flat == padding).unsqueeze(1), torch.zeros_like(g), g)
    added = gridded(g, (0,), g.shape[0])
    return g.new_zeros((rows, g.shape[1]), dtype=torch.float64).index_add_(0, flat, added).to(torch.float32)


@portable("index_add.default", inplace=True)
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    if not x.is_floating_point():
        return aten.index_add.default(x, dim, index, source, alpha=alpha)  # type: ignore[no-any-return]
    zero = single(x, "index_add").new_zeros(x.shape, dtype=torch.float64)
    source = single(source, "index_add") if alpha == 1 else single(source, "index_add") * alpha
    return x + scattered(source, max(1, index.numel()), lambda s: zero.index_add_(dim, index, s))


@portable("scatter_add.default", inplace=True)
def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if not x.is_floating_point():
        return aten.scatter_add.default(x, dim, index, source)  # type: ignore[no-any-return]
    zero = single(x, "scatter_add").new_zeros(x.shape, dtype=torch.float64)
    terms = max(1, index.shape[dim] if index.dim() else 1)
    return x + scattered(single(source, "scatter_add"), terms, lambda s: zero.scatter_add_(dim, index, s))


@portable("index_put.default", "_unsafe_index_put.default", inplace=True)
def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    if not accumulate or not x.is_floating_point():
        return aten.index_put.default(x, indices, values, accumulate)  # type: ignore[no-any-return]
    zero = single(x, "index_put").new_zeros(x.shape, dtype=torch.float64)
    terms = max(1, prod(torch.broadcast_shapes(*(index.shape for index in indices if index is not None))))  # type: ignore[no-untyped-call]
    return x + scattered(single(values, "index_put"), terms, lambda v: aten.index_put_.default(zero, indices, v, True))


@portable("_index_put_impl_.default")
def _index_put_impl(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Tensor:
    return x.copy_(_index_put(x, indices, values, accumulate))
