"""Counter-based randomness: fixed vectors, independence of the order of calls, and snapshots that nobody trusts."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.training.batches import DerivedOrder, Feed

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text())
SEEDS = st.integers(0, 2**64 - 1)


def philox(seed: int) -> Any:
    """Philox4x64-10 as the paper writes it (Salmon et al., SC 2011, section 3.3), blocks 1, 2, … of key (seed, 0)."""
    for counter in itertools.count(1):
        x, key = [counter, 0, 0, 0], [seed, 0]
        for _ in range(10):
            low, high = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [high >> 64 ^ x[1] ^ key[0], high % 2**64, low >> 64 ^ x[3] ^ key[1], low % 2**64]
            key = [(key[0] + 0x9E3779B97F4A7C15) % 2**64, (key[1] + 0xBB67AE8584CAA73B) % 2**64]
        yield from x


@pytest.mark.quick
def test_vectors() -> None:
    for seed, key in VECTORS["key_from_seed"].items():
        assert randomness.key_from_seed(int(seed)).hex() == key
    for row in VECTORS["derive"]:
        key = bytes.fromhex(row["key"])
        assert str(randomness.derive(key, row["purpose"], row["step"], row["slot"])) == row["seed"]
    for row in VECTORS["words"]:
        assert [str(word) for word in randomness.raw_words(int(row["seed"]), len(row["words"]))] == row["words"]
    for row in VECTORS["permutation"]:
        assert randomness.permutation(int(row["seed"]), len(row["order"])).tolist() == row["order"]
    for row in VECTORS["uniforms"]:
        assert [value.hex() for value in randomness.uniforms(int(row["seed"]), len(row["hex"])).tolist()] == row["hex"]


def test_the_vectors_follow_from_the_specification_alone() -> None:
    for seed, key in VECTORS["key_from_seed"].items():
        assert hashlib.sha256(b"pol/v1/seed-key\0" + int(seed).to_bytes(8, "little")).hexdigest() == key
    for row in VECTORS["derive"]:
        name = row["purpose"].encode()
        text = b"pol/v1/derive\0" + bytes.fromhex(row["key"]) + bytes([len(name)]) + name
        text += row["step"].to_bytes(8, "little") + row["slot"].to_bytes(8, "little")
        assert str(int.from_bytes(hashlib.sha256(text).digest()[:8], "little")) == row["seed"]
    for row in VECTORS["words"]:
        assert [str(word) for word in itertools.islice(philox(int(row["seed"])), len(row["words"]))] == row["words"]
    for row in VECTORS["permutation"]:
        words = list(itertools.islice(philox(int(row["seed"])), len(row["order"])))
        assert sorted(range(len(words)), key=words.__getitem__) == row["order"]
    for row in VECTORS["uniforms"]:
        words = list(itertools.islice(philox(int(row["seed"])), len(row["hex"])))
        assert [((word >> 11) * 2.0**-53).hex() for word in words] == row["hex"]


@given(SEEDS, st.integers(0, 300))
def test_permutations_are_permutations(seed: int, n: int) -> None:
    assert sorted(randomness.permutation(seed, n).tolist()) == list(range(n))


@given(SEEDS, st.integers(0, 50))
def test_uniforms_lie_in_the_unit_interval(seed: int, n: int) -> None:
    drawn = randomness.uniforms(seed, n)
    assert ((drawn >= 0) & (drawn < 1)).all()


@given(st.data())
def test_addresses_do_not_collide(data: st.DataObject) -> None:
    purposes = [randomness.ORDER, randomness.STEP, randomness.AUGMENTATION, randomness.EVALUATION, "a", "ab", ""]
    address = st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from(purposes), SEEDS, SEEDS)
    one, other = data.draw(address), data.draw(address)
    assert (randomness.derive(*one) == randomness.derive(*other)) == (one == other)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_order_of_a_step_does_not_depend_on_what_was_asked_before(shuffle: bool, drop_last: bool) -> None:
    task = tasks.task(shuffle=shuffle, drop_last=drop_last, batch_size=10)
    key = randomness.key_from_seed(5)
    epoch = task.steps_per_epoch(tasks.SAMPLES)
    forward = [DerivedOrder(task, tasks.SAMPLES, key).indices(step).tolist() for step in range(3 * epoch)]
    order = DerivedOrder(task, tasks.SAMPLES, key)
    for step in np.random.default_rng(0).permutation(3 * epoch).tolist():
        assert order.indices(step).tolist() == forward[step]
    for start in range(0, 3 * epoch, epoch):
        seen = [index for step in forward[start : start + epoch] for index in step]
        assert len(set(seen)) == len(seen) == (tasks.SAMPLES // 10 * 10 if drop_last else tasks.SAMPLES)
    assert (forward[:epoch] == forward[epoch : 2 * epoch]) == (not shuffle)


def test_augmentation_depends_on_key_step_and_place_alone() -> None:
    task, data = tasks.task(augment=True, batch_size=4), tasks.data()
    order = DerivedOrder(task, len(data), randomness.key_from_seed(0))

    def batch(step: int, key: int = 0) -> torch.Tensor:
        feed = Feed(task, data, randomness.key_from_seed(key))
        feed.batches(7, order.indices(7))  # another step first
        torch.rand(step + 1)  # and other use of the ordinary generators
        return feed.batches(step, order.indices(2))[0][0]

    assert torch.equal(batch(2), batch(2))
    assert not torch.equal(batch(2), batch(3))
    assert not torch.equal(batch(2), batch(2, key=1))
    noise = batch(2) - data.tensors[0][order.indices(2)]
    assert min((noise[i] - noise[j]).abs().max() for i in range(4) for j in range(i)) > 0.01  # every sample has its own


def draw() -> tuple[Any, ...]:
    return (
        torch.rand(3).tolist(), torch.randn(3).tolist(), random.random(), random.gauss(0, 1),
        np.random.rand(2).tolist(), np.random.randn(1).tolist(),
    )  # fmt: skip


@given(SEEDS)
def test_seeding_decides_what_every_generator_draws(seed: int) -> None:
    with randomness.preserved():
        randomness.seed_everything(seed)
        first = draw()
        randomness.seed_everything(seed)
        assert draw() == first
        randomness.seed_everything(seed ^ 1)
        assert all(a != b for a, b in zip(draw(), first, strict=True))


@given(SEEDS, st.integers(0, 700))
def test_a_snapshot_restores_every_generator(seed: int, draws: int) -> None:
    with randomness.preserved():
        randomness.seed_everything(seed)
        torch.rand(draws), np.random.rand(draws)
        draw()  # leaves half of a pair of normals in Python's and NumPy's generators
        snapshot = RngSnapshot.take()
        first = draw()
        draw()
        snapshot.restore()
        assert draw() == first


def test_snapshots_one_after_the_other_see_every_draw() -> None:
    def numbers() -> tuple[float, ...]:
        return random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())

    draws = [lambda: None, random.random, np.random.rand, np.random.randn, np.random.randn, lambda: random.gauss(0, 1)]
    draws += [lambda: np.random.seed(5), lambda: random.seed(5), np.random.randn, lambda: None]
    np.random.seed(1)
    for draw in draws:
        draw()
        snapshot = RngSnapshot.take()
        expected = numbers()
        snapshot.restore()
        assert numbers() == expected
        snapshot.restore()


def test_preserved_leaves_the_generators_as_they_were() -> None:
    before = RngSnapshot.take()
    with randomness.preserved():
        randomness.seed_everything(1)
        draw()
    after = RngSnapshot.take()
    assert {k: v.tobytes() for k, v in before.states.items()} == {k: v.tobytes() for k, v in after.states.items()}


def changed(name: str, offset: int, layout: str, value: Any) -> RngSnapshot:
    states = {key: state.copy() for key, state in RngSnapshot.take().states.items()}
    raw = bytearray(states[name].tobytes())
    struct.pack_into(layout, raw, offset, value)
    states[name] = np.frombuffer(bytes(raw), np.uint8)
    return RngSnapshot(states)


@pytest.mark.parametrize(
    "case",
    [
        ("torch", 8, "<i", 0), ("torch", 8, "<i", -1), ("torch", 8, "<i", 625), ("torch", 12, "<i", 0),
        ("torch", 16, "<Q", 625), ("torch", 16, "<Q", 2**64 - 1), ("torch", 16, "<Q", 2**40),
        ("python", 0, "<B", 7), ("python", 10 + 4 * 624, "<I", 625), ("python", 10 + 4 * 624, "<I", 2**32 - 1),
        ("numpy", 0, "<I", 625), ("numpy", 0, "<I", 2**32 - 1),
    ],
)  # fmt: skip
def test_positions_that_no_generator_can_be_in_are_refused(case: tuple[str, int, str, Any]) -> None:
    with randomness.preserved(), pytest.raises(FormatError):
        changed(*case).restore()


def test_a_torch_state_that_would_be_read_beyond_its_end_is_refused() -> None:
    with randomness.preserved():
        torch.default_generator.manual_seed(0)
        torch.rand(600)
        hostile = changed("torch", 8, "<i", 624)  # 600 words used, yet 624 left
        with pytest.raises(FormatError, match="position"):
            hostile.restore()


@pytest.mark.parametrize("name", ["torch", "python", "numpy", "cuda:x", "cuda:", "xpu", ""])
@pytest.mark.parametrize("size", [0, 1, 16, 2508, 2512, 5055, 5057, 100_000])
@pytest.mark.parametrize("fill", [0, 255])
def test_states_of_any_size_and_content_are_restored_or_refused(name: str, size: int, fill: int) -> None:
    with randomness.preserved(), pytest.raises(FormatError):
        RngSnapshot({name: np.full(size, fill, np.uint8)}).restore()


@settings(max_examples=200)
@given(st.sampled_from(["torch", "python", "numpy"]), st.integers(0, 5055), st.integers(0, 255))
def test_a_changed_byte_never_harms_the_process(name: str, position: int, value: int) -> None:
    with randomness.preserved():
        states = {key: state.copy() for key, state in RngSnapshot.take().states.items()}
        states[name][position % len(states[name])] = value
        try:
            RngSnapshot(states).restore()
        except FormatError:
            return
        torch.rand(2000), random.random(), np.random.rand(2000)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 127, 128, 129, 5000])
def test_a_permutation_is_the_stable_order_of_its_words(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where words are equal, or differ in their lowest bits alone, which hardly any seed gives."""
    for words in (
        randomness.raw_words(7, n),
        randomness.raw_words(7, n) % np.uint64(5),
        (randomness.raw_words(7, n) % np.uint64(2)) << np.uint64(63),
    ):
        monkeypatch.setattr(randomness, "raw_words", lambda seed, count, words=words: words)
        found = randomness.permutation(7, n)
        assert found.dtype == np.int64 and found.tolist() == np.argsort(words, kind="stable").tolist()
