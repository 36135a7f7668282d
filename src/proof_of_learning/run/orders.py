"""Whether every epoch visits the samples in the same order: honest training, and seldom what is meant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

ENOUGH = 16  # samples in the same places, of which chance makes no two orders
SAME = (
    "every epoch visits the samples in the same order, which is not the data set's own; if they are to be shuffled anew, have the "
    "sampler told the epoch (DistributedSampler: set_epoch(epoch)), or its generator not seeded again"
)


class Orders:
    """Is handed the batches of a run in turn, and compares the second epoch with the first."""

    def __init__(self) -> None:
        self._first: list[bytes] = []
        self._epoch = -1
        self._alike = self._own = True
        self._seen = self._next = 0

    def add(self, position: int, indices: Sequence[int]) -> bool:
        """The samples of the batch at ``position`` in its epoch. True once, when the second epoch is seen to go as the first."""
        if position == 0:
            self._epoch, self._next = self._epoch + 1, 0
        if self._epoch not in (0, 1):
            return False
        taken = np.asarray(indices, dtype="<i8")
        digest = hashlib.blake2b(taken.tobytes(), digest_size=16).digest()
        if self._epoch == 0:
            self._first.append(digest)
            self._own &= np.array_equal(taken, np.arange(self._next, self._next + len(taken)))
            self._next += len(taken)
            return False
        told = self._seen >= ENOUGH
        self._alike &= position < len(self._first) and self._first[position] == digest
        self._seen += len(taken)
        return self._alike and not self._own and not told and self._seen >= ENOUGH
