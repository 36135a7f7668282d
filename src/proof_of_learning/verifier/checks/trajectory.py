"""Trajectory: the challenged segments, replayed from their recorded starts, arrive at their recorded ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.format import Segment
from proof_of_learning.replay.measure import WEIGHTS, Comparison, Distance, ratio
from proof_of_learning.replay.protocol import AnyRequest, Noise, Replay, Replayed
from proof_of_learning.verifier.calibrated import (
    DELTA,
    DELTA_INTERVAL,
    LOOKS,
    NUDGES,
    Measured,
    Tolerance,
    closeness,
    doubtful,
    excusable,
    judged_error,
    rejects,
    representative,
    tolerance,
)
from proof_of_learning.verifier.evidence import REJECTED, Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult, SegmentResult, Status

SHORTER_SEGMENTS = 3  # on which shorter intervals are tried where the recorded one is too long
LOSS_TOLERANCE = 0.01  # of the mean recorded loss


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
        strays = [request.index for request in replays if request.calibrate and _strays(evidence, answers, request)]
        yield [Noise(index) for index in strays]
        yield from _closer(evidence, answers)
        if not all(limits.sharp for limits in segment_limits(evidence, answers).values()):
            yield from _shorter(evidence, strays)

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        segments = segment_results(evidence, answers)
        failed = [s for s in segments if s.status == "fail"]
        open_ = [s for s in segments if s.status == "inconclusive"]
        limits, own = tolerances(evidence, answers), segment_limits(evidence, answers)
        details: dict[str, Any] = {
            "replayed": len(segments),
            "exact": sum(s.exact for s in segments),
            "notes": evidence.challenge.notes,
        }
        if limits:
            details["tolerances"] = {
                f"k = {k}": {
                    "noise": t.noise, "rho": t.rho, "judged_share": t.judged, "short_enough": t.short_enough,
                    "noise_driven": dict(sorted(t.noisy.items(), key=lambda item: -item[1])[:50]), "reasons": t.reasons,
                }
                for k, t in limits.items()
            }  # fmt: skip
            details["closer_looks"] = {
                str(index): {"noise": t.noise, "rho": t.rho, "noise_driven": sorted(t.noisy)[:50]}
                for index, t in own.items() if _nudges(answers, index)
            }  # fmt: skip
        if failed:
            worst = failed[0]
            return result(
                self, "fail",
                f"{len(failed)} of {len(segments)} challenged segments are not what training gives; "
                f"segment {worst.index} (steps {worst.start}–{worst.stop}): {worst.note}",
                failed=[s.index for s in failed], **details,
            )  # fmt: skip
        if open_:
            lines = sorted({line for s in open_ for line in evidence.unreproduced(s.index)})
            why = open_[0].note
            if lines and not evidence.options.allow_calibrated:
                why = f"the recorded numeric environment is not reproduced here ({'; '.join(lines)})"
            return result(
                self, "inconclusive", f"{len(open_)} of {len(segments)} challenged segments could not be judged: {why}",
                open=[s.index for s in open_], unreproduced=lines, **details,
            )  # fmt: skip
        exact = sum(s.exact for s in segments)
        if exact == len(segments):
            return result(self, "pass", f"all {exact} challenged segments replay bit for bit", **details)
        if evidence.options.require_exact:
            return result(
                self, "inconclusive",
                f"{len(segments) - exact} segments agree only within calibrated noise; exact replay was required",
                **details,
            )  # fmt: skip
        rho = max(t.rho for t in own.values())
        return result(
            self, "pass",
            f"{len(segments) - exact} of {len(segments)} challenged segments agree within calibrated noise (rho {rho:.2g}), "
            f"{exact} bit for bit",
            **details,
        )  # fmt: skip


def segment_results(evidence: Evidence, answers: Answers) -> list[SegmentResult]:
    """One result for each challenged segment."""
    limits = segment_limits(evidence, answers)
    return [_judge(evidence, answers, limits, index, why) for index, why in evidence.challenge.segments.items()]


def tolerances(evidence: Evidence, answers: Answers) -> dict[int, Tolerance]:
    """Calibrated limits by segment length, from the noise that was measured on the challenged segments of that length."""
    noises, enough = _noises(evidence, answers)
    return {k: tolerance(representative(found), enough) for k, found in noises.items()}


def segment_limits(evidence: Evidence, answers: Answers) -> dict[int, Tolerance]:
    """The limits of each challenged segment: those of its length, or its own after a closer look."""
    noises, enough = _noises(evidence, answers)
    base = {k: representative(found) for k, found in noises.items()}
    limits = {k: tolerance(found, enough) for k, found in base.items()}
    found = {}
    for index, (error, own) in strayed(evidence, answers).items():
        segment = evidence.proof.segments[index]
        length = segment.stop - segment.start
        found[index] = limits[length]
        if nudges := _nudges(answers, index):
            closer = tolerance([*base[length], own, *nudges], enough)
            if closer.sharp or rejects(error, found[index]):  # else there was nothing to excuse
                found[index] = closer
    return found


def _noises(evidence: Evidence, answers: Answers) -> tuple[dict[int, list[Measured]], int | None]:
    """The verifier's own noise by length of segment, and the longest shorter interval that allowed an answer."""
    noises: dict[int, list[Measured]] = {}
    shorter: dict[int, list[Measured]] = {}
    for request in answers.requests(Noise):
        if request.index in evidence.challenge.segments and request.nudge is None:
            segment = evidence.proof.segments[request.index]
            length = request.steps or segment.stop - segment.start
            for found in _given(answers, [request]):
                (noises if request.steps is None else shorter).setdefault(length, []).append(found)
    return noises, max((k for k, found in shorter.items() if tolerance(found).sharp), default=None)


