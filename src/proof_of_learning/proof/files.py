"""Files of a proof: opened without following links, bounded before reading, written atomically, one writer."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from proof_of_learning.errors import BusyError, FormatError, RecordingError, UnreadableError

TEMPORARY = ".tmp-"
_GATHERED = 1 << 18  # bytes
_APART = 1 << 22  # bytes; below it, handing over costs more than hashing
_NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # something else lies there: a link, a file for a folder, a socket


def open_regular(path: Path) -> int:
    """A descriptor of a regular file that is not a link. Raises FormatError; UnreadableError where it cannot be opened just now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FormatError(f"{path.name} is missing from the proof") from None
    except OSError as error:
        what = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
        kind = FormatError if error.errno in _NO_FILE else UnreadableError
        raise kind(f"{path.name} {what}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{path.name} is not a regular file")
    return descriptor


def read_bounded(path: Path, limit: int, what: str | None = None) -> bytearray:
    """The whole file, if it has at most ``limit`` bytes; its size is known before the first byte is read."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise FormatError(f"{what or path.name} has {size:,} bytes; at most {limit:,} are accepted")
        return read_at(descriptor, size, 0, what or path.name)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, size: int, offset: int, what: str) -> bytearray:
    """Exactly ``size`` bytes at ``offset``."""
    try:
        buffer = bytearray(size)
    except MemoryError:
        raise UnreadableError(f"{what} has {size:,} bytes, which do not fit into this machine's memory") from None
    view, done = memoryview(buffer), 0
    with reading(what):
        while done < size:
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise FormatError(f"{what} ends early: {done:,} of {size:,} bytes at offset {offset:,}")
            done += count
    return buffer


def iterate_lines(path: Path, limit: int, longest: int) -> Iterator[bytes]:
    """The file's lines without their newline; a last line without one is yielded as it is."""
    with reading(path.name), os.fdopen(open_regular(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise FormatError(f"{path.name} has {size:,} bytes; at most {limit:,} are accepted")
        while line := stream.readline(longest + 1):
            if len(line) > longest:
                raise FormatError(f"{path.name} has a line of more than {longest:,} bytes")
            yield line


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn an OSError while reading into one line."""
    try:
        yield
    except OSError as error:
        raise UnreadableError(f"{what} cannot be read: {error.strerror or error}") from None


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn an OSError while writing into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RecordingError(
                f"the disk is full while writing {what}; free some space and run the same command again"
            ) from error
        raise RecordingError(f"{what} cannot be written: {error.strerror or error}") from error


def require_writable(folder: Path) -> None:
    """RecordingError where nothing can be written into ``folder``, or it cannot be made; nothing is."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    with writing(str(folder)):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def require_new(folder: Path) -> None:
    """RecordingError where there is something already that a new folder would be mixed with."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordingError(f"{folder} exists and is not an empty directory; choose another path")


def write_atomic(path: Path, chunks: Iterable[bytes | memoryview], *, durable: bool = False) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one, never a part."""
    with writing(str(path)), _beside(path.parent, chunks, durable) as temporary:
        os.replace(temporary, path)


def write_object(
    folder: Path, chunks: Iterable[bytes | memoryview], place: Callable[[str], Path], *, durable: bool = False
) -> tuple[str, int]:
    """Write ``chunks`` as they come to where ``place`` says for the name that follows from them: (``sha256:…``, bytes).

    A large one is hashed while it is written: both leave Python's lock.
    """
    hasher, size = hashlib.sha256(), 0

    def measured(hashing: Executor) -> Iterator[bytes | memoryview]:
        nonlocal size
        for chunk in _gathered(chunks):
            size += len(chunk)
            if len(chunk) < _APART:
                hasher.update(chunk)
                yield chunk
            else:
                hashed = hashing.submit(hasher.update, chunk)
                yield chunk
                hashed.result()

    with (
        writing(str(folder)),
        ThreadPoolExecutor(1) as hashing,  # whose thread begins with the first large chunk
        _beside(folder, measured(hashing), durable) as temporary,
    ):
        name = f"sha256:{hasher.hexdigest()}"
        target = place(name)
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary, target)
    return name, size


def _gathered(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes with small chunks together: to hash and write one takes longer than to copy it."""
    waiting, size = list[bytes | memoryview](), 0
    for chunk in chunks:
        if size + len(chunk) > _GATHERED:
            yield from _joined(waiting)
            waiting, size = [], 0
        waiting.append(chunk)
        size += len(chunk)
    yield from _joined(waiting)


def _joined(chunks: list[bytes | memoryview]) -> list[bytes | memoryview]:
    return chunks if len(chunks) < 2 else [b"".join(chunks)]


@contextmanager
def _beside(folder: Path, chunks: Iterable[bytes | memoryview], durable: bool) -> Iterator[str]:
    """A temporary file in ``folder`` with ``chunks`` in it, for the caller to rename; gone if anything fails."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        yield name
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def exclusive(directory: Path, what: str | None = None) -> Iterator[None]:
    """Hold the directory for one writer; a lock on the directory itself leaves no file behind when a process is killed.

    ``what``: what another writer is told that this one records into, where that is not the directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(
                f"another process is recording into {what or directory}; wait for it or choose another path"
            ) from None
        yield
    finally:
        os.close(descriptor)
