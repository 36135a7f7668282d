"""How far two states are apart: four metrics, overall and by kind of state, and what must simply be equal.

Floating-point tensors are measured; everything else (integers, booleans, scalars, and tensors without
dimensions such as an optimizer's step count, whose size would drown the rest) has to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from proof_of_learning.proof.format import Displacement
from proof_of_learning.replay import vectors
from proof_of_learning.replay.vectors import PIECE
from proof_of_learning.state.names import WEIGHTS, family_of, kind_of
from proof_of_learning.state.state import State, decode_tree

METRICS = ("l1", "l2", "linf", "cos")
_OF_LOSSES = {"progress": "losses", "scheduler": "best"}  # by family of parts, a scalar that is made of losses
LOSS_NOISE = 1e-3  # by which losses may differ on another machine, of their size
LONGEST = 1e150  # a length from here on counts as infinite, so that its square is a number


class Distance(msgspec.Struct, frozen=True):
    """l1, l2, linf norms of the difference and the cosine distance ``1 - cos(a, b)`` of two vectors."""

    l1: float = 0.0
    l2: float = 0.0
    linf: float = 0.0
    cos: float = 0.0

    def least(self, other: Distance) -> Distance:
        """Of each metric, the smaller."""
        return Distance(*(min(getattr(self, name), getattr(other, name)) for name in METRICS))

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


class TensorError(msgspec.Struct, frozen=True, array_like=True):
    """One measured tensor: l2 of its ``error``, of its ``span`` over the segment (the smaller of the two), number of ``elements``."""

    error: float
    span: float
    elements: int


class Direction(msgspec.Struct, frozen=True, array_like=True):
    """How one tensor's error e (reference - replay) lies to the way g from the segment's start to the final weights.

    along: <e, g>; moved_along: <d, g>, d being what the segment moved; error and way: the lengths of e and g.
    A momentum m goes the opposite way: with its error f, these are <f, -g>, <m, -g> and the lengths of f and of its weights' g.
    """

    along: float
    moved_along: float
    error: float
    way: float


class Detail(msgspec.Struct, frozen=True):
    """What calibrated comparison needs beyond norms: errors tensor by tensor, and the directions of those of ``weights`` and of the
    ``memory`` that carries them on, where the final weights are known.

    ``moved`` is what errors are measured against, like each tensor's span: the way from the segment's start to where the replay
    arrives or to what it is compared with, whichever is shorter, so that a recorded jump does not excuse itself.
    """

    tensors: dict[str, TensorError]
    weights: dict[str, Direction] = {}
    memory: dict[str, Direction] = {}
    moved: Distance = Distance()


@dataclass
class _Sums:
    l1: float = 0.0
    squares: float = 0.0
    linf: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        for left, right in _pieces(a, b):
            self._add(left, right)

    def add_all(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """:meth:`add` of each, to the bit. All are float32, not empty, and no larger than a piece."""
        if not pairs:
            return
        a, b = ([pair[side] for pair in pairs] for side in (0, 1))
        apart = torch._foreach_sub(a, b)
        lengths: list[Sequence[Tensor]] = [
            torch._foreach_norm(tensors, dtype=torch.float64) for tensors in (apart, a, b)
        ]
        torch._foreach_abs_(apart)
        lengths.append([sizes.sum(dtype=torch.float64) for sizes in apart])
        lengths.append([torch.aminmax(sizes)[1].double() for sizes in apart])  # far faster than a norm of order inf
        table = torch.stack([torch.stack(list(row)) for row in lengths]).T.tolist()
        for pair, (length, of_a, of_b, l1, largest) in zip(pairs, table, strict=True):
            if not length + of_a + of_b < LONGEST:  # also where one is not a number
                self.add(*pair)
                continue
            self.l1 += l1
            self.squares += length**2
            self.linf = max(self.linf, largest)
            self.squares_a += of_a**2
            self.squares_b += of_b**2

    def _add(self, a: Tensor, b: Tensor) -> None:
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
    return vectors.measured(tensor.dtype, tensor.shape)


def compare(a: State, b: State) -> Comparison:
    """Distances from ``a`` to ``b``; states that differ in structure are reported as unequal there."""
    unequal = [] if a.tree == b.tree or _scalars_near(_plain(a), _plain(b)) else ["(structure or scalars)"]
    for name, left in a.tensors.items():
        right = b.tensors.get(name)
        fits = right is not None and left.shape == right.shape and left.dtype == right.dtype
        if not fits or (not measured(left) and a.tensor_digest(name) != b.tensor_digest(name)):
            unequal.append(name)
    sums = _sums(a, b)
    return Comparison(_overall(sums), {kind: s.distance() for kind, s in sorted(sums.items())}, unequal)


def distance(a: State, b: State) -> Distance:
    """The overall distance from ``a`` to ``b`` alone, as :func:`compare` gives it."""
    return _overall(_sums(a, b))


def _overall(sums: Mapping[str, _Sums]) -> Distance:
    overall = _Sums()
    for part in sums.values():
        overall.merge(part)
    return overall.distance()


def _sums(a: State, b: State) -> dict[str, _Sums]:
    """By kind of state, the sums over what is measured in both: for small tensors, many of them by one operation."""
    sums: dict[str, _Sums] = {}
    for kind, pairs in _pairs(a, b).items():
        found, waiting, size = sums.setdefault(kind, _Sums()), list[tuple[Tensor, Tensor]](), 0
        for left, right in pairs:
            if left.dtype != torch.float32 or not 0 < left.numel() <= PIECE:
                found.add_all(waiting)
                found.add(left, right)
                waiting, size = [], 0
                continue
            if size + left.numel() > PIECE:
                found.add_all(waiting)
                waiting, size = [], 0
            waiting.append((left, right))
            size += left.numel()
        found.add_all(waiting)
    return sums


def relative_errors(a: State, b: State) -> dict[str, float]:
    """For each measured tensor of ``b``, the l2 distance of ``a``'s over its norm (infinite where ``a`` has none like it)."""
    errors = {}
    for name, tensor in b.tensors.items():
        if measured(tensor):
            other = a.tensors.get(name)
            fits = other is not None and other.shape == tensor.shape and other.dtype == tensor.dtype
            error = _distance(other, tensor) if fits and other is not None else math.inf
            errors[name] = ratio(error, _distance(tensor, torch.zeros_like(tensor)))
    return errors


