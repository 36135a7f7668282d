"""What a segment contributed, measured where it cannot be bought cheaply.

A trajectory is looked at by its distance to the end and from the start, in weights and in function space, and each of three
ways is counted in which a jump must show: nearer to the end than ever before, back from farther than ever again, and
farther from the start than ever before. A single one can be led astray (by going away and coming back, or by one step into a
worthless place); whoever leaves and returns shows in the others.

Weights are looked at where they come to rest (momentum spent, decay taken out), tensor by tensor, with each coordinate's distance
clipped at three medians of the largest excursions, so that no coordinate decides. Tensors are pooled into few groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proof_of_learning.state.names import short_name
from proof_of_learning.verifier.dynamics import coasting
from proof_of_learning.verifier.sampling import Memory, Trained

CLIP = 3.0  # medians of the coordinates' largest excursions
MATRICES, VECTORS = 5, 3  # groups of tensors at most
KINDS = 4  # of what else states hold
WAYS = ("nearer", "back", "away")
# Of what a measure shows, how much may be forged and missed with 1 %. What hides in one group, or in an excursion, may be larger: a
# whole jump shows in each of them.
MAIN, SINGLE = 0.10, 0.30
MISSED = (MAIN, SINGLE, SINGLE)  # of the ways of a function

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """Shares of one kind of progress by segment, [N], which add up to 1 (all 0: nothing to be shared), and what may be missed."""

    name: str
    shares: Array
    missed: float


def shares(to_end: Array, from_start: Array) -> tuple[Array, Array, Array]:
    """Of N segments the shares of: coming nearer to the end than before, back from farther than later, farther from the start.

    to_end, from_start: [N+1] distances of the states; one that is not a number counts as the farthest.
    """
    to_end, from_start = _finite(to_end), _finite(from_start)
    nearest = np.minimum.accumulate(to_end)
    farthest_ahead = np.maximum.accumulate(to_end[::-1])[::-1]
    farthest = np.maximum.accumulate(from_start)
    return (
        _share(nearest[:-1] - nearest[1:]),
        _share(farthest_ahead[:-1] - farthest_ahead[1:]),
        _share(np.diff(farthest)),
    )


def weight_measures(trained: Mapping[str, Trained], memory: Sequence[Memory] = ()) -> list[Measure]:
    """The measures in weights, and in what else states hold; empty where nothing was trained or states are missing."""
    found = _by_group(
        {
            name: shares(*_together(_distances(coasting(trained[m].course), trained[m].elements) for m in members))
            for name, members in _groups(trained).items()
        }
    )
    for kind, items in _kinds(memory).items():
        # Where it ends says nothing, for it is led elsewhere with every step.
        to_end, from_start = _together(_distances(item.values.astype(np.float64), item.elements) for item in items)
        parts = shares(to_end, from_start)
        found += [Measure(f"{kind}: {way}", part, SINGLE) for way, part in zip(WAYS[1:], parts[1:], strict=True)]
    return found


def places_measures(
    places: Mapping[str, Array], trained: Mapping[str, Trained], positions: Sequence[int], segments: int
) -> list[Measure]:
    """The measures of where some states come to rest, by tensor [positions, m]; each segment between two of them gets the whole."""
    parts = {}
    for name, members in _groups(trained).items():
        to_end, from_start = _together(_distances(places[member], trained[member].elements) for member in members)
        parts[name] = on_grid(positions, to_end, from_start, segments)
    return _by_group(parts, " at rest")


def function_measures(
    name: str, positions: Sequence[int], to_end: Array, from_start: Array, segments: int
) -> list[Measure]:
    """The measures of a function that was looked at in some states only, which are called ``name``."""
    parts = on_grid(positions, to_end, from_start, segments)
    return [Measure(f"{name}: {way}", part, most) for way, part, most in zip(WAYS, parts, MISSED, strict=True)]


def _by_group(parts: Mapping[str, tuple[Array, Array, Array]], where: str = "") -> list[Measure]:
    """The measures of all weights together, where any moved, and of each group of them."""
    found = [
        Measure(f"{name}{where}: {way}", part, SINGLE)
        for name, ways in parts.items()
        for way, part in zip(WAYS, ways, strict=True)
    ]
    alive = [nearer for nearer, _, _ in parts.values() if nearer.any()]
    return [Measure(f"weights{where}", np.mean(alive, axis=0), MAIN), *found] if alive else found


def importance(measures: Sequence[Measure], segments: int) -> Array:
    """[N] the largest of each segment's shares, over what may be missed of it: what draws are weighted by."""
    weight = np.zeros(segments)
    for measure in measures:
        weight = np.maximum(weight, measure.shares / measure.missed)
    return weight


