"""Data: the proof's data root is that of the verifier's own copy."""

from __future__ import annotations

from proof_of_learning.replay.protocol import CommitData, Committed
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult


class DataCheck:
    name = "data"
    meaning = "Every sample, and its label if it has one, is in content, type and shape that of the verifier's own copy of the data."
    limits = "It shows which data was available to the run, not that the data was lawfully obtained or is any good."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [] if evidence.proof.header.data.salted else [[CommitData()]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        claim = evidence.proof.header.data
        if claim.salted:
            return result(
                self, "inconclusive", "the data root is salted, and its salts are not at hand", root=claim.root
            )
        own = answers.get(CommitData(), Committed).commitment
        if own.samples != claim.samples:
            return result(
                self, "fail", f"the proof was made with {claim.samples:,} samples; the task's data set has {own.samples:,}",
                named=own.root, proof=claim.root,
            )  # fmt: skip
        if own.root != claim.root:
            return result(
                self, "fail", f"the {claim.samples:,} samples are not those of the task's data set (their Merkle roots differ)",
                named=own.root, proof=claim.root,
            )  # fmt: skip
        return result(
            self,
            "pass",
            f"{claim.samples:,} samples, all that belongs to each, root {claim.root[:19]}…",
            root=claim.root,
        )
