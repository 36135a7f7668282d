"""Infinitesimal updates (Fang et al., "Proof-of-Learning is Currently More Broken Than You Think", EuroS&P 2023).

No training at all: the checkpoints are interpolated linearly from a valid initialization to the target's weights, so close to
each other that neighbours differ by less than the tolerance δ · d_ref. With a learning rate near 0 a replay stays where it
started, which is then within the tolerance of the recorded end. Real data in the real order is claimed, and the initial state
follows from the seed.

What the rates are said to be decides which check the forgery meets first. ``claimed=tiny`` is the paper's attack, and a task
that the verifier names contradicts it at once. ``claimed=schedule stored=tiny`` claims the task's own schedule step by step and
hides the tiny rates in the optimizer states, which are compared with the task as well. By default both are the schedule's: every
check before the replay passes, but the replay moves by real gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, between, graft, shrink_rates
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.state.state import State


@dataclass(init=False, frozen=True)
class InfinitesimalUpdate(Attack):
    name = "infinitesimal-update"
    summary = (
        "a straight line from a fresh initialization to the target's weights, cut into imperceptible steps; no training"
    )
    source = "Fang et al., EuroS&P 2023"
    knowledge = "the target's final state, the data and the task"

    delta: float = parameter(
        0.01, "largest distance between neighbours, as a share of d_ref, if the steps suffice", low=1e-9
    )
    shrink: float = parameter(
        1e-9, "factor by which a tiny learning rate is smaller than the task's", low=0.0, high=1.0
    )
    claimed: str = parameter("schedule", "the rates in the blocks", choices=("schedule", "tiny"))
    stored: str = parameter("schedule", "the rates in the optimizer states", choices=("schedule", "tiny"))
    seed: int | None = parameter(
        None, "seed of the initialization (default: one of the attacker's own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        session = victim.own_session(seed)
        start = session.capture()
        interval = _interval(victim, start, self.delta)
        segments = -(-victim.steps // interval)
        rates = np.array(list(victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch)))

        def states() -> Iterator[State]:
            yield start
            graft(session, victim.final)
            if self.stored == "tiny":
                shrink_rates(session, self.shrink)
            for index in range(1, segments + 1):
                progress("interpolating", index, segments)
                step = min(index * interval, victim.steps)
                for _ in session.idle(step, victim.steps_per_epoch):
                    pass
                yield between(start, session.capture(), victim.final, step / victim.steps)

        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"rates": rates * (self.shrink if self.claimed == "tiny" else 1.0)},
            seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data,
            environment=victim.environment, evaluation=victim.proof.end.evaluation, **as_stored(victim),
        )  # fmt: skip
        return Mounted(0, range(segments))


def _interval(victim: Victim, start: State, delta: float) -> int:
    """The largest interval up to the target's own whose neighbours are closer than ``delta`` of d_ref, or 1.

    Models trained from independent seeds end nearly orthogonal, so that d_ref is about √2 times the norm of the weights.
    """
    final = weights(victim.final)
    norm = weight_distance(final, {name: torch.zeros_like(tensor) for name, tensor in final.items()})
    needed = weight_distance(weights(start), final) / (delta * math.sqrt(2.0) * norm) if norm else 1.0
    return max(1, min(victim.interval, int(victim.steps / (needed + 1.0))))
