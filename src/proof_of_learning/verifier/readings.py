"""What a survey takes from one state: read and checked, measured, and looked at in the places that the nonce chose.

All of it follows from the state and the one before, so that it is the same whoever reads it (:mod:`verifier.abreast`). What goes
from one state to the next (histories, sums, the prober) is the survey's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from proof_of_learning.proof.format import Displacement
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.held import Weights
from proof_of_learning.replay.measure import displacement
from proof_of_learning.replay.twins import stuck, twins
from proof_of_learning.state.joining import layout_of
from proof_of_learning.state.layout import Layout
from proof_of_learning.state.names import family_of
from proof_of_learning.state.state import State, settings
from proof_of_learning.verifier.inertia import inertia
from proof_of_learning.verifier.sampling import Picked, Sampler


@dataclass(frozen=True)
class Reading:
    """One state.

    state: all of it where it is wanted; else of its tensors at least those that :func:`kept` names. None where the state, and so
        everything else here, is missing from the proof.
    settings: what it holds beside trained values. distance, left: of its weights from the start, and to the end.
    moved: from the state before, where that is there. picked: what it holds where samplers look. twins: the
        generators that draw the same in two of several processes; stuck: those that draw no random numbers.
    """

    position: int
    state: State | None = None
    layout: Layout | None = None
    settings: bytes | None = None
    distance: float = math.nan
    left: float = math.nan
    inertia: float = math.nan
    moved: Displacement | None = None
    picked: Picked | None = None
    twins: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """What states are read for. ``origin``, ``target``: the first and the last one's weights. ``peaks``: the largest rates, at which
    inertia is told. ``sampler``: says where is looked, or None. ``wanted``: the positions whose states are wanted whole.
    """

    proof: Proof
    digests: list[str]
    origin: Weights | None
    target: Weights | None
    peaks: Mapping[str, Sequence[float]] | Sequence[float]
    sampler: Sampler | None
    wanted: Set[int]

    def state(self, position: int, *, surveyed: bool = False) -> State | None:
        """The state at a position, checked; None where it is missing. Raises FormatError or IntegrityError.

        ``surveyed``: its object is read in full elsewhere.
        """
        digest = self.digests[position]
        return self.proof.state(digest, surveyed=surveyed) if self.proof.has_state(digest) else None

    def read(self, position: int, before: State | None) -> Reading:
        """Read the state at ``position``; ``before``: the one at the position before it, where that is there."""
        return self.measured(position, self.state(position), before)

    def measured(self, position: int, state: State | None, before: State | None) -> Reading:
        """What is seen in a state that was read."""
        if state is None:
            return Reading(position)
        return Reading(
            position,
            state,
            layout_of(state),
            settings(state),
            math.nan if self.origin is None else self.origin.distance(state),
            math.nan if self.target is None else self.target.distance(state),
            inertia(state, self.peaks) if position + 1 < len(self.digests) else math.nan,
            None if before is None else displacement(before, state),
            None if self.sampler is None else self.sampler.pick(state),
            twins(state, before) if position and self.proof.header.ranks > 1 else (),
            stuck(state, before) if position else (),
        )


def kept(name: str) -> bool:
    """Whether a tensor is looked at as a setting, and so comes with every state, however many elements it has."""
    part, _, rest = name.partition("/")
    return part == "scaler" or (family_of(part) == "optimizer" and rest.startswith("groups/"))
