"""The task of ``selection.py``: handwritten digits, with a network whose units can die."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import digits

from proof_of_learning import Task


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Own(torch.optim.SGD):
    """Steps as SGD does; but a verifier cannot know that of a class of the task's own."""


MODELS = {"mlp": mlp, "cnn": digits.model}


def task(
    model: str = "mlp",
    optimizer: str = "sgd",
    lr: float = 0.0,
    decay: float = 0.0,
    scaler: bool = False,
    steps: int = 2000,
    batch_size: int = 64,
    seed: int = 0,
) -> Task:
    """lr: 0 means the optimizer's usual (SGD 0.1 with momentum 0.9, the others 1e-3)."""
    rate = lr or (0.1 if optimizer in ("sgd", "own") else 1e-3)
    made = {
        "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=rate, momentum=0.9, weight_decay=decay),
        "own": lambda m: Own(m.parameters(), lr=rate, momentum=0.9, weight_decay=decay),
        "nadam": lambda m: torch.optim.NAdam(m.parameters(), lr=rate),
        "adam": lambda m: torch.optim.Adam(m.parameters(), lr=rate),
        "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=rate, weight_decay=decay),
    }[optimizer]
    return Task(
        name=f"digits-{model}",
        model=MODELS[model],
        data=digits.training_data,
        optimizer=made,
        loss=digits.loss,
        evaluate=digits.evaluate,
        scaler=(lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=500)) if scaler else None,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
