"""Idle excursion: a short honest training, which spends most of its run in a dead network and comes back.

A few false segments of honest size shift the weights of one layer of ReLUs until no unit passes anything on. Thousands of honest
steps that take labels alone follow, then as many false segments lead back to where the excursion began, and training goes on. The
model is the attacker's own, as good as the honest steps made it; the proof says that many more were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import Gate, gates, shifted
from proof_of_learning.attacks.jumps import HOW, Weights, all_rates, falsified_run, model_of, way
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.training.steps import Session


@dataclass(init=False, frozen=True)
class IdleExcursion(Attack):
    name = "idle-excursion"
    summary = "the attacker's own short training, with thousands of free steps of a dead network in between"
    source = "this project, found in the review of its selection of segments"
    knowledge = "the data and the task; of the target nothing but its length; a network of ReLUs"
    ends_in_target = False

    how: str = parameter("gradient", "what is false in the jumps", choices=HOW[:2])
    parts: int = parameter(8, "false segments on the way there, and as many back", low=1)
    head: float = parameter(0.005, "share of the segments before it", low=0.0, high=0.9)
    tail: float = parameter(0.05, "share of the segments after it", low=0.0, high=0.9)
    living: int = parameter(0, "units of the layer that stay alive; their share of the samples counts as work", low=0)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {}, {"tail": 0.2}, {"tail": 0.4}, {"parts": 2}, {"parts": 32}, {"how": "weights", "parts": 1}, {"living": 1},
        {"head": 0.05}, {"head": 0.2},
    )  # fmt: skip

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, count, k = victim.own_seed(self.seed), len(victim.proof.segments), victim.interval
        session, rates = victim.own_session(seed), all_rates(victim, seed)
        parts = max(self.parts, 2) if self.how == "gradient" else self.parts
        entry = max(2, round(self.head * count))
        leave = count - max(1, round(self.tail * count)) - parts
        if leave <= entry + parts:
            raise AttackError(
                f"{count} segments are too few for {2 * parts} false ones and the honest ones around them"
            )
        home: Weights = {}
        share = 0.0

        def dead(live: Session) -> Weights:
            nonlocal share
            home.update({name: tensor.clone() for name, tensor in model_of(live.capture()).items()})
            gate = min(gates(live, victim, self.living), key=Gate.size)
            share = min(1.0, self.living / len(gate.mean))
            return shifted(home, gate)

        jumps = way(self.how, dead, entry, parts, rates, k) | way(self.how, lambda live: home, leave, parts, rates, k)
        free = range(entry + parts, leave)
        mounted = falsified_run(victim, session, path, jumps, free, progress)
        living = round(share * victim.samples(free.start * k, free.stop * k))
        return Mounted(mounted.samples + living, mounted.forged)
