"""A script's recorded loop: which batches its steps took, walk by walk, and what of it no sampler of the script's own would do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.proof.blocks import Share
from proof_of_learning.proof.reader import Proof
from proof_of_learning.recording.header import without_folders
from proof_of_learning.replay.protocol import Described
from proof_of_learning.run import events
from proof_of_learning.run.events import AFTER, BATCH, BEFORE, BESIDE, OVER
from proof_of_learning.task import SEALED, Task, TaskReference, is_script

MOST_NAMED = 8  # settings
_NONE = np.empty(0, np.int64)
MAX_TURNS = 8  # ways in which walks follow each other, each of which is replayed once


@dataclass(frozen=True)
class Batch:
    """``fresh``: the first of a walk. ``samples``: how many; ``indices``: which, where that is recorded. Of several processes, all
    that they take at that place of their walks.
    """

    step: int
    fresh: bool
    position: int
    samples: int
    indices: npt.NDArray[np.int64]


@dataclass
class Loop:
    """What was seen of a loop, once :meth:`batches` has run through.

    beside: batches that other loaders gave. moved: steps in which generators are put somewhere amid a step.
    turns: of each way in which one walk follows another (how far the epoch goes on, how long the walk was …) the first segment that
        holds it: a script that goes another way there would have made another number of steps.
    odd: why the walks are none that a script's loop makes.
    """

    proof: Proof
    counted: bool
    beside: int = 0
    moved: int = 0
    walks: int = 0
    turns: dict[tuple[object, ...], int] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)

    def batches(self) -> Iterator[Batch]:
        """Every batch of the clock, in order. Raises FormatError where the column is malformed or missing."""
        place, position, before = (0, -2, -1), 0, 0
        for segment, columns in zip(self.proof.segments, self.proof.all_columns(), strict=True):
            if columns.loop is None:
                raise FormatError(
                    f"the block of segment {segment.index} does not say what happened in the script's steps"
                )
            recorded = columns.indices or [_NONE] * len(columns.loop)
            for offset, (row, indices) in enumerate(zip(columns.loop, recorded, strict=True)):
                step, taken = segment.start + offset, 0
                further = [self._further(share, offset, row, step) for share in columns.ranks]
                for event in events.decode(row):
                    self.beside += event.code in (BESIDE, OVER)
                    self.moved += event.code in (BEFORE, AFTER)
                    if event.code != BATCH:
                        continue
                    fresh = event.place != place
                    if fresh and place[1] != -2:
                        self._turn(place, event.place, position + 1, before)
                    expected = 0 if fresh else position + 1
                    if (fresh and not _later(place, event.place)) or event.position != expected:
                        self._strange(
                            f"step {step:,} takes batch {event.position:,} of a walk where {expected:,} would be next"
                        )
                    if self.counted and event.samples:
                        self._strange(f"step {step:,} names samples, but the script draws its own")
                    place, position, before = event.place, event.position, segment.index
                    self.walks += fresh
                    chosen = indices[taken : taken + event.samples]
                    taken += event.samples
                    if further:
                        chosen = np.concatenate([chosen, *(next(batches, _NONE) for batches in further)])
                    samples = len(chosen) if further else event.samples
                    yield Batch(step, fresh, event.position, samples, chosen)
                if columns.indices is not None and taken != len(indices):
                    self._strange(f"step {step:,} names samples that no batch takes")

    def _further(self, share: Share, offset: int, row: events.Words, step: int) -> Iterator[npt.NDArray[np.int64]]:
        """The samples of each batch that a further process took in a step."""
        assert share.loop is not None and share.indices is not None
        its, taken, found = share.loop[offset], 0, []
        if events.course(its) != events.course(row):
            self._strange(f"in step {step:,} a process takes other batches of its loader than process 0")
        for event in events.decode(its):
            self.beside += event.code in (BESIDE, OVER)
            self.moved += event.code in (BEFORE, AFTER)
            if event.code == BATCH:
                found.append(share.indices[offset][taken : taken + event.samples])
                taken += event.samples
        if taken != len(share.indices[offset]):
            self._strange(f"step {step:,} names samples that no batch takes")
        return iter(found)

    def _turn(self, before: tuple[int, int, int], after: tuple[int, int, int], batches: int, segment: int) -> None:
        same = before[0] == after[0]
        epochs: object = after[1] - before[1] if same and before[1] != -1 else (before, after)
        if before[1] == after[1] == -1 and same:
            epochs = 0
        if len(self.turns) <= MAX_TURNS:
            self.turns.setdefault(
                (epochs, before[2] if epochs != 0 or before[1] != -1 else 0, after[2] - before[2], batches), segment
            )

    def _strange(self, why: str) -> None:
        if len(self.odd) < 5:
            self.odd.append(why)


def turning(proof: Proof) -> list[int]:
    """The segments that show, once each, the ways in which walks follow each other."""
    loop = Loop(proof, counted=False)
    for _ in loop.batches():
        pass
    return list(loop.turns.values())


def other_arguments(proof: Proof, described: Described) -> str:
    """What the verifier called a script with, where it is not what the proof says; nothing where it is."""
    if not described.script:
        return ""
    own = [without_folders(argument) for argument in described.arguments]
    recorded = proof.header.program.arguments
    if own == recorded:
        return ""
    return f"you named other arguments ({' '.join(own) or 'none'}) than the proof was recorded with ({' '.join(recorded) or 'none'})"


def other_inputs(proof: Proof, described: Described) -> str:
    """The first file that the recorded script read before its first step and the verifier's does not; nothing where there is none."""
    if not described.script:
        return ""
    own = {item.digest: item for item in described.inputs}
    missing = next((item for item in proof.header.inputs if item.digest not in own), None)
    if missing is None:
        return ""
    here = next((item for item in described.inputs if item.name == missing.name), None)
    if here is None:
        return f"the proof was recorded with a file {missing.name} ({missing.digest[:19]}…) that the script does not read here"
    return f"you have another file {missing.name} ({here.digest[:19]}…) than the proof was recorded with ({missing.digest[:19]}…)"


