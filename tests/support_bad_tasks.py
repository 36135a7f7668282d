"""Tasks with the tiny task's description whose code misbehaves, each in its own way."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import tasks
from proof_of_learning import Task

calls = 0


def _misbehave(how: str) -> None:
    match how:
        case "raise":
            raise RuntimeError("boom")
        case "exit":
            sys.exit(0)
        case "print":
            print("x" * 100_000)
            os.write(1, b"\0\0\0\1{" * 1000)
        case "die":
            os._exit(7)
        case "hang":
            time.sleep(3600)


def task(schedule: str = "") -> Task:
    """``schedule``: "step:misbehaviour" pairs, in order of the calls to the loss function."""
    steps = dict(pair.split(":") for pair in schedule.split())

    def loss(model: nn.Module, batch: Any) -> Tensor:
        global calls
        calls += 1
        _misbehave(steps.get(str(int(model.calls[0])), ""))  # type: ignore[index]
        return tasks.loss(model, batch)

    return replace(tasks.task(), loss=loss)


class _Lying(torch.utils.data.Dataset[Any]):
    def __init__(self, kind: str) -> None:
        self.kind, self.reads = kind, 0

    def __len__(self) -> int:
        if self.kind == "length raises":
            raise OSError("no such disk")
        return 0 if self.kind == "empty" else tasks.SAMPLES

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if self.kind == "read raises" and index == 7:
            raise OSError("bad sector")
        x, y = tasks.data()[index]
        return (x + self.reads if self.kind == "random" else x), y


def data(kind: str = "empty") -> Task:
    return replace(tasks.task(), data=lambda: _Lying(kind))


def returns(kind: str = "none") -> Any:
    return {"none": None, "class": Task, "text": "task", "task": tasks.task()}[kind]


def raises(kind: str = "raise") -> Task:
    _misbehave(kind)
    return tasks.task()


def factory(part: str = "model") -> Task:
    """A task one of whose factories raises."""

    def fail(*_: Any) -> Any:
        raise ValueError(f"no {part} today")

    return replace(tasks.task(), **{part: fail})  # type: ignore[arg-type]


not_a_function = 5
ready = tasks.task()
