"""A proof as one file: an uncompressed tar archive with one spelling, so that equal proofs are equal files.

Members stand in a fixed order (header, log, blocks, index, seal, then attestations and objects by name), without times or owners.
Any tar program opens it. Reading accepts exactly what writing writes.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from proof_of_learning.errors import FormatError, RecordingError
from proof_of_learning.proof import files, format
from proof_of_learning.proof.reader import Proof, object_path

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20
_FILES = (format.HEADER_FILE, format.LOG_FILE, format.BLOCKS_FILE, format.INDEX_FILE, format.SEAL_FILE)
_OBJECT = re.compile(rf"{format.OBJECTS}/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}")
_BESIDE = re.compile(rf"{format.ATTESTATIONS}/{format.ATTESTATION.pattern}")
_END = bytes(2 * _BLOCK)
OnBytes = Callable[[int, int], None]


def pack(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    progress: OnBytes = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> int:
    """Write the proof at ``path`` to the file ``out``; returns its size. Raises FormatError or IntegrityError for what is no proof.

    overwrite: a file that is there already is replaced; otherwise it is refused, with RecordingError.
    """
    proof, target = Proof.open(path), Path(out)
    members = [(name, proof.path / name) for name in _FILES]
    beside = [f"{format.ATTESTATIONS}/{name}" for name in sorted(proof.attestations)]
    members += [(name, proof.path / name) for name in beside]
    objects = sorted({stored.object for stored in proof.index.values()})
    members += [(f"{format.OBJECTS}/{name[7:9]}/{name[7:]}", object_path(proof.path, name)) for name in objects]
    total = sum(source.stat().st_size for _, source in members)

    def pieces() -> Iterator[bytes]:
        done = 0
        for name, source in members:
            descriptor = files.open_regular(source)
            with os.fdopen(descriptor, "rb") as stream:
                size = os.fstat(descriptor).st_size
                yield _header(name, size)
                for piece in _read(stream, size, name):
                    yield piece
                    done += len(piece)
                    progress(done, total)
                yield bytes(-size % _BLOCK)
        yield _END

    if not target.parent.is_dir():
        raise RecordingError(f"the folder {target.parent} does not exist")
    if target.is_file() and not overwrite:
        raise RecordingError(
            f"{target} exists already; choose another name, or allow it to be overwritten (--overwrite)"
        )
    if target.resolve().is_relative_to(proof.path.resolve()):
        raise RecordingError(f"{target} would lie inside the proof, which holds no other files; choose another path")
    files.write_atomic(target, pieces(), durable=True)
    return target.stat().st_size


def unpack(
    path: str | os.PathLike[str], out: str | os.PathLike[str], progress: OnBytes = lambda done, total: None
) -> Path:
    """Write the proof in the file ``path`` to the new directory ``out``; FormatError for anything that :func:`pack` does not write.

    Nothing of the content is believed: names come from a fixed list, sizes are held against what the file really has.
    """
    source, target = Path(path), Path(out)
    files.require_new(target)
    with os.fdopen(files.open_regular(source), "rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        with files.writing(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=target.resolve().parent))
        try:
            _unpack(stream, total, folder, progress)
            with files.writing(str(target)):
                os.chmod(folder, 0o755)
                os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _unpack(stream: BinaryIO, total: int, folder: Path, progress: OnBytes) -> None:
    (folder / format.OBJECTS).mkdir()
    before = ""
    for position in range(total // _BLOCK + 1):
        raw = b"".join(_read(stream, _BLOCK, "the archive"))
        if position >= len(_FILES) and raw == bytes(_BLOCK):
            break
        name, size = _parsed(raw, total - stream.tell())
        if position < len(_FILES):
            fits = name == _FILES[position]
        else:
            fits = bool(_OBJECT.fullmatch(name) or _BESIDE.fullmatch(name)) and name > before
            before = name
        if not fits:
            raise FormatError(f"the archive holds {name[:100]!r} where a packed proof does not")
        with files.writing(str(folder)):
            (folder / name).parent.mkdir(exist_ok=True)
            with open(folder / name, "xb") as target:
                for piece in _read(stream, size, name):
                    target.write(piece)
        if any(b"".join(_read(stream, -size % _BLOCK, name))):
            raise FormatError(f"the archive has something behind {name}, where a packed proof has nothing")
        progress(stream.tell(), total)
    if stream.read(_PIECE) != bytes(_BLOCK):
        raise FormatError("the archive does not end where a packed proof does")


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _parsed(raw: bytes, left: int) -> tuple[str, int]:
    """Name and size of a member whose header is, to the byte, the one that we would write."""
    try:
        entry = tarfile.TarInfo.frombuf(raw, "ascii", "strict")
        exact = _header(entry.name, entry.size) == raw
    except (tarfile.TarError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise FormatError("it is not a packed proof: expected an archive as `pol pack` writes it")
    if not 0 <= entry.size <= left:
        raise FormatError(
            f"the archive is cut short: {entry.name[:100]} is said to have {entry.size:,} bytes, {left:,} are left"
        )
    return entry.name, entry.size


def _read(stream: BinaryIO, size: int, what: str) -> Iterator[bytes]:
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise FormatError(f"the archive is cut short within {what}")
        size -= len(piece)
        yield piece
