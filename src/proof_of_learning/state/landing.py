"""Tensors of an accelerator on their way into memory: few copies, on a stream of their own, for which its steps need not wait."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SMALL = 1 << 20  # bytes; tensors up to here are laid end to end before they are copied


def landing(tensors: dict[str, Tensor]) -> Callable[[], None] | None:
    """Put copies in memory in the place of tensors on a GPU, and begin to fill them; of a state with such tensors, all others are
    cloned, so that nothing of it is shared with anybody.

    Returns what waits until the copies are complete; None where there are no such tensors. Steps may go on at once: where they change
    what is still being copied, the device waits, and not the caller.
    """
    there = {name: tensor for name, tensor in tensors.items() if tensor.device.type == "cuda"}
    if not there:
        return None
    devices = {tensor.device for tensor in there.values()}
    for name, tensor in tensors.items():
        if name not in there:
            tensors[name] = tensor.clone()
    done = [_begin({n: t for n, t in there.items() if t.device == device}, device, tensors) for device in devices]

    def wait() -> None:
        for event in done:
            event.synchronize()

    return wait


def _begin(there: dict[str, Tensor], device: torch.device, landed: dict[str, Tensor]) -> torch.cuda.Event:
    """Begin to copy what is on one device; returns what happens when that is complete."""
    small, large = dict[torch.dtype, dict[str, Tensor]](), dict[str, Tensor]()
    for name, tensor in there.items():
        if tensor.nbytes <= _SMALL:
            small.setdefault(tensor.dtype, {})[name] = tensor
        else:
            large[name] = tensor
    with torch.cuda.device(device):
        steps, copies = torch.cuda.current_stream(), _stream(device)
        blocks = {
            dtype: _end_to_end(list(found.values())) for dtype, found in small.items()
        }  # in the order of the steps
        copies.wait_stream(steps)
        with torch.cuda.stream(copies):
            for dtype, block in blocks.items():
                room = torch.empty(block.shape, dtype=torch.uint8, pin_memory=True)
                room.copy_(block, non_blocking=True)
                block.record_stream(copies)
                landed.update(_cut(room.view(dtype), small[dtype]))
            for name, tensor in large.items():
                room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                landed[name] = room.copy_(tensor, non_blocking=True)
            done: torch.cuda.Event = copies.record_event()
        if large:
            steps.wait_event(done)
    return done


def _end_to_end(tensors: list[Tensor]) -> Tensor:
    """The bytes of tensors of one dtype. (Not their elements: some dtypes cannot be put together.)"""
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


def _cut(block: Tensor, alike: dict[str, Tensor]) -> dict[str, Tensor]:
    """A block of their elements, as tensors of their shapes."""
    parts = torch.split(block, [tensor.numel() for tensor in alike.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(alike.items(), parts, strict=True)}


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies from a device: one for the process, so that pinned memory is used again at once."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]
