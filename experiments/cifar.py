"""The example on CIFAR-10 with fewer images and a shorter evaluation, for experiments; and images that stand in for CIFAR-10."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import cifar10_resnet20 as example
from _data import images as load

from proof_of_learning import Task

FILE = example.FILE
MEASURED_ON = 1000  # test images


def task(
    data: str | None = None,
    images: int = 5000,
    steps: int = 300,
    batch_size: int = 32,
    lr: float = 0.1,
    epochs: int = 200,
    seed: int = 0,
) -> Task:
    """The first ``images`` training images; the learning rate falls after 1/2 and 3/4 of ``epochs``, as in the example."""

    def training_data() -> TensorDataset:
        pixels, labels = load(FILE, "train", data)
        return TensorDataset(pixels[:images].clone(), labels[:images].clone())

    def evaluate(model: nn.Module) -> dict[str, float]:
        pixels, labels = (part[:MEASURED_ON] for part in load(FILE, "test", data))
        device = next(model.parameters()).device
        found = torch.cat([example.scores(model, x.to(device)).argmax(1).cpu() for x in pixels.split(100)])
        return {"test_accuracy": (found == labels).double().mean().item()}

    whole = example.task(data, epochs=epochs, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    return replace(whole, data=training_data, evaluate=evaluate)


def stand_in(folder: Path, seed: int, images: int = 5000) -> str:
    """Write a file like CIFAR-10's with ten noisy patterns for images; returns its folder."""
    generator = np.random.default_rng(seed)
    patterns = generator.integers(64, 192, (10, 3, 32, 32))
    arrays: dict[str, Any] = {}
    for part, count in (("train", images), ("test", min(MEASURED_ON, images))):
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        noisy = patterns[labels] + generator.normal(0, 40, (count, 3, 32, 32))
        arrays |= {f"{part}_x": noisy.clip(0, 255).astype(np.uint8), f"{part}_y": labels}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / FILE, **arrays)
    return str(folder)
