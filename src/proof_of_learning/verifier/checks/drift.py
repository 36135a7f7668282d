"""Drift: replay errors that add up toward the final weights are a nudge, however small each of them is.

A nudge of the momentum shows no error in the weights, and the honest steps that follow carry them along. So the errors of what the
optimizer carries on are looked at beside those of the weights, by the same test.
"""

from __future__ import annotations

import math
from typing import Any

from proof_of_learning.verifier.calibrated import Measured
from proof_of_learning.verifier.checks.trajectory import strayed
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult

SIGMAS = 6.0


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
        pairs = list(strayed(evidence, answers).values())
        if not pairs:
            exact = not any(evidence.differences.values())
            if exact or not evidence.options.allow_calibrated:
                return result(
                    self, "skipped", "replay was exact: there are no errors that could drift", mandatory=False
                )
            return result(self, "pass", "every replay gave the recorded bits: there are no errors that could drift")
        z, mean, spread = drift_statistic(pairs)
        z_memory, mean_memory, spread_memory = drift_statistic(pairs, memory=True)
        moved = sum(error.detail.span_along for error, _ in pairs)
        explained = sum(error.detail.error_along for error, _ in pairs) / moved if moved else math.nan
        details: dict[str, Any] = {
            "segments": len(pairs), "z": z, "mean_cosine": mean, "null_cosine": spread, "progress_explained": explained,
            "limit": SIGMAS, "momentum_z": z_memory, "momentum_mean_cosine": mean_memory, "momentum_null_cosine": spread_memory,
        }  # fmt: skip
        text = f"replay errors explain {explained:.2g} of the progress in {len(pairs)} segments ({z:.1f} standard deviations"
        if not z <= SIGMAS:
            return result(
                self,
                "fail",
                f"{text}, limit {SIGMAS:.0f}): the trajectory was nudged toward the final weights",
                **details,
            )
        if not z_memory <= SIGMAS:
            return result(
                self,
                "fail",
                f"errors of the momentum point to the final weights in {len(pairs)} segments ({z_memory:.1f} standard "
                f"deviations, limit {SIGMAS:.0f}): the trajectory was nudged toward them",
                **details,
            )
        return result(self, "pass", f"{text}): no common direction", **details)


def drift_statistic(pairs: list[tuple[Measured, Measured]], memory: bool = False) -> tuple[float, float, float]:
    """(z, mean cosine of the errors, root mean square cosine of the noise), for the weights or the optimizer's ``memory``.

    Under the null, error and noise are directions of the same kind, so the errors' mean cosine has the standard deviation
    rms / √m.
    """
    found = [[_cosine(pair[side], memory) for pair in pairs] for side in (0, 1)]
    cosines, null = ([cosine for cosine in side if cosine is not None] for side in found)
    if not cosines:
        return 0.0, 0.0, 0.0
    mean = math.fsum(cosines) / len(cosines)
    spread = math.sqrt(math.fsum(c * c for c in null) / len(null)) if null else 0.0
    if spread == 0.0:  # own replays agree bit for bit, so any direction at all is unexplained
        return (math.inf if mean > 0 else 0.0), mean, spread
    return mean * math.sqrt(len(cosines)) / spread, mean, spread


def _cosine(found: Measured, memory: bool) -> float | None:
    """Between the error and the way to the final weights; None where there is no error."""
    detail = found.detail
    along, error, way = (
        (detail.memory_along, detail.memory_norm, detail.memory_way)
        if memory
        else (detail.error_along, detail.error_norm, detail.way_norm)
    )
    if not error > 0:
        return None
    return along / (error * way) if way else 0.0
