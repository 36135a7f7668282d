"""Codecs that take differences or round in the loop: states come back, replay stays exact, nothing is left to choose."""

from __future__ import annotations

import functools
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import proof_of_learning as pol
from proof_of_learning import TaskReference
from proof_of_learning.attacks import forge_proof
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.limits import HEADER_WEIGHT, MAX_CHAIN, WEIGHT_ROOM
from proof_of_learning.proof.codecs import NAMES, gaps, get_codec, likely, packed
from proof_of_learning.proof.format import CodecClaim
from proof_of_learning.proof.reader import Proof, load_state
from proof_of_learning.state.state import State
from support_bombs import tightly
from support_proofs import tree_of
from support_strategies import optimizer_states, same, states

LOSSLESS = get_codec("lossless")
APART = ("moved", "new", "octaves")  # of which items are stored by `compact` in streams of their own
ROUNDING = ("float16", "quantised", "compact")


def there_and_back(state: State, base: State | None, codec: Any = LOSSLESS) -> tuple[bytes, State]:
    encoded = codec.encode(state, base)
    raw = b"".join(bytes(piece) for piece in encoded.chunks())
    back = codec.decode(bytearray(raw), base)
    assert back.digest() == encoded.state.digest()
    return raw, back


@given(states(), states())
def test_lossless_states_come_back_bit_for_bit_with_and_without_a_base(state: State, base: State) -> None:
    for before in (None, base, state):
        back = there_and_back(state, before)[1]
        assert back.digest() == state.digest()
        assert all(same(back.tensors[name], tensor) for name, tensor in state.tensors.items())


