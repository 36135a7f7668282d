"""The data commitment: a Merkle root over every sample's content, dtype, shape and label.

Hash tree of RFC 6962, section 2.1: a leaf is ``SHA-256(0x00 || leaf)``, a node
``SHA-256(0x01 || left || right)``, the left subtree holding the largest power of two below the number
of leaves. A leaf's text is ``"pol/v1/sample\\0"``, the length of the salt (one byte), the salt (empty for
public data) and the sample's injective encoding: see :func:`encode_sample`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.errors import DataError
from proof_of_learning.state.state import DTYPE_NAMES, tensor_bytes

_SAMPLE = b"pol/v1/sample\0"
_LEAF = b"\x00"
_NODE = b"\x01"
MAX_SALT = 255


class Dataset(Protocol):
    """A map-style data set: a length, and a sample for each index below it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def encode_sample(sample: Any) -> bytes:
    """Injective bytes of a sample: every value is led by its type and length, so no two samples share an encoding.

    ``T`` tensor (dtype, shape, little-endian data), ``L`` list or tuple, ``D`` mapping (string keys, sorted), ``I`` int,
    ``O`` bool, ``F`` float, ``S`` string, ``B`` bytes, ``N`` None. Raises DataError for anything else.
    """
    if isinstance(sample, (np.ndarray, np.generic)) and not isinstance(sample, (str, bytes)):
        try:
            sample = torch.as_tensor(np.ascontiguousarray(sample)).reshape(np.shape(sample))
        except (TypeError, ValueError) as error:
            raise DataError(f"a sample holds an array of type {sample.dtype}, which cannot be committed to") from error
    if isinstance(sample, Tensor):
        if sample.dtype not in DTYPE_NAMES or sample.layout != torch.strided:
            raise DataError(f"a sample holds a {sample.layout} {sample.dtype} tensor, which cannot be committed to")
        tensor = sample.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return _tensor_head(tensor.dtype, tuple(tensor.shape)) + bytes(tensor_bytes(tensor))
    if isinstance(sample, (tuple, list)):
        return b"L" + struct.pack("<Q", len(sample)) + b"".join(map(encode_sample, sample))
    if isinstance(sample, Mapping):
        if not all(isinstance(key, str) for key in sample):
            raise DataError("a sample holds a mapping whose keys are not all strings, which cannot be committed to")
        items = [encode_sample(key) + encode_sample(sample[key]) for key in sorted(sample)]
        return b"D" + struct.pack("<Q", len(items)) + b"".join(items)
    if isinstance(sample, bool):
        return b"O1" if sample else b"O0"
    if isinstance(sample, int):
        return _text(b"I", str(int(sample)).encode())
    if isinstance(sample, float):
        return b"F" + struct.pack("<d", sample)
    if isinstance(sample, str):
        return _text(b"S", sample.encode("utf-8", "surrogatepass"))  # file names may hold surrogates
    if isinstance(sample, (bytes, bytearray)):
        return _text(b"B", bytes(sample))
    if sample is None:
        return b"N"
    raise DataError(
        f"a sample holds a {type(sample).__name__}; use tensors, arrays, numbers, strings and containers of them"
    )


def commit(
    data: Dataset, *, salts: Sequence[bytes] | None = None, progress: Callable[[int], None] | None = None
) -> DataCommitment:
    """Commit to a whole data set. One pass; a ``TensorDataset`` is hashed straight from its tensors.

    ``salts``: one byte string per sample for private data. ``progress`` is called with the number of samples done.
    """
    hashed = leaves(data, salts=salts, progress=progress)
    return DataCommitment("sha256:" + merkle_root(hashed).hex(), len(hashed), salts is not None)


def leaves(
    data: Dataset, *, salts: Sequence[bytes] | None = None, progress: Callable[[int], None] | None = None
) -> list[bytes]:
    """The hashes of all leaves, in the order of the samples; arguments as of :func:`commit`."""
    count = len(data)
    if count == 0:
        raise DataError("the data set is empty; a task needs at least one sample")
    if salts is not None and (len(salts) != count or any(len(salt) > MAX_SALT for salt in salts)):
        raise DataError(f"expected {count} salts of at most {MAX_SALT} bytes")
    encode, sha256 = _fast_encoder(data), hashlib.sha256
    heads = (
        [_LEAF + _SAMPLE + b"\0"] if salts is None else [_LEAF + _SAMPLE + bytes((len(salt),)) + salt for salt in salts]
    )
    found: list[bytes] = []
    for index in range(count):
        found.append(sha256(heads[index if salts is not None else 0] + encode(index)).digest())
        if progress is not None and index % 1024 == 0:
            progress(index)
    return found


def leaf(encoded: bytes | memoryview, salt: bytes = b"") -> bytes:
    """The hash of one leaf, from the sample's encoding."""
    return hashlib.sha256(b"".join((_LEAF, _SAMPLE, bytes((len(salt),)), salt, encoded))).digest()


def check_deterministic(data: Dataset) -> None:
    """Read a few samples twice; DataError if one differs, since such a data set can be committed to by nobody."""
    for index in sorted({0, len(data) // 2, len(data) - 1}):
        if encode_sample(data[index]) != encode_sample(data[index]):
            raise DataError(
                f"sample {index} reads differently the second time; keep `data` deterministic and put random "
                "changes into the task's `augment`"
            )


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 tree head over leaf hashes (which already carry the 0x00 prefix).

    Pairing level by level and carrying an odd node up gives the RFC's split at the largest power of two.
    """
    if not leaves:
        return hashlib.sha256(b"").digest()
    level, sha256 = list(leaves), hashlib.sha256
    while len(level) > 1:
        paired = [sha256(_NODE + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def node(left: bytes, right: bytes) -> bytes:
    """The hash over two others."""
    return hashlib.sha256(_NODE + left + right).digest()


def _fast_encoder(data: Dataset) -> Callable[[int], bytes]:
    """``encode_sample(data[i])``, without building the sample where the data set is plain tensors."""
    if type(data) is not torch.utils.data.TensorDataset:
        return lambda index: encode_sample(data[index])
    columns = []
    for tensor in data.tensors:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if tensor.dtype not in DTYPE_NAMES:
            raise DataError(f"the data set holds a {tensor.dtype} tensor, which cannot be committed to")
        size = tensor.nbytes // len(tensor)
        columns.append((_tensor_head(tensor.dtype, tuple(tensor.shape[1:])), tensor_bytes(tensor), size))
    head = b"L" + struct.pack("<Q", len(columns))

    def encode(index: int) -> bytes:
        pieces: list[bytes | memoryview] = [head]
        for lead, raw, size in columns:
            pieces += (lead, raw[index * size : (index + 1) * size])
        return b"".join(pieces)

    return encode


def _tensor_head(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return _text(b"T", DTYPE_NAMES[dtype].encode()) + struct.pack(f"<{len(shape) + 1}Q", len(shape), *shape)


def _text(tag: bytes, raw: bytes) -> bytes:
    return tag + struct.pack("<Q", len(raw)) + raw
