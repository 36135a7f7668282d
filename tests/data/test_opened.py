"""Opened samples: salts are HKDF's, a multiproof leads to the root and nothing else does, samples decode to what they were."""

from __future__ import annotations

import os
import random
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import tasks
from proof_of_learning.data import salts
from proof_of_learning.data.commit import DataCommitment, commit, encode_sample, leaves, merkle_root
from proof_of_learning.data.opened import OpenedData, Samples, closed, decode_sample, multiproof, root_of, witnesses
from proof_of_learning.errors import DataError, FormatError, IntegrityError, UsageError

SECRET = salts.Secret(b"s" * 32, b"d" * 16)


def test_salts_are_those_of_hkdf() -> None:
    for index, salt in enumerate(SECRET.salts(3)):
        info = b"pol/v1/salt\0" + b"d" * 16 + index.to_bytes(8, "little")
        assert salt == HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(b"s" * 32)


def test_secrets_and_data_sets_have_salts_of_their_own() -> None:
    others = [salts.Secret(b"t" * 32, b"d" * 16), salts.Secret(b"s" * 32, b"e" * 16)]
    assert len({salt for secret in (SECRET, *others) for salt in secret.salts(5)}) == 15


def test_a_secret_is_kept_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "data.salt"
    salts.generate(place)
    assert stat.S_IMODE(os.stat(place).st_mode) == 0o600
    assert salts.load(place).salts(2) == salts.load(place).salts(2)
    with pytest.raises(UsageError, match="never overwritten"):
        salts.generate(place)
    assert "secret" not in repr(salts.load(place)).replace("Secret", "")
    place.write_text(place.read_text().replace("pol/salt/v1", "pol/salt/v9"))
    with pytest.raises(UsageError, match="no secret for salts"):
        salts.load(place)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64, 100])
def test_a_multiproof_leads_to_the_root_and_nothing_else_does(count: int) -> None:
    chance = random.Random(count)
    hashed = [bytes([number]) * 32 for number in range(count)]
    for _ in range(20):
        chosen = chance.sample(range(count), chance.randint(1, count))
        found, nodes = {index: hashed[index] for index in chosen}, multiproof(hashed, chosen)
        assert root_of(found, count, nodes) == merkle_root(hashed)
        if nodes:
            with pytest.raises(IntegrityError, match="cut short"):
                root_of(found, count, nodes[:-1])
        with pytest.raises(IntegrityError, match="more than is needed"):
            root_of(found, count, [*nodes, bytes(32)])
        if len(nodes) > 1 and nodes[0] != nodes[1]:
            assert root_of(found, count, [nodes[1], nodes[0], *nodes[2:]]) != merkle_root(hashed)
        if chosen[0] + 1 < count and chosen[0] + 1 not in found:  # the right leaf at the wrong place
            moved = {(index + 1 if index == chosen[0] else index): value for index, value in found.items()}
            with suppress(IntegrityError):
                assert root_of(moved, count, nodes) != merkle_root(hashed)


def test_what_is_under_the_root_for_another_number_of_samples_is_refused() -> None:
    hashed = [bytes([number]) * 32 for number in range(6)]
    nodes = multiproof(hashed, [0])
    with pytest.raises(IntegrityError):
        root_of({7: hashed[0]}, 6, nodes)
    with suppress(IntegrityError):  # RFC 6962: a tree of other size has other paths
        assert root_of({0: hashed[0]}, 2, nodes) != merkle_root(hashed)


