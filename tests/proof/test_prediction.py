"""Weights that the lossless codec predicts from momenta: exact whatever the values, smaller, refused where described wrongly."""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs import get_codec, packed
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.state.state import State
from support_proofs import tree_of

LOSSLESS = get_codec("lossless")
SHAPES = {"a": (60, 490), "b": (60, 490), "c": (3000,)}  # two of one shape: which momentum is whose has to be found


def optimizers(steps: int) -> dict[str, tuple[State, State]]:
    """Two checkpoints of each optimizer, ``steps`` apart."""
    made = {}
    for name, kind, options in (
        ("sgd", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
        ("nesterov", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
        ("adam", torch.optim.Adam, {"lr": 1e-3}),
    ):
        draw = torch.Generator().manual_seed(3)
        weights = [torch.nn.Parameter(torch.randn(shape, generator=draw) * 0.05) for shape in SHAPES.values()]
        optimizer, states = kind(weights, **options), []  # type: ignore[arg-type]
        for at in range(4 + steps):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draw) * 1e-2
            optimizer.step()
            if at in (3, 3 + steps):
                tensors = {f"model/parameters/{n}": w.detach().clone() for n, w in zip(SHAPES, weights, strict=True)}
                for index, weight in enumerate(weights):
                    for slot, value in optimizer.state[weight].items():
                        tensors[f"optimizer/state/{index}/{slot}"] = value.clone()
                tensors = dict(sorted(tensors.items()))
                states.append(State(tree_of(list(tensors)), tensors))
        made[name] = (states[0], states[1])
    return made


def encoded(state: State, base: State | None) -> bytes:
    return b"".join(bytes(piece) for piece in LOSSLESS.encode(state, base).chunks())


def entries(raw: bytes, base: State | None) -> dict[str, Entry]:
    return packed.unpack(bytearray(raw), base)[1]


def changed(state: State, **tensors: Tensor) -> State:
    return State(state.tree, {**state.tensors, **{name.replace("__", "/"): t for name, t in tensors.items()}})


@pytest.mark.parametrize(
    ("optimizer", "steps", "least"), [("sgd", 1, 0.5), ("nesterov", 1, 0.5), ("adam", 1, 0.2), ("sgd", 3, 0.02)]
)
def test_weights_take_less_and_come_back_to_the_bit(optimizer: str, steps: int, least: float) -> None:
    base, state = optimizers(steps)[optimizer]
    raw = encoded(state, base)
    assert LOSSLESS.decode(bytearray(raw), base).digest() == state.digest()
    how, slot = entries(raw, base), "exp_avg" if optimizer == "adam" else "momentum_buffer"
    assert [how[f"model/parameters/{name}"].by for name in SHAPES] == [f"optimizer/state/{i}/{slot}" for i in range(3)]
    spared = len(encoded(unknown(state), unknown(base))) - len(raw)
    assert spared > least * sum(t.nbytes for name, t in state.tensors.items() if "parameters" in name)


def unknown(state: State) -> State:
    """The same values, those of the optimizer under names that no optimizer of PyTorch's gives them."""
    tensors = {name + ("_of_mine" if "/state/" in name else ""): tensor for name, tensor in state.tensors.items()}
    return State(tree_of(list(tensors)), tensors)


def test_momenta_that_say_nothing_predict_nothing() -> None:
    base, state = optimizers(1)["sgd"]
    draw = torch.Generator().manual_seed(4)
    mute = {n: torch.randn(t.shape, generator=draw) for n, t in state.tensors.items() if "/state/" in n}
    base, state = (State(at.tree, {**at.tensors, **mute}) for at in (base, state))
    assert not any(entry.by for entry in entries(encoded(state, base), base).values())


def test_the_prediction_is_what_the_specification_says() -> None:
    """In plain arithmetic on 32-bit floats, value by value."""
    for name, (base, state) in optimizers(2).items():
        raw = encoded(state, base)
        _, how, items, _ = packed.unpack(bytearray(raw), base)
        for weight in (f"model/parameters/{n}" for n in SHAPES):
            entry = how[weight]
            now, then = (np.float32(factor * 2.0**entry.scale) for factor in entry.factors)
            second = f"{entry.by.rpartition('/')[0]}/exp_avg_sq"
            assert (second in state.tensors) == (name == "adam")

            def direction(at: State, entry: Entry = entry, second: str = second) -> Any:
                along = at.tensors[entry.by].flatten().numpy()
                if second not in at.tensors:
                    return along
                return along / (np.sqrt(at.tensors[second].flatten().numpy()) + np.float32(2.0**-30))

            before = base.tensors[weight].flatten().numpy()
            foretold = (direction(state) * now + direction(base) * then) + before
            for at in range(0, len(before), 97):
                value = float(state.tensors[weight].flatten()[at])
                difference = (ordered(value) - ordered(float(foretold[at]))) % 2**32
                signed = difference - 2**32 if difference >= 2**31 else difference
                assert int(items[weight][at]) % 2**32 == (signed << 1 ^ signed >> 31) % 2**32


def ordered(value: float) -> int:
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return bits if bits >= 0 else bits ^ 0x7FFFFFFF


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-45])
@pytest.mark.parametrize(
    "where", ["model__parameters__a", "optimizer__state__0__exp_avg", "optimizer__state__0__exp_avg_sq"]
)
@pytest.mark.parametrize("which", ["base", "state"])
def test_any_value_comes_back(where: str, which: str, value: float) -> None:
    base, state = optimizers(1)["adam"]
    at = {"base": base, "state": state}
    odd = at[which].tensors[where.replace("__", "/")].clone()
    odd.view(-1)[1234] = value
    at[which] = changed(at[which], **{where: odd})
    raw = encoded(at["state"], at["base"])
    assert LOSSLESS.decode(bytearray(raw), at["base"]).digest() == at["state"].digest()
    if not abs(value) < 1e38 and (where.endswith("exp_avg") or not math.isfinite(value)) and "parameters" not in where:
        assert not entries(raw, at["base"])[
            "model/parameters/a"
        ].by  # it could be NaN, which is not the same bits everywhere


