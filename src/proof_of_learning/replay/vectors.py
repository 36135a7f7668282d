"""Many small tensors as few long vectors: in which pieces :mod:`replay.measure` takes what states of one layout hold.

To look at a tensor costs more than to measure a few thousand numbers; what lies end to end anyway need not be laid so.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proof_of_learning.state.layout import Flat, Layout, Place
from proof_of_learning.state.names import kind_of

PIECE = 1 << 18  # elements
LAYOUTS = 8  # that are remembered


def measured(dtype: torch.dtype, shape: torch.Size) -> bool:
    """Whether a tensor is measured (floating point with at least one dimension) rather than required to be equal."""
    return len(shape) > 0 and (dtype.is_floating_point or dtype.is_complex)


def small(dtype: torch.dtype, elements: int) -> bool:
    """Whether a tensor is measured together with others."""
    return elements < PIECE and not dtype.is_complex and dtype != torch.float64


@dataclass(frozen=True)
class Piece:
    """Tensors that are measured together, and the ``runs`` in which they lie; one alone (no runs) where it is not ``small``."""

    names: tuple[str, ...]
    runs: tuple[Place, ...]

    def of(self, flat: Flat) -> Tensor:
        """Their values end to end."""
        parts = [flat.blocks[run.dtype][run.start : run.stop].float() for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def gathered(described: Mapping[str, tuple[torch.dtype, int]]) -> list[list[str]]:
    """Names by piece. ``described``: dtype and number of elements, in the order in which they are measured."""
    found, waiting, size = list[list[str]](), list[str](), 0
    for name, (dtype, elements) in described.items():
        if not small(dtype, elements):
            found.append([name])
            continue
        if size + elements > PIECE:
            if waiting:
                found.append(waiting)
            waiting, size = [], 0
        waiting.append(name)
        size += elements
    return [*found, waiting] if waiting else found


@functools.lru_cache(LAYOUTS)
def pieces(layout: Layout) -> dict[str, list[Piece]]:
    """The pieces in which states of a layout are measured, by kind of state."""
    kinds: dict[str, dict[str, tuple[torch.dtype, int]]] = {}
    for name, shape in layout.shapes.items():
        dtype = layout.places[name].dtype
        if measured(dtype, shape):
            kinds.setdefault(kind_of(name), {})[name] = dtype, shape.numel()
    return {
        kind: [_piece(layout, names, described) for names in gathered(described)] for kind, described in kinds.items()
    }


def _piece(layout: Layout, names: Sequence[str], described: Mapping[str, tuple[torch.dtype, int]]) -> Piece:
    if not small(*described[names[0]]):
        return Piece(tuple(names), ())
    runs = list[Place]()
    for name in names:
        place = layout.places[name]
        if runs and runs[-1].dtype == place.dtype and runs[-1].stop == place.start:
            runs[-1] = Place(place.dtype, runs[-1].start, place.stop)
        else:
            runs.append(place)
    return Piece(tuple(names), tuple(runs))
