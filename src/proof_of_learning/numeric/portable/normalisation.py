"""BatchNorm, LayerNorm and GroupNorm, forward and backward: exact sums, and single operations around them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from proof_of_learning.numeric.portable.elementwise import divide, square_root
from proof_of_learning.numeric.portable.grid import total
from proof_of_learning.numeric.portable.table import building_block, portable, single

Three = tuple[Tensor | None, Tensor | None, Tensor | None]


def _statistics(x: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x - mean, mean, variance, 1 / sqrt(variance + eps)) over ``dims``, which are kept."""
    n = prod(x.shape[d] for d in dims)
    mean = divide(total(x, dims, True), n)
    away = x - mean
    variance = divide(total(away * away, dims, True), n)
    return away, mean, variance, square_root(variance + eps).reciprocal_()


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    if weight is not None:
        y = y.mul_(weight.reshape(shape))
    return y if bias is None else y.add_(bias.reshape(shape))


def _gradient(g: Tensor, normal: Tensor, inverse: Tensor, dims: Sequence[int]) -> Tensor:
    """By x, where ``g`` is the gradient by the normalised values ``normal`` = (x - mean) * inverse."""
    n = prod(g.shape[d] for d in dims)
    along = divide(total(g * normal, dims, True), n)
    return (g - divide(total(g, dims, True), n)).sub_(normal * along).mul_(inverse)


# ---- BatchNorm ------------------------------------------------------------------------------------------


def _channels(x: Tensor) -> tuple[tuple[int, ...], list[int]]:
    """(the dimensions that are not channels, the shape of one number a channel)."""
    return (0, *range(2, x.dim())), [1, x.shape[1], *([1] * (x.dim() - 2))]


