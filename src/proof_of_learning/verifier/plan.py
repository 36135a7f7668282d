"""The challenge: which segments are replayed, and why. Everything follows from the proof's root and the verifier's nonce."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from proof_of_learning import canonical
from proof_of_learning.attestation.attested import rfc3339
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.dynamics import IDENTITY_LIMIT
from proof_of_learning.verifier.options import Draw
from proof_of_learning.verifier.progress import MAIN, SINGLE, importance
from proof_of_learning.verifier.survey import Survey
from proof_of_learning.verifier.verdict import Guarantee, Nonce, Round

if TYPE_CHECKING:
    from proof_of_learning.attestation.attested import Attested
    from proof_of_learning.attestation.beacon import Beacon

NONCE_BYTES = 32
WINDOWS = 10  # parts of the run of which each has its own largest segments
PREDECESSORS = 3  # of the largest of all, that are replayed too
USUAL = 0.02  # share of the segments from which on a broken identity is no exception
MOST, BROKEN = 8, 64  # segments replayed for it: where it is usual, and where it is not


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


def public_nonce(beacon: Beacon, attested: Attested) -> Nonce:
    """What follows from a round of public randomness: it counts as drawn if it is the first one after the root was there.

    When the root was there is what the earliest timestamp on the seal says, of an authority that the verifier named. A later round, of
    which anybody could choose one, counts as handed in.
    """
    told = Round(beacon.chain.hash, beacon.round, rfc3339(beacon.moment))
    stamped = [stamp.latest for stamp in attested.stamps if stamp.kind == "seal" and not stamp.refused]
    if not stamped:
        why = "no timestamp on the seal that you believe (--trusted-tsa) shows that the root was there before the round"
        return Nonce(beacon.nonce, "self-chosen", told, why)
    due = beacon.due(min(stamped))
    if beacon.round != due:
        why = (
            f"the round that counts is {due}, the first after the seal's earliest timestamp, and this is {beacon.round}"
        )
        return Nonce(beacon.nonce, "self-chosen", told, why)
    return Nonce(beacon.nonce, "beacon", told)


def challenge(steps: int, interval: int, root: str, found: Survey, nonce: Nonce, draw: Draw) -> Challenge:
    """Choose segments of a run of ``steps`` steps: first, last, uniform draws, draws weighted by importance, and a few that stick out
    (or all).

    Of trivial segments (every rate 0) as many are drawn again as of the others, without counting. Nothing is claimed from
    what sticks out: the largest displacement and inertia in each tenth of the run, with those before the very largest (``top_q`` of
    each), and two jumps of the loss; and, however many are asked for, broken
    identities, counters and scalers, other tensors than before, neighbours of missing states.
    """
    count = -(-steps // interval)
    chosen: dict[int, list[str]] = {}
    notes: list[str] = []

    def add(index: int, why: str) -> None:
        if 0 <= index < count and why not in chosen.setdefault(index, []):
            chosen[index].append(why)

    add(0, "first")
    add(count - 1, "last")
    seed = challenge_seed(root, nonce)
    names = ("uniform", "progress", "trivial", "conspicuous")
    keys = [randomness.uniforms(randomness.derive(seed, name), count) for name in names]
    if draw.top_q > 0:
        windows = np.arange(count) * interval // window(steps)
        for index, why in _ranked(found, windows, draw.top_q):
            add(index, why)
    for index, why in _conspicuous(found, keys[3]):
        add(index, why)
    real = np.flatnonzero(~found.trivial).tolist()
    weight = importance(found.measures, count)  # of trivial ones too: what they contribute must be nothing
    total = float(weight.sum())
    if draw.everything:
        uniform, weighted = len(real), int((weight > 0).sum())
        for index in range(count):
            add(index, "all")
    elif draw.random is None:
        uniform = _uniform_draws(len(real), draw)
        weighted = guarantee.progress_draws_needed(weight, min(1.0, 1.0 / total), draw.miss) if total else 0
    else:
        uniform, weighted = _uniform_draws(len(real), draw), min(draw.random // 2, int((weight > 0).sum()))
    if found.missing:
        notes.append(
            f"{found.missing} states are not in the proof, so only uniform draws protect: no progress can be measured"
        )
    elif not total:
        notes.append("no segment makes progress, so none is drawn for it")
    if not draw.everything:
        for index in guarantee.draw_uniform(real, uniform, keys[0]):
            add(index, "uniform")
        for index in guarantee.draw_weighted(weight, weighted, keys[1]):
            add(index, "progress")
        # They count for no guarantee, but a state can be falsified in a segment of rate 0 as in any other.
        still = np.flatnonzero(found.trivial).tolist()
        few = (
            guarantee.uniform_draws_needed(len(still), miss=draw.miss)
            if draw.random is None
            else min(uniform, len(still))
        )
        for index in guarantee.draw_uniform(still, few, keys[2]):
            add(index, "trivial")
    promise = _promise(found, weight, len(real), uniform, weighted, draw)
    return Challenge(dict(sorted(chosen.items())), promise, nonce, notes)


def drawn_early(segments: int, root: str, nonce: Nonce, draw: Draw) -> list[int]:
    """What :func:`challenge` will choose of so many segments, as far as no state has a part in it, and unless rates of 0 do."""
    if draw.everything:
        return list(range(segments))
    keys = randomness.uniforms(randomness.derive(challenge_seed(root, nonce), "uniform"), segments)
    return [0, segments - 1, *guarantee.draw_uniform(range(segments), _uniform_draws(segments, draw), keys)]


def _uniform_draws(segments: int, draw: Draw) -> int:
    """How many of so many segments are drawn uniformly, where not all are."""
    if draw.random is None:
        return guarantee.uniform_draws_needed(segments, miss=draw.miss)
    return min(-(-draw.random // 2), segments)


def _promise(
    found: Survey, weight: npt.NDArray[np.float64], real: int, uniform: int, weighted: int, draw: Draw
) -> Guarantee:
    """What the draws guarantee, each kind by itself.

    A forgery with a share x of a measure has a share of at least x / (missed · Σ weights) of the weights, and the largest of those
    that escapes is known exactly.
    """
    everything, miss = draw.everything, draw.miss
    forged = guarantee.forgeable_segments(real, uniform, miss) / real if real else None
    names = {measure.name for measure in found.measures}
    over_weights = "weights" in names and not found.restless
    if everything:
        scale = 0.0
    elif weight.any():
        scale = float(weight.sum()) * guarantee.unexplained_progress(weight, weighted, miss)
    else:
        scale = math.nan

    def share(missed: float, there: bool) -> float | None:
        if everything:
            return 0.0
        return min(1.0, missed * scale) if there and math.isfinite(scale) else None

    return Guarantee(
        forged_fraction=0.0 if everything and real else forged,
        progress_fraction=share(MAIN, over_weights),
        function_fraction=share(MAIN, "function: nearer" in names),
        group_fraction=share(SINGLE, over_weights),
        excursion_fraction=share(SINGLE, bool(names)),
        uniform_draws=uniform,
        progress_draws=weighted,
        miss_probability=miss,
        progress_miss_probability=miss,
        function_miss_probability=miss,
    )


def _ranked(found: Survey, windows: npt.NDArray[np.int64], top_q: int) -> Iterator[tuple[int, str]]:
    """The largest of each part of the run, with the reason."""
    for name, values in (("top-q", found.displacement), ("inertia", found.inertia)):
        for index in _top(values, windows, top_q):
            yield index, name
        # Whoever falsified the state that a large step starts from did it in the segment before.
        for index in _top(values, np.zeros(len(windows), dtype=np.int64), PREDECESSORS * top_q):
            yield index - 1, "predecessor"
    for index in found.jumps:  # every loss has two largest ones
        yield index, "loss"


def _conspicuous(found: Survey, keys: npt.NDArray[np.float64]) -> Iterator[tuple[int, str]]:
    """What no honest step brings about, or seldom, with the reason; of more than ``BROKEN`` of a kind those that the nonce draws."""
    count = len(keys)

    def some(indices: Iterable[int]) -> list[int]:
        return guarantee.draw_uniform(sorted(indices), BROKEN, keys)

    broken = np.flatnonzero(found.identity > IDENTITY_LIMIT)
    # Where a task's own step, or a wrapper around the optimizer, breaks the identity everywhere, that says nothing about any segment.
    usual = len(broken) > USUAL * count
    worst = broken[np.argsort(-found.identity[broken], kind="stable")][:MOST].tolist()
    known = ~np.isnan(found.displacement)
    beside = [i for i in range(count) if known[i] and not (known[max(i - 1, 0)] and known[min(i + 1, count - 1)])]
    for why, indices in (
        ("identity", worst if usual else some(broken.tolist())),
        ("counter", some(found.irregular)),
        # Tensors that appear with a segment, or change their type, could make an optimizer look like an unknown one.
        ("layout", some(found.relaid)),
        ("missing", some(beside) if found.missing else []),
    ):
        for index in indices:
            yield index, why


def challenge_seed(root: str, nonce: Nonce) -> bytes:
    """The key from which everything that is drawn follows."""
    return bytes.fromhex(canonical.sha256(b"pol/v1/challenge\0", root.encode(), b"\0", bytes.fromhex(nonce.value))[7:])


def survey_seed(root: str, nonce: Nonce) -> int:
    """What the survey's samples and coordinates follow from, so that nobody could know them while training."""
    return randomness.derive(challenge_seed(root, nonce), "survey")


def window(steps: int) -> int:
    """Number of steps in each of the parts of the run that have their own largest segments."""
    return max(1, math.ceil(steps / WINDOWS))


def _top(values: npt.NDArray[np.float64], windows: npt.NDArray[np.int64], q: int) -> list[int]:
    """In each window the ``q`` indices with the largest values, of those that are known."""
    known = np.flatnonzero(values > -np.inf)  # what is not a number is not larger
    order = known[np.lexsort((-values[known], windows[known]))]
    begins = np.flatnonzero(np.diff(windows[order], prepend=-1))  # of each window's, largest first
    place = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    chosen: list[int] = order[place < q].tolist()
    return chosen
