"""A network whose training state is large beside everything else: what the memory benchmark trains."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task

INPUTS, LAYERS, SAMPLES = 64, 6, 256


def training_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, INPUTS, generator=generator)
    return TensorDataset(x, (x[:, :2].sum(1) > 0).long())


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def task(steps: int, width: int = 2048) -> Task:
    def model() -> nn.Module:
        widths = [INPUTS, *[width] * LAYERS]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(width, 2))

    return Task(
        name="mlp",
        model=model,
        data=training_data,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9),
        loss=loss,
        batch_size=16,
        steps=steps,
    )
