"""Performance: the model achieves what the proof says it does, at the end and on the way there."""

from __future__ import annotations

import numpy as np

from proof_of_learning.numeric import randomness
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Evaluated
from proof_of_learning.replay.requests import Evaluate
from proof_of_learning.verifier.evidence import REJECTED, Answers, Evidence, Plan, result
from proof_of_learning.verifier.plan import challenge_seed
from proof_of_learning.verifier.verdict import CheckResult, PerformancePoint

CHECKPOINTS = 5  # on the way, drawn from root and nonce
# What another numeric environment may change: a few test samples near a decision boundary.
RELATIVE, ABSOLUTE = 0.01, 0.005


class PerformanceCheck:
    name = "performance"
    meaning = (
        "The task's own evaluation gives the numbers in the proof, at the end and at the checkpoints that were drawn."
    )
    limits = (
        "It repeats the task's evaluation; whether that evaluation measures anything useful is for the reader to judge."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [[Evaluate(index) for index in chosen(evidence)]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        for failure in filter(None, (answers.failure(Evaluate(index)) for index in chosen(evidence))):
            status = "fail" if failure.error in REJECTED else "inconclusive"
            return result(self, status, f"a recorded model could not be evaluated: {failure.message}")  # type: ignore[arg-type]
        points = performance(evidence, answers)
        if not points:
            return result(self, "skipped", "the proof claims no performance", mandatory=False)
        for point in points:
            where = "finally" if point.step == evidence.proof.steps else f"after step {point.step:,}"
            if point.found is None:
                return result(self, "inconclusive", "the proof claims a performance, but the task has no evaluation")
            if point.found != point.claimed:
                text = f"{where} the proof claims {_shown(point.claimed)}; evaluated here: {_shown(point.found)}"
                index = -(-point.step // evidence.proof.header.training.interval) - 1
                if not evidence.unreproduced(index):
                    return result(self, "fail", text, step=point.step, claimed=point.claimed, found=point.found)
                if not (evidence.calibrates(index) and _near(point)):
                    status = "fail" if evidence.calibrates(index) else "inconclusive"
                    return result(self, status, text, step=point.step, claimed=point.claimed, found=point.found)  # type: ignore[arg-type]
        last = points[-1]
        others = f", and at {len(points) - 1} checkpoints on the way" if len(points) > 1 else ""
        as_claimed = "as claimed" if all(p.found == p.claimed for p in points) else "as claimed up to rounding"
        return result(
            self, "pass", f"{_shown(last.found or {})}, {as_claimed}{others}", claimed=last.claimed, found=last.found
        )


def chosen(evidence: Evidence) -> list[int]:
    """Segments at whose ends the model is evaluated: the last, and a few that the nonce draws among those with a claim."""
    proof = evidence.proof
    last = len(proof.segments) - 1
    claimed = [s.index for s in proof.segments[:-1] if s.evaluation is not None and proof.has_state(s.state)]
    seed = randomness.derive(challenge_seed(proof.root, evidence.challenge.nonce), "evaluations")
    order = np.argsort(randomness.uniforms(seed, len(claimed)), kind="stable")
    drawn = sorted(claimed[i] for i in order[:CHECKPOINTS])
    return [*drawn, last] if _claims(proof, last) and proof.has_state(proof.segments[last].state) else drawn


def _claims(proof: Proof, index: int) -> list[dict[str, float]]:
    """What is claimed of the state at the end of segment ``index``: by its line, and of the last one by the log's end too."""
    claims = [proof.segments[index].evaluation, proof.end.evaluation if index == len(proof.segments) - 1 else None]
    return [claim for claim in claims if claim is not None]


def performance(evidence: Evidence, answers: Answers) -> list[PerformancePoint]:
    """What the proof claims and what was found, at the evaluated checkpoints."""
    points = []
    for index in chosen(evidence):
        request = Evaluate(index)
        if request in answers and answers.failure(request) is None:
            stop, found = evidence.proof.segments[index].stop, answers.get(request, Evaluated).values
            points += [
                PerformancePoint(step=stop, claimed=claimed, found=found) for claimed in _claims(evidence.proof, index)
            ]
    return points


def _near(point: PerformancePoint) -> bool:
    found = point.found or {}
    return set(found) == set(point.claimed) and all(
        abs(found[name] - value) <= max(ABSOLUTE, RELATIVE * abs(value)) for name, value in point.claimed.items()
    )


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
