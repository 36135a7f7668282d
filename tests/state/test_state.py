"""The training state: captured and restored bit for bit, under a digest that notices everything but the container."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tasks
from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.numeric import randomness
from proof_of_learning.replay import protocol
from proof_of_learning.replay.worker import Worker
from proof_of_learning.state import names
from proof_of_learning.state.names import kind_of
from proof_of_learning.state.state import (
    DTYPE_NAMES,
    DTYPES,
    State,
    capture,
    decode_tree,
    encode_tree,
    restore,
    tree_tensors,
)
from proof_of_learning.training.steps import Session, derived_feed
from support_strategies import NAMES, TREES, same


def session(seed: int = 0, **settings: Any) -> Session:
    return Session(tasks.task(**settings), randomness.key_from_seed(seed))


def train(live: Session, stop: int) -> list[float]:
    feed, order = derived_feed(live.task, live.task.data(), live.key, "cpu")
    return [result.loss.item() for result in live.run(stop, feed, order)]


def equal_bits(a: State, b: State) -> bool:
    return a.tree == b.tree and same(a.tensors, b.tensors)


SETTINGS: list[dict[str, Any]] = [
    *({"optimizer": name} for name in tasks.OPTIMIZERS),
    *({"scheduler": name} for name in tasks.SCHEDULERS),
    *({"net": name} for name in ("batchnorm", "dropout", "tied")),
    {"custom": True},
    {"scaler": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_state_restored_elsewhere_trains_on_to_the_same_bits(settings: dict[str, Any]) -> None:
    with randomness.preserved():
        first = session(**settings)
        train(first, 7)
        middle = first.capture()
        digest = middle.digest()
        losses = train(first, 15)
        end = first.capture()
        # Into a fresh session with other weights, and into the old one, whose live objects stand elsewhere.
        for other in (session(seed=1, **settings), first):
            other.key = first.key
            other.restore(middle)
            assert equal_bits(other.capture(), middle)
            assert train(other, 15) == losses
            assert other.capture().digest() == end.digest()
        assert middle.digest() != end.digest()
        assert State(middle.tree, middle.tensors).digest() == digest  # training went on in copies


@pytest.mark.quick
def test_the_parts_of_a_state_have_names_that_people_know() -> None:
    state = session(net="batchnorm", custom=True, scheduler="multistep").capture()
    names = set(state.tensors)
    assert {"model/parameters/first.weight", "model/buffers/norm.running_mean", "model/buffers/calls"} <= names
    assert {"ema/parameters/module.last.bias", "ema/buffers/n_averaged", "shadow/shadow/last.bias"} <= names
    values = decode_tree(state.tree, state.tensors)
    assert values["scheduler"]["milestones"] == Counter({3: 1, 9: 2, 14: 1})
    assert isinstance(values["scheduler"]["milestones"], Counter)
    assert values["progress"] == {"step": 0}
    assert kind_of("model/parameters/first.weight") == "model/parameters"
    assert kind_of("optimizer/state/0/momentum_buffer") == "optimizer/momentum_buffer"
    assert kind_of("shadow/shadow/last.bias") == "shadow"
    assert set(state.part("model").tensors) == {name for name in names if name.startswith("model/")}
    assert state.part("model").digest() != state.digest()


def test_momentum_keeps_its_own_precision_beside_bfloat16_weights() -> None:
    def live() -> dict[str, Any]:
        model = nn.Linear(3, 2).to(torch.bfloat16)
        return {"model": model, "optimizer": SGD(model.parameters(), lr=0.1, momentum=0.9)}

    first, second = live(), live()
    for index, parameter in enumerate(first["model"].parameters()):
        first["optimizer"].state[parameter] = {"momentum_buffer": torch.randn(parameter.shape) + index}
    state = capture(first)
    restore(second, state)
    assert equal_bits(capture(second), state)
    assert all(entry["momentum_buffer"].dtype == torch.float32 for entry in second["optimizer"].state.values())


class Odd(nn.Module):
    """What modules may hold beside weights: buffers of any type, infinities, frozen weights, state of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        self.register_buffer("nan", torch.tensor([math.nan, -0.0, 5e-324], dtype=torch.float64))
        self.hidden: Tensor
        self.register_buffer("hidden", torch.arange(5), persistent=False)
        self.register_buffer("empty", torch.empty(0, 4, dtype=torch.float16))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("phase", torch.tensor([1 + 2j, 0], dtype=torch.complex64))
        self.register_buffer("nothing", None)
        self.seen: dict[str, Any] = {"best": math.inf, "history": [(1, 2.5), (2, None)], "table": torch.ones(2)}

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


