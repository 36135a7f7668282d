"""The challenge: which segments are replayed, and why. Everything follows from the proof's root and the verifier's nonce."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from proof_of_learning import canonical
from proof_of_learning.errors import UsageError
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import Proof
from proof_of_learning.training import randomness
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.survey import Survey
from proof_of_learning.verifier.verdict import Guarantee, Nonce

NONCE_BYTES = 32
WINDOW_SHARE = 0.05  # top-Q is taken per epoch, or per this share of the run, whichever is shorter


@dataclass(frozen=True)
class Challenge:
    """The challenged segments with the reasons for each, and what the random ones among them guarantee."""

    segments: dict[int, list[str]]
    guarantee: Guarantee
    nonce: Nonce
    notes: list[str] = field(default_factory=list)


def make_nonce(value: str | None) -> Nonce:
    """32 random bytes drawn now; or a value handed in, which is marked: the prover could have sealed again until it fits."""
    if value is None:
        return Nonce(value=secrets.token_hex(NONCE_BYTES), origin="drawn")
    try:
        if not 1 <= len(bytes.fromhex(value)) <= 1024:
            raise ValueError
    except ValueError:
        raise UsageError(f"the nonce {value[:40]!r} is not an even number of hex digits") from None
    return Nonce(value=value.lower(), origin="self-chosen")


def challenge(
    header: Header,
    root: str,
    found: Survey,
    nonce: Nonce,
    *,
    top_q: int = 1,
    random: int | None = None,
    everything: bool = False,
) -> Challenge:
    """Choose segments: first, last, top-Q by displacement and by inertia, predecessors, and random draws (or all).

    Of trivial segments (every rate 0) as many are drawn again as of the others, without counting.

    ``random``: number of random draws, half uniform, half in proportion to progress; by default as many as bound both guarantees
    at 10 % with a miss probability of 1 %.
    """
    count = header.segments()
    chosen: dict[int, list[str]] = {}
    notes: list[str] = []

    def add(index: int, why: str) -> None:
        reasons = chosen.setdefault(index, [])
        if why not in reasons:
            reasons.append(why)

    add(0, "first")
    add(count - 1, "last")
    held = ~np.isnan(found.displacement)
    if top_q > 0 and held.all():
        windows = np.arange(count) * header.training.interval // window(header)
        for name, values in (("top-q", found.displacement), ("inertia", found.inertia)):
            for index in _top(values, windows, top_q):
                add(index, name)
                if index > 0:
                    add(index - 1, "predecessor")
    if not held.all():
        notes.append("the proof is thinned: segments were drawn uniformly, for displacements cannot be recomputed")
    real = np.flatnonzero(~found.trivial).tolist()
    progress = np.maximum(
        np.nan_to_num(found.progress), 0.0
    )  # of trivial segments too: with rates of 0 they can make none
    uniform = guarantee.uniform_draws_needed(len(real)) if random is None else -(-random // 2)
    weighted = guarantee.progress_draws_needed(progress) if random is None else random // 2
    uniform, weighted = min(uniform, len(real)), min(weighted, int((progress > 0).sum()))
    if everything:
        uniform, weighted = len(real), int((progress > 0).sum())
        for index in range(count):
            add(index, "all")
    seed = challenge_seed(root, nonce)
    keys = [randomness.uniforms(randomness.derive(seed, name), count) for name in ("uniform", "progress", "trivial")]
    if not everything:
        for index in guarantee.draw_uniform(real, uniform, keys[0]):
            add(index, "uniform")
        for index in guarantee.draw_weighted(progress, weighted, keys[1]):
            add(index, "progress")
        # They count for no guarantee, but a state can be falsified in a segment of rate 0 as in any other.
        idle = np.flatnonzero(found.trivial).tolist()
        few = guarantee.uniform_draws_needed(len(idle)) if random is None else min(-(-random // 2), len(idle))
        for index in guarantee.draw_uniform(idle, few, keys[2]):
            add(index, "trivial")
    forged = guarantee.forgeable_segments(len(real), uniform) / len(real) if real else None
    unexplained = guarantee.unexplained_progress(progress, weighted) if held.all() and (progress > 0).any() else None
    promise = Guarantee(
        forged_fraction=forged, progress_fraction=unexplained, uniform_draws=uniform, progress_draws=weighted
    )
    return Challenge(dict(sorted(chosen.items())), promise, nonce, notes)


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
    count = proof.header.segments()
    draws = guarantee.uniform_draws_needed(count)
    drawn = guarantee.draw_uniform(list(range(count)), draws, randomness.uniforms(0, count))
    return draws, planned_steps(proof, {0, count - 1, *drawn})


def challenge_seed(root: str, nonce: Nonce) -> bytes:
    """The key from which everything that is drawn follows."""
    return bytes.fromhex(canonical.sha256(b"pol/v1/challenge\0", root.encode(), b"\0", bytes.fromhex(nonce.value))[7:])


def window(header: Header) -> int:
    """Number of steps in each of the windows of which the top-Q are taken."""
    training = header.training
    return max(1, min(training.steps_per_epoch, math.ceil(training.steps * WINDOW_SHARE)))


def _top(values: npt.NDArray[np.float64], windows: npt.NDArray[np.int64], q: int) -> list[int]:
    """In each window the ``q`` indices with the largest values, of those that are known."""
    ranked = np.where(np.isnan(values), -np.inf, values)
    chosen: list[int] = []
    for window in np.unique(windows):
        members = np.flatnonzero((windows == window) & (ranked > -np.inf))
        chosen += [int(i) for i in members[np.argsort(-ranked[members], kind="stable")[:q]]]
    return chosen
