"""What the kernels are handed: entries take float32 on a CPU in the layouts that they know, and leave the rest to the plain engine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from proof_of_learning.numeric.portable import drawing
from proof_of_learning.numeric.portable.functions import Kernel
from proof_of_learning.numeric.portable.grid import product_bits
from proof_of_learning.numeric.portable.moving import windows_apart
from proof_of_learning.numeric.portable.native.calls import FUNCTIONS, SQUARE_ROOT, run, threads
from proof_of_learning.numeric.portable.table import native

f32 = torch.float32
Number = float | int | bool
MOST = 1 << 30  # numbers of a tensor: places within one are 32 bits
KINDS = (Tensor, nn.Parameter)  # and no subclass, which may hold its numbers elsewhere


def _takes(*tensors: Tensor) -> bool:
    """Whether all are float32 on a CPU, and neither empty nor huge."""
    for x in tensors:  # noqa: SIM110 (a generator takes twice as long)
        if type(x) not in KINDS or x.dtype is not f32 or not x.is_cpu or not 0 < x.numel() < MOST:
            return False
    return True


def dense(*tensors: Tensor) -> bool:
    """The same, and row by row in memory."""
    for x in tensors:
        if (
            type(x) not in KINDS
            or x.dtype is not f32
            or not x.is_cpu
            or not 0 < x.numel() < MOST
            or not x.is_contiguous()
        ):
            return False
    return True


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _alike(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=f32)


# ---- products -------------------------------------------------------------------------------------------


@native("products.matmul")
def matmul(a: Tensor, b: Tensor, more: Tensor | None = None) -> Any:
    """a [.., m, k] times b [.., k, n]; ``more``, of the result's shape, is added to what was rounded."""
    if not _takes(a, b) or a.dim() != b.dim() or a.dim() not in (2, 3):
        return NotImplemented
    if 1 not in a.stride()[-2:]:
        a = a.contiguous()
    if 1 not in b.stride()[-2:]:
        b = b.contiguous()
    batch, (m, terms), n = a.shape[0] if a.dim() == 3 else 1, a.shape[-2:], b.shape[-1]
    if terms != b.shape[-2] or (a.dim() == 3 and batch != b.shape[0]):
        return NotImplemented
    bits, stretch = product_bits(terms)
    out = torch.empty((batch, m, n) if a.dim() == 3 else (m, n), dtype=f32)
    steps = [(0, *t.stride()) if t.dim() == 2 else t.stride() for t in (a, b)]
    added = (0, 0, 0) if more is None else (0, *more.stride()) if more.dim() == 2 else more.stride()
    run("pol_matmul", a.data_ptr(), *steps[0], b.data_ptr(), *steps[1], _at(more), *added, out.data_ptr(), batch, m, terms, n, bits,
        stretch, threads())  # fmt: skip
    return out


@native("addmm.default", "baddbmm.default")
def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if alpha != 1 or beta != 1 or not _takes(c):
        return NotImplemented
    return matmul(a, b, c.expand((*a.shape[:-1], b.shape[-1])))


Ints = Sequence[int]