@pytest.mark.quick
def test_modules_are_restored_with_all_they_hold() -> None:
    first, second = Odd(), Odd()
    first.seen["history"].append((3, -math.inf))
    first.scale.requires_grad_(False)
    first.hidden += 7
    state = capture({"model": first})
    digest = state.digest()
    restore({"model": second}, state)
    assert equal_bits(capture({"model": second}), state)
    assert second.seen["history"] == first.seen["history"]
    assert not second.scale.requires_grad
    second.seen["table"].add_(1)
    second.weight.add_(1)
    assert State(state.tree, state.tensors).digest() == digest  # nothing is shared with the live parts


def test_schedulers_with_scalars_of_every_kind() -> None:
    def live() -> dict[str, Any]:
        model = nn.Linear(2, 2)
        groups: list[dict[str, Any]] = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias]}]
        optimizer = SGD(groups, lr=0.2, momentum=0.5)
        one = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)  # holds infinities
        two = lr_scheduler.CyclicLR(optimizer, [0.01, 0.02], [0.1, 0.2], step_size_up=3)
        three = lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"model": model, "optimizer": optimizer, "plateau": one, "cyclic": two, "lambda": three}

    first, second = live(), live()
    for metric in (3.0, 4.0, 5.0, 6.0):
        first["optimizer"].step()
        first["plateau"].step(metric)
        first["cyclic"].step()
        first["lambda"].step()
    state = capture(first)
    assert state.digest() != capture(second).digest()
    restore(second, state)
    assert equal_bits(capture(second), state)
    for parts in (first, second):
        parts["optimizer"].step()
        parts["cyclic"].step()
        parts["plateau"].step(7.0)
    assert capture(first).part("optimizer", "plateau", "cyclic").digest() == (
        capture(second).part("optimizer", "plateau", "cyclic").digest()
    )


def test_averages_keep_their_count() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    ema, fresh = (AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5)) for m in (model, other))
    for _ in range(3):
        model.weight.data.add_(1)
        ema.update_parameters(model)
    restore({"ema": fresh}, capture({"ema": ema}))
    assert int(fresh.n_averaged) == 3
    assert torch.equal(fresh.get_parameter("module.weight"), ema.get_parameter("module.weight"))


# ---- digests ----------------------------------------------------------------------------------------


def base_state() -> State:
    values = {
        "model": {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        "other": {"lr": 0.5, "step": 2, "on": True},
    }
    tensors: dict[str, Tensor] = {}
    items = [[f"s:{name}", encode_tree(value, name, tensors)] for name, value in values.items()]
    return State({"d": items}, tensors)


def changed(edit: Callable[[dict[str, Any]], Any]) -> str:
    state = base_state()
    values = decode_tree(state.tree, state.tensors)
    edit(values)
    tensors: dict[str, Tensor] = {}
    return State({"d": [[f"s:{n}", encode_tree(v, n, tensors)] for n, v in sorted(values.items())]}, tensors).digest()


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a tensor's value": lambda v: v["model"].update(w=torch.tensor([1.0, 2.0000002])),
    "the sign of a zero": lambda v: v["model"].update(w=torch.tensor([1.0, -0.0])),
    "another zero": lambda v: v["model"].update(w=torch.tensor([1.0, 0.0])),
    "a tensor's shape": lambda v: v["model"].update(w=torch.tensor([[1.0, 2.0]])),
    "a tensor's shape, otherwise": lambda v: v["model"].update(w=torch.tensor([[1.0], [2.0]])),
    "a tensor's type, same bytes": lambda v: v["model"].update(w=torch.tensor([1.0, 2.0]).view(torch.int32)),
    "a tensor's type, same values": lambda v: v["model"].update(w=torch.tensor([1.0, 2.0]).double()),
    "a tensor's name": lambda v: v["model"].update(W=v["model"].pop("w")),
    "values exchanged": lambda v: v["model"].update(w=v["model"]["n"], n=v["model"]["w"]),
    "a tensor less": lambda v: v["model"].pop("n"),
    "a tensor more": lambda v: v["model"].update(more=torch.empty(0)),
    "a tensor instead of a number": lambda v: v["other"].update(step=torch.tensor(2)),
    "a float": lambda v: v["other"].update(lr=math.nextafter(0.5, 1)),
    "an integer": lambda v: v["other"].update(step=3),
    "a float for an integer": lambda v: v["other"].update(step=2.0),
    "text for an integer": lambda v: v["other"].update(step="2"),
    "true for one": lambda v: v["other"].update(step=True),
    "one for true": lambda v: v["other"].update(on=1),
    "none for false": lambda v: v["other"].update(on=None),
    "a key of another type": lambda v: v["other"].update({2: v["other"].pop("step")}),
    "a part's name": lambda v: v.update(another=v.pop("other")),
    "a part less": lambda v: v.pop("other"),
    "a part more": lambda v: v.update(more={}),
    "a list for a tuple": lambda v: v["other"].update(betas=[0.9, 0.99]),
    "a tuple": lambda v: v["other"].update(betas=(0.9, 0.99)),
    "a dict": lambda v: v["other"].update(counts={1: 2}),
    "a counter": lambda v: v["other"].update(counts=Counter({1: 2})),
    "nested": lambda v: v["other"].update(counts={1: {}}),
}