def detail(
    arrived: State,
    reference: State,
    before: State,
    final: dict[str, Tensor] | None,
    momenta: Mapping[str, str] | None = None,
) -> Detail:
    """Errors of ``arrived`` against ``reference``, spans from ``before`` to the nearer of them, directions toward ``final``.

    ``momenta``: names of tensors that carry weights on, with the name of the weights that each belongs to.
    """
    tensors: dict[str, TensorError] = {}
    directions, memory = dict[str, Direction](), dict[str, Direction]()
    for name, target in reference.tensors.items():
        got, start = arrived.tensors.get(name), before.tensors.get(name)
        if not measured(target) or got is None or got.shape != target.shape or got.dtype != target.dtype:
            continue
        known = start is not None and start.shape == target.shape and start.dtype == target.dtype
        # What the segment itself created (a first momentum) has moved from nothing.
        begin = start if known and start is not None else torch.zeros_like(target)
        span = min(_distance(begin, target), _distance(begin, got))
        tensors[name] = TensorError(_distance(got, target), span, target.numel())
        goal = None if final is None else final.get(name)
        if goal is not None and start is not None and known and goal.shape == target.shape:
            directions[name] = _direction(target - got, target - start, goal - start)
        weight = (momenta or {}).get(name, "")
        goal, start = None if final is None else final.get(weight), before.tensors.get(weight)
        if goal is not None and start is not None and goal.shape == start.shape == target.shape:
            memory[name] = _direction(target - got, target, start - goal)
    moved = compare(before, arrived).overall.least(compare(before, reference).overall)
    return Detail(tensors, directions, memory, moved)


