"""How much compressed states may hold: a reader gives room by the bytes that are stored, and a writer stays within it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_EXPANSION, MAX_EXPANSION_COMPACT, WEIGHT_ROOM

COMPACT = "compact"  # the codec that may expand more than others


def made(codec: str, stored: int) -> int:
    """The room that an object of so many bytes makes."""
    return stored * (MAX_EXPANSION_COMPACT if codec == COMPACT else MAX_EXPANSION)


@dataclass
class Room:
    """What compressed states may still weigh when they are decoded, in bytes; ``limits`` says of what."""

    left: int

    @classmethod
    def of(cls, stored: Iterable[tuple[str, int]]) -> Room:
        """The room that objects make, each given by its codec and its bytes."""
        return cls(WEIGHT_ROOM + sum(made(*stored) for stored in stored))

    def take(self, weight: int) -> None:
        """FormatError where it is more than there is."""
        if weight > self.left:
            raise FormatError(
                f"an object claims to hold {weight:,} bytes where the size of all leaves room for {self.left:,}: "
                "a decompression bomb"
            )
        self.left -= weight


@dataclass
class Balance:
    """What the objects of a proof weigh, and what room they make, as one after the other is written."""

    weight: int = 0
    room: int = WEIGHT_ROOM

    def admits(self, weight: int, codec: str, size: int) -> bool:
        """Whether a reader has room for one more."""
        return self.weight + weight <= self.room + made(codec, size)

    def add(self, weight: int, codec: str, size: int) -> None:
        self.weight += weight
        self.room += made(codec, size)
