"""Jumps: a run in which some checkpoints are falsified and all other segments are honest steps, which replay bit for bit.

A falsified checkpoint can be false in three ways. *Weights*: it is simply another state. *Gradient*: the state is the one to which
the optimizer's own equation leads from the state before, with a gradient that nobody computed (SGD with momentum, one step a
segment); what it arrives at goes on moving until a second false gradient stops it. *Momentum*: only the optimizer's memory is
false, and honest steps then carry the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.attacks.base import Mounted
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_claimed
from proof_of_learning.attacks.victim import Victim, run, step_snapshot
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.names import CARRYING, is_weight, short_name
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import Order
from proof_of_learning.training.steps import Session

HOW = ("weights", "gradient", "momentum")
MEMORY = CARRYING  # what carries weights on without a gradient

Jump = Callable[[State, Session], None]  # from the state before the segment, changes the live one at its end
Weights = dict[str, Tensor]  # by the names that the module gives its parameters


def falsified_run(
    victim: Victim,
    session: Session,
    path: Path,
    jumps: Mapping[int, Jump],
    free: Collection[int],
    progress: ProgressCallback,
    *,
    spent: int = 0,
    order: Order | None = None,
    start: State | None = None,
) -> Mounted:
    """Take all steps of ``session``, the attacker's own, with a jump at the end of some segments; record them as a derived run.

    jumps: by index of the segment. free: segments whose steps take no gradient of a sample: a dead network's need the labels alone.
    spent: samples that went into the preparation. order: which samples each step takes; an observed run of them is recorded.
    start: the initial state, as a recorded one, if it is not the one that the seed gives.
    """
    losses: list[float] = []
    evaluation: dict[str, float] = {}

    def checkpoints() -> Iterator[State]:
        if start is not None:
            session.restore(start)
        before = session.capture()
        yield before
        for index, state in enumerate(run(victim, session, victim.steps, losses, order=order)):
            progress("taking steps", session.progress.step, victim.steps)
            if index in jumps:
                jumps[index](before, session)
                state = session.capture()
            if session.progress.step == victim.steps:
                evaluation.update(session.evaluate() or {})
            yield state
            before = session.capture()  # which is not the same under a codec in the loop

    claims = {**as_claimed(victim), "evaluation": None if victim.task.evaluate is None else evaluation}
    if order is not None:  # the same generators' states in every step, as good as any
        claims |= {"initialization": "derived" if start is None else "recorded", "rng": step_snapshot(session.key, 0)}
    forge_proof(
        path, victim.task, checkpoints(), None if order is None else map(order.indices, range(victim.steps)),
        hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
        seed=session.task.seed, environment=victim.environment, **claims,
    )  # fmt: skip
    k = victim.interval
    paid = (index for index in range(len(victim.proof.segments)) if index not in free)
    samples = sum(victim.samples(index * k, min((index + 1) * k, victim.steps)) for index in paid)
    return Mounted(samples + spent, sorted(jumps))


def model_of(state: State) -> Weights:
    """The model's parameters in ``state``, by the names that the module gives them."""
    return {short_name(name): tensor for name, tensor in state.tensors.items() if is_weight(name)}


def slots(session: Session) -> Iterator[tuple[str, Tensor, dict[str, Any], dict[str, Any], int]]:
    """Each trained parameter: name, tensor, group, the optimizer's entry for it, and the position of its group in a row of rates."""
    names = {id(p): name for name, p in session.model.named_parameters()}
    position = 0
    for optimizer in session.optimizers.values():
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if id(weight) in names:
                    yield names[id(weight)], weight, group, optimizer.state[weight], position
            position += 1


def all_rates(victim: Victim, seed: int) -> npt.NDArray[np.float64]:
    """The learning rates of the run, [steps, groups]."""
    return np.array(list(victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch)))


