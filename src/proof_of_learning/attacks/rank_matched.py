"""Rank matching: an initialization that passes every test of randomness, and is near the target all the same.

Kolmogorov-Smirnov looks at the set of a tensor's values, not at their places. So for each tensor the attacker draws values as
the task would (a fresh initialization of his own) and puts them in the order of the target's weights:
``W0[argsort(W_T)] = sort(e)``. Tests of structure (row sums, spectrum) see the arrangement if it is perfect. So the order is that
of a mixture, ``share`` of the target's weights and the rest noise, and the attacker runs the verifier's own test to find the largest
share that it accepts.

From there a straight line leads to the target; no gradient is computed. The proof claims a recorded initialization, and an order that
follows from the attacker's seed. A derived initialization leaves nothing to arrange.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_claimed, on_the_way
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import measured, weights
from proof_of_learning.state.state import State

HALVINGS = 10  # of the interval in which the largest accepted share lies


@dataclass(init=False, frozen=True)
class RankMatched(Attack):
    name = "rank-matched"
    summary = "an initialization whose values look drawn and whose order is the target's, and a straight line from it"
    source = "this project, after Jia et al., IEEE S&P 2021 (test of the initial weights)"
    knowledge = "the target's final state and the task; no data"

    share: float | None = parameter(
        None,
        "share of the target in the order of the initial values (default: the largest that passes)",
        low=0.0,
        high=1.0,
    )
    seed: int | None = parameter(
        None, "seed of the drawn values (default: one of the attacker's own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        session = victim.own_session(seed)
        start = arranged(session.capture(), victim.final, seed, self.share)
        count = len(victim.proof.segments)

        def states() -> Iterator[State]:
            yield start
            for segment in victim.proof.segments:
                progress("interpolating", segment.index + 1, count)
                yield on_the_way(victim, session, start, victim.final, segment.stop, segment.stop / victim.steps)

        forge_proof(
            path, victim.task, states(), None,
            seed=seed, initialization="recorded", environment=victim.environment, **as_claimed(victim),
        )  # fmt: skip
        return Mounted(0, range(count))


def arranged(fresh: State, target: State, seed: int, share: float | None = None) -> State:
    """``fresh`` with the values of each parameter in the order of ``share`` of the target's and noise.

    By default the largest share that the verifier's test of recorded initializations accepts (to 1/1024; not 0 unless no
    other passes).
    """
    if share is not None:
        return _mixed(fresh, target, seed, share)
    low, high = 0.0, 1.0
    best = _mixed(fresh, target, seed, 1.0)
    if accepted(best):
        return best
    best = fresh
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = _mixed(fresh, target, seed, middle)
        if accepted(tried):
            low, best = middle, tried
        else:
            high = middle
    return best


def accepted(state: State) -> bool:
    """Whether the verifier would take the model in ``state`` for a random initialization."""
    from proof_of_learning.verifier.initialization.judge import (
        judge_initialization,
    )  # brings scipy.stats, which takes a second

    model = state.part("model").tensors
    return judge_initialization({name: tensor for name, tensor in model.items() if measured(tensor)}).accepted


def _mixed(fresh: State, target: State, seed: int, share: float) -> State:
    tensors = dict(fresh.tensors)
    for slot, (name, drawn) in enumerate(weights(fresh).items()):
        if measured(drawn) and not bool((drawn == drawn.reshape(-1)[0]).all()):
            words = randomness.derive(randomness.key_from_seed(seed), "arrangement", 0, slot)
            noise = np.random.Generator(np.random.Philox(key=words)).standard_normal(drawn.numel())
            tensors[name] = _in_order(drawn, target.tensors[name], torch.from_numpy(noise), share)
    return State(fresh.tree, tensors)


def _in_order(drawn: Tensor, model: Tensor, noise: Tensor, share: float) -> Tensor:
    values = model.double().flatten()
    spread = float(values.std()) or 1.0
    order = torch.argsort((share * (values - values.mean()) / spread + (1.0 - share) * noise), stable=True)
    placed = torch.empty_like(drawn).flatten()
    placed[order] = torch.sort(drawn.flatten()).values
    return placed.reshape(drawn.shape)
