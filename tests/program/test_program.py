"""Sealed programs: equal bits, and what hostile ones come to."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

import pytest
import torch

import support_sealed
from proof_of_learning import canonical, limits
from proof_of_learning.errors import FormatError, PolError, TaskError
from proof_of_learning.numeric import randomness
from proof_of_learning.program.checking import parse, rehearse
from proof_of_learning.program.document import Program, plain, tensor_of
from proof_of_learning.program.operations import INPLACE, OPERATIONS, VIEWS, overload, written
from proof_of_learning.program.sealed import task_of
from proof_of_learning.program.show import LARGE, carried, lines
from proof_of_learning.program.show import rates as recorded
from proof_of_learning.program.tracing import PROBED, seal, sizes
from proof_of_learning.task import Task
from proof_of_learning.training.steps import Session, derived_feed
from proof_of_learning.verifier.function import SAMPLES

KEY = randomness.key_from_seed(5)
Document = dict[str, Any]


def course(task: Task) -> list[Any]:
    """Losses, rates and the digests of states of a run, schedulers aside, which may be recorded ones."""
    data = task.data()
    session = Session(task, KEY)
    feed, order = derived_feed(task, data, KEY, "cpu")
    parts = ("model", "optimizer", "progress")
    seen: list[Any] = [session.capture().part(*parts).digest()]
    for result in session.run(task.total_steps(len(data)), feed, order):
        seen.append((float(result.loss), result.rates, session.capture().part(*parts).digest()))
    return seen


@pytest.mark.parametrize("name", sorted(support_sealed.TASKS))
def test_a_sealed_step_gives_the_bits_of_the_eager_one(name: str) -> None:
    task = support_sealed.task(name)
    raw = seal(task, task.data()).encoded()
    assert parse(raw).encoded() == raw
    assert course(task_of(parse(raw), task.data)) == course(task)


def test_sealing_twice_gives_one_program() -> None:
    task = support_sealed.task("cnn")
    assert seal(task, task.data()).digest() == seal(task, task.data()).digest()


def test_there_is_a_graph_for_each_size_of_a_batch() -> None:
    task = support_sealed.task()
    assert sizes(task, support_sealed.SAMPLES) == [32, 20]
    assert sizes(task, 40) == [32, 8]
    assert PROBED == SAMPLES  # where outputs are looked at


def test_tied_weights_are_one_tensor() -> None:
    task = support_sealed.task("transformer")
    session = Session(task_of(seal(task, task.data()), task.data), KEY)
    assert session.model.get_parameter("out.weight") is session.model.get_parameter("words.weight")


def test_the_list_says_what_pytorch_says() -> None:
    for name in OPERATIONS:
        function = overload(name)
        assert function is not None, name
        into = [
            n for n, a in enumerate(function._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
        ]
        assert not into or tuple(into) == written(name), name
        shares = any(a.alias_info is not None for a in function._schema.arguments)
        assert not shares or name in VIEWS | INPLACE, name
    assert not any(
        word in name for name in OPERATIONS for word in ("as_strided", "set_", "resize_", "from_file", "item")
    )


# ---- what cannot be sealed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loss": support_sealed.depends}, ["depends on numbers", "if loss > 1", "support_sealed.py:"]),
        ({"loss": support_sealed.cast}, ["autocast", "support_sealed.py:"]),
        ({"loss": support_sealed.chosen}, ["shape depends on numbers", "support_sealed.py:"]),
        ({"loss": support_sealed.strange}, ["svd", "support_sealed.py:"]),
        ({"loss": support_sealed.still}, ["no_grad", "detach"]),
        ({"model": support_sealed.foreign}, ["generator"]),
        ({"loss": None, "step": lambda context, batches: None}, ["a step of its own"]),
        ({"augment": lambda sample, generator: sample}, ["augmentation"]),
        ({"collate": lambda samples: samples}, ["collation"]),
        ({"parts": lambda model: {}}, ["parts"]),
        ({"optimizer": lambda m: torch.optim.LBFGS(m.parameters())}, ["LBFGS"]),
        ({"scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o)}, ["ReduceLROnPlateau"]),
        ({"scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 9)}, ["more than learning rates"]),
    ],
)  # fmt: skip
def test_what_cannot_be_sealed_is_named(change: dict[str, Any], told: list[str]) -> None:
    import dataclasses

    task = dataclasses.replace(support_sealed.task(), **{"scheduler": None, **change})
    with pytest.raises(TaskError) as caught:
        seal(task, task.data())
    message = str(caught.value)
    assert all(word in message for word in told), message
    assert "\n" not in message and "docs/guide/sealed.md" in message


# ---- hostile programs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest() -> Document:
    task = support_sealed.task("cnn")
    document: Document = json.loads(seal(task, task.data()).encoded())
    return document


def refused(document: Any) -> str:
    """The one line by which a program is refused before anything of it runs."""
    with pytest.raises(FormatError) as caught:
        rehearse(parse(canonical.encode(document)))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def changed(honest: Document, *operation: Any) -> Document:
    """An honest program whose first graph ends in a further operation, which is its loss."""
    document = copy.deepcopy(honest)
    graph = document["steps"][0]
    graph["operations"].append([operation[0], list(operation[1:]), {}])
    graph["outputs"]["loss"] = f"%{len(graph['operations']) - 1}"
    return document


def test_an_honest_program_passes(honest: Document) -> None:
    rehearse(parse(canonical.encode(honest)))
    told = "\n".join(lines(parse(canonical.encode(honest))))
    assert "conv2d.default(i0, p0, p1" in told and "draws random numbers" in told and "float32 [32, 10]" in told


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        (("as_strided.default", "p0", [{"i": "9"}], [{"i": "1"}]), "not in the list"),
        (("system.default", {"s": "ls"}), "not in the list"),
        (("__class__", "p0"), "not in the list"),
        (("relu.default",), "arguments of relu.default"),
        (("relu.default", "p0", "p1"), "arguments of relu.default"),
        (("sum.default", "%99"), "before it is made"),
        (("sum.default", "p99"), "not there"),
        (("sum.default", "q"), "no value"),
        (("sum.default", {"x": "1"}), "malformed"),
        (("zeros.default", [{"i": "1099511627776"}, {"i": "1099511627776"}]), "too large|cannot run"),
        (("zeros.default", [{"i": str(2**40)}]), "too large"),
        (("repeat.default", "i0", [{"i": str(2**24)}, {"i": "1"}, {"i": "1"}, {"i": "1"}]), "too large"),
        (("reshape.default", "p0", [{"i": "7"}]), "cannot run"),
        (("add_.Tensor", "p0", {"i": "1"}), "writes into"),
        (("add_.Tensor", "i0", {"i": "1"}), "writes into"),
        (("add_.Tensor", "c0", {"i": "1"}), "writes into"),
        (("sum.default", "p0.3"), "no value"),
        (("sum.default", "%0.3"), "one of several"),
        (("relu.default", "p0"), "its loss is not one number"),
        (("sum.default", [["p0"] * 5000]), "too long"),
        (("conv_transpose2d.input", "i0", "p0"), "a convolution of 1 channels, where 8 fit"),
        (("conv2d.default", "i0", "p0", "p0"), "the bias of a convolution"),
        (("conv2d.default", "i0", "p0", None, [{"i": "1"}], [{"i": "-1"}]), "padding is below 0"),
    ],
)
def test_a_hostile_operation_is_refused(honest: Document, operation: tuple[Any, ...], told: str) -> None:
    import re

    assert re.search(told, refused(changed(honest, *operation)))


def test_a_view_of_a_parameter_is_not_written_into(honest: Document) -> None:
    document = changed(honest, "view.default", "p0", [{"i": "-1"}])
    graph = document["steps"][0]
    graph["operations"].append(["zero_.default", [f"%{len(graph['operations']) - 1}"], {}])
    assert "writes into" in refused(document)


def test_a_circle_is_refused(honest: Document) -> None:
    number = len(honest["steps"][0]["operations"])
    assert "before it is made" in refused(changed(honest, "sum.default", f"%{number}"))


def test_a_graph_of_too_many_kernels_is_refused(honest: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recurrent layer is one operation and takes as many kernels as its input has steps."""
    rehearse(parse(canonical.encode(honest)))
    monkeypatch.setattr(limits, "MAX_KERNELS", 10)
    assert "more than 10 kernels" in refused(honest)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schema", "pol/program/v9"),
        ("steps", []),
        ("name", ""),
        ("constants", [{"dtype": "float32", "shape": [1 << 30], "data": "AAAA"}]),
        ("constants", [{"dtype": "float32", "shape": [-1], "data": ""}]),
        ("constants", [{"dtype": "object", "shape": [1], "data": "AAAA"}]),
        ("constants", [{"dtype": "float32", "shape": [1], "data": "?"}]),
        ("parameters", [["training", "float32", [1], True, []]]),
        ("parameters", [["a", "float32", [1], True, ["a"]]]),
        ("parameters", [["a", "float32", [1], True, []], ["a.b", "float32", [1], True, []]]),
        ("settings", {}),
        ("settings", {"__class__": {"i": "1"}}),
        ("optimizer", {"name": "LBFGS", "groups": []}),
        ("optimizer", {"name": "SGD", "groups": [{"params": ["no"], "options": {}}]}),
        ("optimizer", {"name": "SGD", "groups": [{"params": ["0.weight"], "options": {"hook": {"s": "x"}}}]}),
        ("schedule", {"name": "LambdaLR", "options": {}, "rates": []}),
        ("schedule", {"name": "recorded", "options": {}, "rates": [[{"f": "inf"}]]}),
        ("schedule", {"name": "StepLR", "options": {"step_size": {"i": "0"}, "gamma": {"f": "0x1p-1"}}, "rates": []}),
    ],
)
def test_hostile_parts_are_refused(honest: Document, place: str, value: Any) -> None:
    document = {**copy.deepcopy(honest), place: value}
    with pytest.raises(PolError) as caught:
        run_one(document)
    assert "\n" not in str(caught.value)


