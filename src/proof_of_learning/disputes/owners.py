"""Whose answers and openings of a proof are: the owners' whom its claim names, and theirs whom its recovery key put in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proof_of_learning.attestation.gathering import gather
from proof_of_learning.attestation.revocation import Revoked
from proof_of_learning.attestation.timestamps import Authorities
from proof_of_learning.errors import IntegrityError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.registration import owners


@dataclass(frozen=True)
class Owners:
    """named: digests of the keys that the claim names; empty: it names none, and anybody may sign.

    replaced: by the digest of a key, the owners' that it was put in the place of (`pol recover`).
    revoked: keys that the verifier does not believe any more. Answers and openings are not stamped: of such a key none counts.
    """

    named: frozenset[str]
    replaced: Mapping[str, frozenset[str]] = field(default_factory=dict)
    revoked: Revoked = field(default_factory=Revoked)

    @classmethod
    def of(cls, proof: Proof, authorities: Authorities | None = None, revoked: Revoked | None = None) -> Owners:
        """Those of a proof, by the statements beside its root. authorities: whose timestamps count against a revocation.

        Raises FormatError for what is no attestation of its kind.
        """
        believed, replaced = revoked or Revoked(), dict[str, frozenset[str]]()
        if any(name.startswith("recovery-") for name in proof.attestations):
            replaced = dict(gather(proof, authorities or Authorities(), believed).replaced)
        return cls(frozenset(owners(proof.header)), replaced, believed)

    def standing(self, keys: Iterable[str]) -> frozenset[str]:
        """Keys that count, with those that they were put in the place of."""
        good = [key for key in keys if key not in self.revoked]
        return frozenset(good).union(*(self.replaced.get(key, ()) for key in good))

    def signed(self, keys: Iterable[str], what: str) -> None:
        """IntegrityError where none of the ``keys`` that signed ``what`` is, or stands for, an owner's."""
        there = self.standing(keys)
        if not there:
            raise IntegrityError(f"the {what} are signed with a key that was revoked")
        if self.named and not self.named & there:
            raise IntegrityError(f"the {what} are signed by none of the owners that the proof's claim names")

    def everybody(self) -> frozenset[str]:
        """All keys that are, or stand for, an owner's."""
        return self.named | {key for key in self.replaced if self.named & self.standing([key])}
