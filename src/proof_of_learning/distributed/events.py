"""The words of a coordinator of untrusted workers: the rules of a run, what is signed, and the events that its journal lists."""

from __future__ import annotations

import msgspec

from proof_of_learning import canonical
from proof_of_learning.errors import UsageError


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run is held to.

    rounds, slots: as the task has them. share: of trusted workers' slices that is replayed, drawn after the commitments. probation:
    how many slices of a newcomer are replayed in full before they are trusted. finality: rounds that can be undone. limit: None where
    workers are held to bits; else the relative l2 error that is let pass. patience: waves in a row that may bring nothing.
    """

    rounds: int
    slots: int
    share: float = 0.08
    probation: int = 5
    finality: int = 40
    limit: float | None = None
    patience: int = 20


def check(rules: Rules) -> None:
    """Raise UsageError for rules that make no sense."""
    if not (0 <= rules.share <= 1 and rules.probation >= 0 and rules.finality >= 1 and rules.patience >= 1):
        raise UsageError("share lies between 0 and 1, probation is not negative, finality and patience are at least 1")
    if rules.rounds < 1 or rules.slots < 1 or (rules.limit is not None and not 0 < rules.limit < 1):
        raise UsageError("there is at least one round and one slot, and a limit lies between 0 and 1")


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a coordinator signs: who computes which slice, with digests of the start and of the samples."""

    run: str
    round: int
    slot: int
    wave: int
    worker: str
    start: str
    samples: str

    def digest(self) -> str:
        return canonical.sha256(b"pol/v1/assignment\0", canonical.encode_plain(self))


class Commitment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker signs: digests of an update, and of the weights after each local step."""

    assignment: str
    result: str
    steps: list[str]


# ---- events ---------------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Something that happened to the driver."""


class Joined(Event, frozen=True, tag="joined"):
    """A worker with this public key (base64 of DER), whose digest is ``worker``."""

    worker: str
    key: str


class Resumed(Event, frozen=True, tag="resumed"):
    """The coordinator started again: whoever was set aside is asked once more."""


class Opened(Event, frozen=True, tag="opened"):
    """A round begins, from weights with the digest ``start``, with these samples in its slots."""

    round: int
    start: str
    samples: list[str]


class Committed(Event, frozen=True, tag="committed"):
    """A worker's commitment has arrived. ``envelope``: as they signed it, base64; not read by the core."""

    worker: str
    assignment: str
    result: str
    steps: list[str]
    envelope: str = ""


class Failed(Event, frozen=True, tag="failed"):
    """A worker gave no usable answer to an assignment: a fault of transport, whatever it was."""

    worker: str
    assignment: str
    why: str


class Drawn(Event, frozen=True, tag="drawn"):
    """The next link of the coordinator's chain, opened after the commitments (hex)."""

    link: str


class Revealed(Event, frozen=True, tag="revealed"):
    """A committed update has arrived; ``fault``: or why it counts as missing. ``finite``: whether its numbers are."""

    worker: str
    assignment: str
    fault: str = ""
    finite: bool = True


class Replayed(Event, frozen=True, tag="replayed"):
    """The coordinator's own result for an assignment; ``error``: relative l2, where it was measured."""

    assignment: str
    result: str
    steps: list[str]
    error: float | None = None


class Applied(Event, frozen=True, tag="applied"):
    """The round's updates were aggregated; ``state``: digest of the whole state after it."""

    round: int
    state: str


class Finished(Event, frozen=True, tag="finished"):
    """The proof is sealed with this root; empty where none is recorded."""

    root: str


AnyEvent = Joined | Resumed | Opened | Committed | Failed | Drawn | Revealed | Replayed | Applied | Finished
