"""What a ``Run`` is turned on by: the command that executes the script says so here, before the script runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proof_of_learning.recording.stamping import Stamping
    from proof_of_learning.run.clock import Clock
    from proof_of_learning.run.inputs import Reads
    from proof_of_learning.run.seeds import Seeds


@dataclass(frozen=True)
class Given:
    """What a script hands to ``Run``: see there."""

    data: Any = None
    interval: int | None = None
    out: Any = None
    strict: bool | None = None
    pretrained: Any = None
    stamping: Stamping | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Mode:
    """``start``: makes the clock of a script's ``Run``, or None where runs are off; ``begun``: how many it has made. ``reads``: the
    files that the script opens before its first step. ``seeds``: what its randomness follows from; None where it is recorded.
    """

    start: Callable[[Given], Clock] | None = None
    begun: int = 0
    reads: Reads | None = None
    seeds: Seeds | None = None

    def set_up(self) -> None:
        """The script's set-up is over: what it reads from here on are no inputs any more, and new generators are its own."""
        if self.reads is not None:
            self.reads.stop()
        if self.seeds is not None:
            self.seeds.begun()


# The one thing that a script and the command that executes it have in common.
ACTIVE = Mode()
