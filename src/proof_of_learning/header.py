"""What a header says of the program that trains and of the parts of its state."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_ARGUMENTS, MAX_TEXT
from proof_of_learning.proof.format import PartKind, Plain, Program, program_digest
from proof_of_learning.task import Task
from proof_of_learning.training.parts import adapter_of

_EXACT = 2**53  # integers below it have one spelling everywhere


def program_of(task: Task) -> Program:
    """The program that a task was loaded from, with its settings; no folder of this machine is in it."""
    if task.program is not None:
        return Program(sealed=program_digest(canonical.encode(task.program)))
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
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return repr(value) if isinstance(value, int) and abs(value) >= _EXACT else value


def _is_path(word: str) -> bool:
    return os.sep in word and "://" not in word and (os.path.isabs(word) or os.path.exists(word))
