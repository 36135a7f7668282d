"""Tasks whose objects keep what no proof holds: what one replayed segment leaves behind must not reach the next."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import tasks
from proof_of_learning import Task

STEPS, INTERVAL = 24, 2
calls = 0  # of the loss: hidden in the module


class Counting(tasks.Net):
    """It counts its calls in an attribute, and what it computes depends on the count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x) * (1 + 1e-3 * self.count)


def wear(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An augmentation that writes into the data set."""
    return sample[0].mul_(1.01), sample[1]


def counted_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    global calls
    calls += 1
    return tasks.loss(model, batch) * (1 + 1e-3 * calls)


def task(kind: str = "") -> Task:
    whole = replace(tasks.task(optimizer="adam", steps=STEPS), evaluate=None)
    if kind == "model":
        return replace(whole, model=Counting)
    if kind == "data":
        return replace(whole, augment=wear)
    if kind == "module":
        return replace(whole, loss=counted_loss)
    raise ValueError(kind)


def ending() -> Task:
    """A task whose third segment ends the process that replays it."""

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        import os

        value = tasks.loss(model, batch)
        if os.environ.get("POL_TEST_ENDING") and torch.equal(batch[0][0], fatal):
            os.abort()
        return value

    fatal = tasks.data().tensors[0][0]
    return replace(tasks.task(steps=STEPS), evaluate=None, loss=loss, shuffle=False)
