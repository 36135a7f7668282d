"""Weights predicted from the optimizer's momenta, so that less of them has to be stored.

From one checkpoint to the next, weights move along what the optimizer keeps a running mean of, and both checkpoints hold that mean. A
step of SGD is ``w - lr * momentum``: after one step the prediction is the value itself, up to rounding; after ten, the momenta at both
ends still explain about half of the movement's variance. The factors come from least squares and lie in the object; a
decoder only evaluates them, in operations that IEEE 754 rounds correctly, none of them fused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.denormals import flushes_denormals
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import PIECE, finite, same_kind
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.state.names import role, second_of
from proof_of_learning.state.state import State

Matrix = npt.NDArray[np.float64]

PREDICTED = "predicted"
# Elements from which factors and gain are estimated; what smaller tensors would save is not worth the work.
SAMPLE = 1 << 11
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
        if told is not None and finite(base.tensors[name]) and _bounded(state.tensors, base, momenta[by]):
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
        movement = _direction(tensors, foretold.by, part).mul(now)
        movement.add_(_direction(base.tensors, foretold.by, part).mul(then))
        values[part] = movement.add_(start[part])
    return values


def foretell(
    names: Sequence[str], tensors: Mapping[str, Tensor], decoded: Mapping[str, Tensor], base: State, bits: int
) -> dict[str, Foretold]:
    """What momenta say of those weights that they explain at all, with factors of ``bits`` bits; ``decoded`` holds the momenta.

    The same everywhere: samples are whole numbers of 15 bits, whose products and sums float64 holds exactly, in any order; what
    follows is single operations of IEEE 754.
    """
    rows = [name for name in names if role(name) == "weights" and _movable(name, tensors, base)]
    momenta = [name for name in decoded if role(name) == "momentum" and _movable(name, decoded, base)]
    momenta = [name for name in momenta if _alike(decoded, base, name) and _bounded(decoded, base, name)]
    found: dict[str, Foretold] = {}
    for shape in dict.fromkeys(tensors[name].shape for name in rows):
        here = [name for name in rows if tensors[name].shape == shape]
        others = [name for name in momenta if decoded[name].shape == shape]
        if not here or not others:
            continue
        where = _sampled(shape.numel())
        move, top = _whole([_flat(tensors, name)[where] - _flat(base.tensors, name)[where] for name in here])
        now, top_now = _whole([_direction(decoded, by, where) for by in others])
        then, top_then = _whole([_direction(base.tensors, by, where) for by in others])
        along = move @ now.T
        chosen = (along * along / np.maximum((now * now).sum(1), 1.0)).argmax(1)
        now, then, top_now, top_then = now[chosen], then[chosen], top_now[chosen], top_then[chosen]
        here_now, here_then, here_move = (torch.from_numpy(side) for side in (now, then, move))
        factors = _least_squares(here_now, here_then, here_move, APART).numpy().T
        factors = np.ldexp(factors, np.stack([top - top_now, top - top_then], 1))
        for name, by, pair in zip(here, chosen.tolist(), factors.tolist(), strict=True):
            told = _in_whole(others[by], pair, bits)
            if told is not None:
                found[name] = told
    return found


def likened(names: Sequence[str], tensors: Mapping[str, Tensor], base: State, bits: int) -> dict[str, Foretold]:
    """What a momentum in the base says of itself here: by what factor it is nearest to it. The same everywhere, too."""
    found = {}
    for name in names:
        if role(name) != "momentum" or not _movable(name, tensors, base):
            continue
        where = _sampled(tensors[name].numel())
        (here,), (top,) = _whole([_flat(tensors, name)[where]])
        (then,), (top_then,) = _whole([_flat(base.tensors, name)[where]])
        square = float((then * then).sum())
        factor = math.ldexp(float((here * then).sum()) / square, int(top - top_then)) if square else 0.0
        told = _in_whole(name, (0.0, factor), bits)
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


def _sampled(count: int) -> Tensor | slice:
    """Which elements are looked at: all of a few."""
    return _spread(count) if count > SAMPLE else slice(None)


def _movable(name: str, tensors: Mapping[str, Tensor], base: State) -> bool:
    """Whether a tensor and its base are finite float32 of some dimensions, small enough that no difference overflows."""
    tensor = tensors[name]
    fits = tensor.dtype == torch.float32 and tensor.numel() > 0 and tensor.ndim > 0 and same_kind(tensor, base, name)
    return fits and all(_within(side, -LARGEST, LARGEST) for side in (tensor, base.tensors[name]))


def _whole(rows: Sequence[Tensor]) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Rows of finite float32 as whole numbers of 15 bits in float64, and the exponents that bring them back: times 2^(top - 15)."""
    values = torch.stack(list(rows)).numpy().astype(np.float64)
    top = np.frexp(np.abs(values).max(1))[1].astype(np.int64)
    return np.rint(np.ldexp(values, (15 - top)[:, None])), top


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
        fits = fits and same_kind(torch.empty(entry.shape, dtype=torch.float32, device="meta"), base, needed)
    return fits


def _alike(tensors: Mapping[str, Tensor], base: State, momentum: str) -> bool:
    """Whether the second moments beside a momentum, if there are any, have its dtype and shape, here and in the base."""
    seconds, like = [at.get(second_of(momentum)) for at in (tensors, base.tensors)], tensors[momentum]
    if all(second is None for second in seconds):
        return True
    return all(second is not None and (second.dtype, second.shape) == (like.dtype, like.shape) for second in seconds)


def _least_squares(now: Tensor, then: Tensor, move: Tensor, apart: float = 1e-9) -> Tensor:
    """For each row the two factors that bring ``now`` and ``then`` nearest to ``move``; NaN where there are none.

    ``apart``: the square of the sine of their angle, below which one says as much as two.
    """
    a, b, c, p, q = ((x * y).sum(1) for x, y in ((now, now), (now, then), (then, then), (now, move), (then, move)))
    determinant = a * c - b * b
    both = determinant > apart * a * c
    alone, nothing = p / a, torch.zeros_like(p)
    return torch.stack(
        [((p * c - q * b) / determinant).where(both, alone), ((q * a - p * b) / determinant).where(both, nothing)]
    )


def _spread(count: int) -> Tensor:
    """Indices of ``SAMPLE`` of ``count`` elements, by the golden ratio: in step with no length that a tensor may have."""
    return (torch.arange(SAMPLE, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1 * count).long()


def _bounded(tensors: Mapping[str, Tensor], base: State, by: str) -> bool:
    """Whether what a momentum predicts is the same bits everywhere."""
    for at in (tensors, base.tensors):
        second = at.get(second_of(by))
        if not _within(at[by], -LARGEST, LARGEST):
            return False
        if second is not None and not _within(second, 0.0, torch.finfo(torch.float32).max):
            return False
    return True


def _within(tensor: Tensor, low: float, high: float) -> bool:
    return all(low <= float(end) <= high for end in torch.aminmax(tensor))


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
