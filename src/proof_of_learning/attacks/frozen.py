"""Frozen: an observed run that starts from the target, arranged to look drawn, and never leaves it.

The start is the target's weights by rank (see ``rank-matched``), with values of a law of the pool that is wide enough for outputs far
apart. On some samples the loss is then exactly 0, or next to it. An observed run writes its own order down, so that every step can
take these. Nothing in the proof is false: all steps replay bit for bit, and leave the weights where they are.

``one-sample``
    each step takes the sample of the smallest loss, as often as a batch has room.
``short``
    each step is as short as an epoch's last one, and takes the samples of the smallest losses.

With ``moves`` the first part of the steps is honest, and makes a model out of the arrangement.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import sample_losses
from proof_of_learning.attacks.jumps import falsified_run
from proof_of_learning.attacks.rank_matched import accepted, arranged
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import measured, weights
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import DerivedOrder, Indices

WAYS = ("one-sample", "short")
ATTEMPTS = 4  # seeds that are tried
HALVINGS = 7  # of the interval in which the largest accepted share of a tensor lies


@dataclass(init=False, frozen=True)
class Frozen(Attack):
    name = "frozen"
    summary = (
        "an observed run from weights arranged after the target's, on samples from which there is nothing to learn"
    )
    source = "this project, found by an attack from outside on its own verifier"
    knowledge = "the target's final weights, the data and the task"
    ends_in_target = False

    how: str = parameter("one-sample", "what the steps take", choices=WAYS)
    spread: float = parameter(1.0, "standard deviation of the initial values (0: as the task draws them)", low=0.0)
    moves: float = parameter(0.0, "share of the steps, the first ones, that take honest batches", low=0.0, high=1.0)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = ({}, {"how": "short"}, {"spread": 0.0, "moves": 0.03}, {"spread": 0.0, "moves": 0.2}, {"moves": 0.01})

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        first = victim.own_seed(self.seed)
        for seed in range(first, first + ATTEMPTS):  # one draw in a hundred looks like none, arranged or not
            session = victim.own_session(seed)
            fresh = session.capture()
            start = _arranged(_drawn(fresh, self.spread, seed) if self.spread else fresh, victim.final, seed)
            if accepted(start):
                break
        session.restore(start)
        head = round(self.moves * victim.steps)
        order = _Order(victim, seed, np.arange(len(victim.data)), self.how, head)
        for _ in run(victim, session, head, [], order=order):  # the steps that it takes anyway, to see where they lead
            pass
        order.easiest = sample_losses(session, victim).argsort(stable=True).numpy()
        session = victim.own_session(seed)
        mounted = falsified_run(
            victim, session, path, {}, range(len(victim.proof.segments)), progress, order=order, start=start
        )
        return Mounted(mounted.samples + order.samples(), ())


def _arranged(drawn: State, target: State, seed: int) -> State:
    """``drawn`` with each parameter in the order of as much of the target's as the verifier's test accepts, one after the other."""
    here = drawn
    for name in weights(drawn):
        low, high = 0.0, 2.0  # the whole first
        while high - low > 2.0**-HALVINGS:
            share = (low + high) / 2
            tried = State(here.tree, {**here.tensors, name: arranged(drawn, target, seed, share).tensors[name]})
            if accepted(tried):
                low, here = share, tried
            else:
                high = share
            if low == 1.0:
                break
    return here


def _drawn(fresh: State, spread: float, seed: int) -> State:
    """``fresh`` with matrices and kernels drawn from N(0, spread²)."""
    tensors = dict(fresh.tensors)
    for slot, (name, own) in enumerate(weights(fresh).items()):
        if measured(own) and own.ndim > 1:
            words = randomness.derive(randomness.key_from_seed(seed), "spread", 0, slot)
            values = np.random.Generator(np.random.Philox(key=words)).standard_normal(own.numel()) * spread
            tensors[name] = torch.from_numpy(values).reshape(own.shape).to(own.dtype)
    return State(fresh.tree, tensors)


class _Order:
    """Which samples the steps take; ``samples`` counts the different ones of each step, for a repeated one has one gradient."""

    def __init__(self, victim: Victim, seed: int, easiest: npt.NDArray[np.int64], how: str, head: int) -> None:
        self.own = DerivedOrder(victim.task, len(victim.data), randomness.key_from_seed(seed))
        self.easiest, self.how, self.head = easiest, how, head
        self.steps = victim.steps
        self.last = len(self.own.indices(self.own.steps_per_epoch - 1))  # the length of an epoch's last step

    def indices(self, step: int) -> Indices:
        if step < self.head:
            return self.own.indices(step)
        if self.how == "short":
            return self.easiest[: self.last]
        return np.repeat(self.easiest[:1], len(self.own.indices(step)))

    def samples(self) -> int:
        return sum(len(np.unique(self.indices(step))) for step in range(self.steps))
