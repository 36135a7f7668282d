"""Writing states as objects, so that a reader has room for what they hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from proof_of_learning import canonical
from proof_of_learning.proof import files, format
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.proof.codecs.room import Balance, Room
from proof_of_learning.proof.format import Stored
from proof_of_learning.proof.reader import object_path
from proof_of_learning.state.state import State


def write_state(
    folder: Path,
    state: State,
    codec: str,
    chunks: Iterable[bytes | memoryview],
    balance: Balance,
    *,
    durable: bool = False,
    stays: bool = True,
) -> tuple[str, int, str]:
    """Write the ``chunks`` that ``codec`` makes of a state to the proof in ``folder``; returns the object's name, size and codec.

    Where a reader would take it for a decompression bomb (zeros compress to almost nothing), the state is stored as it is.
    ``stays``: whether the object counts for those after it.
    """

    def written(chunks: Iterable[bytes | memoryview]) -> tuple[str, int]:
        place = folder / format.OBJECTS
        return files.write_object(place, chunks, lambda name: object_path(folder, name), durable=durable)

    name, size = written(chunks)
    weight = weigh(folder, name, codec)
    if not balance.admits(weight, codec, size):
        remove(folder, name)
        name, size = written(RawCodec().encode(state, None).chunks())
        weight, codec = 0, RawCodec.name
    if stays:
        balance.add(weight, codec, size)
    return name, size, codec


def chained(items: list[Stored], head: str) -> tuple[bytes, str]:
    """The index lines of ``items`` behind the link ``head``, and the link that comes after them."""
    lines = []
    for item in items:
        line = canonical.encode(msgspec.structs.replace(item, prev=head))
        head = format.line_digest(line)
        lines.append(line + b"\n")
    return b"".join(lines), head


def remove(folder: Path, name: str) -> None:
    """Remove an object that need not be there, and its folder if that is empty then."""
    target = object_path(folder, name)
    with files.writing(str(folder)):
        target.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        target.parent.rmdir()


def weigh(folder: Path, name: str, codec: str, room: Room | None = None) -> int:
    """What an object takes of a reader's room; FormatError where that is more than ``room``. Only the head of its file is read."""
    if codec == RawCodec.name:  # nothing in it is compressed
        return 0
    with (
        os.fdopen(files.open_regular(object_path(folder, name)), "rb") as stream,
        files.reading(f"object {name[7:19]}…"),
    ):
        return packed.weight(stream, room or Room(sys.maxsize))
