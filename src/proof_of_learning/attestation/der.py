"""As much DER as a timestamp token needs: tag, length, content, nothing copied and nothing guessed."""

from __future__ import annotations

from dataclasses import dataclass

from proof_of_learning.errors import FormatError

SEQUENCE, SET, INTEGER, OCTETS, OID = 0x30, 0x31, 0x02, 0x04, 0x06
_LONG = 0x80


@dataclass(frozen=True)
class Node:
    """One element: its ``tag``, its content, and all of its bytes."""

    tag: int
    body: bytes
    whole: bytes

    def expect(self, tag: int, what: str) -> Node:
        """This node. FormatError where it is of another kind."""
        if self.tag != tag:
            raise FormatError(f"{what} is not encoded as it has to be (tag {self.tag:#04x}, expected {tag:#04x})")
        return self

    def children(self) -> list[Node]:
        found, at = [], 0
        while at < len(self.body):
            node = _read(self.body, at)
            found.append(node)
            at += len(node.whole)
        return found


def parse(raw: bytes, what: str) -> Node:
    """The one element that ``raw`` consists of. Raises FormatError."""
    node = _read(raw, 0)
    if len(node.whole) != len(raw):
        raise FormatError(f"{what} has {len(raw) - len(node.whole):,} bytes behind its end")
    return node


def _read(raw: bytes, at: int) -> Node:
    if len(raw) - at < 2:
        raise FormatError("what should be DER is cut short")
    tag, size, start = raw[at], raw[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise FormatError("what should be DER has a tag of several bytes, which no timestamp has")
    if size >= _LONG:
        count = size - _LONG
        coded = raw[start : start + count]
        size, start = int.from_bytes(coded, "big"), start + count
        if not 1 <= count <= 4 or len(coded) < count or coded[0] == 0 or size < _LONG:
            raise FormatError("what should be DER has a length that DER does not write")
    if len(raw) - start < size:
        raise FormatError("what should be DER is cut short")
    return Node(tag, raw[start : start + size], raw[at : start + size])


def integers(raw: bytes, what: str) -> list[int]:
    """The integers of a SEQUENCE of nothing else."""
    found = [node.expect(INTEGER, what) for node in parse(raw, what).expect(SEQUENCE, what).children()]
    return [int.from_bytes(node.body, "big", signed=True) for node in found]
