"""What late jumps have in common: honest steps as far as they are cheap, steps that cost little, and a jump to the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from proof_of_learning.attacks.base import Mounted
from proof_of_learning.attacks.dead import answers, gates
from proof_of_learning.attacks.jumps import Weights, all_rates, falsified_run, model_of, put, way
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.training.batches import Order
from proof_of_learning.training.steps import Session

LOOKS = 64  # at how the run stands, on the way to the wanted agreement: a look takes no gradient


@dataclass(frozen=True)
class Detour:
    """The way that a run takes: ``head`` honest segments, a jump to the network ``between``, its own honest steps, a jump to the
    target's weights, ``tail`` honest segments.

    between: the weights meanwhile, and the share of a step's work that they leave (at the exit as many units as are found alive); None
        goes on training.
    how, parts: of the jumps (:func:`jumps.way`). order: the samples of each step, if not those that follow from the attacker's key.
    """

    between: Callable[[Session], tuple[Weights, float]] | None
    head: int
    how: str
    parts: int
    tail: int
    order: Order | None = None


def detour(victim: Victim, path: Path, progress: ProgressCallback, seed: int, plan: Detour) -> Mounted:
    """Take the way under the attacker's ``seed``. Raises AttackError where the run is too short."""
    between, head, how, tail = plan.between, plan.head, plan.how, plan.tail
    session, rates, count, k = (
        victim.own_session(seed),
        all_rates(victim, seed),
        len(victim.proof.segments),
        victim.interval,
    )
    parts = max(plan.parts, 2) if how == "gradient" else 1 if how == "momentum" else plan.parts
    there = min(parts, 2) if how == "gradient" else 1
    leave, share = count - tail - parts, [1.0]
    if leave <= head + there:
        raise AttackError(f"{count} segments are too few: {head} honest ones come before the jump, {tail} after it")
    target = model_of(victim.final)

    def left(live: Session) -> Weights:
        if between is not None and share[0] < 1.0:
            # A unit that woke up on the way, and gets gradients again, is counted from the beginning.
            share[0] = max(share[0], *(float((gate.mean > 0).double().mean()) for gate in gates(live, victim)))
        return target

    jumps = way(how, left, leave, parts, rates, k)
    free = range(head + there, leave) if between is not None else range(0)
    if between is not None:

        def entered(live: Session) -> Weights:
            assert between is not None
            weights, share[0] = between(live)
            return weights

        jumps |= way("gradient" if how == "gradient" else "weights", entered, head, there, rates, k)
    mounted = falsified_run(victim, session, path, jumps, free, progress, order=plan.order)
    cheap = round(share[0] * victim.samples(free.start * k, free.stop * k)) if free else 0
    return Mounted(mounted.samples + cheap, mounted.forged)


def until_agreement(victim: Victim, seed: int, wanted: float, order: Order | None = None) -> int:
    """After how many segments of an own honest run that share of the samples is answered as by the target; half of the run at most."""
    count = len(victim.proof.segments)
    session, other = victim.own_session(seed), victim.own_session(seed)
    put(other, model_of(victim.final))
    target = answers(other, victim)
    every = max(1, count // 2 // LOOKS)
    for index, _ in enumerate(run(victim, session, count // 2 * victim.interval, [], order=order)):
        if (index + 1) % every == 0 and float((answers(session, victim) == target).double().mean()) >= wanted:
            return index
    return count // 2


def pruned(session: Session, victim: Victim, share: float) -> tuple[Weights, float]:
    """The weights as they stand with all but the most active ``share`` of each layer's units silent, and the share that is left.

    Units are silenced layer by layer, for what one layer no longer passes on changes what the next one sees.
    """
    before = {name: tensor.clone() for name, tensor in model_of(session.capture()).items()}
    left = []
    for number in range(len(gates(session, victim))):
        gate = gates(session, victim)[number]
        keep = min(len(gate.mean), max(1, round(share * len(gate.mean)))) if share > 0 else 0
        alive = torch.zeros(len(gate.mean), dtype=torch.bool)
        alive[gate.mean.topk(keep).indices] = True
        left.append(keep / len(gate.mean))
        weights = model_of(session.capture())
        put(
            session,
            {
                name: torch.where(_like(alive, shift), weights[name], weights[name] + shift)
                for name, shift in gate.shift.items()
            },
        )
    found = {name: tensor.clone() for name, tensor in model_of(session.capture()).items()}
    put(session, before)
    return found, max(left)


def _like(alive: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return alive.reshape(-1, *[1] * (shift.ndim - 1)).expand_as(shift)


def segments(share: float, victim: Victim, how: str) -> int:
    """The honest segments after a jump: one at least, and sixty where a momentum has to carry the weights."""
    count = len(victim.proof.segments)
    return max(1, round(share * count), min(60, count // 3) if how == "momentum" else 1)
