"""A coordinator's memory: the journal of events, each line chained to the one before, and the bytes that events speak of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from proof_of_learning import canonical
from proof_of_learning.distributed.events import AnyEvent
from proof_of_learning.errors import FormatError, RecordingError
from proof_of_learning.proof import files

MAX_LINE = 4 << 20  # an envelope twice in base64, and the digests in it
FIRST = canonical.sha256(b"pol/v1/journal\0")


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event, and the digest of the line before it."""

    event: AnyEvent
    prev: str


class Journal:
    """Events in a file, or only in memory where there is none. ``head``: digest of the last line."""

    def __init__(self, path: Path | None, run: str) -> None:
        self.head = canonical.sha256(FIRST.encode(), run.encode())
        self.events: list[AnyEvent] = []
        self._file = None
        if path is None:
            return
        whole = 0
        for event, line, end in read(path, run) if path.exists() else ():
            self.events.append(event)
            self.head, whole = line, end
        with files.writing(str(path)):
            self._file = path.open("ab")
            self._file.truncate(whole)  # a line that was being written when the coordinator was stopped

    def add(self, event: AnyEvent, durable: bool = False) -> None:
        if self._file is None:
            return
        raw = canonical.encode(Line(event, self.head))
        self.head = canonical.sha256(raw)
        try:
            self._file.write(raw + b"\n")
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordingError(f"the journal cannot be written: {error.strerror or error}") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path, run: str) -> Iterator[tuple[AnyEvent, str, int]]:
    """Events with the digest of their line and the bytes up to its end. FormatError where the chain breaks."""
    head, whole = canonical.sha256(FIRST.encode(), run.encode()), 0
    with path.open("rb") as stream:
        for number in range(2**40):
            raw = stream.readline(MAX_LINE + 1)
            if not raw.endswith(b"\n"):
                if len(raw) > MAX_LINE:
                    raise FormatError(f"line {number + 1} of the journal has more than {MAX_LINE:,} bytes")
                return
            line = canonical.decode(raw[:-1], Line, f"line {number + 1} of the journal")
            if line.prev != head:
                raise FormatError(f"line {number + 1} of the journal does not follow from the one before")
            head, whole = canonical.sha256(raw[:-1]), whole + len(raw)
            yield line.event, head, whole


class Blobs(Protocol):
    """Bytes by their digests."""

    def put(self, name: str, raw: bytes) -> None: ...
    def get(self, name: str) -> bytes: ...
    def keep(self, names: set[str]) -> None: ...


class Memory:
    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def put(self, name: str, raw: bytes) -> None:
        self._held[name] = raw

    def get(self, name: str) -> bytes:
        return self._held[name]

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        for name in set(self._held) - names:
            del self._held[name]


class Folder:
    """In files, so that a restart finds them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True)
        self._names = {"sha256:" + p.name for p in path.iterdir()}

    def put(self, name: str, raw: bytes) -> None:
        if name not in self._names:
            files.write_atomic(self._file(name), [raw], durable=False)
            self._names.add(name)

    def get(self, name: str) -> bytes:
        try:
            return self._file(name).read_bytes()
        except OSError as error:
            raise RecordingError(
                f"{self._file(name)} is missing, without which this run cannot go on: {error}"
            ) from None

    def keep(self, names: set[str]) -> None:
        for name in self._names - names:
            self._file(name).unlink(missing_ok=True)
        self._names &= names

    def _file(self, name: str) -> Path:
        return self._path / name.removeprefix("sha256:")
