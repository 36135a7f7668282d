"""Version 1 of the format, read only: its documents as they are on disk, and what they say in the words of version 2.

It fixed the number of steps in the header, knew no events, and said nothing of program, inputs, parts, ranks and arithmetic, which
were one task, none, whatever its states hold, one and native.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from proof_of_learning import canonical
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.proof import format
from proof_of_learning.proof.format import (
    CodecClaim,
    EnvironmentLine,
    Header,
    Initialization,
    Segment,
    Start,
    TaskClaim,
)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Training(_Document, frozen=True):
    steps: int
    interval: int
    steps_per_epoch: int


class _Randomness(_Document, frozen=True):
    mode: Literal["derived", "recorded"]
    key: str
    seed: str | None = None
    claim: str | None = None


class _Header(_Document, frozen=True):
    format: str
    task: TaskClaim
    data: DataCommitment
    training: _Training
    randomness: _Randomness
    initialization: Initialization
    codec: CodecClaim
    claim: dict[str, Any] | None = None


class Header1(Header, frozen=True):
    """A header that was read from a proof of version 1, and encodes as one."""

    def encoded(self) -> bytes:
        training, randomness = self.training, self.randomness
        assert training.planned is not None
        return canonical.encode(
            _Header(
                self.format, self.task, self.data,
                _Training(training.planned, training.interval, training.steps_per_epoch),
                _Randomness(randomness.mode, randomness.key, randomness.seed, randomness.claim),
                self.initialization, self.codec, self.claim,
            )
        )  # fmt: skip


class _End(_Document, frozen=True, tag_field="kind", tag="end"):
    prev: str
    final_weights: str
    evaluation: dict[str, float] | None = None


_Line = Start | EnvironmentLine | Segment | _End


def header(raw: bytes) -> Header:
    """A header of version 1. Raises FormatError."""
    found = canonical.decode(raw, _Header, format.HEADER_FILE)
    training, randomness = found.training, found.randomness
    return Header1(
        format=found.format, task=found.task, data=found.data,
        training=format.Training(training.steps, training.interval, training.steps_per_epoch),
        randomness=format.Randomness(randomness.mode, randomness.key, randomness.seed, randomness.claim),
        initialization=found.initialization, codec=found.codec, claim=found.claim,
    )  # fmt: skip


def line(raw: bytes, header: Header) -> format.Line:
    """A line of a log of version 1. Raises FormatError."""
    found: Any = canonical.decode(raw, _Line, "it")  # type: ignore[arg-type]
    if isinstance(found, _End):
        assert header.training.planned is not None
        return format.End(found.prev, header.training.planned, "completed", found.final_weights, found.evaluation)
    return found  # type: ignore[no-any-return]
