"""``pol prove SCRIPT``: run a script with its ``Run`` turned on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof_of_learning.errors import RecordingError, TaskError, UsageError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof import files
from proof_of_learning.proof.format import Header
from proof_of_learning.recording.header import script_program
from proof_of_learning.recording.stamping import Stamped, Stamping
from proof_of_learning.registration import refuse_other
from proof_of_learning.replay import fork
from proof_of_learning.run import ranks, script, shadow
from proof_of_learning.run.clock import Walk
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.run.origin import Origin
from proof_of_learning.run.record import SECOND, Recording, refuse_used, say, unfinished
from proof_of_learning.run.resuming import interrupted
from proof_of_learning.run.seeds import map_through
from proof_of_learning.task import task_code


@dataclass(frozen=True)
class Recorded:
    """A finished recording of a script."""

    path: Path
    root: str
    steps: int
    interval: int
    stamped: Stamped | None = None


def prove_script(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    arguments: Sequence[str] = (),
    *,
    interval: int | None = None,
    rehearse: bool | None = None,
    seed: int | None = None,
    registration: str | os.PathLike[str] | None = None,
    stamping: Stamping | None = None,
) -> Recorded:
    """Run the script at ``path`` as ``python PATH ARGUMENTS`` would, and record the run that its ``pol.Run`` watches into ``out``;
    with ``seed`` or ``registration``, go on where an interrupted call stopped.

    rehearse: whether stretches are replayed beside the training (default: unless POL_REHEARSAL is 0); nothing is sealed where they
        differ.
    seed, registration: what the script's randomness follows from, a number or a claim (default: it is recorded). Seeds that the
        script sets are mapped through it, so numbers are others than those of the script by itself.
    stamping: how the log's head is stamped while the script trains (default: as the script's run says).

    Raises PolError subclasses: what the script raises, and what could not be recorded, once the script has ended.
    """
    keyed, resuming = seed is not None or registration is not None, interrupted(Path(out))
    refuse_used(Path(out), keyed)
    if not ranks.place().rank:
        files.require_writable(Path(out))
    made: list[Recording] = []
    folder, origin = os.getcwd(), Origin.of(seed, registration, resuming)
    if origin is not None and origin.claim is not None:
        program = script_program(str(path), list(arguments))
        typed = {"name": script.name_of(path), "arguments": program.arguments}
        refuse_other(origin.claim, typed if interval is None else {**typed, "interval": interval})
        interval = origin.claim.claim.interval

    def start(given: Given) -> Recording:
        if made:
            say(SECOND)
            raise UsageError("the script makes a second pol.Run; one can be recorded, so give all parts to it")
        made.append(
            Recording(
                given, out, list(arguments), interval, rehearse, folder, origin, stamping or given.stamping, asked=True
            )
        )
        return made[-1]

    if origin is not None:
        ACTIVE.seeds = map_through(origin.key())
        what = "the claim" if origin.claim is not None else f"seed {origin.seed}"
        say(
            f"all randomness follows from {what}: order, splits and losses are others than without it, their distribution is the same"
        )
    try:
        script.watched(path, arguments, start, "; nothing was sealed")
    except TaskError as error:
        if ranks.alone(error):
            raise TaskError(f"{error}; start a script of several processes with --ranks N, or by torchrun") from error
        if ranks.place().size > 1 and ranks.lost(str(error)):
            raise RecordingError(
                "the script lost another of its processes, which ended or did not answer; nothing was sealed"
            ) from error
        raise
    finally:
        for recording in made:
            recording.abandon()
    if not made:
        raise TaskError(
            f"{os.path.basename(path)} holds no pol.Run that watches its loop, so there is nothing to record{script.OR_TASK}"
        )
    recording = made[0]
    if recording.failed:
        raise RecordingError(recording.failed)
    if not recording.root:
        raise RecordingError(unfinished(recording))
    return Recorded(Path(out), recording.root, recording.steps, recording.interval, recording.stamped)


class _Claimed(BaseException):
    """The script came to its first batch."""


class _Claiming(Recording):
    """Finds out what a script claims, and ends it there."""

    found: tuple[Header, Environment] | None = None

    def clocked(self, walk: Walk) -> Any:
        header, _, environment = self.described(walk)
        self.found = header, environment
        raise _Claimed

    beside = clocked


def claimed(
    path: str | os.PathLike[str], arguments: Sequence[str] = (), *, interval: int | None = None
) -> tuple[Header, Environment]:
    """What a claim of a script's run fixes. The script runs up to its first batch, twice: in a child under another key, too.

    Raises UsageError where its data follow from its key, and PolError subclasses for what cannot be recorded.
    """
    data = _in_child(lambda: _claimed(path, arguments, interval, Origin(1))[0].data.root)
    header, environment = _claimed(path, arguments, interval, Origin(0))
    if data != header.data.root:
        raise UsageError(
            "the data that the script trains on follow from its seeds (a random split, say), and a claim fixes them before its key is "
            "known; split by position, or hand the whole set over: pol.Run(data=whole, …)"
        )
    return header, environment


def _claimed(
    path: str | os.PathLike[str], arguments: Sequence[str], interval: int | None, origin: Origin
) -> tuple[Header, Environment]:
    made: list[_Claiming] = []

    def start(given: Given) -> _Claiming:
        made.append(_Claiming(given, os.devnull, list(arguments), interval, False, origin=origin))
        return made[-1]

    ACTIVE.seeds, ACTIVE.start = map_through(origin.key()), start
    try:
        with task_code(f"running {os.path.basename(path)}"):
            script.execute(path, arguments)
    except TaskError as error:
        if ranks.alone(error):
            raise TaskError(f"{error}; a script of several processes cannot be registered yet") from error
        if not isinstance(error.__cause__, _Claimed):
            raise
    finally:
        ACTIVE.start = None
    if not made or made[0].found is None:
        raise TaskError(made[0].failed if made and made[0].failed else "the script ended before it took a step")
    return made[0].found


def _in_child(work: Callable[[], str]) -> str:
    """What ``work`` gives in a child, which prints nothing and writes to a scratch folder; nothing where it fails."""
    ours, theirs = os.pipe()
    fork.settle()
    parent = os.getpid()
    if (child := os.fork()) == 0:
        fork.die_with(parent)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            shadow.install()
            os.write(theirs, work().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return found.decode()
