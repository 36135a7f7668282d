"""A round of training as a task's step: its slices one after another, aggregated. Workers compute slices by the same functions.

``collective(task, Rounds(...))`` is what everybody loads: the coordinator, who has the slices computed by others; its workers; and
whoever verifies the proof, for whom it is a task like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from proof_of_learning import canonical
from proof_of_learning.data.commit import commit
from proof_of_learning.distributed.aggregation import Vector, aggregate, check
from proof_of_learning.errors import TaskError, UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.portable import NATIVE, using
from proof_of_learning.task import Task, task_code
from proof_of_learning.training.batches import Indices
from proof_of_learning.training.steps import Session, derived_feed

if TYPE_CHECKING:
    from proof_of_learning.training.context import StepContext

Loss = Callable[[nn.Module, Any], Tensor]
Local = Callable[[list[nn.Parameter]], Any]


@dataclass(frozen=True)
class Rounds:
    """How a round is shared out.

    slots: slices in a round; each has ``batch_size`` samples of the task for each of its steps.
    local_steps: 0 for synchronous SGD, where an update is the gradient of a slice; H for local SGD and DiLoCo, where it is how far H
        steps of ``local_optimizer`` went (start minus end), which the task's own optimizer then takes for a gradient.
    local_optimizer: from parameters to an optimizer, which begins afresh in every round.
    aggregation: one of :data:`aggregation.RULES`. clip: the largest norm that an update counts with; none for no limit.
    dishonest: how many of a round's updates Krum and the trimmed mean assume to be false.
    """

    slots: int
    local_steps: int = 0
    local_optimizer: Local | None = None
    aggregation: str = "mean"
    clip: float | None = None
    dishonest: int = 0

    @property
    def batches(self) -> int:
        """Batches in a slice."""
        return max(1, self.local_steps)


@dataclass(frozen=True)
class Slice:
    """What comes of a slice. ``steps``: digests of the weights after each local step."""

    update: Vector
    loss: float
    steps: tuple[str, ...] = ()


def collective(task: Task, rounds: Rounds) -> Task:
    """``task`` (with a ``loss``), trained in rounds: a step of it is a round. ``steps`` and ``epochs`` count rounds.

    Raises TaskError for what cannot be shared out.
    """

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise TaskError(f"task {task.name!r} cannot be trained in rounds: {what}")

    loss = task.loss
    if loss is None:
        raise TaskError(f"task {task.name!r} cannot be trained in rounds: it has a custom step; give it a loss")
    need(task.accumulate == 1, "it accumulates batches; let the slots of a round take their place")
    need(task.scaler is None, "it has a gradient scaler")
    need(
        rounds.slots >= 1 and rounds.local_steps >= 0,
        "a round has at least one slot, and no negative number of local steps",
    )
    need(
        (rounds.local_steps > 0) == (rounds.local_optimizer is not None),
        "local steps and a local optimizer go together",
    )
    need(rounds.clip is None or rounds.clip > 0, "the norm to clip at must be above 0")
    try:
        check(rounds.aggregation, rounds.slots, rounds.dishonest)
    except UsageError as error:
        raise TaskError(str(error)) from None
    options = {field.name: getattr(rounds, field.name) for field in dataclasses.fields(rounds)}
    step = functools.partial(round_step, loss=loss, **options)
    return dataclasses.replace(task, loss=None, step=step, accumulate=rounds.slots * rounds.batches, drop_last=True)


def rounds_of(task: Task) -> tuple[Rounds, Loss]:
    """How a collective task is shared out, and the loss of its slices. Raises TaskError for other tasks."""
    step = task.step
    if not isinstance(step, functools.partial) or step.func is not round_step:
        raise TaskError(
            f"task {task.name!r} is not trained in rounds; make it so with distributed.collective(task, Rounds(...))"
        )
    options = dict(step.keywords)
    return Rounds(**{k: v for k, v in options.items() if k != "loss"}), options["loss"]


def round_step(context: StepContext, batches: list[Any], *, loss: Loss, **options: Any) -> Tensor:
    """A round, all of whose slices are computed here."""
    rounds = Rounds(**options)
    seed, parameters = torch.initial_seed(), trained(context.model)
    found = [
        compute_slice(
            context.model, parameters, batches[slot * rounds.batches : (slot + 1) * rounds.batches], rounds, loss,
            slice_seed(seed, slot),
        )
        for slot in range(rounds.slots)
    ]  # fmt: skip
    return conclude(context, parameters, rounds, found)


def conclude(
    context: StepContext, parameters: Sequence[nn.Parameter], rounds: Rounds, found: Sequence[Slice]
) -> Tensor:
    """Aggregate the slices of a round, and let the task's optimizer take the step. Returns the round's loss."""
    updates = [item.update for item in found]
    whole = aggregate(rounds.aggregation, updates, clip=rounds.clip, dishonest=rounds.dishonest)
    place = 0
    for parameter in parameters:
        part = torch.from_numpy(whole[place : place + parameter.numel()]).reshape(parameter.shape)
        parameter.grad = part.clone()
        place += parameter.numel()
    context.update()
    context.clear_idle()
    mean = sum(float(item.loss) for item in found) / len(found)
    return torch.tensor(mean, dtype=torch.float32)


def compute_slice(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Any], rounds: Rounds, loss_of: Loss, seed: int
) -> Slice:  # fmt: skip
    """One slice from the weights that the model has, which it has again afterwards."""
    randomness.seed_everything(seed)
    buffers = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
    start = flat(parameters)
    local = None if rounds.local_optimizer is None else rounds.local_optimizer(list(parameters))
    for parameter in model.parameters():
        parameter.grad = None
    losses, steps = [], []
    for batch in batches:
        value = loss_of(model, batch)
        torch.autograd.backward(value)
        losses.append(float(value.detach()))
        if local is not None:
            local.step()
            local.zero_grad(set_to_none=True)
            steps.append(weights_digest(flat(parameters)))
    if local is None:
        update = flat([p if p.grad is None else p.grad for p in parameters], [p.grad is None for p in parameters])
    else:
        update = start - flat(parameters)
        load(parameters, start)
    for parameter in model.parameters():
        parameter.grad = None
    changed = [
        name for (name, before), now in zip(buffers, model.buffers(), strict=True) if not bytes_equal(before, now)
    ]
    if changed:
        raise TaskError(
            f"a slice changes the buffer {changed[0]!r}, which every worker would have another value of; use layers that keep no "
            "statistics (GroupNorm or LayerNorm in place of BatchNorm)"
        )
    return Slice(update, float(np.float32(sum(losses) / len(losses))), tuple(steps))


def bytes_equal(one: Tensor, other: Tensor) -> bool:
    return bool(
        one.detach().cpu().contiguous().numpy().tobytes() == other.detach().cpu().contiguous().numpy().tobytes()
    )


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that updates are about, in their order. Raises TaskError for other numbers than float32."""
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in found:
        if parameter.dtype is not torch.float32:
            raise TaskError(
                f"parameter {name!r} is of type {parameter.dtype}; rounds are for float32 (updates are rows of that)"
            )
    if not found:
        raise TaskError("the model has no parameter that is trained")
    return [parameter for _, parameter in found]


