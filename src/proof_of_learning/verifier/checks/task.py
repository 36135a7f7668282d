"""Task: the proof describes the task that the verifier named."""

from __future__ import annotations

import msgspec

from proof_of_learning import sources
from proof_of_learning.proof.format import Input
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.task import compare
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult
from proof_of_learning.verifier.walks import other_inputs

SHOWN = 5


class TaskCheck:
    name = "task"
    meaning = (
        "Architecture, optimizer, schedule and step options in the proof are those of the task that the verifier named."
    )
    limits = (
        "The verdict is conditional on that task: whether the task itself is sensible, no replay can show. Sources are those of "
        "its functions and of the local modules they import, not the files that they read or the packages installed."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [[Describe()]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        described = answers.get(Describe(), Described)
        claim = evidence.proof.header.task
        changed = sources.changed(claim.sources, described.sources)
        if described.digest != claim.digest:
            lines = compare(msgspec.json.decode(described.description), claim.description)
            more = f" (and {len(lines) - 1} more differences)" if len(lines) > 1 else ""
            return result(
                self, "fail", f"the proof is of another task: {lines[0] if lines else 'the descriptions differ'}{more}",
                named=described.digest, proof=claim.digest, differences=lines[:100],
            )  # fmt: skip
        if other := other_inputs(evidence.proof, described):
            return result(
                self, "inconclusive", f"{other}; use the same file, or name its place in the script's arguments (behind --)",
                inputs=[[item.name, item.digest] for item in described.inputs][:100],
            )  # fmt: skip
        named = ", ".join(name.replace(":", " ") for name in changed)
        note = f"; the sources of {named} differ or are unavailable, which only a replay can judge" if changed else ""
        isolation = evidence.isolation.note if evidence.isolation is not None else "no code of the task was run"
        return result(
            self,
            "pass",
            f"the task is the one named{_read(evidence.proof.header.inputs)}{note}",
            digest=claim.digest,
            sources=sources.digest(described.digest, described.sources),
            sources_claimed=sources.digest(claim.digest, claim.sources),
            sources_changed=changed,
            inputs=[[item.name, item.digest] for item in evidence.proof.header.inputs][:100],
            isolation=isolation,
        )


def _read(inputs: list[Input]) -> str:
    if not inputs:
        return ""
    names = ", ".join(f"{item.name} ({item.digest[7:19]}…)" for item in inputs[:SHOWN])
    return f", and reads the same {len(inputs)} file{'s' * (len(inputs) > 1)}: {names}{', …' * (len(inputs) > SHOWN)}"
