"""Workers that start before the verifier has loaded torch: for what its first lines say, a proof is opened soon enough.

Nothing is told to them before the proof was opened and attested; if another environment or sandbox is wanted then, they are ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from proof_of_learning import limits
from proof_of_learning.errors import PolError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.portable import PORTABLE
from proof_of_learning.proof import files, format, parse
from proof_of_learning.proof.format import EnvironmentLine, Segment
from proof_of_learning.proof.reader import read_log
from proof_of_learning.replay.process import WorkerProcess
from proof_of_learning.replay.sandbox import Sandbox, isolation
from proof_of_learning.task import SEALED, TaskReference

MAX_THREADS = max(64, 4 * (os.cpu_count() or 1))  # are set at most
MOST = 16  # workers that are started before their number was looked at
LOOKING, TAKING = "looking", "taking"  # the roles of workers, see pool.WorkerPool
Name = tuple[str, int]  # role and place


class Started(Protocol):
    """Processes that were started before it was known whether they are needed."""

    def take(
        self, name: Name, environment: Environment, sandbox: Sandbox | None, timeout: float
    ) -> WorkerProcess | None: ...
    def ended(self) -> None: ...


class Early:
    """The started processes of one environment; ``take`` hands each out once."""

    def __init__(self, environment: Environment, sandbox: Sandbox | None, timeout: float, workers: int) -> None:
        self._made_for = environment, sandbox, timeout
        self._waiting: dict[Name, WorkerProcess] = {}
        try:
            for role, places in ((LOOKING, 1), (TAKING, workers)):
                for place in range(places):
                    self._waiting[role, place] = WorkerProcess(
                        environment, timeout, sandbox, name=f"worker {place + 1}"
                    )
        except BaseException:
            self.close()
            raise

    def take(
        self, name: Name, environment: Environment, sandbox: Sandbox | None, timeout: float
    ) -> WorkerProcess | None:
        """The process of that name, if it was started in that environment and sandbox."""
        return self._waiting.pop(name, None) if (environment, sandbox, timeout) == self._made_for else None

    def ended(self) -> None:
        """Nothing is begun for another verification."""

    def close(self) -> None:
        """End those that nobody took."""
        while self._waiting:
            self._waiting.popitem()[1].close()


def as_recorded(environment: Environment) -> Environment:
    """The environment to start a worker with for a recorded one: a proof may not ask for any number of threads."""
    counts = {name: getattr(environment, name) for name in ("threads", "interop_threads")}
    return msgspec.structs.replace(environment, **{n: c if c <= MAX_THREADS else 1 for n, c in counts.items()})


@contextmanager
def ahead(
    path: str, task: TaskReference | None, sandbox: str, allow_read: Iterable[Path], timeout: float, workers: int
) -> Iterator[Early | None]:
    """Start the workers of the run's first environment; gives them, for a pool to take, or None where that has to wait.

    What is wrong with the proof or an option is left to who looks at it next.
    """
    early = None
    if task is not None and task.target != SEALED and workers <= MOST:
        try:
            environment = _first(Path(path))
            if environment is not None:
                confined = isolation(sandbox, allow_read).sandbox
                early = Early(environment, None if confined is None else confined.serving(task), timeout, workers)
        except (PolError, OSError, ValueError):
            early = None
    try:
        yield early
    finally:
        if early is not None:
            early.close()


def _first(folder: Path) -> Environment | None:
    """The first recorded environment, if it is one that workers are started with as it stands."""
    path = folder / format.HEADER_FILE
    if not path.is_file():
        return None
    raw = bytes(files.read_bounded(path, limits.MAX_HEADER))
    header = parse.parse_header(raw)
    if header.arithmetic == PORTABLE:
        return None
    found: dict[str, Environment] = {}
    for line, _ in read_log(folder, header, format.header_digest(raw, header.version)):
        if isinstance(line, EnvironmentLine):
            found[line.digest] = line.environment
        elif isinstance(line, Segment):
            return as_recorded(found[line.environment])
    return None
