"""What statements, signatures and timestamps come to: values alone, so that a verdict without any needs no cryptography."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Signed:
    """A statement about this very proof. ``keys``: digests of those that signed it; none where it is only stamped."""

    file: str
    kind: str
    keys: tuple[str, ...]


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
class Attested:
    """All that was found beside a root. ``ignored``: what counts for nothing, each with the reason.

    registered: whether the claim was signed by its owners and stamped before training; unregistered: why not. anchored: the trusted
    timestamps that the run's key then follows from.
    """

    signed: tuple[Signed, ...] = ()
    stamps: tuple[Stamp, ...] = ()
    ignored: tuple[str, ...] = ()
    registered: bool = False
    unregistered: str = ""
    anchored: frozenset[str] = frozenset()

    def signers(self, kind: str = "seal") -> list[str]:
        """Digests of the keys that signed a statement of that kind, each once."""
        return sorted({key for item in self.signed if item.kind == kind for key in item.keys})

    def counted(self, trusted: Collection[str]) -> int:
        """How many of the keys ``trusted`` signed the seal."""
        return len(set(trusted) & set(self.signers()))
