"""Convolution in one and two dimensions, forward and backward, and BatchNorm: what their kernels (``images.py``) are handed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.numeric.portable.cuda import images, reducing
from proof_of_learning.numeric.portable.cuda.launching import MOST, f32, f64, given, launch, power_of_two, takes
from proof_of_learning.numeric.portable.cuda.operations import finished
from proof_of_learning.numeric.portable.cuda.reducing import CHANNELS, ROWS
from proof_of_learning.numeric.portable.grid import SUM_BITS, ceil_log2, product_bits
from proof_of_learning.numeric.portable.table import cuda

Ints = Sequence[int]
LARGEST = 1 << 28  # numbers of windows, or of products of samples, in float64 at a time
LONGEST = 1 << 20  # numbers of a channel of BatchNorm, which one program goes through


def _plane(x: Tensor) -> Tensor:
    """Images of one dimension as images of one row."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _two(setting: Ints, dims: int, missing: int) -> list[int]:
    both = [*setting] if len(setting) == dims else [setting[0]] * dims
    return both if dims == 2 else [missing, *both]


def _settings(x: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> list[list[int]]:
    return [_two(setting, x.dim() - 2, m) for setting, m in ((stride, 1), (padding, 0), (dilation, 1))]


def _windows(
    x: Tensor,
    parts: Tensor,
    out: Ints,
    kernel: Ints,
    settings: Sequence[Ints],
    bits: int,
    *,
    by_channel: bool,
    turned: bool,
) -> Tensor:
    """The windows of ``x`` on the grid of ``bits`` bits, [samples, channels * prod(kernel), prod(out)], float64."""
    samples, channels, height, width = x.shape
    k, places = channels * prod(kernel), prod(out)
    found = torch.empty((samples, k, places), dtype=f64, device=x.device)
    block_p = min(power_of_two(places), 256)
    block_k = min(power_of_two(k), 1024 // block_p)
    numbers = (channels, 1, height, width, *out, *kernel, *settings[0], *settings[1], *settings[2], parts.shape[1],
               1.5 * 2.0 ** (24 - bits))  # fmt: skip
    grid = (-(-places // block_p), -(-k // block_k), samples)
    constants = (by_channel, turned, parts.shape[0], block_k, block_p)
    launch(images.windows_kernel, grid, (x, parts, found), numbers, constants)
    return found


def _fits(x: Tensor, kernel: Ints, out: Ints, filters: int) -> bool:
    """Whether windows and products of each sample may be held at once."""
    samples, channels = x.shape[:2]
    k = channels * prod(kernel)
    return min(out) > 0 and samples < 1 << 16 and samples * k * prod(out) < LARGEST and samples * filters * k < LARGEST


def _product(w: Tensor, seen: Tensor, groups: int, stretch: int) -> Tensor:
    """w [groups, filters, k] times the windows of each sample, [samples, groups * filters, places], in float64.

    A sum of more than ``stretch`` terms is cut into such stretches.
    """
    samples, places = seen.shape[0], seen.shape[2]
    _, filters, terms = w.shape
    seen = seen.view(samples, groups, terms, places)
    y: Tensor | None = None
    for start in range(0, terms, stretch):
        ws, part = w[:, :, start : start + stretch], seen[:, :, start : start + stretch]
        if groups == 1:
            piece = torch.bmm(ws.expand(samples, -1, -1), part[:, 0])
        else:
            piece = torch.matmul(ws.unsqueeze(0), part)
        y = piece if y is None else y + piece
    assert y is not None
    return y.reshape(samples, groups * filters, places)


def _samples(x: Tensor) -> Tensor:
    """The bits of the largest magnitude of each sample."""
    n, each = x.shape[0], x[0].numel()
    return reducing.largest_parts(x, 1, n, each, (ROWS, 0, each, 1))[0]


@cuda("products.forward")
def forward(
    x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, bias: Tensor | None = None
) -> Any:
    dims = x.dim() - 2
    if not takes(x, w) or dims not in (1, 2) or not given(bias):
        return NotImplemented
    settings = _settings(x, stride, padding, dilation)
    x, w = _plane(x).contiguous(), _plane(w).contiguous()
    kernel, filters = w.shape[2:], w.shape[0]
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, s, p, d, k in zip(x.shape[2:], *settings, kernel, strict=True)]
    if not _fits(x, kernel, out, 1):
        return NotImplemented
    terms, each = w[0].numel(), prod(kernel)
    bits, stretch = product_bits(terms)
    wq = torch.empty((groups, filters // groups, terms), dtype=f64, device=w.device)
    reducing.quantised(w, wq, 1, filters, terms, (ROWS, 0, terms, 1), (ROWS, 0, terms, 1), bits)
    seen = _windows(x, _samples(x), out, kernel, settings, bits, by_channel=False, turned=False)
    y = _product(wq, seen, groups, max(1, stretch // each) * each)
    shape = (x.shape[0], filters, *out[2 - dims :])
    return (y.to(f32) if bias is None else finished(y, bias, prod(out))).view(shape)


@cuda("products.by_input")
def by_input(g: Tensor, w: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Any:
    dims = g.dim() - 2
    if not takes(g, w) or dims not in (1, 2):
        return NotImplemented
    settings = _settings(g, stride, padding, dilation)
    g, w = _plane(g).contiguous(), _plane(w).contiguous()
    kernel, out = w.shape[2:], [*shape[2:]] if dims == 2 else [1, *shape[2:]]
    if not _fits(g, kernel, out, 1):
        return NotImplemented
    each, filters, channels = prod(kernel), w.shape[0] // groups, w.shape[1]
    terms = filters * each
    bits, stretch = product_bits(terms)
    wq = torch.empty((groups, channels, terms), dtype=f64, device=w.device)
    reducing.quantised(w, wq, groups, channels, terms, (CHANNELS, terms * channels, each, channels * each),
                       (ROWS, channels * terms, terms, 1), bits, each)  # fmt: skip
    seen = _windows(g, _samples(g), out, kernel, settings, bits, by_channel=False, turned=True)
    return _product(wq, seen, groups, max(1, stretch // each) * each).to(f32).view(list(shape))


@cuda("products.by_weight")
def by_weight(g: Tensor, x: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Any:
    dims = g.dim() - 2
    if not takes(g, x) or dims not in (1, 2):
        return NotImplemented
    settings = _settings(g, stride, padding, dilation)
    g, x = _plane(g).contiguous(), _plane(x).contiguous()
    kernel, out = ([*shape[2:]] if dims == 2 else [1, *shape[2:]]), g.shape[2:]
    samples, filters, places = g.shape[0], g.shape[1], prod(out)
    if not _fits(x, kernel, out, filters):
        return NotImplemented
    bits, stretch = product_bits(samples * places)
    if places > stretch:  # one sample alone has more terms than are exact: fewer bits
        bits = (53 - (places - 1).bit_length()) // 2
    layout = (CHANNELS, 0, places, filters * places)
    gq = torch.empty(g.shape, dtype=f64, device=g.device)
    reducing.quantised(g, gq, 1, filters, samples * places, layout, layout, bits, places)
    channels, there = x.shape[1], prod(x.shape[2:])
    parts, _ = reducing.largest_parts(x, 1, channels, samples * there, (CHANNELS, 0, there, channels * there), there)
    seen = _windows(x, parts, out, kernel, settings, bits, by_channel=True, turned=False)
    k = channels // groups * prod(kernel)
    left = gq.view(samples * groups, filters // groups, places)
    pieces = torch.bmm(left, seen.view(samples * groups, k, places).transpose(1, 2))
    w, size = torch.empty(list(shape), dtype=f32, device=g.device), 256
    numbers = (w.numel(), samples, max(1, stretch // places))
    launch(images.stretches_kernel, (-(-w.numel() // size), 1, 1), (pieces, w), numbers, (size,))
    return w


# ---- BatchNorm ------------------------------------------------------------------------------------------


def _measures(x: Tensor) -> tuple[int, int, int]:
    """(channels, numbers of each, places of each sample)."""
    return x.shape[1], x.numel() // x.shape[1], prod(x.shape[2:])


def _norm_block(r: int) -> tuple[int, int]:
    """(numbers at a time, warps)."""
    block = min(power_of_two(r), 4096)
    return block, 16 if block > 2048 else 8 if block > 512 else 4


@cuda("native_batch_norm.default", "_native_batch_norm_legit.default")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, training: bool, momentum: float,
    eps: float,
) -> Any:  # fmt: skip
    if (
        not training
        or not takes(x)
        or x.dim() < 2
        or not given(weight, bias, mean, var)
        or (mean is None) != (var is None)
    ):
        return NotImplemented
    c, r, places = _measures(x)
    if r > LONGEST:
        return NotImplemented
    x = x.contiguous()
    y, found = torch.empty(x.shape, dtype=f32, device=x.device), torch.empty((3, c), dtype=f32, device=x.device)
    now, variance, inverse = found.unbind(0)
    block, warps = _norm_block(r)
    tensors = [x if t is None else t for t in (x, weight, bias, y, now, variance, inverse, mean, var)]
    factor = 1.5 * 2.0 ** (53 - SUM_BITS + ceil_log2(r))
    numbers = (c, r, places, factor, float(r), eps, 1 - momentum, momentum, r / (r - 1) if r > 1 else 1.0)
    constants = (weight is not None, bias is not None, mean is not None, block)
    launch(images.batch_norm_kernel, (c, 1, 1), tuple(tensors), numbers, constants, warps)
    return y, now, inverse


@cuda("native_batch_norm_backward.default")
def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, saved: Tensor | None,
    inverse: Tensor | None, training: bool, eps: float, mask: Sequence[bool],
) -> Any:  # fmt: skip
    if not training or saved is None or inverse is None or not takes(g, x) or not given(weight, saved, inverse):
        return NotImplemented
    c, r, places = _measures(x)
    if r > LONGEST or x.numel() >= MOST:
        return NotImplemented
    g, x = g.contiguous(), x.contiguous()
    by_input = torch.empty(x.shape, dtype=f32, device=x.device) if mask[0] else None
    by_weight, by_bias = torch.empty(c, dtype=f32, device=x.device), torch.empty(c, dtype=f32, device=x.device)
    block, warps = _norm_block(r)
    tensors = [g if t is None else t for t in (g, x, saved, inverse, weight, by_input, by_weight, by_bias)]
    factor = 1.5 * 2.0 ** (53 - SUM_BITS + ceil_log2(r))
    numbers, constants = (c, r, places, factor, float(r)), (weight is not None, by_input is not None, block)
    launch(images.batch_norm_backward_kernel, (c, 1, 1), tuple(tensors), numbers, constants, warps)
    return by_input, by_weight if mask[1] else None, by_bias if mask[2] else None
