"""Data: the proof's data root is that of the verifier's own copy."""

from __future__ import annotations

from typing import Any

from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.replay.protocol import CommitData, Committed
from proof_of_learning.verifier.evidence import Answers, Disclosed, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult


class DataCheck:
    name = "data"
    meaning = "Every sample, and its label if it has one, is in content, type and shape that of the verifier's own copy of the data."
    limits = "It shows which data was available to the run, not that the data was lawfully obtained or is any good."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [] if evidence.proof.header.data.salted or evidence.disclosed is not None else [[CommitData()]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        claim = evidence.proof.header.data
        if evidence.disclosed is not None:
            return self._disclosed(claim, evidence.disclosed)
        if claim.salted:
            return result(
                self, "inconclusive",
                "the data root is salted, so that no copy of the data can be compared with it; its owner has to open samples",
                root=claim.root, salted=True,
            )  # fmt: skip
        own = answers.get(CommitData(), Committed).commitment
        if own.samples != claim.samples:
            return result(
                self, "fail", f"the proof was made with {claim.samples:,} samples; the task's data set has {own.samples:,}",
                named=own.root, proof=claim.root,
            )  # fmt: skip
        if own.root != claim.root and (lines := evidence.unreproduced(0)):
            return result(
                self, "inconclusive",
                f"the {claim.samples:,} samples are not those that the task's data set has here, where the numeric environment is not "
                f"the recorded one ({'; '.join(lines)}): data that a task "
                "computes (`torch.randn`) may have other bits; verify in the recorded one, or ask for the data as a file",
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

    def _disclosed(self, claim: DataCommitment, disclosed: Disclosed) -> CheckResult:
        """Of data that stay with their owner: what was opened is under the root, as was found before any of it was used."""
        shown = f"{disclosed.samples:,} of {claim.samples:,} samples were opened, all under the data root {claim.root[:19]}…"
        told: dict[str, Any] = {
            "root": claim.root,
            "opened": disclosed.samples,
            "share": disclosed.samples / claim.samples,
        }
        if disclosed.named is None:
            return result(
                self, "inconclusive",
                f"{shown}, which is the owner's choice alone; name the root that you expect (--data-root)", **told,
            )  # fmt: skip
        if disclosed.named != claim.root:
            return result(
                self, "fail", f"the proof was made with the data under {claim.root[:19]}…, not with those that you named",
                named=disclosed.named, **told,
            )  # fmt: skip
        return result(self, "pass", f"{shown}, which you named", **told)
