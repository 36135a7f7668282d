"""Blindfolded top-Q (Fang et al., "Proof-of-Learning is Currently More Broken Than You Think", EuroS&P 2023).

In each window of which the verifier takes the largest segments, a few are trained genuinely, and are the largest. All others are
filler on a straight line to the target, too small for the top-Q to look at.

The verifier also takes the segments with the largest inertia, and the predecessor of each. The attacker knows that: he measures both
as he goes, and goes on training until the largest of the row by either measure is neither its first segment, whose predecessor is
filler, nor the one that follows it. Filler gives the momentum up by and by, for a sudden end of it would be a displacement. What is
left to the verifier is the random draws, which filler meets as often as there is of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, between, graft, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.names import CARRYING, key_of
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session
from proof_of_learning.verifier.inertia import inertia
from proof_of_learning.verifier.plan import window

KEPT = 0.7  # of its memory that the optimizer keeps from one filler segment to the next


@dataclass(init=False, frozen=True)
class Blindfold(Attack):
    name = "blindfold"
    summary = "a few genuine segments in each window, the largest there, and filler on a straight line to the target"
    source = "Fang et al., EuroS&P 2023"
    knowledge = "the target's final state, the data and the task"

    genuine: int = parameter(2, "genuine segments in each window, at least", low=1)
    adapt: bool = parameter(True, "train on until inertia and predecessors point at genuine segments too")
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, interval, total = victim.own_seed(self.seed), victim.interval, len(victim.proof.segments)
        if total < 4:
            raise AttackError(f"the target has {total} segments; first and last are always replayed, so this needs 4")
        peaks = [
            max(group)
            for group in zip(*victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch), strict=True)
        ]
        width = window(victim.steps)
        most = (
            width // interval // 2
        )  # of a window's segments that may be genuine, lest the line never reaches the target
        session, losses, forged = victim.own_session(seed), list[float](), list[int]()

        def states() -> Iterator[State]:
            here = session.capture()
            yield here
            row = _Row()
            for index in range(total):
                progress("training and filling", index, total)
                stop = min((index + 1) * interval, victim.steps)
                if index * interval // width != (index - 1) * interval // width:
                    row = _Row()
                open_ = len(row.moved) < self.genuine or (
                    self.adapt and len(row.moved) < most and not row.safe(inertia(here, peaks))
                )
                if index == total - 1 or (not row.closed and open_):
                    before = here
                    (here,) = run(victim, session, stop, losses, interval)
                    row.add(displacement(before, here).state, inertia(before, peaks))
                else:
                    row.closed = True
                    forged.append(index)
                    losses.extend([losses[-1]] * (stop - index * interval))
                    here = _fill(victim, session, here, stop, 1.0 / (total - 1 - index))
                yield here

        forge_proof(
            path, victim.task, states(), None, hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
            seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data, environment=victim.environment,
            **as_stored(victim),
        )  # fmt: skip
        filler = sum(victim.samples(i * interval, min((i + 1) * interval, victim.steps)) for i in forged)
        return Mounted(victim.samples(0, victim.steps) - filler, forged)


class _Row:
    """The genuine segments of one window, with the two measures by which the verifier chooses."""

    def __init__(self) -> None:
        self.moved: list[float] = []
        self.inertia: list[float] = []
        self.closed = False

    def add(self, moved: float, inertia_: float) -> None:
        self.moved.append(moved)
        self.inertia.append(inertia_)

    def safe(self, next_: float) -> bool:
        """Whether the largest by either measure has a genuine predecessor, and the next segment has less inertia (``next_``)."""
        top = max(self.inertia)
        return next_ < top and self.inertia.index(top) > 0 and self.moved.index(max(self.moved)) > 0


def _fill(victim: Victim, session: Session, here: State, stop: int, share: float) -> State:
    """One segment of filler: the schedule moves on, the weights a ``share`` of the way to the target's, the memory dies down."""
    memory = {name: tensor for name, tensor in here.tensors.items() if _memory(name, tensor)}
    for _ in session.idle(stop, victim.steps_per_epoch):
        pass
    graft(session, victim.final)
    state = between(here, session.capture(), victim.final, share)
    tensors = {**state.tensors, **{name: KEPT * tensor for name, tensor in memory.items() if name in state.tensors}}
    session.restore(State(state.tree, tensors))
    return session.capture()


def _memory(name: str, tensor: torch.Tensor) -> bool:
    return key_of(name) in CARRYING and tensor.is_floating_point()
