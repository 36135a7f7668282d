"""``pol prove SCRIPT``: run a script with its ``Run`` turned on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.errors import RecordingError, TaskError, UsageError
from proof_of_learning.run import script
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.run.origin import Origin
from proof_of_learning.run.record import SECOND, Recording, refuse_used, say, unfinished
from proof_of_learning.run.seeds import map_through
from proof_of_learning.task import task_code


@dataclass(frozen=True)
class Recorded:
    """A finished recording of a script."""

    path: Path
    root: str
    steps: int
    interval: int


def prove_script(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    arguments: Sequence[str] = (),
    *,
    interval: int | None = None,
    rehearse: bool | None = None,
    seed: int | None = None,
    registration: str | os.PathLike[str] | None = None,
) -> Recorded:
    """Run the script at ``path`` as ``python PATH ARGUMENTS`` would, and record the run that its ``pol.Run`` watches into ``out``.

    rehearse: whether stretches are replayed beside the training (default: unless POL_REHEARSAL is 0); nothing is sealed where they
        differ.
    seed, registration: what the script's randomness follows from, a number or a claim (default: it is recorded). Seeds that the
        script sets are mapped through it, so numbers are others than those of the script by itself.

    Raises PolError subclasses: what the script raises, and what could not be recorded, once the script has ended.
    """
    refuse_used(Path(out))
    made: list[Recording] = []
    folder, origin = os.getcwd(), Origin.of(seed, registration)
    if origin is not None and origin.claim is not None and interval is None:
        interval = origin.claim.claim.interval

    def start(given: Given) -> Recording:
        if made:
            say(SECOND)
            raise UsageError("the script makes a second pol.Run; one can be recorded, so give all parts to it")
        made.append(Recording(given, out, list(arguments), interval, rehearse, folder, origin))
        return made[-1]

    if origin is not None:
        ACTIVE.seeds = map_through(origin.key())
        what = "the claim" if origin.claim is not None else f"seed {origin.seed}"
        say(f"all randomness follows from {what}: order, splits and losses are others than without it, their distribution is the same")
    ACTIVE.start = start
    try:
        with task_code(f"running {os.path.basename(path)}"):
            try:
                script.execute(path, arguments)
            except SystemExit as error:
                if error.code not in (None, 0):
                    raise TaskError(f"the script ended itself with status {error.code}; nothing was sealed") from error
    finally:
        ACTIVE.start = None
        for recording in made:
            recording.abandon()
    if not made:
        raise TaskError(
            f"{os.path.basename(path)} holds no pol.Run that watches its loop, so there is nothing to record"
        )
    recording = made[0]
    if recording.failed:
        raise RecordingError(recording.failed)
    if not recording.root:
        raise RecordingError(unfinished(recording))
    return Recorded(Path(out), recording.root, recording.steps, recording.interval)
