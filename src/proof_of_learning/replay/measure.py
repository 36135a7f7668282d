"""How far two states are apart: four metrics, overall and by kind of state, and what must simply be equal.

Floating-point tensors are measured; everything else (integers, booleans, scalars, and tensors without
dimensions such as an optimizer's step count, whose size would drown the rest) has to be equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from proof_of_learning.proof.format import Displacement
from proof_of_learning.training.state import State, kind_of

METRICS = ("l1", "l2", "linf", "cos")
WEIGHTS = "model/parameters"


class Distance(msgspec.Struct, frozen=True):
    """l1, l2, linf norms of the difference and the cosine distance ``1 - cos(a, b)`` of two vectors."""

    l1: float = 0.0
    l2: float = 0.0
    linf: float = 0.0
    cos: float = 0.0

    def over(self, scale: Distance) -> Distance:
        """Each metric divided by the same metric of ``scale``; 0/0 is 0, x/0 is infinite."""
        return Distance(*(ratio(getattr(self, name), getattr(scale, name)) for name in METRICS))


def ratio(error: float, scale: float) -> float:
    """``error / scale`` with 0/0 = 0 and x/0 = infinity; not a number stays so."""
    if scale == 0.0:
        return 0.0 if error == 0.0 else math.inf if error == error else math.nan
    return error / scale


class Comparison(msgspec.Struct, frozen=True):
    """The distance of two states: ``overall``, by ``kinds`` of state, and the names of what had to be equal but is not."""

    overall: Distance
    kinds: dict[str, Distance]
    unequal: list[str]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.overall.l1) and math.isfinite(self.overall.l2)


@dataclass
class _Sums:
    l1: float = 0.0
    squares: float = 0.0
    linf: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        a, b = _wide(a), _wide(b)
        difference = a - b
        length = _norm(difference)
        if not math.isfinite(length):
            # A mask of infinities that stays as it was is no difference; anything else not finite remains so.
            same = (a == b) | (a.isnan() & b.isnan())
            difference = torch.where(same, torch.zeros_like(difference), difference)
            a, b = (torch.where(same & ~torch.isfinite(t), torch.zeros_like(t), t) for t in (a, b))
            length = _norm(difference)
        sizes = difference.abs_()
        largest = float(torch.aminmax(sizes)[1]) if sizes.numel() else 0.0  # far faster than a norm of order inf
        self.l1 += float(sizes.sum(dtype=torch.float64))
        self.squares += length**2
        self.linf = largest if math.isnan(largest) else max(self.linf, largest)
        self.squares_a += _norm(a) ** 2
        self.squares_b += _norm(b) ** 2

    def merge(self, other: _Sums) -> None:
        self.l1 += other.l1
        self.squares += other.squares
        self.linf = other.linf if math.isnan(other.linf) else max(self.linf, other.linf)
        self.squares_a += other.squares_a
        self.squares_b += other.squares_b

    def distance(self) -> Distance:
        a, b = math.sqrt(self.squares_a), math.sqrt(self.squares_b)
        # 1 - cos(a, b) by the law of cosines, which loses no digits where the two are nearly the same.
        cos = 0.0 if self.squares == 0.0 else (self.squares - (a - b) ** 2) / (2.0 * a * b) if a * b else 1.0
        return Distance(self.l1, math.sqrt(self.squares), self.linf, max(cos, 0.0) if cos == cos else cos)


def measured(tensor: Tensor) -> bool:
    """Whether a tensor is measured (floating point with at least one dimension) rather than required to be equal."""
    return tensor.ndim > 0 and (tensor.is_floating_point() or tensor.is_complex())


def compare(a: State, b: State) -> Comparison:
    """Distances from ``a`` to ``b``; states that differ in structure are reported as unequal there."""
    unequal = [] if _structure(a) == _structure(b) else ["(structure or scalars)"]
    sums: dict[str, _Sums] = {}
    for name, left in a.tensors.items():
        right = b.tensors.get(name)
        if right is None or left.shape != right.shape or left.dtype != right.dtype:
            unequal.append(name)
        elif not measured(left):
            if a.tensor_digest(name) != b.tensor_digest(name):
                unequal.append(name)
        else:
            sums.setdefault(kind_of(name), _Sums()).add(left, right)
    overall = _Sums()
    for part in sums.values():
        overall.merge(part)
    return Comparison(overall.distance(), {kind: s.distance() for kind, s in sorted(sums.items())}, unequal)


def _structure(state: State) -> object:
    return state.tree


def displacement(before: State, after: State) -> Displacement:
    """l2 distance of the full state and of the weights; infinite where a value became not finite."""
    squares: dict[str, float] = {}
    for name, left in before.tensors.items():
        right = after.tensors.get(name)
        if right is None or left.shape != right.shape or left.dtype != right.dtype or not measured(left):
            continue
        kind = kind_of(name)
        squares[kind] = squares.get(kind, 0.0) + _distance(left, right) ** 2
    return Displacement(math.sqrt(sum(squares.values())), math.sqrt(squares.get(WEIGHTS, 0.0)))


def weight_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """l2 distance of two sets of weights with the same names."""
    return math.sqrt(sum(_distance(a[name], b[name]) ** 2 for name in a if measured(a[name])))


def weights(state: State) -> dict[str, Tensor]:
    """The model's parameters, by name."""
    prefix = WEIGHTS + "/"
    return {name: t for name, t in state.tensors.items() if name.startswith(prefix)}


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a type in which differences are exact to its last digit: float32, or float64 as it is."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _distance(left: Tensor, right: Tensor) -> float:
    left, right = _wide(left), _wide(right)
    length = _norm(left - right)
    if math.isfinite(length):
        return length
    same = (left == right) | (left.isnan() & right.isnan())
    changed = torch.where(same, torch.zeros_like(left), left - right)
    length = _norm(changed)
    return length if math.isfinite(length) else math.inf
