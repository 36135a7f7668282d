"""Proofs that lie elsewhere: any address that fsspec knows (``s3://bucket/run.pol`` with the extra ``s3``).

Reading copies the proof here first; a store is believed no more than a proof. Recording writes here and copies what is new to the
store beside the training loop, whole files in an order in which every moment's content is a beginning of the same run; a store that
does not answer holds nothing up, and is tried again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from proof_of_learning.behind import Behind
from proof_of_learning.errors import FormatError, RecordingError, UsageError
from proof_of_learning.proof import files, format

_GROWING = (format.BLOCKS_FILE, format.INDEX_FILE, format.LOG_FILE)
_NAME = re.compile(
    rf"({'|'.join(re.escape(name) for name in (format.HEADER_FILE, *_GROWING, format.SEAL_FILE))})"
    rf"|{format.OBJECTS}/([0-9a-f]{{2}})/\2[0-9a-f]{{62}}"
)
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt, then twice as long each time
EVERY = 20.0  # seconds between two copies of the growing files
OnBytes = Callable[[int, int], None]
AnyPath = str | os.PathLike[str]


def is_remote(path: AnyPath) -> bool:
    return "://" in os.fspath(path)


@contextmanager
def local(path: AnyPath, progress: OnBytes = lambda done, total: None) -> Iterator[Path]:
    """The proof at ``path`` as a directory of this machine; one that lies elsewhere is copied, and the copy removed at the end."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="pol-") as folder:
        fetch(os.fspath(path), Path(folder) / "proof", progress)
        yield Path(folder) / "proof"