def _nudges(answers: Answers, index: int) -> list[Measured]:
    """The noise of one segment that a closer look brought out."""
    return _given(answers, [r for r in answers.requests(Noise) if r.index == index and r.nudge is not None])


def _given(answers: Answers, requests: Sequence[Noise]) -> list[Measured]:
    told = (measured(answers.get(request, Replayed)) for request in requests if answers.failure(request) is None)
    return [found for found in told if found is not None]


def measured(answer: Replayed) -> Measured | None:
    """The parts of an answer that calibrated comparison works with; None if it was not asked for."""
    if answer.comparison is None or answer.detail is None or answer.displacement is None:
        return None
    return Measured(answer.comparison, answer.detail, answer.displacement)


def strayed(evidence: Evidence, answers: Answers) -> dict[int, tuple[Measured, Measured]]:
    """For the challenged segments that did not replay bit for bit: error against the recorded end, and own noise."""
    found = {}
    for index in evidence.challenge.segments:
        error, noise = Replay(index, calibrate=True), Noise(index)
        if all(r in answers and answers.failure(r) is None for r in (error, noise)):
            pair = measured(answers.get(error, Replayed)), measured(answers.get(noise, Replayed))
            if pair[0] is not None and pair[1] is not None:
                found[index] = (pair[0], pair[1])
    return found


def _strays(evidence: Evidence, answers: Answers, request: Replay) -> bool:
    return answers.failure(request) is None and answers.get(request, Replayed).detail is not None


def _closer(evidence: Evidence, answers: Answers) -> Iterator[list[AnyRequest]]:
    """Closer looks at the segments whose error is near a limit, the worst first, until one is beyond excuse."""
    limits = tolerances(evidence, answers)
    errors = {index: error for index, (error, _) in strayed(evidence, answers).items()}
    lengths = {index: evidence.proof.segments[index].stop - evidence.proof.segments[index].start for index in errors}
    if not all(excusable(error) for error in errors.values()):
        return
    suspects = [index for index, error in errors.items() if doubtful(error, limits[lengths[index]])]
    suspects.sort(key=lambda index: -closeness(errors[index], limits[lengths[index]]))
    for index in suspects[:LOOKS]:
        yield [Noise(index, keep=nudge < NUDGES, nudge=nudge) for nudge in range(1, NUDGES + 1)]
        if rejects(errors[index], segment_limits(evidence, answers)[index]):
            return


