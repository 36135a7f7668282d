"""Order: the run has the task's length, its key is accounted for, and the samples come in the order that belongs to it."""

from __future__ import annotations

import numpy as np

from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.training.randomness import key_from_seed
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult


class OrderCheck:
    name = "order"
    meaning = (
        "The run has as many steps as the task says, and which samples each step takes follows from the key "
        "(or was recorded in full)."
    )
    limits = "A recorded order was free for the prover to choose; a derived one follows from a seed that the prover may have picked."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [[Describe()]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        described = answers.get(Describe(), Described)
        header = evidence.proof.header
        training, randomness = header.training, header.randomness
        if (training.steps, training.steps_per_epoch) != (described.steps, described.steps_per_epoch):
            return result(
                self, "fail",
                f"the proof has {training.steps:,} steps ({training.steps_per_epoch:,} an epoch); "
                f"the task has {described.steps:,} ({described.steps_per_epoch:,})",
            )  # fmt: skip
        if randomness.claim is not None:
            source = "the registered claim"
        elif randomness.seed is None or key_from_seed(int(randomness.seed)).hex() != randomness.key:
            return result(self, "fail", "the key does not follow from the seed, so the order was chosen freely")
        else:
            source = f"seed {randomness.seed}"
        if randomness.mode == "derived":
            return result(self, "pass", f"{training.steps:,} steps, order derived from {source}", source=source)
        return self._recorded(evidence, described)

    def _recorded(self, evidence: Evidence, described: Described) -> CheckResult:
        counts = np.zeros(described.samples, dtype=np.int64)
        last = described.samples - (described.steps_per_epoch - 1) * described.batch  # size of an epoch's last step
        for segment, columns in zip(evidence.proof.segments, evidence.proof.all_columns(), strict=True):
            for offset, indices in enumerate(columns.indices or []):
                step = segment.start + offset
                if indices.size == 0 or indices.min() < 0 or indices.max() >= described.samples:
                    return result(
                        self, "fail", f"step {step} names samples outside the data set of {described.samples:,}"
                    )
                if len(indices) not in (described.batch, min(last, described.batch)):
                    return result(
                        self,
                        "fail",
                        f"step {step} takes {len(indices)} samples; the task takes {described.batch} in a step",
                    )
                np.add.at(counts, indices, 1)
        seen = float((counts > 0).mean())
        return result(
            self, "pass", f"{evidence.proof.header.training.steps:,} steps, order as recorded; {seen:.0%} of the samples were used",
            samples_used=seen, uses_fewest=int(counts.min()), uses_most=int(counts.max()),
        )  # fmt: skip