def optimizer_state(seed: int, scale: float = 1.0) -> State:
    """Weights, a momentum, Adam's moments, and what no codec may touch."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * scale

    tensors = {
        "model/buffers/norm": normal(7),
        "model/parameters/w": normal(40, 30),
        "model/parameters/tiny": normal(1) * 1e-30,
        "optimizer/state/0/exp_avg": normal(40, 30) * 1e-4,
        "optimizer/state/0/exp_avg_sq": (normal(40, 30) * 1e-4) ** 2,
        "optimizer/state/0/step": torch.tensor(5.0),
        "optimizer/state/1/momentum_buffer": normal(1),
        "optimizer/state/2/count": torch.arange(5),
    }
    return State(tree_of(tensors), tensors)


def near(state: State, seed: int, by: float = 1e-3) -> State:
    draw = torch.Generator().manual_seed(seed)
    moved = {
        name: (t * (1 + by * torch.randn(t.shape, generator=draw)) if t.is_floating_point() and t.ndim else t)
        for name, t in state.tensors.items()
    }
    return State(state.tree, moved)


@pytest.mark.parametrize("name", ROUNDING)
def test_tensors_rounded_together_come_out_as_each_of_them_alone(name: str) -> None:
    """Small tensors are laid end to end; one that cannot be rounded takes no other with it."""
    draw, codec = torch.Generator().manual_seed(5), get_codec(name)

    def tensors(scale: float) -> dict[str, Tensor]:
        shapes = {"a": (3, 4), "b": (70_000,), "c": (1,), "d": (300, 500)}
        found = {f"model/parameters/{n}": torch.randn(*s, generator=draw) * scale for n, s in shapes.items()}
        found |= {f"optimizer/state/{n}/exp_avg": torch.randn(*s, generator=draw) for n, s in shapes.items()}
        found |= {f"optimizer/state/{n}/exp_avg_sq": torch.rand(*s, generator=draw) * scale for n, s in shapes.items()}
        return found

    before, after = tensors(1.0), tensors(1e-3)
    outlier = after["optimizer/state/b/exp_avg"]
    outlier[7] = 1e30  # which, over a second moment of 0, is not finite
    before["optimizer/state/b/exp_avg_sq"][7] = after["optimizer/state/b/exp_avg_sq"][7] = 0.0
    together = codec.encode(State({}, after), State({}, before)).state.tensors
    for slot in "abcd":
        names = [n for n in after if n.split("/")[2] == slot]
        alone = codec.encode(
            State({}, {n: after[n] for n in names}), State({}, {n: before[n] for n in names})
        ).state.tensors
        assert all(same(alone[n], together[n]) for n in names)
    if name == "quantised":
        assert same(together["optimizer/state/b/exp_avg"], outlier)
    assert not same(together["optimizer/state/a/exp_avg"], after["optimizer/state/a/exp_avg"])


@pytest.mark.parametrize("name", ROUNDING)
def test_rounding_keeps_counters_and_buffers_and_what_is_small(name: str) -> None:
    base = optimizer_state(0)
    state = near(base, 1)
    raw, back = there_and_back(state, base, get_codec(name))
    assert len(raw) < len(b"".join(bytes(p) for p in LOSSLESS.encode(state, base).chunks()))
    for kept in ("model/buffers/norm", "optimizer/state/0/step", "optimizer/state/2/count"):
        assert same(back.tensors[kept], state.tensors[kept])
    for rounded in ("model/parameters/w", "model/parameters/tiny", "optimizer/state/0/exp_avg"):
        error = (back.tensors[rounded] - state.tensors[rounded]).norm()
        moved = (state.tensors[rounded] - base.tensors[rounded]).norm()
        reference = state.tensors[rounded].norm() if "exp_avg" in rounded else moved
        assert 0 < float(error) < float(reference) * (1.5 if name == "compact" else 1.0)
    second = back.tensors["optimizer/state/0/exp_avg_sq"]
    assert bool((second > 0).all())  # none became zero, by which an update would be divided
    assert float((second.log2() - state.tensors["optimizer/state/0/exp_avg_sq"].log2()).abs().max()) < (
        0.6 if name == "compact" else 0.2
    )


@pytest.mark.parametrize("name", ROUNDING)
@given(
    seed=st.integers(0, 10_000), by=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), scale=st.sampled_from([1e-20, 1.0, 1e15])
)
def test_rounding_is_deterministic_and_the_nearest_state_is_the_state_itself(
    name: str, seed: int, by: float, scale: float
) -> None:
    codec, base = get_codec(name), optimizer_state(seed, scale)
    state = near(base, seed + 1, by)
    raw, recorded = there_and_back(state, base, codec)
    assert there_and_back(State(state.tree, dict(state.tensors)), base, codec)[0] == raw
    inside = codec.nearest(state, recorded, base)
    assert all(same(inside.tensors[n], t) for n, t in state.tensors.items())


@pytest.mark.parametrize("name", ROUNDING)
def test_what_lies_just_outside_its_interval_is_moved_by_just_so_much(name: str) -> None:
    codec, base = get_codec(name), optimizer_state(3)
    state = near(base, 4)
    recorded = codec.encode(state, base).state
    noisy = near(state, 5, 1e-7)  # a replay on another machine
    inside = codec.nearest(noisy, recorded, base)
    for tensor in ("model/parameters/w", "optimizer/state/0/exp_avg", "optimizer/state/0/exp_avg_sq"):
        error = (inside.tensors[tensor] - noisy.tensors[tensor]).abs().max() / noisy.tensors[tensor].abs().max()
        assert float(error) < 1e-6
    assert codec.encode(inside, base).state.tensors["model/parameters/w"].shape == (40, 30)


@pytest.mark.parametrize("name", ROUNDING)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_replay_that_ends_in_no_numbers_is_near_to_nothing(name: str, value: float) -> None:
    codec, base = get_codec(name), optimizer_state(3)
    recorded = codec.encode(near(base, 4), base).state
    arrived = {n: torch.full_like(t, value) if t.is_floating_point() else t for n, t in recorded.tensors.items()}
    found = codec.nearest(State(recorded.tree, arrived), recorded, base)
    assert all(same(found.tensors[n], t) for n, t in recorded.tensors.items())


def test_a_recorded_value_that_no_rounding_gives_is_not_excused(digits: TaskReference) -> None:
    codec, base = get_codec("quantised"), optimizer_state(3)
    state = near(base, 4)
    recorded = codec.encode(state, base).state
    nudged = dict(recorded.tensors)
    nudged["model/parameters/w"] = recorded.tensors["model/parameters/w"] * (
        1 + 1e-4
    )  # inside the interval, off the grid
    wanted = codec.nearest(state, State(state.tree, nudged), base)
    assert same(wanted.tensors["model/parameters/w"], nudged["model/parameters/w"])


# ---- whole proofs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny: TaskReference) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("codecs")
    return {
        f"{codec} {optimizer}": Path(
            pol.prove(
                TaskReference(tiny.target, {"optimizer": optimizer}), folder / f"{codec}-{optimizer}.pol",
                interval=2, codec=codec, asynchronous=optimizer == "adamw",
            ).path
        )
        for codec in NAMES
        for optimizer in ("momentum", "adamw", "rmsprop-centered")
    }  # fmt: skip


# Each codec with one optimizer, and each optimizer with one of the codecs that round.
PAIRED = {
    ("raw", "momentum"), ("lossless", "rmsprop-centered"), ("float16", "adamw"), ("quantised", "momentum"),
    ("quantised", "rmsprop-centered"), ("compact", "momentum"), ("compact", "adamw"),
}  # fmt: skip
OTHER = pytest.mark.slow(reason="another pair of a codec and an optimizer that stay in other pairs")


@pytest.mark.parametrize(
    ("codec", "optimizer"),
    [
        pytest.param(codec, optimizer, marks=() if (codec, optimizer) in PAIRED else OTHER)
        for codec in NAMES
        for optimizer in ("momentum", "adamw", "rmsprop-centered")
    ],
)
def test_every_segment_of_every_codec_replays_bit_for_bit(
    codec: str, optimizer: str, recorded: dict[str, Path], tiny: TaskReference
) -> None:
    task = TaskReference(tiny.target, {"optimizer": optimizer})
    verdict = pol.verify(recorded[f"{codec} {optimizer}"], pol.load_task(task), everything=True)
    assert (verdict.verdict, verdict.exactness) == ("valid", "exact")
    proof = Proof.open(recorded[f"{codec} {optimizer}"])
    rounded = [segment.arrived != segment.state for segment in proof.segments]
    assert rounded[:-1] == [codec in ROUNDING] * (len(rounded) - 1)
    assert not rounded[-1]  # the final state is as training left it


@pytest.mark.parametrize(
    ("codec", "interval", "said"), [("quantised", 2, True), ("quantised", 10, False), ("compact", 2, False)]
)
def test_a_codec_that_harms_training_at_such_an_interval_is_said(
    codec: str, interval: int, said: bool, tiny: TaskReference, tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pol.prove(tiny, tmp_path / "run.pol", interval=interval, codec=codec, rehearse=False)
    assert any("`compact`" in str(warning.message) for warning in caught) == said


def test_states_open_in_any_order(recorded: dict[str, Path]) -> None:
    for path in recorded.values():
        proof = Proof.open(path)
        for digest in reversed(proof.state_digests()):
            assert proof.state(digest).digest() == digest


@pytest.mark.usefixtures("every_segment")
def test_a_state_continued_off_the_grid_is_rejected(
    recorded: dict[str, Path], tiny: TaskReference, tmp_path: Path
) -> None:
    """A prover who chooses what the codec makes of his state steers the training; each step replays, and yet it does not pass."""
    source = Proof.open(recorded["quantised momentum"])
    task = pol.load_task(TaskReference(tiny.target, {"optimizer": "momentum"}))
    states_ = [source.state(digest) for digest in source.state_digests()]
    steered = dict(states_[4].tensors)
    name = next(n for n in steered if n.startswith("model/parameters/") and n.endswith("weight"))
    steered[name] = steered[name] + 1e-5
    states_[4] = State(states_[4].tree, steered)
    forge_proof(
        tmp_path / "steered.pol", task, states_, None, interval=2, codec=CodecClaim("quantised", 1, in_loop=True),
        arrived=[segment.arrived for segment in source.segments],
        hyperparameters={"loss": [loss for columns in source.all_columns() for loss in columns.loss.tolist()]},
    )  # fmt: skip
    verdict = pol.verify(tmp_path / "steered.pol", task, everything=True)
    assert verdict.verdict == "invalid"
    assert [s.index for s in verdict.segments if s.status == "fail"] == [3, 4]
    assert "codec" in next(s.note for s in verdict.segments if s.index == 3)


# ---- compact ---------------------------------------------------------------------------------------------


def stepped(steps: int, seed: int = 0, adam: bool = False) -> tuple[State, State]:
    """Two states, so many steps of an optimizer apart, with the optimizer's own arithmetic."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(80, 60, generator=draw) * 0.1)
    optimizer = torch.optim.AdamW([weight], lr=1e-3) if adam else torch.optim.SGD([weight], lr=0.05, momentum=0.9)

    def state() -> State:
        kept = optimizer.state[weight]
        tensors = {"model/parameters/w": weight.detach().clone()}
        tensors |= {f"optimizer/state/0/{key}": value.clone() for key, value in kept.items() if value.ndim}
        return State(tree_of(tensors), tensors)

    found = []
    for step in range(30 + steps):
        if step in (30, 30 + steps):
            found.append(state())
        weight.grad = torch.randn(80, 60, generator=draw) * 0.01
        optimizer.step()
    return found[0], state()


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("steps", [1, 10])
def test_compact_takes_less_than_quantised(adam: bool, steps: int) -> None:
    base, state = stepped(steps, adam=adam)
    compact, quantised = (len(there_and_back(state, base, get_codec(name))[0]) for name in ("compact", "quantised"))
    assert compact < 0.8 * quantised  # a header of 300 bytes included, which larger tensors would not notice


