"""Real optimizers on small real networks, seen as courses: every parameter at every k-th step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proof_of_learning.data import digits as shipped
from proof_of_learning.verifier.dynamics import Course, family, read_rule

Snapshot = dict[str, Any]
Optimizers = Callable[[Any], torch.optim.Optimizer]

VARIANTS: dict[str, Optimizers] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "sgd-decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-3),
    "sgd-dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.5, weight_decay=1e-3),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=2e-3),
    "adam-decay": lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.8, 0.95), weight_decay=1e-2, eps=1e-6),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=2e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, amsgrad=True, betas=(0.4, 0.99)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "rmsprop-momentum": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=1e-3),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, alpha=0.9),
    "rmsprop-both": lambda p: torch.optim.RMSprop(p, lr=5e-4, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02, lr_decay=1e-3, initial_accumulator_value=0.1),
    "adagrad-decay": lambda p: torch.optim.Adagrad(p, lr=0.02, weight_decay=1e-3),
}


def digits() -> tuple[Tensor, Tensor]:
    x, y = shipped.digits()
    return torch.tensor(x, dtype=torch.float32).unsqueeze(1) / 16.0, torch.tensor(y)


def mlp(width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """Reads the digits' pixels as a text of 64 tokens out of a vocabulary of which most never occur."""

    def __init__(self, vocabulary: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, 32), nn.Embedding(64, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        numbers = (x.flatten(1) * 16).long()
        read = self.tokens(numbers) + self.places(torch.arange(64))
        return self.head(self.layer(read).mean(1))


def kill(model: nn.Module) -> None:
    """Far below zero, the first biases make a ReLU network dead: nothing passes but the last bias."""
    with torch.no_grad():
        first = next(module for module in model.modules() if isinstance(module, nn.Linear))
        first.bias.fill_(-1e3)


def train(
    model: nn.Module, make: Optimizers, steps: int, k: int = 1, *, batch: int = 32, seed: int = 0,
    schedule: Callable[[int], float] = lambda step: 1.0, before: Callable[[int, nn.Module], None] = lambda step, model: None,
    skipped: Sequence[int] = (),
) -> dict[str, Course]:  # fmt: skip
    """Courses of all parameters (all coordinates) by name. ``skipped`` steps leave everything as it is."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    optimizer = make(model.parameters())
    base = [group["lr"] for group in optimizer.param_groups]
    snapshots, rates = list[Snapshot](), list[float]()

    def capture() -> None:
        (group,) = optimizer.param_groups
        settings = {key: value for key, value in group.items() if key != "params"}
        entries = [
            {key: torch.as_tensor(v).numpy().copy() for key, v in optimizer.state[p].items() if v is not None}
            if p in optimizer.state else {}
            for p in group["params"]
        ]  # fmt: skip
        weights = [p.detach().flatten().numpy().copy() for p in group["params"]]
        snapshots.append({"settings": settings, "entries": entries, "weights": weights})

    for step in range(steps):
        before(step, model)
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * schedule(step)
        if step % k == 0:
            capture()
        rates.append(optimizer.param_groups[0]["lr"])
        chosen = torch.randint(len(images), (batch,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        if step not in skipped:
            optimizer.step()
    capture()
    bounds = np.array([*range(0, steps, k), steps])
    return {
        name: _course(snapshots, number, np.array(rates), bounds)
        for number, (name, _) in enumerate(model.named_parameters())
    }


def _course(snapshots: list[Snapshot], number: int, rates: Any, bounds: Any) -> Course:
    weights = np.stack([snapshot["weights"][number] for snapshot in snapshots])
    names = sorted({name for snapshot in snapshots for name in snapshot["entries"][number]})
    entries = {}
    for name in names:
        rows = [snapshot["entries"][number].get(name) for snapshot in snapshots]
        missing = np.full(next(row.size for row in rows if row is not None), np.nan, dtype=np.float32)
        if name == "step":
            missing = missing[0]
        entries[name] = np.stack([missing if row is None else row.reshape(missing.shape) for row in rows])
    settings = [snapshot["settings"] for snapshot in snapshots]
    rule = read_rule(settings, family(settings[-1], names))
    return Course(weights, entries, rule, rates, bounds)