@pytest.mark.parametrize(
    "sample",
    [
        (torch.arange(6).reshape(2, 3), 3), {"b": 1.5, "a": (None, True, False, "ä\ud800", b"x")}, np.float32(2.5), -(2**70),
        torch.zeros(0, 3), torch.tensor([True, False]), torch.tensor(float("nan")), (), {},
    ],
)  # fmt: skip
def test_a_sample_decodes_to_what_it_was(sample: Any) -> None:
    raw = encode_sample(sample)
    assert encode_sample(decode_sample(raw)) == raw
    for end in range(len(raw)):
        with pytest.raises(FormatError):
            decode_sample(raw[:end])
    with pytest.raises(FormatError):
        decode_sample(raw + b"N")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"X", b"O2", b"L" + b"\xff" * 8, b"S" + b"\xff" * 8, b"I" + (1).to_bytes(8, "little") + b"x",
        b"I" + (2).to_bytes(8, "little") + b"01", b"L\1\0\0\0\0\0\0\0" * 100 + b"N",
        b"T" + (7).to_bytes(8, "little") + b"float32" + (2).to_bytes(8, "little") + b"\xff" * 16,
        b"D" + (2).to_bytes(8, "little") + 2 * (b"S" + (1).to_bytes(8, "little") + b"aN"),
        b"T" + (4).to_bytes(8, "little") + b"bool" + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\2",
    ],
)  # fmt: skip
def test_hostile_samples_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_sample(raw)


def opened(indices: list[int]) -> tuple[Samples, Any]:
    data = tasks.data()
    own = SECRET.salts(len(data))
    return Samples.of(data, leaves(data, salts=own), indices, own), commit(data, salts=own)


def test_opened_samples_are_under_the_root_with_their_salts_alone() -> None:
    samples, commitment = opened([5, 2, *witnesses(tasks.SAMPLES)])
    Samples.read(samples.tensors(), True).check(commitment)
    assert commitment.salted
    stored = samples.tensors()
    for name in ("content", "salts", "nodes", "indices"):
        forged = stored | {name: stored[name].clone()}
        forged[name].view(-1)[1] ^= 1
        with pytest.raises(IntegrityError):
            Samples.read(forged, True).check(commitment)
    with pytest.raises(FormatError):
        Samples.read({name: tensor for name, tensor in stored.items() if name != "salts"}, True)
    with pytest.raises(FormatError):
        Samples.read(stored | {"indices": stored["indices"].flip(0)}, True)
    with pytest.raises(FormatError):
        Samples.read(stored | {"lengths": torch.tensor([2**62, 2**62, -(2**63)])}, True)


def place(count: int, index: int) -> str:
    """The way from the root of ``count`` leaves to one of them."""
    if count == 1:
        return ""
    left = 1 << (count - 1).bit_length() - 1
    return "l" + place(left, index) if index < left else "r" + place(count - left, index - left)


def test_the_leaves_that_are_opened_in_any_case_fit_one_number_of_leaves_alone() -> None:
    ways = {count: {place(count, index) for index in range(count)} for count in range(1, 70)}
    for claimed in ways:
        shown = {place(claimed, index) for index in witnesses(claimed)}
        assert [count for count, there in ways.items() if shown <= there] == [claimed]
    assert len(witnesses(60_000)) <= 17


def test_half_of_a_data_set_does_not_pass_for_a_whole_one() -> None:
    """An inner node stands for the second half; the root is the same, and nobody ever opens it."""
    data, own = tasks.data(), SECRET.salts(tasks.SAMPLES)
    hashed = leaves(data, salts=own)
    halved = [*hashed[:64], merkle_root(hashed[64:])]
    assert merkle_root(halved) == merkle_root(hashed)
    claimed = DataCommitment(commit(data, salts=own).root, 65, True)
    with pytest.raises(IntegrityError, match="do not show that the data root is over 65"):
        Samples.of(data, halved, range(64), own).check(claimed)
    with pytest.raises(IntegrityError, match="not those under"):
        Samples.of(data, halved, range(65), own).check(claimed)


def test_what_was_not_opened_is_not_there() -> None:
    samples, _ = opened([2, 5])
    there = OpenedData.of(tasks.SAMPLES, samples.state())
    assert len(there) == tasks.SAMPLES
    assert all(torch.equal(a, b) for a, b in zip(there[5], tasks.data()[5], strict=True))
    with pytest.raises(DataError, match="sample 6 is needed"):
        there[6]
    with pytest.raises(DataError):
        OpenedData.of(7, closed().state())[0]
