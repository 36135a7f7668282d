"""What is asked of stamping while training, and what came of it; :mod:`.stamper` does it, and is loaded where it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proof_of_learning.errors import UsageError
from proof_of_learning.limits import MAX_LOG_HEADS
from proof_of_learning.proof.format import Header

if TYPE_CHECKING:
    from proof_of_learning.attestation.timestamps import Authorities

TIMEOUT = 10.0  # seconds that one authority has for one answer
NO_ROOM = f"a proof holds at most {MAX_LOG_HEADS} stamped heads of a recording"
Place = str | os.PathLike[str]


@dataclass(frozen=True)
class Stamping:
    """How the log's head is stamped while training: in the background, and no step waits for it; where nobody answers, a gap is noted.

    every: every how many segments.
    tsa: addresses of timestamp authorities (RFC 3161), or the one; of several, each in its turn.
    trusted_tsa: certificates (PEM files) that their answers have to be of; none: whoever answers.
    timeout: seconds that one of them has for an answer.
    Raises UsageError. Addresses and files are looked at when a recording begins, so that a script that is replayed needs neither.
    """

    every: int
    tsa: str | Iterable[str]
    trusted_tsa: Place | Iterable[Place] = ()
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        urls = (self.tsa,) if isinstance(self.tsa, str) else tuple(self.tsa)
        roots = self.trusted_tsa
        object.__setattr__(self, "tsa", urls)
        object.__setattr__(self, "trusted_tsa", (roots,) if isinstance(roots, (str, os.PathLike)) else tuple(roots))
        if not urls:
            raise UsageError("the log's head is to be stamped while training: say by which authority (--tsa URL), too")
        if self.every < 1:
            raise UsageError(f"--stamp-every {self.every}: expected a number of segments, 1 or more")

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses."""
        return tuple(self.tsa)

    def authorities(self) -> Authorities | None:
        """Those of which answers have to be; None: whoever answers. Raises UsageError for what no recording can be stamped with: an
        address that is none, a file without certificates.
        """
        from proof_of_learning.attestation import authority, timestamps

        for url in self.urls:
            authority.checked(url)
        roots: tuple[Place, ...] = tuple(self.trusted_tsa)  # type: ignore[arg-type]
        return timestamps.load_authorities(roots) if roots else None

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

    def lines(self) -> list[str]:
        """The same in words."""
        heads = "1 head" if self.heads == 1 else f"{self.heads:,} heads"
        return [
            f"stamped {heads} of the log while training, up to step {self.steps:,}",
            *(f"not stamped {gap}" for gap in self.gaps),
        ]
