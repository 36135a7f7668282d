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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        system.invalidate_cache()
        listed: dict[str, Any] = system.find(root, detail=True) if system.exists(root) else {}
    members = {name.removeprefix(root).lstrip("/"): int(entry["size"]) for name, entry in listed.items()}
    odd = [name for name in members if not _NAME.fullmatch(name)]
    if odd:
        raise FormatError(f"{address} holds {odd[0][:100]!r}, which no proof does")
    if not members:
        raise FormatError(f"{address} does not exist; a proof is what `pol prove -o` wrote")
    room, total, done = shutil.disk_usage(tempfile.gettempdir()).free, sum(members.values()), 0
    if total > room:
        raise FormatError(f"{address} has {total:,} bytes, and {room:,} are free here")
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sorted(members.items()):
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
        """Whether the store holds a beginning of a recording. Raises RecordingError where it does not answer."""
        with _talking(f"{self.address} cannot be read", RecordingError):
            return bool(self._system.exists(f"{self._root}/{format.HEADER_FILE}"))

    def offer(self) -> None:
        """Copy what is new, beside the caller, unless that happened a moment ago. An error is kept in ``failure``, and tried again."""
        if time.monotonic() - self._last < EVERY:
            return
        self._last = time.monotonic()
        self._behind.join()
        sizes = {name: self._size(name) for name in _GROWING}
        self._behind.submit(lambda: self._try(sizes))

    def finish(self) -> None:
        """Copy everything, the seal last. Raises RecordingError where the store does not take it; what is recorded stays here."""
        self._behind.join()
        self._behind.close()
        self._copy({name: self._size(name) for name in _GROWING})
        if (self.folder / format.SEAL_FILE).exists():
            self._put(format.SEAL_FILE, None)
        with _talking(f"{self.address} cannot be listed", RecordingError):
            self._system.invalidate_cache()
            found = {name.removeprefix(self._root).lstrip("/") for name in self._system.find(self._root)}
            for name in found - {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}:
                self._system.rm_file(f"{self._root}/{name}")  # states that were thinned since

    def _try(self, sizes: dict[str, int]) -> None:
        try:
            self._copy(sizes)
            self.failure = None
        except RecordingError as error:
            self.failure = str(error)

    def _copy(self, sizes: dict[str, int]) -> None:
        """Objects, then what names them: at any moment the store holds a beginning of the run."""
        self._put(format.HEADER_FILE, None)
        for path in sorted((self.folder / format.OBJECTS).glob("??/*")):
            self._put(path.relative_to(self.folder).as_posix(), None)
        for name in _GROWING:
            self._put(name, sizes[name])

    def _put(self, name: str, size: int | None) -> None:
        try:
            raw = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return  # thinned in the meantime
        raw = raw if size is None else raw[:size]
        if self._there.get(name) == len(raw) and name != format.INDEX_FILE:  # a thinned recording's index changes
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
    if not (folder / format.HEADER_FILE).exists() and mirror.exists():
        fetch(address, folder)
    yield folder, mirror.offer
    try:
        mirror.finish()
    except RecordingError as error:
        raise RecordingError(
            f"{error}; the recording is complete here, run the same command again to copy it"
        ) from error
    shutil.rmtree(folder)


def spool(address: str) -> Path:
    """The folder of this machine in which a recording for ``address`` is written first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "proof-of-learning" / "recordings" / hashlib.sha256(address.encode()).hexdigest()[:16]


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
