"""Inverse gradients: training backwards from the target (Jia et al., IEEE S&P 2021, section VII-B).

From W_T on, each earlier state is the solution of ``W_{t-1} = W_t + η ∇L(W_{t-1})``: a point from which the task's own steps, on the
batches that the attacker's seed gives, lead to the next. It is found as a fixed point, by Anderson's acceleration, which also
converges where plain iteration does not; with plain SGD the last bits are then searched one by one (a neighbouring number
for each element that arrives beside its goal), so that most segments replay bit for bit.

An optimizer with memory takes more: backwards, momentum grows by 1/μ in each step and no trajectory stays finite. So every segment
starts from an empty memory, which is what its recorded state falsely holds: the weights replay, the momentum does not. The same
works for any optimizer.

The segments before the last ``share`` are a straight line from the attacker's own fresh initialization (derived), or, with
``share=1``, there are none, and where the inversion ends is claimed as a recorded initialization. Going backwards the loss rises, but
the weights do not become random: the test of recorded initializations sees it.

Each segment of k steps takes about k times as many gradients as iterations: this attack is dearer than training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_claimed, on_the_way
from proof_of_learning.attacks.victim import Victim, graft
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import weights
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import derived_feed

DEPTH = 5  # earlier iterates that Anderson's acceleration combines
PATIENCE = 8  # iterations without progress after which a solution is taken as it is
POLISH = 8  # trials of neighbouring numbers
WORTH = 1e-5  # residual, over the weights' norm, from which on they are tried


@dataclass(frozen=True)
class Inverted:
    """A state from which the task's steps lead to (nearly) the weights that were asked for.

    residual: l2 distance between where they lead and that; ``unequal``: elements that arrive with other bits; ``losses`` of the
    steps; ``gradients``: how often the segment's steps were taken to find it.
    """

    state: State
    residual: float
    unequal: int
    losses: list[float]
    gradients: int


@dataclass(init=False, frozen=True)
class InverseGradient(Attack):
    name = "inverse-gradient"
    summary = "training backwards from the target: each state is solved for, so that the next one follows from it"
    source = "Jia et al., IEEE S&P 2021, section VII-B"
    knowledge = "the target's final state, the data and the task"

    share: float = parameter(1.0, "share of the segments that are inverted, the last ones", low=0.0, high=1.0)
    interval: int = parameter(1, "steps between checkpoints: a step alone is solved most sharply", low=1)
    iterations: int = parameter(30, "largest number of iterations for a segment", low=1)
    tolerance: float = parameter(1e-7, "residual, over the weights' norm, at which to stop", low=0.0)
    seed: int | None = parameter(
        None, "seed of the order of samples (default: one of the attacker's own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        count = -(-victim.steps // self.interval)
        head = count - max(1, round(self.share * count))
        solver = Solver(victim, seed, self.iterations, self.tolerance)
        found: list[Inverted] = []  # backwards
        goal = victim.final
        samples = 0
        for index in range(count - 1, head - 1, -1):
            progress("training backwards", count - index, count - head)
            begin, end = index * self.interval, min((index + 1) * self.interval, victim.steps)
            found.append(solver.invert(goal, begin, end))
            goal = found[-1].state
            samples += found[-1].gradients * victim.samples(begin, end)
        session = victim.own_session(seed)
        start = session.capture()

        def states() -> Iterator[State]:
            yield start if head else goal
            for index in range(1, head + 1):
                yield on_the_way(victim, session, start, goal, index * self.interval, index / head)
            for inverted in reversed(found[:-1]):
                yield inverted.state
            for _ in session.idle(victim.steps, victim.steps_per_epoch):
                pass
            graft(session, victim.final)
            yield session.capture()

        losses = plausible_loss(victim.steps)[: head * self.interval].tolist()
        losses += [loss for inverted in reversed(found) for loss in inverted.losses]
        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"loss": losses}, seed=seed, initialization="derived" if head else "recorded",
            environment=victim.environment, **{**as_claimed(victim), "interval": self.interval},
        )  # fmt: skip
        return Mounted(samples, range(count))


class Solver:
    """Solves for the states before given ones, under one seed."""

    def __init__(self, victim: Victim, seed: int, iterations: int, tolerance: float) -> None:
        self.victim, self.seed, self.iterations, self.tolerance = victim, seed, iterations, tolerance
        self.session = victim.own_session(seed)
        self._clock = victim.own_session(seed)
        self._feed, self._order = derived_feed(self.session.task, victim.data, self.session.key, victim.device)

    def invert(self, goal: State, begin: int, end: int) -> Inverted:
        """The state at step ``begin``, with an empty optimizer memory, from which the steps up to ``end`` lead to the goal's weights.

        Raises AttackError where the iteration leaves the finite numbers.
        """
        fresh = self._at(begin)
        wanted = _flat(weights(goal))
        here, taken = wanted.clone(), 0
        bound = self.tolerance * float(wanted.norm())
        best, best_residual = here, math.inf
        steps: list[tuple[Tensor, Tensor]] = []  # (iterate, residual)
        stalled = 0
        while taken < self.iterations and stalled < PATIENCE:
            arrived, _ = self._forward(fresh, goal, here, begin, end)
            taken += 1
            residual = wanted - arrived  # what is missing, to be added to the start
            length = float(residual.norm())
            if not math.isfinite(length):
                if not steps:
                    raise AttackError(
                        f"the segment that ends at step {end} cannot be inverted: its steps leave the finite numbers"
                    )
                here, steps = best + 0.5 * (here - best), []
                continue
            stalled = 0 if length < 0.9 * best_residual else stalled + 1
            if length < best_residual:
                best, best_residual = here, length
            if length <= bound:
                break
            steps = [*steps, (here, residual)][-DEPTH:]
            here = _anderson(steps)
        trials = POLISH if best_residual <= WORTH * float(wanted.norm()) else 1
        state, polished = self._polished(fresh, goal, best, begin, end, trials)
        arrived, losses = self._forward(fresh, goal, _flat(weights(state)), begin, end)
        target = _flat(weights(goal))
        unequal = int((arrived.float() != target.float()).sum())
        return Inverted(state, float((arrived - target).norm()), unequal, losses, taken + polished + 1)

    def _polished(
        self, fresh: State, goal: State, start: Tensor, begin: int, end: int, trials: int
    ) -> tuple[State, int]:
        """``start`` in the model's own precision, with elements moved to neighbouring numbers while that lets more arrive."""
        here = start.float()
        wanted = _flat(weights(goal)).float()
        best, fewest, taken = here, math.inf, 0
        while taken < trials:
            taken += 1
            arrived, _ = self._forward(fresh, goal, here.double(), begin, end)
            beside = arrived.float() != wanted
            if int(beside.sum()) < fewest:
                best, fewest = here, int(beside.sum())
            if not fewest:
                break
            upward = torch.where(arrived.float() < wanted, math.inf, -math.inf)
            here = torch.where(beside, torch.nextafter(here, upward.float()), here)
        return self._with(fresh, goal, best.double()), taken

    def _forward(self, fresh: State, goal: State, here: Tensor, begin: int, end: int) -> tuple[Tensor, list[float]]:
        self.session.restore(self._with(fresh, goal, here))
        losses = [float(result.loss) for result in self.session.run(end, self._feed, self._order)]
        return _flat(weights(self.session.capture(live=True))), losses

    def _with(self, fresh: State, goal: State, here: Tensor) -> State:
        """``fresh`` with the weights ``here`` and the goal's buffers."""
        tensors = {
            **fresh.tensors,
            **{n: t for n, t in goal.tensors.items() if n.startswith("model/") and n in fresh.tensors},
        }
        offset = 0
        for name, tensor in weights(goal).items():
            tensors[name] = here[offset : offset + tensor.numel()].reshape(tensor.shape).to(tensor.dtype)
            offset += tensor.numel()
        return State(fresh.tree, tensors)

    def _at(self, step: int) -> State:
        """A fresh session's state with the schedule at ``step``."""
        if self._clock.progress.step > step:
            self._clock = self.victim.own_session(self.seed)
        for _ in self._clock.idle(step, self.victim.steps_per_epoch):
            pass
        return self._clock.capture()


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def _anderson(steps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The next iterate from earlier ones and their residuals (Anderson, 1965): the combination whose residual would be least."""
    here, residual = steps[-1]
    if len(steps) == 1:
        return here + residual
    moves = torch.stack([here - old for old, _ in steps[:-1]], dim=1)
    changes = torch.stack([residual - old for _, old in steps[:-1]], dim=1)
    mix = torch.linalg.lstsq(changes, residual.unsqueeze(1), driver="gelsd").solution
    combined: Tensor = here + residual - ((moves + changes) @ mix).squeeze(1)
    return combined
