"""Grinding: trying over and over until what chance decides falls well.

``challenge``
    The attacker guesses the nonce (or the verifier lets him choose it), forges a few segments, and seals the proof again and again
    with another loss for a forged segment, which nobody can check without replaying it, until the draw by the guessed nonce misses
    every forged segment. Against a nonce that is drawn after the root this gains nothing: each new root is as good as the one before.
``seed``
    The initialization follows from a seed of the attacker's choice. He takes, of many seeds, the one that begins nearest to the
    target. Initializations of many dimensions are almost all equally far away, so that next to nothing is gained.

Both end in the jumps of :mod:`few_segments`. Only a registered claim leaves no seed to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proof_of_learning import canonical
from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.few_segments import FewSegments
from proof_of_learning.attacks.gamble import missed, surveyed
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof import files, format
from proof_of_learning.proof.reader import Proof, read_log
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.task import Setting, Task
from proof_of_learning.verifier.plan import make_nonce, survey_seed


@dataclass(init=False, frozen=True)
class Grinding(Attack):
    name = "grinding"
    summary = (
        "a few false segments, sealed again until a guessed nonce misses them, or begun from the best of many seeds"
    )
    source = "this project (SHA-256 seals millions of times a second)"
    knowledge = "the target's proof, the data and the task; for the challenge, a guess of the nonce"

    what: str = parameter("challenge", "what is tried again", choices=("challenge", "seed"))
    tries: int = parameter(100, "how often", low=1)
    nonce: str = parameter("00" * 32, "the guessed nonce, hex")
    segments: int | None = parameter(None, "number of jumps (default: as for few-segments)", low=1)
    at: int | None = parameter(None, "first segment that is a jump (default: as for few-segments)", low=1)
    reach: float = parameter(1.0, "share of the way to the target that the jumps cover", low=0.0, high=1.0)
    seed: int | None = parameter(
        None, "seed of the attacker's own run, or the first of the tried ones (default: one of his own)", low=0, high=2**63
    )  # fmt: skip

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        if self.what == "seed":
            seed, _ = nearest_seed(victim, [(seed + offset) % 2**64 for offset in range(self.tries)])
        settings: dict[str, Setting] = {"seed": seed, "reach": self.reach}
        settings |= {name: value for name in ("segments", "at") if (value := getattr(self, name)) is not None}
        mounted = FewSegments(**settings).mount(victim, path, progress)
        if self.what == "challenge":
            grind(path, victim.task, mounted.forged, self.nonce, self.tries, progress)
        return mounted


def nearest_seed(victim: Victim, seeds: Sequence[int]) -> tuple[int, list[float]]:
    """The seed whose derived initialization is nearest to the target's weights (l2), and the distances of all."""
    final = weights(victim.final)
    distances = [weight_distance(weights(victim.own_session(seed).capture()), final) for seed in seeds]
    return seeds[distances.index(min(distances))], distances


def grind(
    path: Path, task: Task, forged: Sequence[int], nonce: str, tries: int, progress: ProgressCallback
) -> int | None:
    """Seal the proof at ``path`` again until ``nonce`` misses the ``forged`` segments; returns the number of tries, None for failure.

    States do not change with the loss of one step, so that a try costs a hash for each line that follows. What a verifier measures
    follows from the root, but varies little: it is measured once, and anew only for a root that promises to miss.
    """
    proof = Proof.open(path)
    guess = make_nonce(nonce)
    found = surveyed(proof, task)
    # A loss far from the one before would be a jump, which is looked at.
    plausible = float(proof.columns(forged[-1]).loss[-1])
    for attempt in range(tries):
        progress("sealing again", attempt, tries)
        if missed(proof, forged, [nonce], found=found)[0]:
            seen = surveyed(proof, task, survey_seed(proof.root, guess))
            if missed(proof, forged, [nonce], found=seen)[0]:
                return attempt
        _seal_again(path, proof, forged[-1], plausible * (1.0 + (attempt + 1) * 2.0**-20))
        proof = Proof.open(path)
    return None


def _seal_again(path: Path, proof: Proof, index: int, loss: float) -> None:
    """Claim another loss for the last step of segment ``index``, and make all that depends on it consistent."""
    columns = proof.columns(index)
    columns.loss[-1] = loss
    block = columns.encode()
    before = sum(segment.block.bytes for segment in proof.segments[:index])
    blocks = bytearray((path / format.BLOCKS_FILE).read_bytes())
    blocks[before : before + proof.segments[index].block.bytes] = block
    head, lines = proof.header.digest(), list[bytes]()
    for line, _ in read_log(path, proof.header):
        line = msgspec.structs.replace(line, prev=head)
        if isinstance(line, format.Segment) and line.index == index:
            line = msgspec.structs.replace(line, block=format.Block(canonical.sha256(block), len(block)))
        lines.append(canonical.encode(line))
        head = format.line_digest(lines[-1])
    seal = canonical.decode((path / format.SEAL_FILE).read_bytes(), format.Seal, format.SEAL_FILE)
    seal = msgspec.structs.replace(seal, root=format.root(proof.header.digest(), head))
    files.write_atomic(path / format.BLOCKS_FILE, [bytes(blocks)])
    files.write_atomic(path / format.LOG_FILE, [line + b"\n" for line in lines])
    files.write_atomic(path / format.SEAL_FILE, [canonical.encode(seal)])
