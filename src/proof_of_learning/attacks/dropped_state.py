"""Dropped state: one state of the proof is missing, and it is the one beside the jump.

The forgery is a ``shadow`` without a carrier: a small false shift kills a fresh network, its honest steps take labels alone, and a
false jump leads to the target. What that jump moved and how far it led can be computed only where both states beside it are held.
So the proof is thinned by just one of them, as anybody may thin a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.jumps import HOW
from proof_of_learning.attacks.shadow import Shadow
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.rewrite import rewrite

WHICH = ("after", "before", "both", "entry-too")


@dataclass(init=False, frozen=True)
class DroppedState(Attack):
    name = "dropped-state"
    summary = (
        "two false jumps around a dead network's honest steps, and no state beside the one that leads to the target"
    )
    source = "this project, found by an attack from outside on its own verifier"
    knowledge = "the target's final state, the data and the task; a network of ReLUs"

    which: str = parameter("after", "which states beside the jump are dropped", choices=WHICH)
    how: str = parameter("weights", "what is false in the last jump", choices=HOW)
    tail: float = parameter(
        0.0, "share of the segments after it (at least one, with momentum sixty)", low=0.0, high=0.9
    )
    every: int = parameter(0, "drop every so many-th state beside those, to hide them (0: none)", low=0)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {},
        {"which": "before"},
        {"which": "both"},
        {"which": "entry-too"},
        {"how": "gradient"},
        {"every": 10},
        {"tail": 0.05},
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        attack = Shadow(
            carrier="none", how=self.how, tail=self.tail, **({} if self.seed is None else {"seed": self.seed})
        )
        mounted = attack.mount(victim, path, progress)
        count = len(victim.proof.segments)
        dropped = set(range(self.every, count, self.every)) if self.every else set()
        entry, leave = mounted.forged[0], mounted.forged[1:]
        for jump in leave:
            dropped |= {jump} if self.which == "before" else {jump + 1}
        if self.which == "both":
            dropped |= {leave[0]}
        if self.which == "entry-too":
            dropped |= {entry + 1}
        rewrite(
            Proof.open(path),
            (position for position in range(count + 1) if position not in dropped or position == count),
        )
        return mounted
