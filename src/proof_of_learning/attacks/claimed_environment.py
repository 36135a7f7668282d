"""A claimed environment: the forgery says that it was made where the verifier cannot follow.

Replay there would be exact, and exact replay is what the attack it carries cannot stand. In an environment that the verifier does
not have he can only compare within his tolerance, if he allows that at all. The claim itself cannot be checked; what the
tolerance is, the claim does not decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.decoy import Decoy
from proof_of_learning.attacks.drift import Drift
from proof_of_learning.attacks.infinitesimal import InfinitesimalUpdate
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.progress import ProgressCallback

CARRIED: dict[str, Attack] = {
    "drift": Drift(),
    "momentum-drift": Drift(nudge="momentum"),
    "infinitesimal-update": InfinitesimalUpdate(),
    "decoy": Decoy(),
    "decoy-weight": Decoy(how="weight"),
    "decoy-nan": Decoy(how="nan"),
    "decoy-infinity": Decoy(how="infinity"),
}


@dataclass(init=False, frozen=True)
class ClaimedEnvironment(Attack):
    name = "claimed-environment"
    summary = "another attack under a numeric environment that no verifier has, to be compared with tolerance"
    source = "this project"
    knowledge = "what the carried attack needs"
    variants = (*({"carries": name} for name in CARRIED), {"claims": "machine"}, {"claims": "threads"})

    carries: str = parameter("drift", "the attack that is to pass within the tolerance", choices=tuple(CARRIED))
    claims: str = parameter("library", "what the environment differs in", choices=("library", "machine", "threads"))

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        elsewhere = replace(victim, environment=claimed(victim.environment, self.claims))
        return CARRIED[self.carries].mount(elsewhere, path, progress)


def claimed(here: Environment, what: str) -> Environment:
    """``here`` with one thing in it that is not so: a library's version, the processor, or the number of threads."""
    if what == "threads":  # which a verifier can have: he then replays with as many, and exactly
        return msgspec.structs.replace(here, threads=here.threads + 2)
    if what == "machine":
        return msgspec.structs.replace(here, vendor="GenuineClaim", isa=[], capability="default")
    return msgspec.structs.replace(here, torch="2.0.1")
