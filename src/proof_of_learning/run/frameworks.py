"""What an adapter that drives a run from inside a framework's loop has to know, beside what a script uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proof_of_learning.run.clock import Batches, Run
from proof_of_learning.run.loaders import Source
from proof_of_learning.run.mode import Given


def run_of(parts: Mapping[str, Any], **options: Any) -> Run:
    """A run whose ``parts`` may be filled in until its first batch is asked for. ``options``: as those of ``Run``."""
    run = Run.__new__(Run)
    run._turn_on(Given(**options, parts=parts))
    return run


def watches(run: Run) -> bool:
    """Whether the run records or replays; if not, a loop is to be left alone."""
    return run._clock is not None


def replays(run: Run) -> bool:
    """Whether it replays. Checkpoints need not be written then."""
    return run._clock is not None and run._clock.replays


def batches(run: Run, source: Source) -> Batches:
    """``run.batches`` for a loader that a framework reads in its own way."""
    assert run._clock is not None
    run._clock.adapted = True
    return Batches(run._clock, source)


def begins(run: Run) -> tuple[int, int] | None:
    """Epoch, and batches that its walk is past, where a replay goes on from a recorded state.

    None while recording, and where a replay takes single steps from states, wherever in the loop: it must not end then.
    """
    return None if run._clock is None else run._clock.begins()
