"""A stolen proof: somebody else's checkpoints, handed in as one's own. It costs no training at all.

``other-seed``
    sealed again under the attacker's own seed: as if another key had led to the same states.
``other-claim``
    sealed again under a claim that the attacker registers himself, afterwards (``NAME-claim.json`` beside the proof).
``observed-claim``
    the same, but with the target's batches and generator states written down as recorded, and its start as a recorded
    initialization, so that nothing in the proof needs to follow from the attacker's claim.
``observed``
    the same without a claim: an observed run under the attacker's seed.
``cut``
    the first part of the target's run, claimed to be a whole, shorter one; it ends in an earlier checkpoint of the target's.
``copied``
    the target's proof, byte for byte.

Two of these cannot be told from honest training by any replay, for the training *was* honest: ``copied`` is the target's proof,
and ``observed`` a true record of the same steps, whose author no step depends on. A verdict on them says that the model was
trained that way, not by whom. Precedence takes what cannot be copied: a timestamp on states while they were trained, and a
signature under it. A ``cut`` is of the same kind wherever the verifier names the shorter task itself and no schedule depends on
the length.

A thief's own first part before the target's last one is the attack ``concatenation``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from proof_of_learning import registration as registrations
from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.moves import sealed_again
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof.format import Initialization, Randomness

WAYS = ("other-seed", "other-claim", "observed-claim", "observed", "cut", "copied")


@dataclass(init=False, frozen=True)
class Stolen(Attack):
    name = "stolen"
    summary = "the target's own proof: copied, cut at a checkpoint, or sealed again with other metadata; no training"
    source = "this project; precedence is left open by Jia et al., IEEE S&P 2021"
    knowledge = "the target's whole proof, and for a new seal the task"

    how: str = parameter("other-seed", "what is done to the proof", choices=WAYS)
    share: float = parameter(0.5, "share of the segments that are kept (cut)", low=0.0, high=1.0)
    seed: int | None = parameter(
        None, "the seed that is claimed (default: one of the attacker's own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        proof = victim.proof
        if self.how == "copied":
            if path.exists():
                raise AttackError(f"{path} exists already")
            shutil.copytree(proof.path, path)
            return Mounted(0)
        count = len(proof.segments)
        kept = min(max(round(self.share * count), 1), count) if self.how == "cut" else count
        observed = self.how.startswith("observed") or proof.header.randomness.mode == "recorded"
        metadata = self._metadata(victim, path, "recorded" if observed else "derived")
        sealed_again(victim, path, kept, progress, observed=observed, **metadata)
        return Mounted(0)

    def _metadata(self, victim: Victim, path: Path, mode: str) -> dict[str, Any]:
        """What the forgery says of where its randomness comes from."""
        header = victim.proof.header
        start = header.initialization if mode == header.randomness.mode else Initialization("recorded")
        if self.how == "cut":
            return {"randomness": header.randomness, "claim": header.claim, "initialization": start}
        if not self.how.endswith("-claim"):
            seed = victim.own_seed(self.seed)
            key = randomness.key_from_seed(seed).hex()
            return {"randomness": Randomness(mode, key, seed=str(seed)), "initialization": start}  # type: ignore[arg-type]
        environment: Environment = next(iter(victim.proof.environments.values()))
        registration = registrations.new_claim(msgspec.structs.replace(header, initialization=start), environment)
        registrations.save_new(path.with_name(f"{path.name}-claim.json"), registration)
        claim = registration.claim
        own = Randomness(mode, claim.key().hex(), claim=claim.digest())  # type: ignore[arg-type]
        return {"randomness": own, "claim": msgspec.to_builtins(claim), "initialization": start}
