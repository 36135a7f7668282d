"""How much compressed states may hold: a reader gives room by the bytes that are stored, and a writer stays within it."""

from __future__ import annotations

from dataclasses import dataclass

from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_EXPANSION, WEIGHT_ROOM


@dataclass
class Room:
    """What compressed states may still weigh when they are decoded, in bytes; ``limits`` says of what."""

    left: int

    @classmethod
    def of(cls, stored: int) -> Room:
        """The room that ``stored`` bytes of objects make."""
        return cls(WEIGHT_ROOM + MAX_EXPANSION * stored)

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
    """What the objects of a proof weigh, and how many bytes they have, as one after the other is written."""

    weight: int = 0
    stored: int = 0

    def admits(self, weight: int, size: int) -> bool:
        """Whether a reader has room for one more."""
        return self.weight + weight <= Room.of(self.stored + size).left

    def add(self, weight: int, size: int) -> None:
        self.weight += weight
        self.stored += size
