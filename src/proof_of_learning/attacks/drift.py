"""Drift: honest steps everywhere, and at each checkpoint a nudge toward the target that is smaller than the tolerance.

Each state is moved by a share of the largest error that calibrated comparison accepts, overall and for each kind of state and each
tensor, which the attacker computes as the verifier does. The errors add up to the way to the target over about 9 / ρ² segments.

What is nudged decides what it shows. A nudge of the ``weights`` is an error that points at the target. A nudge of the ``momentum``
leaves no error in the weights, and the next, honest steps carry them toward the target; it also goes farther, for the momentum
moves many times as far as the weights do, and the tolerance is relative to that. Steps cost what honest ones cost; with
``batch=1`` the attacker claims a task of his own with batches of one sample, for a verifier who names no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric.randomness import key_from_seed
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import measured
from proof_of_learning.state.names import entry_name, weight_name
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import DerivedOrder
from proof_of_learning.training.steps import Session
from proof_of_learning.verifier.calibrated import FLOOR

MOMENTUM = "momentum_buffer"


@dataclass(init=False, frozen=True)
class Drift(Attack):
    name = "drift"
    summary = "honest steps, and at each checkpoint a nudge toward the target within the tolerance"
    source = "this project, after Fang et al., EuroS&P 2023"
    knowledge = "the target's final weights, the data and the task"

    rho: float = parameter(FLOOR, "the relative error that the verifier is expected to accept", low=0.0)
    share: float = parameter(0.9, "share of it that is used", low=0.0)
    nudge: str = parameter("weights", "what is nudged", choices=("weights", "momentum", "both"))
    batch: int | None = parameter(
        None, "batch size of a task of the attacker's own (default: the target's task)", low=1
    )
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, total = victim.own_seed(self.seed), len(victim.proof.segments)
        if self.batch is not None:
            victim = replace(victim, task=replace(victim.task, batch_size=self.batch, steps=victim.steps, epochs=None))
        session, goal = victim.own_session(seed), victim.own_session(seed)
        goal.restore(victim.final)
        nudge = _Nudge(session, goal, self.rho * self.share, self.nudge)
        losses: list[float] = []

        def states() -> Iterator[State]:
            before = session.capture()
            yield before
            for done, arrived in enumerate(run(victim, session, victim.steps, losses), 1):
                progress("nudging", done, total)
                nudge(before, arrived)
                before = session.capture()
                yield before

        forge_proof(
            path, victim.task, states(), None, hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
            seed=seed, interval=victim.interval, steps=victim.steps, data=victim.proof.header.data,
            environment=victim.environment, **as_stored(victim),
        )  # fmt: skip
        order = DerivedOrder(victim.task, len(victim.data), key_from_seed(seed))
        return Mounted(sum(len(order.indices(step)) for step in range(victim.steps)), range(total))


class _Nudge:
    """Moves the live state of ``session`` toward the weights of ``goal``, by errors of at most ``limit`` of the displacement."""

    def __init__(self, session: Session, goal: Session, limit: float, what: str) -> None:
        self.session, self.limit, self.what = session, limit, what
        pairs = zip(session.model.parameters(), goal.model.parameters(), strict=True)
        self.goals: dict[Tensor, Tensor] = dict(pairs)
        self.names: dict[Tensor, str] = {weight: weight_name(name) for name, weight in session.model.named_parameters()}
        self.optimizer = next(iter(session.optimizers.values()))
        self.memory: list[tuple[Tensor, str, float]] = []
        if what != "weights":
            number = 0
            for group in self.optimizer.param_groups if isinstance(self.optimizer, torch.optim.SGD) else ():
                for weight in group["params"]:
                    if group["momentum"] > 0:
                        self.memory.append(
                            (weight, f"{entry_name('optimizer', number)}/{MOMENTUM}", float(group["momentum"]))
                        )
                    number += 1
            if not self.memory:
                raise AttackError(f"nudge={what} needs a task whose optimizer is SGD with momentum")

    @torch.no_grad()
    def __call__(self, before: State, arrived: State) -> None:
        ways = {weight: (goal - weight).double() for weight, goal in self.goals.items()}
        moves: dict[str, Tensor] = {}
        if self.what != "momentum":
            moves |= self._within(before, arrived, {self.names[weight]: way for weight, way in ways.items()})
        if self.what != "weights" and all(name in before.tensors for _, name, _ in self.memory):
            rate = max(*self.session.rates(), 1e-12)
            # What a momentum carries on to in the end is rate · β / (1 - β) of it, if the rate stays.
            wanted = {name: -ways[weight] * (1 - beta) / (rate * beta) for weight, name, beta in self.memory}
            moves |= self._within(before, arrived, wanted)
        moved = [
            arrived.tensors[n].double() - before.tensors[n].double()
            for n in arrived.tensors
            if _both(before, arrived, n)
        ]
        length = sum(float(move.abs().sum()) for move in moves.values())
        factor = min(1.0, self.limit * sum(float(m.abs().sum()) for m in moved) / length) if length else 0.0
        for weight, name in self.names.items():
            if name in moves:
                weight.add_((factor * moves[name]).to(weight.dtype))
        for weight, name, _ in self.memory:
            if name in moves:
                self.optimizer.state[weight][MOMENTUM] += (factor * moves[name]).to(weight.dtype)

    def _within(self, before: State, arrived: State, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        """The wanted moves of all tensors of one kind, cut to what is tolerated for each and for all together (in l2)."""
        spans = {
            name: float((arrived.tensors[name].double() - before.tensors[name].double()).norm()) for name in wanted
        }
        span = math.sqrt(sum(value**2 for value in spans.values()))
        elements = sum(way.numel() for way in wanted.values())
        moves = {}
        for name, way in wanted.items():
            most = self.limit * max(spans[name], span * math.sqrt(way.numel() / elements))
            moves[name] = way * min(1.0, most / max(float(way.norm()), 1e-300))
        length = math.sqrt(sum(float(move.norm()) ** 2 for move in moves.values()))
        factor = min(1.0, self.limit * span / length) if length else 1.0
        return {name: move * factor for name, move in moves.items()}


def _both(before: State, arrived: State, name: str) -> bool:
    return measured(arrived.tensors[name]) and name in before.tensors
