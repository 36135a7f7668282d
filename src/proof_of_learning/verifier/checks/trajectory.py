"""Trajectory: the challenged segments, replayed from their recorded starts, arrive at their recorded ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.format import Segment
from proof_of_learning.replay.measure import Comparison, Distance, ratio
from proof_of_learning.replay.requests import AnyCheckAnswer, AnyCheckRequest, Noise, Replay, Replayed
from proof_of_learning.state.names import WEIGHTS
from proof_of_learning.verifier.calibrated import (
    DELTA,
    DELTA_INTERVAL,
    LOOKS,
    NUDGES,
    Measured,
    Tolerance,
    closeness,
    judged_error,
    rejects,
)
from proof_of_learning.verifier.evidence import REJECTED, Answers, Evidence, Plan, result
from proof_of_learning.verifier.strays import Strays
from proof_of_learning.verifier.verdict import CheckResult, SegmentResult, Status

SHORTER_SEGMENTS = 3  # on which shorter intervals are tried where the recorded one is too long
LOSS_TOLERANCE = 0.01  # of the mean recorded loss
SAME_LOSS = 1e-5  # the same, where another environment arrives at the same bits
RATE_TOLERANCE = 1e-9  # in another environment


class TrajectoryCheck:
    name = "trajectory"
    meaning = (
        "Each challenged segment was trained as claimed: replayed here, it gives the recorded state - bit for bit, or "
        "within the verifier's own noise where it allowed that - and the recorded losses."
    )
    limits = "It speaks for the segments that were replayed; for the others, with the stated guarantees."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        replays = [Replay(index, calibrate=evidence.calibrates(index)) for index in evidence.challenge.segments]
        yield replays
        yield [Noise(r.index) for r in replays if r.calibrate and _strays(evidence, answers, r)]
        yield from _closer(evidence, answers)
        yield from _shorter(evidence, Strays(evidence, answers))

    def proves(self, evidence: Evidence, request: AnyCheckRequest, answer: AnyCheckAnswer) -> bool:
        """Whether a segment that has to replay bit for bit does not; what may be noise is judged when all are known."""
        if not isinstance(request, Replay) or request.calibrate:
            return False
        alone = Answers()
        alone.add(request, answer)
        return _judge(evidence, alone, Strays(evidence, alone), request.index, []).status == "fail"

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        strays = Strays(evidence, answers)
        segments = segment_results(evidence, answers, strays)
        failed = [s for s in segments if s.status == "fail"]
        replayed = [s for s in segments if s.status != "skipped"]
        open_ = [s for s in segments if s.status in ("inconclusive", "skipped")]
        details: dict[str, Any] = {
            "replayed": len(replayed),
            "exact": sum(s.exact for s in segments),
            "notes": evidence.challenge.notes,
        }
        if strays.noises:
            details["tolerances"] = {
                f"k = {k}": {
                    "noise": t.noise, "rho": t.rho, "judged_share": t.judged, "short_enough": t.short_enough,
                    "noise_driven": dict(sorted(t.noisy.items(), key=lambda item: -item[1])[:50]), "reasons": t.reasons,
                }
                for k, t in strays.tolerances.items()
            }  # fmt: skip
            details["own_limits"] = {
                str(index): {
                    "noise": t.noise, "rho": t.rho, "judged_share": t.judged, "noise_driven": sorted(t.noisy)[:50],
                    "closer_look": index in strays.nudges,
                }
                for index, t in strays.limits.items()
                if index in strays.nudges or t is not strays.noises[strays.length(index)].common
            }  # fmt: skip
        if failed:
            worst = failed[0]
            return result(
                self, "fail",
                f"{len(failed)} of {_number(replayed, segments)} are not what training gives; "
                f"segment {worst.index} (steps {worst.start}–{worst.stop}): {worst.note}",
                failed=[s.index for s in failed], **details,
            )  # fmt: skip
        if open_:
            lines = sorted({line for s in open_ for line in evidence.unreproduced(s.index)})
            why = open_[0].note
            if lines and not evidence.options.comparison.allow_calibrated:
                why = (
                    f"the recorded numeric environment is not reproduced here ({'; '.join(lines)}); --allow-calibrated judges "
                    "within this machine's own noise"
                )
            return result(
                self, "inconclusive", f"{len(open_)} of {len(segments)} challenged segments could not be judged: {why}",
                open=[s.index for s in open_], unreproduced=lines, **details,
            )  # fmt: skip
        if evidence.survey.unreplayed:
            return result(
                self,
                "inconclusive",
                f"the proof records {evidence.survey.unreplayed}, which is not replayed yet, so that nobody can say "
                "whether it happened",
                **details,
            )
        exact = sum(s.exact for s in segments)
        if exact == len(segments):
            return result(self, "pass", f"all {exact} challenged segments replay bit for bit", **details)
        if evidence.options.comparison.exact:
            return result(
                self, "inconclusive",
                f"{len(segments) - exact} segments agree only within calibrated noise; exact replay was required",
                **details,
            )  # fmt: skip
        rho = max(limits.rho for limits in strays.limits.values())
        return result(
            self, "pass",
            f"{len(segments) - exact} of {len(segments)} challenged segments agree within calibrated noise (rho {rho:.2g}), "
            f"{exact} bit for bit",
            **details,
        )  # fmt: skip


def segment_results(evidence: Evidence, answers: Answers, strays: Strays) -> list[SegmentResult]:
    """One result for each challenged segment."""
    return [_judge(evidence, answers, strays, index, why) for index, why in evidence.challenge.segments.items()]


def _number(replayed: list[SegmentResult], challenged: list[SegmentResult]) -> str:
    if len(replayed) == len(challenged):
        return f"{len(challenged)} challenged segments"
    return f"{len(replayed)} segments that were replayed before it ended (of {len(challenged)} challenged)"


def _strays(evidence: Evidence, answers: Answers, request: Replay) -> bool:
    return answers.failure(request) is None and answers.get(request, Replayed).detail is not None


def _closer(evidence: Evidence, answers: Answers) -> Iterator[list[AnyCheckRequest]]:
    """Closer looks at the worst of the suspects, until one is beyond excuse."""
    for index in Strays(evidence, answers).suspects[:LOOKS]:
        yield [Noise(index, keep=nudge < NUDGES, nudge=nudge) for nudge in range(1, NUDGES + 1)]
        if Strays(evidence, answers).rejected(index):
            return


def _shorter(evidence: Evidence, strays: Strays) -> Iterator[list[AnyCheckRequest]]:
    """Replays of the first k/2, k/4, … steps of a few segments, to say which interval would have been short enough."""
    blunt = [index for index, limits in strays.limits.items() if not limits.sharp]
    few = blunt[:: max(1, len(blunt) // SHORTER_SEGMENTS)][:SHORTER_SEGMENTS]
    steps = evidence.proof.header.training.interval // 2 if blunt else 0
    while steps >= 1:
        fits = [index for index in few if strays.length(index) >= steps]
        yield [Replay(index, steps, calibrate=True) for index in fits]
        yield [Noise(index, steps) for index in fits]
        steps //= 2


def _judge(evidence: Evidence, answers: Answers, strays: Strays, index: int, why: list[str]) -> SegmentResult:
    segment = evidence.proof.segments[index]
    base: dict[str, Any] = {"index": index, "start": segment.start, "stop": segment.stop, "why": why}
    if events := evidence.proof.events_in(index):
        note = f"a {events[0].event.__struct_config__.tag} during step {events[0].step} is recorded, which is not replayed yet"
        return SegmentResult(**base, status="inconclusive", note=note)
    request = Replay(index, calibrate=evidence.calibrates(index))
    failure = answers.failure(request) or answers.failure(Noise(index))
    if failure is not None:
        diverged = failure.error == "DivergedError" and not evidence.unreproduced(index)
        status: Status = "fail" if failure.error in REJECTED or diverged else "inconclusive"
        return SegmentResult(**base, status=status, note=failure.message)
    if request not in answers:
        return SegmentResult(**base, status="skipped", note="not replayed: another segment had proven a forgery")
    answer = answers.get(request, Replayed)
    columns = evidence.proof.columns(index)
    if answer.arrived == segment.arrived and answer.ended != segment.state:
        note = "the replay arrives as recorded, but training went on from another state than the codec makes of it"
        return SegmentResult(**base, status="fail", displacement=answer.displacement, note=note)
    if answer.arrived == segment.arrived:
        untold = _untold(answer, columns, SAME_LOSS if evidence.unreproduced(index) else 0.0)
        return SegmentResult(
            **base,
            status="fail" if untold else "pass",
            exact=True,
            error=Distance(),
            relative=Distance(),
            displacement=answer.displacement,
            note=untold,
        )
    reproduced = not evidence.unreproduced(index)
    comparison, span = answer.comparison, answer.displacement
    error = comparison.overall if comparison else None
    relative = error.over(span) if error and span else None
    d_ref, weights = evidence.survey.d_ref, comparison.kinds.get(WEIGHTS) if comparison else None
    normalised = weights.over(d_ref) if weights and d_ref else None
    found, limits = strays.errors.get(index), strays.limits.get(index)
    status, note = "fail" if reproduced else "inconclusive", _note(comparison, relative)
    if not reproduced and found is not None and limits is not None:
        status, note = _within(found, limits, answer, columns, segment, d_ref)
        if index in strays.passed_over:
            status, note = (
                "inconclusive",
                f"{note}; a closer look was taken at {LOOKS} worse ones, which noise alone explains",
            )
    return SegmentResult(
        **base,
        status=status,
        error=error,
        normalised=normalised,
        relative=relative,
        displacement=span,
        kinds=comparison.kinds if comparison else {},
        limit_share=closeness(found, limits) if found is not None and limits is not None else None,
        note=note,
    )


def _within(
    found: Measured,
    limits: Tolerance,
    answer: Replayed,
    columns: Columns,
    segment: Segment,
    d_ref: Distance | None,
) -> tuple[Status, str]:
    """The status of a segment that is compared within calibrated noise, and why."""
    if why := rejects(found, limits):
        return "fail", why
    if not limits.sharp:
        advice = f"; an interval of {limits.short_enough} would be short enough" if limits.short_enough else ""
        return (
            "inconclusive",
            f"{segment.stop - segment.start} steps are too long for a sharp answer: {limits.reasons[0]}{advice}",
        )
    # Tensors that noise alone drives are held to ten times their own noise, above, and no more than that.
    share = 0.0 if d_ref is None else ratio(judged_error(found, limits, WEIGHTS), d_ref.l2)
    if segment.stop - segment.start <= DELTA_INTERVAL and not share <= DELTA:
        return "fail", f"the weights' error is {share:.3g} of d_ref, more than {DELTA}"
    if untold := _untold(answer, columns, LOSS_TOLERANCE):
        return "fail", untold
    return "pass", ""


def _untold(answer: Replayed, columns: Columns, tolerance: float) -> str:
    """What the proof says of the steps that the replay does not; nothing if it agrees.

    tolerance: of the mean recorded loss; 0 for bits. A loss is a sum that nothing follows from, so its last digits may differ between
    environments although the states do not.
    """
    rates = np.array(answer.rates, dtype=np.float64).reshape(len(columns), -1)
    near = RATE_TOLERANCE if tolerance else 0.0
    if rates.shape != columns.rates.shape or not np.allclose(rates, columns.rates, rtol=near, atol=0.0):
        return "the recorded learning rates are not those of the replay"
    scale = max(float(np.abs(columns.loss).mean()), 1e-3)
    if not float(np.abs(np.array(answer.losses) - columns.loss).max()) <= tolerance * scale:
        return "the recorded losses are not those of the replay"
    return ""


def _note(comparison: Comparison | None, relative: Distance | None) -> str:
    if comparison is None:
        return "the replay arrives elsewhere"
    share = f"{relative.l2:.3g} of its displacement" if relative and math.isfinite(relative.l2) else "not measurable"
    unequal = f"; unequal: {', '.join(comparison.unequal[:3])}" if comparison.unequal else ""
    return f"the replay arrives elsewhere: the error is {share}{unequal}"
