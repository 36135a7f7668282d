"""The one way to take steps: the prover trains, a worker replays and an attack forges through :meth:`Session.run`.

A step is one optimizer update with all that belongs to it (schedulers, EMA); it begins with the request for
its first batch, where the generators are seeded from the run's key or, in an observed run, put into their recorded states.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from proof_of_learning.canonical import brief
from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import TaskError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.portable import NATIVE, using
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.state import names
from proof_of_learning.state import parts as kinds
from proof_of_learning.state import state as states
from proof_of_learning.state.modules import BufferSnapshot, lazy_tensor, unshaped
from proof_of_learning.state.optimizers import own_groups, parameters_of, settle_groups
from proof_of_learning.state.parts import Progress
from proof_of_learning.state.schedules import driven_by_metric
from proof_of_learning.state.state import State
from proof_of_learning.task import Description, Task, describe, task_code
from proof_of_learning.training.batches import DerivedOrder, Feed, Order
from proof_of_learning.training.context import StepContext, standard_step

Metric = Literal["", "loss", "custom"]
RESERVED_PARTS = ("model", "optimizer", "scheduler", "scaler", "progress")


@dataclass(frozen=True)
class StepResult:
    """What a step leaves beside the state: its loss (a scalar tensor, not yet synchronised) and the learning rates it used."""

    step: int
    loss: Tensor
    rates: list[float]


class Session:
    """The live objects of one run: model, optimizers, schedulers, scaler and further parts, built from a key."""

    def __init__(
        self, task: Task, key: bytes, device: str = "cpu", base: State | None = None, arithmetic: str = NATIVE
    ) -> None:
        """``base``: the final state of another run, whose weights this one starts from wherever they fit.

        ``arithmetic``: of all that the task computes, ``native`` (PyTorch's own) or ``portable``.
        """
        self.task, self.key, self.device, self.arithmetic = task, key, device, arithmetic
        with using(arithmetic):
            self._build(base)

    def _build(self, base: State | None) -> None:
        task, key, device = self.task, self.key, self.device
        randomness.seed_everything(randomness.derive(key, randomness.INITIALIZATION))
        with task_code("building the model"):
            self.model = task.model().to(device)
            if not isinstance(self.model, nn.Module):
                raise TaskError("the task's model factory must return a torch.nn.Module")
            if lazy_tensor(self.model) is not None:
                self._materialise()
            self.linked = [] if base is None else states.overlay(self.model, base)
            if base is not None and not self.linked:
                raise TaskError("the proof to start from shares no tensor with the task's model")
            self.model.train()
        with task_code("building the optimizer"):
            made = task.optimizer(self.model)
            self.optimizers: dict[str, Any] = dict(made) if isinstance(made, Mapping) else {"optimizer": made}
            for optimizer in self.optimizers.values():
                if not hasattr(optimizer, "param_groups"):
                    raise TaskError(f"the task's optimizer factory returned a {type(optimizer).__name__}")
        with task_code("building the scheduler"):
            schedule = None if task.scheduler is None else task.scheduler(made)
            self.schedulers: dict[str, Any] = (
                {} if schedule is None else dict(schedule) if isinstance(schedule, Mapping) else {"scheduler": schedule}
            )
            self.driven = {name for name, item in self.schedulers.items() if driven_by_metric(name, item)}
        with task_code("building the further parts"):
            self.extra: dict[str, Any] = {} if task.parts is None else dict(task.parts(self.model))
            self.scaler = None if task.scaler is None else task.scaler()
        self.progress = Progress(adding=self.metric == "loss")
        self.parts = self._named_parts()
        trained = {id(p) for optimizer in self.optimizers.values() for p in parameters_of(optimizer)}
        # Their gradients would add up from step to step, which no state holds, until somebody gives them to an optimizer.
        self.idle_parameters = [p for p in self.model.parameters() if id(p) not in trained]
        for optimizer in self.optimizers.values():
            settle_groups(optimizer)

    def _materialise(self) -> None:
        """Show the model the run's first batch, so that lazy layers get their shapes, and values that follow from the key.

        Without gradients, in evaluation mode, and with all buffers as they were. TaskError for what has no shape afterwards.
        """
        data = self.task.data()
        feed, order = derived_feed(self.task, data, self.key, self.device)
        batch = feed.batches(0, order.indices(0))[0]
        randomness.seed_everything(randomness.derive(self.key, randomness.INITIALIZATION, 1))
        why = ""
        try:
            with evaluating(self.model):
                if self.task.loss is not None:
                    self.task.loss(self.model, batch)
                elif isinstance(batch, Mapping):
                    self.model(**batch)
                else:
                    self.model(batch[0] if isinstance(batch, (list, tuple)) else batch)
        except Exception as error:  # also after all have their shapes, as a loss that needs gradients does
            why = f"; with the first batch: {brief(f'{type(error).__name__}: {error}')}"
        lazy = lazy_tensor(self.model)
        if lazy is not None:
            raise TaskError(f"{unshaped(lazy)}{why}")

    def _named_parts(self) -> dict[str, Any]:
        def named(prefix: str, items: dict[str, Any]) -> dict[str, Any]:
            return {(name if name == prefix else f"{prefix}.{name}"): item for name, item in items.items()}

        clash = set(self.extra) & set(RESERVED_PARTS)
        if clash:
            raise TaskError(f"the task names a part {sorted(clash)[0]!r}, which is reserved; call it something else")
        return {
            "model": self.model,
            **named("optimizer", self.optimizers),
            **named("scheduler", self.schedulers),
            **({} if self.scaler is None else {"scaler": self.scaler}),
            **self.extra,
            "progress": self.progress,
        }

    @property
    def metric(self) -> Metric:
        """What drives schedulers that are given a metric: the mean of an epoch's losses, or the task's custom step."""
        return "" if not self.driven else "loss" if self.task.step is None else "custom"

    def describe(self) -> Description:
        """The task's description; call it on a fresh session, before any step."""
        extra = {**self.extra, **({} if self.scaler is None else {"scaler": self.scaler})}
        return describe(self.task, self.model, self.optimizers, self.schedulers, extra)

    def capture(self, *, live: bool = False) -> State:
        """The state as it stands; a ``live`` one shares its tensors with the parts and is good until the next step."""
        with task_code("capturing the state"):
            return states.capture(self.parts, live=live)

    def restore(self, state: State) -> None:
        states.restore(self.parts, state)

    def run(
        self,
        stop: int,
        feed: Feed,
        order: Order,
        *,
        rng: Callable[[int], RngSnapshot] | None = None,
    ) -> Iterator[StepResult]:
        """Take the steps from ``progress.step`` up to ``stop``, yielding after each, when its state is complete.

        ``rng`` gives the recorded generator states of an observed run; without it they are derived from the key.
        """
        while self.progress.step < stop:
            step = self.progress.step
            if rng is None:
                randomness.seed_everything(randomness.derive(self.key, randomness.STEP, step))
            else:
                rng(step).restore()
            with using(self.arithmetic):
                result = self.take(step, feed.batches(step, order.indices(step)), feed_epoch_end(feed, step))
            yield result

    def context(self) -> StepContext:
        """What the step that is next is given."""
        return StepContext(
            step=self.progress.step,
            model=self.model,
            optimizers=self.optimizers,
            schedulers=self.schedulers,
            parts=self.extra,
            scaler=self.scaler,
            clip_norm=self.task.clip_norm,
            idle=self.idle_parameters,
        )

    def take(self, step: int, batches: list[Any], epoch_ends: bool) -> StepResult:
        """One step on the given batches."""
        rates = self.rates()
        with using(self.arithmetic), task_code(f"taking step {step}"):
            if self.task.step is not None:
                loss = self.task.step(self.context(), batches)
            else:
                assert self.task.loss is not None
                loss = standard_step(self.context(), batches, self.task.loss)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise TaskError("a custom step must return its loss as a tensor of one element")
            self.step_schedulers(epoch_ends, self.progress.add(loss, epoch_ends))
        self.progress.step = step + 1
        return StepResult(step, loss.detach().reshape(()), rates)

    def members(self) -> dict[str, str]:
        return members(self.parts)

    def groups(self) -> dict[str, int]:
        return groups(self.parts)

    def rates(self) -> list[float]:
        """The learning rates in force, by optimizer and group."""
        return kinds.rates(self.parts)

    def step_schedulers(self, epoch_ends: bool, metric: float | None = None) -> None:
        """What schedulers do at a step's end. Those that are driven by a metric stay where there is none."""
        for name, scheduler in self.schedulers.items():
            if name in self.driven:
                if epoch_ends and metric is not None:
                    scheduler.step(metric)
            elif self.task.schedule == "step" or epoch_ends:
                scheduler.step()

    def idle(self, stop: int, steps_per_epoch: int, metrics: Sequence[float] = ()) -> Iterator[list[float]]:
        """The schedule alone, up to ``stop``: yields each step's rates. Progress and schedulers move as in a run, parameters stay.

        ``metrics``: of each epoch, what training gave the schedulers that are driven by it.
        """
        while self.progress.step < stop:
            rates = self.rates()
            epoch, place = divmod(self.progress.step, steps_per_epoch)
            with using(self.arithmetic), task_code("stepping the scheduler"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch misses the optimizer's step, which is left out on purpose
                self.step_schedulers(place + 1 == steps_per_epoch, metrics[epoch] if epoch < len(metrics) else None)
            self.progress.step += 1
            yield rates

    def evaluate(self) -> dict[str, float] | None:
        """The task's own evaluation of the model as it stands; None if the task has none. Changes no state."""
        if self.task.evaluate is None:
            return None
        randomness.seed_everything(randomness.derive(self.key, randomness.EVALUATION, self.progress.step))
        with using(self.arithmetic), evaluating(self.model), task_code("evaluating the model"):
            values = self.task.evaluate(self.model)
            if not isinstance(values, Mapping):
                raise TaskError(f"evaluate must return a mapping of names to numbers, not {type(values).__name__}")
            return {str(name): float(value) for name, value in values.items()}


def members(parts: Mapping[str, Any]) -> dict[str, str]:
    """The entries of the optimizers' states (``optimizer/state/0``) with the names of the weights that each belongs to."""
    named = {p: names.weight_name(name) for name, p in parts["model"].named_parameters()}
    found = {}
    for part, optimizer in kinds.optimizers(parts).items():
        for number, weight in enumerate(parameters_of(optimizer)):
            found[names.entry_name(part, number)] = named.get(weight, "")
    return found


def groups(parts: Mapping[str, Any]) -> dict[str, int]:
    """The parts that are optimizers, with the numbers of parameter groups that they were built with, in the order in which rates are
    told."""
    return {part: own_groups(optimizer) for part, optimizer in kinds.optimizers(parts).items()}


def feed_epoch_end(feed: Feed, step: int) -> bool:
    """Whether ``step`` is the last of its epoch."""
    return (step + 1) % feed.task.steps_per_epoch(len(feed.data)) == 0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode, and what its buffers were, is put back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = BufferSnapshot(model)  # some modules count, cache or make a buffer, training or not
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        buffers.put_back()


def derived_feed(task: Task, data: Dataset, key: bytes, device: str) -> tuple[Feed, DerivedOrder]:
    """Feed and order of a run whose randomness follows from ``key``."""
    return Feed(task, data, key, device), DerivedOrder(task, len(data), key)
