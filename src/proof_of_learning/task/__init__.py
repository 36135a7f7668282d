"""The task: what is trained and how, in four rooms.

A task is defined (``definition``: a frozen description made of factories), loaded by reference (``loading``:
``path.py:function`` or ``module:function``, so that a replay worker can build it again), described (``description``: the
canonical description whose digest is its identity), and its own code runs guarded (``guard``).

What a task's own objects are needed for is imported on first use: who only names a task needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from proof_of_learning.task.definition import (
    DEFAULT_SEGMENTS,
    SEALED,
    Setting,
    Task,
    TaskReference,
    default_interval,
    is_script,
    sealed_program,
)
from proof_of_learning.task.guard import task_code

if TYPE_CHECKING:
    from proof_of_learning.task.description import Description, compare, describe, describe_parts, resumable
    from proof_of_learning.task.loading import load_task

_HOMES = {
    **dict.fromkeys(("Description", "compare", "describe", "describe_parts", "resumable"), "description"),
    "load_task": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "DEFAULT_SEGMENTS", "SEALED", "Description", "Setting", "Task", "TaskReference", "compare", "default_interval", "describe",
    "describe_parts", "is_script", "load_task", "resumable", "sealed_program", "task_code",
]  # fmt: skip
