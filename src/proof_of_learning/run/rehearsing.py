"""The rehearsal of a script's run: stretches of its loop are replayed by the script itself in a fresh process while it goes on.

The last segment is kept until ``close()``, and replayed then: a verifier always replays it, and what ends the loop is seen nowhere
else.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from proof_of_learning.errors import TaskError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.format import Header
from proof_of_learning.rehearsal import frames, holdings
from proof_of_learning.rehearsal.beside import TIMEOUT, Pace, Rehearsal
from proof_of_learning.rehearsal.causes import SCRIPT, Finding, explain
from proof_of_learning.rehearsal.hops import Evidence, Hop, Player, ProcessPlayer
from proof_of_learning.replay.pool import Job
from proof_of_learning.state.state import capture
from proof_of_learning.training.batches import Indices

_NOTES = ("_has_rebuilt_buckets", "_lazy_init_ran")
_VARIABLE = re.compile(r"variable '(\w+)'")


class ScriptRehearsal(Rehearsal):
    """Watches the recording of a script. ``folder``: where the script was started."""

    def __init__(
        self, job: Job, environment: Environment, header: Header, parts: Mapping[str, Any], folder: str
    ) -> None:
        super().__init__(job, environment, header, parts, pace=Pace())
        self._folder = folder
        self._names: dict[
            types.CodeType, frozenset[str]
        ] = {}  # the variables that count, by the function that has them
        self._recent: dict[str, holdings.Held] = {}
        self._segment: Hop | None = None  # under way
        self._complete: Hop | None = None  # the last one that ended

    def begin(self, step: int) -> None:
        self._taken = step
        super().begin(step)
        before = capture(self._parts)
        self._segment = Hop(step, before) if 2 * before.nbytes <= self._pace.room else None

    def after(
        self,
        step: int,
        loss: Tensor,
        indices: Indices | None = None,
        rng: RngSnapshot | None = None,
        loop: Indices | None = None,
    ) -> None:
        if self._segment is not None:
            self._segment.add(loss, indices, rng, loop)
        self._taken = step + 1
        super().after(step, loss, indices, rng, loop)

    def checkpoint(self, segment: Hop) -> None:
        super().checkpoint(segment)
        step, state = segment.stop, segment.after
        if self._segment is not None and state is not None:
            spare = None if self._complete is None else self._complete.before
            self._complete = self._segment
            self._complete.stop, self._complete.after = step, state.settled(spare)
            self._segment = Hop(step, self._complete.after)

    def finish(self) -> None:
        """The script called ``close()``."""
        self._hop = None  # it has no end
        if self._hops and self._hops[-1].stop == self._taken:
            self._hops[-1].closed = True
            self._complete = None
        super().finish()
        if self._complete is not None:
            self._complete.closed = True
            if self._player is None:
                self._launch()
            self._collecting, self._hops = True, [self._complete]
            super().finish()

    def _submit(self) -> None:
        self._recent = self._look()
        for hop in self._hops[:-1]:
            hop.closed = False
        super()._submit()

    def _process(self, hash_seed: int) -> Player:
        return ProcessPlayer(self._job, self._environment, hash_seed, TIMEOUT, self._folder)

    def _look(self) -> dict[str, holdings.Held]:
        """Also the variables that the loop reads before it writes them; those of functions that were left, as they were last seen."""
        roots = []
        for frame in frames.callers():
            code = frame.f_code
            if code not in self._names:
                self._names[code] = frames.live(code, frame.f_lasti)
            for name, found in frames.values(frame, sorted(self._names[code])).items():
                place = f"{name}()" if isinstance(found, types.FunctionType) else f"variable {name!r}"
                roots.append((f"{code.co_qualname}/{name}", place, found))
        return {**self._recent, **holdings.look_at(self._parts, roots)}

    def _named(self, evidence: Evidence) -> Finding:
        changes = holdings.changed(self._held, self._look())
        if evidence.difference.refused:  # a way that is taken is decided by a number more often than by a tensor
            changes.sort(key=lambda change: change.kind != "value")
        return explained(evidence, changes)[0]

    def _stop(self, finding: Finding) -> None:
        raise TaskError(
            f"{finding.line()} (no proof of it would be valid, so none is sealed; --no-rehearsal records all the same)"
        )


class RanksRehearsal(ScriptRehearsal):
    """Of several processes: what all hold is known at checkpoints alone, so the first segment is replayed, and the last one."""

    def begin(self, step: int) -> None:
        self._first = self._taken = step
        self._held = self._look()
        self._whole: Hop | None = None  # the last segment that ended
        self._launch()

    def before(self, step: int) -> None:
        """Nothing: no process knows what the others hold."""

    def after(
        self,
        step: int,
        loss: Tensor,
        indices: Indices | None = None,
        rng: RngSnapshot | None = None,
        loop: Indices | None = None,
    ) -> None:
        self._taken = step + 1
        self.check()

    def checkpoint(self, segment: Hop) -> None:
        assert segment.after is not None
        if 3 * segment.after.nbytes > self._pace.room:
            return
        last = self._whole
        before = copy.deepcopy(segment.before) if last is None or last.after is None else last.after
        self._whole = replace(segment, before=before, after=segment.after.settled())
        if last is None:
            self._hops = [self._whole]
            self._submit()

    def _look(self) -> dict[str, holdings.Held]:
        """Without what DistributedDataParallel notes of itself, which is made anew."""
        return {place: held for place, held in super()._look().items() if not place.endswith(_NOTES)}

    def finish(self) -> None:
        self._settle()
        if self._whole is not None:
            self._launch()
            self._hops = [replace(self._whole, closed=True)]
            self._submit()
            self._settle()


def explained(evidence: Evidence, changes: list[holdings.Change]) -> list[Finding]:
    """What a difference may come from, with cures that call things as the script does."""
    found = []
    for finding in explain(evidence, changes, cures=SCRIPT):
        name = _VARIABLE.search(finding.cause)
        found.append(replace(finding, cure=finding.cure.replace("NAME", name[1] if name else "name")))
    return found