def test_the_digest_changes_with_everything_that_is_state() -> None:
    digests = {"nothing": changed(lambda v: None), **{name: changed(edit) for name, edit in CHANGES.items()}}
    assert digests["nothing"] == base_state().digest()
    for name, digest in digests.items():
        assert [other for other in digests if digests[other] == digest] == [name]


def test_the_digest_does_not_depend_on_order_or_container() -> None:
    state = base_state()
    backwards = dict(reversed(state.tensors.items()))
    assert State(state.tree, backwards).digest() == state.digest()
    assert changed(lambda v: v.update(other=OrderedDict(reversed(v["other"].items())))) == state.digest()
    strided = {"model": {"w": torch.tensor([1.0, 9.0, 2.0])[::2], "n": nn.Parameter(torch.tensor(3.0)).long()}}
    assert changed(lambda v: v.update(strided)) == state.digest()
    parts = {"a": nn.Linear(2, 2), "b": nn.Linear(3, 1)}
    assert capture(parts).digest() == capture(dict(reversed(parts.items()))).digest()


def test_the_digest_of_a_known_state() -> None:
    """The format's own numbers, as the specification alone gives them: they may never change."""
    state = base_state()
    words = [hashlib.sha256(b"pol/v1/tensor\0float32[2]\0" + struct.pack("<2f", 1, 2)).hexdigest()]
    words.append(hashlib.sha256(b"pol/v1/tensor\0int64[]\0" + struct.pack("<q", 3)).hexdigest())
    other = [["s:lr", {"f": "0x1.0000000000000p-1"}], ["s:on", True], ["s:step", {"i": "2"}]]
    model = [["s:n", {"t": "model/n"}], ["s:w", {"t": "model/w"}]]
    manifest = {
        "tensors": {"model/n": ["int64", [], words[1]], "model/w": ["float32", [2], words[0]]},
        "tree": {"d": [["s:model", {"d": model}], ["s:other", {"d": other}]]},
    }
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert state.digest() == "sha256:" + hashlib.sha256(b"pol/v1/state\0" + text).hexdigest()
    assert state.tensor_digest("model/w") == "1ddb47bd948baa5007359153fae963540c35b938e53a62bd1cb094b7d7a52363"
    assert state.digest() == "sha256:7b4099119b5c09826a804f8b180aaa1fa46ec5f1708a4b79f2d65fa85266633c"


# ---- trees ------------------------------------------------------------------------------------------


@given(st.dictionaries(NAMES, TREES, max_size=3))
def test_trees_come_back_as_they_were(values: dict[str, Any]) -> None:
    flat: dict[str, Tensor] = {}
    try:
        tree = encode_tree(values, "x", flat)
    except TaskError:  # keys 1 and "1" in one dict, both with tensors below
        assume(False)
    assert sorted(tree_tensors({"d": [["s:x", tree]]})) == sorted(flat)
    assert same(decode_tree(tree, flat), values)
    for name, tensor in flat.items():
        assert tensor.is_contiguous(), name


def test_a_number_and_its_text_cannot_share_a_tensors_name() -> None:
    with pytest.raises(TaskError, match="x/1"):
        encode_tree({1: torch.ones(1), "1": torch.zeros(1)}, "x", {})


@pytest.mark.parametrize("value", [1j, object(), {1.5: 0}, {True: 0}, {None: 0}, {(1,): 0}, {1, 2}, b"x", np.zeros(2)])
def test_what_cannot_be_recorded_is_said_with_its_place(value: Any) -> None:
    with pytest.raises(TaskError, match="part/key"):
        encode_tree({"key": value}, "part", {})


@pytest.mark.parametrize("tensor", [torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex128)])
def test_tensors_that_no_codec_can_store_are_refused(tensor: Tensor) -> None:
    with pytest.raises(TaskError, match="part/key"):
        encode_tree({"key": tensor}, "part", {})


