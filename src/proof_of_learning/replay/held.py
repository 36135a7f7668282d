"""A state's weights, kept beyond it to measure others against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proof_of_learning.replay import vectors
from proof_of_learning.replay.measure import apart, weight_distance, weights
from proof_of_learning.state.layout import Layout
from proof_of_learning.state.names import WEIGHTS
from proof_of_learning.state.state import State


@dataclass(frozen=True)
class Weights:
    """A state's weights in memory of their own, to measure others against. ``layout``: that of the state, where it has one."""

    tensors: dict[str, Tensor]
    layout: Layout | None
    _vectors: Sequence[Tensor | None]

    @classmethod
    def of(cls, state: State) -> Weights:
        there, flat = weights(state), state.flat
        if flat is None:
            return cls(copied(there), None, ())
        own, found = dict[str, Tensor](), list[Tensor | None]()
        for piece in vectors.pieces(flat.layout).get(WEIGHTS, ()):
            found.append(vector := piece.of(flat).clone() if piece.runs else None)
            if vector is not None and all(run.dtype == vector.dtype for run in piece.runs):
                own |= flat.layout.cut(piece.names, vector)
        own |= copied({name: tensor for name, tensor in there.items() if name not in own})
        return cls({name: own[name] for name in there}, flat.layout, found)

    def distance(self, state: State) -> float:
        """l2 distance of a state's weights; not a number where they are others, or there are none."""
        if self.layout is not None and state.flat is not None and state.flat.layout is self.layout:
            parts = vectors.pieces(self.layout).get(WEIGHTS, ())
            return apart(parts, self._vectors, self.tensors, state) if self.tensors else math.nan
        here = weights(state)
        return weight_distance(self.tensors, here) if self.tensors and alike(self.tensors, here) else math.nan


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, in the same order, with the same shapes and dtypes."""
    return list(a) == list(b) and all(a[n].shape == b[n].shape and a[n].dtype == b[n].dtype for n in a)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values in one block of memory: what was read from a file shares the memory of all that was read with it."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    block, start, copies = torch.empty(size + 16 * len(tensors), dtype=torch.uint8), 0, dict[str, Tensor]()
    for name, tensor in tensors.items():
        room = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies[name] = room.copy_(tensor)
        start += -(-tensor.nbytes // 16) * 16
    return copies