@building_block("normalisation.normalised")
def _normalised(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the result, mean, variance, 1 / sqrt(variance + eps)) of each channel in training."""
    dims, shape = _channels(x)
    away, mean, variance, inverse = _statistics(x, dims, eps)
    return _affine(away.mul_(inverse), weight, bias, shape), mean.reshape(-1), variance.reshape(-1), inverse.reshape(-1)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, training: bool, momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = single(x, "batch_norm")
    if not training:
        assert mean is not None and var is not None
        _, shape = _channels(x)
        inverse = square_root(var + eps).reciprocal_()
        y = (x - mean.reshape(shape)).mul_(inverse.reshape(shape))
        return _affine(y, weight, bias, shape), x.new_empty(0), x.new_empty(0)
    y, now, variance, inverse = _normalised(x, weight, bias, eps)
    if mean is not None:
        mean.copy_(mean * (1 - momentum) + now * momentum)
    if var is not None:
        n = x.numel() // x.shape[1]
        unbiased = variance * (n / (n - 1)) if n > 1 else variance
        var.copy_(var * (1 - momentum) + unbiased * momentum)
    return y, now, inverse


@portable("native_batch_norm.default", "_native_batch_norm_legit.default")
def _native_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, training: bool, momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _batch_norm(x, weight, bias, mean, var, training, momentum, eps)


@portable("_native_batch_norm_legit.no_stats")
def _batch_norm_without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _batch_norm(x, weight, bias, None, None, True, momentum, eps)


@portable("native_batch_norm_backward.default")
def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, saved: Tensor | None,
    inverse: Tensor | None, training: bool, eps: float, mask: Sequence[bool],
) -> Three:  # fmt: skip
    dims, shape = _channels(x)
    if not training:
        assert mean is not None and var is not None
        saved, inverse = mean, square_root(var + eps).reciprocal_()
    assert saved is not None and inverse is not None
    normal = (x - saved.reshape(shape)).mul_(inverse.reshape(shape))
    by_bias, by_weight = total(g, dims), total(g * normal, dims)
    by_input: Tensor | None = None
    if mask[0]:
        scale = inverse if weight is None else weight * inverse
        if training:
            n = x.numel() // x.shape[1]
            by_input = g - divide(by_bias, n).reshape(shape)
            by_input.sub_(normal.mul_(divide(by_weight, n).reshape(shape))).mul_(scale.reshape(shape))
        else:
            by_input = g * scale.reshape(shape)
    return by_input, by_weight if mask[1] else None, by_bias if mask[2] else None


# ---- LayerNorm, GroupNorm -------------------------------------------------------------------------------


@portable("native_layer_norm.default")
def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x = single(x, "layer_norm")
    away, mean, _, inverse = _statistics(x, tuple(range(x.dim() - len(shape), x.dim())), eps)
    return _affine(away.mul_(inverse), weight, bias, shape), mean, inverse


@portable("native_layer_norm_backward.default")
def _layer_norm_backward(
    g: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None,
    mask: Sequence[bool],
) -> Three:  # fmt: skip
    within = tuple(range(x.dim() - len(shape), x.dim()))
    outside = tuple(range(x.dim() - len(shape)))
    normal = (x - mean).mul_(inverse)
    by_input = by_weight = by_bias = None
    if mask[0]:
        by_input = _gradient(g if weight is None else g * weight, normal, inverse, within)
    if mask[1]:
        by_weight = total(g * normal, outside) if outside else g * normal
    if mask[2]:
        by_bias = total(g, outside) if outside else g.clone()
    return by_input, by_weight, by_bias


@portable("native_group_norm.default")
def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    samples: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grouped = single(x, "group_norm").reshape(samples, groups, -1)
    away, mean, _, inverse = _statistics(grouped, (2,), eps)
    y = away.mul_(inverse).reshape(samples, channels, places)
    return _affine(y, weight, bias, [1, channels, 1]).reshape(x.shape), mean.squeeze(2), inverse.squeeze(2)


@portable("native_group_norm_backward.default")
def _group_norm_backward(
    g: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, samples: int, channels: int, places: int, groups: int,
    mask: Sequence[bool],
) -> Three:  # fmt: skip
    normal = (x.reshape(samples, groups, -1) - mean.unsqueeze(2)).mul_(inverse.unsqueeze(2))
    split, by_place = g.reshape(samples, channels, places), normal.reshape(samples, channels, places)
    by_input = by_weight = by_bias = None
    if mask[0]:
        scaled = split if weight is None else split * weight.reshape(1, channels, 1)
        by_input = _gradient(scaled.reshape(samples, groups, -1), normal, inverse.unsqueeze(2), (2,)).reshape(x.shape)
    if mask[1]:
        by_weight = total(split * by_place, (0, 2))
    if mask[2]:
        by_bias = total(split, (0, 2))
    return by_input, by_weight, by_bias


def _rms(x: Tensor, shape: Sequence[int], eps: float | None) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    within = tuple(range(x.dim() - len(shape), x.dim()))
    square = divide(total(x * x, within, True), prod(shape))
    inverse = square_root(square + (torch.finfo(torch.float32).eps if eps is None else eps)).reciprocal_()
    return x * inverse, inverse, within


@portable("_fused_rms_norm.default")
def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    normal, inverse, _ = _rms(single(x, "rms_norm"), shape, eps)
    return _affine(normal, weight, None, shape), inverse


@portable("_fused_rms_norm_backward.default")
def _rms_norm_backward(
    g: Tensor, x: Tensor, shape: Sequence[int], inverse: Tensor, weight: Tensor | None, mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As PyTorch composes it on a CPU, where no release has one operation for it: of a power, a mean, an inverse root and products."""
    within = tuple(range(x.dim() - len(shape), x.dim()))
    outside = tuple(range(x.dim() - len(shape)))
    by_input = by_weight = None
    if mask[0]:
        scaled = g if weight is None else g * weight
        by_inverse = total(scaled * x, within, True).mul_(-0.5).mul_((inverse * inverse).mul_(inverse))
        by_input = (scaled * inverse).add_(divide(by_inverse, prod(shape)) * (x * 2))
    if mask[1]:
        normal = x * inverse
        by_weight = total(g * normal, outside) if outside else g * normal
    return by_input, by_weight
