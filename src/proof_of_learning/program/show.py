"""A sealed program for people: what is computed, in which order and shapes, and where data, numbers and randomness enter."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from proof_of_learning.canonical import brief
from proof_of_learning.program.checking import rehearse
from proof_of_learning.program.document import REFERENCE, Constant, Graph, Held, Operation, Program, plain, tensor_of
from proof_of_learning.program.schedules import RECORDED

SMALL = 8  # numbers of a constant that are shown
USUAL, LAST = 16, 2**63 - 1  # integers that say which axis, and `to the end`
LARGE = 1024  # numbers that a program may carry before a verifier has to approve them
WIDE = 4  # bytes of a number where a program is counted by its length
DRAWING = ("rand", "normal", "uniform", "bernoulli", "dropout", "exponential", "random")


def carried(program: Program) -> int:
    """How many numbers a program brings along: in constants, among arguments of operations, in settings of the optimizer's groups,
    and in recorded rates that are no multiple of the first group's. Or in which operation takes which value, in what order, of which
    shape: then by its length.
    """
    return max(_listed(program), _length(_structure(program)))


def rates(program: Program) -> int:
    """How many numbers lie in recorded rates, by their length. A step whose loss follows a counter takes each of them for a weight."""
    rows = [] if program.schedule is None else program.schedule.rates
    return _length(msgspec.json.encode(rows)) if rows else 0


def _length(raw: bytes) -> int:
    """As how many numbers a text counts, packed: what was written into it cannot be packed away, but what repeats can."""
    return len(lzma.compress(raw, format=lzma.FORMAT_ALONE, preset=1)) // WIDE


def _structure(program: Program) -> bytes:
    """All that decides what is computed beside constants and rates, so told that what repeats, repeats: references count back from
    where they stand, or from the last of their kind. Layers that are alike vanish when it is packed, and numbers do not: one of 64
    values that a list of references picks takes 6 bits, whoever calls it a reference."""
    held = [(item.dtype, item.shape, item.trained, len(item.other)) for item in (*program.parameters, *program.buffers)]
    graphs = [[graph.inputs, list(_counted_back(graph))] for graph in (program.initial, *program.steps)]
    groups = [(len(group.params), group.options) for group in program.optimizer.groups]
    options = None if program.schedule is None else program.schedule.options
    return msgspec.json.encode([held, graphs, groups, options, program.settings], order="sorted")


def _counted_back(graph: Graph) -> Iterator[Any]:
    last: dict[str, int] = {}

    def told(node: Any, place: int) -> Any:
        if isinstance(node, list):
            return [told(item, place) for item in node]
        found = REFERENCE.fullmatch(node) if isinstance(node, str) else None
        if found is None:
            return node
        kind, number, own, item = found.groups()
        if own is not None:
            return f"%{place - int(own)}.{item}"
        ahead = int(number) - last.get(kind, -1)
        last[kind] = int(number)
        return f"{kind}{ahead}"

    for place, call in enumerate(graph.operations):
        yield (
            call.name,
            told(call.args, place),
            told([call.kwargs[name] for name in sorted(call.kwargs)], place),
            sorted(call.kwargs),
        )


def _listed(program: Program) -> int:
    count = sum(math.prod(constant.shape) for constant in program.constants)
    for graph in (program.initial, *program.steps):
        count += sum(_numbers([*call.args, *call.kwargs.values()], 0) for call in graph.operations)
        # A size becomes a number where what has it is added up.
        listed = [
            arg for call in graph.operations for arg in (*call.args, *call.kwargs.values()) if isinstance(arg, list)
        ]
        count += len({str(item) for arg in listed for item in arg if isinstance(item, dict)})
    count += len({(k, str(v)) for group in program.optimizer.groups for k, v in group.options.items()})
    rows = [] if program.schedule is None else [[plain(rate) for rate in row] for row in program.schedule.rates]
    return count + len({(n, f"{rate / (row[0] or 1.0):.5g}") for row in rows for n, rate in enumerate(row) if n})


def _numbers(node: Any, depth: int) -> int:
    """Numbers that are more than a small integer or a size, which stands in a list."""
    if isinstance(node, list):
        return sum(_numbers(item, depth + 1) for item in node)
    if not isinstance(node, dict):
        return 0
    value = plain(node)
    return int(isinstance(value, float) or (isinstance(value, int) and depth == 1 and USUAL < abs(value) < LAST))


def lines(program: Program) -> Iterator[str]:
    """A checked program, line by line."""
    shapes: dict[int, list[str]] = {}

    def look(graph: Graph, operation: Operation, made: Any) -> None:
        shapes.setdefault(id(graph), []).append(_shapes(made))

    rehearse(program, look)
    count = carried(program)
    yield f"program {program.digest()} of the task {brief(program.name)!r}"
    note = (
        f"; a loss may pull toward them: see {len(program.constants)} constants below, and long lists"
        if count > LARGE
        else ""
    )
    yield f"it carries {count:,} numbers of its own{note}"
    if (told := rates(program)) > LARGE:
        yield f"its recorded rates are as long as {told:,} numbers, which a loss may turn into weights: look at them"
    for title, letter, held in (("parameters", "p", program.parameters), ("buffers", "b", program.buffers)):
        yield f"{title}:" if held else f"{title}: none"
        yield from (f"  {letter}{number} = {_held(item)}" for number, item in enumerate(held))
    yield "constants:" if program.constants else "constants: none"
    yield from (f"  c{number} = {_constant(item)}" for number, item in enumerate(program.constants))
    yield "the first weights (all randomness from the run's key):"
    yield from _graph(program.initial, shapes.get(id(program.initial), []))
    for graph in program.steps:
        inputs = ", ".join(f"i{n}: {dtype} {shape}" for n, (dtype, shape) in enumerate(graph.inputs))
        yield f"the loss of a batch ({inputs}):"
        yield from _graph(graph, shapes.get(id(graph), []))
    yield f"update: {program.optimizer.name}"
    for group in program.optimizer.groups:
        options = ", ".join(f"{name}={_told(node)}" for name, node in sorted(group.options.items()))
        yield f"  {len(group.params)} parameters ({_which(program, group.params)}): {options}"
    if program.schedule is not None:
        options = ", ".join(f"{name}={_told(node)}" for name, node in program.schedule.options.items())
        rows = program.schedule.rates
        options = (
            f"{len(rows):,} rows of rates, {_told(rows[0])} to {_told(rows[-1])}"
            if program.schedule.name == RECORDED and rows
            else options
        )
        yield f"schedule: {program.schedule.name} ({options})"
    yield "settings: " + ", ".join(f"{name}={_told(node)}" for name, node in sorted(program.settings.items()))


def _graph(graph: Graph, shapes: list[str]) -> Iterator[str]:
    for number, operation in enumerate(graph.operations):
        given = [_told(arg) for arg in operation.args] + [f"{k}={_told(v)}" for k, v in operation.kwargs.items()]
        shape = f"  {shapes[number]}" if number < len(shapes) else ""
        drawn = "  draws random numbers" if any(word in operation.name for word in DRAWING) else ""
        yield f"  %{number} = {operation.name}({', '.join(given)}){shape}{drawn}"
    for path, values in graph.modules:
        yield f"  module {brief(path)!r} gives {', '.join(values)}"
    yield from (f"  {brief(name)} = {value}" for name, value in graph.outputs.items())


def _which(program: Program, names: list[str]) -> str:
    """All of a group's parameters by their numbers above, so that none is left out: ``p0 to p3, p7``."""
    place = {name: number for number, held in enumerate(program.parameters) for name in (held.name, *held.other)}
    numbers, told = sorted({place[name] for name in names if name in place}), list[str]()
    while numbers:
        length = next((n for n, number in enumerate(numbers) if number != numbers[0] + n), len(numbers))
        told.append(f"p{numbers[0]}" if length == 1 else f"p{numbers[0]} to p{numbers[length - 1]}")
        numbers = numbers[length:]
    return ", ".join(told + [brief(name) for name in names if name not in place])


def _held(held: Held) -> str:
    also = f", also {brief(', '.join(held.other))}" if held.other else ""
    return f"{brief(held.name)}: {held.dtype} {held.shape}{', trained' if held.trained else ''}{also}"


def _constant(constant: Constant) -> str:
    tensor = tensor_of(constant)
    numbers = tensor.numel()
    head = f"{constant.dtype} {constant.shape}: {numbers:,} numbers"
    if not numbers:
        return head
    first = ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in tensor.flatten()[:SMALL].tolist()
    )
    if numbers <= SMALL:
        return f"{head}, {first}"
    ends = (
        f", from {float(tensor.double().min()):g} to {float(tensor.double().max()):g}"
        if tensor.dtype != torch.bool
        else ""
    )
    return f"{head}{ends}; {first}, …"


def _told(node: Any) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return f"[{', '.join(_told(item) for item in node)}]"
    value = plain(node)
    return repr(value) if isinstance(value, str) else str(value).removeprefix("torch.")


def _shapes(made: Any) -> str:
    if isinstance(made, (list, tuple)):
        return ", ".join(_shapes(item) for item in made)
    return f"{str(made.dtype).removeprefix('torch.')} {list(made.shape)}"
