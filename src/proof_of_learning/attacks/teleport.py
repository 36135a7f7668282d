"""Teleport: only the optimizer's memory is false, and honest steps then carry the weights to the target.

At a few checkpoints of an honest run the attacker replaces the momentum by the one that takes the weights to the target in the steps
that follow (or a part of the way there, so that each is less conspicuous). Those steps replay bit for bit. The segment that ends in
the false momentum does not, but its weights are right, and in the weights it moves as far as any other.

``momentum``
    SGD: the buffer is (what is to be covered) / Σ rate · βⁿ, over the steps that are left.
``adam``
    the first moment takes its place. The second moments can be shrunk, so that a smaller first moment makes the same steps; the
    gradients on the way then count for more, and the weights come less near.
``latent``
    the false momentum is put where a stretch of the schedule begins in which the rate is 0: it has died down a good part before
    the weights first move, and the false segment is a trivial one if the stretch is long enough.

The places are those where the rates ahead let the smallest momentum go farthest. What the weights do on the way is not
foreseen; the next false checkpoint corrects it. No step is saved, but the model is the target's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session

REACH = 0.25  # of the way that the best place allows with the same momentum: no worse place is used


@dataclass(init=False, frozen=True)
class Teleport(Attack):
    name = "teleport"
    summary = "an honest run in which a falsified momentum throws the weights at the target"
    source = "this project, found in the review of its design"
    knowledge = "the target's final weights, the data and the task; the optimizer must be SGD with momentum or Adam"

    how: str = parameter("momentum", "what is falsified, and where", choices=("momentum", "adam", "latent"))
    parts: int = parameter(3, "number of falsified checkpoints (latent: one)", low=1)
    shrink: float = parameter(1.0, "factor of Adam's second moments", low=1e-30, high=1.0)
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, interval, total = victim.own_seed(self.seed), victim.interval, len(victim.proof.segments)
        session, goal = victim.own_session(seed), victim.own_session(seed)
        goal.restore(victim.final)
        throw = _Throw(
            session, goal, np.array(list(victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch)))
        )
        if (self.how == "adam") != throw.adam:
            raise AttackError(
                f"how={self.how} needs a task whose optimizer is {'Adam' if self.how == 'adam' else 'SGD'}"
            )
        ends = [index * interval for index in range(1, total)]
        places = [_rest(throw, ends, interval)] if self.how == "latent" else _places(throw, ends, self.parts)
        losses: list[float] = []

        def states() -> Iterator[State]:
            yield session.capture()
            for done, state in enumerate(run(victim, session, victim.steps, losses), 1):
                progress("taking steps", done, total)
                if session.progress.step in places:
                    throw.falsify(self.shrink, 1.0 / (len(places) - places.index(session.progress.step)))
                    state = session.capture()
                yield state

        forge_proof(
            path, victim.task, states(), None, hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
            seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data, environment=victim.environment,
            **as_stored(victim),
        )  # fmt: skip
        return Mounted(victim.samples(0, victim.steps), [place // interval - 1 for place in places])


class _Throw:
    """Puts a momentum into ``session`` that takes its weights to those of ``goal``, by the ``rates`` (steps, groups) of the run."""

    def __init__(self, session: Session, goal: Session, rates: npt.NDArray[np.float64]) -> None:
        if len(session.optimizers) > 1:
            raise AttackError("this attack needs a task with one optimizer")
        self.session, self.rates = session, rates
        self.optimizer = next(iter(session.optimizers.values()))
        self.adam = isinstance(self.optimizer, torch.optim.Adam)
        groups = self.optimizer.param_groups
        if not self.adam and not (
            isinstance(self.optimizer, torch.optim.SGD) and all(g["momentum"] > 0 for g in groups)
        ):
            raise AttackError("this attack needs a task whose optimizer is SGD with momentum, or Adam")
        self.goals = dict(zip(session.model.parameters(), goal.model.parameters(), strict=True))

    def beta(self, group: dict[str, Any]) -> float:
        return float(group["betas"][0] if self.adam else group["momentum"])

    def reach(self, step: int, position: int = 0) -> float:
        """How far a momentum of length 1 goes from ``step`` on in group ``position``: Σ rate · βⁿ."""
        group = self.optimizer.param_groups[position]
        ahead = self.rates[step:, position]
        first = 2 if group.get("nesterov") else 1
        return float(ahead @ self.beta(group) ** np.arange(first, first + len(ahead)))

    @torch.no_grad()
    def falsify(self, shrink: float, share: float) -> None:
        """The momentum that covers ``share`` of the way, if gradients did nothing; Adam's second moments times ``shrink``."""
        step = self.session.progress.step
        for position, group in enumerate(self.optimizer.param_groups):
            for weight in group["params"]:
                entry = self.optimizer.state[weight]
                way = (weight - self.goals[weight]).double() * share
                if not self.adam:
                    entry["momentum_buffer"].copy_(way / self.reach(step, position))
                    continue
                honest = entry["exp_avg_sq"].double()
                for name in ("exp_avg_sq", "max_exp_avg_sq"):
                    if name in entry:
                        entry[name].mul_(shrink)
                entry["exp_avg"].copy_(way / self._adam_reach(entry, honest, shrink, group, position))

    def _adam_reach(
        self, entry: dict[str, Any], honest: Tensor, shrink: float, group: dict[str, Any], position: int
    ) -> Tensor:
        """The same for Adam, for each weight, if gradients go on to be of the size that they were."""
        (beta1, beta2), done, total = group["betas"], float(entry["step"]), torch.zeros_like(honest)
        for n, rate in enumerate(self.rates[self.session.progress.step :, position][:200], 1):
            square = honest * (1.0 - (1.0 - shrink) * beta2**n) / (1.0 - beta2 ** (done + n))
            total += rate * beta1**n / (1.0 - beta1 ** (done + n)) / (square.sqrt() + group["eps"])
        return total


def _places(throw: _Throw, ends: Sequence[int], parts: int) -> list[int]:
    """Steps at which to falsify: evenly from the first to the last place from which a momentum goes far."""
    reach = [throw.reach(step) for step in ends]
    good = [step for step, far in zip(ends, reach, strict=True) if far >= REACH * max(reach)]
    return sorted({good[round(place)] for place in np.linspace(len(good) - 1, 0, parts + 1)[:-1]})


def _rest(throw: _Throw, ends: Sequence[int], interval: int) -> int:
    """The first checkpoint from which the rate is 0 for a segment, but not for ever; after one such segment, if there are more."""
    still = [step for step in ends if (throw.rates[step : step + interval] == 0).all() and throw.reach(step) > 0]
    if not still:
        raise AttackError("how=latent needs a schedule with a segment of rate 0 before its end")
    return next((step for step in still if step - interval in still), still[0])
