"""A proof with other bytes under the same root: states dropped, or added again. Log, blocks and root stay as they are."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from proof_of_learning import canonical
from proof_of_learning.errors import BusyError, IntegrityError, UsageError
from proof_of_learning.proof import files, format
from proof_of_learning.proof.codecs import for_whole
from proof_of_learning.proof.codecs.room import Balance
from proof_of_learning.proof.format import Stored
from proof_of_learning.proof.objects import weigh, write_state
from proof_of_learning.proof.reader import Proof, object_path
from proof_of_learning.state.state import State

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


def rewrite(
    proof: Proof,
    keep: Iterable[int],
    out: Path | None = None,
    *,
    added: Mapping[int, State] | None = None,
    at_most: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write ``proof`` with the bytes of the states at the positions ``keep`` (0: the initial one) and ``added`` only; returns where.

    ``out``: a new directory; None replaces the proof, in one move, when all is written. Every state is whole: none is a difference
    to one that is gone. What is interrupted leaves the proof as it was. UsageError, and the same, where the states would take
    more than ``at_most`` bytes.
    """
    added, digests = added or {}, proof.state_digests()
    positions = sorted({*(p for p in keep if proof.has_state(digests[p])), *added})
    for position, state in added.items():
        if state.digest() != digests[position]:
            raise IntegrityError(f"the state after segment {position - 1} is not the one whose digest was sealed")
    target = proof.path if out is None else out
    if out is not None:
        files.require_new(out)
    with files.writing(str(target)), files.exclusive(proof.path):
        folder = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=target.resolve().parent))
        try:
            size = _write(proof, folder, positions, added, progress)
            if at_most is not None and size > at_most:
                raise UsageError(
                    f"{len(positions):,} states alone would take {size:,} bytes, for what is kept is whole, and all of them take "
                    f"{at_most:,} as differences; keep fewer, or leave the proof as it is"
                )
            os.chmod(folder, 0o755)
            if out is None:
                _exchange(folder, proof.path)
            else:
                os.replace(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _write(
    proof: Proof, folder: Path, positions: list[int], added: Mapping[int, State], progress: Callable[[int, int], None]
) -> int:
    """The bytes of all states."""
    version = proof.header.version
    digests, head = proof.state_digests(), format.index_start(proof.header.digest(), version)
    (folder / format.OBJECTS).mkdir()
    for name in (format.HEADER_FILE, format.LOG_FILE, format.BLOCKS_FILE):
        _link(proof.path / name, folder / name)
    if proof.attestations:
        (folder / format.ATTESTATIONS).mkdir()
    for name in proof.attestations:
        _link(proof.path / format.ATTESTATIONS / name, folder / format.ATTESTATIONS / name)
    whole = for_whole(proof.header.codec.name, proof.header.codec.version)
    lines, size, balance = [], 0, Balance()
    for done, position in enumerate(positions):
        progress(done, len(positions))
        digest = digests[position]
        stored = proof.index.get(digest)
        linked = stored is not None and stored.base is None
        if stored is not None and linked:
            weight = weigh(proof.path, stored.object, stored.codec, proof.room())
            if linked := balance.admits(weight, stored.codec, stored.bytes):
                balance.add(weight, stored.codec, stored.bytes)
        if stored is not None and linked:
            target = object_path(folder, stored.object)
            target.parent.mkdir(exist_ok=True)
            _link(object_path(proof.path, stored.object), target)
            stored = Stored(head, digest, stored.object, stored.bytes, stored.codec)
        else:
            state = added[position] if position in added else proof.state(digest)
            chunks = whole.encode(state, None).chunks()
            stored = Stored(head, digest, *write_state(folder, state, whole.name, chunks, balance, durable=True))
        size += stored.bytes
        line = canonical.encode(stored)
        head = format.line_digest(line, version)
        lines.append(line + b"\n")
    files.write_atomic(folder / format.INDEX_FILE, lines, durable=True)
    seal = format.Seal(schema=format.seal_schema(version), root=proof.root, segments=len(proof.segments), index=head)
    files.write_atomic(folder / format.SEAL_FILE, [canonical.encode(seal)], durable=True)
    progress(len(positions), len(positions))
    return size


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where that is not possible."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def _exchange(new: Path, old: Path) -> None:
    """Let two directories change places in one move, so that nobody ever finds half of either."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if libc.renameat2(_HERE, os.fsencode(new), _HERE, os.fsencode(old.resolve()), _EXCHANGE) == 0:
            return
        error = ctypes.get_errno()
        if error not in (22, 38):  # EINVAL, ENOSYS: a file system that cannot
            raise BusyError(f"{old} could not be replaced: {os.strerror(error)}")
    aside = new.with_name(new.name + "-old")
    os.rename(old, aside)
    os.rename(new, old)
    shutil.rmtree(aside, ignore_errors=True)
