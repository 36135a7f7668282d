"""A task made of a sealed program: what every other part of the package sees of it is a :class:`Task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from proof_of_learning.canonical import brief
from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.program.checking import rehearse
from proof_of_learning.program.document import FILE, Program, plain, tensor_of
from proof_of_learning.program.interpreter import Runner
from proof_of_learning.program.schedules import optimizer_of, schedule_of
from proof_of_learning.task import Task

SETTINGS = ("batch_size", "accumulate", "steps", "clip_norm", "drop_last", "shuffle", "schedule")


class Place(nn.Module):
    """Where a module of the task's model was: it holds the tensors and passes on what it is shown, so that hooks see it."""

    def forward(self, *values: Tensor) -> Any:
        return values[0] if len(values) == 1 else values


class SealedModel(Place):
    """The model of a sealed program, with the names of the task's own; called with a batch, it gives the loss and an output."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._runners: dict[Any, Runner] = {}
        self._constants = [tensor_of(constant) for constant in program.constants]
        with torch.no_grad():
            drawn = Runner(program.initial, self._constants)([], [], [])
            values = [drawn[held.name].clone() for held in (*program.parameters, *program.buffers)]
        for held, value in zip(program.parameters, values, strict=False):
            parameter = nn.Parameter(value, requires_grad=held.trained)
            for name in (held.name, *held.other):
                self._put(name, parameter)
        for held, value in zip(program.buffers, values[len(program.parameters) :], strict=True):
            for name in (held.name, *held.other):
                self._put(name, value)
        for graph in program.steps:
            for path, _ in graph.modules:
                self._owner(f"{path}.x" if path else "x")
        self._places = dict(self.named_modules())

    def _put(self, name: str, tensor: Tensor) -> None:
        owner, key = self._owner(name)
        try:
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(key, tensor)
            else:
                owner.register_buffer(key, tensor)
        except KeyError as error:
            raise FormatError(f"{FILE}: {brief(name)!r} cannot be a tensor's name: {brief(error)}") from None

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that has a tensor, made where it is not there yet, and the tensor's own name."""
        owner: nn.Module = self
        *path, key = name.split(".")
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                try:
                    owner.add_module(part, child := Place())
                except (KeyError, TypeError) as error:
                    raise FormatError(f"{FILE}: {brief(name)!r} cannot be a tensor's name: {brief(error)}") from None
            owner = child
        return owner, key

    def forward(self, *given: Any) -> Any:
        inputs = leaves(given[0])
        runner = self._runner(inputs)
        parameters = [self.get_parameter(held.name) for held in self._program.parameters]
        buffers = [self.get_buffer(held.name) for held in self._program.buffers]
        outputs = runner(parameters, buffers, inputs, self._shown)
        return outputs.get("head"), outputs["loss"]

    def _shown(self, path: str, values: list[Tensor]) -> None:
        if path:
            self._places[path](*values)

    def _runner(self, inputs: list[Tensor]) -> Runner:
        """The graph for a batch of these shapes; TaskError where none was sealed."""
        key = tuple((tensor.dtype, tensor.shape) for tensor in inputs)
        if key not in self._runners:
            told = [(str(dtype).removeprefix("torch."), list(shape)) for dtype, shape in key]
            graph = next((graph for graph in self._program.steps if graph.inputs == told), None)
            if graph is None:
                raise TaskError(
                    f"the sealed program has no graph for a batch of {brief(told)}; the data are others than it was sealed for"
                )
            device = inputs[0].device
            constants = [constant.to(device) for constant in self._constants]
            self._runners[key] = Runner(graph, constants, str(device))
        return self._runners[key]


def leaves(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in one order: of lists, and of mappings by key. TaskError for anything else."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [leaf for key in sorted(batch) for leaf in leaves(batch[key])]
    if isinstance(batch, (list, tuple)):
        return [leaf for item in batch for leaf in leaves(item)]
    raise TaskError(f"a batch holds a {type(batch).__name__}; a sealed program takes tensors")


def loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a sealed program."""
    found: Tensor = model(batch)[1]
    return found


def task_of(program: Program, data: Callable[[], Dataset]) -> Task:
    """The task that a sealed program is, over the samples that ``data`` gives. Raises FormatError for one that could not run."""
    rehearse(program)
    settings = {name: plain(node) for name, node in program.settings.items()}
    if set(settings) != set(SETTINGS):
        raise FormatError(f"{FILE}: its settings are not {', '.join(SETTINGS)}")
    clip = settings["clip_norm"]
    if not (clip is None or type(clip) is float) or not all(
        type(settings[n]) is bool for n in ("drop_last", "shuffle")
    ):
        raise FormatError(f"{FILE}: a setting is of another type")

    def model() -> nn.Module:
        return SealedModel(program)

    def optimizer(model: nn.Module) -> Any:
        return optimizer_of(program.optimizer, dict(model.named_parameters()))

    def scheduler(made: Any) -> Any:
        assert program.schedule is not None
        return schedule_of(program.schedule, made)

    try:
        return Task(
            name=program.name, model=model, data=data, loss=loss, optimizer=optimizer,
            scheduler=None if program.schedule is None else scheduler, program=msgspec.to_builtins(program), **settings,
        )  # fmt: skip
    except TaskError as error:
        raise FormatError(f"{FILE}: {error}") from None
