"""Trajectory: the challenged segments, replayed from their recorded starts, arrive at their recorded ends."""

from __future__ import annotations

import math
from typing import Any

from proof_of_learning.proof.format import Segment
from proof_of_learning.replay.measure import Distance
from proof_of_learning.replay.protocol import AnyRequest, Replay, Replayed
from proof_of_learning.verifier.evidence import Answers, Evidence, result
from proof_of_learning.verifier.verdict import CheckResult, SegmentResult

_REJECTED = ("FormatError", "IntegrityError")


class TrajectoryCheck:
    name = "trajectory"
    meaning = (
        "Each challenged segment was trained as claimed: replayed here, it gives the recorded state bit for bit, "
        "and the recorded losses."
    )
    limits = "It speaks for the segments that were replayed; for the others, with the stated guarantees."

    def plan(self, evidence: Evidence) -> list[AnyRequest]:
        held = evidence.proof.state_digests()
        return [Replay(index) for index in evidence.challenge.segments if evidence.proof.has_state(held[index])]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        segments = segment_results(evidence, answers)
        failed = [s for s in segments if s.status == "fail"]
        open_ = [s for s in segments if s.status == "inconclusive"]
        details: dict[str, Any] = {
            "replayed": len(segments),
            "exact": sum(s.exact for s in segments),
            "notes": evidence.challenge.notes,
        }
        if failed:
            worst = failed[0]
            return result(
                self, "fail",
                f"{len(failed)} of {len(segments)} challenged segments are not what training gives; "
                f"segment {worst.index} (steps {worst.start}–{worst.stop}): {worst.note}",
                failed=[s.index for s in failed], **details,
            )  # fmt: skip
        if open_:
            lines = sorted(
                {line for s in open_ for line in evidence.differences.get(_environment(evidence, s.index), [])}
            )
            why = (
                f"the recorded numeric environment is not reproduced here ({'; '.join(lines)})"
                if lines
                else open_[0].note
            )
            return result(
                self, "inconclusive", f"{len(open_)} of {len(segments)} challenged segments could not be judged: {why}",
                open=[s.index for s in open_], unreproduced=lines, **details,
            )  # fmt: skip
        return result(self, "pass", f"all {len(segments)} challenged segments replay bit for bit", **details)


def segment_results(evidence: Evidence, answers: Answers) -> list[SegmentResult]:
    """One result for each challenged segment."""
    return [_judge(evidence, answers, index, why) for index, why in evidence.challenge.segments.items()]


def _judge(evidence: Evidence, answers: Answers, index: int, why: list[str]) -> SegmentResult:
    segment = evidence.proof.segments[index]
    base = {"index": index, "start": segment.start, "stop": segment.stop, "why": why}
    request = Replay(index)
    failure = answers.failure(request)
    if failure is not None:
        status = "fail" if failure.error in _REJECTED else "inconclusive"
        return SegmentResult(**base, status=status, note=failure.message)  # type: ignore[arg-type]
    if request not in answers:
        return SegmentResult(**base, status="inconclusive", note="not replayed: its start is not in the proof")  # type: ignore[arg-type]
    answer = answers.get(request, Replayed)
    span = answer.displacement
    columns = evidence.proof.columns(index)
    told = answer.losses == columns.loss.tolist() and answer.rates == columns.rates.tolist()
    if answer.arrived == segment.arrived:
        return SegmentResult(
            **base,  # type: ignore[arg-type]
            status="pass" if told else "fail",
            exact=True,
            error=Distance(),
            relative=Distance(),
            displacement=span,
            note="" if told else "the recorded losses or learning rates are not those of the replay",
        )
    reproduced = not evidence.differences.get(segment.environment)
    comparison = answer.comparison
    measured = comparison is not None
    error = comparison.overall if comparison else None
    relative = error.over(span) if error and span else None
    share = f"{relative.l2:.3g} of its displacement" if relative and math.isfinite(relative.l2) else "not measurable"
    unequal = f"; unequal: {', '.join(comparison.unequal[:3])}" if comparison and comparison.unequal else ""
    note = (
        f"the replay arrives elsewhere: the error is {share}{unequal}" if measured else "the replay arrives elsewhere"
    )
    return SegmentResult(
        **base,  # type: ignore[arg-type]
        status="fail" if reproduced else "inconclusive",
        error=error,
        relative=relative,
        displacement=span,
        kinds=comparison.kinds if comparison else {},
        note=note,
    )


def _environment(evidence: Evidence, index: int) -> str:
    segment: Segment = evidence.proof.segments[index]
    return segment.environment
