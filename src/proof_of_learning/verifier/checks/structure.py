"""Structure: the proof is complete, consistent with itself, and every byte is accounted for."""

from __future__ import annotations

from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult


class StructureCheck:
    name = "structure"
    meaning = "Every file, digest and link of the hash chain fits the root, and the claimed displacements are those of the states."
    limits = "A forger can write a perfectly consistent proof; consistency says nothing about training."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return []

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        # Opening the proof and surveying it raise at the first fault, so what arrives here is sound.
        proof, found = evidence.proof, evidence.survey
        held = len(proof.segments) + 1 - found.missing
        states = f"{held:,} states with {found.bytes:,} bytes" if held else "none of their states"
        return result(
            self, "pass",
            f"{len(proof.segments):,} segments, {states}, all digests correct",
            states_held=held, states_missing=found.missing, state_bytes=found.bytes, parameters=found.parameters,
        )  # fmt: skip
