"""Generators that choose the samples of a loop, and draw what no seed makes them draw: the same numbers in several processes, so that
one's work passes for all, or few numbers over and over (a twister of zeros draws nothing else), so that few samples pass for all.

Two states of a generator can differ and draw alike (a cached number, a seed that was, a place farther on), and one that is hardly
filled takes long to recover, so it is what they draw that is looked at.
"""

from __future__ import annotations

import random
import threading

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
BITS = {"torch": 31}  # of a number that is drawn, where they are not 32
SIGMAS = 8.0  # of chance, by which each bit of the numbers is 1 as often as 0
REPEATS = 8  # numbers that one generator draws again by chance, at most (of a hundred, one draws any again)
_one_at_a_time = threading.Lock()  # what draws are the process's own generators


def twins(state: State, before: State | None = None) -> tuple[str, ...]:
    """The names of the generators that draw the same numbers in two of the processes whose state this is, at once or soon.

    before: the state before; a generator that is there as here is not drawn from, and told of no more (processes that are forked from
    one have it in common).
    """
    used, held = {name for name, _ in _generators(state, before)}, dict[str, list[Tensor]]()
    for name, tensor in _generators(state):
        if name in used:
            held.setdefault(name, []).append(tensor)
    if not any(len(states) > 1 for states in held.values()):
        return ()
    with _one_at_a_time, preserved():
        return tuple(sorted(name for name, states in held.items() if _meet([_drawn(name, its) for its in states])))


def stuck(state: State, before: State | None = None) -> tuple[str, ...]:
    """The names of the generators whose numbers are no random ones; ``before`` as for :func:`twins`."""
    drawn_from = _generators(state, before)
    if not drawn_from:
        return ()
    with _one_at_a_time, preserved():
        return tuple(sorted({
            name for name, its in drawn_from if not _random(_drawn(name, its), BITS.get(name, 32))
        }))  # fmt: skip


def _generators(state: State, before: State | None = None) -> list[tuple[str, Tensor]]:
    """Names and states of the generators of all processes; without those that are there ``before`` as here."""
    found = []
    for name, tensor in state.tensors.items():
        part, *rest = split(name)
        if of_process(part)[0] != GENERATORS or len(rest) != 1:
            continue
        if before is None or name not in before.tensors or before.tensor_digest(name) != state.tensor_digest(name):
            found.append((rest[0], tensor))
    return found


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


def _random(numbers: npt.NDArray[np.uint32], bits: int) -> bool:
    """Whether numbers of so many bits look drawn: hardly one comes twice, and each bit is 1 about as often as 0."""
    if not len(numbers):
        return True
    ones = np.array([np.count_nonzero(numbers & np.uint32(1 << bit)) for bit in range(bits)])
    away = np.abs(ones - len(numbers) / 2).max() / np.sqrt(len(numbers) / 4)
    return bool(away <= SIGMAS and len(numbers) - len(np.unique(numbers)) <= REPEATS)
