"""Small variants of the digits task for experiments: several networks, any of PyTorch's optimizers, several schedules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

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


def pause(step: int, steps: int) -> float:
    """The tenth of the run after its middle has rate 0."""
    return 0.0 if steps // 2 <= step < steps // 2 + steps // 10 else 1.0


SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    "cosine": lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    "milestones": lambda optimizer, steps: lr_scheduler.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4]),
    "warm-up": lambda optimizer, steps: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=max(1, steps // 5)),
    "pause": lambda optimizer, steps: lr_scheduler.LambdaLR(optimizer, lambda step: pause(step, steps)),
    "exponential": lambda optimizer, steps: lr_scheduler.ExponentialLR(optimizer, 0.99),
}


def cnn() -> nn.Module:
    """With BatchNorm and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """The eight rows of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.rows(x.squeeze(1))).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {"cnn": cnn, "mlp": mlp, "transformer": Transformer}


def task(
    optimizer: str = "momentum",
    steps: int = 400,
    batch_size: int = 64,
    seed: int = 0,
    model: str = "cnn",
    schedule: str = "none",
) -> Task:
    return Task(
        name=f"digits-{optimizer}" if model == "cnn" else f"digits-{model}-{optimizer}",
        model=MODELS[model],
        data=digits.training_data,
        optimizer=lambda m: OPTIMIZERS[optimizer](m.parameters()),
        scheduler=None if schedule == "none" else lambda made: SCHEDULES[schedule](made, steps),
        loss=digits.loss,
        evaluate=digits.evaluate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
