"""The task: what is trained and how, in four rooms.

A task is defined (``definition``: a frozen description made of factories), loaded by reference (``loading``:
``path.py:function`` or ``module:function``, so that a replay worker can build it again), described (``description``: the
canonical description whose digest is its identity), and its own code runs guarded (``guard``).
"""

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
from proof_of_learning.task.description import Description, compare, describe, describe_parts, resumable
from proof_of_learning.task.guard import task_code
from proof_of_learning.task.loading import load_task

__all__ = [
    "DEFAULT_SEGMENTS", "SEALED", "Description", "Setting", "Task", "TaskReference", "compare", "default_interval", "describe",
    "describe_parts", "is_script", "load_task", "resumable", "sealed_program", "task_code",
]  # fmt: skip
