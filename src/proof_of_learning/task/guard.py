"""The task's own code runs in here: whatever it raises is told in one line, with its place."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proof_of_learning.errors import PolError, TaskError


@contextmanager
def task_code(doing: str) -> Iterator[None]:
    """Run the task's own code; whatever it raises becomes a TaskError of one line that names the place."""
    try:
        yield
    except (PolError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit included: a task must not end the verifier
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "proof_of_learning" not in Path(f.filename).parts and "importlib" not in f.filename]
        where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
        text = " ".join(str(error).split())[:500]
        raise TaskError(f"the task failed while {doing}: {type(error).__name__}: {text}{where}") from error
