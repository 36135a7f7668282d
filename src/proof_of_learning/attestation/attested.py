"""What statements, signatures and timestamps come to: values alone, so that a verdict without any needs no cryptography."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

SKEW = datetime.timedelta(minutes=5)  # between clocks of two authorities, beyond what each says of its own


def rfc3339(moment: datetime.datetime) -> str:
    """A moment in UTC as documents have it, ``2026-05-31T12:00:00Z``."""
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Signed:
    """A statement about this very proof.

    keys: digests of those that signed it; none where it is only stamped. revoked: of those whose signature counts for nothing, since
    no trusted authority stamped it before they were revoked.
    """

    file: str
    kind: str
    keys: tuple[str, ...]
    revoked: tuple[str, ...] = ()

    def left_out(self, key: str) -> str:
        """Why the signature of one of those revoked counts for nothing."""
        return f"{self.file} is signed with {key[:19]}…, which was revoked, and no authority that you named stamped it before"


@dataclass(frozen=True)
class Stamp:
    """A timestamp on a statement about this proof, or on a timestamp on it.

    about: the statement's file. refused: why it counts for nothing; empty where an authority that the verifier named vouches for it.
    """

    file: str
    kind: str
    about: str
    earliest: datetime.datetime
    latest: datetime.datetime
    authority: str
    anchor: str
    refused: str = ""


@dataclass(frozen=True)
class Stretch:
    """Steps ``start`` to ``stop`` of the run had been taken by a moment between ``earliest`` and ``latest``; None: nothing dates them.

    stamps: how many timestamps fall into it, of which the last one counts.
    """

    start: int
    stop: int
    earliest: datetime.datetime | None
    latest: datetime.datetime | None
    stamps: int


@dataclass(frozen=True)
class Attested:
    """All that was found beside a root. ``ignored``: what counts for nothing, each with the reason.

    false: what is said of this very run, and does not hold, a line each: the proof is then not what it claims.
    registered: whether the claim was signed by its owners and stamped before training; unregistered: why not. anchored: the trusted
    timestamps that the run's key then follows from. replaced: by the digest of a key, those that it was put in the place of, by the
    recovery key that the claim names. stretches: by when the run had come how far. gaps: where nobody stamped, by the prover's word.
    """

    signed: tuple[Signed, ...] = ()
    stamps: tuple[Stamp, ...] = ()
    ignored: tuple[str, ...] = ()
    registered: bool = False
    unregistered: str = ""
    anchored: frozenset[str] = frozenset()
    false: tuple[str, ...] = ()
    replaced: Mapping[str, frozenset[str]] = field(default_factory=dict)
    stretches: tuple[Stretch, ...] = ()
    gaps: tuple[str, ...] = ()

    def signers(self, kind: str = "seal") -> list[str]:
        """Digests of the keys that signed a statement of that kind, each once."""
        return sorted({key for item in self.signed if item.kind == kind for key in item.keys})

    def counted(self, trusted: Collection[str]) -> int:
        """How many of the keys ``trusted`` signed the seal, by themselves or by a successor; no key stands for two."""
        stands = {signer: {signer, *self.replaced.get(signer, ())} & set(trusted) for signer in self.signers()}
        taken: dict[str, str] = {}  # by the key that was trusted, who signed for it

        def place(signer: str, tried: set[str]) -> bool:
            for key in sorted(stands[signer] - tried):
                tried.add(key)
                if key not in taken or place(taken[key], tried):
                    taken[key] = signer
                    return True
            return False

        return sum(place(signer, set()) for signer in stands)
