"""Canonical JSON (RFC 8785) in and out, strictly.

What is written once is read back to the same bytes or refused: duplicate keys, other spellings of a
number, stray white space and unknown fields all show as a difference between the input and its own
canonical form.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, TypeVar

import msgspec
import rfc8785

from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_DEPTH, MAX_QUOTED

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Canonical JSON of plain values (``None``, bool, str, int below 2^53, finite float, list, dict)."""
    try:
        return rfc8785.dumps(msgspec.to_builtins(value))
    except (rfc8785.CanonicalizationError, RecursionError, TypeError) as error:
        raise FormatError(f"value has no canonical JSON form: {error}") from error


def encode_plain(value: Any) -> bytes:
    """:func:`encode` for values without floats, thirty times faster.

    For ASCII text msgspec's sorted form *is* the canonical one; what is not ASCII, or needs ``\\u`` escapes,
    takes the slow way. (RFC 8785 sorts keys by UTF-16 units, which differs from UTF-8 outside ASCII.)
    """
    raw = msgspec.json.encode(value, order="sorted")
    return raw if raw.isascii() and b"\\u" not in raw else encode(value)


def decode(raw: bytes, type_: type[T], what: str) -> T:
    """Parse ``raw`` as ``type_``; anything not canonical is a FormatError naming ``what``."""
    if _depth(raw) > MAX_DEPTH:
        raise FormatError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    try:
        value = msgspec.json.decode(raw, type=type_, strict=True)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} is not valid: {brief(error)}") from error
    if not _evidently_canonical(value, raw) and _encoded(value, what) != raw:
        raise FormatError(f"{what} is not in canonical form (duplicate keys, white space or another spelling)")
    return value


def brief(text: object) -> str:
    """Text that may quote hostile input, for a message: one line, of bounded length, without control characters."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[:MAX_QUOTED])
    return shown if len(str(text)) <= MAX_QUOTED else f"{shown}…"


def _encoded(value: Any, what: str) -> bytes:
    try:
        return encode(value)
    except FormatError as error:
        raise FormatError(f"{what}: {brief(error)}") from None


def _evidently_canonical(value: Any, raw: bytes) -> bool:
    """Whether the fast encoder settles it: plain ASCII, no number in a form the two encoders may spell differently."""
    if not raw.isascii() or b"\\u" in raw or _SPELLINGS.search(raw):
        return False
    return bool(msgspec.json.encode(value, order="sorted") == raw)


# Numbers with an exponent, of 16 digits (integers end below 2^53), negative zeros, and ``.0``.
_SPELLINGS = re.compile(rb'(?:^|":|[\[,])-?(?:[0-9.]+[eE]|[0-9]{16})|(?:^|":|[\[,])-0|\.0(?:[,}\]]|\Z)')


def _depth(raw: bytes) -> int:
    """The nesting depth of what may be JSON; at most one above MAX_DEPTH is counted."""
    depth = deepest = start = inside = 0
    while start < len(raw):  # in pieces: what they are split into takes many times their memory
        piece = raw[start : start + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape stays whole
            piece = raw[start : start + _PIECE + 1]
        start += len(piece)
        # Without escaped backslashes and quotes, every second part between quotes is outside strings.
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        for byte in b"".join(parts[inside::2]).translate(None, delete=_NOT_BRACKETS):
            if byte in b"[{":
                depth += 1
                deepest = max(deepest, depth)
                if depth > MAX_DEPTH:
                    return deepest
            else:
                depth -= 1
        inside = (inside + len(parts) - 1) % 2
    return deepest


_PIECE = 1 << 16
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def sha256(*parts: bytes | bytearray | memoryview) -> str:
    """``"sha256:<hex>"`` of the concatenated parts."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return "sha256:" + hasher.hexdigest()
