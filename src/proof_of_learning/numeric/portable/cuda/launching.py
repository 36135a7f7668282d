"""Launching kernels: the one place where it is done, without contraction, and without finding out again how each was compiled."""

# mypy: disable-error-code="attr-defined"
from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

f32, f64, i32 = torch.float32, torch.float64, torch.int32
MOST = 1 << 30  # numbers of a tensor: places within one are 32 bits
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on CPU tensors, for tests
LAUNCHED: Counter[str] = Counter()  # by kernel, for tests and profiles; counted while COUNTING
COUNTING = False

_KINDS = (Tensor, nn.Parameter)  # and no subclass, which may hold its numbers elsewhere
_COMPILED: dict[tuple[Any, ...], Any] = {}


def takes(*tensors: Tensor) -> bool:
    """Whether all are float32 on a CUDA device, and neither empty nor huge."""
    for x in tensors:
        if (
            type(x) not in _KINDS
            or x.dtype is not f32
            or not (x.is_cuda or INTERPRETED)
            or not 0 < x.numel() < MOST
            or x.is_neg()
        ):
            return False
    return True


def given(*tensors: Tensor | None) -> bool:
    """The same of those that are there, which have to be contiguous too."""
    return all(x is None or (takes(x) and x.is_contiguous()) for x in tensors)


def launch(
    kernel: Any, grid: tuple[int, int, int], args: tuple[Any, ...], constants: dict[str, Any], warps: int = 4
) -> None:
    """Run a kernel: ``args`` in the order of its parameters, then ``constants`` (its last parameters, in their order).

    Never with contraction: a product and a sum are two roundings. Triton's own way to a compiled kernel takes some 20 µs, so each is
    remembered by what it was compiled for: constants, the tensors' alignment and the device. Integers are not specialised for (the
    kernels say so), and kernels expect float32 where a tensor is read, so that nothing else can make a difference.
    """
    if COUNTING:
        LAUNCHED[kernel.__name__] += 1
    if INTERPRETED:
        kernel[grid](*args, **constants)
        return
    first = args[0]
    device = first.get_device()
    if device != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            launch(kernel, grid, args, constants, warps)
        return
    places = [a.data_ptr() if isinstance(a, Tensor) else a for a in args]
    aligned = [place & 15 == 0 for place, a in zip(places, args, strict=True) if isinstance(a, Tensor)]
    key = (id(kernel), device, warps, *aligned, *constants.values())
    compiled = _COMPILED.get(key)
    if compiled is None:
        _COMPILED[key] = kernel[grid](*args, **constants, num_warps=warps, enable_fp_fusion=False)
        return
    compiled.run(
        *grid, torch._C._cuda_getCurrentRawStream(device), compiled.function, compiled.packed_metadata, None, None, None, *places,
        *constants.values(),
    )  # fmt: skip


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
