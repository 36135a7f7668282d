"""What else a recorded start holds besides the model: averages, teachers, further modules.

An average starts as a copy of the model, which is tested; anything else has to be tested itself, or a start could hide what it
knows in a part that the steps read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from proof_of_learning.replay.measure import measured
from proof_of_learning.state.names import family_of, part_of
from proof_of_learning.state.state import State

FIRST = 64  # elements that are looked at before the rest
STANDARD = ("optimizer", "scheduler", "scaler", "progress")  # families of parts that start as the task makes them


def is_standard(name: str) -> bool:
    """Whether a part, or the part of a tensor of that name, is an optimizer, a scheduler, the scaler or the progress."""
    return family_of(part_of(name)) in STANDARD


def modules(state: State) -> list[str]:
    """The names of the parts that are modules: only those hold parameters and say which of them are frozen."""
    parts = [(key[2:], node.get("d", [])) for key, node in state.tree["d"] if isinstance(node, dict)]
    return [name for name, items in parts if {"s:parameters", "s:frozen"} <= {item[0] for item in items}]


def independent(parts: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``parts`` that do not follow from one of the model's: by a copy, another precision, or a factor."""
    of_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in model.values():
        if measured(tensor):
            of_shape.setdefault(tuple(tensor.shape), []).append(tensor)
    return {
        name: tensor
        for name, tensor in parts.items()
        if measured(tensor) and not any(follows(tensor, other) for other in of_shape.get(tuple(tensor.shape), ()))
    }


def follows(tensor: Tensor, other: Tensor) -> bool:
    """Whether ``tensor`` is a multiple of ``other`` (of the same shape), up to the coarser rounding of the two."""
    if tensor.is_complex() or other.is_complex():
        return tensor.dtype == other.dtype and torch.equal(tensor, other)
    a, b = tensor.reshape(-1), other.reshape(-1)
    return _multiple(a[:FIRST], b[:FIRST]) and _multiple(a, b)


def _multiple(a: Tensor, b: Tensor) -> bool:
    rounding = 4 * max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    x, y = a.double(), b.double()
    length = float(y.square().sum())
    factor = float((x * y).sum()) / length if length > 0 else 0.0
    return bool(((x - factor * y).abs() <= rounding * (factor * y).abs()).all())
