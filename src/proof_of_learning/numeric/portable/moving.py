"""What only moves numbers, makes constants or converts between types, and pooling, which moves or adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.numeric.portable.elementwise import divide
from proof_of_learning.numeric.portable.grid import scattered
from proof_of_learning.numeric.portable.table import RefusedError, as_they_are, portable, single

aten = torch.ops.aten

VIEWS = frozenset((
    "view.default", "view.dtype", "_unsafe_view.default", "reshape.default", "_reshape_alias.default", "alias.default",
    "detach.default", "detach_.default", "t.default", "t_.default", "transpose.int", "transpose_.default", "permute.default",
    "expand.default", "expand_as.default", "slice.Tensor", "select.int", "unsqueeze.default", "unsqueeze_.default",
    "squeeze.default", "squeeze.dim", "squeeze.dims", "squeeze_.dim", "split.Tensor", "split_with_sizes.default",
    "unbind.int", "unsafe_split.Tensor", "unsafe_chunk.default", "chunk.default", "diagonal.default", "as_strided.default",
    "unfold.default", "movedim.int", "view_as_real.default", "lift.default", "lift_fresh.default", "lift_fresh_copy.default",
    "narrow.default", "flatten.using_ints", "real.default", "set_.source_Tensor", "set_.source_Storage",
    "set_.source_Storage_storage_offset",
))  # fmt: skip
as_they_are(
    *VIEWS,
    # copies
    "clone.default", "copy_.default", "copy.default", "contiguous.default", "cat.default", "stack.default", "index.Tensor",
    "_unsafe_index.Tensor", "index_select.default", "gather.default", "take.default", "embedding.default", "flip.default",
    "roll.default", "repeat.default", "tril.default", "triu.default", "tril_.default", "triu_.default", "masked_select.default",
    "constant_pad_nd.default", "slice_backward.default", "select_backward.default", "slice_scatter.default",
    "select_scatter.default", "diagonal_backward.default", "scatter.src", "scatter.value", "scatter_.src", "scatter_.value",
    "index_fill.int_Scalar", "index_fill_.int_Scalar", "index_copy.default", "index_copy_.default", "pixel_shuffle.default",
    "pixel_unshuffle.default", "reflection_pad1d.default", "reflection_pad2d.default", "replication_pad1d.default",
    "replication_pad2d.default", "upsample_nearest1d.default", "upsample_nearest2d.default", "channel_shuffle.default",
    "repeat_interleave.self_int", "repeat_interleave.Tensor", "masked_scatter.default", "rot90.default", "im2col.default",
    "resize_.default", "_local_scalar_dense.default", "item.default", "equal.default", "is_same_size.default", "one_hot.default",
    "bincount.default", "unique_dim.default", "_unique2.default", "nonzero.default", "searchsorted.Tensor", "bucketize.Tensor",
    "max_pool2d_with_indices.default", "max_pool3d_with_indices.default", "adaptive_max_pool2d.default", "diag_embed.default",
    "isin.Tensor_Tensor", "record_stream.default", "is_pinned.default", "_pin_memory.default", "is_nonzero.default",
    # constants
    "zeros.default", "ones.default", "full.default", "empty.memory_format", "empty_strided.default", "empty_like.default",
    "zeros_like.default", "ones_like.default", "full_like.default", "new_zeros.default", "new_ones.default", "new_full.default",
    "new_empty.default", "new_empty_strided.default", "scalar_tensor.default", "fill_.Scalar", "fill_.Tensor", "fill.Scalar",
    "zero_.default", "eye.default", "eye.m", "tril_indices.default", "triu_indices.default", "_efficientzerotensor.default",
)  # fmt: skip


@portable("arange.default", "arange.start", "arange.start_step")
def _arange(*args: Any, **options: Any) -> Tensor:
    if options.get("dtype") is None and any(isinstance(a, float) for a in args):
        options["dtype"] = torch.float32
    wanted = options.pop("dtype", None)
    if wanted is None or not wanted.is_floating_point:
        return torch.arange(*args, dtype=wanted, **options)
    start, end, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    count = max(0, -int(-((end - start) / step) // 1))
    places = torch.arange(count, dtype=torch.float64, **options)
    return (places.mul_(step) + start).to(wanted)  # type: ignore[no-any-return]


@portable("linspace.default")
def _linspace(start: float, end: float, steps: int, **options: Any) -> Tensor:
    wanted = options.pop("dtype", None) or torch.float32
    places = torch.arange(steps, dtype=torch.float64, **options)
    return (places.mul_((end - start) / max(1, steps - 1)) + start).to(wanted)


@portable("_to_copy.default")
def _to_copy(x: Tensor, **options: Any) -> Tensor:
    wanted = options.get("dtype")
    if wanted is not None and (wanted.is_complex or wanted in (torch.float16, torch.bfloat16)):
        raise RefusedError(f"a conversion to {str(wanted).removeprefix('torch.')}; portable arithmetic knows float32")
    return aten._to_copy.default(x, **options)  # type: ignore[no-any-return]


# ---- what adds up the same number in several places ------------------------------------------------------


def windows_apart(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether no two windows share a place. In the gaps of one that is spread out others may lie."""
    kernel, stride, dilation = ([*n] * (2 if len(n) == 1 else 1) for n in (kernel, stride or kernel, dilation))
    return all(s >= d * (k - 1) + 1 for k, s, d in zip(kernel, stride, dilation, strict=True))


