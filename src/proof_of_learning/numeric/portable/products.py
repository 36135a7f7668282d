"""Products: operands on a grid of 20 to 22 bits, multiplied and added up in float64 without any rounding, then one to float32.

One grid for all that one sum takes from an operand: of a matrix product, for each row of the left and each column of the right one; of
a convolution, for each sample and each output channel. Where a sum has more than 2**13 terms it is cut into stretches of so many,
whose float64 sums are added from the first to the last. A sum begins with 0: none is -0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.numeric.portable import windows
from proof_of_learning.numeric.portable.grid import product_bits, quantise, total
from proof_of_learning.numeric.portable.table import building_block, portable, single

aten = torch.ops.aten


@building_block("products.matmul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices (or of batches of them), [.., m, k] times [.., k, n]."""
    a, b = single(a, "a product"), single(b, "a product")
    terms = a.shape[-1]
    bits, stretch = product_bits(terms)
    left, right = quantise(a, (a.dim() - 1,), bits), quantise(b, (b.dim() - 2,), bits)
    found = torch.matmul(left[..., :stretch], right[..., :stretch, :])
    for start in range(stretch, terms, stretch):
        found = found + torch.matmul(left[..., start : start + stretch], right[..., start : start + stretch, :])
    return _rounded(found)


def _rounded(sums: Tensor) -> Tensor:
    """Sums as float32. They begin with 0, so that none is -0, which libraries make of a sum of one term, or not."""
    return sums.add_(0.0).to(torch.float32)


@portable("mm.default", "bmm.default")
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return matmul(a, b)


@portable("mv.default")
def _mv(a: Tensor, b: Tensor) -> Tensor:
    return matmul(a, b.unsqueeze(1)).squeeze(1)


@portable("dot.default", "vdot.default")
def _dot(a: Tensor, b: Tensor) -> Tensor:
    return matmul(a.unsqueeze(0), b.unsqueeze(1)).reshape(())


@portable("addmm.default", "baddbmm.default", "addbmm.default", inplace=True)
def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(c, matmul(a, b), beta, alpha)


