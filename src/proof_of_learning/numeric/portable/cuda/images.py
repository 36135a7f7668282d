"""Convolutions as products over windows that are rounded to the grid while they are gathered, and BatchNorm."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from proof_of_learning.numeric.portable.cuda.device import (
    divided,
    grid_constant,
    inverse_root,
    magnitude,
    on_grid,
    power,
)


@triton.jit(do_not_specialize=[
    "channels", "groups", "height", "width", "out_h", "out_w", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w",
    "dilation_h", "dilation_w", "ALL", "factor",
])  # fmt: skip
def windows_kernel(
    x, parts, out, channels, groups, height, width, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    dilation_h, dilation_w, ALL, factor,
    BY_CHANNEL: tl.constexpr, TURNED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """out[sample, (channel, place of the kernel), place of the output] (float64) = ``quantise(x)`` at that place of that window.

    x [samples, channels, height, width]. parts [SPLITS, ALL]: largest magnitudes of samples, or BY_CHANNEL of channels.
    TURNED: windows of the gradient by the input: what output places (x is their gradient) an input place (``out``) was seen by.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    sample = tl.program_id(2)
    each = kernel_h * kernel_w
    channel, within = k // each, k % each
    kh, kw = within // kernel_w, within % kernel_w
    oh, ow = p // out_w, p % out_w
    if TURNED:
        ah, aw = oh + pad_h - kh * dilation_h, ow + pad_w - kw * dilation_w
        ih, iw = ah // stride_h, aw // stride_w
        inside = (ah >= 0) & (aw >= 0) & (ih * stride_h == ah) & (iw * stride_w == aw)
    else:
        ih, iw = oh * stride_h - pad_h + kh * dilation_h, ow * stride_w - pad_w + kw * dilation_w
        inside = (ih >= 0) & (iw >= 0)
    here = (k < channels * each) & (p < out_h * out_w)
    inside = inside & (ih < height) & (iw < width) & here
    v = tl.load(x + ((sample * channels + channel) * height + ih) * width + iw, mask=inside, other=0.0)
    split = tl.arange(0, SPLITS)
    if BY_CHANNEL:
        # [BLOCK_K, 1] from [BLOCK_K, SPLITS]
        largest = tl.max(
            tl.load(parts + split[None, :] * ALL + channel, mask=(k < channels * each) & (split[None, :] < SPLITS), other=0),
            1, keep_dims=True,
        )  # fmt: skip
    else:
        largest = tl.max(tl.load(parts + split * ALL + sample), 0)
    constant = power(largest) * factor
    # What lies outside is 0, whatever the grid.
    found = tl.where(inside, (v + constant) - constant, 0.0).to(tl.float64)
    tl.store(out + sample * channels * each * out_h * out_w + k * (out_h * out_w) + p, found, mask=here)


@triton.jit(do_not_specialize=["E", "N", "STEP"])
def stretches_kernel(pieces, out, E, N, STEP, SIZE: tl.constexpr):
    """out[e] = the sums of STEP of pieces[N, E] (exact), added up from the first to the last and rounded to float32."""
    e = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    found = tl.zeros([SIZE], tl.float64)
    for begin in range(0, N, STEP):
        part = tl.zeros([SIZE], tl.float64)
        for n in range(begin, tl.minimum(begin + STEP, N)):
            part += tl.load(pieces + n * E + e, mask=e < E, other=0.0)
        found += part
    tl.store(out + e, found.to(tl.float32), mask=e < E)


# ---- BatchNorm --------------------------------------------------------------------------------------------

_NUMBERS = ["C", "R", "B", "factor", "count", "eps", "keep", "momentum", "unbiased"]


