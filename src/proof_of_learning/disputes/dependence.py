"""Whether models are independent of one another, as a score. Their starts are compared first: equal starts make dependence trivial.

Who copied from whom, no comparison of two models tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.disputes import units
from proof_of_learning.disputes.likeness import CLOSE, COMPARED, RARE, relative
from proof_of_learning.disputes.models import Pairs, pair
from proof_of_learning.disputes.table import Dependence, Row, Starts
from proof_of_learning.replay.origins import correlated
from proof_of_learning.verifier.checks.endpoint import same_bits

Weights = Mapping[str, Tensor]
MODEL = "model"
ALIKE = 0.5  # a correlation of weights as they stand that no two independent models have; a score that is worth a word
INDEPENDENT = "nothing speaks against independence; that does not show it"


def depend(ends: Sequence[tuple[Row, tuple[Weights | None, Weights | None]]], model: Weights) -> list[Dependence]:
    """Every two of the models: the disputed one, and those that proofs end in. ``ends``: first and final weights of each proof."""
    named: list[tuple[str, Weights | None, Weights | None]] = [(row.label, *both) for row, both in ends]
    named.append((MODEL, None, model))
    found = []
    for (first, start, final), (second, other_start, other_final) in combinations(named, 2):
        if final is None or other_final is None:
            continue
        found.append(_pair(first, second, (start, other_start), pair(final, other_final)))
    return found


def _pair(first: str, second: str, begun: tuple[Weights | None, Weights | None], ends: Pairs) -> Dependence:
    starts = None if begun[0] is None or begun[1] is None else pair(begun[0], begun[1])
    how = _starts(starts)
    if ends.share < COMPARED:
        text = "of other architectures: there is nothing to compare"
        return Dependence(first, second, how, False, text, why="too few tensors of one shape")
    equal = ends.share == 1.0 and all(a.dtype == b.dtype and same_bits(a, b) for a, b in ends.tensors.values())
    correlation = _correlation(ends)
    found = _measured(ends, starts if how == "different" else None)
    summary = _summary(how, equal, found, correlation)
    return Dependence(
        first, second, how, equal, summary, found.score, found.reference, found.order_p, correlation, found.why
    )


def _starts(starts: Pairs | None) -> Starts:
    """How the starts of two runs stand to one another. Tensors that are constant in both (biases of 0) say nothing."""
    if starts is None:
        return "unknown"
    drawn = {n: both for n, both in starts.tensors.items() if any(bool((t != t.flatten()[0]).any()) for t in both)}
    if starts.share < COMPARED or not drawn:
        return "different" if starts.share < COMPARED else "unknown"
    if all(a.dtype == b.dtype and same_bits(a, b) for a, b in drawn.values()):
        return "equal"
    found = _measured(starts, None)
    alike = found.copied or _correlation(Pairs(drawn, starts.share)) >= ALIKE
    return "alike" if alike else "different"


@dataclass(frozen=True)
class _Units:
    """The score, what it is measured against, the p-value of the order of units, and how far the models are apart with units in order;
    why not, where that does not apply. ``matrix``: one whose units are the same ones, whatever becomes of the others."""

    score: float | None = None
    reference: float | None = None
    order_p: float | None = None
    aligned: float | None = None
    why: str = ""
    matrix: str = ""

    @property
    def copied(self) -> bool:
        """Whether no two independent models are like that."""
        in_order = self.order_p is not None and self.order_p <= RARE
        return in_order or (self.aligned is not None and self.aligned < CLOSE) or bool(self.matrix)


def _measured(ends: Pairs, starts: Pairs | None) -> _Units:
    """starts: two independent ones, whose units are matched for reference; without them, independent draws."""
    orders, why = units.chains(ends.sides[0])
    first, second = map(units.arrays, ends.sides)
    rng = np.random.default_rng(0)
    matrix, _ = units.alone(first, second, np.random.default_rng(0)) or ("", 0.0)
    if not orders:
        return _Units(why=why, matrix=matrix)
    best = units.match(first, second, orders)
    if starts is not None:
        mine, theirs = map(units.arrays, starts.sides)
        reference = units.match(mine, theirs, orders).cosine
    else:
        reference = units.by_chance(first, orders, rng)
    p = units.order_p_value(first, second, orders[0], rng)
    return _Units(units.score(best.cosine, reference), reference, p, relative(first, best.tensors), matrix=matrix)


def _correlation(ends: Pairs) -> float:
    both = [[pair[side].double().flatten() for pair in ends.tensors.values() if pair[0].ndim >= 2] for side in (0, 1)]
    return correlated(torch.cat(both[0]), torch.cat(both[1])) if both[0] else 0.0


def _summary(starts: Starts, equal: bool, found: _Units, correlation: float) -> str:
    if equal:
        return "the same weights, bit for bit"
    if starts == "equal":
        return "both began at the same start, which alone makes them dependent"
    if starts == "alike":
        return "their starts are not independent, and so neither are they"
    if found.score is None:
        if found.matrix:
            return f"not independent: the units of {found.matrix} are the same ones, in another order, size or sign"
        if abs(correlation) >= ALIKE:
            return "not independent: their weights correlate as they stand"
        return "cannot be decided: hidden units cannot be matched, and as they stand their weights hardly correlate"
    if found.copied and found.order_p is not None and found.order_p <= RARE:
        return "not independent: hidden units stand in a like order, which no two independent models' do"
    if found.copied:
        return "not independent: hidden units are the same ones, in another order"
    if found.score >= ALIKE:
        return (
            "cannot be decided: hidden units are alike, which they are between models that learned the same data, too"
        )
    return INDEPENDENT
