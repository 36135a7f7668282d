"""The ``lossless`` codec: each value's difference to the checkpoint before, as integers, byte-shuffled and compressed.

Floating-point bit patterns in the order of their values are integers whose difference is small where the values are close, in units
of the last place. Where a momentum predicts weights, the difference is to the prediction. A keyframe (no base) takes differences
to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs import packed, prediction
from proof_of_learning.proof.codecs.base import PIECE, SMALL, Encoded, batched, joined, same_kind
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.proof.codecs.prediction import PREDICTED
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.state.state import DTYPES, State

PLAIN, DIFFERENCE = "plain", "difference"


class LosslessCodec:
    name = "lossless"
    version = 1
    exact = True

    def encode(self, state: State, base: State | None) -> Encoded:
        return Encoded(state, lambda: self._chunks(state, base))

    def _chunks(self, state: State, base: State | None) -> Iterator[bytes]:
        entries = {name: bits_entry(tensor, base, name) for name, tensor in state.tensors.items()}
        entries |= prediction.entries(state, base)

        def items(name: str) -> Tensor:
            if entries[name].how != PREDICTED:
                return bits_items(state.tensors[name], entries[name], base, name)
            assert base is not None
            foretold = prediction.predicted(entries[name], name, state, base)
            return _differences(state.tensors[name], foretold)

        return packed.pack(state.tree, entries, items)

    def decode(self, raw: bytearray, base: State | None, room: Room | None = None) -> State:
        tree, entries, items, _ = packed.unpack(raw, base, room)
        tensors = bits_values({name: item for name, item in entries.items() if item.how != PREDICTED}, items, base)
        for name, item in entries.items():
            if item.how != PREDICTED:
                continue
            prediction.check(item, name, entries, base)
            base_tensor(base, item, name)
            assert base is not None
            foretold = prediction.predicted(item, name, State(tree, tensors), base)
            tensors[name] = _values(items.pop(name), foretold, torch.float32).reshape(item.shape)
        return State(tree, {name: tensors[name] for name in entries})

    def nearest(self, arrived: State, recorded: State, base: State) -> State:
        return recorded


def bits_entry(tensor: Tensor, base: State | None, name: str) -> Entry:
    """The entry of a tensor that is kept to the bit."""
    return packed.entry(tensor, tensor.element_size(), DIFFERENCE if same_kind(tensor, base, name) else PLAIN)


def bits_items(tensor: Tensor, entry: Entry, base: State | None, name: str) -> Tensor:
    if entry.how == PLAIN:
        return packed.map_bits(tensor)
    assert base is not None
    return _differences(tensor, base.tensors[name])


def bits_values(entries: Mapping[str, Entry], items: dict[str, Tensor], base: State | None) -> dict[str, Tensor]:
    """The tensors that :func:`bits_entry` and :func:`bits_items` describe, of which it takes the ``items``; small ones are made
    together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, entry in entries.items():
        dtype = DTYPES[entry.dtype]
        if entry.items != dtype.itemsize or entry.scale or entry.by or entry.how not in (PLAIN, DIFFERENCE):
            raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
        if entry.how == DIFFERENCE:
            base_tensor(base, entry, name)
        alike.setdefault((entry.dtype, entry.how), []).append(name)
    found: dict[str, Tensor] = {}
    for (kind, how), names in alike.items():
        dtype = DTYPES[kind]
        for batch in batched(names, lambda name: items[name].numel(), SMALL):
            before = None
            if how == DIFFERENCE and base is not None:  # as integers, of which PyTorch has all widths
                flats = [base.tensors[name].reshape(-1).view(packed.WIDTHS[dtype.itemsize]) for name in batch]
                before = joined(flats).view(dtype)
            sizes = [items[name].numel() for name in batch]
            whole = joined([items.pop(name) for name in batch])
            if dtype != torch.bool:
                flat = _values(whole, before, dtype)
            else:
                bits = whole if before is None else packed.unzigzag(whole) + packed.map_bits(before)
                if bits.numel() and not all(0 <= int(end) <= 1 for end in torch.aminmax(bits)):
                    raise FormatError(f"the tensor {batch[0][:80]!r}, or one like it, has values that are no booleans")
                flat = packed.unmap_bits(bits, dtype, [len(bits)])
            for name, part in zip(batch, torch.split(flat, sizes) if len(batch) > 1 else [flat], strict=True):
                found[name] = part.reshape(entries[name].shape)
    return found


def _differences(tensor: Tensor, before: Tensor) -> Tensor:
    """What is stored of a tensor that is a difference to another; but for the result, the memory of a piece."""
    after, before = tensor.reshape(-1), before.reshape(-1)
    items = torch.empty(len(after), dtype=packed.WIDTHS[after.element_size()])
    for start in range(0, len(items), PIECE):
        part = slice(start, start + PIECE)
        items[part] = packed.zigzag(packed.map_bits(after[part]) - packed.map_bits(before[part]))
    return items


def _values(items: Tensor, before: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The inverse, flat, in the memory of ``items``; of values as they are where there is none ``before``."""
    bits, base = items.reshape(-1), None if before is None else before.reshape(-1)
    for start in range(0, len(bits), PIECE):
        part = slice(start, start + PIECE)
        piece = bits[part] if base is None else packed.unzigzag(bits[part]) + packed.map_bits(base[part])
        bits[part] = packed.unmap_bits(piece, dtype, [len(piece)]).view(bits.dtype)
    return bits.view(dtype)


def base_tensor(base: State | None, entry: Entry, name: str) -> Tensor:
    """The base's tensor that an entry is a difference to."""
    before = None if base is None else base.tensors.get(name)
    if before is None or before.dtype != DTYPES[entry.dtype] or list(before.shape) != entry.shape:
        raise FormatError(f"the tensor {name[:80]!r} is a difference to one that its base does not have")
    return before
