"""Whole states whose values lie on grids, as rounding leaves them, to the bit: a float32 tensor as multiples of a power of two.

Such a multiple takes as many bits as the grid is finer than the values, where a bit pattern takes all of its own. Of a momentum beside
a second moment each element is divided by the power of two below that one's root, as it was when it was rounded. A second
moment is the upper part of its bit patterns, where they end in zeros. What lies on no grid is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.denormals import with_denormals
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import Encoded, finite, float_array
from proof_of_learning.proof.codecs.lossless import bits_entry, bits_items, bits_values
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.proof.codecs.quantised import half_exponent
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.proof.codecs.rounding import power, unsigned
from proof_of_learning.state.names import role, second_of
from proof_of_learning.state.state import State

MULTIPLES, UPPER = "multiples", "upper"
LARGEST = 1 << 23  # of multiples: float32 holds them
WIDTHS = (1, 2)
MOST_BITS = 24  # of a bit pattern, that are left out


class _Found(NamedTuple):
    entry: Entry
    items: Tensor  # flat


def encode(state: State) -> Encoded:
    return Encoded(state, lambda: _chunks(state))


def _chunks(state: State) -> Iterator[bytes]:
    found = {name: _found(name, state.tensors) for name in state.tensors}
    entries = {
        name: bits_entry(tensor, None, name) if (here := found[name]) is None else here.entry
        for name, tensor in state.tensors.items()
    }

    def items(name: str) -> Tensor:
        here = found.pop(name)
        return bits_items(state.tensors[name], entries[name], None, name) if here is None else here.items

    return packed.pack(state.tree, entries, items)


@with_denormals
def decode(raw: bytearray, room: Room | None) -> State:
    tree, entries, items, _ = packed.unpack(raw, None, room)
    tensors = bits_values(
        {n: entry for n, entry in entries.items() if entry.how not in (MULTIPLES, UPPER)}, items, None
    )
    on_grid = {name: entry for name, entry in entries.items() if name not in tensors}
    for name, entry in sorted(on_grid.items(), key=lambda pair: pair[1].how == MULTIPLES):  # these come last
        fits = entry.dtype == "float32" and entry.items in WIDTHS and not entry.by
        fits = fits and (0 <= entry.scale <= MOST_BITS if entry.how == UPPER else -126 <= entry.scale <= 127)
        second = tensors.get(second_of(name)) if entry.how == MULTIPLES else None
        if not fits or (second is not None and (second.dtype, list(second.shape)) != (torch.float32, entry.shape)):
            raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
        numbers = packed.unzigzag(items.pop(name)).to(torch.int32)
        tensors[name] = _value(entry, numbers, second).reshape(entry.shape)
    return State(tree, {name: tensors[name] for name in entries})


def _value(entry: Entry, numbers: Tensor, second: Tensor | None) -> Tensor:
    if entry.how == UPPER:
        return packed.unmap_bits(numbers << entry.scale, torch.float32, [len(numbers)])
    value = numbers.to(torch.float32) * 2.0**entry.scale
    return value if second is None else value * power(half_exponent(second.reshape(-1)))


@with_denormals
def _found(name: str, tensors: Mapping[str, Tensor]) -> _Found | None:
    """A tensor on a grid; None where it lies on none, or on one so fine that nothing would be saved."""
    tensor, second = tensors[name], tensors.get(second_of(name))
    if not float_array(tensor) or not finite(tensor):
        return None
    flat, kind = tensor.reshape(-1), role(name)
    if kind == "second" and unsigned(flat):
        bits, how, second = flat.view(torch.int32), UPPER, None
        scale = min(_zeros(bits), MOST_BITS)
        numbers = bits >> scale
    elif kind in ("weights", "momentum") and (
        second is None or (second.dtype, second.shape) == (tensor.dtype, tensor.shape)
    ):
        whole, how = flat if second is None else flat * power(-half_exponent(second.reshape(-1))), MULTIPLES
        scale = _step(whole)
        if not -126 <= scale <= 127 or float(whole.abs().max()) * 2.0**-scale >= LARGEST:
            return None
        numbers = torch.ldexp(whole.double(), torch.tensor(-scale)).to(torch.int32)
    else:
        return None
    low, high = (int(end) for end in torch.aminmax(numbers))
    width = next((width for width in WIDTHS if -(1 << (8 * width - 1)) <= low and high < 1 << (8 * width - 1)), None)
    if width is None:
        return None
    entry = packed.entry(tensor, width, how, scale)
    if not torch.equal(_value(entry, numbers, second).view(torch.int32), flat.view(torch.int32)):
        return None
    return _Found(entry, packed.zigzag(numbers.to(packed.WIDTHS[width])))


def _step(values: Tensor) -> int:
    """The exponent of the largest power of two that all values are multiples of; 0 where all are 0."""
    bits = values.view(torch.int32)
    exponent, mantissa = bits >> 23 & 255, bits & 0x7FFFFF
    mantissa = torch.where(exponent > 0, mantissa | 0x800000, mantissa)
    lowest = (mantissa & -mantissa).to(torch.float32).view(torch.int32) >> 23  # the exponent of the lowest bit, and 127
    steps = (exponent.clamp(min=1) + lowest)[mantissa != 0]
    return int(steps.min()) - 127 - 150 if len(steps) else 0


def _zeros(bits: Tensor) -> int:
    """How many zeros all these patterns end in; as many as there are bits but the sign where all are zero."""
    together = int(np.bitwise_or.reduce(bits.numpy()))
    return (together & -together).bit_length() - 1 if together else 31
