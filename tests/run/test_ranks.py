"""Several processes, without processes: their states taken apart, their blocks, and what no reader believes."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, PolError, StrayedError
from proof_of_learning.numeric.randomness import RngSnapshot, preserved
from proof_of_learning.proof import parse
from proof_of_learning.proof.blocks import Columns, Share
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import protocol
from proof_of_learning.replay.twins import own_twins, twins
from proof_of_learning.run import conducting
from proof_of_learning.run.events import BATCH, END, Event, encode
from proof_of_learning.run.parts import Generators, arrange
from proof_of_learning.run.ranks import Buckets, kinds_of, lost
from proof_of_learning.state.ranks import divided, kinds, manifest, of_all, of_rank
from proof_of_learning.state.state import State, capture, check_tree


class Queue:
    def __init__(self, value: float) -> None:
        self.kept = [torch.full((2,), value), torch.tensor(3)]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "number": 4}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.kept = values["kept"]


def parts(value: float) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    mean = model[1].get_buffer("running_mean")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    mean.fill_(value)
    return arrange({"model": model, "optimizer": optimizer, "queue/a": Queue(value)})


@pytest.fixture
def three() -> list[dict[str, Any]]:
    return [parts(value) for value in (0.0, 1.0, 2.0)]


def joint(three: list[dict[str, Any]]) -> State:
    taken = [divided(capture(its), kinds_of(its)) for its in three]
    assert all(manifest(common) == manifest(taken[0][0]) for common, _ in taken)
    return of_all(capture(three[0]), [own for _, own in taken[1:]])


@pytest.mark.quick
def test_a_state_of_several_processes_gives_back_that_of_each(three: list[dict[str, Any]]) -> None:
    state = joint(three)
    check_tree(state.tree, state.tensors)
    assert set(state.parts()) == set(kinds(kinds_of(three[0]), 3))
    assert {name for name in state.tensors if "parameters" in name and "@" in name} == set()
    for rank, its in enumerate(three):
        assert of_rank(state, rank).digest() == capture(its).digest()


def test_a_process_cannot_be_given_weights_of_its_own(three: list[dict[str, Any]]) -> None:
    state = joint(three)
    tree = copy.deepcopy(state.tree)
    nodes = dict(tree["d"])
    weights = dict(nodes["s:model"]["d"])["s:frozen"]
    nodes["s:model@1"]["d"] = sorted([*nodes["s:model@1"]["d"], ["s:frozen", weights]])
    with pytest.raises(FormatError, match="parameters of its own in its part 'model@1'"):
        of_rank(State(tree, state.tensors), 1)
    of_rank(State(tree, state.tensors), 2)
    with pytest.raises(FormatError, match="nothing of process 3"):
        of_rank(state, 3)


def columns() -> Columns:
    def share(first: int) -> Share:
        rng = [RngSnapshot({"torch": np.full(4, first, np.uint8)})] * 2
        loop = [encode([Event(BATCH, (1, 0, 0), 0, 1)]), encode([Event(BATCH, (1, 0, 0), 1, 1), Event(END)])]
        return Share([np.array([first]), np.array([first + 1])], rng, loop)

    own = share(0)
    return Columns(np.zeros(2), np.zeros((2, 1)), own.indices, own.rng, loop=own.loop, ranks=(share(2), share(4)))


def test_a_block_holds_what_each_process_drew() -> None:
    raw = columns().encode()
    again = Columns.decode(bytearray(raw), 2, "the block", 3)
    assert [[row.tolist() for row in share.indices or []] for share in again.ranks] == [[[2], [3]], [[4], [5]]]
    assert again.encode() == raw
    with pytest.raises(FormatError, match="unexpected columns: rank/2"):
        Columns.decode(bytearray(raw), 2, "the block", 2)


# Header fields that are changed, and what is said.
HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"ranks": 0}, "0 processes took part"),
    ({"ranks": 9}, "this version knows proofs of 1 to 8"),
    ({"ranks": 2}, "which only a script's run has"),
    ({"parts": {"model@1": "module"}}, "a part is named as another process's, but there is one"),
]
SCRIPTS: list[tuple[dict[str, Any], str]] = [
    ({"parts": {"model@1": "module"}, "ranks": 3}, "other parts of their own than each other"),
    ({"parts": {"model@01": "module"}, "ranks": 2}, "other parts of their own than each other"),
    ({"parts": {"model@2": "module"}, "ranks": 2}, "other parts of their own than each other"),
    ({"parts": {"optimizer@1": "optimizer"}, "ranks": 2}, "no process has a part 'optimizer@1' of its own"),
    ({"parts": {"model@1": "stateful"}, "ranks": 2}, "no process has a part 'model@1' of its own"),
    ({"parts": {"other@1": "module"}, "ranks": 2}, "no process has a part 'other@1' of its own"),
]


def changed(header: Header, change: dict[str, Any], script: bool) -> Header:
    changes = {**change, **({"parts": {**header.parts, **change["parts"]}} if "parts" in change else {})}
    if script:
        randomness = msgspec.structs.replace(header.randomness, mode="recorded")
        start = msgspec.structs.replace(header.initialization, kind="recorded")
        program = msgspec.structs.replace(header.program, kind="script", settings={})
        header = msgspec.structs.replace(header, randomness=randomness, initialization=start, program=program)
    return msgspec.structs.replace(header, **changes)


@pytest.mark.parametrize(("change", "says"), [*HEADERS, *SCRIPTS], ids=[row[1] for row in [*HEADERS, *SCRIPTS]])
def test_a_header_says_of_processes_what_can_be(change: dict[str, Any], says: str, tiny_proof: Any) -> None:
    header = changed(Proof.open(tiny_proof).header, change, (change, says) in SCRIPTS)
    with pytest.raises(PolError, match=says):
        parse.parse_header(canonical.encode(header))
    sound = changed(header, {"parts": {"model@1": "module"}, "ranks": 2}, True)
    parts = {name: kind for name, kind in sound.parts.items() if name in ("model", "model@1", "optimizer", "progress")}
    assert parse.parse_header(canonical.encode(msgspec.structs.replace(sound, parts=parts))).ranks == 2


def taken(value: float, **changes: Any) -> conducting.Reply:
    its = parts(value)
    common, own = divided(capture(its), kinds_of(its))
    answer = protocol.Taken(
        [1.0 + value], [[0.1]], 0.0, False, [1, 0, 0, 2], canonical.sha256(repr(manifest(common)).encode())
    )
    return msgspec.structs.replace(answer, **changes), [capture(its) if value == 0 else own]


# How an answer of the second process differs, and what is said.
PARTED: list[tuple[dict[str, Any], str]] = [
    ({"alike": "sha256:0"}, "process 1 arrives at other weights"),
    ({"rates": [[0.2]]}, "goes another way"),
    ({"closed": True}, "goes another way"),
    ({"asked": [1, 0, 0, 3]}, "goes another way"),
]


def test_answers_of_processes_are_one_or_say_where_they_part(three: list[dict[str, Any]]) -> None:
    answer, (state,) = conducting.together([taken(0.0), taken(1.0), taken(2.0)])
    assert isinstance(answer, protocol.Taken)
    assert (answer.losses, answer.alike) == ([2.0], "") and state.digest() == joint(three).digest()
    for changes, says in PARTED:
        with pytest.raises(StrayedError, match=says):
            conducting.together([taken(0.0), taken(1.0, **changes)])


def test_the_cause_is_told_and_not_that_another_process_was_lost() -> None:
    gone = protocol.Failed("TaskError", "RuntimeError: [/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), ()
    cause = protocol.Failed("StrayedError", "in step 3 the script's loop takes another way"), ()
    assert lost(gone[0].message) and not lost(cause[0].message)
    assert conducting.together([gone, cause])[0] == cause[0]
    assert conducting.together([gone, gone])[0] == gone[0]


class Wrapper:
    """As much of DistributedDataParallel as buckets are asked of."""

    def __init__(self) -> None:
        self.parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
        self.reducer = self

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        return self.parameters, [False] * 3

    def _rebuild_buckets(self) -> bool:
        return False

    def _get_zeros_like_grad_buckets(self) -> list[Any]:
        held = self.parameters

        class Bucket:
            def parameters(self) -> list[nn.Parameter]:
                return held

        return [Bucket()]


@pytest.mark.parametrize("order", [[[0, 1]], [[0, 1, 1]], [[0, 1, 3]], [[0, 1, "2"]], [[0, 1, True]], [[2, 1, 0, -1]]])
def test_buckets_of_a_state_name_each_parameter_once(order: list[list[Any]]) -> None:
    buckets = Buckets({"model": Wrapper()})
    buckets.load_state_dict(buckets.state_dict())
    with pytest.raises(FormatError, match="each parameter once"):
        buckets.load_state_dict({"model": order})
    with pytest.raises(FormatError, match="other modules"):
        buckets.load_state_dict({"other": [[0, 1, 2]]})


def drawing(*seeds: int, ahead: int = 0) -> list[dict[str, Any]]:
    """Processes whose generators are seeded so; those behind the first have drawn so many numbers already."""
    found = []
    for rank, seed in enumerate(seeds):
        with preserved():
            torch.manual_seed(seed)
            torch.empty(ahead * rank, dtype=torch.int32).random_()
            np.random.seed(100 + rank)
            random.seed(100 + rank)
            held = Generators().state_dict()
        found.append({**parts(0.0), "generators": Held(held)})
    return found


class Held:
    def __init__(self, held: dict[str, torch.Tensor]) -> None:
        self.held = held

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.held

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.held = values


def disguised(processes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same draws from other bytes: the seed that was is a part of PyTorch's."""
    for rank, its in enumerate(processes):
        its["generators"].held["torch"][:8] = rank
    return processes


@pytest.mark.parametrize(
    ("processes", "found"),
    [
        (drawing(1, 2, 3), ()),
        (drawing(1, 2, 1), ("torch",)),
        (drawing(1, 1, ahead=5000), ("torch",)),  # most of each batch would be the same
        (disguised(drawing(1, 1)), ("torch",)),
        (drawing(1), ()),
    ],
)
def test_processes_that_draw_the_same_are_found(processes: list[dict[str, Any]], found: tuple[str, ...]) -> None:
    state, before = joint(processes), torch.get_rng_state()
    assert twins(state) == found and torch.equal(before, torch.get_rng_state())
    assert own_twins(state, state) == found
    assert twins(state, state) == ()  # nothing was drawn
    assert (
        own_twins(state, joint(drawing(*range(7, 7 + len(processes))))) == ()
    )  # what the script seeds alike is its affair


def test_a_generator_that_none_could_be_is_no_twin() -> None:
    processes = drawing(1, 1)
    for its, dtype in zip(processes, (torch.bfloat16, torch.uint8), strict=True):
        its["generators"].held["torch"] = torch.zeros(3, dtype=dtype)
    assert twins(joint(processes)) == ()
