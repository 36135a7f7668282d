"""Calibrated comparison: tolerances from the verifier's own replays in two environments, never from the proof.

Honest noise is measured on the challenged segments themselves, relative to how far they lead: the shorter of the ways to the
recorded end and to where the verifier's own replay arrives, so that nobody makes a jump small by jumping far. A limit is
``MARGIN`` times the largest noise seen, within [``FLOOR``, ``CAP``]; where the noise itself exceeds ``CAP / 3`` no sharp answer
is possible. Single tensors (and kinds of state) whose honest noise is that large - a bias before a BatchNorm has no true
gradient - are listed, held to ``MARGIN`` times their own noise (``SATURATED`` times, where that would be more than a whole
movement), and left out of the overall comparison, as long as they carry a small part of the movement.

Noise has rare, large events: where two numbers are nearly equal, a maximum or a threshold may fall to either side. They belong to
a segment's own values, so two environments often agree by luck where a third does not. A segment that comes nearer to a limit than
noise should is looked at more closely: replayed from starts whose numbers are moved by a few units of their last place (random
rounding, as in Monte Carlo arithmetic; Parker, UCLA 1997), which brings such events out. What these replays give is that segment's
noise as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from proof_of_learning.replay.measure import Comparison, Detail, Distance, TensorError, ratio
from proof_of_learning.replay.requests import Replayed
from proof_of_learning.state.names import WEIGHTS, kind_of

CAP = 0.01  # rho, the largest relative error ever accepted: a drift attack needs 9 / rho^2 segments
FLOOR = 1e-3  # below this no attack gains (9 million segments), while an unusual honest environment may need it
MARGIN = 10.0
SATURATED = 3.0  # in the place of MARGIN, where noise times MARGIN would exceed the whole movement
NOISY = CAP / 3
DELTA = 0.01  # the paper's rule: two orders of magnitude below d_ref
DELTA_INTERVAL = 20  # normalised errors decide only up to this k
NEAR = 1 / 3  # of a limit: honest errors are meant to stay below that
NUDGES = 8  # replays of a closer look
LOOKS = 4  # closer looks in a verification: events that are not rare show in the noise of the other segments
CALM = 0.75  # share of the segments without events large enough to blur the whole, from which limits can be taken
JUDGED_SHARE = 0.5  # of the squared displacement that must be in tensors that are judged


@dataclass(frozen=True)
class Measured:
    """A replay's distance from what it is held against: norms, tensor by tensor, and how far the segment leads."""

    comparison: Comparison
    detail: Detail

    @classmethod
    def of(cls, answer: Replayed) -> Measured | None:
        """The parts of an answer that calibrated comparison works with; None if it was not asked for."""
        if answer.comparison is None or answer.detail is None:
            return None
        return cls(answer.comparison, answer.detail)

    @cached_property
    def relatives(self) -> dict[str, float]:
        """Each tensor's error over max(own displacement, that of its kind · √(n/N)): one that hardly moves is held to its share."""
        tensors = self.detail.tensors
        squares, elements = dict[str, float](), dict[str, int]()
        for name, tensor in tensors.items():
            kind = kind_of(name)
            squares[kind] = squares.get(kind, 0.0) + tensor.span**2
            elements[kind] = elements.get(kind, 0) + tensor.elements

        def relative(kind: str, tensor: TensorError) -> float:
            if tensor.error == 0.0:
                return 0.0
            share = math.sqrt(squares[kind]) * math.sqrt(tensor.elements / elements[kind])
            return ratio(tensor.error, max(tensor.span, share))

        return {name: relative(kind_of(name), tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Tolerance:
    """Limits for segments of one length. All errors are relative to displacement.

    noise: largest overall noise over judged tensors; rho: the overall limit; tensors, kinds: limits by name; noisy: the noise of
    tensors that are not judged alone; metrics: limits of the overall norms; judged: smallest share of the squared displacement,
    of everything or of the weights alone, that lies in judged tensors; unequal: names of what has to be equal and is not even between
    own replays; short_enough: the longest shorter k measured whose noise allows an answer.
    """

    noise: float
    rho: float
    tensors: Mapping[str, float]
    kinds: Mapping[str, float]
    kind_noise: Mapping[str, float]
    metrics: Distance
    noisy: Mapping[str, float]
    judged: float
    unequal: frozenset[str] = frozenset()
    short_enough: int | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def sharp(self) -> bool:
        """Whether segments of this length can be judged at all."""
        return not self.reasons

    @property
    def comfortable(self) -> bool:
        """Whether the whole margin fits under the cap, so that segments drawn another time will be judged too."""
        return self.sharp and MARGIN * self.noise <= CAP


def tolerance(
    noises: Sequence[Measured],
    *,
    own: Sequence[Measured] = (),
    short_enough: int | None = None,
) -> Tolerance:
    """Limits from the verifier's own noise on segments of one length.

    own: further noise, of the one segment that these limits are for, which alone decides whether they are sharp (default: all
    of it does).
    """
    noises = [*noises, *own]
    names = {name for m in noises for name in m.detail.tensors}
    worst = {name: max(m.relatives.get(name, 0.0) for m in noises) for name in names}
    noisy = {name: value for name, value in worst.items() if not value <= NOISY}
    everywhere = max(_overall(m.detail, noisy) for m in noises)
    overall = max(_overall(m.detail, noisy) for m in own) if own else everywhere
    judged = min(_judged_share(m.detail, noisy) for m in own or noises)
    kinds = {kind_of(name) for name in names}
    kind_noise = {kind: max(_overall(m.detail, noisy, kind) for m in noises) for kind in kinds}
    # Rare, large events (a maximum that changes sides) befall any tensor; the few segments at hand show them for the kind alone.
    largest = dict.fromkeys(kinds, 0.0)
    for name in names - set(noisy):
        largest[kind_of(name)] = max(largest[kind_of(name)], worst[name])
    metrics = Distance(
        *(
            max(FLOOR, _loose(max(_metric(m, name) for m in noises), 2 if name == "cos" else 1))
            for name in ("l1", "l2", "linf", "cos")
        )
    )
    unequal = frozenset(name for m in own or noises for name in m.comparison.unequal)
    reasons = []
    if not overall <= NOISY:
        reasons.append(f"honest replays stray by {overall:.2g} of the displacement, more than {NOISY:.2g}")
    if not judged >= JUDGED_SHARE:
        reasons.append(f"only {judged:.0%} of the movement is in tensors that replay sharply")
    if unequal:
        reasons.append(f"{min(unequal)} has to be equal and differs between honest replays")
    return Tolerance(
        noise=overall,
        rho=_limit(everywhere),
        tensors={
            name: _loose(value) if name in noisy else _limit(largest[kind_of(name)]) for name, value in worst.items()
        },
        kind_noise=kind_noise,
        kinds={kind: _limit(value) for kind, value in kind_noise.items()},
        metrics=metrics,
        noisy=noisy,
        judged=judged,
        unequal=unequal,
        short_enough=short_enough,
        reasons=reasons,
    )


@dataclass(frozen=True)
class Noises:
    """The verifier's own noise on the segments of one length, by index, and what is common to them.

    calm: the segments whose noise sets the limits of all. What else noise moves in a single segment is that segment's affair.
    """

    found: Mapping[int, Measured]
    calm: frozenset[int]
    short_enough: int | None = None

    @classmethod
    def of(cls, found: Mapping[int, Measured], short_enough: int | None = None) -> Noises:
        """All noise is common if that allows a sharp answer, else that of the calm segments if they are at least ``CALM`` of all.

        In the calm ones noise alone drives no tensors but the common ones: those that it drives most often, as few as make so
        many segments calm. One event would else leave every segment without an answer, and events that blur different tensors
        in different segments would add up.
        """
        everything = cls(found, frozenset(found), short_enough)
        if everything.common.sharp:
            return everything
        own = {index: tolerance([noise]) for index, noise in found.items()}
        often = Counter(name for limits in own.values() for name in limits.noisy)
        order = sorted(often, key=lambda name: (-often[name], name))
        for count in range(len(order) + 1):
            names = set(order[:count])
            calm = cls(found, frozenset(i for i, t in own.items() if t.sharp and set(t.noisy) <= names), short_enough)
            if len(calm.calm) >= CALM * len(found) and calm.common.sharp:
                return calm
        return everything

    @cached_property
    def common(self) -> Tolerance:
        """The limits of the segments that are like the others."""
        return tolerance(self._calm, short_enough=self.short_enough)

    def limits(self, index: int, nudges: Sequence[Measured] = ()) -> Tolerance:
        """The limits of one segment, with the noise that a closer look at it brought out."""
        if index in self.calm and not nudges:
            return self.common
        return tolerance(self._calm, own=[self.found[index], *nudges], short_enough=self.short_enough)

    @property
    def _calm(self) -> list[Measured]:
        return [self.found[index] for index in sorted(self.calm)]


def violations(found: Measured, limits: Tolerance) -> list[str]:
    """What exceeds its limit, worst first; empty for a segment that is within honest noise. Written so that NaN fails."""
    over: list[tuple[float, str]] = []
    if names := _unequal(found, limits):
        over.append((math.inf, f"{names[0]} must be equal and is not"))
    for what, error, limit in _bounds(found, limits):
        if not error <= limit:
            over.append((ratio(error, limit), f"{what}: {error:.3g} of its displacement, limit {limit:.3g}"))
    return [text for _, text in sorted(over, key=lambda item: -item[0] if item[0] == item[0] else -math.inf)]


def closeness(found: Measured, limits: Tolerance) -> float:
    """The largest error over its limit: below 1 within tolerance (its inverse is the margin that is left)."""
    return max(ratio(error, limit) for _, error, limit in _bounds(found, limits))


def rejects(found: Measured, limits: Tolerance) -> str | None:
    """Why a segment is rejected; None where it is within its limits, or where these are not sharp.

    An error far beyond the verifier's own noise needs no sharp limit to be rejected, nor does a value that has to be equal.
    """
    over = violations(found, limits)
    beyond = bool(_unequal(found, limits)) or not _metric(found, "l2") <= limits.metrics.l2
    return over[0] if over and (limits.sharp or beyond) else None


def doubtful(found: Measured, limits: Tolerance) -> bool:
    """Whether a closer look may change the answer: an error is over its limit, or near to one which more noise would raise.

    The limit of a single tensor rises above ``CAP`` where noise alone turns out to drive it; the others stop there.
    """
    if not excusable(found, limits):
        return False
    near = limits.sharp and any(
        not error <= NEAR * limit
        for what, error, limit in _bounds(found, limits)
        if limit < CAP or what in found.detail.tensors
    )
    return near or rejects(found, limits) is not None


def excusable(found: Measured, limits: Tolerance) -> bool:
    """Whether noise could explain the error at all: it touches no value that must be equal, and is a number."""
    return not _unequal(found, limits) and math.isfinite(_overall(found.detail, {}))


def judged_error(found: Measured, limits: Tolerance, kind: str) -> float:
    """l2 of the error of one kind of state, without the tensors that noise alone drives."""
    return math.sqrt(_totals(found.detail, limits.noisy, kind)[0])


def _bounds(found: Measured, limits: Tolerance) -> Iterator[tuple[str, float, float]]:
    """What is bounded, its relative error, and the limit."""
    yield "overall", _overall(found.detail, limits.noisy), limits.rho
    for kind in sorted({kind_of(name) for name in found.detail.tensors}):
        yield kind, _overall(found.detail, limits.noisy, kind), limits.kinds.get(kind, FLOOR)
    for name, error in found.relatives.items():
        yield name, error, limits.tensors.get(name, FLOOR)
    for metric in ("l1", "l2", "linf", "cos"):
        yield f"{metric} norm", _metric(found, metric), getattr(limits.metrics, metric)


def _unequal(found: Measured, limits: Tolerance) -> list[str]:
    """What has to be equal, is so in own replays, and is not here."""
    return [name for name in found.comparison.unequal if name not in limits.unequal]


def _limit(noise: float) -> float:
    return min(CAP, max(FLOOR, MARGIN * noise))


def _loose(noise: float, power: int = 1) -> float:
    """The limit of what noise alone may drive. Two replays that have nothing in common are about a whole movement apart, so
    a large noise is not multiplied by so much. power: of an error's length, with which the measure grows.
    """
    return min(MARGIN**power * noise, max(1.0, SATURATED**power * noise))


def _metric(measured: Measured, name: str) -> float:
    return ratio(getattr(measured.comparison.overall, name), getattr(measured.detail.moved, name))


def _totals(detail: Detail, noisy: Mapping[str, float], kind: str | None) -> tuple[float, float]:
    error = span = 0.0
    for name, tensor in detail.tensors.items():
        if name not in noisy and (kind is None or kind_of(name) == kind):
            error += tensor.error**2
            span += tensor.span**2
    return error, span


def _overall(detail: Detail, noisy: Mapping[str, float], kind: str | None = None) -> float:
    error, span = _totals(detail, noisy, kind)
    return ratio(math.sqrt(error), math.sqrt(span))


def _judged_share(detail: Detail, noisy: Mapping[str, float]) -> float:
    """Of everything or of the weights alone, whichever is less: a large momentum is no reason to leave the weights unjudged."""
    shares = [1.0]
    for kind in (None, WEIGHTS):
        total = _totals(detail, {}, kind)[1]
        shares += [_totals(detail, noisy, kind)[1] / total] if total else []
    return min(shares)