@triton.jit
def _place(c, r, C, B):
    return (r // B) * (C * B) + c * B + r % B


@triton.jit(do_not_specialize=_NUMBERS)
def batch_norm_kernel(
    x, weight, bias, y, mean_out, variance_out, inverse_out, running_mean, running_var, C, R, B, factor, count, eps, keep, momentum,
    unbiased, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """BatchNorm in training, a channel to a program; x [samples, C, B], R = samples * B numbers a channel, ``count`` = R as float32.

    RUNNING: running_mean = running_mean * keep + mean * momentum, and the same of the variance times ``unbiased``.
    """
    c = tl.program_id(0)
    largest = tl.zeros([BLOCK_R], tl.int32)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        largest = tl.maximum(largest, magnitude(tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0)))
    constant = grid_constant(tl.max(largest, 0), factor)
    sums = tl.zeros([BLOCK_R], tl.float64)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        sums += on_grid(tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0), constant)
    mean = divided(tl.sum(sums, 0).to(tl.float32), count)
    largest = tl.zeros([BLOCK_R], tl.int32)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        away = tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0) - mean
        largest = tl.maximum(largest, magnitude(tl.where(r < R, away * away, 0.0)))
    constant = grid_constant(tl.max(largest, 0), factor)
    sums = tl.zeros([BLOCK_R], tl.float64)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        away = tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0) - mean
        sums += on_grid(tl.where(r < R, away * away, 0.0), constant)
    variance = divided(tl.sum(sums, 0).to(tl.float32), count)
    inverse = inverse_root(variance + eps)
    tl.store(mean_out + c, mean)
    tl.store(variance_out + c, variance)
    tl.store(inverse_out + c, inverse)
    if RUNNING:
        tl.store(running_mean + c, tl.load(running_mean + c) * keep + mean * momentum)
        tl.store(running_var + c, tl.load(running_var + c) * keep + (variance * unbiased) * momentum)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        found = (tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0) - mean) * inverse
        if WEIGHT:
            found = found * tl.load(weight + c)
        if BIAS:
            found = found + tl.load(bias + c)
        tl.store(y + _place(c, r, C, B), found, mask=r < R)


@triton.jit(do_not_specialize=_NUMBERS)
def batch_norm_backward_kernel(
    g, x, mean, inverse, weight, by_input, by_weight, by_bias, C, R, B, factor, count,
    WEIGHT: tl.constexpr, INPUT: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The gradients of BatchNorm in training, a channel to a program."""
    c = tl.program_id(0)
    middle, scale = tl.load(mean + c), tl.load(inverse + c)
    largest_g, largest_p = tl.zeros([BLOCK_R], tl.int32), tl.zeros([BLOCK_R], tl.int32)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        gv = tl.load(g + _place(c, r, C, B), mask=r < R, other=0.0)
        normal = (tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0) - middle) * scale
        largest_g = tl.maximum(largest_g, magnitude(gv))
        largest_p = tl.maximum(largest_p, magnitude(tl.where(r < R, gv * normal, 0.0)))
    constant_g, constant_p = grid_constant(tl.max(largest_g, 0), factor), grid_constant(tl.max(largest_p, 0), factor)
    sums_g, sums_p = tl.zeros([BLOCK_R], tl.float64), tl.zeros([BLOCK_R], tl.float64)
    for begin in range(0, R, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        gv = tl.load(g + _place(c, r, C, B), mask=r < R, other=0.0)
        normal = (tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0) - middle) * scale
        sums_g += on_grid(gv, constant_g)
        sums_p += on_grid(tl.where(r < R, gv * normal, 0.0), constant_p)
    along, across = tl.sum(sums_p, 0).to(tl.float32), tl.sum(sums_g, 0).to(tl.float32)
    tl.store(by_weight + c, along)
    tl.store(by_bias + c, across)
    if INPUT:
        along, across = divided(along, count), divided(across, count)
        factor_out = scale
        if WEIGHT:
            factor_out = tl.load(weight + c) * scale
        for begin in range(0, R, BLOCK_R):
            r = begin + tl.arange(0, BLOCK_R)
            gv = tl.load(g + _place(c, r, C, B), mask=r < R, other=0.0)
            normal = (tl.load(x + _place(c, r, C, B), mask=r < R, other=0.0) - middle) * scale
            tl.store(by_input + _place(c, r, C, B), ((gv - across) - normal * along) * factor_out, mask=r < R)
