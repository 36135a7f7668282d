"""Training that is drawn toward the target: a penalty that the replay lacks, or learning rates chosen for their direction.

``directed-weights`` (directed weight minimization): after each honest step the weights give way toward the target's,
``W <- W - c_t (W - W_T)``. For plain SGD that is a penalty ‖W - W_T‖² in the loss; done beside the optimizer, as weight decay is
in AdamW, it leaves the momentum as the replay finds it, and works with any optimizer. The shares c_t are in proportion to the
learning rates, and no larger than it takes to come as near as ``close`` of the initial distance, if the gradients do not resist:
that follows from the schedule, without a trial.

``rate-steering``: all gradients are honest, and only the length of each update is chosen, so that it ends as near to the target as
it can, between nothing and ``reach`` times the task's rate. ``claimed=steered`` states the chosen rates in the blocks, ``schedule``
the task's own.

The last segment is a jump to exactly the target's state. Every other step is paid for: the cost is nearly that of honest training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_claimed, on_the_way
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import derived_feed

# From the weights before a step, those after it (to be changed in place), the target's, and the step's number; returns by how
# much the update was stretched.
Move = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], int], float]


@dataclass(init=False, frozen=True)
class DirectedWeights(Attack):
    name = "directed-weights"
    summary = "training from a fresh initialization with an undisclosed pull toward the target's weights"
    source = "Jia et al., IEEE S&P 2021, section VII-C2"
    knowledge = "the target's final state, the data and the task"

    close: float = parameter(0.01, "share of the initial distance left by the pull alone", low=1e-6, high=1.0)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        schedule = [max(rates) for rates in victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch)]
        strength = -math.log(self.close) / (math.fsum(schedule) or 1.0)

        def pull(before: Sequence[Tensor], after: Sequence[Tensor], target: Sequence[Tensor], step: int) -> float:
            for weight, goal in zip(after, target, strict=True):
                weight.lerp_(goal, -math.expm1(-strength * schedule[step]))
            return 1.0

        return _forge(victim, path, seed, pull, progress, stated=False)


@dataclass(init=False, frozen=True)
class RateSteering(Attack):
    name = "rate-steering"
    summary = "honest gradients, with each learning rate chosen so that the step ends as near to the target as it can"
    source = "Jia et al., IEEE S&P 2021, section VII-C2"
    knowledge = "the target's final state, the data and the task"

    reach: float = parameter(10.0, "largest chosen rate over the task's", low=0.0, high=1e6)
    claimed: str = parameter("schedule", "the rates in the blocks", choices=("schedule", "steered"))
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        def steer(before: Sequence[Tensor], after: Sequence[Tensor], target: Sequence[Tensor], step: int) -> float:
            along = length = 0.0
            for old, new, goal in zip(before, after, target, strict=True):
                update, way = (new - old).double(), (goal - old).double()
                along += float((update * way).sum())
                length += float(update.square().sum())
            factor = min(max(along / length, 0.0), self.reach) if length else 1.0
            for old, new in zip(before, after, strict=True):
                new.copy_(torch.lerp(old, new, factor))
            return factor

        return _forge(victim, path, victim.own_seed(self.seed), steer, progress, stated=self.claimed == "steered")


def _forge(victim: Victim, path: Path, seed: int, move: Move, progress: ProgressCallback, *, stated: bool) -> Mounted:
    """Train with ``move`` after every step, jump in the last segment; ``stated``: the blocks hold the rates as stretched."""
    session, goal = victim.own_session(seed), victim.own_session(seed)
    goal.restore(victim.final)
    target = [p.detach() for p in goal.model.parameters()]
    weights = [p.detach() for p in session.model.parameters()]  # shares memory with the model
    feed, order = derived_feed(session.task, victim.data, session.key, victim.device)
    last = victim.proof.segments[-1].start
    rates: list[list[float]] = []
    losses: list[float] = []

    def states() -> Iterator[State]:
        state = session.capture()
        yield state
        before = [weight.clone() for weight in weights]
        for result in session.run(last, feed, order):
            factor = move(before, weights, target, result.step)
            rates.append([rate * factor for rate in result.rates])
            losses.append(float(result.loss))
            for old, new in zip(before, weights, strict=True):
                old.copy_(new)
            if session.progress.step % victim.interval == 0:
                progress("training toward the target", session.progress.step, victim.steps)
                state = session.capture()
                yield state
        rates.extend(victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch))
        del rates[last : last + last]  # what the schedule gives for the steps that were taken
        losses.extend(plausible_loss(victim.steps)[last:].tolist())
        yield on_the_way(victim, session, state, victim.final, victim.steps, 1.0)

    forge_proof(
        path, victim.task, states(), None,
        hyperparameters={
            "loss": (losses[step] for step in range(victim.steps)),
            "rates": (rates[step] for step in range(victim.steps)) if stated else None,
        },
        seed=seed, environment=victim.environment, **as_claimed(victim),
    )  # fmt: skip
    return Mounted(victim.samples(0, last), range(len(victim.proof.segments)))
