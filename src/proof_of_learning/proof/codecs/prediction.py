"""Weights predicted from the optimizer's momenta, so that less of them has to be stored.

From one checkpoint to the next, weights move along what the optimizer keeps a running mean of, and both checkpoints hold that mean. A
step of SGD is ``w - lr * momentum``: after one step the prediction is the value itself, up to rounding; after ten, the momenta at both
ends still explain about half of the movement's variance. The factors come from least squares and lie in the object; a
decoder only evaluates them, in operations that IEEE 754 rounds correctly, none of them fused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.denormals import flushes_denormals
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import PIECE, finite, first_places, float_array, ranges, same_kind
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.state.names import role, second_of
from proof_of_learning.state.state import State

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

PREDICTED = "predicted"
# Elements from which factors and gain are estimated; what smaller tensors would save is not worth the work.
SAMPLE = 1 << 11
SHAPES = 64  # of tensors, whose sampled places are remembered
GAIN = 0.25  # bits a value that a prediction must save
FACTOR_BITS = 24
APART = 0.05  # more, and noise in a replay would be a lot of noise in the factors
SMALLEST_SCALE, LARGEST_SCALE = -100, 0  # of the exponents that an object may name
EPSILON = 2.0**-30  # beside the root of a second moment
# Of the momenta: no product or quotient overflows then, and no sum is NaN, which is not the same bits everywhere.
LARGEST = 2.0**60


@dataclass(frozen=True)
class Foretold:
    """``by``: a momentum; ``factors``: of it here and in the base, whole numbers, times 2 to ``scale``."""

    by: str
    factors: tuple[int, int]
    scale: int

    @property
    def values(self) -> tuple[float, float]:
        now, then = (math.ldexp(factor, self.scale) for factor in self.factors)
        return now, then

    def entry(self) -> dict[str, Any]:
        """How it is written in an object, where ``scale`` says something else."""
        return {"by": self.by, "factors": [*self.factors, self.scale]}


def entries(state: State, base: State | None) -> dict[str, Entry]:
    """The entries of those weights that a momentum predicts, by name.

    Which momentum belongs to which weights is not said in a state: of those with the same shape it is the one that points
    most nearly along the movement.
    """
    if base is None or flushes_denormals():  # which a reader may not do
        return {}
    large = {
        name: tensor.shape
        for name, tensor in state.tensors.items()
        if tensor.dtype == torch.float32 and tensor.numel() >= SAMPLE and same_kind(tensor, base, name)
    }
    weights = [name for name in large if role(name) == "weights"]
    momenta = [name for name in large if role(name) == "momentum" and _alike(state.tensors, base, name)]
    if not weights or not momenta:
        return {}
    spread = {shape: _spread(shape.numel()) for shape in set(large.values())}
    before = torch.stack([_flat(base.tensors, name)[spread[large[name]]] for name in weights]).double()
    move = torch.stack([_flat(state.tensors, name)[spread[large[name]]] for name in weights]).double() - before
    now, then = (
        torch.stack([_direction(at.tensors, by, spread[large[by]]) for by in momenta]).double() for at in (state, base)
    )
    likeness = (move @ now.T).abs() / torch.linalg.vector_norm(now, dim=1).clamp(min=1e-300)
    other = torch.tensor([[large[name] != large[by] for by in momenta] for name in weights])
    chosen = likeness.masked_fill_(other, -1.0).argmax(1)
    now, then = now[chosen], then[chosen]
    pairs = _least_squares(now, then, move)
    unit = before.abs_() * 2.0**-24  # what cannot be told from nothing
    left = move - pairs[0][:, None] * now - pairs[1][:, None] * then
    saved = (move.abs() + unit).log2_().mean(1) - (left.abs_() + unit).log2_().mean(1)
    found = {}
    for name, by, gain, pair in zip(weights, chosen.tolist(), saved.tolist(), pairs.T.tolist(), strict=True):
        if not gain > GAIN or large[name] != large[momenta[by]]:
            continue
        told = _in_whole(momenta[by], pair, FACTOR_BITS)
        if told is not None and finite(base.tensors[name]) and _bounded([momenta[by]], state.tensors, base):
            factors = list(told.factors)
            found[name] = packed.entry(state.tensors[name], 4, PREDICTED, told.scale, by=told.by, factors=factors)
    return found


def predicted(entry: Entry, name: str, state: State, base: State) -> Tensor:
    """The predicted values, flat; ``state`` holds at least the momenta."""
    foretold = Foretold(entry.by, (entry.factors[0], entry.factors[1]), entry.scale)
    return moved(foretold, name, state.tensors, base)


def moved(foretold: Foretold, name: str, tensors: Mapping[str, Tensor], base: State) -> Tensor:
    """Where a foretold movement leads from the base, flat; ``tensors`` holds at least the momenta."""
    start = _flat(base.tensors, name)
    values, (now, then) = torch.empty_like(start), foretold.values
    for begin in range(0, len(start), PIECE):
        part = slice(begin, begin + PIECE)
        movement = torch.mul(_direction(tensors, foretold.by, part), now, out=values[part])
        movement.add_(_direction(base.tensors, foretold.by, part).mul(then)).add_(start[part])
    return values


def foretell(
    names: Sequence[str], tensors: Mapping[str, Tensor], decoded: Mapping[str, Tensor], base: State, bits: int
) -> dict[str, Foretold]:
    """What momenta say of those weights that they explain at all, with factors of ``bits`` bits; ``decoded`` holds the momenta.

    The same everywhere: samples are whole numbers of 15 bits, whose products and sums float64 holds exactly, in any order; what
    follows is single operations of IEEE 754.
    """
    rows = _movable([name for name in names if role(name) == "weights"], tensors, base)
    momenta = _movable([name for name in decoded if role(name) == "momentum"], decoded, base)
    momenta = _bounded([name for name in momenta if _alike(decoded, base, name)], decoded, base)
    beside = dict[torch.Size, list[str]]()
    for by in momenta:
        beside.setdefault(decoded[by].shape, []).append(by)
    moved = dict[torch.Size, list[str]]()
    for name in rows:
        if tensors[name].shape in beside:
            moved.setdefault(tensors[name].shape, []).append(name)
    rows, momenta = [name for here in moved.values() for name in here], [by for shape in moved for by in beside[shape]]
    if not rows:
        return {}
    move = _Samples.of([_sampled(tensors, name) for name in rows], [_sampled(base.tensors, name) for name in rows])
    now = _Samples.of([_direction(decoded, by, _places(decoded[by].numel())) for by in momenta])
    then = _Samples.of([_direction(base.tensors, by, _places(decoded[by].numel())) for by in momenta])
    chosen, row, first = list[int](), 0, 0
    for shape, here in moved.items():
        others = len(beside[shape])
        along, sides = move.table(row, len(here)) @ now.table(first, others).T, now.table(first, others)
        nearest = (along * along / np.maximum((sides * sides).sum(1), 1.0)).argmax(1)
        chosen += (nearest + first).tolist()
        row, first = row + len(here), first + others
    now, then = now.chosen(chosen), then.chosen(chosen)
    products = ((now, now), (now, then), (then, then), (now, move), (then, move))
    factors = _solved([torch.from_numpy(_dots(x, y)) for x, y in products], APART).numpy().T
    factors = np.ldexp(factors, np.stack([move.tops - now.tops, move.tops - then.tops], 1))
    found = zip(
        rows,
        (_in_whole(momenta[by], pair, bits) for by, pair in zip(chosen, factors.tolist(), strict=True)),
        strict=True,
    )
    return {name: told for name, told in found if told is not None}


def likened(names: Sequence[str], tensors: Mapping[str, Tensor], base: State, bits: int) -> dict[str, Foretold]:
    """What a momentum in the base says of itself here: by what factor it is nearest to it. The same everywhere, too."""
    names = _movable([name for name in names if role(name) == "momentum"], tensors, base)
    if not names:
        return {}
    here, then = (_Samples.of([_sampled(at, name) for name in names]) for at in (tensors, base.tensors))
    found = {}
    rows = (_dots(here, then).tolist(), _dots(then, then).tolist(), (here.tops - then.tops).tolist())
    for name, product, square, scale in zip(names, *rows, strict=True):
        told = _in_whole(name, (0.0, math.ldexp(product / square, scale) if square else 0.0), bits)
        if told is not None:
            found[name] = told
    return found


def _in_whole(by: str, factors: Sequence[float], bits: int) -> Foretold | None:
    """Factors in whole numbers, with ``bits`` bits for the larger; None where they are no numbers, nothing, or beyond all scales."""
    if not all(map(math.isfinite, factors)) or not any(factors):
        return None
    scale = math.frexp(max(map(abs, factors)))[1] - bits
    now, then = (round(math.ldexp(factor, -scale)) for factor in factors)
    return Foretold(by, (now, then), scale) if SMALLEST_SCALE <= scale <= LARGEST_SCALE else None


def _places(count: int) -> Tensor | slice:
    """Which elements are looked at: all of a few."""
    return _spread(count) if count > SAMPLE else slice(None)


def _sampled(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return _flat(tensors, name)[_places(tensors[name].numel())]


def _movable(names: Iterable[str], tensors: Mapping[str, Tensor], base: State) -> list[str]:
    """Those that are, as in the base, finite float32 of some dimensions, small enough that no difference overflows."""
    names = [name for name in names if float_array(tensors[name]) and same_kind(tensors[name], base, name)]
    sides = [_within([at[name] for name in names], -LARGEST, LARGEST) for at in (tensors, base.tensors)]
    return [name for name, *within in zip(names, *sides, strict=True) if all(within)]


@dataclass(frozen=True)
class _Samples:
    """Of finite float32 tensors, end to end: whole numbers of 15 bits, and the exponents that bring them back: times 2^(top - 15)."""

    whole: Vector
    sizes: Sequence[int]
    tops: npt.NDArray[np.int64]

    @classmethod
    def of(cls, samples: Sequence[Tensor], before: Sequence[Tensor] | None = None) -> _Samples:
        """``before``: what they are differences to."""
        sizes, flat = [len(sample) for sample in samples], torch.cat(list(samples))
        values = (flat if before is None else flat - torch.cat(list(before))).numpy().astype(np.float64)
        tops = np.frexp(np.maximum.reduceat(np.abs(values), first_places(sizes)))[1].astype(np.int64)
        values *= np.repeat(np.ldexp(1.0, 15 - tops), sizes)
        return cls(np.rint(values, out=values), sizes, tops)

    def table(self, first: int, count: int) -> Matrix:
        """``count`` of them, of one size, in rows."""
        start = sum(self.sizes[:first])
        return self.whole[start : start + count * self.sizes[first]].reshape(count, -1)

    def chosen(self, which: Sequence[int]) -> _Samples:
        starts = first_places(self.sizes)
        parts = [self.whole[starts[row] : starts[row] + self.sizes[row]] for row in which]
        return _Samples(np.concatenate(parts), [self.sizes[row] for row in which], self.tops[list(which)])


def _dots(one: _Samples, other: _Samples) -> Vector:
    """The scalar product of each sample with its counterpart."""
    products: Vector = np.add.reduceat(one.whole * other.whole, first_places(one.sizes))
    return products


def check(entry: Entry, name: str, others: Mapping[str, Entry], base: State | None) -> None:
    """FormatError for an entry that :func:`entries` does not write: ``others`` are those of the same object."""
    fits = (entry.dtype, entry.items, len(entry.factors)) == ("float32", 4, 2)
    fits = fits and all(abs(factor) <= 2**FACTOR_BITS for factor in entry.factors)
    fits = fits and SMALLEST_SCALE <= entry.scale <= LARGEST_SCALE and foretells(entry, others, base)
    fits = fits and not others[entry.by].by
    second = others.get(second_of(entry.by))
    if not fits or (second is not None and second.by):
        raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")


def foretells(entry: Entry, others: Mapping[str, Entry], base: State | None) -> bool:
    """Whether ``entry.by`` is a momentum that can say where the entry's tensor moves: like it here and in the base, its second too."""
    second = second_of(entry.by)
    has_second = second in others or (base is not None and second in base.tensors)
    fits = role(entry.by) == "momentum"
    for needed in [entry.by, second] if has_second else [entry.by]:
        other = others.get(needed)
        fits = fits and other is not None and (other.dtype, other.shape) == (entry.dtype, entry.shape)
        before = None if base is None else base.tensors.get(needed)
        fits = fits and before is not None and before.dtype == torch.float32 and list(before.shape) == entry.shape
    return fits


