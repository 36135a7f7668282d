"""The container that the compressing codecs share: a header and streams of integers, byte planes of which zstd compresses.

Layout: ``u32`` length and zstd frame of the header (canonical JSON ``{"tree": …, "tensors": {name: {"dtype", "shape",
"items", …}}}``), then, for each width in bytes from the largest, the items of all tensors of that width in order of their names, in
chunks of ``CHUNK`` items: for each byte of an item one plane, as ``u32`` length and zstd frame. Every frame says its content's size.
Items of one byte have two planes: their low halves, two to a byte (the first in the lower half; neighbours are alike, and
so a byte says more than its parts), and their high halves, a byte each.

A codec may keep the items of some tensors apart, as streams of its own behind those: numbers that are mostly 0 (``gaps``).

``items`` is the width of a tensor's items; what they mean is the codec's business.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, UnreadableError
from proof_of_learning.limits import HEADER_WEIGHT, MAX_DIMENSIONS, MAX_OBJECT_HEADER
from proof_of_learning.proof.codecs import gaps
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.state.recalled import tree_of
from proof_of_learning.state.state import DTYPE_NAMES, DTYPES, State, check_tree

CHUNK = 1 << 20  # items
LEVEL = 1
APART = 4  # bytes of an item that is kept apart, as a header counts them
WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Bytes = npt.NDArray[np.uint8]

_SIZE = struct.Struct("<I")
_LITERALS = zstandard.ZstdCompressionParameters(  # Huffman codes, and next to no matches
    strategy=zstandard.STRATEGY_FAST, window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7, target_length=0,
    write_content_size=True,
)  # fmt: skip
_zstd = threading.local()  # contexts are reused, but not between threads


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor of an object. ``how``: the codec's word for what its items are; ``scale``: exponent of a power of two.

    ``by``, ``factors``: the tensor by which another is predicted, and how.
    """

    dtype: str
    shape: list[int]
    items: int
    how: str
    scale: int = 0
    by: str = ""
    factors: list[int] = []

    @property
    def count(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tree: dict[str, Any]
    tensors: dict[str, Entry]


class _Spelled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header whose tree, which is most of it, is mostly as it was in the object before."""

    tree: msgspec.Raw
    tensors: dict[str, Entry]


def entry(tensor: Tensor, items: int, how: str, scale: int = 0, **more: Any) -> Entry:
    return Entry(DTYPE_NAMES[tensor.dtype], list(tensor.shape), items, how, scale, **more)


def pack(
    tree: Any,
    entries: dict[str, Entry],
    items: Callable[[str], Tensor],
    apart: Mapping[str, Callable[[], Iterator[gaps.Numbers]]] = MappingProxyType({}),
) -> Iterator[bytes]:
    """The object in pieces. ``items(name)``: a tensor's items, flat; called once each, one tensor at a time in memory.

    apart: by ``how``, what stands for the items of all such tensors, in chunks of ``CHUNK`` numbers.
    """
    header = {"tensors": {name: msgspec.to_builtins(item) for name, item in entries.items()}, "tree": tree}
    yield _frame(canonical.encode_plain(header))
    for width in sorted(WIDTHS, reverse=True):
        names = [name for name, entry in _of_width(entries, width, apart) if entry.count]
        total, room, filled = sum(entries[name].count for name in names), torch.empty(0, dtype=WIDTHS[width]), 0
        for name in names:
            values = items(name).reshape(-1)
            while len(values):
                if filled == len(room):
                    room, filled = torch.empty(min(CHUNK, total), dtype=WIDTHS[width]), 0
                part = values[: len(room) - filled]
                room[filled : filled + len(part)] = part
                filled, total, values = filled + len(part), total - len(part), values[len(part) :]
                if filled == len(room):
                    yield from _planes(room, width)
    for _, chunks in sorted(apart.items()):
        for chunk in chunks():
            yield from (_frame(piece.data, dense=True) for piece in gaps.encode(chunk))


def weight(stream: BinaryIO, room: Room) -> int:
    """What an object that :func:`pack` wrote takes of ``room``, of which its header is read; FormatError where that is too much."""
    size, before = stream.read(_SIZE.size), room.left
    _header(_Stream(size + (stream.read(*_SIZE.unpack(size)) if len(size) == _SIZE.size else b"")), room)
    return before - room.left


def unpack(
    raw: bytes | bytearray, base: State | None, room: Room | None = None, apart: Collection[str] = ()
) -> tuple[Any, dict[str, Entry], dict[str, Tensor], dict[str, gaps.Numbers]]:
    """Tree, entries, items, and the numbers of what is kept ``apart``, of what :func:`pack` wrote; FormatError for anything else.

    Sizes are bounded before they are believed: by ``room``, or by the object's own size and the base's.
    """
    stream = _Stream(raw)
    if room is None:
        room = Room.of([("", len(raw))])
        room.left += 0 if base is None else base.nbytes
    header = _header(stream, room)
    if any(entry.how in apart and entry.items != APART for entry in header.tensors.values()):
        raise FormatError("an object's header gives another width to numbers that are kept apart")
    items: dict[str, Tensor] = {}
    for width in sorted(WIDTHS, reverse=True):
        here = dict(_of_width(header.tensors, width, apart))
        counts = [entry.count for entry in here.values()]
        whole = _read(stream, width, sum(counts))
        items.update(zip(here, torch.split(whole, counts), strict=True))
    numbers = {}
    for how in sorted(apart):
        count = sum(entry.count for entry in header.tensors.values() if entry.how == how)
        numbers[how] = np.empty(count, dtype=np.int32)
        for start in range(0, count, CHUNK):
            chunk = numbers[how][start : start + CHUNK]
            chunk[:] = gaps.decode(len(chunk), stream.piece)
    if not stream.done:
        raise FormatError("an object goes on after its last frame")
    return header.tree, header.tensors, items, numbers


def _of_width(entries: Mapping[str, Entry], width: int, apart: Collection[str]) -> Iterator[tuple[str, Entry]]:
    """The tensors whose items are in the stream of that width, in order."""
    return ((n, entry) for n, entry in sorted(entries.items()) if entry.items == width and entry.how not in apart)


def _header(stream: _Stream, room: Room) -> _Header:
    """The header, once ``room`` was found for it and for the tensors that it describes."""
    text, what, checked = stream.next(MAX_OBJECT_HEADER, room=room), "an object's header", True
    try:
        spelled = canonical.decode(text, _Spelled, what)
        header = _Header(tree_of(bytes(spelled.tree), tuple(sorted(spelled.tensors)), what), spelled.tensors)
    except FormatError:  # or spelled in a way that takes a closer look
        header, checked = canonical.decode(text, _Header, what), False
    claimed = 0
    for name, item in header.tensors.items():
        dtype = DTYPES.get(item.dtype)
        # A tensor without elements may still have lengths whose product overflows PyTorch's strides.
        extent = math.prod(max(length, 1) for length in item.shape[:MAX_DIMENSIONS])
        fits = len(item.shape) <= MAX_DIMENSIONS and min(item.shape, default=0) >= 0 and extent * 8 < 2**62
        if dtype is None or not fits or item.items not in WIDTHS or bool(item.by) != bool(item.factors):
            raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
        claimed += item.count * max(dtype.itemsize, item.items)
    room.take(claimed)
    if not checked:
        check_tree(header.tree, header.tensors)
    return header


def _planes(items: Tensor, width: int) -> Iterator[bytes]:
    raw: Bytes = items.view(torch.uint8).numpy()
    if width == 1:
        low = raw & np.uint8(15)
        low = np.append(low, np.uint8(0)) if len(low) % 2 else low
        yield _frame((low[::2] | low[1::2] << np.uint8(4)).data)
        yield _frame((raw >> np.uint8(4)).data)
        return
    for byte in range(width):
        yield _frame(raw[byte::width].copy().data)  # far faster than a transposition


def _read(stream: _Stream, width: int, total: int) -> Tensor:
    whole = torch.empty(total, dtype=WIDTHS[width])
    for start in range(0, total, CHUNK):
        part = whole[start : start + CHUNK]
        shuffled = part.view(torch.uint8).numpy()
        if width == 1:
            low = np.frombuffer(stream.next(-(-len(part) // 2), exact=True), dtype=np.uint8)
            shuffled[::2] = low[: -(-len(part) // 2)] & np.uint8(15)
            shuffled[1::2] = low[: len(part) // 2] >> np.uint8(4)
            shuffled |= np.frombuffer(stream.next(len(part), exact=True), dtype=np.uint8) << np.uint8(4)
            continue
        for byte in range(width):
            shuffled[byte::width] = np.frombuffer(stream.next(len(part), exact=True), dtype=np.uint8)
    return whole


def _frame(content: bytes | memoryview, *, dense: bool = False) -> bytes:
    """``dense``: hardly anything in it is said twice, so what a search for matches finds may take more than it saves."""
    if not hasattr(_zstd, "compressor"):
        _zstd.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    frame: bytes = _zstd.compressor.compress(content)
    if dense:
        if not hasattr(_zstd, "literals"):
            _zstd.literals = zstandard.ZstdCompressor(compression_params=_LITERALS)
        frame = min(frame, _zstd.literals.compress(content), key=len)
    return _SIZE.pack(len(frame)) + frame


class _Stream:
    """The frames of an object, in order."""

    def __init__(self, raw: bytes | bytearray) -> None:
        self._raw, self._at = memoryview(raw), 0

    @property
    def done(self) -> bool:
        return self._at == len(self._raw)

    def piece(self, limit: int, exact: bool) -> bytes:
        return self.next(limit, exact=exact)

    def next(self, limit: int, *, exact: bool = False, room: Room | None = None) -> bytes:
        """The content of the next frame: at most, or exactly, ``limit`` bytes, known before they are decompressed.

        ``room``: from which the content, which is JSON, takes its part.
        """
        begin = self._at + _SIZE.size
        if begin > len(self._raw):
            raise FormatError("an object ends before its last frame")
        end = begin + _SIZE.unpack_from(self._raw, self._at)[0]
        if end > len(self._raw):
            raise FormatError("an object ends within a frame")
        frame, self._at = self._raw[begin:end], end
        try:
            size = zstandard.frame_content_size(frame)
            if size < 0 or size > limit or (exact and size != limit):
                raise FormatError("a frame of an object does not have the size that its header says")
            if room is not None:
                room.take(HEADER_WEIGHT * size)
            if not hasattr(_zstd, "decompressor"):
                _zstd.decompressor = zstandard.ZstdDecompressor()
            content: bytes = _zstd.decompressor.decompress(frame, allow_extra_data=False)
        except MemoryError:
            raise UnreadableError("a frame of an object does not fit into this machine's memory") from None
        except zstandard.ZstdError as error:
            raise FormatError(f"a frame of an object cannot be decompressed: {str(error)[:80]}") from None
        return content


def map_bits(tensor: Tensor) -> Tensor:
    """A tensor's bit patterns as integers of its width, flat, floating-point ones in the order of their values."""
    kind = WIDTHS[tensor.element_size()]
    bits = tensor.reshape(-1).view(kind) if tensor.dtype != torch.bool else tensor.reshape(-1).view(torch.int8)
    return _turn(bits) if tensor.is_floating_point() else bits


def unmap_bits(bits: Tensor, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """The inverse of :func:`map_bits`."""
    return (_turn(bits) if dtype.is_floating_point else bits).view(dtype).reshape(shape)


def _turn(bits: Tensor) -> Tensor:
    """Sign and magnitude to the order of values, and back: all bits but the sign of a negative number turn."""
    turned = bits >> (8 * bits.element_size() - 1)
    turned &= torch.iinfo(bits.dtype).max
    turned ^= bits
    return turned


def zigzag(values: Tensor) -> Tensor:
    """Small integers of either sign as small unsigned ones (in the same signed type)."""
    signs = values >> (8 * values.element_size() - 1)
    return signs.bitwise_xor_(values << 1)


def unzigzag(values: Tensor) -> Tensor:
    halves = (values >> 1).bitwise_and_(torch.iinfo(values.dtype).max)
    return halves.bitwise_xor_((values & 1).neg_())