def on_grid(positions: Sequence[int], to_end: Array, from_start: Array, segments: int) -> tuple[Array, Array, Array]:
    """:func:`shares` of states known at some positions only: each segment between two of them gets the whole of their share.

    So the shares may add up to more than 1: whichever of the segments made the progress, it is weighted by all of it.
    """
    coarse = shares(to_end, from_start)
    place = np.searchsorted(np.asarray(positions), np.arange(segments), side="right") - 1
    return coarse[0][place], coarse[1][place], coarse[2][place]


def _groups(trained: Mapping[str, Trained]) -> dict[str, list[str]]:
    """Matrices and vectors, each in the order of the optimizer (about that of depth) cut into a few runs."""
    runs = _runs({name: item.dimensions for name, item in trained.items()})
    return {short_name(part[0]) if len(part) == 1 else name: part for name, part in runs.items()}


def _runs(dimensions: Mapping[str, int]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, most, members in (
        ("matrices", MATRICES, [name for name, count in dimensions.items() if count > 1]),
        ("vectors", VECTORS, [name for name, count in dimensions.items() if count <= 1]),
    ):
        count = min(most, len(members))
        for number in range(count):
            part = members[len(members) * number // count : len(members) * (number + 1) // count]
            found[f"{kind} {number + 1} of {count}"] = part
    return found


def _kinds(memory: Sequence[Memory]) -> dict[str, list[Memory]]:
    """By kind of state, the largest few kinds by themselves."""
    found: dict[str, list[Memory]] = {}
    for item in memory:
        found.setdefault(item.kind, []).append(item)
    order = sorted(found, key=lambda kind: -sum(item.elements for item in found[kind]))
    kept = {kind: found[kind] for kind in order[: KINDS - 1]}
    rest = [item for kind in order[KINDS - 1 :] for item in found[kind]]
    return {
        name: members
        for kind, items in ({**kept, "other state": rest} if rest else kept).items()
        for name, members in {kind: items, **_beside(kind, items)}.items()
    }


def _beside(kind: str, items: Sequence[Memory]) -> dict[str, list[Memory]]:
    """The same in groups as weights are, or a false value beside a bias would vanish among those beside matrices."""
    shapes = {str(number): item.dimensions for number, item in enumerate(items)}
    return {f"{kind}, {name}": [items[int(member)] for member in members] for name, members in _runs(shapes).items()}


def _together(distances: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    pairs = list(distances)
    return np.sum([pair[0] for pair in pairs], axis=0), np.sum([pair[1] for pair in pairs], axis=0)


def _distances(places: Array, elements: int) -> tuple[Array, Array]:
    """[N+1] of one tensor: clipped l1 distances to the end and from the start, in elements that are as far as they may be.

    places: [N+1, m].
    """
    with np.errstate(all="ignore"):
        found = []
        for goal in (places[-1], places[0]):
            apart = np.abs(places - goal)
            apart[np.isnan(apart)] = np.inf
            largest = apart.max(axis=0)
            moving = largest[(largest > 0) & np.isfinite(largest)]
            clip = CLIP * float(np.median(moving)) if moving.size else 1.0
            found.append(elements * (np.minimum(apart, clip) / clip).mean(axis=1))
    return found[0], found[1]


def _finite(distances: Array) -> Array:
    known = distances[np.isfinite(distances)]
    return np.where(np.isfinite(distances), distances, known.max() if known.size else 0.0)


def _share(gains: Array) -> Array:
    gains = np.maximum(gains, 0.0)
    total = float(gains.sum())
    return gains / total if total > 0 and math.isfinite(total) else np.zeros_like(gains)
