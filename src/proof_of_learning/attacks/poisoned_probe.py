"""Poisoned probe: some classes are learned honestly, and the jump to the target brings only the others.

An observed run writes its own order down. So the attacker takes batches of a few classes alone, for as long as they take to learn,
and the function on their samples is then the final one, whatever probe is drawn. What the jump adds is bounded by the share of the
classes that were left out. In between lies a dead network, as in ``late-jump``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import answers
from proof_of_learning.attacks.detour import Detour, detour, pruned, segments
from proof_of_learning.attacks.jumps import HOW, model_of, put
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.training.batches import DerivedOrder, Indices


@dataclass(init=False, frozen=True)
class PoisonedProbe(Attack):
    name = "poisoned-probe"
    summary = "an observed run whose order teaches a few classes; a false jump to the target brings the rest"
    source = "this project, against its own rule for progress in function space"
    knowledge = "the target's final weights, the data and the task; a classifier with ReLUs"

    left: int = parameter(1, "classes that are not taught, the last ones", low=1)
    head: float = parameter(0.05, "share of the segments in which the others are", low=0.0, high=0.9)
    how: str = parameter("weights", "what is false in the jumps", choices=HOW)
    parts: int = parameter(1, "false segments of the last jump (gradient: at least two)", low=1)
    tail: float = parameter(
        0.0, "share of the segments after it (at least one, with momentum sixty)", low=0.0, high=0.9
    )
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {},
        {"left": 3},
        {"left": 5},
        {"head": 0.2},
        {"how": "gradient", "parts": 8},
        {"how": "momentum"},
        {"tail": 0.05},
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        other = victim.own_session(seed)
        put(other, model_of(victim.final))
        classes = answers(other, victim).numpy()
        kept = sorted(set(classes.tolist()))[: -self.left]
        if not kept:
            raise AttackError(f"there are not more than {self.left} classes")
        head = max(1, round(self.head * len(victim.proof.segments)))
        order = _Order(victim, seed, np.flatnonzero(np.isin(classes, kept)), (head + 1) * victim.interval)
        tail = segments(self.tail, victim, self.how)
        plan = Detour(lambda live: pruned(live, victim, 0.0), head, self.how, self.parts, tail, order)
        return detour(victim, path, progress, seed, plan)


class _Order:
    """The task's own order, but for the first ``until`` steps, which take only the samples of ``taught``."""

    def __init__(self, victim: Victim, seed: int, taught: npt.NDArray[np.int64], until: int) -> None:
        self.own = DerivedOrder(victim.task, len(victim.data), randomness.key_from_seed(seed))
        self.taught, self.until = taught, until

    def indices(self, step: int) -> Indices:
        chosen = self.own.indices(step)
        return self.taught[chosen % len(self.taught)] if step < self.until else chosen