def at_step(state: State, step: int) -> State:
    """The same state, which says that so many steps were done."""
    progress = ["s:progress", {"d": [["s:step", {"i": str(step)}]]}]
    return State({"d": [*state.tree["d"], progress]}, state.tensors)


def test_what_hardly_moves_and_is_tiny_stays_what_it_is() -> None:
    """The grid of a tensor that does not move is the finest there is; a weight below it once came out twice as large."""
    tensors = {"model/parameters/w": torch.tensor([-1.5648e-32, 2.2e-33, 4e-38])}
    state = State(tree_of(tensors), tensors)
    found = get_codec("compact").encode(state, state).state.tensors["model/parameters/w"]
    assert float((found - tensors["model/parameters/w"]).abs().max()) <= 2.0**-126


def test_what_compact_rounds_off_is_nothing_in_the_mean() -> None:
    """Over forty steps, whose noise differs, with the same movement."""
    (base, state), codec, name = stepped(10), get_codec("compact"), "model/parameters/w"
    errors = [codec.encode(state, at_step(base, step)).state.tensors[name] - state.tensors[name] for step in range(40)]
    moved = state.tensors[name] - base.tensors[name]
    single = torch.stack(errors).norm() / math.sqrt(40) / moved.norm()
    together = torch.stack(errors).mean(0).norm() / moved.norm()
    assert float(single) > 0.5  # each is coarse
    assert float(together) < 0.3 * float(single)  # and they cancel: by the root of forty, if they are independent


