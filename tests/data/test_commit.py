"""The data commitment: RFC 6962 over encodings that can be read back, so that no two data sets share a root."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from proof_of_learning.data.commit import Dataset, check_deterministic, commit, encode_sample, merkle_root
from proof_of_learning.errors import DataError
from proof_of_learning.state.state import DTYPES
from support_strategies import bits, tensor_of


def sha256(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def tree_head(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + tree_head(leaves[:k]) + tree_head(leaves[k:]))


@pytest.mark.parametrize("n", range(71))
def test_the_root_is_that_of_the_rfc(n: int) -> None:
    leaves = [bytes([i]) * (i % 3) for i in range(n)]
    assert merkle_root([sha256(b"\0" + leaf) for leaf in leaves]) == tree_head(leaves)


@pytest.mark.quick
def test_known_roots() -> None:
    """The leaves and roots that Certificate Transparency's own implementations are tested with."""
    texts = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    leaves = [sha256(b"\0" + bytes.fromhex(text)) for text in texts]
    assert [merkle_root(leaves[:n]).hex() for n in range(9)] == roots


# ---- one sample ---------------------------------------------------------------------------------------


def form(sample: Any) -> Any:
    """What of a sample counts."""
    if isinstance(sample, (np.ndarray, np.generic)):
        sample = torch.as_tensor(sample)
    if isinstance(sample, Tensor):
        return "T", *bits(sample)
    if isinstance(sample, (list, tuple)):
        return "L", [form(item) for item in sample]
    if isinstance(sample, dict):
        return "D", [(key, form(sample[key])) for key in sorted(sample)]
    return (type(sample).__name__, sample.hex() if isinstance(sample, float) else sample)


def parse(raw: bytes) -> tuple[Any, bytes]:
    """The inverse of ``encode_sample``, written from its documentation: what it reads back is all there was."""

    def take(count: int) -> bytes:
        nonlocal raw
        assert len(raw) >= count
        taken, raw = raw[:count], raw[count:]
        return taken

    def number() -> int:
        return int.from_bytes(take(8), "little")

    def below() -> Any:
        nonlocal raw
        value, raw = parse(raw)
        return value

    match take(1):
        case b"T":
            dtype = DTYPES[take(number()).decode()]
            shape = tuple(number() for _ in range(number()))
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            value: Any = ("T", dtype, shape, take(size))
        case b"L":
            value = ("L", [below() for _ in range(number())])
        case b"D":
            value = ("D", [(below()[1], below()) for _ in range(number())])
        case b"I":
            value = ("int", int(take(number())))
        case b"O":
            value = ("bool", take(1) == b"1")
        case b"F":
            value = ("float", struct.unpack("<d", take(8))[0].hex())
        case b"S":
            value = ("str", take(number()).decode("utf-8", "surrogatepass"))
        case b"B":
            value = ("bytes", take(number()))
        case b"N":
            value = ("NoneType", None)
        case tag:
            raise AssertionError(tag)
    return value, raw


TENSORS = st.builds(
    tensor_of,
    st.sampled_from(list(DTYPES.values())),
    st.lists(st.integers(0, 3), max_size=3),
    st.binary(min_size=1, max_size=9),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | TENSORS
SAMPLES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(SAMPLES)
def test_an_encoding_can_be_read_back_so_no_two_samples_share_one(sample: Any) -> None:
    assert parse(encode_sample(sample)) == (form(sample), b"")


def test_what_looks_alike_is_told_apart() -> None:
    x = torch.tensor([1.0, 2.0])
    alike: list[Any] = [
        True, 1, 1.0, "1", b"1", torch.tensor(1), torch.tensor([1]), torch.tensor(True), np.float32(1), [1], [[1]], [],
        [[]], [[], []], None, "", b"", "None", 0, 0.0, -0.0, False, {}, {"": 1}, {"1": 1}, {"1": [1]}, [1, 1], [11], ["1", 1],
        [x, x], [torch.cat([x, x])], [torch.stack([x, x])], x, x.double(), x.view(torch.int32), x[None], [x, 1], [x, True],
        {"a": 1, "b": 2}, {"a": 2, "b": 1}, [["a", 1], ["b", 2]], "ab", ["a", "b"], ["ab", ""], ["", "ab"], 1 + 2**64,
        float("nan"), float("inf"), "nan", "\ud800",
    ]  # fmt: skip
    encodings = [encode_sample(sample) for sample in alike]
    assert len(set(encodings)) == len(alike)


def test_what_is_alike_shares_an_encoding() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    for one, other in [
        ((1, x), [1, x]),
        (x.numpy(), x),
        (x.t().contiguous().t(), x),
        (torch.nn.Parameter(x), x),
        (np.asfortranarray(x.numpy()), x),
        (np.int64(3), torch.tensor(3)),
        (np.str_("a"), "a"),
        (bytearray(b"a"), b"a"),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
        (torch.tensor([1 + 2j]).conj().imag, torch.tensor([-2.0])),
    ]:
        assert encode_sample(one) == encode_sample(other)


@pytest.mark.parametrize(
    "sample",
    [
        object(), 1j, {1, 2}, {1: 2}, {1: 2, "1": 3}, np.array(["a"]), np.array([1.0], dtype=">f4"), np.datetime64(1, "s"),
        torch.ones(2).to_sparse(), torch.empty(2, dtype=torch.float8_e5m2fnuz), [1, [object()]],
    ],
    ids=lambda sample: type(sample).__name__,
)  # fmt: skip
def test_what_cannot_be_committed_to_is_refused(sample: Any) -> None:
    with pytest.raises(DataError, match="sample holds"):
        encode_sample(sample)


# ---- a data set ----------------------------------------------------------------------------------------


class Samples:
    """The plainest data set."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def images(n: int = 5) -> tuple[Tensor, Tensor]:
    return torch.arange(n * 12, dtype=torch.uint8).reshape(n, 1, 3, 4), torch.arange(n) % 3


def root(data: Dataset) -> str:
    return commit(data).root


def test_a_known_root() -> None:
    """The format's own number, as the specification alone gives it."""
    x, y = images(3)
    leaves = []
    for index in range(3):
        image = (
            b"T" + struct.pack("<Q", 5) + b"uint8" + struct.pack("<4Q", 3, 1, 3, 4) + bytes(x[index].flatten().tolist())
        )
        label = b"T" + struct.pack("<Q", 5) + b"int64" + struct.pack("<Q", 0) + struct.pack("<q", index % 3)
        leaves.append(b"pol/v1/sample\0" + b"\0" + b"L" + struct.pack("<Q", 2) + image + label)
    assert root(TensorDataset(x, y)) == "sha256:" + tree_head(leaves).hex()
    assert root(TensorDataset(x, y)) == "sha256:3ebe44d5da3f53c09caeede773bd855b78d20162e840eaf5c99d46b4ef23c6d3"


CHANGES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "a type": lambda x, y: (x.to(torch.int16), y),
    "a label's type": lambda x, y: (x, y.int()),
    "a shape": lambda x, y: (x.reshape(5, 3, 4), y),
    "a shape, transposed": lambda x, y: (x.reshape(5, 1, 4, 3), y),
    "a label": lambda x, y: (x, torch.where(torch.arange(5) == 4, y + 1, y)),
    "a label's shape": lambda x, y: (x, y[:, None]),
    "the order": lambda x, y: (x.flip(0), y.flip(0)),
    "two exchanged": lambda x, y: (x[[0, 1, 3, 2, 4]], y[[0, 1, 3, 2, 4]]),
    "labels exchanged": lambda x, y: (x, y[[1, 0, 2, 3, 4]]),
    "one less": lambda x, y: (x[:4], y[:4]),
    "one more": lambda x, y: (torch.cat([x, x[-1:]]), torch.cat([y, y[-1:]])),
    "a column less": lambda x, y: (x,),
    "a column more": lambda x, y: (x, y, y),
    "columns exchanged": lambda x, y: (y, x),
}


