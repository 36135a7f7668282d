"""What ``pol doctor SCRIPT`` does: the script trains for a while, and stretches of it are replayed in two fresh processes.

Nothing is kept of the recording. Where one stretch does not replay, the others are looked at all the same.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from proof_of_learning.errors import PolError, TaskError, WorkerError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.format import Header
from proof_of_learning.rehearsal import holdings
from proof_of_learning.rehearsal.beside import Pace
from proof_of_learning.rehearsal.causes import Finding
from proof_of_learning.rehearsal.hops import Hop, examine, investigate
from proof_of_learning.run import ranks, script
from proof_of_learning.run.facts import Facts
from proof_of_learning.run.mode import Given
from proof_of_learning.run.record import Recording
from proof_of_learning.run.rehearsing import ScriptRehearsal, explained

STEPS = 200  # are taken at most where nobody says how many
SECONDS = 20.0  # of training, likewise
HASH_SEEDS = (1, 2)
INTERVAL = 5  # where nobody says: stretches are short, for what they differ in is near


@dataclass
class Looked:
    """``findings``, after ``steps`` here and ``replays`` elsewhere; ``skipped``: what could not be looked at; ``notices``:
    what is no fault, and seldom meant."""

    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    steps: int = 0
    replays: int = 0

    def add(self, found: Finding) -> None:
        if all((found.cause or found.what) != (f.cause or f.what) for f in self.findings):
            self.findings.append(found)


class _EnoughError(BaseException):
    """The script has trained for long enough, or cannot be recorded."""


def look(
    path: str,
    arguments: Sequence[str] = (),
    *,
    interval: int | None = None,
    steps: int | None = None,
    progress: ProgressCallback = silent,
) -> Looked:
    """Run the script for a while, with what it writes, and replay stretches of it. UsageError or TaskError where it does not run."""
    found, made, folder, whole = Looked(), list[_Trying](), os.getcwd(), False
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):

        def start(given: Given) -> _Trying:
            out = os.path.join(scratch, str(len(made)))
            made.append(_Trying(given, out, list(arguments), interval, folder, steps, found, progress))
            return made[-1]

        try:
            script.watched(path, arguments, start)
            whole = True
        except TaskError as error:
            if ranks.alone(error):
                raise TaskError(
                    f"{error}; pol doctor looks at scripts of one process: one of several is replayed while "
                    "`pol prove --ranks N` records it"
                ) from error
            if not isinstance(error.__cause__, _EnoughError):
                raise
        finally:
            for recording in made:
                recording.abandon()
    if ranks.grouped():
        found.notices.append(
            "the script trained as a group of one process; of several, `pol prove --ranks N` replays stretches while it records"
        )
    if not made:
        raise TaskError(
            f"{os.path.basename(path)} holds no pol.Run that watches its loop, so there is nothing to look at{script.OR_TASK}"
        )
    if whole:  # it is ended at close()
        found.add(
            Finding(
                "the script ended without run.close()", f"after {made[0].steps:,} steps", "", "call it behind the loop"
            )
        )
    return found


class _Kept(ScriptRehearsal):
    """Keeps stretches, and replays them when it is told to."""

    def __init__(self, *given: Any, found: Looked, progress: ProgressCallback) -> None:
        super().__init__(*given)
        self._pace = Pace(hops=6, rounds=5)
        self._found, self._progress = found, progress
        self._kept: list[Hop] = []

    def _launch(self) -> None:
        """Processes are started when there is something to replay."""

    def _submit(self) -> None:
        self._recent = self._look()
        self._kept += self._hops
        self._hops, self._collecting = [], False
        self._rounds += 1

    def _stop(self, finding: Finding) -> None:
        self._found.add(finding)
        raise _EnoughError

    def replay(self) -> None:
        """All that was kept, in both processes."""
        self._submit()  # what was under way
        if not self._kept:
            self._found.skipped.append("replays: no stretch was finished; take more steps")
            return
        changes, known = holdings.changed(self._held, self._look()), set[bool]()
        for number, seed in enumerate(HASH_SEEDS):
            player, other = self._process(seed), functools.partial(self._process, HASH_SEEDS[1 - number])
            try:
                for at, hop in enumerate(self._kept):
                    self._progress(f"replaying in process {number + 1}", at, len(self._kept))
                    self._found.replays += 1
                    difference = examine(player, hop)
                    # What is held beside the state is named at once; another way that the loop takes may have a cause of its own.
                    if difference is None or bool(difference.refused) in known:
                        continue
                    known.add(bool(difference.refused))
                    root = self._header.data.root
                    evidence = investigate(player, hop, difference, root, other)
                    for finding in explained(evidence, changes):
                        self._found.add(finding)
            except WorkerError as error:
                self._found.skipped.append(f"replays in a process with hash seed {seed}: {error}")
            except PolError as error:
                self._found.add(
                    Finding("the script cannot be run in a fresh process", str(error), "", "a verifier has to run it")
                )
            finally:
                player.close()


class _Trying(Recording):
    """A recording that nobody keeps, which ends the script after a while."""

    def __init__(
        self, given: Given, out: str, arguments: list[str], interval: int | None, folder: str, steps: int | None, found: Looked,
        progress: ProgressCallback,
    ) -> None:  # fmt: skip
        self._found, self._progress, self._most = found, progress, steps
        self._kept: _Kept | None = None
        self._started = time.monotonic()
        self.ended = False
        super().__init__(given, out, arguments, interval or given.interval or INTERVAL, True, folder)

    def _rehearsal(self, header: Header, found: Facts, environment: Environment) -> ScriptRehearsal | None:
        self._kept = _Kept(
            self._job(header),
            environment,
            header,
            found.parts,
            self._folder,
            found=self._found,
            progress=self._progress,
        )
        return self._kept

    def _guard(self, work: Callable[[], object], *, trained: bool = False) -> None:
        """What cannot be recorded is a finding, and ends the script."""
        try:
            work()
        except PolError as error:
            self.failed = str(error)
            what, _, cure = self.failed.partition("; ")
            self._found.add(Finding(what, f"after {self.steps:,} steps" if self.steps else "", "", cure))
            raise _EnoughError from None

    def _notice(self, told: str) -> None:
        self._found.notices.append(told)

    def _finish(self) -> None:
        super()._finish()
        self._found.steps = self.steps
        self._progress("training", self.steps, self._most or STEPS)
        late = self._most is None and time.monotonic() - self._started > SECONDS
        if (late or self.steps >= (self._most or STEPS)) and self.steps % self.interval == 0:
            self._replay()
            raise _EnoughError

    def close(self) -> None:
        self.active = None
        if not self.ended:
            self._guard(self._seal)
            self._replay()
        raise _EnoughError

    def _replay(self) -> None:
        assert self._kept is not None
        self.ended = True
        self._kept.replay()
