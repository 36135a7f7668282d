"""Whether sizes fit each other: kernels go through memory by them, and trust them. A program that a proof brings along chooses both.

PyTorch looks at this in its own implementations, which portable arithmetic takes the place of, so it is looked at here before any
engine is asked. What does not fit raises RuntimeError, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

Ints = Sequence[int]
Check = Callable[..., None]

# By the name of an overload: called with its arguments.
FITTING: dict[str, Check] = {}


def _fits(*names: str) -> Callable[[Check], Check]:
    def put(check: Check) -> Check:
        FITTING.update(dict.fromkeys(names, check))
        return check

    return put


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise RuntimeError(what)


def _shaped(what: str, shape: Ints, *tensors: Tensor | None) -> None:
    """That tensors that are given have a shape."""
    for tensor in tensors:
        if tensor is not None and list(tensor.shape) != list(shape):
            raise RuntimeError(f"{what} has shape {list(tensor.shape)}, where {list(shape)} fits")


def _each(setting: Ints, dims: int, least: int, what: str) -> Ints:
    """A setting for each of ``dims`` dimensions, which may be given once for all."""
    _need(len(setting) in (1, dims), f"{what} has {len(setting)} numbers for {dims} dimensions")
    _need(min(setting) >= least, f"{what} is below {least}")
    return setting if len(setting) == dims else [*setting] * dims


# ---- convolution ------------------------------------------------------------------------------------------


def _outputs(
    x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, transposed: bool, more: Ints, groups: int
) -> list[int]:
    """The shape of a convolution's result."""
    dims = x.dim() - 2
    _need(dims in (1, 2, 3) and w.dim() == x.dim(), f"a convolution of {x.dim()} dimensions by {w.dim()}")
    _need(groups > 0, "a convolution has groups")
    stride, dilation = _each(stride, dims, 1, "stride"), _each(dilation, dims, 1, "dilation")
    padding, kernel = _each(padding, dims, 0, "padding"), w.shape[2:]
    _need(w.shape[0] >= groups and w.shape[0] % groups == 0, f"{w.shape[0]} filters are not divided by {groups} groups")
    _need(min(kernel) > 0, "a kernel is empty")
    taken = w.shape[0] if transposed else w.shape[1] * groups
    _need(x.shape[1] == taken, f"a convolution of {x.shape[1]} channels, where {taken} fit")
    settings = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    if transposed:
        more = _each(more, dims, 0, "output padding")
        # PyTorch has more where windows are spread out farther than they are apart; the plain engine's composition has not.
        _need(all(m < s for m, s in zip(more, stride, strict=True)), "output padding is not below the stride")
        places = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in settings]
        places = [n + m for n, m in zip(places, more, strict=True)]
    else:
        places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings]
    _need(min(places) > 0, f"a convolution over {list(x.shape[2:])} places has no result")
    return [x.shape[0], w.shape[1] * groups if transposed else w.shape[0], *places]


@_fits("convolution.default", "convolution_overrideable.default")
def _convolution(x: Tensor, w: Tensor, bias: Tensor | None, *settings: Any) -> None:
    _shaped("the bias of a convolution", _outputs(x, w, *settings)[1:2], bias)


@_fits("convolution_backward.default", "convolution_backward_overrideable.default")
def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, *rest: Any) -> None:
    settings = rest[-7:-1]  # without the sizes of the bias and the mask
    _shaped("the gradient of a convolution", _outputs(x, w, *settings), g)


# ---- norms ------------------------------------------------------------------------------------------------


@_fits("native_layer_norm.default")
def _layer_norm(x: Tensor, shape: Ints, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    _need(len(shape) > 0, "layer_norm is over one dimension or more")
    _need(list(x.shape[-len(shape) :]) == list(shape), f"layer_norm over {list(shape)} of {list(x.shape)}")
    _shaped("a parameter of layer_norm", shape, weight, bias)


@_fits("native_layer_norm_backward.default")
def _layer_norm_backward(
    g: Tensor, x: Tensor, shape: Ints, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any
) -> None:  # fmt: skip
    _layer_norm(x, shape, weight, bias, 0.0)
    _shaped("the gradient of layer_norm", x.shape, g)
    rows = prod(x.shape[: x.dim() - len(shape)])
    _need(mean.numel() == inverse.numel() == rows, "layer_norm has one mean a row")


def _by_channel(x: Tensor, *tensors: Tensor | None) -> None:
    _need(x.dim() >= 2, "batch_norm has channels")
    for tensor in tensors:
        _need(tensor is None or tensor.numel() == x.shape[1], f"batch_norm has {x.shape[1]} channels")


@_fits("native_batch_norm.default", "_native_batch_norm_legit.default", "_native_batch_norm_legit.no_stats")
def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> None:
    _by_channel(x, weight, bias, *(t for t in rest if isinstance(t, Tensor)))


@_fits("native_batch_norm_backward.default")
def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, saved: Tensor | None,
    inverse: Tensor | None, training: bool, *_: Any,
) -> None:  # fmt: skip
    _shaped("the gradient of batch_norm", x.shape, g)
    _by_channel(x, weight, *((saved, inverse) if training else (mean, var)))


@_fits("native_group_norm.default")
def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, samples: int, channels: int, places: int, groups: int, eps: float
) -> None:  # fmt: skip
    _need(x.numel() == samples * channels * places, "group_norm of other sizes than its tensor has")
    _need(groups > 0 and channels % groups == 0, f"{channels} channels are not divided by {groups} groups")
    _shaped("a parameter of group_norm", [channels], weight, bias)


# ---- places -----------------------------------------------------------------------------------------------


@_fits("embedding_dense_backward.default")
def _embedding_backward(g: Tensor, indices: Tensor, rows: int, *_: Any) -> None:
    _need(g.dim() > 0 and rows >= 0, "the gradient of an embedding has rows")
    _need(list(g.shape[:-1]) == list(indices.shape), "the gradient of an embedding has a row for each index")


def _pool(
    x: Tensor, kernel: Ints, stride: Ints = (), padding: Ints = (0,), dilation: Ints = (1,), ceil_mode: bool = False
) -> None:
    _need(x.dim() in (3, 4), f"max_pool2d of {x.dim()} dimensions")
    kernel = _each(kernel, 2, 1, "kernel_size")
    _each(stride or kernel, 2, 1, "stride")
    _each(dilation, 2, 1, "dilation")
    padding = _each(padding, 2, 0, "padding")
    _need(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)), "padding is more than half of a kernel")


FITTING["max_pool2d_with_indices.default"] = _pool


@_fits("max_pool2d_with_indices_backward.default")
def _pool_backward(
    g: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, indices: Tensor
) -> None:
    _pool(x, kernel, stride, padding, dilation, ceil_mode)
    _need(indices.dtype is torch.int64, "indices are int64")
    _shaped("the gradient of max_pool2d", indices.shape, g)
    _need(g.dim() == x.dim() and g.shape[:-2] == x.shape[:-2], "the gradient of max_pool2d has other planes")
