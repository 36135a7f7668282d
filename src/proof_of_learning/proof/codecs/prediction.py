"""Weights predicted from the optimizer's momenta, so that less of them has to be stored.

From one checkpoint to the next, weights move along what the optimizer keeps a running mean of, and both checkpoints hold that mean. A
step of SGD is ``w - lr * momentum``: after one step the prediction is the value itself, up to rounding; after ten, the momenta at both
ends still explain about half of the movement's variance. The factors come from least squares and lie in the object; a
decoder only evaluates them, in operations that IEEE 754 rounds correctly, none of them fused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.denormals import flushes_denormals
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import PIECE, finite, same_kind
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.state.names import role, second_of
from proof_of_learning.state.state import State

PREDICTED = "predicted"
# Elements from which factors and gain are estimated; what smaller tensors would save is not worth the work.
SAMPLE = 1 << 11
GAIN = 0.25  # bits a value that a prediction must save
FACTOR_BITS = 24
SMALLEST_SCALE, LARGEST_SCALE = -100, 0  # of the exponents that an object may name
EPSILON = 2.0**-30  # beside the root of a second moment
# Of the momenta: no product or quotient overflows then, and no sum is NaN, which is not the same bits everywhere.
LARGEST = 2.0**60


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
    momenta = [name for name in large if role(name) == "momentum" and _alike(state, base, name)]
    if not weights or not momenta:
        return {}
    spread = {shape: _spread(shape.numel()) for shape in set(large.values())}
    before = torch.stack([_flat(base, name)[spread[large[name]]] for name in weights]).double()
    move = torch.stack([_flat(state, name)[spread[large[name]]] for name in weights]).double() - before
    now, then = (
        torch.stack([_direction(at, by, spread[large[by]]) for by in momenta]).double() for at in (state, base)
    )
    likeness = (move @ now.T).abs() / torch.linalg.vector_norm(now, dim=1).clamp(min=1e-300)
    other = torch.tensor([[large[name] != large[by] for by in momenta] for name in weights])
    chosen = likeness.masked_fill_(other, -1.0).argmax(1)
    now, then = now[chosen], then[chosen]
    factors = _least_squares(now, then, move)
    unit = before.abs_() * 2.0**-24  # what cannot be told from nothing
    left = move - factors[0][:, None] * now - factors[1][:, None] * then
    saved = (move.abs() + unit).log2_().mean(1) - (left.abs_() + unit).log2_().mean(1)
    found = {}
    for name, by, gain, pair in zip(weights, chosen.tolist(), saved.tolist(), factors.T.tolist(), strict=True):
        if not gain > GAIN or large[name] != large[momenta[by]]:
            continue
        scale = math.frexp(max(map(abs, pair)))[1] - FACTOR_BITS
        if SMALLEST_SCALE <= scale <= LARGEST_SCALE and _defined(state, base, name, momenta[by]):
            whole = [round(math.ldexp(factor, -scale)) for factor in pair]
            found[name] = packed.entry(state.tensors[name], 4, PREDICTED, scale, by=momenta[by], factors=whole)
    return found


def predicted(entry: Entry, name: str, state: State, base: State) -> Tensor:
    """The predicted values, flat; ``state`` holds at least the momenta."""
    values = torch.empty(entry.count, dtype=torch.float32)
    for start in range(0, entry.count, PIECE):
        part = slice(start, start + PIECE)
        values[part] = _predicted(entry, name, state, base, part)
    return values


def check(entry: Entry, name: str, others: Mapping[str, Entry], base: State | None) -> None:
    """FormatError for an entry that :func:`entries` does not write: ``others`` are those of the same object."""
    fits = (entry.dtype, entry.items, role(entry.by), len(entry.factors)) == ("float32", 4, "momentum", 2)
    fits = fits and all(abs(factor) <= 2**FACTOR_BITS for factor in entry.factors)
    fits = fits and SMALLEST_SCALE <= entry.scale <= LARGEST_SCALE
    second = second_of(entry.by)
    has_second = second in others or (base is not None and second in base.tensors)
    for needed in [entry.by, second] if has_second else [entry.by]:
        other = others.get(needed)
        fits = fits and other is not None and (other.dtype, other.shape, other.by) == (entry.dtype, entry.shape, "")
        fits = fits and same_kind(torch.empty(entry.shape, dtype=torch.float32, device="meta"), base, needed)
    if not fits:
        raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")


def _alike(state: State, base: State, momentum: str) -> bool:
    """Whether the second moments beside a momentum, if there are any, have its dtype and shape, here and in the base."""
    seconds = [at.tensors.get(second_of(momentum)) for at in (state, base)]
    if all(second is None for second in seconds):
        return True
    return all(second is not None and same_kind(second, state, momentum) for second in seconds)


def _least_squares(now: Tensor, then: Tensor, move: Tensor) -> Tensor:
    """For each row the two factors that bring ``now`` and ``then`` nearest to ``move``; NaN where there are none."""
    a, b, c, p, q = ((x * y).sum(1) for x, y in ((now, now), (now, then), (then, then), (now, move), (then, move)))
    determinant = a * c - b * b
    both = determinant > 1e-9 * a * c  # else one direction says as much as two
    alone, nothing = p / a, torch.zeros_like(p)
    return torch.stack(
        [((p * c - q * b) / determinant).where(both, alone), ((q * a - p * b) / determinant).where(both, nothing)]
    )


def _spread(count: int) -> Tensor:
    """Indices of ``SAMPLE`` of ``count`` elements, by the golden ratio: in step with no length that a tensor may have."""
    return (torch.arange(SAMPLE, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1 * count).long()


def _defined(state: State, base: State, name: str, by: str) -> bool:
    """Whether the prediction is the same bits everywhere."""
    for at in (state, base):
        second = at.tensors.get(second_of(by))
        if not _within(at.tensors[by], -LARGEST, LARGEST):
            return False
        if second is not None and not _within(second, 0.0, torch.finfo(torch.float32).max):
            return False
    return finite(base.tensors[name])


def _within(tensor: Tensor, low: float, high: float) -> bool:
    return all(low <= float(end) <= high for end in torch.aminmax(tensor))


def _predicted(entry: Entry, name: str, state: State, base: State, part: slice) -> Tensor:
    now, then = (math.ldexp(factor, entry.scale) for factor in entry.factors)
    movement = _direction(state, entry.by, part).mul(now).add_(_direction(base, entry.by, part).mul(then))
    return movement.add_(_flat(base, name)[part])


def _direction(state: State, by: str, part: slice | Tensor) -> Tensor:
    """A momentum, over the root of the second moment beside it if there is one (as in Adam)."""
    along, second = _flat(state, by)[part], state.tensors.get(second_of(by))
    if second is None:
        return along
    with np.errstate(invalid="ignore"):
        # PyTorch's own root is off by one in the last place, here and there, and elsewhere on other processors.
        root = torch.from_numpy(np.sqrt(second.reshape(-1)[part].numpy()))
    return along / root.add_(EPSILON)


def _flat(state: State, name: str) -> Tensor:
    return state.tensors[name].reshape(-1)
