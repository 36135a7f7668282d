"""The challenged segments that did not replay bit for bit: their errors, the verifier's own noise, and the limits that follow."""

from __future__ import annotations

from functools import cached_property

from proof_of_learning.replay.requests import Noise, Replay, Replayed
from proof_of_learning.verifier.calibrated import (
    LOOKS,
    Measured,
    Noises,
    Tolerance,
    closeness,
    doubtful,
    excusable,
    rejects,
    tolerance,
)
from proof_of_learning.verifier.evidence import Answers, Evidence


class Strays:
    """Errors, noise and limits by index of the segment, as far as the worker has answered.

    errors: against the recorded end; own: of the verifier's own replays in two environments; nudges: what a closer look brought out;
    noises: the noise of all challenged segments by their length.
    """

    def __init__(self, evidence: Evidence, answers: Answers) -> None:
        self._evidence = evidence
        self.errors: dict[int, Measured] = {}
        self.own: dict[int, Measured] = {}
        self.nudges: dict[int, list[Measured]] = {}
        shorter: dict[int, list[Measured]] = {}
        for request in answers.requests(Noise):
            index, answer = request.index, answers.failure(request)
            found = None if answer is not None else Measured.of(answers.get(request, Replayed))
            if found is None or index not in evidence.challenge.segments:
                continue
            if request.steps is not None:
                shorter.setdefault(request.steps, []).append(found)
            elif request.nudge is not None:
                self.nudges.setdefault(index, []).append(found)
            else:
                error = Measured.of(answers.get(Replay(index, calibrate=True), Replayed))
                assert error is not None  # noise is asked for where there is one
                self.errors[index], self.own[index] = error, found
        enough = max((k for k, found in shorter.items() if tolerance(found).sharp), default=None)
        lengths = {self.length(index) for index in self.own}
        self.noises = {
            k: Noises.of({index: own for index, own in self.own.items() if self.length(index) == k}, enough)
            for k in sorted(lengths)
        }

    def length(self, index: int) -> int:
        """The number of steps of a segment."""
        segment = self._evidence.proof.segments[index]
        return segment.stop - segment.start

    @property
    def tolerances(self) -> dict[int, Tolerance]:
        """The limits of ordinary segments by length."""
        return {k: noises.common for k, noises in self.noises.items()}

    @cached_property
    def limits(self) -> dict[int, Tolerance]:
        """The limits of each segment: those of its length, or its own where its noise is not like that of the others.

        What a closer look brings out counts where it allows an answer, or keeps from a wrong one.
        """
        limits = dict(self._unexamined)
        for index, nudges in self.nudges.items():
            closer = self.noises[self.length(index)].limits(index, nudges)
            if closer.sharp or rejects(self.errors[index], limits[index]):  # else there was nothing to excuse
                limits[index] = closer
        return limits

    @cached_property
    def suspects(self) -> list[int]:
        """Where a closer look may change the answer, the worst first; none where some segment is beyond excuse as it stands."""
        limits = self._unexamined
        if not all(excusable(error, limits[index]) for index, error in self.errors.items()):
            return []
        suspects = [index for index, error in self.errors.items() if doubtful(error, limits[index])]
        return sorted(suspects, key=lambda index: -closeness(self.errors[index], limits[index]))

    def rejected(self, index: int) -> bool:
        return rejects(self.errors[index], self.limits[index]) is not None

    @cached_property
    def passed_over(self) -> set[int]:
        """Rejected without a closer look, after those that were looked at, all of them worse, were excused: no safe answer."""
        if any(index not in self.nudges or self.rejected(index) for index in self.suspects[:LOOKS]):
            return set()
        return {index for index in self.suspects[LOOKS:] if self.rejected(index)}

    @cached_property
    def _unexamined(self) -> dict[int, Tolerance]:
        return {index: self.noises[self.length(index)].limits(index) for index in self.errors}
