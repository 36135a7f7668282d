"""Trees of which most is as it was in the state before: what is spelled alike is parsed, checked and walked once.

A state's tree is ``{"d": [[part, …], …]}``, most parts are ``{"d": [[entry, …], …]}``; what stands in the place of the dots is
remembered by its bytes. Of the others a tree is made as ever (:func:`state.state.check_tree`). Nobody changes a tree.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import msgspec

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_DEPTH
from proof_of_learning.state.names import escaped
from proof_of_learning.state.state import Node, check_tree, is_key, sound, tree_tensors

LEAST, MOST, KEPT = 1 << 8, 1 << 17, 32  # bytes of what is remembered, and of how many: parsed, a byte takes up to 32
_ABOVE = 6  # levels of a tree above an entry: three of the tree and three of the part


class _Tree(NamedTuple):
    """A checked tree, and the tensors that it names."""

    node: Node
    names: tuple[str, ...]


class _Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    d: list[tuple[str, msgspec.Raw]]


_mapping = msgspec.json.Decoder(_Mapping, strict=True)


def tree_of(text: bytes, tensors: tuple[str, ...], what: str) -> Node:
    """The tree of a state with these ``tensors`` (sorted), from its canonical JSON. Raises FormatError for anything else."""
    try:
        found = _assembled(text, True, ()) if len(text) <= KEPT * MOST else None
    except FormatError:
        found = None  # the slow way says what is wrong
    if found is None or tuple(sorted(found.names)) != tensors:
        node = canonical.decode(text, dict[str, Any], what)
        check_tree(node, tensors)
        return node
    return found.node


def _assembled(text: bytes, parts: bool, path: tuple[str, ...]) -> _Tree | None:
    """A mapping put together from what is remembered of its values; None where it is written in any other way."""
    try:
        pairs = _mapping.decode(text).d
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    keys = [key for key, _ in pairs]
    written = b",".join([b'["%b",%b]' % (key.encode(errors="replace"), bytes(raw)) for key, raw in pairs])
    if b'{"d":[' + written + b"]}" != text or not text.isascii() or any('"' in key or "\\" in key for key in keys):
        return None
    if keys != sorted(set(keys)) or not all(map(is_key, keys)):
        return None
    items: list[Any] = []
    names: list[str] = []
    for key, raw in pairs:
        below = (*path, escaped(key[2:]))
        value = bytes(raw)
        found = _assembled(value, False, below) if parts and value.startswith(b'{"d":[[') else None
        if found is None:
            found = (_known if LEAST <= len(value) <= MOST else _value)(value, below)
        if found is None:
            return None
        items.append([key, found.node])
        names += found.names
    return _Tree({"d": items}, tuple(names))


def _value(raw: bytes, path: tuple[str, ...]) -> _Tree | None:
    """One value, checked; None where it may be nested too deeply to stand below others, or is not what is expected there."""
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets > MAX_DEPTH - _ABOVE and not 0 < canonical.depth(raw) <= MAX_DEPTH - _ABOVE:
        return None
    node: Node = canonical.decode(raw, Any, "a part of a state's tree")
    names = tree_tensors(node, path)
    within = node
    for key in reversed(path):
        within = {"d": [[f"s:{key}", within]]}
    return _Tree(node, tuple(names)) if sound(within) else None


_known = functools.lru_cache(KEPT)(_value)
