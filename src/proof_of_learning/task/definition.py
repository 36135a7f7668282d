"""What is trained and how: a frozen description made of factories, and the reference by which it is found again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from proof_of_learning.errors import TaskError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from proof_of_learning.data.commit import Dataset
    from proof_of_learning.training.context import StepContext

Setting = str | int | float | bool
SEALED = "(the sealed program in the proof)"  # the target of a reference that names no task
DEFAULT_SEGMENTS = 1000  # the default interval aims at this many segments a run


@dataclass(frozen=True)
class TaskReference:
    """Where a task is found: ``target`` is ``path.py:function`` or ``module:function``, or a script (``path.py``).

    ``settings``: the function's arguments. ``arguments``: the script's; None: those that the proof was recorded with.
    """

    target: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    arguments: tuple[str, ...] | None = None

    def absolute(self) -> TaskReference:
        """The same reference, valid from any working directory."""
        if is_script(self.target):
            return dataclasses.replace(self, target=str(Path(self.target).resolve()))
        place, name = place_and_name(self.target)
        if place.endswith(".py"):
            return TaskReference(f"{Path(place).resolve()}:{name}", dict(self.settings))
        return self


def is_script(target: str) -> bool:
    """Whether a reference names a script with a loop of its own, and no function."""
    return target.endswith(".py") and (":" not in target or Path(target).is_file())


def place_and_name(target: str) -> tuple[str, str]:
    """The file or module of a reference, and the function in it. UsageError for anything else."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(f"task {target!r}: expected path.py:function or module:function")
    return place, name


def sealed_program(data: str | Path) -> TaskReference:
    """What names, to ``verify``, the sealed program in the proof, over the samples in the folder ``data`` (``pol export-data``)."""
    return TaskReference(SEALED, {"data": str(Path(data).resolve())})


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained and how.

    model: factory of the network; its random choices follow from the run's key.
    data: factory of a map-style data set (``len`` and ``[index]``), deterministic: randomness belongs in ``augment``.
    optimizer: from the model to an optimizer, or to a dict of named ones.
    loss: ``loss(model, batch) -> Tensor`` for the standard step; or
    step: ``step(context, batches) -> Tensor``, a custom step (see :class:`proof_of_learning.StepContext`).
    scheduler: from what ``optimizer`` returned to a scheduler, or to a dict of named ones, stepped per ``schedule``. One that is
        driven by a metric (``ReduceLROnPlateau``) is given the mean of the training losses at the end of each epoch, whatever
        ``schedule`` says; beside a custom step it is that step's to step (``context.schedulers``).
    parts: further named parts of the state (EMA, queues, …): objects with ``state_dict``/``load_state_dict`` or modules.
    scaler: factory of a gradient scaler.
    batch_size: samples in a batch; a step takes ``accumulate`` batches.
    steps / epochs: the length of the run; exactly one.
    clip_norm: largest gradient norm (l2, all parameters), or None.
    augment: ``augment(sample, generator) -> sample``, random only through the ``torch.Generator`` handed in.
    collate: list of samples to a batch; default ``torch.utils.data.default_collate``.
    evaluate: ``evaluate(model) -> {"name": value}``, called in evaluation mode without gradients.
    seed: decides every random choice of a run without a registered claim (0 <= seed < 2^64).
    program: the document of the sealed program that it was made of (:mod:`proof_of_learning.program`), as plain values.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Dataset]
    optimizer: Callable[[nn.Module], Any]
    batch_size: int
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    step: Callable[[StepContext, list[Any]], Tensor] | None = None
    scheduler: Callable[[Any], Any] | None = None
    schedule: Literal["step", "epoch"] = "step"
    parts: Callable[[nn.Module], Mapping[str, Any]] | None = None
    scaler: Callable[[], Any] | None = None
    steps: int | None = None
    epochs: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    drop_last: bool = False
    shuffle: bool = True
    augment: Callable[[Any, torch.Generator], Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    seed: int = 0
    name: str = "task"
    reference: TaskReference | None = None
    program: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise TaskError(f"task {self.name!r}: {message}")

        need((self.loss is None) != (self.step is None), "give exactly one of loss and step")
        need((self.steps is None) != (self.epochs is None), "give exactly one of steps and epochs")
        for name in ("batch_size", "accumulate", "steps", "epochs"):
            value = getattr(self, name)
            need(
                value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1),
                f"{name} must be a positive integer, not {value!r}",
            )
        need(self.schedule in ("step", "epoch"), f"schedule must be 'step' or 'epoch', not {self.schedule!r}")
        need(isinstance(self.seed, int) and 0 <= self.seed < 2**64, "seed must be an integer from 0 to 2^64 - 1")
        need(self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be above 0, not {self.clip_norm!r}")

    def steps_per_epoch(self, samples: int) -> int:
        """S for a data set of ``samples``; raises TaskError where that is none."""
        per_step = self.batch_size * self.accumulate
        count = samples // per_step if self.drop_last else -(-samples // per_step)
        if count == 0:
            raise TaskError(
                f"task {self.name!r}: {samples} samples make no step of {per_step}; lower batch_size or drop_last"
            )
        return count

    def total_steps(self, samples: int) -> int:
        """T for a data set of ``samples``."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch(samples)


def default_interval(total_steps: int) -> int:
    """k such that a run has about a thousand segments (many short segments make verification cheap)."""
    return max(1, total_steps // DEFAULT_SEGMENTS)
