"""Late jump: honest steps until the model is nearly as good as the target, and a false jump over the last few percent.

The first steps of a run learn most of the function: for a small part of the samples the attacker's own model answers as the target
does on nearly all of them, and the jump changes little of what a probe sees. What lies between is filled:

``dead``
    a jump into a dead network first, whose honest steps take labels alone.
``training``
    the attacker goes on training and jumps near the end, for the target's weights alone.
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
class LateJump(Attack):
    name = "late-jump"
    summary = "honest steps until the outputs are nearly the target's, and then a false jump to its weights"
    source = "this project, found in the review of its selection of segments"
    knowledge = "the target's final weights, the data and the task; a classifier with ReLUs"

    agreement: float = parameter(
        0.93, "share of the samples answered as by the target, before the jump", low=0.0, high=1.0
    )
    filler: str = parameter("dead", "what is between", choices=("dead", "training"))
    how: str = parameter("weights", "what is false in the jumps", choices=HOW)
    parts: int = parameter(1, "false segments of the last jump (gradient: at least two)", low=1)
    tail: float = parameter(
        0.0, "share of the segments after it (at least one, with momentum sixty)", low=0.0, high=0.9
    )
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {}, {"agreement": 0.96}, {"agreement": 0.97}, {"agreement": 0.97, "how": "gradient", "parts": 8},
        {"agreement": 0.97, "how": "momentum"}, {"agreement": 0.97, "tail": 0.05}, {"filler": "training"},
        {"filler": "training", "how": "momentum"}, {"agreement": 0.97, "parts": 64},
    )  # fmt: skip

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        head = until_agreement(victim, seed, self.agreement) if self.filler == "dead" else 0
        dead = (lambda live: pruned(live, victim, 0.0)) if self.filler == "dead" else None
        plan = Detour(dead, head, self.how, self.parts, segments(self.tail, victim, self.how))
        return detour(victim, path, progress, seed, plan)
