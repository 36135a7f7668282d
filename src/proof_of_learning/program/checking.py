"""What a program has to be before anything runs: bounded, in order, of known operations, writing into nothing but its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proof_of_learning import canonical, limits
from proof_of_learning.canonical import brief
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.portable.fitting import FITTING
from proof_of_learning.program.document import FILE, REFERENCE, SCHEMA, Graph, Operation, Program, plain, tensor_of
from proof_of_learning.program.interpreter import Runner
from proof_of_learning.program.operations import OPERATIONS, PLACES, VIEWS, overload, written
from proof_of_learning.state.state import DTYPES

PARAMETER, BUFFER, CONSTANT, INPUT, OWN = "p", "b", "c", "i", "%"
_WRITABLE = {BUFFER, OWN}


def need(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(f"{FILE}: {message}")


def parse(raw: bytes) -> Program:
    """Read and check a program; nothing of it runs. Raises FormatError, one line."""
    need(len(raw) <= limits.MAX_PROGRAM, f"has {len(raw):,} bytes; at most {limits.MAX_PROGRAM:,} are accepted")
    program = canonical.decode(raw, Program, FILE)
    check(program)
    return program


def check(program: Program) -> None:
    """Whether a program says what one can. Raises FormatError, with one line."""
    need(program.schema == SCHEMA, f"has schema {brief(program.schema)!r}; this version reads {SCHEMA!r}")
    need(0 < len(program.name) <= limits.MAX_NAME and program.name.isprintable(), "its task has no name")
    need(
        1 <= len(program.steps) <= limits.MAX_GRAPHS,
        f"has {len(program.steps)} graphs; 1 to {limits.MAX_GRAPHS} are accepted",
    )
    counted = {"parameters": program.parameters, "buffers": program.buffers, "constants": program.constants}
    for what, members in counted.items():
        need(
            len(members) <= limits.MAX_HELD,  # type: ignore[arg-type]
            f"has {len(members):,} {what}; at most {limits.MAX_HELD:,} are accepted",  # type: ignore[arg-type]
        )
    names = [name for held in (*program.parameters, *program.buffers) for name in (held.name, *held.other)]
    need(len(set(names)) == len(names), "two tensors have one name")
    for name in names:
        parts = name.split(".")
        fits = len(name) <= limits.MAX_NAME and len(parts) <= limits.MAX_DEPTH and name.isprintable()
        need(
            fits and all(part and not hasattr(torch.nn.Module, part) for part in parts),
            f"{brief(name)!r} cannot be a tensor's name",
        )
    taken = set(names)
    for name in names:
        prefixes = (name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
        need(not any(prefix in taken for prefix in prefixes), f"{brief(name)!r} lies within another tensor")
    for held in (*program.parameters, *program.buffers):
        check_shape(held.dtype, held.shape)
    for constant in program.constants:
        check_shape(constant.dtype, constant.shape)
        tensor_of(constant)
    counts = {PARAMETER: 0, BUFFER: 0, CONSTANT: len(program.constants)}
    need(not program.initial.inputs and not program.initial.modules, "what draws the first weights takes no input")
    _check_graph(program.initial, counts)
    wanted = {held.name for held in (*program.parameters, *program.buffers)}
    need(set(program.initial.outputs) == wanted, "what draws the first weights does not give each tensor of the model")
    counts |= {PARAMETER: len(program.parameters), BUFFER: len(program.buffers)}
    for graph in program.steps:
        need(bool(graph.inputs), "a graph takes no input")
        need({"loss"} <= set(graph.outputs) <= {"loss", "head"}, "a graph gives other outputs than loss and head")
        _check_graph(graph, counts)
    shapes = [graph.inputs for graph in program.steps]
    need(all(shapes.index(shape) == place for place, shape in enumerate(shapes)), "two graphs are for the same batch")


def check_shape(dtype: str, shape: Sequence[int]) -> None:
    need(dtype in DTYPES, f"the type {brief(dtype)!r} is not known")
    sound = len(shape) <= limits.MAX_DIMENSIONS and all(0 <= size <= limits.MAX_ELEMENTS for size in shape)
    need(sound and math.prod(shape) <= limits.MAX_ELEMENTS, f"a tensor of shape {brief(shape)} is too large")


def _check_graph(graph: Graph, counts: dict[str, int]) -> None:
    need(
        len(graph.operations) <= limits.MAX_OPERATIONS,
        f"a graph has {len(graph.operations):,} operations; at most {limits.MAX_OPERATIONS:,} are accepted",
    )
    for dtype, shape in graph.inputs:
        check_shape(dtype, shape)
    need(
        len(graph.inputs) <= limits.MAX_LIST and len(graph.modules) <= limits.MAX_HELD,
        "a graph has too many inputs or outputs",
    )
    counts = {**counts, INPUT: len(graph.inputs)}
    roots: list[set[str]] = []  # of what each operation gives: whose memory it may share

    def root(text: Any, so_far: int) -> set[str]:
        found = REFERENCE.fullmatch(text) if isinstance(text, str) else None
        need(found is not None, f"{brief(text)!r} is no value")
        assert found is not None
        kind, number, own, _ = found.groups()
        if own is None:
            need(int(number) < counts[kind], f"the value {text} is not there")
            return {kind}
        need(int(own) < so_far, f"the value {text} is used before it is made")
        return roots[int(own)]

    for place, operation in enumerate(graph.operations):
        _check_call(operation)
        shared = {OWN}
        for argument, node in _arguments(operation):
            given = set[str]()
            for text in _references(node, 0):
                given |= root(text, place)
            if argument in written(operation.name):
                need(
                    given <= _WRITABLE,
                    f"operation {place} ({operation.name}) writes into a parameter, an input or a constant",
                )
            if operation.name in VIEWS or argument in written(operation.name):
                shared |= given
        roots.append(shared)
    for text in (*graph.outputs.values(), *(text for _, values in graph.modules for text in values)):
        root(text, len(graph.operations))
    for path, _ in graph.modules:
        need(len(path) <= limits.MAX_NAME and path.isprintable(), "a module has no name")


def _check_call(operation: Operation) -> None:
    need(operation.name in OPERATIONS, f"the operation {brief(operation.name)!r} is not in the list")
    function = overload(operation.name)
    need(function is not None, f"this release of PyTorch has no {operation.name}")
    schema = function._schema.arguments
    by_position = [entry for entry in schema if not entry.kwarg_only]
    known = {entry.name for entry in schema} - set(PLACES)
    given = {entry.name for entry in by_position[: len(operation.args)]} | set(operation.kwargs)
    missing = [
        entry.name
        for entry in schema
        if not entry.has_default_value() and entry.name not in given and entry.name not in PLACES
    ]
    fits = len(operation.args) <= len(by_position) and set(operation.kwargs) <= known
    twice = {entry.name for entry in by_position[: len(operation.args)]} & set(operation.kwargs)
    need(
        fits and not missing and not twice and given <= known,
        f"the arguments of {operation.name} are not those that it takes",
    )
    # PyTorch makes room for as many pieces as are asked for, whatever there is to divide.
    told = dict(zip((entry.name for entry in by_position), operation.args, strict=False)) | operation.kwargs
    pieces = [plain(told[name]) for name in ("sections", "chunks") if isinstance(told.get(name), dict)]
    need(all(number <= limits.MAX_LIST for number in pieces), f"{operation.name} makes too many pieces")


def _arguments(operation: Operation) -> Iterator[tuple[int, Any]]:
    """Arguments by their position in the schema."""
    places = {entry.name: place for place, entry in enumerate(overload(operation.name)._schema.arguments)}
    yield from enumerate(operation.args)
    yield from ((places[name], node) for name, node in operation.kwargs.items())


def _references(node: Any, depth: int) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        need(depth < 4 and len(node) <= limits.MAX_LIST, "an argument is too long")
        for item in node:
            yield from _references(item, depth + 1)
    else:
        plain(node)


# ---- a run without memory ----------------------------------------------------------------------------


def rehearse(
    program: Program, look: Callable[[Graph, Operation, Any], None] = lambda graph, operation, made: None
) -> None:
    """Run every graph on tensors without memory, so that what cannot run, or takes too much, is known. Raises FormatError.

    look: is shown what each operation of each graph gives.
    """
    constants = [tensor_of(constant).to("meta") for constant in program.constants]
    counted = _Counted()
    drawn = _run(program.initial, constants, [], [], look, "what draws the first weights", counted)
    for held in (*program.parameters, *program.buffers):
        found = drawn[held.name]
        need(
            list(found.shape) == held.shape and found.dtype == DTYPES[held.dtype],
            f"{brief(held.name)!r} is drawn in another shape or type than it has",
        )
    for graph in program.steps:
        parameters = [empty(held.dtype, held.shape).requires_grad_(held.trained) for held in program.parameters]
        buffers = [empty(held.dtype, held.shape) for held in program.buffers]
        what = f"the graph for a batch of {brief(graph.inputs)}"
        outputs = _run(graph, constants, parameters, buffers, look, what, counted)
        loss = outputs["loss"]
        need(loss.numel() == 1 and loss.is_floating_point(), f"{what}: its loss is not one number")


def empty(dtype: str, shape: Sequence[int]) -> Tensor:
    return torch.empty(list(shape), dtype=DTYPES[dtype], device="meta")


def _run(
    graph: Graph,
    constants: list[Tensor],
    parameters: list[Tensor],
    buffers: list[Tensor],
    look: Callable[[Graph, Operation, Any], None],
    what: str,
    counted: _Counted,
) -> dict[str, Tensor]:
    meter = _Meter()
    counted.begin()

    def seen(operation: Operation, made: Any) -> None:
        meter.value(operation, made)
        look(graph, operation, made)

    try:
        runner = Runner(graph, constants, "meta", seen)
        with counted:
            outputs = runner(parameters, buffers, [empty(*given) for given in graph.inputs])
    except FormatError:
        raise
    except Exception as error:  # PyTorch refuses in many ways
        raise FormatError(f"{FILE}: {what} cannot run: {brief(f'{type(error).__name__}: {error}')}") from None
    need(all(isinstance(value, Tensor) for value in outputs.values()), f"{what}: an output is no tensor")
    return outputs


class _Counted(TorchDispatchMode):
    """Ends a graph, or a program, that takes too many kernels: a recurrent layer takes some for each step of its input. A tensor that
    falls into pieces counts once for each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken = self.all = 0

    def begin(self) -> None:
        """The next graph."""
        self.taken = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = _pieces(func, args, kwargs or {})
        self.taken, self.all = self.taken + count, self.all + count
        fitting = FITTING.get(str(func).partition(".")[2])
        if fitting is not None:  # PyTorch lets tensors without memory pass that its implementations refuse
            fitting(*args, **(kwargs or {}))
        need(self.taken <= limits.MAX_KERNELS, f"a graph takes more than {limits.MAX_KERNELS:,} kernels")
        need(self.all <= limits.MAX_ALL_KERNELS, f"its graphs take more than {limits.MAX_ALL_KERNELS:,} kernels")
        return func(*args, **(kwargs or {}))


def _pieces(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """How many tensors a kernel gives, before it is called: each is an object, however small."""
    schema = func._schema
    if len(schema.returns) != 1 or str(schema.returns[0].type) != "List[Tensor]":
        return 1
    given = dict(zip((entry.name for entry in schema.arguments), args, strict=False)) | kwargs
    whole = given.get("self", args[0] if args else None)
    if not isinstance(whole, Tensor) or not whole.ndim:
        return 1
    length = whole.shape[given.get("dim", 0)]
    size, chunks = given.get("split_size"), given.get("chunks")
    if isinstance(size, int):
        return max(1, -(-length // max(1, size)))
    return max(1, length if not isinstance(chunks, int) else min(length, chunks))


class _Meter:
    """Adds up what the values of a graph would take."""

    def __init__(self) -> None:
        self.bytes = 0

    def value(self, operation: Operation, made: Any) -> None:
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            need(isinstance(tensor, Tensor), f"{operation.name} gives no tensor")
            self.bytes += tensor.nbytes
            need(
                tensor.numel() <= limits.MAX_ELEMENTS and self.bytes <= limits.MAX_VALUES,
                f"{operation.name} gives a tensor of shape {brief(list(tensor.shape))}, which is too large",
            )
