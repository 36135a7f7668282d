"""How many steps a verification replays. Only the proof's log is read for it, and torch is not needed."""

from __future__ import annotations

from collections.abc import Iterable

from proof_of_learning.numeric import randomness
from proof_of_learning.proof.reader import Proof
from proof_of_learning.verifier import guarantee


def planned_steps(proof: Proof, indices: Iterable[int]) -> int:
    """The steps that replaying these segments takes, from the nearest states that ``proof`` still holds."""
    held = [proof.has_state(digest) for digest in proof.state_digests()]
    steps, at = 0, -1  # the position whose state the replay before left behind
    for index in sorted(indices):
        begin = index
        while not held[begin] and begin != at and begin > 0:
            begin -= 1
        steps += proof.segments[index].stop - proof.segments[begin].start
        at = index + 1
    return steps


def expected_steps(proof: Proof) -> tuple[int, int]:
    """Uniform draws that give the default guarantee, with first and last segment: how many, and the steps that they take.

    The draw is one of many, the same each time. What is chosen by displacement, inertia and progress comes on top of it where all
    states are held.
    """
    count = len(proof.segments)
    draws = guarantee.uniform_draws_needed(count)
    drawn = guarantee.draw_uniform(list(range(count)), draws, randomness.uniforms(0, count))
    return draws, planned_steps(proof, {0, count - 1, *drawn})
