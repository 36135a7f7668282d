"""As much DER as a timestamp token needs: tag, length, content, nothing copied and nothing guessed."""

from __future__ import annotations

from typing import NamedTuple

from proof_of_learning.errors import FormatError

SEQUENCE, SET, INTEGER, OCTETS, OID = 0x30, 0x31, 0x02, 0x04, 0x06
_LONG = 0x80


class Node(NamedTuple):
    """One element, ``raw[at:stop]``: its head, and from ``start`` on its content."""

    raw: bytes
    at: int
    start: int
    stop: int

    @property
    def tag(self) -> int:
        return self.raw[self.at]

    @property
    def body(self) -> bytes:
        """Its content."""
        return self.raw[self.start : self.stop]

    @property
    def whole(self) -> bytes:
        """All of its bytes."""
        return self.raw[self.at : self.stop]

    def expect(self, tag: int, what: str) -> Node:
        """This node. FormatError where it is of another kind."""
        if self.tag != tag:
            raise FormatError(f"{what} is not encoded as it has to be (tag {self.tag:#04x}, expected {tag:#04x})")
        return self

    def children(self) -> list[Node]:
        raw, at, stop = self.raw, self.start, self.stop
        found = list[Node]()
        while at < stop:
            node = _read(raw, at, stop)
            found.append(node)
            at = node.stop
        return found


def parse(raw: bytes, what: str) -> Node:
    """The one element that ``raw`` consists of. Raises FormatError."""
    node = _read(raw, 0, len(raw))
    if node.stop != len(raw):
        raise FormatError(f"{what} has {len(raw) - node.stop:,} bytes behind its end")
    return node


def _read(raw: bytes, at: int, end: int) -> Node:
    """The element that begins at ``at``, and does not reach beyond ``end``."""
    if end - at < 2:
        raise FormatError("what should be DER is cut short")
    size, start = raw[at + 1], at + 2
    if raw[at] & 0x1F == 0x1F:
        raise FormatError("what should be DER has a tag of several bytes, which no timestamp has")
    if size >= _LONG:
        count = size - _LONG
        coded = raw[start : min(start + count, end)]
        size, start = int.from_bytes(coded, "big"), start + count
        if not 1 <= count <= 4 or len(coded) < count or coded[0] == 0 or size < _LONG:
            raise FormatError("what should be DER has a length that DER does not write")
    if end - start < size:
        raise FormatError("what should be DER is cut short")
    return Node(raw, at, start, start + size)


def integers(raw: bytes, what: str) -> list[int]:
    """The integers of a SEQUENCE of nothing else."""
    found = [node.expect(INTEGER, what) for node in parse(raw, what).expect(SEQUENCE, what).children()]
    return [int.from_bytes(node.body, "big", signed=True) for node in found]
