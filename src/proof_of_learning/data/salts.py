"""Salts of a data commitment, so that nobody can find out by trying whether a sample is in it.

All of them follow from one secret, which its owner keeps, and from the data set's id (``docs/spec/opening.md``). One file for one data
set: a salt that two samples share is known for both once it is opened for one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import struct
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from proof_of_learning import keeping
from proof_of_learning.errors import RecordingError, UsageError

SCHEMA = "pol/salt/v1"
SALT_BYTES = 32
_INFO = b"pol/v1/salt\0"
_BLOCK = 64  # bytes of SHA-256's input


@dataclass(frozen=True)
class Secret:
    """What all salts of one data set follow from."""

    secret: bytes = field(repr=False)
    data_set: bytes

    def salts(self, count: int) -> list[bytes]:
        """The salts of samples 0 up to ``count``."""
        key = hmac.digest(bytes(SALT_BYTES), self.secret, "sha256")  # HKDF-Extract; one block of Expand is a salt
        padded = key.ljust(_BLOCK, b"\0")
        inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + _INFO + self.data_set)
        outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))
        pack, found = struct.Struct("<QB").pack, list[bytes]()
        for index in range(count):
            within, around = inner.copy(), outer.copy()
            within.update(pack(index, 1))
            around.update(within.digest())
            found.append(around.digest())
        return found


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    secret: str
    data_set: str


def generate(path: str | os.PathLike[str]) -> None:
    """Write a new secret to ``path``, for its owner's eyes only. UsageError where a file is there already."""
    place = Path(path)
    kept = _Kept(SCHEMA, secrets.token_hex(SALT_BYTES), secrets.token_hex(16))
    try:
        keeping.write_new(place, msgspec.json.encode(kept) + b"\n")
    except FileExistsError:
        raise UsageError(f"{place} exists; a secret is never overwritten, choose another name") from None
    except OSError as error:
        raise RecordingError(f"the secret {place} cannot be written: {error.strerror or error}") from None


def load(path: str | os.PathLike[str]) -> Secret:
    """The secret in a file that :func:`generate` wrote. Raises UsageError, which quotes nothing of it."""
    raw = keeping.read(path, f"the secret {path} cannot be read")
    try:
        kept = msgspec.json.decode(raw, type=_Kept)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        kept = None
    if kept is None or kept.schema != SCHEMA or not _hex(kept.secret, 2 * SALT_BYTES) or not _hex(kept.data_set, 32):
        raise UsageError(f"{path} is no secret for salts; `pol keygen --salt -o FILE` makes one")
    return Secret(bytes.fromhex(kept.secret), bytes.fromhex(kept.data_set))


def _hex(text: str, digits: int) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None
