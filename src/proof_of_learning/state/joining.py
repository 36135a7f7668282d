"""A state's tensors laid end to end, and the layouts of states, each made once for all that are laid out alike."""

from __future__ import annotations

import functools

import torch

from proof_of_learning.state.layout import Flat, Layout
from proof_of_learning.state.state import State, tensor_bytes

MOST = 64 << 20  # bytes of states that are laid end to end: of larger ones, few tensors are small
LAYOUTS = 8  # that are remembered


def joined(state: State) -> State:
    """The same state with its tensors end to end, in one block for each dtype; as it is where it is too large for a copy to pay."""
    if state.flat is not None or not state.tensors or state.nbytes > MOST:
        return state
    layout = layout_of(state)
    blocks = {
        dtype: torch.cat([state.tensors[name].reshape(-1) for name in names]) for dtype, names in layout.filled.items()
    }
    whole = {dtype: tensor_bytes(block) for dtype, block in blocks.items()}
    views = {
        name: whole[place.dtype][place.start * place.dtype.itemsize : place.stop * place.dtype.itemsize]
        for name, place in layout.places.items()
    }
    return State(state.tree, layout.tensors(blocks), state._digests, _views=views, flat=Flat(layout, blocks))


def layout_of(state: State) -> Layout:
    """How a state is laid out: its own layout, or that of a state whose tensors lie end to end in their order."""
    if state.flat is not None:
        return state.flat.layout
    return _layout(tuple((name, tensor.dtype, tensor.shape) for name, tensor in state.tensors.items()))


@functools.lru_cache(LAYOUTS)
def _layout(described: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> Layout:
    return Layout.of({name: (dtype, shape) for name, dtype, shape in described}, [name for name, _, _ in described])