@portable("max_pool2d_with_indices_backward.default")
def _max_pool_backward(
    g: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    g, (n, c) = single(g, "max_pool2d"), (x.shape[:-2].numel(), x.shape[-2] * x.shape[-1])
    kernel = list(kernel) * (2 if len(kernel) == 1 else 1)
    flat = indices.reshape(n, -1)

    def spread(added: Tensor) -> Tensor:
        return added.new_zeros(n, c).scatter_add_(1, flat, added.reshape(n, -1)).reshape(x.shape)

    if windows_apart(kernel, stride, dilation):
        return spread(g)
    return scattered(g, kernel[0] * kernel[1], spread)


def _sums_of_windows(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Tensor:
    size = list(kernel) * (2 if len(kernel) == 1 else 1)
    return scattered(
        x, size[0] * size[1], lambda q: aten.avg_pool2d.default(q, kernel, stride, padding, ceil_mode, True, 1)
    )


def _counts(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, with_padding: bool) -> Tensor:
    """How many numbers each window is divided by."""
    ones = torch.ones(1, *x.shape[-2:], dtype=torch.float64, device=x.device)
    sizes = aten.avg_pool2d.default(ones, kernel, stride, padding, ceil_mode, True, 1)
    if not with_padding:
        return sizes.to(torch.float32)  # type: ignore[no-any-return]
    # The mean of ones over a window that counts its padding is sizes / count.
    shares = aten.avg_pool2d.default(ones, kernel, stride, padding, ceil_mode, True, None)
    return (sizes / shares).round().to(torch.float32)  # type: ignore[no-any-return]


@portable("avg_pool2d.default")
def _avg_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0, 0), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor: int | None = None,
) -> Tensor:  # fmt: skip
    sums = _sums_of_windows(single(x, "avg_pool2d"), kernel, stride, padding, ceil_mode)
    by = divisor if divisor is not None else _counts(x, kernel, stride, padding, ceil_mode, count_include_pad)
    return divide(sums, by)


@portable("avg_pool2d_backward.default")
def _avg_pool_backward(
    g: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    by = divisor if divisor is not None else _counts(x, kernel, stride, padding, ceil_mode, count_include_pad)
    size = list(kernel) * (2 if len(kernel) == 1 else 1)
    blank = x.new_empty(1, dtype=torch.float64).expand(x.shape)
    return scattered(
        divide(single(g, "avg_pool2d"), by),
        size[0] * size[1],
        lambda q: aten.avg_pool2d_backward.default(q, blank, kernel, stride, padding, ceil_mode, True, 1),
    )


def _even(x: Tensor, size: Sequence[int]) -> list[int]:
    if any(n % s for n, s in zip(x.shape[-2:], size, strict=True)):
        raise RefusedError(
            f"adaptive_avg_pool2d from {tuple(x.shape[-2:])} to {tuple(size)}; portable arithmetic has it for whole multiples"
        )
    return [n // s for n, s in zip(x.shape[-2:], size, strict=True)]


@portable("_adaptive_avg_pool2d.default")
def _adaptive_avg_pool(x: Tensor, size: Sequence[int]) -> Tensor:
    return _avg_pool(x, _even(x, size), _even(x, size))


@portable("_adaptive_avg_pool2d_backward.default")
def _adaptive_avg_pool_backward(g: Tensor, x: Tensor) -> Tensor:
    kernel = _even(x, g.shape[-2:])
    return _avg_pool_backward(g, x, kernel, kernel, [0, 0], False, True, None)


def _backward_of_a_move(name: str, terms: int) -> None:
    operation = getattr(aten, name).default

    @portable(f"{name}.default")
    def call(g: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        like = [a.to(torch.float64) if isinstance(a, Tensor) else a for a in args]
        return scattered(single(g, name), terms, lambda q: operation(q, *like, **kwargs))


for _name in ("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"):
    _backward_of_a_move(f"{_name}_backward", 1 << 12)
for _name in ("upsample_nearest1d", "upsample_nearest2d"):
    _backward_of_a_move(f"{_name}_backward", 1 << 12)
_backward_of_a_move("unfold_backward", 1 << 12)
_backward_of_a_move("col2im", 1 << 12)
