"""Drift: replay errors that add up toward the final weights are a nudge, however small each of them is."""

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
        moved = sum(error.detail.span_along for error, _ in pairs)
        explained = sum(error.detail.error_along for error, _ in pairs) / moved if moved else math.nan
        details: dict[str, Any] = {
            "segments": len(pairs), "z": z, "mean_cosine": mean, "null_cosine": spread, "progress_explained": explained,
            "limit": SIGMAS,
        }  # fmt: skip
        text = f"replay errors explain {explained:.2g} of the progress in {len(pairs)} segments ({z:.1f} standard deviations"
        if not z <= SIGMAS:
            return result(
                self,
                "fail",
                f"{text}, limit {SIGMAS:.0f}): the trajectory was nudged toward the final weights",
                **details,
            )
        return result(self, "pass", f"{text}): no common direction", **details)


def drift_statistic(pairs: list[tuple[Measured, Measured]]) -> tuple[float, float, float]:
    """(z, mean cosine of the errors, root mean square cosine of the noise).

    Under the null, error and noise are directions of the same kind, so the errors' mean cosine has the standard deviation
    rms / √m.
    """
    cosines = [_cosine(error) for error, _ in pairs if error.detail.error_norm > 0]
    null = [_cosine(noise) for _, noise in pairs if noise.detail.error_norm > 0]
    if not cosines:
        return 0.0, 0.0, 0.0
    mean = math.fsum(cosines) / len(cosines)
    spread = math.sqrt(math.fsum(c * c for c in null) / len(null)) if null else 0.0
    if spread == 0.0:  # own replays agree bit for bit, so any direction at all is unexplained
        return (math.inf if mean > 0 else 0.0), mean, spread
    return mean * math.sqrt(len(cosines)) / spread, mean, spread


def _cosine(found: Measured) -> float:
    length = found.detail.error_norm * found.detail.way_norm
    return found.detail.error_along / length if length else 0.0
