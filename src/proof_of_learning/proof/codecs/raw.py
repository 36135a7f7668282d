"""The ``raw`` codec: a safetensors file, exactly as large as the state.

The layout is fixed to the byte (names sorted within descending element size, no gaps, sorted header), so that a
state has one encoding; any safetensors reader opens it. The state's tree is the metadata entry ``pol``.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_DIMENSIONS, MAX_OBJECT_HEADER
from proof_of_learning.proof.codecs.base import Encoded
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.state.layout import Flat, Layout
from proof_of_learning.state.recalled import tree_of
from proof_of_learning.state.state import State, check_tree, tensor_bytes

# safetensors' names for dtypes
_NAMES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}  # fmt: skip
_BY_DTYPE = {dtype: name for name, dtype in _NAMES.items()}


class RawCodec:
    name = "raw"
    version = 1
    exact = True

    def encode(self, state: State, base: State | None) -> Encoded:
        metadata = {"pol": canonical.encode_plain(state.tree).decode()}
        return Encoded(state, lambda: encode_tensors(state.tensors, metadata, state.bytes_of))

    def decode(self, raw: bytearray, base: State | None, room: Room | None = None) -> State:
        known = _recalled(raw)
        if known is None:
            tensors, metadata = decode_tensors(raw)
            if set(metadata) != {"pol"}:
                raise FormatError("an object is not a state: its metadata is not what the raw codec writes")
            tree = canonical.decode(metadata["pol"].encode(), dict[str, Any], "a state's tree")
            check_tree(tree, tensors)
            return State(tree, tensors)
        written, start, text = known
        tree = tree_of(text, written.names, "a state's tree")
        blocks, whole = dict[torch.dtype, Tensor](), memoryview(raw)
        for dtype, size in written.layout.sizes.items():
            at = start + written.offsets[dtype]
            blocks[dtype] = (
                torch.frombuffer(raw, dtype=dtype, count=size, offset=at) if size else torch.empty(0, dtype=dtype)
            )
        if torch.bool in blocks and bool((blocks[torch.bool].view(torch.uint8) > 1).any()):
            decode_tensors(raw)  # which says where
        views = {name: whole[start + begin : start + end] for name, (begin, end) in written.spans.items()}
        flat = Flat(written.layout, blocks)
        return State(tree, written.layout.tensors(blocks), _views=views, flat=flat)

    def nearest(self, arrived: State, recorded: State, base: State) -> State:
        return recorded


def written(state: State) -> bytes:
    """A whole state as this codec writes it, in one piece."""
    return b"".join(RawCodec().encode(state, None).chunks())


def encode_tensors(
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
    bytes_of: Callable[[str], memoryview] | None = None,
) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, without copying the tensors. ``bytes_of``: gives a tensor's bytes, where these are at hand."""
    order = _order({name: tensor.dtype for name, tensor in tensors.items()})
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": _BY_DTYPE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = canonical.encode_plain(header)
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        if tensors[name].nbytes:
            yield tensor_bytes(tensors[name]) if bytes_of is None else bytes_of(name)


def _order(dtypes: dict[str, torch.dtype]) -> list[str]:
    """Names as tensors of these dtypes lie in a file."""
    return sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, name))


