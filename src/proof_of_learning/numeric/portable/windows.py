"""Convolutions of whole numbers in float64 as matrix products over windows, where a device may choose an algorithm for its own.

What is summed is exact, so that this is the convolution, whatever the order; Winograd's and Fourier's algorithms would not be. Shapes:
``x`` [n, channels, *places], ``w`` [filters, channels / groups, *kernel].
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

Ints = Sequence[int]


def _each(setting: Ints, dims: int) -> list[int]:
    """One number for each dimension, of which there may be one for all."""
    return [*setting] if len(setting) == dims else [setting[0]] * dims


def _padded(x: Tensor, around: Sequence[tuple[int, int]]) -> Tensor:
    """``x`` with zeros around it, or cut where a number is negative: (before, behind) for each dimension of the places."""
    flat = [n for pair in reversed(around) for n in pair]
    return F.pad(x, flat) if any(flat) else x


def _windows(x: Tensor, kernel: Ints, stride: Ints, dilation: Ints, groups: int) -> tuple[Tensor, list[int]]:
    """(the windows of a padded ``x``, [groups, n * outputs, channels / groups * prod(kernel)]; the outputs)."""
    x = x.contiguous()
    places, d = x.shape[2:], x.dim() - 2
    out = [(n - dil * (k - 1) - 1) // s + 1 for n, k, s, dil in zip(places, kernel, stride, dilation, strict=True)]
    each = x.stride()
    grouped = x.shape[1] // groups
    seen = x.as_strided(
        [groups, x.shape[0], *out, grouped, *kernel],
        [grouped * each[1], each[0], *(each[2 + i] * stride[i] for i in range(d)), each[1],
         *(each[2 + i] * dilation[i] for i in range(d))],
    )  # fmt: skip
    return seen.reshape(groups, x.shape[0] * prod(out), grouped * prod(kernel)), out


def forward(x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """The convolution, [n, filters, *outputs]."""
    kernel = w.shape[2:]
    stride, padding, dilation = (_each(setting, len(kernel)) for setting in (stride, padding, dilation))
    seen, out = _windows(_padded(x, [(p, p) for p in padding]), kernel, stride, dilation, groups)
    y = torch.bmm(seen, w.reshape(groups, w.shape[0] // groups, -1).transpose(1, 2))
    y = y.reshape(groups, x.shape[0], *out, w.shape[0] // groups).movedim(-1, 1).movedim(2, 0)
    return y.reshape(x.shape[0], w.shape[0], *out)


def by_input(g: Tensor, w: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """The gradient by an input of that ``shape``: a convolution of the gradient, spread out by the strides, with turned filters."""
    kernel, d = w.shape[2:], w.dim() - 2
    stride, padding, dilation = (_each(setting, d) for setting in (stride, padding, dilation))
    if any(s > 1 for s in stride):
        spread = g.new_zeros([*g.shape[:2], *((n - 1) * s + 1 for n, s in zip(g.shape[2:], stride, strict=True))])
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = g
        g = spread
    around = list[tuple[int, int]]()
    for i in range(d):
        before = dilation[i] * (kernel[i] - 1) - padding[i]
        around.append((before, shape[2 + i] + dilation[i] * (kernel[i] - 1) - g.shape[2 + i] - before))
    turned = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).transpose(1, 2).flip(*range(3, 3 + d))
    return forward(_padded(g, around), turned.flatten(0, 1), [1] * d, [0] * d, dilation, groups)


def by_weight(g: Tensor, x: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """The gradient by weights of that ``shape``."""
    kernel = shape[2:]
    stride, padding, dilation = (_each(setting, len(kernel)) for setting in (stride, padding, dilation))
    padded = _padded(x, [(p, p) for p in padding])
    reach = [  # the last window ends here; what lies behind it was never seen
        (n - 1) * s + dil * (k - 1) + 1 for n, s, dil, k in zip(g.shape[2:], stride, dilation, kernel, strict=True)
    ]
    padded = padded[(slice(None), slice(None), *(slice(0, n) for n in reach))]
    seen, _ = _windows(padded, kernel, stride, dilation, groups)
    gradients = g.reshape(g.shape[0], groups, shape[0] // groups, -1).permute(1, 2, 0, 3)
    return torch.bmm(gradients.reshape(groups, shape[0] // groups, -1), seen).reshape(list(shape))