def test_the_noise_of_compact_is_not_the_prover_s_to_choose() -> None:
    """A verifier that allows noise would not see the last bit of a weight; other rounding of all others must not follow from it."""
    (base, state), codec, name = stepped(10), get_codec("compact"), "model/parameters/w"
    nudged = base.tensors[name].clone()
    nudged[0, 0] += 1e-7
    one, two = (
        codec.encode(state, State(base.tree, {**base.tensors, name: at})).state for at in (nudged, base.tensors[name])
    )
    apart = one.tensors[name] != two.tensors[name]
    assert int(apart.sum()) <= 1
    later = codec.encode(state, at_step(base, 31)).state  # and every step has its own
    assert (later.tensors[name] != one.tensors[name]).float().mean() > 0.1


@pytest.mark.parametrize("name", ROUNDING)
def test_rounding_is_the_same_where_the_processor_makes_zeros_of_denormal_numbers(name: str) -> None:
    """A layer without a gradient: its momentum decays through them."""
    codec, (base, state) = get_codec(name), stepped(10)
    tiny = {"optimizer/state/0/momentum_buffer": 1e-38, "model/parameters/w": 1e-36}
    small, smaller = (
        State(at.tree, {key: tensor * tiny[key] for key, tensor in at.tensors.items()}) for at in (base, state)
    )
    raw, expected = there_and_back(smaller, small, codec)
    torch.set_flush_denormal(True)
    try:
        encoded = codec.encode(smaller, small)
        again = b"".join(bytes(piece) for piece in encoded.chunks())
        decoded = codec.decode(bytearray(raw), small)
    finally:
        torch.set_flush_denormal(False)
    assert again == raw
    for found in (encoded.state, decoded):
        assert found.digest() == expected.digest()


