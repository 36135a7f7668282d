"""The program that draws the first weights: the operations that a model's factory calls, below autograd, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from proof_of_learning.errors import TaskError
from proof_of_learning.program.document import Constant, Graph, Operation, argument, constant_of
from proof_of_learning.program.operations import OPERATIONS, PLACES

ADVICE = "see `What can be sealed` in docs/guide/sealed.md; without --seal-program the task can be proved as it is"
# What only gives a tensor another Python object.
_SAME = {
    "detach.default",
    "alias.default",
    "lift_fresh.default",
    "lift.default",
    "detach_.default",
    "requires_grad_.default",
}


class Constants:
    """The constants of a program, each kept once."""

    def __init__(self) -> None:
        self.all: list[Constant] = []
        self._places: dict[tuple[str, str, str], int] = {}

    def reference(self, tensor: Tensor) -> str:
        constant = constant_of(tensor)
        key = (constant.dtype, str(constant.shape), constant.data)
        if key not in self._places:
            self._places[key] = len(self.all)
            self.all.append(constant)
        return f"c{self._places[key]}"


class Recorder(TorchDispatchMode):
    """Writes down what is called while it is on. A tensor is known by the memory that it looks at, and how."""

    def __init__(self, constants: Constants) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._constants = constants
        self.operations: list[Operation] = []
        self._known: dict[Any, str] = {}
        self._alive: list[Any] = []  # so that no memory is given out twice

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func).removeprefix("aten.")
        if name in _SAME or str(func).startswith(("profiler.", "prim.device")):
            return func(*args, **kwargs)
        if name not in OPERATIONS:
            raise TaskError(
                f"the model's factory calls {func}, which has no place in a sealed program{place()}; {ADVICE}"
            )
        if kwargs.get("generator") is not None:
            raise TaskError(f"the model's factory draws from a generator of its own ({func}){place()}; {ADVICE}")
        if name == "copy_.default" and not self._has(args[1]):
            self._keep(args[1])
        given = [self._argument(arg) for arg in args]
        named = {key: self._argument(value) for key, value in kwargs.items() if key not in PLACES and value is not None}
        made = func(*args, **kwargs)
        number = len(self.operations)
        self.operations.append(Operation(name, given, named))
        if isinstance(made, Tensor):
            self._note(made, f"%{number}")
        elif isinstance(made, (list, tuple)):
            for item, tensor in enumerate(made):
                self._note(tensor, f"%{number}.{item}")
        return made

    def reference(self, tensor: Tensor) -> str:
        """What a tensor is called; one that comes from elsewhere becomes a constant."""
        if not self._has(tensor):
            self._keep(tensor)
        return self._known[_key(tensor)]

    def _has(self, tensor: Tensor) -> bool:
        return _key(tensor) in self._known

    def _note(self, tensor: Tensor, name: str) -> None:
        self._known[_key(tensor)] = name
        self._alive.append(tensor)

    def _keep(self, tensor: Tensor) -> None:
        """Take what is in a tensor as it is now. It is copied, for the factory may go on to write into it."""
        self.operations.append(Operation("clone.default", [self._constants.reference(tensor)], {}))
        self._note(tensor, f"%{len(self.operations) - 1}")

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.reference(value)
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        return argument(value)


def _key(tensor: Tensor) -> Any:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def record(build: Any, constants: Constants) -> tuple[nn.Module, Graph]:
    """Build a model, and the graph that gives its parameters and buffers by name."""
    with Recorder(constants) as recorder:
        model: nn.Module = build()
    with torch.no_grad():
        named = [*model.named_parameters(), *model.named_buffers()]
        outputs = {name: recorder.reference(tensor) for name, tensor in named}
    return model, Graph([], recorder.operations, outputs)


def place(error: BaseException | None = None) -> str:
    """The line of the task's own code that is at work, or where an error came from it."""
    import os
    import traceback

    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    library = os.path.dirname(os.path.abspath(torch.__file__))
    frames = traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        name = os.path.abspath(frame.filename)
        if not (name.startswith((here, library)) or frame.filename.startswith("<") or "contextlib" in name):
            return f" ({os.path.basename(frame.filename)}:{frame.lineno}" + (f": {frame.line})" if frame.line else ")")
    return ""
