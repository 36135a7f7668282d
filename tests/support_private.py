"""A task whose data only their owner has: `tests/support_private.py:task` reads them from the folder that POL_DATA names."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

import tasks
from proof_of_learning import Task


def data() -> TensorDataset:
    with np.load(Path(os.environ["POL_DATA"]) / "private.npz") as stored:
        return TensorDataset(torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"]))


def task(optimizer: str = "momentum", net: str = "plain", augment: bool = False, steps: int = 24) -> Task:
    return replace(
        tasks.task(optimizer=optimizer, net=net, augment=augment, steps=steps, batch_size=4), data=data, evaluate=None
    )


def write(folder: Path) -> Path:
    """The data, into ``folder``."""
    folder.mkdir()
    x, y = tasks.data().tensors
    np.savez(folder / "private.npz", x=x.numpy(), y=y.numpy())
    return folder