def _direction(error: Tensor, moved: Tensor, way: Tensor) -> Direction:
    e, d, g = (x.double().flatten() for x in (error, moved, way))
    return Direction(torch.dot(e, g).item(), torch.dot(d, g).item(), _norm(e), _norm(g))


def nudged(state: State, seed: int) -> State:
    """``state`` with every measured number multiplied by 1 ± 16 units of its last place, at random.

    That is about what a sum of some hundred terms loses to rounding. What comes of it shows how training there answers to
    rounding (random rounding: Parker, Monte Carlo Arithmetic, UCLA 1997). Numbers of half precision stay: their last place is not
    rounding, but as much as many steps move them.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: Tensor) -> Tensor:
        if not measured(tensor) or tensor.element_size() <= 2:
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8).to(tensor.device)
        size = 16 * torch.finfo(tensor.dtype).eps
        return tensor * (1 + (2 * signs - 1).to(tensor.dtype) * size)

    return State(state.tree, {name: moved(tensor) for name, tensor in state.tensors.items()})


def near(a: Any, b: Any, noise: float = 1e-12) -> bool:
    """Whether plain values are equal but for the last digits of numbers: a schedule's cosine depends on the C library."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key], noise) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(near(*pair, noise) for pair in zip(a, b, strict=True))
    return math.isclose(a, b, rel_tol=noise) if isinstance(a, float) else bool(a == b)


def _scalars_near(a: Any, b: Any) -> bool:
    """:func:`near` of two states, where what is made of losses may differ as much as these do between machines."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a.keys() & b.keys():
            entry = _OF_LOSSES.get(family_of(str(name)))
            one, two = a[name], b[name]
            if entry is None or not (isinstance(one, dict) and isinstance(two, dict)):
                continue
            if near(one.get(entry), two.get(entry), LOSS_NOISE):
                one.pop(entry, None)
                two.pop(entry, None)
    return near(a, b)


def _plain(state: State) -> Any:
    """A state's containers and scalars, with names in the place of tensors."""
    names: Any = {name: name for name in state.tensors}
    return decode_tree(state.tree, names)


def displacement(before: State, after: State) -> Displacement:
    """l2 distance of the full state and of the weights; infinite where a value became not finite.

    Of a buffer, what was infinite and became finite does not count: a running minimum starts at infinity, and no length tells how
    far it came.
    """
    lengths = _flat_lengths(before, after)
    pairs = {} if lengths is not None else _pairs(before, after)
    lengths = {kind: _together(found) for kind, found in pairs.items()} if lengths is None else lengths
    squares = {kind: length**2 for kind, length in lengths.items()}
    for kind, square in squares.items():
        if not math.isfinite(square) and kind.endswith("/buffers"):
            pairs = pairs or _pairs(before, after)
            begun = [(torch.where(a.isinf() & b.isfinite(), b, a), b) for a, b in pairs[kind]]
            squares[kind] = _together(begun) ** 2
    return Displacement(math.sqrt(sum(squares.values())), math.sqrt(squares.get(WEIGHTS, 0.0)))


def _pairs(before: State, after: State) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What is measured in both, by kind of state."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, left in before.tensors.items():
        right = after.tensors.get(name)
        if right is None or left.shape != right.shape or left.dtype != right.dtype or not measured(left):
            continue
        pairs.setdefault(kind_of(name), []).append((left, right))
    return pairs


def _flat_lengths(before: State, after: State) -> dict[str, float] | None:
    """By kind of state, how far two states are apart that are laid out alike; None for others."""
    if before.flat is None or after.flat is None or before.flat.layout is not after.flat.layout:
        return None
    lengths = {}
    for kind, parts in vectors.pieces(before.flat.layout).items():
        found = [piece.of(before.flat) if piece.runs else None for piece in parts]
        lengths[kind] = apart(parts, found, before.tensors, after)
    return lengths