def flat(tensors: Sequence[Tensor], zero: Sequence[bool] | None = None) -> Vector:
    """Tensors as one row; those marked ``zero`` as zeros."""
    rows = [t.detach().cpu().contiguous().numpy().reshape(-1) for t in tensors]
    return np.concatenate([np.zeros_like(r) if zero is not None and zero[i] else r for i, r in enumerate(rows)])


def load(parameters: Sequence[nn.Parameter], row: Vector) -> None:
    """Write a row into parameters."""
    place = 0
    with torch.no_grad():
        for parameter in parameters:
            part = torch.from_numpy(row[place : place + parameter.numel()].copy()).reshape(parameter.shape)
            parameter.copy_(part)
            place += parameter.numel()


def slice_seed(seed: int, slot: int) -> int:
    """The seed of a slice's generators, from that of the round."""
    raw = b"pol/v1/slice\0" + (seed % 2**64).to_bytes(8, "little") + slot.to_bytes(8, "little")
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")


def weights_digest(row: Vector) -> str:
    return canonical.sha256(b"pol/v1/weights\0", row.astype("<f4", copy=False).tobytes())


def samples_digest(indices: Indices) -> str:
    return canonical.sha256(b"pol/v1/samples\0", np.ascontiguousarray(indices, dtype="<i8").tobytes())


class Slices:
    """Computes slices of a run: what a worker, the coordinator's replays and whoever checks a fraud proof have in common."""

    def __init__(self, task: Task, key: bytes, arithmetic: str = NATIVE) -> None:
        self.task, self.rounds_and_loss = task, rounds_of(task)
        self.rounds, self.loss = self.rounds_and_loss
        self.session = Session(task, key, "cpu", None, arithmetic)
        with using(arithmetic), task_code("loading the data"):
            self.data = task.data()
        self.feed, self.order = derived_feed(task, self.data, key, "cpu")
        self.parameters = trained(self.session.model)
        self.size = sum(p.numel() for p in self.parameters)

    @functools.cached_property
    def identity(self) -> tuple[str, str | None, str]:
        """Digests of the task's description and sources, and the data's root."""
        described = self.session.describe()
        return described.digest(), described.sources_digest(), commit(self.data).root

    def samples(self, step: int, slot: int) -> Indices:
        """Which samples a slice has, in order."""
        per_slice = self.task.batch_size * self.rounds.batches
        return self.order.indices(step)[slot * per_slice : (slot + 1) * per_slice]

    def batches(self, step: int, slot: int) -> list[Any]:
        first = slot * self.rounds.batches
        return self.feed.batches(step, self.order.indices(step), range(first, first + self.rounds.batches))

    def compute(
        self, step: int, slot: int, start: Vector, *, batches: Sequence[Any] | None = None, rounds: Rounds | None = None
    ) -> Slice:
        """The slice, from the weights ``start``. ``batches`` and ``rounds``: others than the run's, for workers who cheat."""
        session = self.session
        seed = slice_seed(randomness.derive(session.key, randomness.STEP, step), slot)
        with using(session.arithmetic), task_code(f"computing slice {slot} of round {step}"):
            load(self.parameters, start)
            own = self.batches(step, slot) if batches is None else batches
            return compute_slice(session.model, self.parameters, own, rounds or self.rounds, self.loss, seed)


__all__ = ["Rounds", "Slice", "Slices", "collective", "rounds_of"]
