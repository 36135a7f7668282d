"""A script as a program: how it is run, and what it is made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from proof_of_learning import sources
from proof_of_learning.errors import TaskError, UsageError
from proof_of_learning.run.inputs import Reads
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.task import task_code

if TYPE_CHECKING:
    from proof_of_learning.run.clock import Clock

OR_TASK = " (a task is named with its function, FILE.py:FUNCTION)"


def execute(path: str | os.PathLike[str], arguments: Iterable[str] = ()) -> None:
    """Run a script as ``python PATH ARGUMENTS`` would: as ``__main__``, with its folder first on the search path."""
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError(f"there is no script {os.fspath(path)!r}")
    try:
        code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file.name} is no Python script: {error}") from error
    module = ModuleType("__main__")
    module.__file__ = str(file)
    module.__dict__["__builtins__"] = __builtins__
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(file.parent))
    sys.modules["__main__"] = module
    ACTIVE.reads = Reads()
    ACTIVE.reads.watch()
    exec(code, module.__dict__)


def watched(
    path: str | os.PathLike[str], arguments: Iterable[str], start: Callable[[Given], Clock], lost: str = ""
) -> None:
    """Run a script whose ``Run`` is turned on by ``start``, and off again behind it.

    lost: what is said besides, where the script ends itself with a status. Raises TaskError for that, and for what the script raises.
    """
    ACTIVE.start = start
    try:
        with task_code(f"running {os.path.basename(path)}"):
            try:
                execute(path, arguments)
            except SystemExit as error:
                if error.code not in (None, 0):
                    raise TaskError(f"the script ended itself with status {error.code}{lost}") from error
    finally:
        ACTIVE.start = None


def of_script() -> dict[str, str]:
    """Digests of the script that runs, and of the local modules that it imports."""
    return sources.of_modules((), sys.modules["__main__"])


def name_of(path: str | os.PathLike[str]) -> str:
    return Path(path).stem