def _alike(tensors: Mapping[str, Tensor], base: State, momentum: str) -> bool:
    """Whether the second moments beside a momentum, if there are any, have its dtype and shape, here and in the base."""
    seconds, like = [at.get(second_of(momentum)) for at in (tensors, base.tensors)], tensors[momentum]
    if all(second is None for second in seconds):
        return True
    return all(second is not None and (second.dtype, second.shape) == (like.dtype, like.shape) for second in seconds)


def _least_squares(now: Tensor, then: Tensor, move: Tensor) -> Tensor:
    """For each row the two factors that bring ``now`` and ``then`` nearest to ``move``; NaN where there are none."""
    products = ((now, now), (now, then), (then, then), (now, move), (then, move))
    return _solved([(x * y).sum(1) for x, y in products], 1e-9)


def _solved(products: Sequence[Tensor], apart: float) -> Tensor:
    """The same from the sums of products.

    apart: the square of the sine of the angle between ``now`` and ``then``, below which one says as much as two.
    """
    a, b, c, p, q = products
    determinant = a * c - b * b
    both = determinant > apart * a * c
    alone, nothing = p / a, torch.zeros_like(p)
    return torch.stack(
        [((p * c - q * b) / determinant).where(both, alone), ((q * a - p * b) / determinant).where(both, nothing)]
    )