def fetch(address: str, folder: Path, progress: OnBytes = lambda done, total: None) -> None:
    """Copy the proof at ``address`` into ``folder``: only names that a proof has, each with no more bytes than were announced."""
    system, root = _open(address)
    with _talking(f"{address} cannot be read", FormatError):
        members = _listed(system, root)
    if odd := _foreign(members):
        raise FormatError(f"{address} holds {odd[:100]!r}, which no proof does")
    if not members:
        raise FormatError(f"{address} does not exist; a proof is what `pol prove -o` wrote")
    room, total, done = shutil.disk_usage(tempfile.gettempdir()).free, sum(members.values()), 0
    if total > room:
        raise FormatError(f"{address} has {total:,} bytes, and {room:,} are free here")
    folder.mkdir(parents=True, exist_ok=True)
    # The header last: a folder that has one has all of it, so that a recording never goes on from half a copy.
    for name, size in sorted(members.items(), key=lambda item: (item[0] == format.HEADER_FILE, item[0])):
        with _talking(f"{address}/{name} cannot be read", FormatError):
            raw = system.cat_file(f"{root}/{name}", start=0, end=size + 1) if size else b""
        if len(raw) != size:
            raise FormatError(f"{address}/{name}: the store announced {size:,} bytes and sent {len(raw):,}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / name, [raw])
        done += size
        progress(done, total)


class Mirror:
    """Keeps ``address`` a beginning of what is recorded in ``folder``."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self._system, self._root = _open(address)
        self._there: dict[str, int] = {}  # name → size that the store has
        self._behind, self._last = Behind(), time.monotonic()
        self.failure: str | None = None

    def exists(self) -> bool:
        """Whether the store holds a beginning of a recording; RecordingError where it does not answer, or holds something else."""
        with _talking(f"{self.address} cannot be read", RecordingError):
            members = _listed(self._system, self._root)
            if odd := _foreign(members):
                raise RecordingError(f"{self.address} holds {odd[:100]!r}, which no proof does; choose another address")
            here = self._read(format.HEADER_FILE) if format.HEADER_FILE in members else None
            if here is not None and here != self._system.cat_file(f"{self._root}/{format.HEADER_FILE}"):
                raise RecordingError(f"{self.address} holds another run; choose another address")
        return format.HEADER_FILE in members

    def offer(self) -> None:
        """Copy what is new, beside the caller, unless that happened a moment ago. An error is kept in ``failure``, and tried again."""
        if time.monotonic() - self._last < EVERY:
            return
        self._last = time.monotonic()
        self._behind.join()
        sizes = {name: self._size(name) for name in _GROWING}
        index = self._read(format.INDEX_FILE)  # whole and now: a thinned recording writes it anew each time
        self._behind.submit(lambda: self._try(sizes, index))

    def close(self) -> None:
        """Let the last copy end."""
        self._behind.close()

    def finish(self) -> None:
        """Copy everything, the seal last. Raises RecordingError where the store does not take it; what is recorded stays here."""
        self._behind.join()
        self._copy({name: self._size(name) for name in _GROWING}, self._read(format.INDEX_FILE))
        self._put(format.SEAL_FILE, self._read(format.SEAL_FILE))
        with _talking(f"{self.address} cannot be listed", RecordingError):
            here = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}
            for name in _listed(self._system, self._root).keys() - here:
                if _NAME.fullmatch(name):
                    self._system.rm_file(f"{self._root}/{name}")  # a state that was thinned since

    def _try(self, sizes: dict[str, int], index: bytes | None) -> None:
        try:
            self._copy(sizes, index)
            self.failure = None
        except RecordingError as error:
            self.failure = str(error)

    def _copy(self, sizes: dict[str, int], index: bytes | None) -> None:
        """Objects, then what names them: at any moment the store holds a beginning of the run."""
        self._put(format.HEADER_FILE, self._read(format.HEADER_FILE))
        for name in self._objects():
            if name not in self._there and _NAME.fullmatch(name):
                self._put(name, self._read(name))
        for name in _GROWING:
            raw = index if name == format.INDEX_FILE else self._read(name)
            self._put(name, raw if raw is None or name == format.INDEX_FILE else raw[: sizes[name]])

    def _objects(self) -> list[str]:
        """Names of the objects that are here. While a recording is thinned, whole folders vanish."""
        found = []
        for folder in sorted((self.folder / format.OBJECTS).iterdir()):
            with suppress(FileNotFoundError, NotADirectoryError):
                found += [path.relative_to(self.folder).as_posix() for path in sorted(folder.iterdir())]
        return found

    def _read(self, name: str) -> bytes | None:
        """The file as it is; None where there is none (any more: it may have been thinned)."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _put(self, name: str, raw: bytes | None) -> None:
        if raw is None or (self._there.get(name) == len(raw) and name != format.INDEX_FILE):  # which may change
            return
        with _talking(f"{self.address}/{name} cannot be written", RecordingError):
            for attempt in range(ATTEMPTS):
                try:
                    self._system.pipe_file(f"{self._root}/{name}", raw)
                    break
                except Exception:
                    if attempt + 1 == ATTEMPTS:
                        raise
                    time.sleep(PAUSE * 2**attempt)
        self._there[name] = len(raw)

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0


@contextmanager
def recording(path: AnyPath) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder of this machine to record into, and what to call at each checkpoint.

    For an address it is one that holds what an interrupted recording left, here or, if this machine never began it, in the
    store; at the end all is copied there.
    """
    if not is_remote(path):
        yield Path(path), lambda: None
        return
    address = os.fspath(path)
    folder = spool(address)
    mirror = Mirror(folder, address)
    try:
        if mirror.exists() and not (folder / format.HEADER_FILE).exists():
            fetch(address, folder)
        yield folder, mirror.offer
        try:
            mirror.finish()
        except RecordingError as error:
            raise RecordingError(
                f"{error}; the recording is complete here, run the same command again to copy it"
            ) from error
    finally:
        mirror.close()
    shutil.rmtree(folder)


def spool(address: str) -> Path:
    """The folder of this machine in which a recording for ``address`` is written first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "proof-of-learning" / "recordings" / hashlib.sha256(address.encode()).hexdigest()[:16]


def _listed(system: Any, root: str) -> dict[str, int]:
    """What a store says that it holds below ``root``: names and sizes."""
    system.invalidate_cache()
    found: dict[str, Any] = system.find(root, detail=True) if system.exists(root) else {}
    return {name.removeprefix(root).lstrip("/"): int(entry["size"]) for name, entry in found.items()}


def _foreign(members: Iterable[str]) -> str | None:
    """One of ``members`` that no proof has."""
    return next((name for name in members if not _NAME.fullmatch(name)), None)


def _open(address: str) -> tuple[Any, str]:
    try:
        system, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UsageError(f"{address}: {error}; `pip install 'proof-of-learning[s3]'` brings what s3:// needs") from None
    except ValueError as error:
        raise UsageError(f"{address}: {error}") from None
    return system, root.rstrip("/")


@contextmanager
def _talking(what: str, kind: type[FormatError] | type[RecordingError]) -> Iterator[None]:
    """Whatever a store's client raises, in one line."""
    try:
        yield
    except (FormatError, RecordingError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise kind(f"{what}: {text}") from error
