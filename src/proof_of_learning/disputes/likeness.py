"""How near two models are, and how one may have come from the other. Near is never equal.

What is asked, in this order: are the weights the same bits; are all of them what a conversion, zeros or a grid of few levels make of
the other's; are they the other's in another order, size and sign of hidden units; are they near; do they have more in common than
independent draws; or none of that. What is nearer to the start of a training than to its end has the start in common, and not the
training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from proof_of_learning.disputes import units
from proof_of_learning.disputes.models import Pairs
from proof_of_learning.disputes.units import Array
from proof_of_learning.replay.origins import correlated

Kind = Literal[
    "exact",
    "converted",
    "pruned",
    "quantised",
    "rearranged",
    "near",
    "start",
    "related",
    "unrelated",
    "other",
    "missing",
]
NEAR: frozenset[Kind] = frozenset({"converted", "pruned", "quantised", "rearranged", "near"})
UNDECIDED: frozenset[Kind] = frozenset({*NEAR, "start", "related", "missing"})

CLOSE = 0.5  # relative distance; independent models are about √2 apart, for their weights are nearly orthogonal
COMPARED = 0.5  # share of the weights that have to have a like one, or there is no comparison
SIGMAS = 6.0  # of the correlation of independent draws; beyond it they are none
LEAST = 0.05  # correlation that counts at all: trained layers share a little of it by the data alone
RARE = 1e-3  # p-value of the order of units
ROUNDING = 1e-4  # relative distance that rescaling, or arithmetic in another order, leaves
EVIDENCE = 64  # elements that have to be equal and not zero, for zeros to be pruning and not an empty model
LEVELS = 256  # of a quantised tensor
GRIDS = (127.0, 128.0, 7.0, 8.0, 3.0, 1.0)  # the largest number of a signed grid, by row: 8 bits, 4, 3, ternary
ON_GRID = 1e-3  # of a step, how far a value may be from its place
SHOWN = 5  # tensors

_NARROW = tuple(
    getattr(torch, name)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float32")
    if hasattr(torch, name)
)


class Apart(msgspec.Struct, frozen=True):
    """How far one tensor is from its like: the l2 distance over the larger norm, and the cosine."""

    relative: float
    cosine: float


class Likeness(msgspec.Struct, frozen=True):
    """What one model is to another.

    summary: in words. relative, cosine: of all weight matrices that have a like one (the l2 distance over the larger norm; null
    where there is none; what normalises has weights near 1 in any model, and does not count). to_start: the relative distance to
    where the training began. compared: share of the weights that have a like one. zeros, dtype, levels: of pruning, conversion and
    quantisation. matched: mean size of the cosines of matched hidden units, and aligned: the relative distance once units are in
    order; null, with why, where that does not apply. order_p: probability of as much in common, unit by unit, between independent
    models. tensors: the most distant ones.
    """

    kind: Kind
    summary: str
    relative: float | None = None
    cosine: float | None = None
    to_start: float | None = None
    compared: float = 0.0
    zeros: float | None = None
    dtype: str | None = None
    levels: int | None = None
    matched: float | None = None
    aligned: float | None = None
    order_p: float | None = None
    no_units: str = ""
    tensors: dict[str, Apart] = {}


def missing(why: str) -> Likeness:
    """Where there is nothing to compare with."""
    return Likeness("missing", why)


EXACT = Likeness("exact", "the same weights, bit for bit", relative=0.0, cosine=1.0, to_start=None, compared=1.0)


def liken(pairs: Pairs, start: Pairs | None = None, seed: int = 0) -> Likeness:
    """What the second model of ``pairs`` is to the first, which ended a training. Never ``exact``: bits are compared elsewhere.

    start: the same second model, paired with where that training began. seed: of random orders.
    """
    if pairs.share < COMPARED:
        text = f"other shapes: {pairs.share:.0%} of the weights have a tensor of the same shape, too few to compare"
        return Likeness("other", text, compared=pairs.share)
    integers = any(not b.is_floating_point() for _, b in pairs.tensors.values())
    pairs = _scaled(pairs)
    whole, tensors = _apart(pairs)
    to_start = None if start is None or start.share < COMPARED else _apart(start)[0].relative
    found = Likeness(
        "unrelated", "", whole.relative, whole.cosine, to_start, pairs.share,
        tensors=dict(sorted(tensors.items(), key=lambda item: -_ranked(item[1].relative))[:SHOWN]),
    )  # fmt: skip
    made = _made_of(pairs, found, "the proof's end") or _made_of(pairs.swapped(), found, "the model", back=True)
    if made is not None:
        return made
    judged = _judged(_with_units(found, pairs, seed), pairs)
    if integers and judged.kind == "near":
        text = f"the proof's end in integers, which are {judged.summary}"
        return msgspec.structs.replace(judged, kind="quantised", summary=text)
    return judged


# ---- made of it by a rule ---------------------------------------------------------------------------


def _made_of(pairs: Pairs, found: Likeness, of: str, *, back: bool = False) -> Likeness | None:
    """Whether every weight is what a conversion, with zeros or without, or a grid of few levels makes of the first model's.

    back: the first model of ``pairs`` is the disputed one, so that it is the proof's end that was made of it.
    """
    subject = "the proof's end is" if back else "the model is"
    if pairs.share < 1.0:
        return None
    for narrow in (None, *_NARROW):
        if (zeros := _converted(pairs, narrow)) is not None:
            dtype = _type(pairs, narrow)
            if dtype is None and not zeros:
                text = "every weight is the proof's, bit for bit, but not all else in the file is"
                return msgspec.structs.replace(found, kind="near", summary=text)
            by = f"{of}, converted to {dtype}" if dtype else of
            text = f"{subject} {by}" + (f", with {zeros:.1%} of the weights set to zero" if zeros else "")
            return msgspec.structs.replace(
                found, kind="pruned" if zeros else "converted", summary=text, dtype=dtype, zeros=zeros or None
            )
    if (levels := _levels(pairs)) is not None:
        text = f"{subject} {of}, rounded to a grid of at most {levels} levels"
        return msgspec.structs.replace(found, kind="quantised", summary=text, levels=levels)
    return None


def _converted(pairs: Pairs, narrow: torch.dtype | None) -> float | None:
    """The share of weights that are zero without their like being so, where all others are the likes converted; None else.

    A tensor may have been left as it was.
    """
    zeros = equal = total = 0
    for a, b in pairs.tensors.values():
        whole = b.double()
        counts = None
        for converted in (a, None if narrow is None else a.to(narrow)):
            if converted is None:
                continue
            like = converted.to(b.dtype).double() == whole
            dropped = (whole == 0) & ~like
            if bool((like | dropped).all()):
                counts = int(dropped.sum()), int((like & (whole != 0)).sum())
                break
        if counts is None:
            return None
        zeros, equal, total = zeros + counts[0], equal + counts[1], total + b.numel()
    return zeros / total if equal >= min(EVIDENCE, total // 2) else None


def _type(pairs: Pairs, narrow: torch.dtype | None) -> str | None:
    """The name of what was converted to: the type that the numbers were rounded to, else that they are written in."""
    written = {b.dtype for a, b in pairs.tensors.values() if a.dtype != b.dtype}
    types = {narrow} if narrow is not None else written
    return str(types.pop()).removeprefix("torch.") if len(types) == 1 else None


def _levels(pairs: Pairs) -> int | None:
    """The largest number of levels of a matrix, where each is the like one rounded to a grid; None else."""
    most = 0
    for a, b in pairs.tensors.values():
        if a.ndim < 2:
            continue
        x, y = a.double(), b.double()
        found = _grid(x, y) or _grid_of_rows(x.reshape(len(x), -1), y.reshape(len(y), -1))
        if found is None:
            return None
        most = max(most, found)
    return most or None


def _grid(a: Tensor, b: Tensor) -> int | None:
    """The number of different values, where there are few and each element is near the like one."""
    values = torch.unique(b)
    if not 1 < len(values) <= min(LEVELS, b.numel() // 2):
        return None
    inside = (a >= values[0]) & (a <= values[-1])
    step = float(torch.diff(values).max())
    return len(values) if bool(((a - b).abs()[inside] <= step).all()) and bool(inside.double().mean() > 0.5) else None


def _grid_of_rows(a: Tensor, b: Tensor) -> int | None:
    """The same where each row has a symmetric grid of its own size."""
    largest = b.abs().amax(dim=1, keepdim=True)
    for top in GRIDS:
        step = torch.where(largest > 0, largest / top, torch.ones_like(largest))
        places = b / step
        fits = (places - places.round()).abs() <= ON_GRID
        if bool(fits.all()) and bool(((a - b).abs() <= step * (0.5 + 0.02)).double().mean() > 0.99):
            return 2 * int(top) + 1
    return None


def _scaled(pairs: Pairs) -> Pairs:
    """Integers, which a quantised model keeps beside their scales, in the size of what they stand for, row by row."""

    def scaled(a: Tensor, b: Tensor) -> Tensor:
        if b.is_floating_point():
            return b
        x, y = (t.double().reshape(len(t) if t.ndim > 1 else 1, -1) for t in (a, b))
        sizes = (x * y).sum(dim=1, keepdim=True) / (y * y).sum(dim=1, keepdim=True).clamp(min=1.0)
        return (y * sizes).reshape(b.shape)

    return Pairs({name: (a, scaled(a, b)) for name, (a, b) in pairs.tensors.items()}, pairs.share)


# ---- near -------------------------------------------------------------------------------------------


def _with_units(found: Likeness, pairs: Pairs, seed: int) -> Likeness:
    """With what matching the hidden units tells, where it applies."""
    orders, why = units.chains(pairs.sides[0])
    if not orders:
        return msgspec.structs.replace(found, no_units=why)
    first, second = map(units.arrays, pairs.sides)
    best = units.match(first, second, orders)
    p = units.order_p_value(first, second, orders[0], np.random.default_rng(seed))
    aligned = relative(first, best.tensors) if best.moved or found.relative else found.relative
    return msgspec.structs.replace(found, matched=best.cosine, aligned=aligned, order_p=p)


def _judged(found: Likeness, pairs: Pairs) -> Likeness:
    away, cosine = found.relative or 0.0, found.cosine or 0.0
    start = found.to_start
    if not (math.isfinite(away) and math.isfinite(cosine)):
        return msgspec.structs.replace(
            found, kind="related", summary="some weights are no numbers, so nothing can be measured"
        )
    aligned = found.aligned
    if aligned is not None and aligned < CLOSE and aligned < 0.5 * away:
        how = "the same" if aligned <= ROUNDING else f"{aligned:.2%} away"
        text = f"{how} up to the order, size and sign of hidden units, and {away:.0%} away as it stands (of the weights' own length)"
        return msgspec.structs.replace(found, kind="rearranged", summary=text)
    told = f"{away:.2%} of the weights' length away (independent models: about 141%), cosine {cosine:.4f} (1: the same direction)"
    if away <= CLOSE:
        if start is not None and not away < start:
            text = f"{told}, but no nearer to the training's end than to its start ({start:.2%}): they share the start"
            return msgspec.structs.replace(found, kind="start", summary=text)
        return msgspec.structs.replace(
            found, kind="near", summary=f"{told}, as fine-tuning, merging or noise leave a model"
        )
    if (reason := _in_common(found, pairs)) is not None:
        return msgspec.structs.replace(found, kind="related", summary=f"{told}, yet not independent: {reason}")
    return msgspec.structs.replace(found, summary=f"{told}; nothing in common was found")


def _in_common(found: Likeness, pairs: Pairs) -> str | None:
    """What speaks against independence; None where nothing does."""
    if found.order_p is not None and found.order_p <= RARE:
        return (
            f"hidden units stand in a like order (p = {found.order_p:.2g}: how probable that is for independent models)"
        )
    first, second = map(units.arrays, pairs.sides)
    if (matrix := units.alone(first, second, np.random.default_rng(0))) is not None:
        return f"the units of {matrix[0]} are the same ones in another order, size or sign ({matrix[1]:.2%} away)"
    if found.order_p is not None:
        return None
    both = [torch.cat([pair[side].double().flatten() for pair in _matrices(pairs)]) for side in (0, 1)]
    cosine = correlated(*both)
    beyond = max(LEAST, SIGMAS / math.sqrt(max(len(both[0]), 1)))
    return f"its weights correlate ({cosine:.2f} of 1)" if abs(cosine) > beyond else None


def _matrices(pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """Those that count as a whole: weights of layers; all where there are none."""
    return [pair for pair in pairs.tensors.values() if pair[0].ndim >= 2] or list(pairs.tensors.values())


def _apart(pairs: Pairs) -> tuple[Apart, dict[str, Apart]]:
    """All weights together, and tensor by tensor."""
    total = [0.0] * 4
    for pair in _matrices(pairs):
        total = [one + more for one, more in zip(total, _sums(*pair), strict=True)]
    return _of(total), {name: _of(_sums(*pair)) for name, pair in pairs.tensors.items()}


def _sums(a: Tensor, b: Tensor) -> list[float]:
    """The squares of the difference, of either tensor, and the product."""
    x, y = a.double().flatten(), b.double().flatten()
    apart = x - y
    return [float(torch.dot(*both)) for both in ((apart, apart), (x, x), (y, y), (x, y))]


def _of(sums: list[float]) -> Apart:
    squares, first, second, product = sums
    larger = math.sqrt(max(first, second))
    relative = math.sqrt(squares) / larger if larger else 0.0
    lengths = math.sqrt(first) * math.sqrt(second)
    return Apart(relative, product / lengths if lengths else float(first == second))


def relative(first: Mapping[str, Array], second: Mapping[str, Array]) -> float:
    """The distance of the tensors that both have, over the larger norm."""
    names = [name for name in first if name in second]
    squares = math.fsum(float(np.square(first[n] - second[n]).sum()) for n in names)
    larger = max(math.fsum(float(np.square(side[n]).sum()) for n in names) for side in (first, second))
    return math.sqrt(squares / larger) if larger else 0.0


def _ranked(value: float) -> float:
    return value if value == value else math.inf
