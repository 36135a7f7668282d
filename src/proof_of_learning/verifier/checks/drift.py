"""Drift: replay errors that add up toward the final weights are a nudge, however small each of them is.

A nudge of the momentum shows no error in the weights, and the honest steps that follow carry them along. So the errors of what the
optimizer carries on are looked at beside those of the weights, by the same test.

Two means are taken of the cosines between errors and way: one in which every segment counts alike, and one in which it counts by the
size of its error, so that many small errors the other way hide no large ones. A single honest event may dominate the second, and a
tensor that noise alone drives (see :mod:`proof_of_learning.verifier.calibrated`) wanders to where its own errors lead: so the second,
and whatever includes such tensors, counts only if it explains a part of the progress from which something could be gained.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from proof_of_learning.replay.measure import Direction
from proof_of_learning.verifier.calibrated import CAP, Measured
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.strays import Strays
from proof_of_learning.verifier.verdict import CheckResult

SIGMAS = 6.0
MATERIAL = CAP  # share of the progress that something could be gained from
NOTHING = 1e-5  # share of the progress that nothing is gained from, whatever its direction


class DriftCheck:
    name = "drift"
    meaning = (
        "The replay errors have no common direction: they do not add up toward the final weights, as a model that is nudged "
        "a little in every segment would show."
    )
    limits = "It sees a nudge in the challenged segments; its null distribution comes from the verifier's own replays of them."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return []

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        """The mean cosine between error and way to the final weights, against the spread of the same cosine in own noise."""
        strays = Strays(evidence, answers)
        pairs = [(error, strays.own[index]) for index, error in strays.errors.items()]
        if not pairs:
            calibrated = any(evidence.calibrates(index) for index in evidence.challenge.segments)
            if not calibrated:
                return result(
                    self, "skipped", "comparison is exact: an error is a failure, however small", mandatory=False
                )
            return result(self, "pass", "every replay gave the recorded bits: there are no errors that could drift")
        noisy = [strays.limits[index].noisy for index in strays.errors]
        weights, momentum = drift_statistic(pairs, noisy), drift_statistic(pairs, noisy, memory=True)
        everything = drift_statistic(pairs), drift_statistic(pairs, memory=True)
        details: dict[str, Any] = {
            "segments": len(pairs), **weights.told(), **momentum.told("momentum_"),
            "left_out": sorted({name for names in noisy for name in names})[:50],
            "everything": {**everything[0].told(), **everything[1].told("momentum_")},
        }  # fmt: skip
        for found, what, material in (
            (weights, "replay errors explain", NOTHING),
            (momentum, "errors of the momentum explain", NOTHING),
            (everything[0], "replay errors, those of noise-driven tensors included, explain", MATERIAL),
            (everything[1], "errors of the momentum, noise-driven ones included, explain", MATERIAL),
        ):
            if not (found.z <= found.limit or found.explained <= material) or found.nudges:
                return result(
                    self, "fail",
                    f"{what} {found.explained:.2g} of the progress in {len(pairs)} segments ({max(found.z, found.weighted):.1f} "
                    f"standard deviations, limit {found.limit:.1f}): the trajectory was nudged toward the final weights",
                    **details,
                )  # fmt: skip
        if any(found.silent and not found.explained <= NOTHING for found in (weights, momentum)):
            return result(
                self, "inconclusive",
                f"replay errors explain {max(weights.explained, momentum.explained):.2g} of the progress, and the verifier's own "
                "replays agree bit for bit, so that no noise is known to compare their direction with",
                **details,
            )  # fmt: skip
        return result(
            self, "pass",
            f"replay errors explain {weights.explained:.2g} of the progress in {len(pairs)} segments ({weights.z:.1f} standard "
            "deviations): no common direction",
            **details,
        )  # fmt: skip


@dataclass(frozen=True)
class Statistic:
    """Whether errors have a common direction.

    z: the errors' mean cosine over its standard deviation under the null; weighted: the same with every segment counted by the
    size of its error; mean; null: root mean square cosine of the noise, from so many samples; explained: the errors' share of the
    progress toward the final weights. Without a sample of the null both are 0.
    """

    z: float
    weighted: float
    mean: float
    null: float
    samples: int
    explained: float

    @property
    def limit(self) -> float:
        """Standard deviations that chance exceeds as rarely as a normal variable does ``SIGMAS``: the null's own is an estimate."""
        from scipy import stats  # seconds to import

        return float(stats.t.isf(stats.norm.sf(SIGMAS), self.samples)) if self.samples else math.inf

    @property
    def nudges(self) -> bool:
        """Whether the larger errors have a direction, and lead somewhere."""
        return self.explained > MATERIAL and (self.silent or self.weighted > self.limit)

    @property
    def silent(self) -> bool:
        """Whether there are errors that point forward, and no noise that they could be compared with."""
        return not self.samples and self.mean > 0

    def told(self, prefix: str = "") -> dict[str, float]:
        names = {
            "z": self.z,
            "z_by_size": self.weighted,
            "mean_cosine": self.mean,
            "null_cosine": self.null,
            "progress_explained": self.explained,
            **({"limit": self.limit} if self.samples else {}),
        }
        return {prefix + name: value for name, value in names.items()}


def drift_statistic(
    pairs: Sequence[tuple[Measured, Measured]], leave_out: Sequence[Collection[str]] = (), *, memory: bool = False
) -> Statistic:
    """Whether errors have a common direction that noise has not, in the weights or in the optimizer's ``memory``.

    pairs: (error, own noise) of each segment. leave_out: names of tensors, segment by segment. Under the null, error and noise are
    directions of the same kind, so the errors' mean cosine over m segments has the standard deviation rms / √m.
    """
    left_out = leave_out or [()] * len(pairs)
    sides = [[_sum(pair[side], names, memory) for pair, names in zip(pairs, left_out, strict=True)] for side in (0, 1)]
    cosines, null = ([_cosine(total) for total in side if total.error > 0] for side in sides)
    along, moved = (math.fsum(getattr(total, name) for total in sides[0]) for name in ("along", "moved_along"))
    explained = along / moved if moved > 0 else math.inf if along > 0 else 0.0
    mean = math.fsum(cosines) / len(cosines) if cosines else 0.0
    spread = math.sqrt(math.fsum(c * c for c in null) / len(null)) if null else 0.0
    if spread == 0.0 or not cosines:
        return Statistic(0.0, 0.0, mean, 0.0, 0, explained)
    size = math.sqrt(math.fsum((total.error * total.way) ** 2 for total in sides[0]))
    return Statistic(
        z=mean * math.sqrt(len(cosines)) / spread,
        weighted=along / (size * spread) if size else 0.0,
        mean=mean,
        null=spread,
        samples=len(null),
        explained=explained,
    )


def _sum(found: Measured, leave_out: Collection[str], memory: bool) -> Direction:
    """The direction of all tensors together."""
    parts = found.detail.memory if memory else found.detail.weights
    kept = [part for name, part in parts.items() if name not in leave_out]
    return Direction(
        math.fsum(part.along for part in kept),
        math.fsum(part.moved_along for part in kept),
        math.sqrt(math.fsum(part.error**2 for part in kept)),
        math.sqrt(math.fsum(part.way**2 for part in kept)),
    )


def _cosine(total: Direction) -> float:
    return total.along / (total.error * total.way) if total.way else 0.0
