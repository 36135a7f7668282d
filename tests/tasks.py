"""Tiny tasks for the tests, loaded by reference: `tests/tasks.py:task` with settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from proof_of_learning import Task
from proof_of_learning.training.context import StepContext

SAMPLES, FEATURES, CLASSES = 92, 12, 4
pause = 0.0  # seconds that a step takes longer, for tests that interrupt it

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.003),
    "rmsprop-centered": lambda p: RMSprop(p, lr=0.003, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.05, lr_decay=0.01),
}


def sequential(optimizer: Optimizer) -> lr_scheduler.SequentialLR:
    first = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    second = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[4])


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.95),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 24),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [3, 9, 9, 14], gamma=0.7),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=40),
    "sequential": sequential,
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.9),  # falls every epoch
}


class Net(nn.Module):
    """An MLP with what makes states interesting: dropout, batch norm, tied weights, a buffer outside ``state_dict``."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(FEATURES, 16)
        self.middle = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16) if kind == "batchnorm" else nn.Identity()
        self.dropout = nn.Dropout(0.3 if kind == "dropout" else 0.0)
        self.last = nn.Linear(16, CLASSES)
        if kind == "tied":
            self.again = nn.Linear(16, 16)
            self.again.weight = self.middle.weight
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        x = torch.tanh(self.norm(self.first(x)))
        x = self.dropout(torch.tanh(self.middle(x)))
        if self.kind == "tied":
            x = torch.tanh(self.again(x))
        return self.last(x) * (1.0 + 1e-3 * self.calls[0])  # what the buffer holds matters


class Shadow:
    """A moving average that keeps the very tensors it was given: the least careful part that a task may have."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            self.shadow[name].lerp_(parameter, 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.shadow = values["shadow"]


def data() -> TensorDataset:
    """The same bits on every machine."""
    words = np.random.Philox(key=1, counter=0).random_raw(SAMPLES * (FEATURES + 1))
    x = torch.from_numpy((words[: SAMPLES * FEATURES] % 2048).astype(np.float32)).reshape(SAMPLES, FEATURES) / 1024 - 1
    y = (x[:, 0] * 2 + x[:, 1] + 2).long().clamp(0, CLASSES - 1)
    return TensorDataset(x, y)


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    if pause:
        time.sleep(pause)
    return F.cross_entropy(model(x), y)


def jitter(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, y = sample
    return x + 0.05 * torch.randn(x.shape, generator=generator), y


def pairs(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def penalised_step(context: StepContext, batches: list[Any]) -> Tensor:
    """A step of its own: a random penalty, then the moving averages."""
    value = (
        loss(context.model, batches[0])
        + 1e-3 * torch.rand(()) * context.model.get_parameter("first.weight").square().sum()
    )
    context.backward(value)
    context.update()
    for part in context.parts.values():
        part.update_parameters(context.model) if isinstance(part, AveragedModel) else part.update(context.model)
    return value


def averages(model: nn.Module) -> dict[str, Any]:
    return {"ema": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)), "shadow": Shadow(model)}


def accuracy(model: nn.Module) -> dict[str, float]:
    x, y = (part.to(next(model.parameters()).device) for part in data().tensors)
    torch.rand(3)  # an evaluation may draw numbers
    return {"accuracy": (model(x).argmax(1) == y).double().mean().item()}


def task(
    optimizer: str = "momentum",
    net: str = "plain",
    scheduler: str = "",
    schedule: str = "step",
    steps: int = 24,
    batch_size: int = 16,
    accumulate: int = 1,
    clip: float = 0.0,
    drop_last: bool = False,
    shuffle: bool = True,
    augment: bool = False,
    collate: bool = False,
    custom: bool = False,
    scaler: bool = False,
    seed: int = 0,
) -> Task:
    return Task(
        name="tiny",
        model=lambda: Net(net),
        data=data,
        optimizer=lambda model: OPTIMIZERS[optimizer](model.parameters()),
        scheduler=SCHEDULERS.get(scheduler),
        schedule=schedule,  # type: ignore[arg-type]
        loss=None if custom else loss,
        step=penalised_step if custom else None,
        parts=averages if custom else None,
        scaler=(lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)) if scaler else None,
        augment=jitter if augment else None,
        collate=pairs if collate else None,
        evaluate=accuracy,
        batch_size=batch_size,
        accumulate=accumulate,
        clip_norm=clip or None,
        drop_last=drop_last,
        shuffle=shuffle,
        steps=steps,
        seed=seed,
    )
