"""False settings: one forged segment changes the optimizer's settings, and everything after it replays bit for bit.

A replay restores momentum, dampening and weight decay from the state that it starts from. Three forged segments, none of them
conspicuous, then lead an honest start to the target's weights:

1. The settings are falsified where an honest segment ends; the floating-point state is what training gives. With a dampening
   that leaves next to nothing of the gradient, and a weight decay to match, each step from here on turns the weights into their
   negatives. These segments are real: they replay exactly, and are the largest of the run, so that top-Q looks at them.
2. Between two of them the weights jump to the negative of the target's. Going away from the target it makes no progress;
   the turns that follow make far more than the jump that remains, so that draws by progress look at them.
3. A jump of no great length to exactly the target's weights, with settings under which no step moves them any more.

The inertia of all these states is 0, since it is proportional to the momentum. What stops the attack is the comparison of
every recorded state's settings with the task's; without it, only uniform draws could find the three segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import weights
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session

NO_MOMENTUM = 1e-200  # not 0, for which SGD skips the dampening; its square, in the inertia, is 0
LEFT = 2.0**-20  # share of the gradient that the dampening leaves


@dataclass(init=False, frozen=True)
class FalseSettings(Attack):
    name = "false-settings"
    summary = (
        "falsified optimizer settings, under which real steps hide a jump to the target's weights and then stand still"
    )
    source = "this project, after attacks that falsify a momentum"
    knowledge = "the target's final weights, the data and the task; the optimizer must be SGD with momentum"

    head: float = parameter(0.01, "share of the segments before the settings are falsified", low=0.0, high=0.3)
    lead_in: float = parameter(
        0.01, "share of the segments that turn the weights around before the jump", low=0.0, high=0.3
    )
    turns: float = parameter(0.12, "share of the segments that turn them around after it", low=0.0, high=0.3)
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        interval = max(1, victim.interval - 1 + victim.interval % 2)  # odd, so that a segment turns the weights around
        segments = -(-victim.steps // interval)
        switch = max(1, round(self.head * segments))
        jump = switch + 1 + max(1, round(self.lead_in * segments))
        turns = max(1, round(self.turns * segments))
        stop = jump + 1 + turns + 1 - turns % 2  # an odd number of turns ends at the positive
        if stop >= segments - 1:
            raise AttackError(
                f"the target has {victim.steps} steps; this needs {(stop + 2) * interval} or smaller shares"
            )
        seed = victim.own_seed(self.seed)
        session = victim.own_session(seed)
        optimizer = _momentum_sgd(session)
        middle = (jump + stop) * interval // 2
        *_, rates = victim.own_session(seed).idle(middle, victim.steps_per_epoch)
        losses: list[float] = []

        def turning() -> None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group.update(
                    momentum=NO_MOMENTUM, nesterov=False, dampening=1.0 - LEFT, weight_decay=2.0 / (rate * LEFT)
                )

        def standing() -> None:
            for group in optimizer.param_groups:
                group.update(momentum=NO_MOMENTUM, nesterov=False, dampening=1.0, weight_decay=0.0)

        def states() -> Iterator[State]:
            yield session.capture()
            for index in range(segments):
                progress("taking steps", index, segments)
                memory = _memory(optimizer)
                (arrived,) = run(victim, session, min((index + 1) * interval, victim.steps), losses, interval)
                if index == switch:
                    turning()
                elif index in (jump, stop):
                    _place(session, weights(victim.final), -1.0 if index == jump else 1.0)
                    _remember(optimizer, memory)
                    if index == stop:
                        standing()
                yield session.capture() if index in (switch, jump, stop) else arrived

        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
            seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data,
            environment=victim.environment, evaluation=victim.proof.end.evaluation, **as_stored(victim),
        )  # fmt: skip
        return Mounted(victim.samples(0, victim.steps), (switch, jump, stop))


def _momentum_sgd(session: Session) -> torch.optim.SGD:
    optimizers = list(session.optimizers.values())
    first = optimizers[0]
    if (
        len(optimizers) > 1
        or not isinstance(first, torch.optim.SGD)
        or not all(g["momentum"] > 0 for g in first.param_groups)
    ):
        raise AttackError("this attack needs a task whose only optimizer is SGD with momentum")
    return first


def _memory(optimizer: torch.optim.SGD) -> dict[Tensor, Tensor]:
    return {p: entry["momentum_buffer"].clone() for p, entry in optimizer.state.items()}


@torch.no_grad()
def _remember(optimizer: torch.optim.SGD, memory: dict[Tensor, Tensor]) -> None:
    for parameter_, buffer in memory.items():
        optimizer.state[parameter_]["momentum_buffer"].copy_(buffer)


def _place(session: Session, target: dict[str, Tensor], sign: float) -> None:
    """Put the target's parameters, times ``sign``, into the session's model."""
    here = session.capture()
    session.restore(State(here.tree, {**here.tensors, **{name: sign * tensor for name, tensor in target.items()}}))
