"""Generators of several processes that draw the same numbers: where they choose the samples, one process's work passes for all.

Two states of a generator can differ and draw alike (a cached number, a seed that was, a place farther on), so it is what they draw
that is compared.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.randomness import RngSnapshot, preserved
from proof_of_learning.state.names import split
from proof_of_learning.state.ranks import of_process
from proof_of_learning.state.state import State

GENERATORS = "generators"  # the part of a state
DRAWN = 1 << 13  # numbers of 32 bits that each draws: two of which one is ahead by less than that meet
CHANCE = 32  # numbers in common that eight processes have at most by chance (one is expected)


def twins(state: State, before: State | None = None) -> tuple[str, ...]:
    """The names of the generators that draw the same numbers in two of the processes whose state this is, at once or soon.

    before: the state before; a generator that is there as here is not drawn from, and told of no more (processes that are forked from
    one have it in common).
    """
    held: dict[str, list[Tensor]] = {}
    used = set[str]()
    for name, tensor in state.tensors.items():
        part, *rest = split(name)
        if of_process(part)[0] == GENERATORS and len(rest) == 1:
            held.setdefault(rest[0], []).append(tensor)
            if before is None or name not in before.tensors or before.tensor_digest(name) != state.tensor_digest(name):
                used.add(rest[0])
    held = {name: states for name, states in held.items() if name in used}
    if not any(len(states) > 1 for states in held.values()):
        return ()
    with preserved():
        return tuple(sorted(name for name, states in held.items() if _meet([_drawn(name, its) for its in states])))


def own_twins(own: State, recorded: State) -> tuple[str, ...]:
    """Those of a script's ``own`` first state that a recorded one has from it: the script seeds them alike."""
    same = {name for name in own.tensors if name in recorded.tensors}
    same = {name for name in same if own.tensor_digest(name) == recorded.tensor_digest(name)}
    other = {
        split(name)[-1] for name in own.tensors if name not in same and of_process(split(name)[0])[0] == GENERATORS
    }
    return tuple(name for name in twins(own) if name not in other)


def _drawn(name: str, state: Tensor) -> npt.NDArray[np.uint32]:
    """What a generator in that state draws; nothing where it is none that there is here, which a replay is told."""
    try:
        RngSnapshot({name: state.numpy()}).restore()
    except (FormatError, TypeError, RuntimeError):
        return np.empty(0, np.uint32)
    if name == "torch":
        return torch.empty(DRAWN, dtype=torch.int32).random_().numpy().astype(np.uint32)
    if name == "numpy":
        return np.frombuffer(np.random.bytes(4 * DRAWN), "<u4")
    if name == "python":
        return np.frombuffer(random.getrandbits(32 * DRAWN).to_bytes(4 * DRAWN, "little"), "<u4")
    return np.empty(0, np.uint32)


def _meet(drawn: list[npt.NDArray[np.uint32]]) -> bool:
    _, counts = np.unique(np.concatenate([np.unique(numbers) for numbers in drawn]), return_counts=True)
    return int((counts > 1).sum()) > CHANCE
