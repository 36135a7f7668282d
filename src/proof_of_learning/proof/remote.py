"""Proofs that lie elsewhere: any address that fsspec knows (``s3://bucket/run.pol`` with the extra ``s3``).

Reading copies the proof here first; a store is believed no more than a proof. Recording writes here and copies what is new to the
store beside the training loop, whole files in an order in which every moment's content is a beginning of the same run; a store that
does not answer holds nothing up, is warned of, and is tried again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from proof_of_learning import canonical, limits
from proof_of_learning.behind import Behind
from proof_of_learning.errors import FormatError, RecordingError, StoreWarning, UsageError
from proof_of_learning.proof import files, format
from proof_of_learning.proof.format import Stored
from proof_of_learning.proof.reader import object_path

_GROWING = (format.BLOCKS_FILE, format.INDEX_FILE, format.LOG_FILE)
_PACKAGES = {  # what pip has to install for a kind of address
    **dict.fromkeys(("s3", "s3a"), "'proof-of-learning[s3]'"), **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"), **dict.fromkeys(("sftp", "ssh"), "paramiko"), "hdfs": "pyarrow",
}  # fmt: skip
_NAME = re.compile(
    rf"({'|'.join(re.escape(name) for name in (format.HEADER_FILE, *_GROWING, format.SEAL_FILE))})"
    rf"|{format.OBJECTS}/([0-9a-f]{{2}})/\2[0-9a-f]{{62}}"
    rf"|{format.ATTESTATIONS}/{format.ATTESTATION.pattern}"
)
_LIMITS = {
    format.HEADER_FILE: limits.MAX_HEADER,
    format.INDEX_FILE: limits.MAX_LOG,
    format.LOG_FILE: limits.MAX_LOG,
    format.SEAL_FILE: limits.MAX_SEAL,
}
PIECE = 16 << 20  # bytes of a store's file that are in memory at a time
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
    for name, size in members.items():
        beside = name.startswith(f"{format.ATTESTATIONS}/")
        if not 0 <= size <= (limits.MAX_ATTESTATION if beside else _LIMITS.get(name, size)):
            raise FormatError(f"{address}/{name}: the store announced {size:,} bytes, which no proof has")
    folder.mkdir(parents=True, exist_ok=True)
    room, total, done = shutil.disk_usage(folder).free, sum(members.values()), 0
    if total > room:
        raise FormatError(f"{address} has {total:,} bytes, and {room:,} are free here")

    def sent(name: str, size: int) -> Iterator[memoryview]:
        nonlocal done
        for at in range(0, size, PIECE):
            wanted = min(PIECE, size - at)
            with _talking(f"{address}/{name} cannot be read", FormatError):
                # At the end one byte more is asked for, to see that there is none.
                end = at + wanted + (at + wanted == size)
                raw = memoryview(system.cat_file(f"{root}/{name}", start=at, end=end))
            if len(raw) != wanted:
                raise FormatError(
                    f"{address}/{name}: the store announced {size:,} bytes and sent {len(raw):,} of {wanted:,} from {at:,} on"
                )
            yield raw
            done += wanted
            progress(done, total)

    for name, size in sorted(members.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / name, sent(name, size))


class Mirror:
    """Keeps ``address`` a beginning of what is recorded in ``folder``."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self._system, self._root = _open(address)
        self._there: dict[str, int] = {}  # name → size that the store has
        self._behind, self._last = Behind(), time.monotonic()
        self._failure: str | None = None
        self._warned = False

    def ahead(self) -> bool:
        """Whether the store holds more of this recording than the folder does.

        RecordingError where it does not answer, or holds something else.
        """
        with _talking(f"{self.address} cannot be read", RecordingError):
            members = _listed(self._system, self._root)
            if odd := _foreign(members):
                raise RecordingError(f"{self.address} holds {odd[:100]!r}, which no proof does; choose another address")
            if format.HEADER_FILE not in members:
                return False
            if (here := self._find(format.HEADER_FILE)) is None:
                return True
            if here != self._system.cat_file(f"{self._root}/{format.HEADER_FILE}", start=0, end=len(here) + 1):
                raise RecordingError(f"{self.address} holds another run; choose another address")
        further = format.SEAL_FILE in members or members.get(format.LOG_FILE, 0) > self._size(format.LOG_FILE)
        return further and not self._size(format.SEAL_FILE)

    def offer(self) -> None:
        """Copy what is new, beside the caller, unless a copy is under way or was made a moment ago.

        An error is warned of, once until a copy succeeds, and copying is tried again.
        """
        if not self._behind.idle:
            return
        if self._failure is not None and not self._warned:
            again = "recording goes on here, and copying is tried again"
            warnings.warn(f"{self._failure}; {again}", StoreWarning, stacklevel=2)
        self._warned = self._failure is not None
        if time.monotonic() - self._last < EVERY:
            return
        self._last = time.monotonic()
        sizes = {name: self._size(name) for name in _GROWING}
        index = self._read(format.INDEX_FILE)  # whole and now: a thinned recording writes it anew each time
        self._behind.submit(lambda: self._try(sizes, index))

    def close(self) -> None:
        """Let the last copy end."""
        self._behind.close()

    def finish(self) -> None:
        """Copy everything, the seal last. Raises RecordingError where the store does not take it; what is recorded stays here."""
        self._behind.join()
        index = self._read(format.INDEX_FILE)
        stored = [canonical.decode(line, Stored, format.INDEX_FILE) for line in index.splitlines()]
        named = {object_path(self.folder, item.object).relative_to(self.folder).as_posix() for item in stored}
        beside = set(self._objects(format.ATTESTATIONS))
        self._copy({name: self._size(name) for name in _GROWING}, index)
        if gone := named - self._there.keys():
            raise RecordingError(f"{self.folder / min(gone)} is gone")
        self._put(format.SEAL_FILE, self._read(format.SEAL_FILE))
        with _talking(f"{self.address} cannot be listed", RecordingError):
            for name in _listed(self._system, self._root).keys() - named - beside:
                if name.startswith((f"{format.OBJECTS}/", f"{format.ATTESTATIONS}/")) and _NAME.fullmatch(name):
                    self._system.rm_file(
                        f"{self._root}/{name}"
                    )  # a state that was thinned, or a head that was set aside, since

    def _try(self, sizes: dict[str, int], index: bytes) -> None:
        try:
            self._copy(sizes, index)
            self._failure = None
        except RecordingError as error:
            self._failure = str(error)

    def _copy(self, sizes: dict[str, int], index: bytes) -> None:
        """Objects, then what names them: at any moment the store holds a beginning of the run."""
        self._put(format.HEADER_FILE, self._read(format.HEADER_FILE))
        for name in (*self._objects(), *self._objects(format.ATTESTATIONS)):
            if name not in self._there and _NAME.fullmatch(name) and (raw := self._find(name)) is not None:
                self._put(name, raw)
        for name in _GROWING:
            self._put(name, index if name == format.INDEX_FILE else self._read(name)[: sizes[name]])

    def _objects(self, below: str = format.OBJECTS) -> list[str]:
        """Names of the objects that are here. While a recording is thinned, whole folders vanish."""
        found = os.walk(self.folder / below)
        return sorted(
            Path(folder, name).relative_to(self.folder).as_posix() for folder, _, names in found for name in names
        )

    def _find(self, name: str) -> bytes | None:
        """The file as it is; None where there is none (any more: it may have been thinned)."""
        with _talking(f"{self.folder / name} cannot be read", RecordingError), suppress(FileNotFoundError):
            return (self.folder / name).read_bytes()
        return None

    def _read(self, name: str) -> bytes:
        """A file that every recording has: to leave it out would make the store's copy another one."""
        if (raw := self._find(name)) is None:
            raise RecordingError(f"{self.folder / name} is gone")
        return raw

    def _put(self, name: str, raw: bytes) -> None:
        if self._there.get(name) == len(raw) and name != format.INDEX_FILE:  # which may change
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

    For an address it is one that holds what an interrupted recording left, here or, if that is further, in the store; at the end all
    is copied there. Until then no other process of this machine records to that address.
    """
    if not is_remote(path):
        yield Path(path), lambda: None
        return
    address = os.fspath(path)
    folder = spool(address)
    mirror = Mirror(folder, address)
    with files.writing(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
    # The folder's own lock ends with the recording, before all of it is copied.
    with files.exclusive(folder.parent, address):
        try:
            if mirror.ahead():
                _replace(folder, address)
            yield folder, mirror.offer
            try:
                mirror.finish()
            except RecordingError as error:
                raise RecordingError(
                    f"{error}; what was recorded is kept here, run the same command again to copy it"
                ) from error
        finally:
            mirror.close()
        _remove(folder)


def spool(address: str) -> Path:
    """The folder of this machine in which a recording for ``address`` is written first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "proof-of-learning" / "recordings" / hashlib.sha256(address.encode()).hexdigest()[:16] / "proof"


def _replace(folder: Path, address: str) -> None:
    """Put what the store holds in the place of what is in ``folder``, which stays until all of it is here."""
    fresh = folder.with_name("fetched")
    _remove(fresh)
    fetch(address, fresh)
    _remove(folder)
    os.replace(fresh, folder)


def _remove(folder: Path) -> None:
    """Remove a recording, if there is one; the header first, so that a rest of it is never taken for one."""
    (folder / format.HEADER_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


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
        import fsspec  # not at the top: most proofs lie on this machine

        system, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        scheme = address.split("://")[0]
        advice = f"`pip install {_PACKAGES[scheme]}`" if scheme in _PACKAGES else str(error)
        raise UsageError(f"{address}: what reads and writes {scheme}:// is not installed: {advice}") from None
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
