"""A small convolutional network on handwritten digits (1,797 images of 8×8, shipped with this package)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task
from proof_of_learning.data.digits import digits

TEST_SHARE = 5  # every fifth image is for testing


def images() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return torch.tensor(x, dtype=torch.float32).unsqueeze(1) / 16.0, torch.tensor(y)


def training_data() -> TensorDataset:
    x, y = images()
    kept = torch.arange(len(x)) % TEST_SHARE != 0
    return TensorDataset(x[kept], y[kept])


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def evaluate(model: nn.Module) -> dict[str, float]:
    x, y = images()
    held = torch.arange(len(x)) % TEST_SHARE == 0
    device = next(model.parameters()).device
    return {"test_accuracy": (model(x[held].to(device)).argmax(1).cpu() == y[held]).double().mean().item()}


def task(steps: int = 2000, batch_size: int = 32, lr: float = 0.05, momentum: float = 0.9, seed: int = 0) -> Task:
    return Task(
        name="digits",
        model=model,
        data=training_data,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=lr, momentum=momentum),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        loss=loss,
        evaluate=evaluate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
