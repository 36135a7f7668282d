"""The raw codec and the columns of a block: safetensors files with one spelling."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs import get_codec
from proof_of_learning.proof.codecs.raw import decode_tensors, encode_tensors
from proof_of_learning.state.state import State
from support_strategies import RECORDED, bits, same, states, tensor_of

CODEC = get_codec("raw")


def encoded(state: State) -> bytes:
    return b"".join(bytes(piece) for piece in CODEC.encode(state, None).chunks())


def decoded(raw: bytes) -> State:
    return CODEC.decode(bytearray(raw), None)


@pytest.mark.quick
@given(states())
def test_states_come_back_bit_for_bit_in_one_spelling(state: State) -> None:
    raw = encoded(state)
    again = decoded(raw)
    assert again.tree == state.tree
    assert same(dict(sorted(again.tensors.items())), dict(sorted(state.tensors.items())))
    assert again.digest() == state.digest()
    assert encoded(again) == raw
    assert encoded(State(state.tree, dict(reversed(state.tensors.items())))) == raw


@pytest.mark.parametrize("dtype", RECORDED, ids=str)
@pytest.mark.parametrize("shape", [[], [0], [3], [2, 0, 3], [2, 3], [1, 1, 1, 1]], ids=str)
def test_the_safetensors_library_reads_the_same_tensors(dtype: torch.dtype, shape: list[int]) -> None:
    tensors = {"a": tensor_of(dtype, shape, b"\x01\x3f\x80\x42\x07"), "b": torch.arange(3, dtype=torch.uint8)}
    raw = b"".join(bytes(piece) for piece in encode_tensors(tensors, {"pol": "x"}))
    assert {name: bits(tensor) for name, tensor in load(raw).items()} == {name: bits(t) for name, t in tensors.items()}
    mine, metadata = decode_tensors(bytearray(raw))
    assert {name: bits(tensor) for name, tensor in mine.items()} == {name: bits(t) for name, t in tensors.items()}
    assert metadata == {"pol": "x"}


def small() -> State:
    tensors = {"m/w": torch.tensor([1.0, 2.0]), "m/n": torch.tensor(3), "m/h": torch.zeros(2, 0, dtype=torch.float16)}
    tree = [["s:h", {"t": "m/h"}], ["s:n", {"t": "m/n"}], ["s:w", {"t": "m/w"}], ["s:é", {"f": "0x1.8000000000000p+1"}]]
    return State({"d": [["s:m", {"d": tree}]]}, tensors)


@pytest.mark.quick
def test_every_single_bit_counts() -> None:
    raw, digest = encoded(small()), small().digest()
    refused = 0
    for position in range(len(raw)):
        for bit in range(8):
            other = bytearray(raw)
            other[position] ^= 1 << bit
            try:
                assert decoded(bytes(other)).digest() != digest, (position, bit)
            except FormatError:
                refused += 1
    assert refused > len(raw)  # and where it is refused, with a FormatError


@given(states(), st.data())
def test_a_changed_inserted_or_lost_byte_is_noticed(state: State, data: st.DataObject) -> None:
    raw = bytearray(encoded(state))
    position = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["change", "insert", "lose", "cut", "extend"])):
        case "change":
            raw[position] ^= data.draw(st.integers(1, 255))
        case "insert":
            raw.insert(position, data.draw(st.integers(0, 255)))
        case "lose":
            del raw[position]
        case "cut":
            del raw[position:]
        case _:
            raw += data.draw(st.binary(min_size=1, max_size=9))
    with contextlib.suppress(FormatError):
        assert decoded(bytes(raw)).digest() != state.digest()


def file_of(header: Any, body: bytes = b"", pad: bool = True) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 if pad else 0)
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: Any = "F32", shape: Any = (1,), begin: Any = 0, end: Any = 4, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def test_the_file_that_the_next_tests_change_is_accepted() -> None:
    tensors, metadata = decode_tensors(bytearray(file_of({"a": entry()}, bytes(4))))
    assert bits(tensors["a"]) == bits(torch.zeros(1))
    assert metadata == {}
    assert (
        decode_tensors(bytearray(file_of({"a": entry(end=0, shape=[0]), "b": entry(end=0, shape=[0, 7])}))) is not None
    )


ENTRY = b'"a":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}'
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "header beyond the end": struct.pack("<Q", 100) + b"{}",
    "header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "not json": file_of(b"{"),
    "a list": file_of([]),
    "deep": file_of(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "duplicate": file_of(b"{" + ENTRY + b"," + ENTRY + b"}", bytes(4)),
    "white space": file_of(b"{ " + ENTRY + b"}", bytes(4)),
    "no padding": file_of({"a": entry()}, bytes(4), pad=False),
    "too much padding": file_of(b"{" + ENTRY + b"}" + b" " * 10, bytes(4)),
    "unknown type": file_of({"a": entry("F4")}, bytes(4)),
    "type is a number": file_of({"a": entry(5)}, bytes(4)),
    "field more": file_of({"a": entry(more=1)}, bytes(4)),
    "field less": file_of({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "an entry is a number": file_of({"a": 5}, bytes(4)),
    "metadata is a number": file_of({"__metadata__": 5, "a": entry()}, bytes(4)),
    "metadata of numbers": file_of({"__metadata__": {"pol": 5}, "a": entry()}, bytes(4)),
    "empty metadata": file_of({"__metadata__": {}, "a": entry()}, bytes(4)),
    "shape is text": file_of({"a": {**entry(), "shape": "1"}}, bytes(4)),
    "negative shape": file_of({"a": entry(shape=[-1])}, bytes(4)),
    "two negatives": file_of({"a": entry(shape=[-1, -1])}, bytes(4)),
    "huge shape": file_of({"a": entry(shape=[2**62])}, bytes(4)),
    "product wraps around": file_of({"a": entry(shape=[2**32, 2**32, 2])}, bytes(4)),
    "huge but empty": file_of({"a": entry(shape=[0, 2**62, 2**62], end=0)}),
    "product overflows but empty": file_of({"a": entry(shape=[0, 2**40, 2**40], end=0)}),
    "product overflows, then empty": file_of({"a": entry(shape=[2**40, 2**40, 0], end=0)}),
    "huge beyond 64 bits but empty": file_of({"a": entry(shape=[0, 2**64], end=0)}),
    "many dimensions": file_of({"a": entry(shape=[1] * 5000)}, bytes(4)),
    "many dimensions, empty": file_of({"a": entry(shape=[0] * 70, end=0)}),
    "shape that does not fill": file_of({"a": entry(shape=[2])}, bytes(4)),
    "negative offset": file_of({"a": entry(begin=-4, end=0)}, bytes(4)),
    "backward": file_of({"a": entry(begin=4, end=0)}, bytes(4)),
    "beyond the end": file_of({"a": entry(begin=4, end=8)}, bytes(4)),
    "three offsets": file_of({"a": {**entry(), "data_offsets": [0, 4, 4]}}, bytes(4)),
    "bytes left over": file_of({"a": entry()}, bytes(5)),
    "nothing but bytes": file_of({}, bytes(4)),
    "gap": file_of({"a": entry(), "b": entry(begin=8, end=12)}, bytes(12)),
    "overlap": file_of({"a": entry(), "b": entry(begin=0, end=4)}, bytes(4)),
    "other order": file_of({"a": entry(begin=4, end=8), "b": entry()}, bytes(8)),
    "unaligned": file_of({"a": entry("U8", [1], 0, 1), "b": entry(begin=1, end=5)}, bytes(5)),
    "a boolean of 2": file_of({"a": entry("BOOL", [3], 0, 3)}, b"\0\1\2"),
    "bad name": file_of(b'{"\\ud800":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}}', bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_files_that_nobody_writes_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_tensors(bytearray(raw))


def state_file(tree: Any, name: str = "m/w", **metadata: str) -> bytes:
    text = tree if isinstance(tree, str) else json.dumps(tree, separators=(",", ":"))
    header = {"__metadata__": {"pol": text, **metadata}, name: entry()}
    return file_of(json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(), bytes(4))


TREE = {"d": [["s:m", {"d": [["s:w", {"t": "m/w"}]]}]]}


@pytest.mark.parametrize(
    "raw",
    [
        state_file({"d": []}),
        state_file({"d": [["s:m", {"t": "m/w"}]]}),
        state_file({"d": [["s:m", {"d": [["s:w", {"t": "m/w"}], ["s:x", {"t": "m/w"}]]}]]}),
        state_file({"d": [["s:m", {"d": [["i:0", {"t": "m/0"}], ["s:0", {"t": "m/0"}]]}]]}, name="m/0"),
        state_file(TREE, name="m/x"),
        state_file({"l": [TREE]}),
        state_file({"d": [["s:m", {"d": [["s:w", {"t": "m/w"}]]}], {"s:n": None, "s:o": None}]}),
        state_file({"d": [[["x"], None]]}),
        state_file({"d": [[5, None]]}),
        state_file({"t": "m/w"}),
        state_file(json.dumps(TREE)),
        state_file(""),
        state_file("[" * 100_000),
        state_file(TREE, more="x"),
        file_of({"m/w": entry()}, bytes(4)),
    ],
)
def test_objects_that_are_no_states_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decoded(raw)
    assert decoded(state_file(TREE)).part("m").tensors.keys() == {"m/w"}


# ---- blocks -------------------------------------------------------------------------------------------


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    steps, groups = draw(st.integers(1, 6)), draw(st.integers(0, 3))
    floats = st.floats(allow_nan=False)
    loss = np.array(draw(st.lists(floats, min_size=steps, max_size=steps)))
    rates = np.array(draw(st.lists(floats, min_size=steps * groups, max_size=steps * groups))).reshape(steps, groups)
    if draw(st.booleans()):
        return Columns(loss, rates)
    rows = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(lambda row: np.array(row, np.int64))
    tables = {
        name: draw(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=3)) for name in ("torch", "cuda:0")
    }
    rng = [
        RngSnapshot({name: np.frombuffer(draw(st.sampled_from(table)), np.uint8) for name, table in tables.items()})
        for _ in range(steps)
    ]
    return Columns(loss, rates, draw(st.lists(rows, min_size=steps, max_size=steps)), rng)


def plain(given: Columns) -> Any:
    indices = None if given.indices is None else [row.tolist() for row in given.indices]
    rng = None if given.rng is None else [{k: v.tobytes() for k, v in row.states.items()} for row in given.rng]
    return given.loss.tobytes(), given.rates.shape, given.rates.tobytes(), indices, rng


@given(columns())
def test_columns_come_back_as_they_were(given_: Columns) -> None:
    raw = given_.encode()
    again = Columns.decode(bytearray(raw), len(given_), "block")
    assert plain(again) == plain(given_)
    for steps in (0, len(given_) - 1, len(given_) + 1, 2**40):
        with pytest.raises(FormatError, match="block"):
            Columns.decode(bytearray(raw), steps, "block")


def arrays(**changed: Any) -> bytes:
    columns = {
        "loss": np.zeros(2), "rates": np.zeros((2, 1)), "lengths": np.array([1, 1]), "indices": np.array([3, 4]),
        "rng/torch": np.zeros((1, 8), np.uint8), "rng/torch/row": np.array([0, 0]),
    }  # fmt: skip
    columns |= {name.replace("__", "/"): value for name, value in changed.items()}
    kept = {
        name: torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
        for name, value in columns.items()
        if value is not None
    }
    return b"".join(bytes(piece) for piece in encode_tensors(kept))


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": None}, {"loss": np.zeros(2, np.float32)}, {"loss": np.zeros((2, 1))}, {"loss": np.zeros(())},
        {"rates": None}, {"rates": np.zeros(2)}, {"rates": np.zeros((1, 2))}, {"rates": np.zeros((2, 1), np.int64)},
        {"lengths": np.array([1])}, {"lengths": np.array([1, 2])}, {"lengths": np.array([3, -1])}, {"lengths": None},
        {"lengths": np.array([2**62, 2**62])}, {"lengths": np.array([-(2**63), -(2**63)])}, {"indices": None},
        {"lengths": np.array([2**63 - 1, -(2**63) + 3])},
        {"indices": np.array([3])}, {"indices": np.zeros(2)}, {"rng__torch": None}, {"rng__torch__row": None},
        {"rng__torch__row": np.array([0, 1])}, {"rng__torch__row": np.array([0, -1])}, {"rng__torch__row": np.array([0.0, 0])},
        {"rng__torch": np.zeros((0, 8), np.uint8)}, {"rng__torch": np.zeros(8, np.uint8)}, {"more": np.zeros(1)},
        {"rng__row": np.zeros(2, np.int64)}, {"rng__": np.zeros((1, 8), np.uint8)},
    ],
    ids=str,
)  # fmt: skip
def test_columns_that_nobody_writes_are_refused(changed: dict[str, Any]) -> None:
    assert plain(Columns.decode(bytearray(arrays()), 2, "block"))[3] == [[3], [4]]
    with pytest.raises(FormatError, match="block"):
        Columns.decode(bytearray(arrays(**changed)), 2, "block")


@pytest.mark.parametrize("dtype", [t for t in RECORDED if t not in (torch.float64, torch.int64, torch.uint8)], ids=str)
def test_columns_of_types_that_no_column_has_are_refused(dtype: torch.dtype) -> None:
    """NumPy knows some of them by no name."""
    tensors, _ = decode_tensors(bytearray(arrays()))
    raw = b"".join(bytes(piece) for piece in encode_tensors({**tensors, "x": torch.zeros(0, dtype=dtype)}))
    with pytest.raises(FormatError, match="block: the column 'x'"):
        Columns.decode(bytearray(raw), 2, "block")