def _shorter(evidence: Evidence, strays: list[int]) -> Iterator[list[AnyRequest]]:
    """Replays of the first k/2, k/4, … steps of a few segments, to say which interval would have been short enough."""
    few = strays[:: max(1, len(strays) // SHORTER_SEGMENTS)][:SHORTER_SEGMENTS]
    steps = evidence.proof.header.training.interval // 2
    while steps >= 1:
        fits = [i for i in few if evidence.proof.segments[i].stop - evidence.proof.segments[i].start >= steps]
        yield [Replay(index, steps, calibrate=True) for index in fits]
        yield [Noise(index, steps) for index in fits]
        steps //= 2


def _judge(
    evidence: Evidence, answers: Answers, limits: dict[int, Tolerance], index: int, why: list[str]
) -> SegmentResult:
    segment = evidence.proof.segments[index]
    base: dict[str, Any] = {"index": index, "start": segment.start, "stop": segment.stop, "why": why}
    request = Replay(index, calibrate=evidence.calibrates(index))
    failure = answers.failure(request) or answers.failure(Noise(index))
    if failure is not None:
        diverged = failure.error == "DivergedError" and not evidence.unreproduced(index)
        status: Status = "fail" if failure.error in REJECTED or diverged else "inconclusive"
        return SegmentResult(**base, status=status, note=failure.message)
    if request not in answers:
        return SegmentResult(**base, status="inconclusive", note="not replayed")
    answer = answers.get(request, Replayed)
    columns = evidence.proof.columns(index)
    if answer.arrived == segment.arrived and answer.ended != segment.state:
        note = "the replay arrives as recorded, but training went on from another state than the codec makes of it"
        return SegmentResult(**base, status="fail", displacement=answer.displacement, note=note)
    if answer.arrived == segment.arrived:
        told = answer.losses == columns.loss.tolist() and answer.rates == columns.rates.tolist()
        return SegmentResult(
            **base,
            status="pass" if told else "fail",
            exact=True,
            error=Distance(),
            relative=Distance(),
            displacement=answer.displacement,
            note="" if told else "the recorded losses or learning rates are not those of the replay",
        )
    reproduced = not evidence.unreproduced(index)
    comparison, span = answer.comparison, answer.displacement
    error = comparison.overall if comparison else None
    relative = error.over(span) if error and span else None
    d_ref, strays = evidence.survey.d_ref, comparison.kinds.get(WEIGHTS) if comparison else None
    normalised = strays.over(d_ref) if strays and d_ref else None
    found, tolerance_ = measured(answer), limits.get(index)
    status, note = "fail" if reproduced else "inconclusive", _note(comparison, relative)
    if not reproduced and found is not None and tolerance_ is not None:
        status, note = _within(found, tolerance_, answer, columns, segment, d_ref)
    return SegmentResult(
        **base,
        status=status,
        error=error,
        normalised=normalised,
        relative=relative,
        displacement=span,
        kinds=comparison.kinds if comparison else {},
        limit_share=closeness(found, tolerance_) if found is not None and tolerance_ is not None else None,
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
    rates = np.array(answer.rates, dtype=np.float64).reshape(len(columns), -1)
    if rates.shape != columns.rates.shape or not np.allclose(rates, columns.rates, rtol=1e-9, atol=0.0):
        return "fail", "the recorded learning rates are not those of the replay"
    scale = max(float(np.abs(columns.loss).mean()), 1e-3)
    if not float(np.abs(np.array(answer.losses) - columns.loss).max()) <= LOSS_TOLERANCE * scale:
        return "fail", "the recorded losses are not those of the replay"
    return "pass", ""


def _note(comparison: Comparison | None, relative: Distance | None) -> str:
    if comparison is None:
        return "the replay arrives elsewhere"
    share = f"{relative.l2:.3g} of its displacement" if relative and math.isfinite(relative.l2) else "not measurable"
    unequal = f"; unequal: {', '.join(comparison.unequal[:3])}" if comparison.unequal else ""
    return f"the replay arrives elsewhere: the error is {share}{unequal}"
