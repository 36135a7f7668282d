"""Whether a loop of the user's own has the settings and the schedule of the task that describes it, asked before and at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from proof_of_learning.errors import TaskError
from proof_of_learning.state.state import decode_settings, live_settings
from proof_of_learning.task import compare
from proof_of_learning.training.steps import Session

_ENDING = "(a verifier replays what the task says; rehearse=False records all the same)"


def check_settings(session: Session, parts: Mapping[str, Any]) -> None:
    """TaskError where the loop's parts are not set up as the task's, in a fresh ``session``, are."""
    told, found = (live_settings(each) for each in (session.parts, parts))
    if told != found:
        lines = [
            line.replace("the proof has", "the loop has") for line in compare(*map(decode_settings, (told, found)))
        ]
        raise TaskError(
            f"the loop does not begin as its task says: {'; '.join(lines[:3])}. Build its optimizer, scheduler and scaler with the "
            f"task's own factories and change no setting of theirs, or correct the task {_ENDING}"
        )


class Following:
    """The task's schedule, moved along with a loop, from ``step`` on. ``steps``: of the run; ``per_epoch``: of an epoch."""

    def __init__(self, session: Session, step: int, steps: int, per_epoch: int) -> None:
        self._session = session
        self._expected: Iterator[list[float]] = islice(session.idle(steps, per_epoch), step, None)
        self._schedule, self._per_epoch = session.task.schedule, per_epoch

    @classmethod
    def of(cls, session: Session, step: int, steps: int, per_epoch: int) -> Following | None:
        """None where training itself may set rates: a custom step, a metric."""
        follows = session.task.step is None and not session.metric
        return cls(session, step, steps, per_epoch) if follows else None

    def check(self, step: int, rates: list[float]) -> None:
        """TaskError where the loop has other rates before a step, each in turn, or at its end, than the task's schedule gives."""
        told = next(self._expected, None) or self._session.rates()
        if told != rates:
            when = "after every step" if self._schedule == "step" else f"once every {self._per_epoch} steps"
            raise TaskError(
                f"before step {step} the loop has the learning rate {_shown(rates)}, its task's schedule gives {_shown(told)}. Step "
                f"the scheduler {when}, also after a restart, or let the task say what the loop does {_ENDING}"
            )


def _shown(rates: list[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates[:4])