def test_anything_that_changes_changes_the_root() -> None:
    x, y = images()
    roots = {"nothing": root(TensorDataset(x, y))}
    roots |= {name: root(TensorDataset(*change(x, y))) for name, change in CHANGES.items()}
    for position in range(x.numel()):
        other = x.clone()
        other.flatten()[position] ^= 1
        roots[f"pixel {position}"] = root(TensorDataset(other, y))
    assert len(set(roots.values())) == len(roots)


DATA_TYPES, SHAPES = st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3)


@given(DATA_TYPES, SHAPES, st.integers(1, 5), st.binary(min_size=1, max_size=9))
def test_tensors_are_hashed_as_their_samples_are(dtype: torch.dtype, shape: list[int], n: int, raw: bytes) -> None:
    data = TensorDataset(tensor_of(dtype, [n, *shape], raw), torch.arange(n))
    assert commit(data) == commit(Samples([data[index] for index in range(n)]))
    strided = TensorDataset(data.tensors[0].repeat_interleave(2, 0)[::2], torch.arange(2 * n)[::2] // 2)
    assert commit(strided) == commit(data)


def test_a_subclass_decides_what_its_samples_are() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x * 2, y

    x, y = images()
    assert root(Doubled(x, y)) == root(TensorDataset(x * 2, y)) != root(TensorDataset(x, y))


def test_salts_hide_the_samples_and_count() -> None:
    data = TensorDataset(*images())
    salts = [bytes([i]) * 16 for i in range(5)]
    salted = commit(data, salts=salts)
    assert salted.salted
    assert not commit(data).salted
    roots = {commit(data).root, salted.root, commit(data, salts=salts[::-1]).root, commit(data, salts=[b""] * 5).root}
    assert commit(data, salts=[b""] * 5).root == commit(data).root  # the same leaves; that it is salted is said beside
    assert len(roots) == 3
    # A salt is not part of the sample: it cannot be shifted into it.
    one, other = Samples([b"ab"]), Samples([b"b"])
    assert commit(one, salts=[b""]).root != commit(other, salts=[b"a"]).root
    for wrong in (salts[:4], [*salts, b"x"], [b"x" * 256] * 5):
        with pytest.raises(DataError, match="salts"):
            commit(data, salts=wrong)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        commit(Samples([]))
    with pytest.raises(DataError, match="empty"):
        commit(TensorDataset(torch.empty(0, 3)))


@pytest.mark.parametrize("position", [0, 2, 4])
def test_data_that_reads_differently_the_second_time_is_refused(position: int) -> None:
    class Noisy(Samples):
        reads = 0

        def __getitem__(self, index: int) -> Any:
            self.reads += 1
            return self.samples[index] + (self.reads if index == position else 0)

    check_deterministic(Samples([1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match=f"sample {position} reads differently"):
        check_deterministic(Noisy([1, 2, 3, 4, 5]))


def test_progress_is_told() -> None:
    told: list[int] = []
    commit(TensorDataset(torch.zeros(2500, 1)), progress=told.append)
    assert told == [0, 1024, 2048]
