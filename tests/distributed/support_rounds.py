"""Tiny collective tasks, loaded by reference: ``support_rounds.py:task`` with settings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task
from proof_of_learning.distributed.rounds import Rounds, collective

FEATURES, CLASSES, SAMPLES = 12, 4, 400


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return TensorDataset(x, (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1))


def model(norm: bool = False, dropout: float = 0.1) -> nn.Module:
    middle = nn.BatchNorm1d(16) if norm else nn.Dropout(dropout)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), middle, nn.Linear(16, CLASSES))


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(
    rounds: int = 12,
    slots: int = 4,
    local: int = 0,
    clip: float = 5.0,
    norm: bool = False,
    aggregation: str = "mean",
    seed: int = 0,
) -> Task:
    def inner(parameters: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    base = Task(
        name="rounds", model=lambda: model(norm), data=data, loss=loss, batch_size=8, steps=rounds, seed=seed,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.7 if local else 0.2, momentum=0.9, nesterov=local > 0),
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.99),
    )  # fmt: skip
    return collective(
        base, Rounds(slots, local, inner if local else None, aggregation=aggregation, clip=clip, dishonest=1)
    )
