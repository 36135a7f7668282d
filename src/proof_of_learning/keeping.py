"""Small files that somebody names: secrets, written once for their owner's eyes only, and what options name; read within a bound."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_KEY

MAX_DOTS = 256  # in a line of TOML


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


def toml(raw: bytes, what: str) -> dict[str, Any]:
    """The tables of a TOML file. UsageError, one line that begins with ``what``, for what is none.

    What Python's own reader takes hours for (a dotted key of thousands of parts) is refused before, and integers that TOML does not
    have.
    """
    if any(line.count(b".") > MAX_DOTS for line in raw.split(b"\n")):
        raise UsageError(
            f"{what}: not TOML that is read here: more than {MAX_DOTS} dots in a line; break it into several"
        )
    try:
        value = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # of numbers and dates, too
        raise UsageError(f"{what}: not TOML: {canonical.brief(' '.join(str(error).split()))}") from None
    open_: list[Any] = [value]
    while open_:
        node = open_.pop()
        if type(node) is int and not -(1 << 63) <= node < 1 << 63:
            raise UsageError(f"{what}: not TOML: an integer of more than 64 bits")
        open_ += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return value
