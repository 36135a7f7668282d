"""Hidden memory: false momenta carry the weights, and the optimizer's state is made to look like one that nobody knows.

An entry that SGD never writes lies beside each momentum. It does nothing, and every step replays bit for bit; but a verifier who
takes the optimizer for an unknown one for its sake computes nothing by its equation: neither where a momentum carries the weights,
nor whether a step obeys it, nor which layers got no gradient. After a short honest training false momenta carry the weights into a
network most of whose units are silent, whose steps take a small part of the work, and in the end others carry them to the target.

``extra-entry``
    the entry alone.
``dtype``
    each false momentum is stored in another dtype than the one before, float64 first, so that two states have no tensor to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import gates
from proof_of_learning.attacks.detour import pruned
from proof_of_learning.attacks.jumps import (
    Jump,
    Weights,
    all_rates,
    false_momentum,
    falsified_run,
    model_of,
    slots,
)
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session

ENTRY = "average"  # the name of the entry that SGD never writes
FIRST = 2  # the segment that brings it
BEYOND = 12.0  # times the way to where units are silent: what the rest learns meanwhile wakes few of them again
REST = 45  # steps after a false momentum, in which it is spent


@dataclass(init=False, frozen=True)
class HiddenMemory(Attack):
    name = "hidden-memory"
    summary = "false momenta, beside an entry of the optimizer's state that makes it look unknown"
    source = "this project, found by an outside attacker of its selection of segments"
    knowledge = "the target's final weights, the data and the task, whose optimizer is SGD with momentum; ReLUs"

    how: str = parameter("extra-entry", "what hides the false momenta", choices=("extra-entry", "dtype"))
    pushes: int = parameter(2, "false momenta at the entry, and as many at the exit", low=1)
    living: float = parameter(
        0.12,
        "share of each layer's units that stay alive; so much of a step's work is counted, or what is found alive",
        low=0.0,
        high=1.0,
    )
    head: float = parameter(0.025, "share of the segments that are trained before", low=0.0, high=0.9)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = ({}, {"how": "dtype"}, {"how": "dtype", "pushes": 8}, {"living": 0.5})

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, count, k = victim.own_seed(self.seed), len(victim.proof.segments), victim.interval
        session, rates = victim.own_session(seed), all_rates(victim, seed)
        for optimizer in session.optimizers.values():
            if isinstance(optimizer, torch.optim.SGD) and all(group["momentum"] for group in optimizer.param_groups):
                continue
            raise AttackError("this attack needs a task whose optimizer is SGD with momentum")
        gap = max(1, min(-(-REST // k), count // (4 * self.pushes)))
        head = max(FIRST + 1, round(self.head * count))
        settled, leave = head + self.pushes * gap, count - self.pushes * gap
        if leave <= settled:
            raise AttackError(
                f"{count} segments are too few: {settled} come before the cheap ones, {count - leave} after"
            )
        goal, alive = model_of(victim.final), [0.0]

        def bring(before: State, live: Session) -> None:
            for _, weight, _, entries, _ in slots(live):
                entries[ENTRY] = torch.zeros_like(weight)

        def enter(left: int) -> Jump:
            def jump(before: State, live: Session) -> None:
                here, (found, alive[0]) = model_of(live.capture()), pruned(live, victim, self.living)
                silent = {name: here[name] + BEYOND * (found[name] - here[name]) for name in found}
                _push(live, silent, left, rates, self.how)

            return jump

        def exit_(left: int) -> Jump:
            def jump(before: State, live: Session) -> None:
                if left == self.pushes:  # counted as alive all the time; a silent unit gets no gradient
                    share = max(float((gate.mean > 0).double().mean()) for gate in gates(live, victim))
                    alive[0] = max(alive[0], share)
                _push(live, goal, left, rates, self.how)

            return jump

        jumps: dict[int, Jump] = {FIRST: bring}
        for i in range(self.pushes):
            jumps[head + i * gap] = enter(self.pushes - i)
            jumps[leave + i * gap - 1] = exit_(self.pushes - i)
        free = range(settled, leave)
        mounted = falsified_run(victim, session, path, jumps, free, progress)
        cheap = round(alive[0] * victim.samples(free.start * k, free.stop * k))
        return Mounted(mounted.samples + cheap, mounted.forged)


@torch.no_grad()
def _push(live: Session, goal: Weights, left: int, rates: npt.NDArray[np.float64], how: str) -> None:
    """Momenta that carry the weights one of ``left`` equal parts of the way to ``goal``; rates: of all steps, [steps, groups]."""
    if how == "dtype":
        for _, _, _, entries, _ in slots(live):
            momentum = entries.get("momentum_buffer")
            if isinstance(momentum, Tensor):
                other = torch.float64 if momentum.dtype == torch.float32 else torch.float32
                entries["momentum_buffer"] = momentum.to(other)
    here = {name: weight.double() for name, weight, _, _, _ in slots(live)}
    part = {name: torch.lerp(start, goal[name].to(start.device).double(), 1.0 / left) for name, start in here.items()}
    false_momentum(live, part, rates[live.progress.step :])