@pytest.mark.parametrize("where", ["state", "base", "both"])
@pytest.mark.parametrize("odd", [None, torch.ones(60), torch.ones(()), torch.ones(60, 490, dtype=torch.float64)])
def test_second_moments_of_another_kind_predict_nothing(odd: Tensor | None, where: str) -> None:
    """Some optimizers keep one for each row, or for a whole tensor."""
    second, made = "optimizer/state/0/exp_avg_sq", list[State]()
    for which, at in zip(("base", "state"), optimizers(1)["adam"], strict=True):
        tensors = dict(at.tensors)
        if where in (which, "both"):
            tensors.pop(second)
            tensors |= {} if odd is None else {second: odd}
        tensors = dict(sorted(tensors.items()))
        made.append(State(tree_of(list(tensors)), tensors))
    base, state = made
    raw = encoded(state, base)
    assert LOSSLESS.decode(bytearray(raw), base).digest() == state.digest()
    how = entries(raw, base)
    if odd is not None or where != "both":
        assert not how["model/parameters/a"].by
    assert how["model/parameters/c"].by


def test_a_process_that_flushes_subnormals_predicts_nothing() -> None:
    base, state = optimizers(1)["sgd"]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        raw = encoded(state, base)
    finally:
        torch.set_flush_denormal(False)
    assert not any(entry.by for entry in entries(raw, base).values())
    assert LOSSLESS.decode(bytearray(raw), base).digest() == state.digest()


def test_another_default_dtype_changes_nothing() -> None:
    base, state = optimizers(1)["adam"]
    raw = encoded(state, base)
    torch.set_default_dtype(torch.float64)
    try:
        assert encoded(state, base) == raw
        assert LOSSLESS.decode(bytearray(raw), base).digest() == state.digest()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_negative_second_moment_predicts_nothing() -> None:
    base, state = optimizers(1)["adam"]
    second = -state.tensors["optimizer/state/0/exp_avg_sq"]
    raw = encoded(changed(state, optimizer__state__0__exp_avg_sq=second), base)
    assert not entries(raw, base)["model/parameters/a"].by and entries(raw, base)["model/parameters/c"].by


