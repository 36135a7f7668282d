"""Small integers, most of them 0, as the gaps between those that are not.

They come in the order of how likely each is to be 0, as far as a reader knows beforehand, so that neighbours are alike, and are
cut into groups, each of which is compressed by itself. Of a group, a byte says how many zeros lie before the next number; 255 stands
for as many zeros and no number. Those numbers, less one, are written in the same way, and so on; what is left of the few that go
through all levels is written in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import FormatError

LEVELS = 6
GROUP = 1 << 14  # numbers that a group has at least, where there are enough for more than one
GROUPS = 6  # of a chunk, at most
LONGEST = 255

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]


def encode(numbers: Numbers) -> Iterator[Bytes]:
    """What is to be compressed of one chunk of numbers, none of them negative, piece by piece."""
    for _ in range(LEVELS):
        places = np.flatnonzero(numbers != 0)
        for start, stop in _groups(len(numbers)):
            low, high = np.searchsorted(places, (start, stop))
            yield _gaps(places[low:high] - start)
        numbers = numbers[places] - np.int32(1)
    if len(numbers):
        rest = numbers.astype("<u4").view(np.uint8)
        yield from (rest[byte::4].copy() for byte in range(4))


def decode(count: int, piece: Callable[[int, bool], bytes]) -> Numbers:
    """The inverse, of ``count`` numbers. ``piece(limit, exact)``: the next of what was compressed, at most or exactly so long."""
    numbers, left = np.zeros(count, dtype=np.int32), np.arange(0)
    for level in range(LEVELS):
        size = len(left) if level else count
        found = [start + _places(piece(stop - start, False), stop - start) for start, stop in _groups(size)]
        places = np.concatenate(found) if found else np.arange(0)
        left = left[places] if level else places
        numbers[left] += np.int32(1)
    if len(left):
        rest = np.empty(4 * len(left), dtype=np.uint8)
        for byte in range(4):
            rest[byte::4] = np.frombuffer(piece(len(left), True), dtype=np.uint8)
        numbers[left] += rest.view("<i4")
    return numbers


def _groups(count: int) -> Iterator[tuple[int, int]]:
    groups = min(max(count // GROUP, 1), GROUPS)
    return ((count * group // groups, count * (group + 1) // groups) for group in range(groups) if count)


def _gaps(places: Places) -> Bytes:
    gaps = np.diff(places, prepend=-1) - 1
    if not len(gaps) or int(gaps.max()) < LONGEST:
        return gaps.astype(np.uint8)
    full, rest = np.divmod(gaps, LONGEST)
    content = np.full(len(gaps) + int(full.sum()), LONGEST, dtype=np.uint8)
    content[np.cumsum(full + 1) - 1] = rest
    return content


def _places(content: bytes, count: int) -> Places:
    """Where the numbers lie, of ``count`` with the zeros; FormatError where gaps lead beyond."""
    gaps = np.frombuffer(content, dtype=np.uint8)
    numbers = gaps < LONGEST
    places = np.cumsum(gaps, dtype=np.int64) + np.cumsum(numbers)
    if len(places) and int(places[-1]) > count:
        raise FormatError("an object holds more numbers than its header says")
    return places[numbers] - 1
