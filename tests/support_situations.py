"""What the tests of situations share: verdicts under several draws, recordings that are cut short, and lazy layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import proof_of_learning as pol
import tasks
from proof_of_learning import Task


def judged(path: Path | str, task: Task | str) -> None:
    """Every segment replays to the bit, under either draw. (Whether a run this short learned anything is another question.)"""
    for options in ({"everything": True}, {"random": 2, "top_q": 0}):
        verdict = pol.verify(path, task, keep_going=True, **options)
        assert verdict.verdict != "invalid", verdict.reason
        assert verdict.check("trajectory").status == "pass", verdict.check("trajectory").summary


class StopError(Exception):
    """Ends a recording as a kill would."""


def interrupted(task: Task, path: Path, after: int, **options: Any) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "training" and done == after:
            raise StopError

    with pytest.raises(StopError):
        pol.prove(task, path, progress=progress, **options)


class Lazy(nn.Module):
    """Lazy layers of all kinds, with a count that every forward pass raises, and one that is never reached."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, tasks.FEATURES)), nn.LazyConv1d(3, 3), nn.LazyBatchNorm1d(), nn.Dropout(0.1), nn.Flatten(),
            nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, tasks.CLASSES),
        )  # fmt: skip
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))
        self.unused = nn.LazyLinear(2) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.body(x)
        return result
