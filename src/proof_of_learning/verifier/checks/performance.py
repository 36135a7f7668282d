"""Performance: the final model achieves what the proof says it does."""

from __future__ import annotations

from proof_of_learning.replay.protocol import Evaluate, Evaluated
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult, Status


class PerformanceCheck:
    name = "performance"
    meaning = "The task's own evaluation of the final model gives the numbers in the proof."
    limits = (
        "It repeats the task's evaluation; whether that evaluation measures anything useful is for the reader to judge."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [] if evidence.proof.end.evaluation is None else [[self._request(evidence)]]

    def _request(self, evidence: Evidence) -> Evaluate:
        return Evaluate(len(evidence.proof.segments) - 1)

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        claimed = evidence.proof.end.evaluation
        if claimed is None:
            return result(self, "skipped", "the proof claims no performance", mandatory=False)
        found = answers.get(self._request(evidence), Evaluated).values
        if found is None:
            return result(
                self, "inconclusive", "the proof claims a performance, but the task has no evaluation", claimed=claimed
            )
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(found.items()))
        if found == claimed:
            return result(self, "pass", f"{shown}, as claimed", claimed=claimed, found=found)
        told = ", ".join(f"{name} {value:.4g}" for name, value in sorted(claimed.items()))
        differences = evidence.differences.get(evidence.proof.segments[-1].environment, [])
        status: Status = "inconclusive" if differences else "fail"
        return result(self, status, f"the proof claims {told}; evaluated here: {shown}", claimed=claimed, found=found)
