"""The task of the golden proofs. Never edit it: its description is what they were recorded for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task

SAMPLES, FEATURES, CLASSES = 32, 5, 3


def data() -> TensorDataset:
    """A grid of small numbers: the same bits on every machine."""
    x = (torch.arange(SAMPLES * FEATURES) * 37 % 64).reshape(SAMPLES, FEATURES).float() / 32 - 1
    return TensorDataset(x, (x[:, 0] * 1.5 + 1.5).long().clamp(0, CLASSES - 1))


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


@torch.no_grad()
def evaluate(model: nn.Module) -> dict[str, float]:
    x, y = data().tensors
    return {"accuracy": float((model(x).argmax(1) == y).double().mean())}


def scheduler(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5)


def task() -> Task:
    return Task(
        name="golden",
        model=lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)),
        data=data,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.02),
        scheduler=scheduler,
        loss=loss,
        evaluate=evaluate,
        batch_size=8,
        steps=22,
        seed=3,
    )