def test_names_with_slashes_do_not_collide() -> None:
    values = {"a/b": torch.tensor(1), "a~1b": torch.tensor(2), "a": {"b": torch.tensor(3)}, "~": torch.tensor(4)}
    tensors: dict[str, Tensor] = {}
    tree = encode_tree(values, "x", tensors)
    assert len(tensors) == 4
    assert same(decode_tree(tree, tensors), values)


def test_numbers_of_numpy_are_numbers() -> None:
    values = {"a": np.int64(3), "b": np.float64(0.5), "c": np.float32(0.25)}
    assert decode_tree(encode_tree(values, "x", {}), {}) == {"a": 3, "b": 0.5, "c": 0.25}


HOSTILE: list[Any] = [
    {"d": 5}, {"d": "ab"}, {"d": None}, {"d": [5]}, {"d": ["ab"]}, {"d": [["s:a"]]}, {"d": [["s:a", None, None]]},
    {"d": [[5, None]]}, {"d": [[["x"], None]]}, {"d": [["a", None]]}, {"d": [["i:x", None]]}, {"d": [["i:01", None]]},
    {"d": [["i:1_0", None]]}, {"d": [["s:b", None], ["s:a", None]]}, {"d": [["s:a", None], ["s:a", None]]},
    {"d": [["s:a", {"t": "b"}]]}, {"d": [["s:a", {"t": 5}]]}, {"d": [["s:a", {"t": ["a"]}]]}, {"d": [["s:a", {"i": 5}]]},
    {"d": [["s:a", {"i": "5.0"}]]}, {"d": [["s:a", {"i": " 5"}]]}, {"d": [["s:a", {"i": "٣"}]]},
    {"d": [["s:a", {"i": "9" * 5000}]]}, {"d": [["s:a", {"f": 0.5}]]}, {"d": [["s:a", {"f": "0.5"}]]},
    {"d": [["s:a", {"f": "0x1p-1"}]]}, {"d": [["s:a", {"f": "0x1p+999999"}]]}, {"d": [["s:a", {"f": "infinity"}]]},
    {"d": [["s:a", {"l": {"x": 1}}]]}, {"d": [["s:a", {"u": "ab"}]]}, {"d": [["s:a", {"x": []}]]}, {"d": [["s:a", {}]]},
    {"d": [{"s:a": None, "s:b": None}]}, {"d": [["s:a", {"c": [{"i:1": None, "i:2": None}]}]]},
    {"d": [["s:a", {"i": "1", "f": "nan"}]]}, {"d": [["s:a", 5]]}, {"d": [["s:a", 0.5]]}, {"d": [["s:a", [1]]]},
]  # fmt: skip


@pytest.mark.parametrize("tree", HOSTILE, ids=str)
def test_trees_that_nobody_writes_are_refused(tree: Any) -> None:
    with pytest.raises(FormatError):
        list(tree_tensors(tree))
    assert list(tree_tensors({"d": [["s:a", {"t": "a"}], ["s:b", {"l": [{"i": "-5"}, {"f": "nan"}]}]]})) == ["a"]


# ---- states that do not fit ---------------------------------------------------------------------------


def test_states_of_other_tasks_do_not_fit_and_say_why() -> None:
    live = session(scheduler="cosine")
    state = live.capture()
    weight = "model/parameters/first.weight"
    cases = {
        "first.weight": State(state.tree, {**state.tensors, weight: torch.zeros(16, 13)}),
        "float64": State(state.tree, {**state.tensors, weight: torch.zeros(16, 12).double()}),
        "parts": state.part("model"),
        "scheduler": session().capture(),
        "missing": State(state.tree, {n: t for n, t in state.tensors.items() if n != weight}),
        "again": session(net="tied", scheduler="cosine").capture(),
        "norm": session(net="batchnorm", scheduler="cosine").capture(),
    }
    for what, other in cases.items():
        with pytest.raises(FormatError, match=weight.split("/")[-1] if what == "missing" else what):
            live.restore(other)
    live.restore(state)
    assert live.capture().digest() == state.digest()


@pytest.mark.parametrize("step", [2.0, True, -1, 2**64, "2", None, [2], {}, torch.tensor(2)], ids=str)
def test_a_state_stands_at_a_whole_number_of_steps(step: Any) -> None:
    """A float that is equal to the step would pass for it, and then address no random choice."""
    live, tensors = session(), dict[str, Tensor]()
    state = live.capture()
    node = encode_tree({"step": step}, "progress", tensors)
    tree = {"d": [[key, node if key == "s:progress" else other] for key, other in state.tree["d"]]}
    with pytest.raises(FormatError):
        live.restore(State(tree, {**state.tensors, **tensors}))