def run_one(document: Any) -> None:
    """What a worker does with a program: one step of its training."""
    task = task_of(parse(canonical.encode(document)), support_sealed.images)
    session = Session(task, KEY)
    feed, order = derived_feed(task, task.data(), KEY, "cpu")
    next(session.run(1, feed, order))


def test_graphs_of_a_million_operations_and_large_files_are_refused(
    honest: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = copy.deepcopy(honest)
    document["steps"][0]["operations"] *= 1 + limits.MAX_OPERATIONS // len(document["steps"][0]["operations"])
    assert "operations" in refused(document)
    monkeypatch.setattr("proof_of_learning.limits.MAX_PROGRAM", 100)
    assert "bytes" in refused(honest)


def test_constants_stay_as_they_are(honest: Document) -> None:
    """Whatever way leads to its memory: einsum may give back what it was given."""
    document = changed(honest, "einsum.default", {"s": "i->i"}, ["c1"])
    document["constants"] = [*honest["constants"][:1], {"dtype": "float32", "shape": [2], "data": "AACAPwAAgD8="}]
    graph = document["steps"][0]
    graph["operations"].append(["zero_.default", [f"%{len(graph['operations']) - 1}"], {}])
    assert "writes into" in refused(document)


def test_fuzzed_programs_run_or_are_refused_in_one_line(honest: Document) -> None:
    """Any change of any place is refused with one line, or is another program that runs."""
    drawn = random.Random(7)
    names = sorted(OPERATIONS)
    values: list[Any] = [
        None,
        True,
        -1,
        2**50,
        "",
        "p0",
        "%0",
        "i1",
        "c0",
        {"i": "-1"},
        {"f": "nan"},
        {"s": "mean"},
        [],
        {},
        "relu_.default",
    ]

    def places(node: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [path, *(p for key, item in items for p in places(item, (*path, key)))]

    every = places(honest, ())[1:]
    outcomes = {"run": 0, "refused": 0}
    for _ in range(300):
        document = copy.deepcopy(honest)
        for _ in range(drawn.choice([1, 1, 2])):
            path = drawn.choice(every)
            try:
                node: Any = document
                for key in path[:-1]:
                    node = node[key]
                node[path[-1]] = drawn.choice([*values, drawn.choice(names)])
            except (KeyError, IndexError, TypeError):
                continue
        outcome = "run"
        with contextlib.suppress(PolError):
            outcome = "refused"
            run_one(document)
            outcome = "run"
        outcomes[outcome] += 1
    assert outcomes["refused"] > 100


def test_arguments_have_one_spelling() -> None:
    for node in (
        {"i": "01"},
        {"i": "-0"},
        {"i": str(2**63)},
        {"f": "1.0"},
        {"d": "object"},
        {"m": "x"},
        {"i": "1", "f": "x"},
        3,
        0.5,
    ):
        if node == {"i": "-0"}:
            continue
        with pytest.raises(FormatError):
            plain(node)
    constant = Program.__struct_fields__  # the fields that the specification lists
    assert set(constant) == {
        "schema", "name", "parameters", "buffers", "constants", "initial", "steps", "optimizer", "schedule", "settings",
    }  # fmt: skip
    assert callable(tensor_of)


def test_numbers_are_counted_wherever_a_program_could_carry_them(honest: Document) -> None:
    """A loss of sum(p) and a rate for each of many small tensors would lead anywhere."""
    program = parse(canonical.encode(honest))
    assert carried(program) < 200
    told = {"f": (0.1875).hex()}
    many = copy.deepcopy(honest)
    many["optimizer"]["groups"] = [{"params": [], "options": {"lr": {"f": (n / 7).hex()}}} for n in range(1, 2000)]
    rates = copy.deepcopy(honest)
    rates["schedule"]["rates"] = [[told, {"f": (n / 7).hex()}] for n in range(1, 2000)]
    calls = changed(honest, "sum.default", "p0")
    calls["steps"][0]["operations"] += [["mul.Scalar", ["p0", told], {}]] * 2000
    whole = changed(honest, "sum.default", "p0")
    whole["steps"][0]["operations"] += [["mul.Scalar", ["p0", {"i": str(n)}], {}] for n in range(17, 2017)]
    measured = changed(honest, "sum.default", "p0")
    measured["steps"][0]["operations"] += [["ones.default", [[{"i": str(n)}]], {}] for n in range(2000)]
    for document in (many, rates, calls, whole, measured):
        assert carried(parse(canonical.encode(document))) > LARGE


def test_all_parameters_of_a_group_are_shown(honest: Document) -> None:
    """Names were cut after 200 characters, and with them the reader's knowledge of what has which rate."""
    document = copy.deepcopy(honest)
    options = document["optimizer"]["groups"][0]["options"]
    document["parameters"] += [[f"a_rather_long_name_{n}", "float32", [1], True, []] for n in range(60)]
    document["initial"]["operations"].append(["zeros.default", [[{"i": "1"}]], {}])
    made = f"%{len(document['initial']['operations']) - 1}"
    document["initial"]["outputs"] |= {f"a_rather_long_name_{n}": made for n in range(60)}
    first, names = len(honest["parameters"]), [held[0] for held in document["parameters"]]
    document["optimizer"]["groups"] = [
        {"params": names[: first + 40] + names[-1:], "options": options}, {"params": names[first + 40 : -1], "options": options},
    ]  # fmt: skip
    told = [line for line in lines(parse(canonical.encode(document))) if " parameters (" in line]
    assert f"(p0 to p{first + 39}, p{first + 59})" in told[0]
    assert f"(p{first + 40} to p{first + 58})" in told[1]


def test_numbers_are_counted_where_only_references_name_them(honest: Document) -> None:
    """A list of references to a few values, small integers, or which operation comes next: none of them is a number by itself."""
    drawn = random.Random(3)
    digits = {"i": "3"}
    listed = changed(honest, "sum.default", "p0")
    first = len(listed["steps"][0]["operations"])
    levels = [["full.default", [[], {"i": str(n)}], {}] for n in range(16)]
    picked = [f"%{first + drawn.randrange(16)}" for _ in range(4000)]
    listed["steps"][0]["operations"] += [
        *levels,
        *[["stack.default", [picked[n : n + 2000]], {}] for n in (0, 2000)],
    ] * 3
    small = changed(honest, "sum.default", "p0")
    small["steps"][0]["operations"] += [
        ["add.Scalar", ["p0", {"i": str(drawn.randrange(16))}], {}] for _ in range(12000)
    ]
    named = changed(honest, "sum.default", "p0")
    names = ["add.Tensor", "sub.Tensor", "mul.Tensor", "maximum.default"]
    named["steps"][0]["operations"] += [[drawn.choice(names), ["p0", "p0"], {}] for _ in range(19000)]
    ordered = changed(honest, "sum.default", "p0")
    ordered["steps"][0]["operations"] += [
        ["add.Tensor", [f"p{drawn.randrange(4)}", f"p{drawn.randrange(4)}"], {}] for _ in range(9000)
    ]
    for document in (listed, small, named, ordered):
        assert carried(parse(canonical.encode(document))) > LARGE
    repeated = changed(honest, "sum.default", "p0")
    repeated["steps"][0]["operations"] += [["add.Scalar", ["p0", digits], {}]] * 9000
    assert carried(parse(canonical.encode(repeated))) < LARGE


def test_recorded_rates_are_numbers_too(honest: Document) -> None:
    """A loss that follows a counter has a rate for each weight, and one rate a step is as good as a file."""
    drawn = random.Random(3)
    few, many = copy.deepcopy(honest), copy.deepcopy(honest)
    few["schedule"]["rates"] = [[{"f": (0.5 ** (n // 300)).hex()}] for n in range(20_000)]
    many["schedule"]["rates"] = [[{"f": drawn.uniform(-0.1, 0.1).hex()}] for n in range(2_000)]
    assert recorded(parse(canonical.encode(few))) < LARGE < recorded(parse(canonical.encode(many)))


def test_a_tensor_that_falls_into_millions_of_pieces_is_refused_before_it_does(honest: Document) -> None:
    for name, *more in (
        ("unbind.int", {"i": "0"}), ("split.Tensor", {"i": "1"}), ("chunk.default", {"i": "4000000000"}),
        ("tensor_split.sections", {"i": "4000000000"}),
    ):  # fmt: skip
        document = copy.deepcopy(honest)
        operations = document["steps"][0]["operations"]
        operations += [["zeros.default", [[{"i": str(2**31)}]], {}], [name, [f"%{len(operations)}", *more], {}]]
        assert "kernels" in (told := refused(document)) or "pieces" in told


def test_all_graphs_together_take_a_bounded_number_of_kernels(
    honest: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ALL_KERNELS", 30)
    assert "graphs take more than 30 kernels" in refused(honest)
