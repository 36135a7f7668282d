"""How long work tells its caller where it stands."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, how much of it is done and how much there is (0: not known).
ProgressCallback = Callable[[str, int, int], None]


def silent(doing: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""
