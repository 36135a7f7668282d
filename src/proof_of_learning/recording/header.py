"""The header of a run, and what it says of the program that trains and of the parts of its state."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.data.commit import Dataset, commit
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.errors import RecordingWarning, TaskError, UsageError
from proof_of_learning.limits import MAX_ARGUMENTS, MAX_TEXT
from proof_of_learning.proof import codecs, format, parse
from proof_of_learning.proof.format import (
    CodecClaim,
    Header,
    Initialization,
    PartKind,
    Plain,
    Program,
    Randomness,
    TaskClaim,
    Training,
)
from proof_of_learning.state.parts import adapter_of, stray_parameters
from proof_of_learning.task import Task, default_interval
from proof_of_learning.training.steps import Session

COARSE = 10  # steps between states below which `quantised` was seen to harm training (docs/evidence/few-bits.md)
_EXACT = 2**53  # integers below it have one spelling everywhere


def make_header(
    task: Task,
    session: Session,
    data: Dataset,
    *,
    interval: int | None = None,
    mode: str = "derived",
    data_commitment: DataCommitment | None = None,
    start_root: str | None = None,
    codec: str = codecs.DEFAULT,
) -> Header:
    """The header of a run of ``task`` whose fresh ``session`` was built from the task's seed.

    ``start_root``: root of the proof whose final weights the run starts from. ``codec``: how states are stored.
    """
    samples = len(data)
    steps = task.total_steps(samples)
    interval = default_interval(steps) if interval is None else interval
    if interval < 1:
        raise UsageError(f"the interval must be at least 1 step, not {interval}")
    if codec not in codecs.NAMES:
        raise UsageError(f"there is no codec {codec[:40]!r}; choose one of {', '.join(codecs.NAMES)}")
    stored = codecs.get_codec(codec)
    if codec == "quantised" and interval < COARSE:
        warnings.warn(
            f"with the codec quantised and {interval} step{'s' * (interval > 1)} between states, what moves by less than half a step "
            "is dropped so often that training suffers; `compact` keeps it in the mean, in fewer bytes",
            RecordingWarning,
            stacklevel=2,
        )
    session.rates()  # there is one for every group
    for name, number in stray_parameters(session.parts).items():
        raise TaskError(
            f"parameter {number} of {name!r} belongs neither to the model nor to a further part, so no state would hold it; "
            "make its module part of the model, or name it in the task's `parts`"
        )
    description = session.describe()
    header = Header(
        format=format.FORMAT,
        task=TaskClaim(description.digest(), task.name, description.content, description.sources),
        data=commit(data) if data_commitment is None else data_commitment,
        training=Training(steps, interval, task.steps_per_epoch(samples)),
        randomness=Randomness(mode, session.key.hex(), seed=str(task.seed)),  # type: ignore[arg-type]
        initialization=(
            Initialization("derived" if mode == "derived" else "recorded")
            if start_root is None
            else Initialization("linked", start_root)
        ),
        codec=CodecClaim(stored.name, stored.version, in_loop=not stored.exact),
        program=program_of(task),
        parts=kinds_of(session.parts),
        arithmetic=session.arithmetic,
    )
    parse.check(header)
    return header


def program_of(task: Task) -> Program:
    """The program that a task was loaded from, with its settings; no folder of this machine is in it."""
    if task.program is not None:
        return Program(sealed=format.program_digest(canonical.encode(task.program)))
    if task.reference is None:
        return Program()
    place, _, function = task.reference.target.rpartition(":")
    settings = {name: _told(value) for name, value in sorted(task.reference.settings.items())}
    if len(settings) > MAX_ARGUMENTS or any(len(v) > MAX_TEXT for v in settings.values() if isinstance(v, str)):
        raise UsageError(f"a task takes at most {MAX_ARGUMENTS} settings, of at most {MAX_TEXT} characters each")
    return Program(reference=f"{os.path.basename(place)}:{function}", settings=settings)


def script_program(path: str, arguments: Sequence[str]) -> Program:
    """A script with the arguments that it was called with, less their folders."""
    told = [without_folders(argument) for argument in arguments]
    if len(told) > MAX_ARGUMENTS or any(len(argument) > MAX_TEXT for argument in told):
        raise UsageError(f"a script takes at most {MAX_ARGUMENTS} arguments, of at most {MAX_TEXT} characters each")
    return Program(kind="script", reference=os.path.basename(path), arguments=told)


def without_folders(text: str) -> str:
    """``text`` with each path of this machine in it (absolute, or of something that is there) cut to its last component.

    So that equal runs in other places say the same: ``--data=/home/me/digits`` becomes ``--data=…/digits``.
    """
    words = re.split(r"([=,;:\s]+)", text) if "://" not in text else [text]
    return "".join(f"…/{os.path.basename(word.rstrip('/'))}" if _is_path(word) else word for word in words)


def kinds_of(parts: Mapping[str, Any]) -> dict[str, PartKind]:
    """The kind of adapter that each part of a state needs."""
    return {name: adapter_of(part).kind for name, part in sorted(parts.items())}


def _told(value: Plain) -> Plain:
    if isinstance(value, str):
        return without_folders(value)
    # From 2^53 to 10^21 a float is spelled as an integer is, and nobody could tell it from its neighbours.
    if isinstance(value, float) and (not math.isfinite(value) or _EXACT <= abs(value) < 1e21):
        return repr(value)
    return repr(value) if isinstance(value, int) and abs(value) >= _EXACT else value


def _is_path(word: str) -> bool:
    return os.sep in word and "://" not in word and (os.path.isabs(word) or os.path.exists(word))
