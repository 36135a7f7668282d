"""Moves that several attacks make: points on a straight line between two states, and the windows in which top-Q looks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.attacks.victim import Victim, graft
from proof_of_learning.training.state import State
from proof_of_learning.training.steps import Session
from proof_of_learning.verifier.plan import WINDOW_SHARE


def between(start: State, here: State, final: State, share: float) -> State:
    """``here`` (the state ``final``, but for schedule and progress) with its tensors at ``share`` of the way from ``start``."""

    def at(name: str, end: Tensor) -> Tensor:
        if name not in final.tensors or "/groups/" in name or not torch.equal(end, final.tensors[name]):
            return end
        begin = start.tensors.get(name)
        begin = torch.zeros_like(end) if begin is None or begin.shape != end.shape else begin
        if share == 1.0 or torch.equal(begin, end) or end.is_complex():
            return end
        if end.is_floating_point() and end.ndim:
            return torch.lerp(begin.double(), end.double(), share).to(end.dtype)
        counted = begin.double() + (end.double() - begin.double()) * share  # counters of steps stay whole
        return counted.round().to(end.dtype)

    return State(here.tree, {name: at(name, tensor) for name, tensor in here.tensors.items()})


def on_the_way(victim: Victim, session: Session, start: State, goal: State, step: int, share: float) -> State:
    """The state at ``share`` of the way from ``start`` to ``goal``, with the schedule where it stands at ``step``.

    ``session`` moves on to ``step`` and holds the goal's model and memory afterwards, not the returned state's.
    """
    for _ in session.idle(step, victim.steps_per_epoch):
        pass
    graft(session, goal)
    return between(start, session.capture(), goal, share)


def windows(victim: Victim, interval: int) -> list[int]:
    """For each segment of ``interval`` steps the window in which the verifier ranks displacements."""
    length = max(1, min(victim.steps_per_epoch, math.ceil(victim.steps * WINDOW_SHARE)))
    return [start // length for start in range(0, victim.steps, interval)]


def as_claimed(victim: Victim) -> dict[str, Any]:
    """What a forgery claims as the target does, as arguments of ``forge_proof``."""
    return {
        "interval": victim.interval,
        "steps": victim.steps,
        "data": victim.proof.header.data,
        "evaluation": victim.proof.end.evaluation,
    }
