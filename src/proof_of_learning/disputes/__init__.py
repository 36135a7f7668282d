"""Challenge and open: verification of a proof whose states and data stay with their owner (``docs/spec/opening.md``)."""

from __future__ import annotations

import os
from pathlib import Path

OPENING_FILE = "opening.json"


def is_opening(path: str | os.PathLike[str]) -> bool:
    """Whether an opening lies there, and not a proof."""
    return (Path(path) / OPENING_FILE).is_file()
