"""What a state shares with the one before is parsed, laid out and measured once: results and refusals are those of states alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs import get_codec, raw
from proof_of_learning.replay import measure, vectors
from proof_of_learning.replay.held import Weights
from proof_of_learning.replay.measure import displacement, weight_distance, weights
from proof_of_learning.state import recalled
from proof_of_learning.state.joining import joined
from proof_of_learning.state.state import State, capture
from proof_of_learning.verifier import inertia as inertias
from proof_of_learning.verifier.inertia import inertia

CODEC = get_codec("raw")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5, centered=True),
    "other": lambda p: torch.optim.NAdam(p, 0.1),
}


def states(kind: str = "sgd", count: int = 3) -> Iterator[State]:
    """A few states of one run: many small tensors, integers, one of half precision."""
    torch.manual_seed(1)
    layers = [module for _ in range(4) for module in (nn.Linear(8, 8), nn.BatchNorm1d(8))]
    model = nn.Sequential(*layers)
    model.register_buffer("short", torch.ones(5, dtype=torch.float16))
    model.register_buffer("seen", torch.tensor([True, False]))
    optimizer = OPTIMIZERS[kind](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(count):
        model(torch.randn(6, 8)).square().mean().backward()
        optimizer.step()
        schedule.step()
        yield capture({"model": model, "optimizer": optimizer, "scheduler": schedule})


def encoded(state: State) -> bytes:
    return b"".join(bytes(piece) for piece in CODEC.encode(state, None).chunks())


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the codec remember nothing, as if each state were the first."""
    return lambda: monkeypatch.setattr(raw, "_recalled", lambda given: None)


def test_a_state_is_the_same_whether_its_like_was_seen_or_not(forgetful: Callable[[], None]) -> None:
    given = [encoded(state) for state in states()]
    quick = [CODEC.decode(bytearray(one), None) for one in given]
    assert all(state.flat is not None for state in quick)
    assert len({id(state.flat.layout) for state in quick if state.flat is not None}) == 1
    forgetful()
    for one, two in zip(quick, (CODEC.decode(bytearray(one), None) for one in given), strict=True):
        assert one.tree == two.tree and list(one.tensors) == list(two.tensors) and one.digest() == two.digest()
        assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in two.tensors)
        assert all(one.bytes_of(name) == two.bytes_of(name) for name in two.tensors)
        assert two.flat is None


def changed(given: bytes, change: Callable[[dict[str, Any]], None] | None, text: Callable[[bytes], bytes]) -> bytes:
    """An object with another header."""
    (size,) = struct.unpack_from("<Q", given)
    header = json.loads(given[8 : 8 + size])
    if change is not None:
        change(header)
    spelled = text(json.dumps(header, separators=(",", ":"), sort_keys=True).encode())
    spelled += b" " * (-len(spelled) % 8)
    return struct.pack("<Q", len(spelled)) + spelled + given[8 + size :]


def tree(edit: Callable[[Any], object]) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        content = json.loads(header["__metadata__"]["pol"])
        edit(content)
        header["__metadata__"]["pol"] = json.dumps(content, separators=(",", ":"), sort_keys=True)

    return change


def nested(content: Any) -> None:
    node: Any = True
    for _ in range(61):
        node = {"l": [node]}
    content["d"][-1][1] = {"d": [["s:deep", node]]}


def position(content: Any) -> None:
    """A tensor in the place of a parameter's position; it is named as one that lies there."""
    groups = dict(content["d"][1][1]["d"])["s:groups"]["l"]
    dict(groups[0]["d"])["s:params"]["l"][0] = {"t": "optimizer/groups/0/params/0"}


FORGED: dict[str, tuple[Callable[[dict[str, Any]], None] | None, Callable[[bytes], bytes]]] = {
    "a space": (None, lambda text: text.replace(b'"},"', b'"}, "', 1)),
    "eight more": (None, lambda text: text + b" " * 8),
    "an escape": (None, lambda text: text.replace(b"model", b"\\u006dodel", 1)),
    "other metadata": (lambda header: header["__metadata__"].update(zzz="1"), bytes),
    "no tree": (lambda header: header["__metadata__"].update(pol="1"), bytes),
    "a tree with spaces": (
        lambda header: header["__metadata__"].update(pol=header["__metadata__"]["pol"].replace(",", ", ", 1)),
        bytes,
    ),
    "a part twice": (tree(lambda content: content["d"].insert(0, content["d"][0])), bytes),
    "parts out of order": (tree(lambda content: content["d"].reverse()), bytes),
    "a part less": (tree(lambda content: content["d"].pop(0)), bytes),
    "too deep": (tree(nested), bytes),
    "a tensor for a position": (tree(position), bytes),
    "one byte less": (None, lambda text: text.replace(b'"shape":[8,8]', b'"shape":[8,7]', 1)),
    "a gap": (lambda header: header["model/buffers/seen"]["data_offsets"].__setitem__(1, 10**6), bytes),
    "a name": (lambda header: header.update({"z": header.pop("model/buffers/seen")}), bytes),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_refused_alone_is_refused_after_its_like(name: str, forgetful: Callable[[], None]) -> None:
    given = [encoded(state) for state in states()]
    forged = changed(given[1], *FORGED[name])
    assert forged != given[1] and changed(given[1], None, bytes) == given[1]
    CODEC.decode(bytearray(given[0]), None)
    with pytest.raises(FormatError) as after:
        CODEC.decode(bytearray(forged), None)
    forgetful()
    with pytest.raises(FormatError) as alone:
        CODEC.decode(bytearray(forged), None)
    assert str(after.value) == str(alone.value)


def test_values_that_are_no_booleans_are_refused_after_their_like() -> None:
    first, second, _ = (encoded(state) for state in states())
    CODEC.decode(bytearray(first), None)
    with pytest.raises(FormatError, match="no booleans"):
        CODEC.decode(bytearray(second[:-1] + b"\x07"), None)


def test_what_is_remembered_is_bounded() -> None:
    assert recalled._known.cache_info().maxsize == recalled.KEPT
    assert recalled.KEPT * recalled.MOST <= 4 << 20 and raw._KEPT * raw._MOST <= 1 << 20


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_lies_end_to_end_measures_as_tensors_do_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PIECE", 100)  # so that there are several pieces, and tensors larger than one
    monkeypatch.setattr(measure, "PIECE", 100)
    vectors.pieces.cache_clear()
    loose = list(states(kind))
    loose[2].tensors["model/buffers/short"][1] = float("inf")
    flat = [joined(state) for state in loose]
    for one, two in zip(loose, flat, strict=True):
        assert two.flat is not None and one.flat is None and State(two.tree, two.tensors).digest() == one.digest()
    for a in range(3):
        for b in range(3):
            assert displacement(flat[a], flat[b]) == displacement(loose[a], loose[b])
            apart = weight_distance(weights(loose[a]), weights(loose[b]))
            assert Weights.of(flat[a]).distance(flat[b]) == Weights.of(loose[a]).distance(loose[b]) == apart
    vectors.pieces.cache_clear()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_inertia_of_small_tensors_together_is_that_of_each(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = list(states(kind))[-1]
    together = inertia(state, [0.1])
    monkeypatch.setattr(inertias, "_small", lambda value: False)
    assert inertia(state, [0.1]) == together > 0
