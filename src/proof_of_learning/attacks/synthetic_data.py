"""Synthetic data (Zhang et al., "'Adversarial Examples' for Proof-of-Learning", IEEE S&P 2022).

Few steps lead from an initialization of the attacker's own to the target, on real samples that were perturbed until their gradients
are the ones that he needs. The perturbed samples are the data set that he claims, with a root of its own, in the order that
his key gives.

I
    each step's batch is optimised for the step that is wanted.
II
    checkpoints on a straight line, each within ``delta`` of d_ref of the next; the batches need only have gradients of about 0.
III
    the batches of a whole interval are optimised at once for the way over the interval.

In I and III the steps are then really taken on the perturbed data and the next are aimed anew, so that everything replays bit for bit
and what is left is a distance to the target (:attr:`Forgery.distance`). A verifier who names the data stops all three; one who lets
the prover name them has no other reason to reject I and III. The data are written beside the proof, for such a verifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, between, graft
from proof_of_learning.data.commit import commit
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.state.state import State
from proof_of_learning.task import Task
from proof_of_learning.training.steps import Session, derived_feed


@dataclass(init=False, frozen=True)
class SyntheticData(Attack):
    name = "synthetic-data"
    summary = "a few steps to the target on samples that were perturbed until their gradients lead there"
    source = "Zhang et al., IEEE S&P 2022"
    knowledge = (
        "the target's final weights, some data and the task; the optimizer must be SGD, the data one array and labels"
    )

    variant: str = parameter("I", "which of the paper's attacks", choices=("I", "II", "III"))
    steps: int = parameter(
        6, "number of steps claimed, far fewer than the target's (II: as many as delta needs)", low=2
    )
    interval: int = parameter(2, "steps between checkpoints (III)", low=1)
    iterations: int = parameter(30, "iterations of the optimisation for each batch", low=1)
    delta: float = parameter(0.01, "distance between checkpoints as a share of d_ref (II)", low=1e-6)
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        start, interval, steps = victim.own_session(seed).capture(), 1, self.steps
        if self.variant == "III":
            interval = self.interval
        if self.variant == "II":
            norm = weight_distance(
                weights(victim.final), {n: torch.zeros_like(t) for n, t in weights(victim.final).items()}
            )
            way = weight_distance(weights(start), weights(victim.final))
            steps = max(2, math.ceil(way / (self.delta * math.sqrt(2.0) * norm)))
        x, y = _arrays(victim)
        size = victim.task.batch_size * victim.task.accumulate
        chosen = torch.arange(steps * size) % len(x)
        data = TensorDataset(x[chosen].clone(), y[chosen].clone())
        task = replace(victim.task, seed=seed, steps=steps, epochs=None, data=lambda: data, reference=None)
        craft = _Craft(victim, task, data, self.iterations, interval)
        states = craft.line if self.variant == "II" else craft.taken
        recorded = list(states(lambda done: progress("perturbing samples", done, steps)))
        forge_proof(
            path, task, recorded, None, hyperparameters={"loss": craft.losses}, interval=interval, steps=steps,
            data=commit(data), environment=victim.environment, **as_stored(victim),
        )  # fmt: skip
        np.savez(data_file(path), x=data.tensors[0].numpy(), y=data.tensors[1].numpy())
        return Mounted(craft.samples, range(steps) if self.variant == "II" else ())


def data_file(path: Path) -> Path:
    """Where the perturbed data for the forgery at ``path`` are written: arrays ``x`` and ``y``."""
    return path.with_name(path.name + ".data.npz")


def load_data(path: Path) -> TensorDataset:
    """The perturbed data of the forgery at ``path``."""
    with np.load(data_file(path)) as arrays:
        return TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))


class _Craft:
    """Perturbs ``data`` in place, step by step; ``samples`` counts gradients with respect to weights, and those through them."""

    def __init__(self, victim: Victim, task: Task, data: TensorDataset, iterations: int, interval: int) -> None:
        self.victim, self.task, self.data, self.iterations, self.interval = victim, task, data, iterations, interval
        self.session = victim.own_session(task.seed)
        self.session.task = task
        self.feed, self.order = derived_feed(task, data, self.session.key, victim.device)
        self.total = task.total_steps(len(data))
        self.names = [name for name, _ in self.session.model.named_parameters()]
        goal = victim.own_session(task.seed)
        goal.restore(victim.final)
        self.goal = [p.detach().clone() for p in goal.model.parameters()]
        self.group = _plain_sgd(self.session)
        self.losses: list[float] = []
        self.samples = 0

    def taken(self, progress: Callable[[int], None]) -> Iterator[State]:
        """I and III: perturb the batches of an interval, take its steps, aim anew."""
        yield self.session.capture()
        for begin in range(0, self.total, self.interval):
            end = min(begin + self.interval, self.total)
            share = (end - begin) / (self.total - begin)
            here = [p.detach().clone() for p in self.session.model.parameters()]
            wanted = [w + share * (g - w) for w, g in zip(here, self.goal, strict=True)]
            scale = sum(float((a - b).square().sum()) for a, b in zip(wanted, here, strict=True))
            batches = [self.order.indices(step) for step in range(begin, end)]

            def miss(
                perturbed: list[Tensor], wanted: list[Tensor] = wanted, scale: float = scale, at: list[Any] = batches
            ) -> Tensor:
                reached = self._unrolled(perturbed, at)
                return (
                    sum(((r - w).square().sum() for r, w in zip(reached, wanted, strict=True)), torch.zeros(())) / scale
                )

            self._perturb(batches, miss)
            for result in self.session.run(end, self.feed, self.order):
                self.losses.append(float(result.loss))
                self.samples += len(self.order.indices(result.step))
            progress(end)
            yield self.session.capture()

    def line(self, progress: Callable[[int], None]) -> Iterator[State]:
        """II: interpolated checkpoints, at each a batch whose gradient is about 0."""
        start = self.session.capture()
        yield start
        graft(self.session, self.victim.final)
        for entry in (e for optimizer in self.session.optimizers.values() for e in optimizer.state.values()):
            if entry.get("momentum_buffer") is not None:
                entry["momentum_buffer"].zero_()
        final = self.session.capture()
        here = start
        for step in range(self.total):
            self.session.restore(here)
            batches = [self.order.indices(step)]

            def gradient(perturbed: list[Tensor], at: list[Any] = batches) -> Tensor:
                parameters = [p.detach().requires_grad_() for p in self.session.model.parameters()]
                return sum(
                    (g.square().sum() for g in self._gradient(parameters, perturbed[0], at[0])[1]), torch.zeros(())
                )

            self._perturb(batches, gradient)
            with torch.no_grad():
                self.losses.append(float(self.task.loss(self.session.model, self._batch(batches[0]))))  # type: ignore[misc]
            self.session.restore(final)
            self.session.progress.step = 0
            schedule = self.victim.own_session(self.task.seed)
            for _ in schedule.idle(step + 1, self.feed.task.steps_per_epoch(len(self.data))):
                pass
            graft(schedule, final)
            here = between(start, schedule.capture(), final, (step + 1) / self.total)
            progress(step + 1)
            yield here

    def _perturb(self, batches: list[Any], miss: Callable[[list[Tensor]], Tensor]) -> None:
        """Minimise ``miss`` over the samples of ``batches`` by L-BFGS, from where they are, and put the best found into the data."""
        x = self.data.tensors[0]
        perturbed = [x[torch.from_numpy(np.ascontiguousarray(at))].clone().requires_grad_() for at in batches]
        optimizer = torch.optim.LBFGS(perturbed, max_iter=self.iterations, line_search_fn="strong_wolfe")
        best, found = math.inf, [p.detach().clone() for p in perturbed]

        def closure() -> Tensor:
            nonlocal best, found
            optimizer.zero_grad()
            value = miss(perturbed)
            value.backward()  # type: ignore[no-untyped-call]
            self.samples += 2 * sum(map(len, batches))
            if float(value.detach()) < best:
                best, found = float(value.detach()), [p.detach().clone() for p in perturbed]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for at, values in zip(batches, found, strict=True):
                x[torch.from_numpy(np.ascontiguousarray(at))] = values

    def _unrolled(self, perturbed: list[Tensor], batches: list[Any]) -> list[Tensor]:
        """The weights after a step of SGD on each of the batches, as a function of the perturbed samples."""
        optimizer = next(iter(self.session.optimizers.values()))
        parameters = [p.detach().requires_grad_() for p in self.session.model.parameters()]
        buffers: list[Tensor | None] = [
            optimizer.state.get(p, {}).get("momentum_buffer") for p in self.session.model.parameters()
        ]
        rate, momentum, decay = (float(self.group[name]) for name in ("lr", "momentum", "weight_decay"))
        for x, at in zip(perturbed, batches, strict=True):
            _, gradients = self._gradient(parameters, x, at)
            gradients = [g + decay * p for g, p in zip(gradients, parameters, strict=True)]
            buffers = [g if b is None else momentum * b + g for g, b in zip(gradients, buffers, strict=True)]
            parameters = [p - rate * b for p, b in zip(parameters, buffers, strict=True)]  # type: ignore[operator]
        return parameters

    def _gradient(self, parameters: list[Tensor], x: Tensor, at: Any) -> tuple[Tensor, list[Tensor]]:
        named = dict(zip(self.names, parameters, strict=True))

        def model(*inputs: Tensor) -> Any:
            return torch.func.functional_call(self.session.model, named, inputs)

        assert self.task.loss is not None
        loss = self.task.loss(model, [x, self._batch(at)[1]])  # type: ignore[arg-type]
        return loss, list(torch.autograd.grad(loss, parameters, create_graph=True))

    def _batch(self, at: Any) -> list[Tensor]:
        return [column[torch.from_numpy(np.ascontiguousarray(at))] for column in self.data.tensors]


def _arrays(victim: Victim) -> tuple[Tensor, Tensor]:
    task, data = victim.task, victim.data
    plain = type(data) is TensorDataset and task.augment is None and task.collate is None and task.loss is not None
    if not plain or len(data.tensors) != 2 or not data.tensors[0].is_floating_point():  # type: ignore[attr-defined]
        raise AttackError(
            "this attack needs a task with one array of inputs and one of labels, a loss, and no augmentation"
        )
    return data.tensors  # type: ignore[attr-defined, no-any-return]


def _plain_sgd(session: Session) -> dict[str, Any]:
    optimizers = list(session.optimizers.values())
    first = optimizers[0]
    plain = len(optimizers) == 1 and isinstance(first, torch.optim.SGD) and len(first.param_groups) == 1
    if not plain or first.param_groups[0]["nesterov"] or first.param_groups[0]["dampening"] or session.task.clip_norm:
        raise AttackError(
            "this attack needs a task whose optimizer is SGD with one group, neither nesterov nor clipped"
        )
    group: dict[str, Any] = first.param_groups[0]
    return group