def test_a_weight_that_its_base_lacks_is_foretold_by_nothing() -> None:
    base, state = stepped(10)
    raw, _ = there_and_back(state, base, get_codec("compact"))
    assert packed.unpack(bytearray(raw), base, None, APART)[1]["model/parameters/w"].by
    lacking = State(base.tree, {n: tensor for n, tensor in base.tensors.items() if n != "model/parameters/w"})
    with pytest.raises(FormatError, match="wrongly"):
        get_codec("compact").decode(bytearray(raw), lacking)


def test_a_variance_that_is_a_difference_is_kept_to_the_bit(recorded: dict[str, Path]) -> None:
    """RMSprop's ``square_avg`` less the square of its ``grad_avg`` is no less than nothing."""
    proof = Proof.open(recorded["compact rmsprop-centered"])
    assert proof.segments[0].arrived != proof.segments[0].state  # weights are rounded
    for digest in proof.state_digests()[1:]:
        tensors = proof.state(digest).tensors
        for name in [name for name in tensors if name.endswith("/grad_avg")]:
            assert bool((tensors[name.replace("grad_avg", "square_avg")] >= tensors[name] ** 2 * (1 - 1e-5)).all())


@pytest.mark.parametrize("other", ["exp_inf", "of_my_own"])
def test_a_momentum_is_kept_to_the_bit_beside_what_may_divide_it(other: str) -> None:
    """Adamax's update is its momentum over ``exp_inf``, which may be small where the momentum is and nowhere else."""
    base, state = stepped(10, adam=True)

    def renamed(at: State) -> State:
        tensors = {n.replace("exp_avg_sq", other): tensor for n, tensor in at.tensors.items()}
        return State(tree_of(tensors), tensors)

    back = there_and_back(renamed(state), renamed(base), get_codec("compact"))[1]
    assert same(back.tensors["optimizer/state/0/exp_avg"], state.tensors["optimizer/state/0/exp_avg"])
    assert not same(back.tensors["model/parameters/w"], state.tensors["model/parameters/w"])


@pytest.mark.parametrize(
    "change",
    [{"factors": [0, 2, -3]}, {"factors": [1, 2, 3]}, {"factors": [0, 300, -8]}, {"factors": [0, 2, -200]}, {"factors": [0, 2]},
     {"by": "model/parameters/w", "factors": [0, 2, -8]}, {"by": "nowhere", "factors": [1, 2, -8]}, {"scale": 900}],
)  # fmt: skip
def test_a_prediction_that_compact_would_not_make_is_refused(change: dict[str, Any]) -> None:
    base, state = stepped(10)
    raw, _ = there_and_back(state, base, get_codec("compact"))
    tree, entries, items, apart = packed.unpack(bytearray(raw), base, None, APART)
    name = (
        "model/parameters/w"
        if change.get("factors") in ([0, 2, -3], [1, 2, 3], [1, 2, -8])
        else "optimizer/state/0/momentum_buffer"
    )
    if change == {"factors": [0, 2, -3]}:
        change = {"by": name, **change}  # a weight that foretells itself
    entries[name] = msgspec.structs.replace(entries[name], **change)
    altered = b"".join(
        packed.pack(tree, entries, items.__getitem__, {how: functools.partial(_in_one, n) for how, n in apart.items()})
    )
    with pytest.raises(FormatError, match="wrongly"):
        get_codec("compact").decode(bytearray(altered), base)


def _in_one(numbers: gaps.Numbers) -> Iterator[gaps.Numbers]:
    yield numbers


@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5, 6, 7, 400, 2**23]), max_size=600), st.integers(0, 900))
def test_numbers_are_what_their_gaps_say(numbers: list[int], between: int) -> None:
    """Runs of zeros longer than a byte counts, and numbers larger than there are levels."""
    wanted = np.array([*numbers, *[0] * between, *numbers, *[0] * between], dtype=np.int32)
    pieces = [bytes(piece) for piece in gaps.encode(wanted)]
    left = iter(pieces)

    def piece(limit: int, exact: bool) -> bytes:
        found = next(left)
        assert len(found) == limit if exact else len(found) <= limit  # a reader knows how much there may be
        return found

    assert np.array_equal(gaps.decode(len(wanted), piece), wanted)
    assert next(left, None) is None


