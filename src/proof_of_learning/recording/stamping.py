"""What is asked of stamping while training, and what came of it; :mod:`.stamper` does it, and is loaded where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_LOG_HEADS
from proof_of_learning.proof.format import Header

if TYPE_CHECKING:
    from proof_of_learning.attestation.timestamps import Authorities

TIMEOUT = 10.0  # seconds that one authority has for one answer
NO_ROOM = f"a proof holds at most {MAX_LOG_HEADS} stamped heads of a recording"


@dataclass(frozen=True)
class Stamping:
    """Every how many segments the log's head is stamped, by the authorities at ``urls``, in turn.

    authorities: those of which the answers have to be; None: whoever answers.
    """

    every: int
    urls: tuple[str, ...]
    authorities: Authorities | None = None
    timeout: float = TIMEOUT

    @classmethod
    def of(cls, every: int | None, urls: Iterable[str] | None, roots: Iterable[str | Path] = ()) -> Stamping | None:
        """None where nothing is to be stamped. Raises UsageError for one without the other. roots: PEM files."""
        given = tuple([urls] if isinstance(urls, str) else urls or ())
        if every is None and not given:
            return None
        if every is None or not given:
            missing = "every how many segments (--stamp-every N)" if every is None else "by which authority (--tsa URL)"
            raise UsageError(f"the log's head is to be stamped while training: say {missing}, too")
        if every < 1:
            raise UsageError(f"--stamp-every {every}: expected a number of segments, 1 or more")
        from proof_of_learning.attestation import authority, timestamps

        for url in given:
            authority.checked(url)
        places = list(roots)
        return cls(every, given, timestamps.load_authorities(places) if places else None)

    def check(self, header: Header) -> None:
        """Raises UsageError where the run has more heads than a proof can hold."""
        planned = header.planned_segments()
        if planned is not None and planned // self.every > MAX_LOG_HEADS:
            raise UsageError(
                f"--stamp-every {self.every} would stamp {planned // self.every:,} heads of {planned:,} segments, and {NO_ROOM}; "
                f"take --stamp-every {-(-planned // MAX_LOG_HEADS)} or more"
            )


@dataclass(frozen=True)
class Stamped:
    """What came of it: how many heads were stamped, up to which step, and the gaps, a line each."""

    heads: int
    steps: int
    gaps: tuple[str, ...] = ()
