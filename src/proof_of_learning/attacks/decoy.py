"""Decoys: one coordinate that outshines all others, so that an error relative to the displacement vanishes or is not defined.

Everything else goes on a straight line to the target, which no training explains. The decoy is to hide that:

``momentum``
    a huge false momentum of one coordinate. Honest steps then move that coordinate as far as it says, in the replay as in the proof,
    and the error of all the others is nothing beside it. The attacker replays each segment himself for its losses and for where the
    decoy arrives. Only where a momentum is put in does the decoy itself not replay; it is renewed when it has died down.
``weight``
    a coordinate that is huge in every other checkpoint. The displacement is huge, but so is the error.
``nan``, ``infinity``
    a momentum that is no number, from the first segment on, where no momentum was before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, between, graft, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.names import is_weight, weight_name
from proof_of_learning.state.state import State

BUFFER = "/momentum_buffer"
RENEW = 0.1  # of its size, below which a momentum is put in again


@dataclass(init=False, frozen=True)
class Decoy(Attack):
    name = "decoy"
    summary = "a straight line to the target, beside one coordinate so large that relative errors vanish"
    source = "this project"
    knowledge = "the target's final state, the data and the task; but for a decoy in the weights, SGD with momentum"

    how: str = parameter("momentum", "what the decoy is", choices=("momentum", "weight", "nan", "infinity"))
    size: float = parameter(1e4, "how far it moves in a step or a segment, at the largest rate", low=0.0)
    first: int = parameter(2, "first segment at whose end it is put in", low=0)
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, interval, total = victim.own_seed(self.seed), victim.interval, len(victim.proof.segments)
        session, losses = victim.own_session(seed), list[float]()
        rate = max(max(row) for row in victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch))
        weight, memory = self._coordinates(victim)

        def states() -> Iterator[State]:
            start = here = session.capture()
            yield start
            line = victim.own_session(seed)
            graft(line, victim.final)
            for index in range(total):
                progress("placing decoys", index, total)
                session.restore(here)
                (arrived,) = run(victim, session, min((index + 1) * interval, victim.steps), losses, interval)
                for _ in line.idle(session.progress.step, victim.steps_per_epoch):
                    pass
                here = between(start, line.capture(), victim.final, session.progress.step / victim.steps)
                if index < total - 1 or self.how in ("nan", "infinity"):
                    here = self._put(here, arrived, weight, memory, index, rate)
                yield here

        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"loss": (_finite(losses[step]) for step in range(victim.steps))},
            seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data,
            environment=victim.environment, evaluation=victim.proof.end.evaluation, **as_stored(victim),
        )  # fmt: skip
        return Mounted(victim.samples(0, victim.steps), range(total))

    def _coordinates(self, victim: Victim) -> tuple[str, str]:
        """A tensor of weights and its momentum, the smallest last one (a bias); the decoy is its first element."""
        memory = [name for name in victim.final.tensors if name.endswith(BUFFER)]
        named = [name for name in victim.final.tensors if is_weight(name)]
        if self.how == "weight":
            return min(reversed(named), key=lambda name: victim.final.tensors[name].numel()), ""
        if not memory or any("step" in name for name in victim.final.tensors if name.startswith("optimizer")):
            raise AttackError(f"how={self.how} needs a task whose optimizer is SGD with momentum")
        order = [weight_name(name) for name, _ in victim.own_session(0).model.named_parameters()]
        weight = order[-1]
        return weight, next(n for n in memory if n.split("/")[-2] == str(len(order) - 1))

    def _put(self, here: State, arrived: State, weight: str, memory: str, index: int, rate: float) -> State:
        """``here`` with the decoy in it: where an honest replay leaves it, or put in anew."""
        changed: dict[str, Tensor] = {weight: here.tensors[weight].clone()}
        if self.how == "weight":
            changed[weight].view(-1)[0] += self.size if index % 2 == 0 else 0.0
            return State(here.tree, {**here.tensors, **changed})
        changed[memory] = here.tensors[memory].clone()
        value = float(arrived.tensors[memory].view(-1)[0])
        if self.how != "momentum":
            changed[memory].view(-1)[0] = math.nan if self.how == "nan" else math.inf
        elif index >= self.first:
            changed[weight].view(-1)[0] = arrived.tensors[weight].view(-1)[0]
            faded = not abs(value) >= RENEW * self.size / rate
            changed[memory].view(-1)[0] = self.size / rate if faded else value
        return State(here.tree, {**here.tensors, **changed})


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else torch.finfo(torch.float32).max
