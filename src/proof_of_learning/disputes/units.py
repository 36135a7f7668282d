"""Models as chains of layers: which hidden units of one are which of the other, in whatever order, size and sign they stand.

W₂ relu(W₁ x) is the same function for P D W₁ and W₂ D⁻¹ Pᵀ, with any permutation P and positive diagonal D (for odd activations also
with negative signs). Who hands in such a copy has other numbers everywhere. So units are matched, layer by layer from the input on:
each row of weights, its columns already in the order and size of the other model's, is compared by its direction, and the assignment
with the largest sum of sizes of cosines is taken (the Hungarian method).

It applies where all weight matrices follow one another, each taking in what the one before puts out (linear and convolutional
layers, with anything between them that works unit by unit). The order is found from shapes. Branches, attention and recurrence have
no such order. There each matrix is looked at alone (:func:`alone`): whatever is done to hidden units, what a network takes in
and what it puts out have an order that cannot be changed, so the rows of a first matrix, or the columns of a last one, are the
other model's, one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Array = npt.NDArray[Any]

MAX_LAYERS = 16  # of a chain
MAX_UNITS = 4096  # of a layer that is matched: the assignment takes a minute from here on, and
MAX_WORK = MAX_UNITS**3  # that minute is what all assignments of one comparison may take (cubes of units)
MAX_ORDERS = 24  # that shapes allow are tried
MAX_TRIED = 20_000  # beginnings of orders, before the search is given up
SHARE = 0.9  # of the weights that a chain has to hold
SHUFFLES = 9999
DRAWS = 3  # models that are drawn to know what units match by chance
NEAR_ALONE = 0.25  # relative distance of a matrix alone, and
BELOW_CHANCE = 0.25  # what share of the distance of a drawn matrix: short rows are like some other row by chance
FEW = 8  # units of which nothing is said
_PIECE = 1 << 18  # numbers of shuffles at a time


@dataclass(frozen=True)
class Layer:
    """A weight matrix [units, inputs, positions] and its bias [units], by name. ``bias`` is empty where there is none.
    ``places``: whether it is a convolution, which puts out each unit at several places."""

    name: str
    bias: str
    units: int
    inputs: int
    places: bool

    def follows(self, before: Layer) -> bool:
        """Whether it can take in what another puts out; of a convolution that may be flattened first, channel by channel."""
        if self.inputs == before.units:
            return True
        return before.places and not self.places and self.inputs % before.units == 0


@dataclass(frozen=True)
class Matched:
    """How the second model's units stand to the first's. ``cosine``: mean size of the matched rows' cosines, over hidden layers, each
    layer alike. ``tensors``: the second model's, in the first one's order, size and sign. ``moved``: share of hidden units that stand
    elsewhere."""

    cosine: float
    tensors: Mapping[str, Array]
    moved: float


def chains(tensors: Mapping[str, Tensor]) -> tuple[list[list[Layer]], str]:
    """The orders in which a model's weight matrices can follow one another, by their shapes; or none, and why."""
    weights = {n: t for n, t in tensors.items() if t.is_floating_point() and t.ndim >= 2}
    if len(weights) < 2:
        return [], "it has fewer than two weight matrices, so there are no hidden units"
    if len(weights) > MAX_LAYERS:
        return [], f"it has {len(weights)} weight matrices, and at most {MAX_LAYERS} are followed"
    layers = [
        _layer(name, tensor, tensors) for name, tensor in sorted(weights.items(), key=lambda item: _natural(item[0]))
    ]
    held = sum(t.numel() for t in weights.values()) + sum(tensors[layer.bias].numel() for layer in layers if layer.bias)
    total = sum(t.numel() for t in tensors.values() if t.is_floating_point())
    if held < SHARE * total:
        return [], "much of it is in tensors that are no weights of linear or convolutional layers"
    found: list[list[Layer]] = []
    for tried, order in enumerate(_orders(layers, [])):
        found += [order] if len(order) == len(layers) else []
        if len(found) == MAX_ORDERS or tried == MAX_TRIED:
            break
    if not found:
        return [], "its layers do not follow one another in a plain chain of linear and convolutional layers"
    if max(layer.units for layer in found[0][:-1]) > MAX_UNITS:
        return [], f"a layer has more than {MAX_UNITS:,} units, which are not matched"
    work = sum(layer.units**3 for layer in found[0][:-1])
    if work > MAX_WORK:
        return [], "its layers are too many and too wide for their units to be matched"
    return found[: MAX_WORK // work], ""


def match(first: Mapping[str, Array], second: Mapping[str, Array], orders: Sequence[Sequence[Layer]]) -> Matched:
    """Match the hidden units of two models whose layers may follow one another in any of ``orders``; the order that fits best."""
    return max((_match(first, second, order) for order in orders), key=lambda found: found.cosine)


def alone(
    first: Mapping[str, Array], second: Mapping[str, Array], rng: np.random.Generator
) -> tuple[str, float] | None:
    """A weight matrix whose rows, or columns, are the other model's in another order, size and sign, one by one, and how far apart
    they are then (relative l2 distance); the nearest one, None where there is none.

    Independent models that learned the same data have like units in places, but no whole matrix of them.
    """
    found, work = list[tuple[float, str]](), 0
    sides = [(name, axis) for name, a in first.items() if a.ndim >= 2 and name in second for axis in (0, 1)]
    for name, axis in sorted(sides, key=lambda side: first[side[0]].shape[side[1]]):
        a, b = (np.moveaxis(model[name], axis, 0).reshape(model[name].shape[axis], -1) for model in (first, second))
        work += len(a) ** 3
        if len(a) < FEW or len(a) > MAX_UNITS or 2 * work > MAX_WORK:
            continue
        away = _apart(a, b)
        if away < NEAR_ALONE and away < BELOW_CHANCE * _apart(a, rng.standard_normal(b.shape)):
            found.append((away, name))
    return min(((name, away) for away, name in found), key=lambda one: one[1], default=None)


def score(matched: float, reference: float) -> float:
    """The mean cosine of matched units, from 0 (as for independent ones: ``reference``) to 1."""
    return max(0.0, (matched - reference) / (1.0 - reference)) if reference < 1.0 else 0.0


def by_chance(first: Mapping[str, Array], orders: Sequence[Sequence[Layer]], rng: np.random.Generator) -> float:
    """The mean cosine of matched units where the second model is drawn: normal weights of the same shapes."""
    names = [name for layer in orders[0] for name in (layer.name, layer.bias) if name]
    drawn = [{name: rng.standard_normal(first[name].shape) for name in names} for _ in range(DRAWS)]
    return math.fsum(match(first, model, orders).cosine for model in drawn) / DRAWS


def order_p_value(
    first: Mapping[str, Array], second: Mapping[str, Array], order: Sequence[Layer], rng: np.random.Generator
) -> float:
    """The probability that units of independent models stand in the same order as much as here, and exactly that.

    Hidden units have no order of their own: an initialization draws them alike, and training treats them alike. So if the two models
    have nothing to do with each other, any order of one's units is as likely as the one that it has, and the rank of what the two
    have in common among random orders is uniform (Zhu et al., Independence Tests for Language Models, ICML 2025, for transformers).
    For each hidden layer by itself; the smallest, times their number. At least (hidden layers) / (SHUFFLES + 1).
    """
    smallest = 1.0
    for before, after in itertools.pairwise(order):
        a, b = (_units(model, before, after) for model in (first, second))
        common = a @ b.T
        own, n = float(np.trace(common)), len(common)
        slack = 1e-9 * float(np.abs(common).sum())  # sums in another order differ in their last digits
        rows, above, at_once = np.arange(n), 1, max(1, _PIECE // n)
        for done in range(0, SHUFFLES, at_once):
            orders = rng.permuted(np.tile(rows, (min(at_once, SHUFFLES - done), 1)), axis=1)
            above += int((common[rows, orders].sum(axis=1) >= own - slack).sum())
        smallest = min(smallest, above / (SHUFFLES + 1))
    return min(1.0, smallest * (len(order) - 1))


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors in double precision; what is not finite counts as 0."""
    return {n: np.nan_to_num(t.detach().cpu().double().numpy(), posinf=0.0, neginf=0.0) for n, t in tensors.items()}


# ---- the chain --------------------------------------------------------------------------------------


def _layer(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Layer:
    bias = f"{name.rpartition('.')[0]}.bias" if "." in name else "bias"
    beside = tensors.get(bias)
    fits = beside is not None and beside.shape == tensor.shape[:1] and bias != name
    return Layer(name, bias if fits else "", tensor.shape[0], tensor.shape[1], tensor.ndim > 2)


def _orders(left: list[Layer], order: list[Layer]) -> Iterator[list[Layer]]:
    """Each beginning of an order, and each whole one."""
    yield order
    for position, layer in enumerate(left):
        if not order or layer.follows(order[-1]):
            yield from _orders(left[:position] + left[position + 1 :], [*order, layer])


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


# ---- matching ---------------------------------------------------------------------------------------


def _match(first: Mapping[str, Array], second: Mapping[str, Array], order: Sequence[Layer]) -> Matched:
    place: Array | None = None  # for each unit of the layer before, which of the second model's it is
    size: Array | None = None  # and by what that one's outputs have to be multiplied
    aligned, cosines, moved, hidden = dict[str, Array](), list[float](), 0, 0
    for number, layer in enumerate(order):
        mine, theirs = first[layer.name], second[layer.name]
        if place is not None and size is not None:
            each = layer.inputs // len(place)
            shape = (len(theirs), len(place), each, -1)
            theirs = (theirs.reshape(shape)[:, place] / size[None, :, None, None]).reshape(theirs.shape)
        a, b = mine.reshape(len(mine), -1), theirs.reshape(len(theirs), -1)
        if layer.bias:
            a, b = (np.hstack([m, model[layer.bias][:, None]]) for m, model in ((a, first), (b, second)))
        if number == len(order) - 1:
            place, size = np.arange(len(b)), np.ones(len(b))
        else:
            place, size, best = _assigned(a, b)
            cosines.append(float(np.abs(best).mean()))
            moved, hidden = moved + int((place != np.arange(len(place))).sum()), hidden + len(place)
        b = b[place] * size[:, None]
        if layer.bias:
            aligned[layer.bias], b = b[:, -1], b[:, :-1]
        aligned[layer.name] = b.reshape(mine.shape)
    return Matched(math.fsum(cosines) / len(cosines), aligned, moved / hidden)


def _assigned(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """For each row of ``a`` which row of ``b`` it is, by what that one is to be multiplied, and the cosine of the two."""
    lengths = [np.linalg.norm(m, axis=1) for m in (a, b)]
    cosine = _divided(a, lengths[0]) @ _divided(b, lengths[1]).T
    rows, place = linear_sum_assignment(np.abs(cosine), maximize=True)
    best = cosine[rows, place]
    ratio = np.divide(lengths[0], lengths[1][place], out=np.ones(len(a)), where=lengths[1][place] > 0)
    return place, np.where(ratio > 0, ratio, 1.0) * np.where(best < 0, -1.0, 1.0), best


def _apart(a: Array, b: Array) -> float:
    """The distance of two matrices once the second one's rows are in the order, size and sign of the first one's, over its norm; of
    nothing, infinite."""
    place, size, _ = _assigned(a, b)
    whole = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b[place] * size[:, None])) / whole if whole else math.inf


def _units(model: Mapping[str, Array], before: Layer, after: Layer) -> Array:
    """Each unit of a hidden layer with all that is its own, [units, weights in and out], in and out each of length 1."""
    ingoing = model[before.name].reshape(before.units, -1)
    if before.bias:
        ingoing = np.hstack([ingoing, model[before.bias][:, None]])
    outgoing = model[after.name]
    outgoing = outgoing.reshape(len(outgoing), before.units, -1).transpose(1, 0, 2).reshape(before.units, -1)
    return np.hstack([_divided(m, np.linalg.norm(m, axis=1)) for m in (ingoing, outgoing)])


def _divided(matrix: Array, lengths: Array) -> Array:
    scaled: Array = matrix / np.where(lengths > 0, lengths, 1.0)[:, None]
    return scaled
