"""Hyperparameters: the learning rates in the proof are, step by step, those of the task's own schedule."""

from __future__ import annotations

import math

import numpy as np

from proof_of_learning.replay.protocol import RATES_AT_ONCE, Describe, Described, Rates, RatesGiven
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult


class HyperparametersCheck:
    name = "hyperparameters"
    meaning = (
        "Every step's learning rate is what the task's schedule gives. The other hyperparameters are part of the task's "
        "description and of every recorded state."
    )
    limits = "A custom step can set rates of its own; for those only the replayed segments show them."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [[Describe(), *self._rates(evidence)]]

    def _rates(self, evidence: Evidence) -> list[Rates]:
        steps = evidence.proof.header.training.steps
        return [Rates(start, min(start + RATES_AT_ONCE, steps)) for start in range(0, steps, RATES_AT_ONCE)]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        described = answers.get(Describe(), Described)
        expected = [row for request in self._rates(evidence) for row in answers.get(request, RatesGiven).rates]
        trivial = float(evidence.survey.trivial.mean())
        exact = not any(evidence.differences.values())
        for segment, columns in zip(evidence.proof.segments, evidence.proof.all_columns(), strict=True):
            task = np.array(expected[segment.start : segment.stop], dtype=np.float64).reshape(len(columns), -1)
            if task.shape == columns.rates.shape and _equal(task, columns.rates, exact):
                continue
            if task.shape != columns.rates.shape:
                return result(
                    self, "fail", f"segment {segment.index} has another number of parameter groups than the task"
                )
            row = int(np.flatnonzero((task != columns.rates).any(axis=1))[0])
            found, wanted = columns.rates[row].tolist(), task[row].tolist()
            where = (
                f"step {segment.start + row}: the proof says learning rate {found}, the task's schedule gives {wanted}"
            )
            if not described.loop_schedule:
                return result(
                    self, "inconclusive", f"{where}; the task's custom step may set it, which only a replay can show"
                )
            return result(self, "fail", where, step=segment.start + row, proof=found, task=wanted)
        idle = f"; {trivial:.0%} of the segments are trivial (rate 0) and do not count" if trivial else ""
        flat = np.array(expected)
        return result(
            self, "pass", f"learning rates of all {len(expected):,} steps are the task's{idle}",
            rate_lowest=float(flat.min()) if flat.size else math.nan, rate_highest=float(flat.max()) if flat.size else math.nan,
            trivial_share=trivial,
        )  # fmt: skip


def _equal(task: np.ndarray, proof: np.ndarray, exact: bool) -> bool:
    """Bit for bit; in another environment (another C library, say) a schedule's cosine may differ in its last digits."""
    return bool((task == proof).all()) if exact else bool(np.allclose(task, proof, rtol=1e-12, atol=0.0))
