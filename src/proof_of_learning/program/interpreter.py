"""Running a sealed program: one ATen operation after the other, with PyTorch's own autograd behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.program.document import FILE, REFERENCE, Graph, Operation, plain
from proof_of_learning.program.operations import PLACES, overload

Shown = Callable[[str, list[Tensor]], None]


class _Value(NamedTuple):
    """Where a value stands: its place in the list of all, and which of several that an operation gave."""

    place: int
    item: int | None


class Runner:
    """A graph with its operations looked up.

    The values are one list: parameters, buffers, constants, inputs, then what each operation gives. ``look``: is shown each of these.
    """

    def __init__(
        self,
        graph: Graph,
        constants: Sequence[Tensor],
        device: str = "cpu",
        look: Callable[[Operation, Any], None] | None = None,
    ) -> None:
        self.graph, self.constants, self.device, self._look = graph, list(constants), device, look
        self._versions = [constant._version for constant in self.constants]
        self._calls: list[tuple[Any, list[Any], dict[str, Any]]] | None = None
        self._sizes = (-1, -1)

    def __call__(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        inputs: Sequence[Tensor],
        shown: Shown | None = None,
    ) -> dict[str, Tensor]:
        """The graph's outputs by name. ``shown``: is given what the model's modules put out, as soon as it is there."""
        if self._calls is None or self._sizes != (len(parameters), len(buffers)):
            self._resolve(len(parameters), len(buffers))
        assert self._calls is not None
        values: list[Any] = [*parameters, *buffers, *self.constants, *inputs]
        for number, (function, args, kwargs) in enumerate(self._calls):
            made = function(
                *[_filled(arg, values) for arg in args], **{k: _filled(v, values) for k, v in kwargs.items()}
            )
            if self._look is not None:
                self._look(self.graph.operations[number], made)
            values.append(made)
            if shown is not None:
                for path, outputs in self._shown.get(number, ()):
                    shown(path, [_filled(output, values) for output in outputs])
            for place in self._last.get(number, ()):
                values[place] = None  # nothing needs it any more, but perhaps the backward pass
        if [constant._version for constant in self.constants] != self._versions:
            raise FormatError(f"{FILE}: an operation writes into a constant")
        return {name: _filled(output, values) for name, output in self._outputs.items()}

    def _resolve(self, parameters: int, buffers: int) -> None:
        """Look up operations, and where their arguments stand."""
        self._sizes = (parameters, buffers)
        starts = {"p": 0, "b": parameters, "c": parameters + buffers}
        starts["i"] = starts["c"] + len(self.constants)
        first = starts["i"] + len(self.graph.inputs)

        def value(node: Any) -> Any:
            if isinstance(node, list):
                return [value(item) for item in node]
            if not isinstance(node, str):
                return plain(node)
            found = REFERENCE.fullmatch(node)
            assert found is not None  # checked
            kind, number, own, item = found.groups()
            if own is None:
                return _Value(starts[kind] + int(number), None)
            return _Value(first + int(own), None if item is None else int(item))

        calls, used = [], dict[int, int]()
        for number, operation in enumerate(self.graph.operations):
            args, kwargs = [value(arg) for arg in operation.args], {k: value(v) for k, v in operation.kwargs.items()}
            function = overload(operation.name)
            schema = function._schema.arguments
            if any(entry.name == "device" for entry in schema) and not (schema and "Tensor" in str(schema[0].type)):
                kwargs["device"] = self.device
            calls.append((_ZEROED.get(operation.name, function), args, kwargs))
            used |= dict.fromkeys(_places([*args, *kwargs.values()]), number)
        self._outputs = {name: value(text) for name, text in self.graph.outputs.items()}
        self._shown: dict[int, list[tuple[str, list[Any]]]] = {}
        for path, texts in self.graph.modules:
            outputs = [value(text) for text in texts]
            when = max([place - first for place in _places(outputs)], default=0)
            self._shown.setdefault(max(when, 0), []).append((path, outputs))
            used |= {place: max(used.get(place, 0), when) for place in _places(outputs)}
        kept = set(_places(list(self._outputs.values())))
        self._last: dict[int, list[int]] = {}
        for place, number in used.items():
            if place >= first and place not in kept:
                self._last.setdefault(number, []).append(place)
        self._calls = calls


def _filled(node: Any, values: Sequence[Any]) -> Any:
    """An argument with values for references."""
    kind = type(node)
    if kind is _Value:
        value = values[node.place]
        if node.item is None:
            return value
        if not isinstance(value, (list, tuple)):
            raise FormatError(f"{FILE}: one of several values is asked for where there is one")
        return value[node.item]
    return [_filled(item, values) for item in node] if kind is list else node


def _places(nodes: Sequence[Any]) -> list[int]:
    found: list[int] = []
    for node in nodes:
        if isinstance(node, _Value):
            found.append(node.place)
        elif isinstance(node, list):
            found += _places(node)
    return found


def _empty(*args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros(*args, **{name: item for name, item in kwargs.items() if name != "memory_format"})


def _empty_like(first: Tensor, **kwargs: Any) -> Tensor:
    return torch.zeros_like(first, **{name: item for name, item in kwargs.items() if name not in PLACES})


def _new_empty(first: Tensor, size: Sequence[int], **kwargs: Any) -> Tensor:
    return first.new_zeros(size, **{name: item for name, item in kwargs.items() if name not in PLACES})


# What is in memory by chance is none of a program's business.
_ZEROED = {"empty.memory_format": _empty, "empty_like.default": _empty_like, "new_empty.default": _new_empty}
