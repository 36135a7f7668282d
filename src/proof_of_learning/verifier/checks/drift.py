"""Drift: replay errors that add up toward the final weights are a nudge, however small each of them is.

A nudge of the momentum shows no error in the weights, and the honest steps that follow carry them along. So the errors of what the
optimizer carries on are looked at beside those of the weights, by the same test.

A tensor that noise alone drives (see :mod:`proof_of_learning.verifier.calibrated`) wanders to where its own errors lead, so honest
errors point there too. Such tensors are left out; with them, a common direction counts only if it explains a part of the progress
from which something could be gained.
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
MATERIAL = CAP  # share of the progress, where noise-driven tensors are included


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
            exact = not any(evidence.differences.values())
            if exact or not evidence.options.allow_calibrated:
                return result(
                    self, "skipped", "replay was exact: there are no errors that could drift", mandatory=False
                )
            return result(self, "pass", "every replay gave the recorded bits: there are no errors that could drift")
        noisy = [strays.limits[index].noisy for index in strays.errors]
        weights, momentum = drift_statistic(pairs, noisy), drift_statistic(pairs, noisy, memory=True)
        everything = drift_statistic(pairs), drift_statistic(pairs, memory=True)
        details: dict[str, Any] = {
            "segments": len(pairs), "limit": SIGMAS, **weights.told(), **momentum.told("momentum_"),
            "left_out": sorted({name for names in noisy for name in names})[:50],
            "everything": {**everything[0].told(), **everything[1].told("momentum_")},
        }  # fmt: skip
        for found, gained, what in (
            (weights, math.inf, "replay errors explain"),
            (momentum, math.inf, "errors of the momentum explain"),
            (everything[0], everything[0].explained, "replay errors, those of noise-driven tensors included, explain"),
            (everything[1], everything[1].explained, "errors of the momentum, noise-driven ones included, explain"),
        ):
            if not (found.z <= SIGMAS or gained <= MATERIAL):
                return result(
                    self, "fail",
                    f"{what} {found.explained:.2g} of the progress in {len(pairs)} segments ({found.z:.1f} standard deviations, "
                    f"limit {SIGMAS:.0f}): the trajectory was nudged toward the final weights",
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
    """z: the errors' mean cosine over its standard deviation under the null; mean; null: root mean square cosine of the noise.

    explained: the errors' share of the progress toward the final weights.
    """

    z: float
    mean: float
    null: float
    explained: float

    def told(self, prefix: str = "") -> dict[str, float]:
        names = {
            "z": self.z,
            "mean_cosine": self.mean,
            "null_cosine": self.null,
            "progress_explained": self.explained,
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
    if not cosines:
        return Statistic(0.0, 0.0, 0.0, explained)
    mean = math.fsum(cosines) / len(cosines)
    spread = math.sqrt(math.fsum(c * c for c in null) / len(null)) if null else 0.0
    if spread == 0.0:  # own replays agree bit for bit, so any direction at all is unexplained
        return Statistic(math.inf if mean > 0 else 0.0, mean, spread, explained)
    return Statistic(mean * math.sqrt(len(cosines)) / spread, mean, spread, explained)


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
