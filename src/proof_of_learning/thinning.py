"""Thinning: digests without bytes. Most states of a proof are dropped; whoever needs one regenerates it by training.

Root and seals stay. A thinned proof is verified by its prover's help (:func:`regenerate` brings challenged states back, at the
prover's cost) or without it, by replaying from the nearest state that was kept, at the verifier's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.errors import IntegrityError, NumericEnvironmentError, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.rewrite import rewrite
from proof_of_learning.replay.process import DEFAULT_TIMEOUT
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.task import Setting, Task, TaskReference


@dataclass(frozen=True)
class Thinned:
    """What a proof holds after it was thinned or regenerated: states ``held`` of how many, bytes of states before and after."""

    path: Path
    root: str
    held: int
    states: int
    bytes_before: int
    bytes_after: int
    steps_replayed: int = 0


def thin(
    path: str | os.PathLike[str],
    keep_every: int,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: ProgressCallback = silent,
) -> Thinned:
    """Keep the first and the last state and every ``keep_every``-th between; drop the bytes of the others.

    out: a new directory for the thinned proof; by default the proof itself is replaced, in one move.
    Raises UsageError, FormatError or IntegrityError. UsageError also where the proof itself would be replaced by a larger one: states
    that are kept are whole, and may take more room than all the differences.
    """
    if keep_every < 1:
        raise UsageError(f"every how many states one is kept must be at least 1, not {keep_every}")
    proof = Proof.open(path)
    last = len(proof.segments)
    kept = [position for position in range(last + 1) if position % keep_every == 0 or position == last]
    to = None if out is None else Path(out)
    at_most = _size(proof) if to is None else None
    done = rewrite(proof, kept, to, at_most=at_most, progress=lambda done, total: progress("thinning", done, total))
    return _report(proof, done)


def regenerate(
    path: str | os.PathLike[str],
    task: Task | TaskReference | str,
    segments: Iterable[int],
    out: str | os.PathLike[str] | None = None,
    *,
    settings: Mapping[str, Setting] | None = None,
    start_from: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    progress: ProgressCallback = silent,
) -> Thinned:
    """Bring the states at both ends of ``segments`` back, by training from the nearest kept ones in the recorded environment.

    They must match the digests that were sealed. ``out`` as for :func:`thin`; ``start_from`` as for ``prove``.
    Raises NumericEnvironmentError where that environment cannot be had here, IntegrityError where training gives something else.
    """
    proof = Proof.open(path)
    wanted = sorted(set(segments))
    if not wanted or not 0 <= wanted[0] <= wanted[-1] < len(proof.segments):
        raise UsageError(f"name segments from 0 to {len(proof.segments) - 1} to regenerate")
    if isinstance(task, str):
        task = TaskReference(task, dict(settings or {}))
    digests, added, steps = proof.state_digests(), dict[int, State](), 0
    with Replayer(proof, task, timeout, None if start_from is None else Path(start_from), None, True) as replayer:
        for done, index in enumerate(wanted):
            progress("regenerating", done, len(wanted))
            missing = [position for position in (index, index + 1) if not proof.has_state(digests[position])]
            missing = [position for position in missing if position not in added]
            if not missing:
                continue
            unlike = replayer.differences(proof.segments[index].environment)
            if unlike:
                raise NumericEnvironmentError(
                    f"the recorded numeric environment cannot be had here ({unlike[0]}); regenerate where it was recorded"
                )
            before, ended, taken = replayer.regenerate(index)
            steps += taken
            for position, state in ((index, before), (index + 1, ended)):
                if position not in missing:
                    continue
                added[position] = state
                if state.digest() != digests[position]:
                    raise IntegrityError(f"training gives another state after segment {position - 1} than was sealed")
        progress("regenerating", len(wanted), len(wanted))
    to = None if out is None else Path(out)
    held = [position for position, digest in enumerate(digests) if proof.has_state(digest)]
    return _report(proof, rewrite(proof, held, to, added=added), steps)


def _report(before: Proof, path: Path, steps: int = 0) -> Thinned:
    after = Proof.open(path)
    states = len(after.segments) + 1
    return Thinned(path, after.root, len(after.index), states, _size(before), _size(after), steps)


def _size(proof: Proof) -> int:
    return sum(stored.bytes for stored in proof.index.values())
