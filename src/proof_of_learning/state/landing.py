"""Tensors of an accelerator on their way into memory: few copies, on a stream of their own, for which its steps need not wait."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from proof_of_learning.state.layout import Flat, Layout

_SMALL = 1 << 20  # bytes; tensors up to here are laid end to end before they are copied
_LAYOUTS = 8  # that are remembered


def landing(tensors: dict[str, Tensor]) -> tuple[Flat, Callable[[], None]] | None:
    """Where there are tensors on a GPU, put memory of their own in the place of all of them, and begin to fill it.

    Returns where they lie, end to end, and what waits until they are complete; None where there is nothing on a GPU. Steps may go on
    at once: where they change what is still being copied, the device waits, and not the caller.
    """
    there: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        there.setdefault(tensor.device, {})[name] = tensor
    here = there.pop(torch.device("cpu"), {})
    if not there:
        return None
    layout = _layout(tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()))
    blocks = {dtype: torch.empty(size, dtype=dtype, pin_memory=True) for dtype, size in layout.sizes.items()}
    tensors.update(layout.tensors(blocks))
    if here:
        torch._foreach_copy_([tensors[name] for name in here], list(here.values()))
    waiting = [_begin(found, device, layout, tensors) for device, found in there.items()]
    lock = threading.Lock()

    def wait() -> None:
        with lock:
            while waiting:
                waiting[-1]()
                waiting.pop()

    return Flat(layout, blocks), wait


@functools.lru_cache(_LAYOUTS)
def _layout(described: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> Layout:
    """By dtype in the order of their names, so that what is alike lies together."""
    return Layout.of(
        {name: (dtype, shape) for name, dtype, shape in described}, sorted(name for name, _, _ in described)
    )


def _begin(
    there: Mapping[str, Tensor], device: torch.device, layout: Layout, places: Mapping[str, Tensor]
) -> Callable[[], None]:
    """Begin to copy what is on one device to where it belongs; returns what waits for that."""
    small: dict[torch.dtype, dict[str, Tensor]] = {}
    large = {name: tensor for name, tensor in there.items() if tensor.nbytes > _SMALL}
    for name, tensor in there.items():
        if name not in large and tensor.numel():
            small.setdefault(tensor.dtype, {})[name] = tensor
    with torch.cuda.device(device):
        steps, copies = torch.cuda.current_stream(), _stream(device)
        blocks = {
            dtype: _end_to_end(list(found.values())) for dtype, found in small.items()
        }  # in the order of the steps
        copies.wait_stream(steps)
        arrived = dict[torch.dtype, Tensor]()
        with torch.cuda.stream(copies):
            for dtype, block in blocks.items():
                arrived[dtype] = torch.empty(block.shape, dtype=torch.uint8, pin_memory=True)
                arrived[dtype].copy_(block, non_blocking=True)
                block.record_stream(copies)
            for name, tensor in large.items():
                places[name].copy_(tensor, non_blocking=True)
            done: torch.cuda.Event = copies.record_event()
        if large:
            steps.wait_event(done)

    def wait() -> None:
        done.synchronize()
        for dtype, block in arrived.items():
            parts = layout.cut(list(small[dtype]), block.view(dtype))
            torch._foreach_copy_([places[name] for name in parts], list(parts.values()))

    return wait


def _end_to_end(tensors: list[Tensor]) -> Tensor:
    """The bytes of tensors of one dtype. (Not their elements: some dtypes cannot be put together.)"""
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies from a device: one for the process, so that pinned memory is used again at once."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]