@pytest.mark.parametrize("content", [b"\x05", b"\xff", b"\x00\x00\x00\x00\x00", b"\xff\x00"])
def test_gaps_that_lead_beyond_the_numbers_are_refused(content: bytes) -> None:
    with pytest.raises(FormatError, match="more numbers"):
        gaps.decode(4, lambda limit, exact: content)


@pytest.mark.parametrize("adam", [False, True])
def test_a_whole_state_on_grids_comes_back_to_the_bit(adam: bool) -> None:
    base, state = stepped(10, adam=adam)
    codec = get_codec("compact")
    rounded = codec.encode(state, base).state
    raw, back = there_and_back(rounded, None, codec)
    assert back.digest() == rounded.digest()
    assert len(raw) < 0.8 * len(there_and_back(rounded, None, LOSSLESS)[0])
    for values in ([-0.0], [1e-42, 3e38, 0.1]):  # a multiple has no such zero; and there is no grid with room for these
        odd = rounded.tensors["model/parameters/w"].clone()
        odd.view(-1)[: len(values)] = torch.tensor(values)
        strange = State(rounded.tree, {**rounded.tensors, "model/parameters/w": odd})
        assert there_and_back(strange, None, codec)[1].digest() == strange.digest()
    assert there_and_back(state, None, codec)[1].digest() == state.digest()


@pytest.mark.parametrize("name", ROUNDING)
@given(optimizer_states(), optimizer_states())
def test_whatever_an_optimizer_keeps_comes_back_as_it_was_encoded(name: str, base: State, state: State) -> None:
    """Other names, shapes and second moments than before, numbers of every size and none: what is written is read, to the bit."""
    codec = get_codec(name)
    raw, back = there_and_back(state, base, codec)
    torch.set_flush_denormal(True)
    try:
        assert there_and_back(state, base, codec)[0] == raw
    finally:
        torch.set_flush_denormal(False)
    whole = get_codec("compact")
    assert there_and_back(back, None, whole)[1].digest() == back.digest()


@pytest.mark.parametrize("name", ROUNDING)
@pytest.mark.parametrize("second", [torch.tensor(0.5), torch.full((40,), 0.5), torch.full((40, 30), 0.5).double()])
def test_a_momentum_is_kept_to_the_bit_beside_a_second_moment_that_is_not_like_it(name: str, second: Tensor) -> None:
    """NovoGrad keeps one number for a layer."""
    base = optimizer_state(1)
    base = State(base.tree, {**base.tensors, "optimizer/state/0/exp_avg_sq": second})
    state = near(base, 2)
    _, back = there_and_back(state, base, get_codec(name))
    momentum = "optimizer/state/0/exp_avg"
    assert torch.equal(back.tensors[momentum], state.tensors[momentum])
    assert not torch.equal(back.tensors["model/parameters/w"], state.tensors["model/parameters/w"])


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 299])
def test_a_momentum_that_was_no_number_says_nothing_of_how_likely_zeros_are(odd: float, row: int) -> None:
    """However it is cut into parts: sums with one would not be the same bits everywhere."""
    momentum = torch.randn(300 * 1000)
    momentum[row * 1000] = odd

    def placed(beside: Tensor | None) -> list[int]:
        table = likely.Table(300, 1000, 7, None if beside is None else beside.__getitem__)
        return likely.places([table])[0].tolist()

    assert placed(momentum) == placed(None) != placed(torch.randn(300 * 1000))


def test_places_of_tensors_together_are_those_of_each_alone() -> None:
    """A reader may take as many at once as it likes: what is beside one, a number or none, is nothing to the others."""
    shapes = [(3, 5), (1, 40), (17, 1), (4, 4), (64, 9), (2, 2)]
    momenta = [torch.randn(rows * columns) * 10.0**at for at, (rows, columns) in enumerate(shapes)]
    momenta[1][7], momenta[3][:] = math.nan, 0.0
    tables = [
        likely.Table(rows, columns, 1000 + at, None if at == 5 else momenta[at].__getitem__)
        for at, (rows, columns) in enumerate(shapes)
    ]
    together, lower = likely.places(tables)
    alone = [likely.places([table]) for table in tables]
    assert together.tolist() == [place for places, _ in alone for place in places.tolist()]
    assert lower.tolist() == [low for _, lows in alone for low in lows.tolist()]
    without = likely.places([table._replace(beside=None) for table in tables])[0]
    assert together.tolist() != without.tolist()