@functools.lru_cache(SHAPES)
def _spread(count: int) -> Tensor:
    """Indices of ``SAMPLE`` of ``count`` elements, by the golden ratio: in step with no length that a tensor may have."""
    return (torch.arange(SAMPLE, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1 * count).long()


def _bounded(momenta: Sequence[str], tensors: Mapping[str, Tensor], base: State) -> list[str]:
    """Those of which what they predict is the same bits everywhere."""
    for at in (tensors, base.tensors):
        fits = _within([at[by] for by in momenta], -LARGEST, LARGEST)
        momenta = [by for by, within in zip(momenta, fits, strict=True) if within]
        beside = [by for by in momenta if second_of(by) in at]
        fits = _within([at[second_of(by)] for by in beside], 0.0, torch.finfo(torch.float32).max)
        out = {by for by, within in zip(beside, fits, strict=True) if not within}
        momenta = [by for by in momenta if by not in out]
    return list(momenta)


def _within(tensors: Iterable[Tensor], low: float, high: float) -> list[bool]:
    return [low <= least and most <= high for least, most in ranges(tensors)]


def _direction(tensors: Mapping[str, Tensor], by: str, part: slice | Tensor) -> Tensor:
    """A momentum, over the root of the second moment beside it if there is one (as in Adam)."""
    along, second = _flat(tensors, by)[part], tensors.get(second_of(by))
    if second is None:
        return along
    with np.errstate(invalid="ignore"):
        # PyTorch's own root is off by one in the last place, here and there, and elsewhere on other processors.
        root = torch.from_numpy(np.sqrt(second.reshape(-1)[part].numpy()))
    return along / root.add_(EPSILON)


def _flat(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return tensors[name].reshape(-1)
