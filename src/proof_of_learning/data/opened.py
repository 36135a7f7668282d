"""Some samples of a committed data set: a multiproof that they are under its root, and a data set that holds these alone."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.data.commit import Dataset, encode_sample, leaf, node
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.data.salts import SALT_BYTES
from proof_of_learning.errors import DataError, FormatError, IntegrityError
from proof_of_learning.limits import MAX_DEPTH, MAX_DIMENSIONS
from proof_of_learning.state.state import DTYPES, State, tensor_bytes

_SIZE = struct.Struct("<Q")
_COLUMNS = {"content": torch.uint8, "indices": torch.int64, "lengths": torch.int64}


# ---- multiproofs ------------------------------------------------------------------------------------------------


def multiproof(leaves: Sequence[bytes], indices: Iterable[int]) -> list[bytes]:
    """The nodes from which, with the leaves at ``indices``, the root follows; in the order in which they are needed."""
    level, known, nodes = list(leaves), sorted(set(indices)), list[bytes]()
    while len(level) > 1:
        there = set(known)
        nodes += [level[index ^ 1] for index in known if index ^ 1 < len(level) and index ^ 1 not in there]
        paired = [node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) - len(level) % 2 :]
        known = sorted({index >> 1 for index in known})
    return nodes


def root_of(found: Mapping[int, bytes], count: int, nodes: Sequence[bytes]) -> bytes:
    """The root of a tree of ``count`` leaves of which those in ``found`` are known. Raises IntegrityError where nodes are missing or
    left over."""
    if not found or min(found) < 0 or max(found) >= count:
        raise IntegrityError("the opened samples are none of the data set")
    level, width, given = dict(found), count, iter(nodes)
    while width > 1:
        above: dict[int, bytes] = {}
        for index in sorted(level):
            if index >> 1 in above:
                continue
            other = index ^ 1
            if other >= width:
                above[index >> 1] = level[index]
                continue
            beside = level[other] if other in level else next(given, None)
            if beside is None:
                raise IntegrityError("the opened samples' multiproof is cut short")
            above[index >> 1] = node(level[index], beside) if index < other else node(beside, level[index])
        level, width = above, (width + 1) >> 1
    if next(given, None) is not None:
        raise IntegrityError("the opened samples' multiproof holds more than is needed")
    return level[0]


def witnesses(count: int) -> list[int]:
    """The leaves that show together that a root is over ``count`` of them: the last one, and one of each tree beside its path.

    A root alone says nothing of how many there are: an inner node passes for a leaf that nobody opens, and one that stands for all of
    the second half leaves a data set of little more than half the samples. A leaf at the depth that it should have shows that the
    tree beside the path is as large as it should be.
    """
    found, start, left = [count - 1], 0, count - 1
    while left:
        size = 1 << (left.bit_length() - 1)
        found.append(start)
        start, left = start + size, left - size
    return sorted(found)


# ---- samples ----------------------------------------------------------------------------------------------------


def decode_sample(raw: bytes | memoryview) -> Any:
    """The inverse of :func:`encode_sample`: tensors for arrays, tuples for lists. FormatError for anything it does not write."""
    view = memoryview(raw)
    try:
        value, end = _decode(view, 0, 0)
    except (IndexError, struct.error, ValueError, UnicodeError, OverflowError, RuntimeError):
        raise FormatError("an opened sample is malformed") from None
    # One sample has one encoding; what decodes to something else would not have the leaf it is said to have.
    if end != len(view) or encode_sample(value) != bytes(view):
        raise FormatError("an opened sample is not in the one form that a sample has")
    return value


def _decode(raw: memoryview, at: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError
    tag = bytes(raw[at : at + 1])
    at += 1
    if tag == b"T":
        name, at = _text(raw, at)
        (dimensions,) = _SIZE.unpack_from(raw, at)
        if dimensions > MAX_DIMENSIONS:
            raise ValueError
        shape = struct.unpack_from(f"<{dimensions}Q", raw, at + 8)
        at += 8 + 8 * dimensions
        dtype, count, extent = DTYPES.get(name.decode()), 1, 1
        for length in shape:
            count, extent = count * length, extent * max(length, 1)
        if dtype is None or extent >= 2**62 or count * dtype.itemsize > len(raw) - at:
            raise ValueError
        size = count * dtype.itemsize
        content = bytearray(raw[at : at + size])
        if dtype == torch.bool and max(content, default=0) > 1:
            raise ValueError
        flat = torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return flat.reshape(shape), at + size
    if tag in (b"L", b"D"):
        (number,) = _SIZE.unpack_from(raw, at)
        at += 8
        if number > len(raw) - at:
            raise ValueError
        items = list[Any]()
        for _ in range(number * (1 if tag == b"L" else 2)):
            item, at = _decode(raw, at, depth + 1)
            items.append(item)
        if tag == b"L":
            return tuple(items), at
        if not all(isinstance(key, str) for key in items[::2]):
            raise ValueError
        return dict(zip(items[::2], items[1::2], strict=True)), at
    if tag == b"O":
        return {b"0": False, b"1": True}.get(bytes(raw[at : at + 1]), 2), at + 1
    if tag == b"F":
        return struct.unpack_from("<d", raw, at)[0], at + 8
    if tag == b"N":
        return None, at
    text, at = _text(raw, at)
    if tag == b"I":
        return int(text.decode("ascii")), at
    if tag == b"S":
        return text.decode("utf-8", "surrogatepass"), at
    if tag == b"B":
        return text, at
    raise ValueError


def _text(raw: memoryview, at: int) -> tuple[bytes, int]:
    (size,) = _SIZE.unpack_from(raw, at)
    if size > len(raw) - at - 8:
        raise ValueError
    return bytes(raw[at + 8 : at + 8 + size]), at + 8 + size


@dataclass(frozen=True)
class Samples:
    """Opened samples: ``indices`` rising, their ``encoded`` forms, ``salts`` where leaves have them, the multiproof's ``nodes``."""

    indices: npt.NDArray[np.int64]
    encoded: list[memoryview]
    salts: list[bytes]
    nodes: list[bytes]

    @classmethod
    def of(cls, data: Dataset, leaves: Sequence[bytes], indices: Iterable[int], salts: Sequence[bytes]) -> Samples:
        """The samples at ``indices`` of a data set with these ``leaves``. ``salts``: of all samples; none where not salted."""
        chosen = sorted(set(indices))
        encoded = [memoryview(encode_sample(data[index])) for index in chosen]
        own = [salts[index] for index in chosen] if salts else []
        return cls(np.array(chosen, np.int64), encoded, own, multiproof(leaves, chosen))

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored."""
        content = bytearray(b"".join(self.encoded))
        stored = {
            "indices": torch.from_numpy(self.indices),
            "lengths": torch.tensor([len(raw) for raw in self.encoded], dtype=torch.int64),
            "content": torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8),
            "nodes": _rows(self.nodes),
        }
        return stored | ({"salts": _rows(self.salts)} if self.salts else {})

    @classmethod
    def read(cls, stored: Mapping[str, Tensor], salted: bool) -> Samples:
        """The inverse of :meth:`tensors`. Raises FormatError."""
        names = {*_COLUMNS, "nodes", *(("salts",) if salted else ())}
        if set(stored) != names or any(stored[name].dtype != kind for name, kind in _COLUMNS.items()):
            raise FormatError("the opened samples have other columns than opened samples have")
        indices, lengths = stored["indices"].numpy(), stored["lengths"].tolist()
        content = stored["content"]
        if indices.ndim != 1 or stored["lengths"].ndim != 1 or content.ndim != 1 or len(indices) != len(lengths):
            raise FormatError("the opened samples' columns do not fit each other")
        if not len(indices) or indices[0] < 0 or (np.diff(indices) <= 0).any():
            raise FormatError("the opened samples are not in order")
        if min(lengths) < 0 or sum(lengths) != len(content):
            raise FormatError("the opened samples' lengths are not those of what is there")
        salts = _unrow(stored["salts"], SALT_BYTES) if salted else []
        if salted and len(salts) != len(indices):
            raise FormatError("the opened samples have another number of salts")
        view, at, encoded = tensor_bytes(content), 0, list[memoryview]()
        for length in lengths:
            encoded.append(view[at : at + length])
            at += length
        return cls(indices, encoded, salts, _unrow(stored["nodes"], 32))

    def check(self, commitment: DataCommitment) -> None:
        """Whether they are samples under that root, and it is over as many as is claimed. Raises IntegrityError."""
        salts = self.salts or [b""] * len(self.encoded)
        hashed = [leaf(raw, salt) for raw, salt in zip(self.encoded, salts, strict=True)]
        found = dict(zip(self.indices.tolist(), hashed, strict=True))
        if "sha256:" + root_of(found, commitment.samples, self.nodes).hex() != commitment.root:
            raise IntegrityError("the opened samples are not those under the proof's data root")
        if missing := sorted(set(witnesses(commitment.samples)) - set(found)):
            raise IntegrityError(
                f"the opened samples do not show that the data root is over {commitment.samples:,} of them: sample {missing[0]:,} is "
                "not among them"
            )

    def state(self) -> State:
        """As they travel to a worker."""
        kept = {name: tensor for name, tensor in self.tensors().items() if name in _COLUMNS}
        tree = {"d": [["s:samples", {"d": [[f"s:{name}", {"t": f"samples/{name}"}] for name in sorted(kept)]}]]}
        return State(tree, {f"samples/{name}": tensor for name, tensor in kept.items()})


class OpenedData:
    """A data set of ``count`` samples of which only some are there."""

    def __init__(self, count: int, encoded: Mapping[int, memoryview]) -> None:
        self.count, self._encoded = count, encoded

    @classmethod
    def of(cls, count: int, sent: State) -> OpenedData:
        """The inverse of :meth:`Samples.state`."""
        stored = {name.removeprefix("samples/"): tensor for name, tensor in sent.tensors.items()}
        if not len(stored["indices"]):
            return cls(count, {})
        samples = Samples.read(stored | {"nodes": _rows([])}, False)
        return cls(count, dict(zip(samples.indices.tolist(), samples.encoded, strict=True)))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index not in self._encoded:
            raise DataError(f"sample {index:,} is needed, and was not opened")
        return decode_sample(self._encoded[index])


def closed() -> Samples:
    """No samples at all: the data set's length is all that is known of it."""
    return Samples(np.empty(0, np.int64), [], [], [])


def _rows(rows: Sequence[bytes]) -> Tensor:
    raw = bytearray(b"".join(rows))
    width = len(rows[0]) if rows else 32
    return (
        torch.frombuffer(raw, dtype=torch.uint8).reshape(-1, width)
        if raw
        else torch.empty((0, width), dtype=torch.uint8)
    )


def _unrow(table: Tensor, width: int) -> list[bytes]:
    if table.dtype != torch.uint8 or table.ndim != 2 or table.shape[1] != width:
        raise FormatError(f"the opened samples hold a table that is not of {width} bytes a row")
    raw = table.numpy().tobytes()
    return [raw[at : at + width] for at in range(0, len(raw), width)]
