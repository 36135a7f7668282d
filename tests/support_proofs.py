"""What the tests of stored proofs share: tiny recordings in this process, and a proof's files as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import proof_of_learning as pol
import tasks
from proof_of_learning import Task
from proof_of_learning.prover import Recording

INTERVAL, SEGMENTS = 2, 12  # of the tiny task's 24 steps


def recorded(path: Path | str, *, seed: int = 0, settings: dict[str, Any] | None = None, **options: Any) -> Recording:
    """The tiny task, recorded in this process."""
    return pol.prove(tasks.task(**(settings or {})), path, interval=INTERVAL, seed=seed, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def smallest() -> Task:
    """Three parameters, two segments: small enough that every byte of the proof can be changed in turn."""
    return Task(
        name="small",
        model=lambda: nn.Linear(2, 1),
        data=lambda: TensorDataset(torch.arange(8.0).reshape(4, 2) / 8, torch.arange(4.0)[:, None]),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        batch_size=2,
        steps=4,
    )


def tree_of(names: Iterable[str]) -> Any:
    """The tree of a state that holds nothing but tensors of these names."""
    root: dict[str, Any] = {}
    for name in names:
        *above, last = name.split("/")
        node = root
        for part in above:
            node = node.setdefault(part, {})
        node[last] = {"t": name}

    def tagged(node: dict[str, Any]) -> Any:
        return node if set(node) == {"t"} else {"d": [[f"s:{key}", tagged(item)] for key, item in sorted(node.items())]}

    return tagged(root)
