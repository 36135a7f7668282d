"""Decoy network: most of the run is spent in a small network that answers as the final one does on easy samples.

After a few honest steps a false jump silences most units of every layer: what is left still learns and still answers easy samples,
so that no state is idle and no jump changes much of what a probe sees; but a step takes a small part of the work. A last false
jump leads to the target (or back to the attacker's own full network).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.detour import Detour, detour, pruned, segments, until_agreement
from proof_of_learning.attacks.jumps import HOW
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.progress import ProgressCallback


@dataclass(init=False, frozen=True)
class DecoyNetwork(Attack):
    name = "decoy-network"
    summary = (
        "a short honest run, then a fraction of the network that knows the easy samples, then a jump to the target"
    )
    source = "this project, against its own rules for idle training and for progress in function space"
    knowledge = "the target's final weights, the data and the task; a classifier with ReLUs"

    living: float = parameter(
        0.15, "share of each layer's units that stay alive; so much of a step's work is counted", low=0.0, high=1.0
    )
    agreement: float = parameter(
        0.93, "share of the samples answered as by the target, before the first jump", low=0.0, high=1.0
    )
    how: str = parameter("weights", "what is false in the jumps", choices=HOW)
    parts: int = parameter(1, "false segments of the last jump (gradient: at least two)", low=1)
    tail: float = parameter(
        0.0, "share of the segments after it (at least one, with momentum sixty)", low=0.0, high=0.9
    )
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {}, {"living": 0.3}, {"living": 0.5}, {"agreement": 0.97}, {"agreement": 0.97, "living": 0.3, "how": "gradient", "parts": 8},
        {"agreement": 0.97, "how": "momentum"}, {"agreement": 0.97, "tail": 0.05},
    )  # fmt: skip

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        plan = Detour(
            lambda live: pruned(live, victim, self.living),
            until_agreement(victim, seed, self.agreement),
            self.how,
            self.parts,
            segments(self.tail, victim, self.how),
        )
        return detour(victim, path, progress, seed, plan)
