"""Task: the proof describes the task that the verifier named."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import msgspec
import torch

from proof_of_learning import sources
from proof_of_learning.program.document import Program
from proof_of_learning.program.show import LARGE, carried, rates
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
            if (retraced := self._retraced(evidence, described)) is not None:
                return retraced
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
        if described.taken:
            return self._taken(evidence)
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

    def _retraced(self, evidence: Evidence, described: Described) -> CheckResult | None:
        """Of a sealed proof: the named task gives another program, which may be another release of PyTorch's doing."""
        own, claimed = msgspec.json.decode(described.description), dict(evidence.proof.header.task.description)
        if own.pop("program", None) is None or claimed.pop("program", None) is None or own != claimed:
            return None
        releases = sorted({environment.torch.partition("+")[0] for environment in evidence.proof.environments.values()})
        if releases == [torch.__version__.partition("+")[0]]:
            return None
        return result(
            self, "inconclusive",
            f"the task that was named is traced to another program than the proof's, which PyTorch {', '.join(releases)} wrote; use "
            "that release, or read the program (`pol inspect --program`) and verify with --sealed",
            named=described.digest, proof=evidence.proof.header.task.digest,
        )  # fmt: skip

    def _taken(self, evidence: Evidence) -> CheckResult:
        """The task is the program that the proof brought along, so that what it pulls toward has to be looked at."""
        header = evidence.proof.header
        program = msgspec.convert(header.task.description["program"], Program)
        numbers, recorded = carried(program), rates(program)
        told: dict[str, Any] = {
            "digest": header.task.digest, "program": header.program.sealed, "numbers": numbers, "rates": recorded,
        }  # fmt: skip
        for count, name, what in (
            (numbers, "constants", "of its own, which a loss may pull toward"),
            (recorded, "rates", "in recorded learning rates, which a loss may turn into weights"),
        ):
            if count > LARGE and not any(fnmatchcase(name, p) for p in evidence.options.claims.approve_fixed):
                return result(
                    self, "inconclusive",
                    f"the program in the proof carries {count:,} numbers {what}; read it (`pol inspect --program`) and, if they "
                    f"belong there, approve them (--approve-fixed {name})", **told,
                )  # fmt: skip
        return result(
            self, "pass",
            f"the task is the program in the proof, {str(header.program.sealed)[:19]}…, which you have to read (`pol inspect "
            "--program`); no code of the prover's was run", **told,
        )  # fmt: skip


def _read(inputs: list[Input]) -> str:
    if not inputs:
        return ""
    names = ", ".join(f"{item.name} ({item.digest[7:19]}…)" for item in inputs[:SHOWN])
    return f", and reads the same {len(inputs)} file{'s' * (len(inputs) > 1)}: {names}{', …' * (len(inputs) > SHOWN)}"
