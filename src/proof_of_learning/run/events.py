"""What happened in a step, as a list of 64-bit integers: the column ``loop`` of a proof.

==========  ============================================  ==========================================================
code        followed by                                   meaning
==========  ============================================  ==========================================================
1 BATCH     phase, epoch, walk, position, samples         the clock gave a batch; its samples are the step's next indices
2 END       –                                             the clock was asked, and exhausted
3 BESIDE    samples, and so many indices, position        another walk gave a batch
4 OVER      –                                             another walk was asked, and exhausted
5 BEFORE    generator, bytes, and so many of them (padded)  a generator's state when the next batch was fetched
6 AFTER     the same                                      a generator's state when the last batch was handed over
==========  ============================================  ==========================================================

phase: which ``run.epochs``; epoch: its number, -1 outside; walk: which within the epoch; position: of the batch within the walk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.reader import Proof

BATCH, END, BESIDE, OVER, BEFORE, AFTER = 1, 2, 3, 4, 5, 6
GENERATORS = ("torch", "numpy", "python")
MAX_EVENTS = 1 << 20  # of a step
MAX_GENERATOR = 1 << 14  # bytes of a generator's state

Words = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Event:
    """``place``: phase, epoch, walk. ``samples``: how many. ``indices`` of a batch beside; ``states`` of generators by name."""

    code: int
    place: tuple[int, int, int] = (0, -1, 0)
    position: int = 0
    samples: int = 0
    indices: tuple[int, ...] = ()
    generator: str = ""
    state: bytes = b""


def course(words: Words) -> list[tuple[int, tuple[int, int, int], int]]:
    """Of a step, what all processes have in common that train together: where the clock gave a batch, and where it was exhausted."""
    return [(event.code, event.place, event.position) for event in decode(words) if event.code in (BATCH, END)]


def encode(events: list[Event]) -> Words:
    """The events of one step."""
    words: list[int] = []
    for event in events:
        words.append(event.code)
        if event.code == BATCH:
            words += [*event.place, event.position, event.samples]
        elif event.code == BESIDE:
            words += [len(event.indices), *event.indices, event.position]
        elif event.code in (BEFORE, AFTER):
            raw = event.state + bytes(-len(event.state) % 8)
            words += [GENERATORS.index(event.generator), len(event.state), *np.frombuffer(raw, "<i8").tolist()]
    return np.array(words, dtype=np.int64)


def decode(words: Words) -> list[Event]:
    """The inverse; FormatError for anything that :func:`encode` does not write."""
    try:
        return list(_decode(words.tolist()))
    except (IndexError, ValueError, OverflowError) as error:
        raise FormatError("a step's events are malformed") from error


def _decode(words: list[int]) -> Iterator[Event]:
    at = count = 0
    while at < len(words):
        code, at, count = words[at], at + 1, count + 1
        if count > MAX_EVENTS:
            raise ValueError
        if code == BATCH:
            phase, epoch, walk, position, samples = words[at : at + 5]
            if min(phase, walk, position, samples) < 0:
                raise ValueError
            yield Event(code, (phase, epoch, walk), position, samples)
            at += 5
        elif code == BESIDE:
            size = words[at]
            if not 0 <= size < len(words) - at - 1:
                raise ValueError
            yield Event(code, position=words[at + size + 1], samples=size, indices=tuple(words[at + 1 : at + 1 + size]))
            at += size + 2
        elif code in (BEFORE, AFTER):
            which, size = words[at : at + 2]
            length = -(-size // 8)
            if not (0 <= which < len(GENERATORS) and 0 <= size <= MAX_GENERATOR and at + 2 + length <= len(words)):
                raise ValueError
            raw = np.array(words[at + 2 : at + 2 + length], dtype="<i8").tobytes()
            yield Event(code, generator=GENERATORS[which], state=raw[:size])
            at += 2 + length
        elif code in (END, OVER):
            yield Event(code)
        else:
            raise ValueError


def begins(proof: Proof, index: int) -> list[int]:
    """Where segment ``index`` takes its first batch: phase, epoch, walk, position."""
    columns = proof.columns(index)
    first = None if not columns.loop else next((e for e in decode(columns.loop[0]) if e.code == BATCH), None)
    return [] if first is None else [*first.place, first.position]
