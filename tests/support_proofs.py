"""What the tests of stored proofs share: tiny recordings in this process, and a proof's files as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proof_of_learning as pol
import tasks
from proof_of_learning.prover import Recording

INTERVAL, SEGMENTS = 2, 12  # of the tiny task's 24 steps


def recorded(path: Path | str, *, seed: int = 0, settings: dict[str, Any] | None = None, **options: Any) -> Recording:
    """The tiny task, recorded in this process."""
    return pol.prove(tasks.task(**(settings or {})), path, interval=INTERVAL, seed=seed, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