@portable("addmv.default", inplace=True)
def _addmv(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(c, _mv(a, b), beta, alpha)


def _scaled(c: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    if alpha != 1:
        product = product.mul_(alpha)
    return product if beta == 0 else product.add_(c if beta == 1 else c * beta)


# ---- convolution ------------------------------------------------------------------------------------------


@portable("convolution.default", "convolution_overrideable.default")
def _convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    x, w = single(x, "a convolution"), single(w, "a convolution")
    if transposed:
        # The gradient by the input of the convolution that leads the other way.
        shape = [
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                x.shape[2:], stride, padding, dilation, w.shape[2:], output_padding, strict=True
            )
        ]
        y = _by_input(x, w, [x.shape[0], w.shape[1] * groups, *shape], stride, padding, dilation, groups)
        return y if bias is None else y.add_(bias.reshape(_along_channels(bias, y)))
    return _forward(x, w, stride, padding, dilation, groups, bias)


def _along_channels(bias: Tensor, y: Tensor) -> list[int]:
    return [1, bias.numel(), *([1] * (y.dim() - 2))]


@building_block("products.forward")
def _forward(
    x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, bias: Tensor | None = None
) -> Tensor:
    terms = w[0].numel()
    bits, stretch = product_bits(terms)
    rest = tuple(range(1, x.dim()))
    xq, wq = quantise(x, rest, bits), quantise(w, rest, bits)
    plain = [0] * len(stride)
    y: Tensor | None = None
    for part in _channel_stretches(w.shape[1], terms, stretch):
        xs = xq if part == slice(0, w.shape[1]) else _of_groups(xq, groups, part)
        if x.device.type == "cpu":
            piece = aten.convolution.default(xs, wq[:, part], None, stride, padding, dilation, False, plain, groups)
        else:
            piece = windows.forward(xs, wq[:, part], stride, padding, dilation, groups)
        y = piece if y is None else y + piece
    assert y is not None
    found = _rounded(y)
    return found if bias is None else found.add_(bias.reshape(_along_channels(bias, found)))


def _channel_stretches(channels: int, terms: int, stretch: int) -> list[slice]:
    """Stretches of whole channels that make up at most ``stretch`` terms."""
    step = max(1, stretch // max(1, terms // channels))
    return [slice(start, min(channels, start + step)) for start in range(0, channels, step)]


def _of_groups(x: Tensor, groups: int, part: slice) -> Tensor:
    """The same stretch of channels of each group."""
    return x.unflatten(1, (groups, -1))[:, :, part].flatten(1, 2)  # type: ignore[no-untyped-call, no-any-return]


@building_block("products.by_input")
def _by_input(
    g: Tensor, w: Tensor, shape: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """The gradient by the input of a convolution with weights ``w``: sums over output channels and places of the kernel."""
    terms = (w.shape[0] // groups) * w[0, 0].numel()
    bits, stretch = product_bits(terms)
    gq = quantise(g, tuple(range(1, g.dim())), bits)
    grouped = w.unflatten(0, (groups, -1))  # type: ignore[no-untyped-call]
    wq = quantise(grouped, (1, *range(3, grouped.dim())), bits)
    plain = [0] * len(stride)
    blank = g.new_empty(1, dtype=torch.float64).expand(shape)
    y: Tensor | None = None
    for part in _channel_stretches(wq.shape[1], terms, stretch):
        whole = part == slice(0, wq.shape[1])
        gs = gq if whole else _of_groups(gq, groups, part)
        ws = wq[:, part].flatten(0, 1)
        if g.device.type == "cpu":
            piece = aten.convolution_backward.default(
                gs, blank, ws, None, stride, padding, dilation, False, plain, groups, [True, False, False]
            )[0]
        else:
            piece = windows.by_input(gs, ws, shape, stride, padding, dilation, groups)
        y = piece if y is None else y + piece
    assert y is not None
    return _rounded(y)


@building_block("products.by_weight")
def _by_weight(
    g: Tensor, x: Tensor, shape: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """The gradient by the weights of a convolution: sums over samples and places of the output."""
    places = g[0, 0].numel()
    terms = g.shape[0] * places
    bits, stretch = product_bits(terms)
    if places > stretch:  # one sample alone has more terms than are exact: fewer bits
        bits = (53 - (places - 1).bit_length()) // 2
    step = max(1, stretch // max(1, places))
    rest = (0, *range(2, g.dim()))
    gq, xq = quantise(g, rest, bits), quantise(x, rest, bits)
    plain = [0] * len(stride)
    blank = g.new_empty(1, dtype=torch.float64).expand(shape)
    y: Tensor | None = None
    for start in range(0, g.shape[0], step):
        gs, xs = gq[start : start + step], xq[start : start + step]
        if g.device.type == "cpu":
            piece = aten.convolution_backward.default(
                gs, xs, blank, None, stride, padding, dilation, False, plain, groups, [False, True, False]
            )[1]
        else:
            piece = windows.by_weight(gs, xs, shape, stride, padding, dilation, groups)
        y = piece if y is None else y + piece
    assert y is not None
    return _rounded(y)


@portable("convolution_backward.default", "convolution_backward_overrideable.default")
def _convolution_backward(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    g, x, w = (single(t, "a convolution") for t in (g, x, w))
    by_input = by_weight = by_bias = None
    if mask[0]:
        if transposed:
            by_input = _forward(g, w, stride, padding, dilation, groups)
        else:
            by_input = _by_input(g, w, x.shape, stride, padding, dilation, groups)
    if mask[1]:
        there, here = (x, g) if transposed else (g, x)
        by_weight = _by_weight(there, here, w.shape, stride, padding, dilation, groups)
    if mask[2]:
        by_bias = total(g, (0, *range(2, g.dim())))
    return by_input, by_weight, by_bias
