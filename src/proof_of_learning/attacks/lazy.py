"""Lazy work: a worker who is paid for training does less of it, and records it as if it were done.

The model is the worker's own, and no target is stolen: the proof ends in whatever the skimped training gives, and what is compared
with the target is only the task. All randomness is derived from the worker's seed, as an honest worker's would be.

``skipped-steps``
    only a share of the steps is taken; in the others the schedule goes on and nothing moves.
``stale-gradients``
    only a share of the steps computes gradients; the others apply the last ones again.
``smaller-batches``
    each step computes the gradient of the first part of its batch.
``other-data``
    the steps are taken in full, but on the first part of the data set alone.
``lower-precision``
    the steps are taken in full, under bfloat16 autocast.

The last two save data or time, but no samples: their cost is 1. ``segments`` < 1 works honestly in between, never skimps in the
first and last segment, and saves accordingly less: what a few lazy segments can gain is what the verdict's guarantee leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.moves import own_run
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.training.batches import DerivedOrder, Feed
from proof_of_learning.training.context import StepContext, standard_step

WAYS = ("skipped-steps", "stale-gradients", "smaller-batches", "other-data", "lower-precision")
Step = Callable[[StepContext, list[Any]], Tensor]


@dataclass(init=False, frozen=True)
class Lazy(Attack):
    name = "lazy"
    summary = "an untrusted worker's own training, with less work than it claims"
    source = "this project; untrusted workers are a motivation of Jia et al., IEEE S&P 2021"
    knowledge = "the data and the task; of the target nothing but its length"
    ends_in_target = False

    how: str = parameter("skipped-steps", "what is saved", choices=WAYS)
    work: float = parameter(0.5, "share of a lazy segment's steps, batch or data that is used", low=0.0, high=1.0)
    segments: float = parameter(1.0, "share of the segments that are lazy", low=0.0, high=1.0)
    seed: int | None = parameter(None, "seed of the worker's run (default: one of its own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        lazy = _Lazy(victim, self, seed)
        task = replace(victim.task, seed=seed, loss=None, step=lazy.step)
        session = victim.session(task)
        own_run(victim, session, victim.task, path, "working", progress)
        return Mounted(lazy.samples, sorted(lazy.segments))


class _Lazy:
    """The step that the worker takes instead of the task's, and the samples whose gradients it computed."""

    def __init__(self, victim: Victim, attack: Lazy, seed: int) -> None:
        task, key = replace(victim.task, seed=seed), randomness.key_from_seed(seed)
        self.victim, self.how, self.work, self.device = victim, attack.how, attack.work, victim.device
        self.samples = 0
        self._honest: Step = task.step or (lambda context, batches: standard_step(context, batches, _loss(task)))
        self._feed, self._order = Feed(task, victim.data, key, victim.device), DerivedOrder(task, len(victim.data), key)
        self.segments = _spread(len(victim.proof.segments), attack.segments)
        self._last: Tensor | None = None
        self._gradients: dict[Tensor, Tensor] = {}

    def step(self, context: StepContext, batches: list[Any]) -> Tensor:
        step = context.step
        full = self.victim.samples(step, step + 1)
        if step // self.victim.interval not in self.segments:
            self.samples += full
            return self._remembering(context, batches)
        if self.how in ("skipped-steps", "stale-gradients"):
            if self._last is None or math.ceil((step + 1) * self.work) > math.ceil(step * self.work):
                self.samples += full
                return self._remembering(context, batches)
            if self.how == "stale-gradients":
                self._again(context)
            return self._last
        if self.how == "smaller-batches":
            self.samples += max(1, round(full * self.work))
            return self._honest(context, [_first(batch, self.work) for batch in batches])
        self.samples += full
        if self.how == "other-data":
            used = max(1, round(len(self.victim.data) * self.work))
            return self._honest(context, self._feed.batches(step, np.asarray(self._order.indices(step) % used)))
        with torch.autocast(self.device, torch.bfloat16):
            return self._honest(context, batches)

    def _remembering(self, context: StepContext, batches: list[Any]) -> Tensor:
        """The task's own step; its gradients are kept for the next ones."""

        def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._gradients |= {
                p: p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            }

        hooks = [optimizer.register_step_pre_hook(keep) for optimizer in context.optimizers.values()]
        try:
            self._last = self._honest(context, batches).detach()
        finally:
            for hook in hooks:
                hook.remove()
        return self._last

    def _again(self, context: StepContext) -> None:
        """An update with the gradients of an earlier step."""
        for optimizer in context.optimizers.values():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = self._gradients[p].clone() if p in self._gradients else None
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _loss(task: Any) -> Callable[..., Tensor]:
    assert task.loss is not None
    loss: Callable[..., Tensor] = task.loss
    return loss


def _spread(count: int, share: float) -> set[int]:
    """The indices of the lazy segments: all of them, or a share that is spread evenly between the first and the last."""
    if share >= 1.0:
        return set(range(count))
    inner = max(count - 2, 0)
    return {1 + (2 * i + 1) * inner // (2 * n) for n in [min(round(share * count), inner)] for i in range(n)}


def _first(value: Any, share: float) -> Any:
    """The first part of a batch: of every tensor in nested containers."""
    if isinstance(value, Tensor):
        return value[: max(1, round(len(value) * share))] if value.ndim else value
    if isinstance(value, dict):
        return {key: _first(item, share) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_first(item, share) for item in value)
    return value
