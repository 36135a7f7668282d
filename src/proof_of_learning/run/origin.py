"""What a script's randomness follows from: a seed, or a registered claim."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning import registration as registrations
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof.attach import attach
from proof_of_learning.proof.format import Header
from proof_of_learning.registration import Registration


@dataclass(frozen=True)
class Origin:
    """``path``, ``claim``: of a ``claim.json``, as it was when the script began; then the seed counts for nothing."""

    seed: int = 0
    path: Path = Path()
    claim: Registration | None = None

    @classmethod
    def of(cls, seed: int | None, claim: str | os.PathLike[str] | None, resuming: bool = False) -> Origin | None:
        """None where the randomness is recorded. UsageError for a claim that was used, unless an interrupted run under it goes on."""
        if claim is not None:
            if seed is not None:
                raise UsageError(registrations.TWO_SOURCES)
            registration = registrations.load(claim)
            if registration.runs and not resuming:
                raise UsageError(f"the claim {claim} was already used by a run; register a new claim")
            return cls(0, Path(claim), registration)
        return None if seed is None else cls(seed)

    def key(self) -> bytes:
        """The run's key. Raises UsageError for a claim that none follows from."""
        if self.claim is None:
            return randomness.key_from_seed(self.seed)
        return self.claim.claim.key(registrations.anchor_of(self.claim))

    def begin(self, header: Header, environment: Environment, resuming: bool) -> Header:
        """The header as it stands under the claim, which this run uses from here on. UsageError where the claim fixes another."""
        if self.claim is None:
            return header
        found = registrations.apply(self.claim, header, environment)
        registrations.begin(self.path, found, resuming)
        return found

    def attach(self, folder: Path) -> None:
        """Put the claim's signatures and timestamps beside the proof."""
        for name, raw in ({} if self.claim is None else self.claim.attestations()).items():
            attach(folder, name, raw)

    def finish(self, header: Header, root: str) -> None:
        """The run is sealed."""
        if self.claim is not None:
            registrations.finish(self.path, header, root)