def decode_tensors(raw: bytearray) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (sharing ``raw``'s memory) and metadata of a file that :func:`encode_tensors` wrote; FormatError otherwise."""
    if len(raw) < 8:
        raise FormatError("an object is too short to be a safetensors file")
    (size,) = struct.unpack_from("<Q", raw)
    if size > min(MAX_OBJECT_HEADER, len(raw) - 8):
        raise FormatError("an object's header is larger than the object")
    text = bytes(raw[8 : 8 + size]).rstrip(b" ")
    header = canonical.decode(text, dict[str, Any], "an object's header")
    try:
        metadata = msgspec.convert(header.pop("__metadata__", {}), dict[str, str])
    except msgspec.ValidationError as error:
        raise FormatError(f"an object's header has a malformed entry: {canonical.brief(error)}") from error
    tensors: dict[str, Tensor] = {}
    start = 8 + size
    for name, entry in _entries(header, len(raw) - start).items():
        dtype, count = _NAMES[entry.dtype], math.prod(entry.shape)
        flat = (
            torch.frombuffer(raw, dtype=dtype, count=count, offset=start + entry.data_offsets[0])
            if count
            else torch.empty(0, dtype=dtype)
        )
        if dtype == torch.bool and bool((flat.view(torch.uint8) > 1).any()):
            raise FormatError(f"the tensor {name[:80]!r} has values that are no booleans")
        tensors[name] = flat.reshape(entry.shape)
    first = next(iter(encode_tensors(tensors, metadata or None)))
    if bytes(first) != bytes(raw[: 8 + size]) or start + sum(t.nbytes for t in tensors.values()) != len(raw):
        raise FormatError("an object is not laid out as the raw codec writes it")
    return tensors, metadata


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _entries(header: dict[str, Any], room: int) -> dict[str, _Entry]:
    """What a header says of tensors, whose bytes are among ``room``. FormatError where that cannot be."""
    try:
        entries = msgspec.convert(header, dict[str, _Entry])
    except msgspec.ValidationError as error:
        raise FormatError(f"an object's header has a malformed entry: {canonical.brief(error)}") from error
    for name, entry in entries.items():
        dtype = _NAMES.get(entry.dtype)
        count, extent = 1, 1
        for length in entry.shape[:MAX_DIMENSIONS]:
            count *= length
            extent *= max(length, 1)
        begin, end = entry.data_offsets
        # A tensor without elements may still have lengths whose product overflows PyTorch's strides.
        fits = len(entry.shape) <= MAX_DIMENSIONS and min(entry.shape, default=0) >= 0 and extent < 2**62
        if dtype is None or not fits or not 0 <= begin <= end <= room:
            raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
        if count * dtype.itemsize != end - begin:
            raise FormatError(f"the tensor {name[:80]!r} has {end - begin} bytes, which do not fill its shape")
    return entries


@dataclass(frozen=True)
class _Written:
    """What headers of one layout say, metadata aside: where blocks begin (``offsets``) and tensors lie (``spans``) behind the header,
    how many bytes there are (``size``), and the ``names``, sorted.
    """

    layout: Layout
    offsets: dict[torch.dtype, int]
    spans: dict[str, tuple[int, int]]
    size: int
    names: tuple[str, ...]


_BEFORE, _BETWEEN = b'{"__metadata__":{"pol":', b"},"
_MOST, _KEPT = 1 << 18, 4  # bytes of headers that are remembered, and of how many


def _recalled(raw: bytearray) -> tuple[_Written, int, bytes] | None:
    """What is known of a header that says of tensors what another one said; where tensors begin, and the tree's text.

    None for one that is spelled in any other way than :func:`encode_tensors` spells it, or is too long: the slow way is for those.
    """
    size = int.from_bytes(raw[:8], "little")
    start = 8 + size
    if len(raw) < start or size > _MOST or not raw.startswith(_BEFORE, 8):
        return None
    # In a text, a quote has a backslash before it, and so none comes behind a comma.
    end = raw.find(b'"},"', 8, start) + 1
    if not end:
        return None
    spelled = bytes(raw[8 + len(_BEFORE) : end])
    rest = bytes(raw[end + len(_BETWEEN) : start]).rstrip(b" ")
    length = end + len(_BETWEEN) + len(rest) - 8
    if size != length + -length % 8:
        return None
    try:
        text = _text.decode(spelled)
        if canonical.encode_plain(text) != spelled:
            return None
        written = _written(rest)
    except (FormatError, msgspec.DecodeError, UnicodeError):
        return None
    return (written, start, text.encode()) if written is not None and written.size == len(raw) - start else None


_text = msgspec.json.Decoder(str, strict=True)


@functools.lru_cache(_KEPT)
def _written(entries: bytes) -> _Written | None:
    """What a header says that ends like this, behind its metadata; None where :func:`encode_tensors` would not write it, or tensors
    of one dtype do not lie end to end.
    """
    found = _entries(canonical.decode(b"{" + entries, dict[str, Any], "an object's header"), sys.maxsize)
    described = {name: (_NAMES[entry.dtype], torch.Size(entry.shape)) for name, entry in found.items()}
    order = _order({name: dtype for name, (dtype, _) in described.items()})
    dtypes = [dtype for dtype, _ in itertools.groupby(described[name][0] for name in order)]
    if not order or min(order) <= "__metadata__" or len(set(dtypes)) != len(dtypes):
        return None
    offset, offsets, spans = 0, dict[torch.dtype, int](), dict[str, tuple[int, int]]()
    for name in order:
        dtype, shape = described[name]
        offsets.setdefault(dtype, offset)
        spans[name] = offset, offset + shape.numel() * dtype.itemsize
        offset = spans[name][1]
    if any(entry.data_offsets != spans[name] for name, entry in found.items()):
        return None
    return _Written(Layout.of(described, order), offsets, spans, offset, tuple(sorted(described)))
