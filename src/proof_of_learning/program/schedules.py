"""Optimizers and schedules that a program may name, and how they are made from names and numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from proof_of_learning import limits
from proof_of_learning.errors import FormatError
from proof_of_learning.program.document import FILE, Schedule, Update, plain

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name: getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam")
}
SCHEDULES: dict[str, Any] = {
    name: getattr(lr_scheduler, name)
    for name in (
        *("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR"),
        "CosineAnnealingWarmRestarts",
    )
}
RECORDED = "recorded"
SWITCHES = ("foreach", "fused", "maximize", "capturable", "differentiable")


class RecordedLR(lr_scheduler.LRScheduler):
    """The rates that the task's own schedule gave, one row of groups for each of its steps. They are no part of its state."""

    def __init__(self, optimizer: Optimizer, rows: list[list[float]]) -> None:
        self._rows = rows
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return list(self._rows[min(self.last_epoch, len(self._rows) - 1)])

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "_rows"}


def optimizer_of(update: Update, named: Mapping[str, Tensor]) -> Optimizer:
    """The optimizer that a program names, over its parameters. Raises FormatError."""
    kind = OPTIMIZERS.get(update.name)
    if kind is None:
        raise FormatError(f"{FILE}: the optimizer {update.name[:40]!r} is not in the list")
    groups = []
    for group in update.groups:
        if not set(group.params) <= set(named) or not group.params:
            raise FormatError(f"{FILE}: the optimizer steps a parameter that is not there")
        groups.append({"params": [named[name] for name in group.params], **options_of(group.options)})
    try:
        made = kind(groups)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise FormatError(f"{FILE}: {update.name} cannot be made: {' '.join(str(error).split())[:200]}") from None
    known = set(made.defaults) | {"decoupled_weight_decay"}
    if any(set(group.options) - known for group in update.groups):
        raise FormatError(f"{FILE}: {update.name} does not have all of its settings")
    return made


def schedule_of(schedule: Schedule, optimizer: Optimizer) -> Any:
    """The scheduler that a program names. Raises FormatError."""
    try:
        if schedule.name == RECORDED:
            rows = [[plain(rate) for rate in row] for row in schedule.rates]
            groups = len(optimizer.param_groups)
            if (
                not rows
                or sum(map(len, rows)) > limits.MAX_RATES
                or not all(
                    len(row) == groups and all(type(r) is float and math.isfinite(r) for r in row) for row in rows
                )
            ):
                raise FormatError(f"{FILE}: recorded rates are one finite number for each group and step")
            return RecordedLR(optimizer, rows)
        kind = SCHEDULES.get(schedule.name)
        if kind is None:
            raise FormatError(f"{FILE}: the scheduler {schedule.name[:40]!r} is not in the list")
        options = {name: plain(node) for name, node in schedule.options.items()}
        if set(options) != set(arguments_of(kind)):
            raise FormatError(f"{FILE}: the arguments of {schedule.name} are not those that it takes")
        return kind(optimizer, **options)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise FormatError(f"{FILE}: {schedule.name} cannot be made: {' '.join(str(error).split())[:200]}") from None


def arguments_of(kind: Any) -> list[str]:
    """What a scheduler in the list is made with; it keeps each under the same name."""
    return [
        name
        for name in inspect.signature(kind.__init__).parameters
        if name not in ("self", "optimizer", "last_epoch", "verbose")
    ]


def options_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a group of parameters: numbers, switches, pairs."""
    found = {name: plain(node) for name, node in options.items()}
    for name, value in found.items():
        flat = value if isinstance(value, list) else [value]
        if not all(v is None or isinstance(v, (bool, int, float)) for v in flat):
            raise FormatError(f"{FILE}: the setting {name[:40]!r} of the optimizer is no number")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