@pytest.mark.parametrize("error", [AssertionError, ArithmeticError, StopIteration, LookupError])
def test_a_part_may_refuse_a_state_with_any_error(error: type[Exception]) -> None:
    class Part:
        def state_dict(self) -> dict[str, Any]:
            return {"count": 1}

        def load_state_dict(self, values: dict[str, Any]) -> None:
            raise error("two\nlines" * 1000)

    state = capture({"part": Part()})
    with pytest.raises(FormatError, match="does not fit the task") as caught:
        restore({"part": Part()}, state)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # a tensor where a dict should be
@given(st.data())
def test_any_well_formed_tree_is_restored_or_refused(data: st.DataObject) -> None:
    """Whatever stands where a part's state should be, the answer is a FormatError, not a crash."""
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    parts = {"model": model, "optimizer": optimizer, "scheduler": lr_scheduler.StepLR(optimizer, 2)}
    state = capture(parts)
    values = decode_tree(state.tree, state.tensors)
    target, path = values, list[Any]()
    while isinstance(target, dict) and target and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(sorted(target, key=str))))
        parent, target = target, target[path[-1]]
    parent[path[-1]] = data.draw(TREES)
    flat: dict[str, Tensor] = {}
    try:
        tree = {"d": [[f"s:{name}", encode_tree(values[name], name, flat)] for name in sorted(values)]}
    except TaskError:
        return
    with contextlib.suppress(FormatError, TaskError):  # a scheduler takes anything, and shows it when captured
        restore(parts, State(tree, flat))
        assert capture(parts).part("model").tensors.keys() == {"model/parameters/weight", "model/parameters/bias"}


def test_dtypes_have_names_both_ways() -> None:
    assert {DTYPE_NAMES[dtype]: dtype for dtype in DTYPE_NAMES} == DTYPES
    assert len(DTYPES) == 17


class Slow(torch.optim.SGD):
    """Keeps slow weights for its own ``state_dict`` to tell; its mean is wider than the weights."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slow": self.slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.slow = state_dict["slow"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "slow"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
            mean = self.state[p].setdefault("mean", torch.zeros_like(p, dtype=torch.float32))
            p.copy_(slow.lerp_(p, 0.5) + mean.lerp_(p.float(), 0.01))


class Around(torch.optim.Optimizer):
    """Steps another optimizer, and has no ``state_dict`` that would say so."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step()


@pytest.mark.parametrize("make", [Slow, Around])
def test_an_optimizer_that_holds_more_than_its_state_goes_on_from_a_restored_one(make: Any) -> None:
    def build() -> dict[str, Any]:
        model = nn.Linear(3, 2).to(torch.bfloat16)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.7)
        return {"model": model, "optimizer": make(model.parameters())}

    def train(parts: dict[str, Any], steps: range) -> None:
        for step in steps:
            for p in parts["model"].parameters():
                p.grad = torch.full_like(p, 0.1 * (step - 2))
            parts["optimizer"].step()

    one, two = build(), build()
    train(one, range(4))
    middle = capture(one)
    restore(two, middle)
    assert capture(two).digest() == middle.digest()
    train(one, range(4, 8))
    train(two, range(4, 8))
    assert capture(two).digest() == capture(one).digest() != middle.digest()


@given(st.lists(st.text(alphabet="ab/~01.", max_size=6), min_size=1, max_size=4))
def test_names_of_tensors_give_back_their_components(components: list[str]) -> None:
    name = names.joined(*components)
    assert names.split(name) == components
    assert name.count("/") == len(components) - 1
    assert names.part_of(name) == components[0]
    assert names.short_name(names.weight_name(components[0])) == components[0]
    assert names.split_entry(names.entry_name(components[0], 3)) == (components[0], "3")


def test_weights_of_a_layer_with_a_slash_in_its_name_count_as_trained() -> None:
    def model() -> nn.Module:
        made = nn.Sequential()
        made.add_module("a/b~1", nn.Linear(tasks.FEATURES, tasks.CLASSES))
        return made

    task = replace(tasks.task(), model=model, evaluate=None)
    worker = Worker(task=task)
    worker.answer(protocol.Open("", {}, randomness.key_from_seed(0).hex(), None, None))
    started, _ = worker.answer(protocol.Start(randomness.key_from_seed(1).hex()))
    assert isinstance(started, protocol.Started)
    trained = {tensor.name for tensor in started.tensors if tensor.trainable}
    assert trained == {"model/parameters/a~1b~01.weight", "model/parameters/a~1b~01.bias"}