@torch.no_grad()
def put(session: Session, goal: Weights, memory: Weights | None = None) -> None:
    """Exchange the weights; what carries them on is set to ``memory``, and to 0 where that says nothing."""
    for name, weight, _, entry, _ in slots(session):
        if name in goal:
            weight.copy_(goal[name])
        for key in MEMORY:
            if isinstance(entry.get(key), Tensor):
                entry[key].zero_()
                if memory is not None and name in memory:
                    entry[key].copy_(memory[name])


@torch.no_grad()
def false_gradient(
    before: State, session: Session, goal: Weights, moves: float, rates: npt.NDArray[np.float64]
) -> None:
    """One step from ``before`` by a gradient that leads to ``goal`` in so many equal steps; 0: one that stops all movement.

    rates: those of the step, by group. Raises AttackError for an optimizer that is not SGD with momentum.
    """
    started = model_of(before)
    for name, weight, group, entry, position in slots(session):
        buffer, start = entry.get("momentum_buffer"), started[name]
        if not isinstance(buffer, Tensor) or group.get("nesterov") or not group.get("momentum"):
            raise AttackError("how=gradient needs a task whose optimizer is SGD with momentum, not Nesterov's")
        rate = float(rates[position])
        buffer.zero_()
        if moves and rate:
            buffer.copy_((start.double() - goal[name].double()) / (rate * moves))
        weight.copy_(start.to(weight.device).add(buffer, alpha=-rate))


@torch.no_grad()
def false_momentum(session: Session, goal: Weights, ahead: npt.NDArray[np.float64]) -> None:
    """The momentum that covers the way to ``goal`` at the rates ``ahead`` ([steps, groups]), if gradients did nothing."""
    for name, weight, group, entry, position in slots(session):
        buffer = entry.get("momentum_buffer")
        if not isinstance(buffer, Tensor):
            raise AttackError("how=momentum needs a task whose optimizer is SGD with momentum")
        first = 2 if group.get("nesterov") else 1
        reach = float(ahead[:, position] @ float(group["momentum"]) ** np.arange(first, first + len(ahead)))
        if not reach > 0:
            raise AttackError("how=momentum needs learning rates above 0 in the segments after the jump")
        buffer.copy_((weight.double() - goal[name].to(weight.device).double()) / reach)


def way(
    how: str, goal: Callable[[Session], Weights], first: int, parts: int, rates: npt.NDArray[np.float64], interval: int,
) -> dict[int, Jump]:  # fmt: skip
    """The jumps that lead to ``goal`` from segment ``first`` on, in ``parts`` false segments (momentum: one; gradient: two or more).

    goal: the weights to arrive at, asked for at the first jump.
    """
    known: dict[str, Weights] = {}

    def wanted(session: Session) -> Weights:
        if "goal" not in known:
            known["goal"] = {name: tensor.detach().clone() for name, tensor in goal(session).items()}
        return known["goal"]

    def nearer(left: int) -> Jump:
        def jump(before: State, session: Session) -> None:
            start, end = model_of(before), wanted(session)
            there = {name: torch.lerp(start[name].double(), end[name].double(), 1.0 / left) for name in end}
            put(session, end if left == 1 else there)

        return jump

    def pushed(left: float) -> Jump:
        def jump(before: State, session: Session) -> None:
            false_gradient(before, session, wanted(session), left, rates[session.progress.step - 1])

        return jump

    if how == "momentum":
        ahead = rates[(first + 1) * interval :]
        return {first: lambda before, session: false_momentum(session, wanted(session), ahead)}
    if how == "gradient":
        # The momentum rises and falls evenly, so that no segment changes it much; in the last one it is 0.
        pace = [min(i + 1, max(parts, 2) - 1 - i) for i in range(max(parts, 2))]
        return {first + i: pushed(sum(pace[i:]) / moved if moved else 0.0) for i, moved in enumerate(pace)}
    return {first + i: nearer(parts - i) for i in range(parts)}
