"""Adam freeze: second moments so large that nothing moves any more, and every step replays bit for bit.

Adam divides by the root of its second moments, which fade by a thousandth in a step: from a value of 10⁹ they take most of a run
to let go. One false segment sets them, and the weights that they keep:

``dead``
    those of a network that a small shift has killed, after a short honest training. Its steps take labels alone. Another false segment
    comes back to where the training stood, moments and all, and it goes on for the last part of the run.
``stolen``
    the target's, which stay what they are while the attacker takes honest steps to the end. It saves nothing, but the model is
    the target's.
``gradient``
    as ``dead``, with first and second moments as a single huge gradient would have left them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import Gate, gates, shifted
from proof_of_learning.attacks.jumps import falsified_run, model_of, slots
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session

KINDS = (torch.optim.Adam, torch.optim.NAdam)  # AdamW is an Adam


@dataclass(init=False, frozen=True)
class AdamFreeze(Attack):
    name = "adam-freeze"
    summary = "falsified second moments, by which Adam stands still for most of the run"
    source = "this project, found in the review of its selection of segments"
    knowledge = "the data and the task, whose optimizer is Adam; to steal, the target's final weights"
    ends_in_target = False

    how: str = parameter("dead", "what stands still", choices=("dead", "stolen", "gradient"))
    size: float = parameter(1e9, "the second moments (gradient: the gradient)", low=0.0)
    head: float = parameter(0.02, "share of the segments that are trained before", low=0.0, high=0.9)
    tail: float = parameter(0.05, "share of the segments that are trained after it (dead, gradient)", low=0.0, high=0.9)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = ({}, {"how": "stolen"}, {"how": "gradient"}, {"tail": 0.2}, {"size": 1e3})

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        session, count = victim.own_session(victim.own_seed(self.seed)), len(victim.proof.segments)
        if not any(isinstance(optimizer, KINDS) for optimizer in session.optimizers.values()):
            raise AttackError("this attack needs a task whose optimizer is Adam, AdamW or NAdam")
        entry = max(2, round(self.head * count))
        leave = count - max(1, round(self.tail * count)) - 1
        if leave <= entry:
            raise AttackError(f"{count} segments are too few for the honest ones around the frozen ones")
        home: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}

        def freeze(before: State, live: Session) -> None:
            for name, weight, _, entries, _ in slots(live):
                home[name] = (weight.detach().clone(), {key: entries[key].clone() for key in _moments(entries)})
            here = model_of(live.capture())
            goal = model_of(victim.final)
            if self.how != "stolen":
                goal = shifted(here, min(gates(live, victim), key=Gate.size))
            with torch.no_grad():
                for name, weight, group, entries, _ in slots(live):
                    weight.copy_(goal[name])
                    first, second = (1.0 - beta for beta in group["betas"])
                    for key in _moments(entries):
                        squares = key != "exp_avg"
                        if self.how == "gradient":
                            entries[key].fill_(second * self.size**2 if squares else first * self.size)
                        else:
                            entries[key].fill_(self.size if squares else 0.0)

        def back(before: State, live: Session) -> None:
            with torch.no_grad():
                for name, weight, _, entries, _ in slots(live):
                    weight.copy_(home[name][0])
                    for key, moment in home[name][1].items():
                        entries[key].copy_(moment)

        if self.how == "stolen":
            return falsified_run(victim, session, path, {entry: freeze}, (), progress)
        return falsified_run(victim, session, path, {entry: freeze, leave: back}, range(entry + 1, leave + 1), progress)


def _moments(entries: dict[str, Any]) -> list[str]:
    return [key for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if isinstance(entries.get(key), Tensor)]
