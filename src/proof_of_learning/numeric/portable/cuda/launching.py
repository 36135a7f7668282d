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


def taken(x: Any) -> bool:
    """Whether it is a float32 tensor on a CUDA device, of any size."""
    return type(x) in _KINDS and x.dtype is f32 and (x.is_cuda or INTERPRETED) and not x.is_neg()


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
    return not [x for x in tensors if x is not None and not (takes(x) and x.is_contiguous())]


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[float, ...],
    constants: tuple[Any, ...],
    warps: int = 4,
) -> None:
    """Run a kernel, whose parameters are tensors, then numbers, then constants.

    Never with contraction: a product and a sum are two roundings. Triton's own way to a compiled kernel takes some 20 µs, so each is
    remembered by what it was compiled for: constants, the tensors' alignment and the device. Numbers are not specialised for (the
    kernels say so), and kernels expect float32 where a tensor is read, so that nothing else can make a difference.
    """
    if COUNTING:
        LAUNCHED[kernel.__name__] += 1
    if INTERPRETED:
        kernel[grid](*tensors, *numbers, *constants)
        return
    device = tensors[0].get_device()
    if device != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            launch(kernel, grid, tensors, numbers, constants, warps)
        return
    places, together = [], 0
    for x in tensors:
        place = x.data_ptr()
        places.append(place)
        together |= place
    aligned = None if not together & 15 else tuple([place & 15 == 0 for place in places])
    key = (id(kernel), device, warps, aligned, constants)
    compiled = _COMPILED.get(key)
    if compiled is None:
        _COMPILED[key] = _way(kernel[grid](*tensors, *numbers, *constants, num_warps=warps, enable_fp_fusion=False))
        return
    run, function, metadata, scratch = compiled
    run(
        *grid, torch._C._cuda_getCurrentRawStream(device), function, *scratch, metadata, None, None, None, *places, *numbers,
        *constants,
    )  # fmt: skip


def _way(compiled: Any) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """How a compiled kernel is run: what is called, and with what; past Triton's launcher where that only makes room for nothing."""
    run = compiled.run
    if getattr(run, "global_scratch_size", 1) == 0 and getattr(run, "profile_scratch_size", 1) == 0:
        scratch = (run.launch_cooperative_grid, run.launch_pdl, None, None)
        return run.launch, compiled.function, compiled.packed_metadata, scratch
    return run, compiled.function, compiled.packed_metadata, ()


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