# ---- hostile objects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", APART)
def test_rows_without_columns_take_no_time(how: str) -> None:
    """A tensor without elements may say that it has any number of them; to go through these took days."""
    name = "optimizer/state/0/exp_avg"
    raw = tightly(tree_of([name]), {name: packed.Entry("float32", [1 << 52, 0], 4, how)}, {}, dict.fromkeys(APART, 0))
    back = get_codec("compact").decode(bytearray(raw), State({"d": []}, {}))
    assert list(back.tensors[name].shape) == [1 << 52, 0]


def test_a_part_with_many_entries_is_not_gone_through_for_each_tensor() -> None:
    """A small object with thousands of tensors took as many times the entries beside the number of steps."""

    class Entries(list[Any]):
        gone_through = 0

        def __iter__(self) -> Iterator[Any]:
            self.gone_through += 1
            return super().__iter__()

    base, state = stepped(10)
    entries = Entries([["s:more", None], ["s:step", {"i": "7"}]])
    told = State({"d": [*base.tree["d"], ["s:progress", {"d": entries}]]}, base.tensors)
    there_and_back(state, told, get_codec("compact"))
    assert not entries.gone_through


@given(st.data())
def test_a_damaged_object_is_refused_in_one_line(data: st.DataObject) -> None:
    base = optimizer_state(1)
    codec = get_codec(data.draw(st.sampled_from(["lossless", *ROUNDING])))
    raw = bytearray(b"".join(bytes(p) for p in codec.encode(near(base, 2), base).chunks()))
    position = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert"])):
        case "flip":
            raw[position] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del raw[position:]
        case "insert":
            raw[position:position] = data.draw(st.binary(min_size=1, max_size=8))
    with suppress(FormatError):  # and nothing else; what decodes all the same has another digest or the same state
        codec.decode(raw, base).digest()


@pytest.mark.parametrize(
    "shape", [[2**52, 2**52, 0], [0, 2**52, 2**52], [2**31, 0, 2**33], [-1, 0], [1] * 65, [0] * 65]
)
def test_lengths_that_overflow_are_refused(shape: list[int]) -> None:
    """Nothing is stored of a tensor without elements, and yet its lengths must be some that PyTorch can multiply."""
    entry = packed.Entry("float32", shape, 4, "plain")
    raw = b"".join(
        packed.pack({"d": [["s:a", {"t": "a"}]]}, {"a": entry}, lambda name: torch.zeros(1, dtype=torch.int32))
    )
    for name in ("lossless", *ROUNDING):
        with pytest.raises(FormatError):
            get_codec(name).decode(bytearray(raw), optimizer_state(1))