WRONG: dict[str, dict[str, Any]] = {
    "no momentum": {"by": "optimizer/state/9/exp_avg"},
    "itself": {"by": "model/parameters/a"},
    "other weights": {"by": "model/parameters/b"},
    "a second moment": {"by": "optimizer/state/0/exp_avg_sq"},
    "another shape": {"by": "optimizer/state/2/exp_avg"},
    "a counter": {"by": "optimizer/state/0/step"},
    "no factors": {"factors": []},
    "one factor": {"factors": [1]},
    "three factors": {"factors": [1, 2, 3]},
    "a huge factor": {"factors": [1, 2**24 + 1]},
    "a huge scale": {"scale": 1},
    "a tiny scale": {"scale": -101},
    "another width": {"items": 8},
    "another dtype": {"dtype": "int32"},
    "predicted by nothing": {"by": "", "factors": []},
    "plain, by a momentum": {"how": "plain"},
    "a difference, by a momentum": {"how": "difference"},
}


def rewritten(raw: bytes, base: State, name: str, edits: dict[str, Any]) -> bytes:
    root, how, items, _ = packed.unpack(bytearray(raw), base)
    how = {**how, name: msgspec.structs.replace(how[name], **edits)}
    widened = {n: t.to(packed.WIDTHS[how[n].items]) for n, t in items.items()}
    return b"".join(packed.pack(root, how, lambda n: widened[n]))


@pytest.mark.parametrize("edits", WRONG.values(), ids=WRONG)
def test_what_is_described_wrongly_is_refused(edits: dict[str, Any]) -> None:
    base, state = optimizers(1)["adam"]
    raw = encoded(state, base)
    with pytest.raises(FormatError, match=r"wrongly|base"):
        LOSSLESS.decode(bytearray(rewritten(raw, base, "model/parameters/a", edits)), base)


def test_no_codec_but_this_one_predicts() -> None:
    base, state = optimizers(1)["sgd"]
    raw = encoded(state, base)
    for other in ("float16", "quantised"):
        with pytest.raises(FormatError, match="wrongly"):
            get_codec(other).decode(bytearray(raw), base)


@pytest.mark.parametrize("gone", ["weights", "momentum", "second moment", "everything"])
def test_what_the_base_does_not_have_cannot_predict(gone: str) -> None:
    base, state = optimizers(1)["adam"]
    raw = encoded(state, base)
    missing = {"weights": "parameters/a", "momentum": "0/exp_avg", "second moment": "0/exp_avg_sq"}.get(gone)
    names = [n for n in base.tensors if missing is not None and not n.endswith(missing)]
    with pytest.raises(FormatError):
        LOSSLESS.decode(bytearray(raw), State(tree_of(names), {n: base.tensors[n] for n in names}) if names else None)


@pytest.mark.parametrize("odd", [torch.ones(()), torch.ones(60, 490), torch.ones(60, 490, dtype=torch.float64)])
def test_a_second_moment_that_only_the_base_has_is_refused(odd: Tensor) -> None:
    base, state = optimizers(1)["sgd"]
    raw = bytearray(encoded(state, base))
    tensors = dict(sorted({**base.tensors, "optimizer/state/0/exp_avg_sq": odd}.items()))
    with pytest.raises(FormatError, match="wrongly"):
        LOSSLESS.decode(raw, State(tree_of(list(tensors)), tensors))


@given(st.data())
def test_a_damaged_object_is_refused_in_one_line(data: st.DataObject) -> None:
    base, state = PAIR
    raw = bytearray(encoded(state, base))
    position = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 400))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(FormatError):
        LOSSLESS.decode(raw, base).digest()


PAIR = optimizers(1)["sgd"]