def otherwise_called(proof: Proof, described: Described) -> str:
    """What the verifier ran the script with, where it is not what the proof says: arguments, or files that it reads."""
    return other_arguments(proof, described) or other_inputs(proof, described)


def other_settings(proof: Proof, task: Task | TaskReference | None) -> str:
    """Settings that the proof says the task had and the verifier did not give it; nothing where there are none, or no names."""
    if not isinstance(task, TaskReference):
        return ""
    named = task.settings
    if task.target == SEALED or proof.header.program.kind != "task":
        return ""
    other = [
        f"{name}={value}"
        for name, value in proof.header.program.settings.items()
        if str(value) not in (str(named.get(name)), without_folders(str(named.get(name))))
    ]
    if not other:
        return ""
    return f"you named other settings than the proof was recorded with (--set {' --set '.join(other[:MOST_NAMED])})"


def refuse_other_kind(proof: Proof, task: Task | TaskReference | None) -> None:
    """Raises UsageError where the verifier named a script for the proof of a task, or a task for that of a script."""
    if task is None or (isinstance(task, TaskReference) and task.target == SEALED):
        return
    script = isinstance(task, TaskReference) and is_script(task.target)
    if script == (proof.header.program.kind == "script"):
        return
    named = f"{os.path.basename(task.target)} is " if isinstance(task, TaskReference) else "you named "
    if script:
        raise UsageError(
            f"the proof is of a task, and {named}a script; name the task that was agreed, path.py:function"
        )
    raise UsageError(f"the proof is of a script, and {named}a task; name the script that was agreed, path.py")


def refuse_other_settings(proof: Proof, task: Task | TaskReference | None, described: Described) -> None:
    """Raises UsageError where the task is another one than the proof's, or as long as another, and has other settings. (Some, a
    folder's name, may well differ.)
    """
    claim, training = proof.header.task, proof.header.training
    own = described.digest, described.steps, described.steps_per_epoch
    other = other_settings(proof, task) if own != (claim.digest, training.planned, training.steps_per_epoch) else ""
    if other:
        raise UsageError(f"{other}, which make another task of it")


def _later(before: tuple[int, int, int], after: tuple[int, int, int]) -> bool:
    """Whether a walk can come after another: phases, and within one of them epochs, and within these walks only grow.

    The walks of a phase outside of its epochs (-1) come behind them.
    """

    def order(place: tuple[int, int, int]) -> tuple[int, int, int, int]:
        phase, epoch, walk = place
        return phase, int(epoch == -1), epoch, walk

    return order(before) < order(after) or before[1] == -2
