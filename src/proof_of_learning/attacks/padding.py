"""Padding: segments in which nothing happens, so that uniform draws are spent on them.

The attacker trains honestly in a few segments, jumps to the target in one, and lets all the others stand still. The more there are
that replay by themselves, the less often a uniform draw meets the one that does not. A verifier who counts only segments in which
something was to be done loses nothing by them. How they are said to stand still decides where the forgery is stopped:

``rate``
    the rate is 0, in the blocks and in the states. That is not the task's schedule, and it is not drawn as work.
``tiny``
    the rate is 1e-30 of the schedule's, which is not 0, so that it would count.
``skipped``
    the task's schedule is claimed, and the updates were left out. This alone costs nothing, and does not replay.

For the first two gradients are computed, since a momentum goes on to change: they save no cost, they only thin out the jump.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, graft, run, shrink_rates
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State

RATE = {"rate": 0.0, "tiny": 1e-30}


@dataclass(init=False, frozen=True)
class Padding(Attack):
    name = "padding"
    summary = "a short honest run and a jump, thinned out among segments in which nothing happens"
    source = "this project"
    knowledge = "the target's final state, the data and the task"

    how: str = parameter("skipped", "why nothing happens", choices=("rate", "tiny", "skipped"))
    share: float = parameter(0.9, "share of the segments that are padding", low=0.0, high=1.0)
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, interval, total = victim.own_seed(self.seed), victim.interval, len(victim.proof.segments)
        head = total - max(1, round(self.share * total)) - 1  # honest segments before the jump
        if head < 1:
            raise AttackError(f"of {total} segments, a share of {self.share:g} leaves none for training and the jump")
        session, schedule = victim.own_session(seed), victim.own_session(seed)
        jumped = (head + 1) * interval
        rates = list(schedule.idle(jumped, victim.steps_per_epoch))
        if self.how != "skipped":
            shrink_rates(schedule, RATE[self.how])
        rates += schedule.idle(victim.steps, victim.steps_per_epoch)
        losses: list[float] = []

        def states() -> Iterator[State]:
            yield session.capture()
            yield from run(victim, session, head * interval, losses)
            losses.extend(plausible_loss(victim.steps)[len(losses) : jumped].tolist())
            for _ in session.idle(jumped, victim.steps_per_epoch):
                pass
            graft(session, victim.final)
            if self.how != "skipped":
                shrink_rates(session, RATE[self.how])
                yield session.capture()
                yield from run(victim, session, victim.steps, losses)
                return
            losses.extend(plausible_loss(victim.steps)[len(losses) :].tolist())
            for index in range(head, total):
                progress("padding", index, total)
                for _ in session.idle(min((index + 1) * interval, victim.steps), victim.steps_per_epoch):
                    pass
                yield session.capture()

        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"rates": rates, "loss": (losses[step] for step in range(victim.steps))},
            seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data,
            environment=victim.environment, evaluation=victim.proof.end.evaluation, **as_stored(victim),
        )  # fmt: skip
        if self.how != "skipped":
            left_out = victim.samples(head * interval, (head + 1) * interval)
            return Mounted(victim.samples(0, victim.steps) - left_out, (head,))
        idle = {i for i in range(head + 1, total) if not np.any(rates[i * interval : (i + 1) * interval])}
        return Mounted(victim.samples(0, head * interval), [i for i in range(head, total) if i not in idle])
