"""Going on with an interrupted recording of a script whose randomness follows from a key.

Where its loop stood at each checkpoint is noted beside the recording until this is sealed. Nothing of the proof rests on it: a loop
that is taken up elsewhere does not replay.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning import limits
from proof_of_learning.errors import RecordingError
from proof_of_learning.proof import files, format, parse
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import read_log
from proof_of_learning.proof.writer import PLACES, ProofWriter
from proof_of_learning.run.seeds import Place

REMEDY = "remove it, or name another directory"


@dataclass(frozen=True)
class Stood:
    """After ``steps`` the loop was about to take the batch at ``position`` of the walk at ``place``."""

    steps: int
    place: Place
    position: int


def interrupted(path: Path) -> bool:
    """Whether a recording lies there that was not sealed."""
    return (path / format.HEADER_FILE).exists() and not (path / format.SEAL_FILE).exists()


def note(path: Path, stood: Stood) -> None:
    """Write down where the loop stands; before the checkpoint, so that none is without."""
    with files.writing(str(path)), open(path / PLACES, "a", encoding="ascii") as places:
        places.write(" ".join(map(str, (stood.steps, *stood.place, stood.position))) + "\n")


def find(path: Path, key: bytes) -> Stood | None:
    """Where the interrupted recording in ``path`` is to be taken up; None: at its beginning. It is cut back to its last checkpoint.

    Raises RecordingError where it is of another key, or cannot be gone on with.
    """
    header = parse.parse_header(bytes(files.read_bounded(path / format.HEADER_FILE, limits.MAX_HEADER)))
    if header.randomness.key != key.hex():
        raise RecordingError(f"{path} holds an unfinished recording under another key, or none; {REMEDY}")
    noted = _noted(path)
    while True:
        with ProofWriter.resume(path, header) as writer:
            steps = writer.steps
        if steps == 0 or steps in noted:
            return noted.get(steps)
        # The last checkpoint of a loop that had ended says nothing of where to go on: one before does.
        before = max((known for known in noted if known < steps), default=None)
        if before is None:
            raise RecordingError(
                f"{path} holds an unfinished recording that does not say where the script's loop stood; {REMEDY}"
            )
        _cut(path, header, before)


def _noted(path: Path) -> dict[int, Stood]:
    """Where the loop stood, by steps; of several notes after as many steps the first, as the loop came there first."""
    places = bytes(files.read_bounded(path / PLACES, limits.MAX_LOG)) if os.path.exists(path / PLACES) else b""
    noted: dict[int, Stood] = {}
    for line in places.splitlines():
        words = [int(word) for word in line.split() if word.removeprefix(b"-").isdigit()]
        if len(words) == 5:
            noted.setdefault(words[0], Stood(words[0], (words[1], words[2], words[3]), words[4]))
    return noted


def _cut(path: Path, header: Header, steps: int) -> None:
    """Leave no line of the log behind the segment that ends after ``steps``; what else lies there, resuming cuts back to the log."""
    kept = 0
    for line, raw in read_log(path, header):
        if isinstance(line, format.Segment) and line.stop > steps:
            break
        kept += len(raw) + 1
    with files.writing(str(path)):
        os.truncate(path / format.LOG_FILE, kept)
