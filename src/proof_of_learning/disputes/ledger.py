"""What an owner opened so far (a ledger), and what a verifier asked that was not answered (a docket). Each is kept by whom it serves:
nobody else believes it."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from proof_of_learning import canonical
from proof_of_learning.disputes import documents
from proof_of_learning.disputes.documents import First, Second
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_LEDGER
from proof_of_learning.proof import files

LEDGER, DOCKET = "pol/ledger/v1", "pol/docket/v1"


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One opening: to whom, by the owner's word; ``states``: positions; ``samples``: a bit for each of ``count``, in base64."""

    at: str
    verifier: str
    challenge: str
    root: str
    data: str
    count: int
    states: list[int]
    samples: str


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str = LEDGER
    openings: list[Opened] = []

    def samples(self, data: str, count: int) -> npt.NDArray[np.bool_]:
        """Which samples under that data root anybody was shown: verifiers may talk to each other."""
        found = np.zeros(count, dtype=bool)
        for entry in self.openings:
            if (entry.data, entry.count) == (data, count):
                found |= _bits(entry.samples, count)
        return found

    def states(self, root: str) -> set[int]:
        """Which states of a proof anybody was shown."""
        return {position for entry in self.openings if entry.root == root for position in entry.states}

    def verifiers(self, data: str) -> int:
        """To how many verifiers samples under that root were opened."""
        return len({entry.verifier for entry in self.openings if entry.data == data})

    def with_opening(self, entry: Opened) -> Ledger:
        """The ledger with one more; the same opening once more changes nothing."""
        others = [other for other in self.openings if other.challenge != entry.challenge]
        return Ledger(self.schema, [*others, entry])


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One challenge; ``arrived``: when it was answered. ``keys``: of a second one, who signed the answers that it is on.
    ``valid``: whether the opening that answered it was."""

    challenge: str
    round: int
    root: str
    claim: str | None
    asked: str
    due: str | None
    arrived: str | None = None
    keys: list[str] = []
    valid: bool = False

    def failed(self, at: str) -> bool:
        """Whether it was not answered in time, as things stand ``at`` a time."""
        return self.due is not None and (self.arrived or at) > self.due

    def falls_to(self, keys: Iterable[str]) -> bool:
        """Whether one of these keys bound itself to it. Anybody can have somebody else's manifest challenged, and answer nothing."""
        return not set(self.keys).isdisjoint(keys)


class Docket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str = DOCKET
    challenges: list[Asked] = []

    def asking(self, challenge: First | Second, keys: Iterable[str] = ()) -> Docket:
        """The docket with a challenge that is made now; ``keys``: who signed the answers that it is on."""
        now = documents.told(documents.now())
        number = 1 if isinstance(challenge, First) else 2
        entry = Asked(
            challenge.digest(), number, challenge.root, challenge.claim, now, challenge.due, keys=sorted(keys)
        )
        return Docket(self.schema, [*self.challenges, entry])

    def answered(self, challenge: str) -> Docket:
        """The docket with that challenge answered now, unless it was before."""
        now = documents.told(documents.now())
        return Docket(
            self.schema,
            [
                msgspec.structs.replace(entry, arrived=now)
                if entry.challenge == challenge and not entry.arrived
                else entry
                for entry in self.challenges
            ],
        )

    def settled(self, challenge: str) -> Docket:
        """The docket with that challenge answered by a valid opening."""
        found = [msgspec.structs.replace(e, valid=e.valid or e.challenge == challenge) for e in self.challenges]
        return Docket(self.schema, found)

    def unsettled(self, root: str, claim: str | None, answering: str) -> list[Asked]:
        """Other draws for that root or claim that were opened, and not with success. A second draw is a second chance."""
        return [
            entry
            for entry in self._of(root, claim)
            if entry.round == 2 and entry.challenge != answering and entry.arrived is not None and not entry.valid
        ]

    def _of(self, root: str, claim: str | None) -> list[Asked]:
        return [e for e in self.challenges if e.root == root or (claim is not None and e.claim == claim)]

    def failures(self, root: str, claim: str | None, answering: str | None = None) -> list[Asked]:
        """Challenges to that root, or to a run under that claim, that were not answered in time.

        answering: the challenge that an opening answers. Then whatever else was drawn and not opened has failed, whenever it is due:
        who asks for another draw because the first one does not suit them would else go on until one does.
        """
        now = documents.told(documents.now())
        return [
            entry
            for entry in self._of(root, claim)
            if entry.failed(now)
            or (answering is not None and entry.round == 2 and entry.challenge != answering and entry.arrived is None)
        ]


K = TypeVar("K", Ledger, Docket)


def load(path: str | os.PathLike[str] | None, kind: type[K]) -> K:
    """Read a ledger or a docket; an empty one where there is no file yet. Raises FormatError."""
    if path is None or not Path(path).exists():
        return kind()
    kept = canonical.decode(bytes(files.read_bounded(Path(path), MAX_LEDGER)), kind, str(path))
    if kept.schema != kind().schema:
        raise FormatError(f"{path} has schema {canonical.brief(kept.schema)!r}; expected {kind().schema!r}")
    for entry in kept.openings if isinstance(kept, Ledger) else ():
        if not 0 < entry.count < 2**40:
            raise FormatError(f"{path} has an entry of no data set")
        _bits(entry.samples, entry.count)
    return kept


def save(path: str | os.PathLike[str], kept: Ledger | Docket) -> None:
    files.write_atomic(Path(path), [canonical.encode(kept)], durable=True)
    os.chmod(path, 0o600)


def bits(indices: npt.NDArray[np.int64], count: int) -> str:
    """Some samples, as an entry holds them."""
    chosen = np.zeros(count, dtype=bool)
    chosen[indices] = True
    return base64.b64encode(np.packbits(chosen).tobytes()).decode()


def _bits(text: str, count: int) -> npt.NDArray[np.bool_]:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != -(-count // 8):
        raise FormatError("an entry of the ledger does not fit its data set")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool)
