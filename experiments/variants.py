"""Small variants of the digits task for experiments: one network with BatchNorm and dropout, any of PyTorch's optimizers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import digits

from proof_of_learning import Task

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip


def task(optimizer: str = "momentum", steps: int = 400, batch_size: int = 64, seed: int = 0) -> Task:
    return Task(
        name=f"digits-{optimizer}",
        model=model,
        data=digits.training_data,
        optimizer=lambda m: OPTIMIZERS[optimizer](m.parameters()),
        loss=digits.loss,
        evaluate=digits.evaluate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
