"""Canonical JSON (RFC 8785) in and out, strictly.

What is written once is read back to the same bytes or refused: duplicate keys, other spellings of a
number, stray white space and unknown fields all show as a difference between the input and its own
canonical form.
"""

from __future__ import annotations

import functools
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
        return _AS_IT_STANDS.encode(_spelled(msgspec.to_builtins(value)))
    except (rfc8785.CanonicalizationError, RecursionError, TypeError, UnicodeEncodeError) as error:
        raise FormatError(f"value has no canonical JSON form: {error}") from error


def encode_plain(value: Any) -> bytes:
    """:func:`encode` for values without floats, thirty times faster."""
    raw = _SORTED.encode(value)
    return encode(value) if _differs(raw) else raw


def _differs(raw: bytes) -> bool:
    """Whether msgspec may have put keys of ``raw`` in another order than RFC 8785. Strings are written alike by both, but one sorts
    them by their bytes in UTF-8, the other by UTF-16 units: not the same where a key has characters beyond the first 65,536."""
    return not raw.isascii() and any(found[1] for found in _BEYOND.finditer(raw))


def _spelled(value: Any) -> Any:
    """Plain values, which are changed, with keys in the order of RFC 8785 and numbers as it writes them."""
    whole = [value]
    open_: list[Any] = [whole]
    while open_:
        node = open_.pop()
        if type(node) is dict:
            if not all(type(key) is str for key in node):
                raise TypeError("a key is no text")
            if len(node) > 1:
                ordered = sorted(node.items(), key=lambda pair: pair[0].encode("utf-16-be"))
                node.clear()
                node.update(ordered)
        for place, item in node.items() if type(node) is dict else enumerate(node):
            kind = type(item)
            if kind is dict or kind is list:
                if item:
                    open_.append(item)
            elif kind is tuple:
                node[place] = list(item)
                open_.append(node[place])
            elif kind is float or (kind is int and not -_WHOLE < item < _WHOLE):
                node[place] = msgspec.Raw(rfc8785.dumps(item))
            elif kind not in _PLAIN:
                raise TypeError(f"{kind.__name__} is no plain value")
    return whole[0]


def decode(raw: bytes, type_: type[T], what: str) -> T:
    """Parse ``raw`` as ``type_``; anything not canonical is a FormatError naming ``what``."""
    if depth(raw) > MAX_DEPTH:
        raise FormatError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    try:
        value: T = _decoder(type_).decode(raw)  # type: ignore[arg-type]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} is not valid: {brief(error)}") from error
    spelled = _plainly(value)
    if (_encoded(value, what) if spelled is None else spelled) != raw:
        raise FormatError(f"{what} is not in canonical form (duplicate keys, white space or another spelling)")
    return value


def lenient(raw: bytes, type_: Any, what: str) -> Any:
    """Parse JSON that need not be canonical, as ``type_``. Raises FormatError naming ``what``.

    Nesting is bounded here, and not by how deep Python may recurse, which programs and packages raise until the stack is too small.
    """
    if depth(raw) > MAX_DEPTH:
        raise FormatError(f"{what} is not valid: nested deeper than {MAX_DEPTH} levels")
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} is not valid: {brief(error)}") from None


def brief(text: object) -> str:
    """Text that may quote hostile input, for a message: one line, of bounded length, without control characters."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[:MAX_QUOTED])
    return shown if len(str(text)) <= MAX_QUOTED else f"{shown}…"


def _encoded(value: Any, what: str) -> bytes:
    try:
        return encode(value)
    except FormatError as error:
        raise FormatError(f"{what}: {brief(error)}") from None


def _plainly(value: Any) -> bytes | None:
    """The canonical form of what was decoded, by the fast encoder; None where the two may spell something differently.

    They spell alike: strings, and of numbers those without exponent, of fewer than 16 digits before the point, but for negative zero,
    and for ``.0``, which is left out here. (Nothing that was decoded is not finite.)
    """
    raw = _SORTED.encode(value)
    if _differs(raw):
        return None
    escaped = b"\\" in raw
    # Without escaped backslashes and quotes, every second part between quotes is outside of strings.
    parts = (raw.replace(b"\\\\", b"").replace(b'\\"', b"") if escaped else raw).split(b'"')
    between = b'"'.join(parts[::2])
    digits = between.translate(_AS_DIGITS)
    if b"0e" in digits or b"-0" in between or (_SIXTEEN in digits and _LONG.search(between)):
        return None
    integral = between.count(b".0")
    if not integral:
        return raw
    if integral == raw.count(b".0"):
        return _whole(raw)
    if escaped:
        return None
    parts[::2] = map(_whole, parts[::2])  # a string has the same
    return b'"'.join(parts)


def _whole(raw: bytes) -> bytes:
    """Without the ``.0`` at the end of numbers."""
    for end in (b",", b"}", b"]"):
        raw = raw.replace(b".0" + end, end)
    return raw.removesuffix(b".0")


@functools.cache
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    """Made once for each type: what it has to expect takes longer to find out than a line takes to decode."""
    return msgspec.json.Decoder(type_, strict=True)


_WHOLE, _PLAIN = 1 << 53, (str, int, bool, type(None))
_SORTED, _AS_IT_STANDS = msgspec.json.Encoder(order="sorted"), msgspec.json.Encoder()
# From such a character to the end of its string, which is a key's where a colon follows; whatever was found is not looked at again.
_BEYOND = re.compile(rb'[\xf0-\xf4](?:[^"\\]|\\.)*+"(:?)', re.DOTALL)
# In numbers as the fast encoder writes them, an exponent follows a digit; from 2^53 on, which has 16, integers are refused.
_AS_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_SIXTEEN = b"0" * 16
_LONG = re.compile(rb"(?<![.0-9])[0-9]{16}")


def depth(raw: bytes) -> int:
    """A bound on the nesting depth of what may be JSON: the depth itself where it may be above MAX_DEPTH, of which at most one more
    is counted."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:  # also where those in strings count
        return 0
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