def apart(
    parts: Sequence[vectors.Piece], found: Sequence[Tensor | None], tensors: Mapping[str, Tensor], state: State
) -> float:
    """:func:`_together` of what was ``found`` for some pieces of one state (``tensors``) and of the same pieces of another."""
    assert state.flat is not None
    lengths = list[float]()
    for piece, vector in zip(parts, found, strict=True):
        length = math.nan if vector is None else _norm(vector - piece.of(state.flat))
        one_by_one = (_distance(tensors[name], state.tensors[name]) for name in piece.names)
        lengths.extend([length] if math.isfinite(length) else one_by_one)
    return math.sqrt(sum(length**2 for length in lengths))


def weight_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """l2 distance of two sets of weights with the same names."""
    return _together([(a[name], b[name]) for name in a if measured(a[name])])


def estimate_d_ref(initial: dict[str, Tensor], final: dict[str, Tensor]) -> Distance:
    """d_ref from one run's weights alone: independent runs end nearly orthogonal, but for what began as a constant.

    A tensor that was drawn contributes √2 times its final norm, one that was constant (a normalisation's scale) √2 times its
    way from there. ``pol calibrate`` measures how good that is.
    """
    scale = math.sqrt(2.0)
    l1 = squares = linf = shared = total = 0.0
    for name, end in final.items():
        if not measured(end):
            continue
        start = initial.get(name)
        start, end = None if start is None else _real(start).double(), _real(end).double()
        constant = start is not None and start.numel() > 1 and bool((start == start.flatten()[0]).all())
        apart = end - start if constant and start is not None else end
        l1 += apart.abs().sum().item()
        squares += apart.square().sum().item()
        linf = max(linf, apart.abs().max().item() if apart.numel() else 0.0)
        norm = end.square().sum().item()
        total += norm
        shared += max(0.0, norm - apart.square().sum().item()) if constant else 0.0
    return Distance(scale * l1, scale * math.sqrt(squares), scale * linf, 1.0 - shared / total if total else 0.0)


def weights(state: State) -> dict[str, Tensor]:
    """The model's parameters, by name."""
    prefix = WEIGHTS + "/"
    return {name: t for name, t in state.tensors.items() if name.startswith(prefix)}


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one shape and dtype in corresponding pieces that fit the cache, in a type whose differences are exact
    to the last digit: float32, or float64 as it is."""
    a, b = _real(a).flatten(), _real(b).flatten()
    for start in range(0, len(a), PIECE):
        left, right = a[start : start + PIECE], b[start : start + PIECE]
        if left.dtype not in (torch.float32, torch.float64):
            left, right = left.to(torch.float32), right.to(torch.float32)
        yield left, right


def _norm(tensor: Tensor) -> float:
    length = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    return length if length < LONGEST else math.inf if length == length else math.nan


def _distance(left: Tensor, right: Tensor) -> float:
    pieces = [_piece_distance(a, b) for a, b in _pieces(left, right)]
    return pieces[0] if len(pieces) == 1 else math.sqrt(sum(length**2 for length in pieces))


def _together(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """l2 distance of many pairs of tensors, each of one shape and dtype.

    The differences of small ones are laid end to end, as many as make a piece, for to look at one costs more than to measure it.
    """
    lengths, waiting, size = [], list[tuple[Tensor, Tensor]](), 0

    def measure() -> None:
        if not waiting:
            return
        apart = torch._foreach_sub([left.float() for left, _ in waiting], [right.float() for _, right in waiting])
        length = _norm(torch.cat([piece.flatten() for piece in apart]))
        lengths.extend([length] if math.isfinite(length) else [_distance(*pair) for pair in waiting])

    for left, right in pairs:
        if left.numel() >= PIECE or left.is_complex() or left.dtype == torch.float64:
            lengths.append(_distance(left, right))
            continue
        if size + left.numel() > PIECE:
            measure()
            waiting, size = [], 0
        waiting.append((left, right))
        size += left.numel()
    measure()
    return math.sqrt(sum(length**2 for length in lengths))


def _piece_distance(left: Tensor, right: Tensor) -> float:
    length = _norm(left - right)
    if math.isfinite(length):
        return length
    same = (left == right) | (left.isnan() & right.isnan())
    changed = torch.where(same, torch.zeros_like(left), left - right)
    length = _norm(changed)
    return length if math.isfinite(length) else math.inf
