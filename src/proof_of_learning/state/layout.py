"""Where a state's tensors lie end to end, in a block of memory for each dtype: many small ones are looked at as few long ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Elements ``start`` up to ``stop`` of the block of a dtype."""

    dtype: torch.dtype
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Names of tensors, in a state's order, with their shapes, and their places in the blocks of their dtypes.

    One object stands for all states that are laid out alike, so two of them are compared by ``is``. ``filled``: names by block, in
    the order in which they lie there; ``sizes``: the elements of each block.
    """

    shapes: Mapping[str, torch.Size]
    places: Mapping[str, Place]
    filled: Mapping[torch.dtype, Sequence[str]]
    sizes: Mapping[torch.dtype, int]

    @classmethod
    def of(cls, described: Mapping[str, tuple[torch.dtype, torch.Size]], order: Sequence[str]) -> Layout:
        """``described``: dtype and shape by name, in a state's order; ``order``: the same names as they lie end to end."""
        places, sizes, filled = dict[str, Place](), dict[torch.dtype, int](), dict[torch.dtype, list[str]]()
        for name in order:
            dtype, shape = described[name]
            start = sizes.get(dtype, 0)
            sizes[dtype] = start + shape.numel()
            places[name] = Place(dtype, start, sizes[dtype])
            filled.setdefault(dtype, []).append(name)
        return cls({name: shape for name, (_, shape) in described.items()}, places, filled, sizes)

    def alike(self, other: Layout) -> bool:
        """Whether states of the other have the same tensors by name, dtype and shape, in whatever order."""
        return self is other or (
            self.shapes == other.shapes
            and all(place.dtype == other.places[name].dtype for name, place in self.places.items())
        )

    def tensors(self, blocks: Mapping[torch.dtype, Tensor]) -> dict[str, Tensor]:
        """The tensors by name, as views into ``blocks``."""
        return {name: blocks[dtype].as_strided(*view) for name, (dtype, view) in self._views.items()}

    def cut(self, names: Sequence[str], block: Tensor) -> dict[str, Tensor]:
        """Tensors that lie end to end in a block that holds nothing else, as views into it."""
        parts = torch.split(block, [self.shapes[name].numel() for name in names])
        return {name: part.view(self.shapes[name]) for name, part in zip(names, parts, strict=True)}

    @functools.cached_property
    def _views(self) -> dict[str, tuple[torch.dtype, tuple[torch.Size, tuple[int, ...], int]]]:
        """By name, the dtype, and of the view size, stride and offset: one operation makes it of these."""
        return {
            name: (place.dtype, (shape, torch.empty(shape, device="meta").stride(), place.start))
            for name, shape in self.shapes.items()
            for place in (self.places[name],)
        }


@dataclass(frozen=True, eq=False)
class Flat:
    """The blocks in which a state's tensors lie, by dtype: they share its memory."""

    layout: Layout
    blocks: Mapping[torch.dtype, Tensor]
