"""A task that brings its own noise: what rounding does to it follows from the number of threads, on every processor alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import tasks
from proof_of_learning import Task

NOISE = 1e-7  # of a gradient, absolute: far more than float32 loses in sums this short, far less than the gradients of weights


def rounded(gradient: Tensor) -> Tensor:
    """``gradient`` as a machine with so many threads computes it: off by noise that follows from its bits and that number."""
    bits = zlib.crc32(gradient.numpy().tobytes(), torch.get_num_threads())
    noise = np.random.Generator(np.random.Philox(bits)).standard_normal(tuple(gradient.shape), dtype=np.float32)
    return gradient + NOISE * torch.from_numpy(noise)


def network(norm: bool) -> nn.Module:
    """A bias before a BatchNorm has no gradient but noise, of which Adam makes steps of full size."""
    between = nn.BatchNorm1d(256) if norm else nn.Identity()
    made = nn.Sequential(nn.Linear(tasks.FEATURES, 256), between, nn.Tanh(), nn.Linear(256, tasks.CLASSES))
    for parameter in made.parameters():
        parameter.register_hook(rounded)
    return made


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: AdamW(p, lr=1e-3, weight_decay=0.01),
}


def task(optimizer: str = "momentum", norm: bool = False, steps: int = 60) -> Task:
    return Task(
        name="noisy",
        model=lambda: network(norm),
        data=tasks.data,
        optimizer=lambda model: OPTIMIZERS[optimizer](model.parameters()),
        loss=tasks.loss,
        evaluate=tasks.accuracy,
        batch_size=32,
        steps=steps,
    )
