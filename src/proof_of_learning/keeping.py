"""Small files that somebody names: secrets, written once for their owner's eyes only, and what options name; read within a bound."""

from __future__ import annotations

import os
from pathlib import Path

from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_KEY


def write_new(path: Path, raw: bytes, mode: int = 0o600) -> None:
    """Write a file that is not there yet, durably. Raises FileExistsError where it is, and OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, mode)
        stream.write(raw)
        stream.flush()
        os.fsync(descriptor)


def read(path: str | os.PathLike[str], what: str, most: int = MAX_KEY) -> bytes:
    """The file's bytes, of which more than ``most`` are too many: then one more than these. UsageError, which begins with ``what``,
    where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(most + 1)
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror or error}") from None