def test_a_bomb_is_refused_before_it_is_opened() -> None:
    huge = State({"d": [["s:x", {"t": "x"}]]}, {"x": torch.zeros(WEIGHT_ROOM // 2, dtype=torch.float32)})
    raw = b"".join(bytes(p) for p in LOSSLESS.encode(huge, None).chunks())
    assert len(raw) < WEIGHT_ROOM // 1000
    with pytest.raises(FormatError, match="decompression bomb"):
        LOSSLESS.decode(bytearray(raw), None)
    assert LOSSLESS.decode(bytearray(raw), huge).digest()  # but it may be as large as the state before


def test_a_header_is_no_larger_than_its_object_allows() -> None:
    def header(size: int) -> bytes:
        """All there is to a state without tensors."""
        return b"".join(packed.pack({"d": [["s:x", "x" * size]]}, {}, lambda name: torch.zeros(0)))

    room = WEIGHT_ROOM // HEADER_WEIGHT
    assert LOSSLESS.decode(bytearray(header(room // 2)), None).tensors == {}
    bomb = header(8 * room)
    assert len(bomb) < room // 100
    with pytest.raises(FormatError, match="decompression bomb"):
        LOSSLESS.decode(bytearray(bomb), None)


def test_a_difference_needs_its_base(recorded: dict[str, Path], tmp_path: Path) -> None:
    base = optimizer_state(1)
    for name in ("lossless", *ROUNDING):
        codec = get_codec(name)
        raw = b"".join(bytes(p) for p in codec.encode(near(base, 2), base).chunks())
        with pytest.raises(FormatError, match=r"base|wrongly|frame"):
            codec.decode(bytearray(raw), None)


def test_an_index_with_a_missing_base_or_an_endless_chain_is_refused(recorded: dict[str, Path], tmp_path: Path) -> None:
    proof = Proof.open(recorded["lossless momentum"])
    digest = proof.state_digests()[5]
    assert proof.index[digest].base is not None
    index = dict(proof.index)
    index[digest] = msgspec.structs.replace(index[digest], base=digest)
    with pytest.raises(FormatError, match=f"more than {MAX_CHAIN} differences"):
        load_state(proof.path, index, digest)
    copy = tmp_path / "copy.pol"
    shutil.copytree(proof.path, copy)
    lines = (copy / "index.jsonl").read_text().splitlines(keepends=True)
    (copy / "index.jsonl").write_text("".join(lines[1:]))
    with pytest.raises((FormatError, IntegrityError)):
        Proof.open(copy)


class Heavy(torch.optim.SGD):
    """What it divides by lies beside its momentum, under a name that nobody knows."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("largest", torch.zeros_like(parameter)).add_(1.0)
        return loss


@pytest.mark.parametrize(
    ("optimizer", "dtype", "said"),
    [
        (torch.optim.AdamW, torch.float32, ""),
        (torch.optim.AdamW, torch.bfloat16, "bfloat16"),
        (torch.optim.Adamax, torch.float32, "exp_avg"),
        (functools.partial(Heavy, momentum=0.9), torch.float32, "largest"),
    ],
    ids=["rounded", "bfloat16", "adamax", "unknown"],
)
def test_a_state_that_a_codec_in_the_loop_cannot_make_small_is_said_at_its_first_checkpoint(
    optimizer: Any, dtype: torch.dtype, said: str, tmp_path: Path
) -> None:
    task = pol.Task(
        name="kinds", data=lambda: torch.utils.data.TensorDataset(torch.arange(64.0).reshape(16, 4) / 64),
        model=lambda: torch.nn.Linear(4, 4).to(dtype), optimizer=lambda model: optimizer(model.parameters(), lr=0.01),
        loss=lambda model, batch: model(batch[0].to(dtype)).float().square().mean(), batch_size=4, steps=6,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pol.prove(task, tmp_path / "run.pol", interval=2, codec="compact", rehearse=False)
    found = [str(warning.message) for warning in caught if "checkpoints are not small" in str(warning.message)]
    assert len(found) == bool(said) and all(said in text for text in found)


def test_a_tensor_of_many_rows_and_no_columns_is_no_work() -> None:
    name, rows = "model/parameters/w", 1 << 52
    tree = tree_of({name: torch.zeros(1)})
    entries = {name: packed.Entry("float32", [rows, 0], 4, "moved")}
    pieces = packed.pack(tree, entries, lambda name: torch.zeros(0), {how: lambda: iter(()) for how in APART})
    state = get_codec("compact").decode(bytearray(b"".join(pieces)), State(tree, {name: torch.zeros(rows, 0)}))
    assert state.tensors[name].shape == (rows, 0)


def test_a_large_tensor_is_rounded_alone_and_small_ones_together() -> None:
    """What a momentum is takes no notice of what else is in its state, whichever way it is worked on."""
    names = [f"optimizer/state/{at}/momentum_buffer" for at in range(4)]
    draw = torch.Generator().manual_seed(3)
    shapes = [(3, 5), (700, 300), (17,), (64, 9)]
    old = dict(zip(names, (torch.randn(*shape, generator=draw) for shape in shapes), strict=True))
    new = {name: tensor * 0.9 + torch.randn(tensor.shape, generator=draw) for name, tensor in old.items()}

    def decoded(kept: list[str]) -> dict[str, Tensor]:
        one, two = ({name: tensors[name] for name in kept} for tensors in (old, new))
        return there_and_back(State(tree_of(two), two), State(tree_of(one), one), get_codec("compact"))[1].tensors

    together = decoded(names)
    assert all(torch.equal(together[name], decoded([name])[name]) for name in names)