def _settings(
    x: Ints,
    out: Ints,
    kernel: Ints,
    groups: int,
    channels: int,
    filters: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Any:
    """The sixteen numbers of a ``Shape`` (products.cpp)."""
    numbers = (x[0], channels, filters, groups, *x[2:], *out, *kernel, *stride, *padding, *dilation)
    return (ctypes.c_int64 * 16)(*numbers)


def _plane(x: Tensor) -> Tensor:
    """Images of one dimension as images of one row."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _two(setting: Ints, dims: int, missing: int) -> list[int]:
    both = [*setting] if len(setting) == dims else [setting[0]] * dims
    return both if dims == 2 else [missing, *both]


def _outputs(x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    settings = zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in settings]


@native("products.forward")
def forward(
    x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, bias: Tensor | None = None
) -> Any:
    dims = x.dim() - 2
    if not _takes(x, w) or dims not in (1, 2) or (bias is not None and not dense(bias)):
        return NotImplemented
    stride, padding, dilation = (_two(setting, dims, m) for setting, m in ((stride, 1), (padding, 0), (dilation, 1)))
    found = _convolved(_plane(x), _plane(w), stride, padding, dilation, groups, bias)
    return found if found is NotImplemented or dims == 2 else found.squeeze(2)


def _convolved(
    x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, bias: Tensor | None
) -> Any:
    x, w = x.contiguous(), w.contiguous()
    out = _outputs(x, w, stride, padding, dilation)
    if min(out) < 1 or x.shape[1] * prod(n + 2 * p for n, p in zip(x.shape[2:], padding, strict=True)) >= MOST:
        return NotImplemented
    terms, filters = w[0].numel(), w.shape[0] // groups
    bits, stretch = product_bits(terms)
    stretch = max(1, stretch // (terms // w.shape[1])) * (terms // w.shape[1])  # whole channels
    y = torch.empty((x.shape[0], w.shape[0], *out), dtype=f32)
    settings = _settings(x.shape, out, w.shape[2:], groups, w.shape[1], filters, stride, padding, dilation)  # fmt: skip
    run("pol_convolution", x.data_ptr(), w.data_ptr(), _at(bias), settings, bits, stretch, y.data_ptr(), threads())
    return y


@native("products.by_input")
def by_input(g: Tensor, w: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Any:
    """A convolution of the gradient, spread out by the strides, by the turned filters."""
    dims = g.dim() - 2
    if not _takes(g, w) or dims not in (1, 2):
        return NotImplemented
    stride, padding, dilation = (_two(setting, dims, m) for setting, m in ((stride, 1), (padding, 0), (dilation, 1)))
    g, w = _plane(g), _plane(w)
    size = [*shape[2:]] if dims == 2 else [1, *shape[2:]]
    around = [d * (k - 1) - p for d, k, p in zip(dilation, w.shape[2:], padding, strict=True)]
    # The rows and columns that no window reached.
    settings = zip(size, padding, dilation, w.shape[2:], g.shape[2:], stride, strict=True)
    rest = [n + 2 * p - d * (k - 1) - 1 - (o - 1) * s for n, p, d, k, o, s in settings]
    if min(around) < 0 or min(rest) < 0:
        return NotImplemented
    if (stride != [1, 1] or dilation != [1, 1]) and not (w.abs().max() < 2.0**120 and g.abs().max() < 2.0**120):
        return NotImplemented  # zeros that the plain engine leaves out would count: on a grid of NaN they are NaN
    if stride != [1, 1] or any(rest):
        wide = [(o - 1) * s + 1 + r for o, s, r in zip(g.shape[2:], stride, rest, strict=True)]
        spread = g.new_zeros((*g.shape[:2], *wide))
        spread[:, :, : wide[0] - rest[0] : stride[0], : wide[1] - rest[1] : stride[1]] = g
        g = spread
    turned = w.unflatten(0, (groups, -1)).transpose(1, 2).flip(3, 4).flatten(0, 1)  # type: ignore[no-untyped-call]
    found = _convolved(g, turned, [1, 1], around, dilation, groups, None)
    return found if found is NotImplemented else found.reshape(list(shape))


@native("products.by_weight")
def by_weight(g: Tensor, x: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Any:
    dims = g.dim() - 2
    if not _takes(g, x) or dims not in (1, 2):
        return NotImplemented
    stride, padding, dilation = (_two(setting, dims, m) for setting, m in ((stride, 1), (padding, 0), (dilation, 1)))
    places = g[0, 0].numel()
    bits, stretch = product_bits(g.shape[0] * places)
    if places > stretch:
        bits = (53 - (places - 1).bit_length()) // 2
    g, x = _plane(g).contiguous(), _plane(x).contiguous()
    if x.shape[1] * prod(n + 2 * p for n, p in zip(x.shape[2:], padding, strict=True)) >= MOST:
        return NotImplemented
    kernel = [*shape[2:]] if dims == 2 else [1, *shape[2:]]
    w = torch.empty(list(shape), dtype=f32)
    settings = _settings(x.shape, g.shape[2:], kernel, groups, shape[1], shape[0] // groups, stride, padding, dilation)
    step = max(1, stretch // max(1, places))
    run("pol_convolution_by_weight", g.data_ptr(), x.data_ptr(), settings, bits, step, w.data_ptr(), threads())
    return w


# ---- sums -----------------------------------------------------------------------------------------------


@native("grid.total")
def total(x: Tensor, dims: Ints, keepdim: bool = False) -> Any:
    if not _takes(x) or not x.dim():
        return NotImplemented
    d = x.dim()
    over = sorted({dim % d for dim in dims}) if dims else list(range(d))
    shape = [1 if i in over else n for i, n in enumerate(x.shape) if keepdim or i not in over]
    count = len(over)
    x = x.contiguous()
    terms = prod(x.shape[i] for i in over)
    out = torch.empty(shape, dtype=f32)
    kept = out.numel()
    if over == list(range(d - count, d)) or kept == 1:
        run("pol_sum_rows", x.data_ptr(), kept, terms, out.data_ptr(), threads())
    elif over == list(range(count)):
        run("pol_sum_columns", x.data_ptr(), terms, kept, out.data_ptr())
    elif over == [0, *range(2, d)]:
        run("pol_sum_channels", x.data_ptr(), x.shape[0], kept, terms // x.shape[0], out.data_ptr(), threads())
    else:
        rows = x.permute(*(i for i in range(d) if i not in over), *over).contiguous()
        run("pol_sum_rows", rows.data_ptr(), kept, terms, out.data_ptr(), threads())
    return out


@native("embedding_dense_backward.default")
def _embedding_backward(g: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool) -> Any:
    if (
        by_frequency
        or not _takes(g)
        or indices.dtype is not torch.int64
        or not indices.is_cpu
        or rows * g.shape[-1] >= MOST
    ):
        return NotImplemented
    g, indices = g.contiguous(), indices.contiguous()
    out = torch.empty((rows, g.shape[-1]), dtype=f32)
    run(
        "pol_embedding_backward",
        g.data_ptr(),
        indices.data_ptr(),
        indices.numel(),
        rows,
        g.shape[-1],
        padding,
        out.data_ptr(),
    )
    return out


# ---- functions ------------------------------------------------------------------------------------------


@native("functions.apply")
def apply(kernel: Kernel, *inputs: Tensor) -> Any:
    which = FUNCTIONS.get(kernel)
    if which is None or not _takes(*inputs):
        return NotImplemented
    dense = [x.contiguous() for x in inputs]
    out = _alike(inputs[0])
    more = _at(dense[1]) if len(dense) > 1 else None
    run("pol_function", which, dense[0].data_ptr(), more, out.numel(), out.data_ptr(), threads())
    return out


@native("functions.square_root")
def square_root(x: Tensor) -> Any:
    if not _takes(x):
        return NotImplemented
    x = x.contiguous()
    out = _alike(x)
    run("pol_function", SQUARE_ROOT, x.data_ptr(), None, out.numel(), out.data_ptr(), threads())
    return out


@native("bernoulli_.float")
def _bernoulli(x: Tensor, p: float = 0.5, *, generator: Generator | None = None) -> Any:
    if not dense(x) or not 0 <= p <= 1:
        return NotImplemented
    run("pol_bernoulli", drawing.key_of(generator), x.numel(), round(p * 2**32), 1.0, 0.0, x.data_ptr())
    return x


# ---- softmax and norms ----------------------------------------------------------------------------------


def _last(x: Tensor, dim: int) -> bool:
    return bool(x.dim()) and dim in (-1, x.dim() - 1)


def _soft(which: int, x: Tensor, dim: int) -> Any:
    if not _takes(x) or not _last(x, dim):
        return NotImplemented
    x = x.contiguous()
    out = _alike(x)
    run("pol_softmax", which, x.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], out.data_ptr(), threads())
    return out


@native("_softmax.default")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return _soft(0, x, dim)


@native("_log_softmax.default")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return _soft(1, x, dim)


@native("_safe_softmax.default")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    return _soft(2, x, dim)


def _soft_backward(which: int, g: Tensor, y: Tensor, dim: int) -> Any:
    if not _takes(g, y) or not _last(g, dim) or g.shape != y.shape:
        return NotImplemented
    g, y = g.contiguous(), y.contiguous()
    out = _alike(g)
    n = g.shape[-1]
    run("pol_softmax_backward", which, g.data_ptr(), y.data_ptr(), g.numel() // n, n, out.data_ptr(), threads())
    return out


@native("_softmax_backward_data.default")
def _softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Any:
    return _soft_backward(0, g, y, dim)


@native("_log_softmax_backward_data.default")
def _log_softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Any:
    return _soft_backward(1, g, y, dim)


def _given(*parameters: Tensor | None) -> bool:
    return dense(*(p for p in parameters if p is not None))


@native("native_layer_norm.default")
def _layer_norm(x: Tensor, shape: Ints, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if not _takes(x) or not _given(weight, bias):
        return NotImplemented
    x = x.contiguous()
    n = prod(shape)
    y, outer = _alike(x), [*x.shape[: x.dim() - len(shape)], *([1] * len(shape))]
    mean, inverse = torch.empty(outer, dtype=f32), torch.empty(outer, dtype=f32)
    run("pol_layer_norm", x.data_ptr(), x.numel() // n, n, _at(weight), _at(bias), eps, y.data_ptr(), mean.data_ptr(),
        inverse.data_ptr(), threads())  # fmt: skip
    return y, mean, inverse


@native("native_layer_norm_backward.default")
def _layer_norm_backward(
    g: Tensor, x: Tensor, shape: Ints, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Sequence[bool]
) -> Any:  # fmt: skip
    if not _takes(g, x) or not _given(mean, inverse, weight) or x.dim() == len(shape):
        return NotImplemented
    g, x = g.contiguous(), x.contiguous()
    n, outside = prod(shape), tuple(range(x.dim() - len(shape)))
    by_input = _alike(x) if mask[0] else None
    part = _alike(x) if mask[1] else None
    run("pol_layer_norm_backward", g.data_ptr(), x.data_ptr(), x.numel() // n, n, mean.data_ptr(), inverse.data_ptr(), _at(weight),
        _at(by_input), _at(part), threads())  # fmt: skip
    return by_input, None if part is None else total(part, outside), total(g, outside) if mask[2] else None


@native("normalisation.normalised")
def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if not _takes(x) or not _given(weight, bias) or x.dim() < 2:
        return NotImplemented
    x = x.contiguous()
    y, (samples, channels) = _alike(x), x.shape[:2]
    mean, variance, inverse = (torch.empty(channels, dtype=f32) for _ in range(3))
    run("pol_batch_norm", x.data_ptr(), samples, channels, x.numel() // (samples * channels), _at(weight), _at(bias), eps,
        y.data_ptr(), mean.data_ptr(), variance.data_ptr(), inverse.data_ptr(), threads())  # fmt: skip
    return y, mean, variance, inverse


@native("native_batch_norm_backward.default")
def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, saved: Tensor | None,
    inverse: Tensor | None, training: bool, eps: float, mask: Sequence[bool],
) -> Any:  # fmt: skip
    if not training or saved is None or inverse is None or not _takes(g, x) or not _given(weight, saved, inverse):
        return NotImplemented
    g, x = g.contiguous(), x.contiguous()
    samples, channels = x.shape[:2]
    by_input = _alike(x) if mask[0] else None
    by_weight, by_bias = torch.empty(channels, dtype=f32), torch.empty(channels, dtype=f32)
    run("pol_batch_norm_backward", g.data_ptr(), x.data_ptr(), samples, channels, x.numel() // (samples * channels),
        saved.data_ptr(), inverse.data_ptr(), _at(weight), _at(by_input), by_weight.data_ptr(), by_bias.data_ptr(),
        threads())  # fmt: skip
    return by_input, by_weight if mask[1] else None, by_bias if mask[2] else None


# ---- pooling --------------------------------------------------------------------------------------------


def _pair(setting: Ints) -> list[int]:
    return [*setting] * (2 if len(setting) == 1 else 1)


@native("max_pool2d_with_indices.default")
def _max_pool(
    x: Tensor, kernel: Ints, stride: Ints = (), padding: Ints = (0,), dilation: Ints = (1,), ceil_mode: bool = False
) -> Any:
    kernel, padding = _pair(kernel), _pair(padding)
    step = _pair(stride) or kernel
    if not dense(x) or x.dim() < 3 or ceil_mode or any(d != 1 for d in dilation):
        return NotImplemented
    out = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[-2:], padding, kernel, step, strict=True)]
    if min(out) < 1 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return NotImplemented
    y = torch.empty((*x.shape[:-2], *out), dtype=f32)
    indices = torch.empty(y.shape, dtype=torch.int64)
    run("pol_max_pool", x.data_ptr(), x.shape[:-2].numel(), *x.shape[-2:], *out, (ctypes.c_int64 * 6)(*kernel, *step, *padding),
        y.data_ptr(), indices.data_ptr(), threads())  # fmt: skip
    return y, indices


@native("max_pool2d_with_indices_backward.default")
def _max_pool_backward(
    g: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, indices: Tensor
) -> Any:
    kernel = _pair(kernel)
    if not _takes(g, x) or not indices.is_contiguous() or not indices.is_cpu:
        return NotImplemented
    g = g.contiguous()
    out = _alike(x)
    apart = windows_apart(kernel, stride, dilation)
    run("pol_max_pool_backward", g.data_ptr(), indices.data_ptr(), x.shape[:-2].numel(), x.shape[-2] * x.shape[-1],
        g.shape[-2] * g.shape[-1], apart, kernel[0] * kernel[1], out.data_ptr(), threads())  # fmt: skip
    return out
