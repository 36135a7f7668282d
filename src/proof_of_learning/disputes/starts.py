"""Does a model descend from just this start? Its likeness to the claim's own start, ranked among starts from fresh keys.

The start of a registered run follows from a claim and a timestamp, and whoever made a model that has nothing to do with the run
could not arrange for it to be more like that start than like any other. Under fresh keys the task's own factories draw other starts
of the same law. If the model is independent of the run, each of the n + 1 starts is as likely as any other to be the most like it,
so that p = (1 + number of fresh ones at least as like) / (n + 1) is exact, for any measure of likeness that is fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from torch import Tensor

from proof_of_learning.disputes import units
from proof_of_learning.disputes.models import of_state, pair
from proof_of_learning.disputes.units import Array
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.verifier.initialization.start import second_start
from proof_of_learning.verifier.verdict import Nonce

FRESH = 199  # starts from fresh keys


class Rank(msgspec.Struct, frozen=True):
    """How like a model is to a run's own start, among starts from fresh keys.

    p_value: exact if the model is independent of the run; null where it was not computed, with why. fresh: how many starts. own,
    largest: the likeness to the own start, and the largest to a fresh one.
    """

    p_value: float | None = None
    fresh: int = 0
    own: float | None = None
    largest: float | None = None
    why: str = ""


def rank(
    model: Mapping[str, Tensor], start: State, replayer: Replayer, nonce: Nonce, fresh: int, progress: ProgressCallback
) -> Rank:
    """Rank ``model`` against the run's own start. The keys follow from the nonce, so that nobody could know them before."""
    own = _likeness(model, of_state(start))
    others: list[float] = []
    for number in range(fresh):
        progress("drawing starts from fresh keys", number, fresh)
        replayer.ask(second_start(nonce, number + 1))
        if replayer.other_start is not None:
            others.append(_likeness(model, of_state(replayer.other_start)))
    at_least = sum(not other < own for other in others)
    return Rank((1 + at_least) / (len(others) + 1), len(others), own, max(others, default=None))


def _likeness(model: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """A measure that is fixed by shapes alone: the mean cosine of weight matrices, and, in a chain of layers, that of the hidden
    units that fit each other best, so that neither their order nor their size matters."""
    pairs = pair(start, model)
    matrices = [name for name, (a, _) in pairs.tensors.items() if a.ndim >= 2]
    if not matrices:
        return 0.0
    first, second = map(units.arrays, pairs.sides)
    plain = math.fsum(_cosine(first[name], second[name]) for name in matrices) / len(matrices)
    orders, _ = units.chains(pairs.sides[0])
    return plain + (units.match(first, second, orders).cosine if orders else 0.0)


def _cosine(a: Array, b: Array) -> float:
    x, y = a.ravel(), b.ravel()
    lengths = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    product: Any = x @ y
    return float(product) / lengths if lengths else 0.0
