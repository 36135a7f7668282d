"""What answers show: the measures that draws are weighted by, in weights and in function space, as if the states were at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from proof_of_learning.disputes.answers import Answers
from proof_of_learning.errors import FormatError, PolError
from proof_of_learning.numeric import randomness
from proof_of_learning.proof.format import Stored
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Coasting, Described, Glimpse
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.verifier.dynamics import rates_by_part
from proof_of_learning.verifier.function import GRADIENTS, Function, Prober
from proof_of_learning.verifier.progress import weight_measures
from proof_of_learning.verifier.rest import unruled
from proof_of_learning.verifier.sampling import Sampler, families
from proof_of_learning.verifier.survey import Survey

TOGETHER = 32  # states whose outputs are asked for at once
_ANSWERED = Stored("", "", "", 0, "")  # stands for a state that is in the answers
UNRULED = (
    "an optimizer follows no rule that is known here, and where its states come to rest cannot be seen from answers"
)


class Asker(Prober):
    """Asks for outputs on the samples that follow from the first challenge."""

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self._samples, dtype="<i8").astype(np.int64)

    def show(self, states: Sequence[State]) -> list[Glimpse]:
        """What states put out, asked of a worker."""
        return super()._ask(states)


class Shown(Asker):
    """Has the outputs of a proof's states from answers, and asks a worker for those of others alone.

    What is asked beside, in states that were opened (:meth:`closer`), adds to no measure.
    """

    def __init__(self, proof: Proof, replayer: Replayer, described: Described, answers: Answers) -> None:
        # All states are at hand here, in the answers; none is read from the proof.
        whole = replace(proof, index=dict.fromkeys(proof.state_digests(), _ANSWERED))
        super().__init__(whole, replayer, described, answers.seed)
        self.grid, self.gradients = set(range(len(proof.segments) + 1)), set()  # none but in those that were opened
        self._opened: Mapping[int, State] = {}
        self._told = answers.outputs()
        self._at: dict[str, int] = {}

    def tell(self, position: int, state: State) -> None:
        """That this is the cut state at a position."""
        if self._at.setdefault(state.digest(), position) != position:
            raise FormatError(f"the answers have one state at the positions {self._at[state.digest()]} and {position}")

    def told(self, position: int) -> Glimpse:
        return Glimpse(self._told(position), 0.0)

    def closer(self, opened: Mapping[int, State], other: Callable[[int], State | None]) -> Function:
        """The function once more, with how far gradients reach in the ``opened`` states, by position, and with what starts under
        fresh keys know (``other`` makes them, by number)."""
        self._opened = opened
        return self.finish(other)

    def differing(self, opened: Mapping[int, State], near: float) -> list[int]:
        """Positions of opened states that put out something else than was answered: other bits, or farther than ``near``."""
        found = []
        positions = sorted(opened)
        for begin in range(0, len(positions), TOGETHER):
            part = positions[begin : begin + TOGETHER]
            for position, seen in zip(part, self.show([opened[p] for p in part]), strict=True):
                if seen.heads == self.told(position).heads:
                    continue
                apart = (
                    self._distance(self._outputs(seen.heads), self._outputs(self.told(position).heads)) if near else 1.0
                )
                if not apart <= near:
                    found.append(position)
        return found

    def _ask(self, states: Sequence[State], gradients: bool = False, coasting: Coasting | None = None) -> list[Glimpse]:
        places = [self._at.get(state.digest()) for state in states]
        if gradients or None in places:
            return super()._ask(states, gradients, coasting)
        return [self.told(place) for place in places if place is not None]

    def _idle(self) -> tuple[float, int]:
        """Of the opened states, as far as gradients were looked at in them."""
        among = np.array(sorted(self._opened)[:-1], np.int64)
        chosen = np.sort(among[randomness.permutation(randomness.derive(self._key, "idle"), len(among))[:GRADIENTS]])
        for begin in range(0, len(chosen), TOGETHER):
            part = chosen[begin : begin + TOGETHER].tolist()
            glimpses = self._ask([self._opened[position] for position in part], gradients=True)
            for position, glimpse in zip(part, glimpses, strict=True):
                self._note(position, glimpse)
        return self._idle_share()

    def _refine(self) -> None:
        """All states are known."""


class CutSampler(Sampler):
    """Collects cut states, whose tensors stand for larger ones."""

    def __init__(self, states: int, seed: int) -> None:
        super().__init__(states, seed)
        self._whole: dict[str, list[int]] = {}

    def add_cut(self, position: int, state: State, layout: Mapping[str, list[int]]) -> None:
        """Take note of the cut state at ``position``, whose tensors had the shapes of ``layout``."""
        self.add(position, state)
        for name, shape in layout.items():
            if self._whole.setdefault(name, shape) != shape and name in self._values:
                self._values[name][position] = np.inf  # as far from all others as can be

    def end(self) -> None:
        """All are there: what is weighed by size is weighed by that of the whole tensors."""
        for name in self._shapes:
            self._shapes[name] = type(self._shapes[name])(self._whole[name])


@dataclass(frozen=True)
class Looked:
    """A survey with what the answers add to it, and who showed the outputs (None, and the survey says why, where there are none)."""

    found: Survey
    shown: Shown | None


def look(
    proof: Proof,
    found: Survey,
    answers: Answers,
    replayer: Replayer,
    described: Described,
) -> Looked:
    """Add to a survey what is seen in the answers, and in nothing else, so that owner and verifier see the same.

    Raises FormatError or IntegrityError where the answers are malformed.
    """
    count = len(proof.segments)
    table = [columns.rates for columns in proof.all_columns()]
    by_part = rates_by_part(np.concatenate(table), described.optimizers)
    rules = families(described)
    bounds = np.array([0, *(segment.stop for segment in proof.segments)], dtype=np.int64)
    strange = unruled(described.members, rules, by_part)
    sampler = CutSampler(count + 1, answers.seed)
    shown: Shown | None = None
    blind = "" if answers.head.heads else "the answers hold no outputs"
    if not blind:
        shown = Shown(proof, replayer, described, answers)
        ends: list[State] = []
        for position, state in enumerate(answers.states()):
            shown.tell(position, state)
            if position in (0, count):
                ends.append(state)
        try:
            shown.begin(ends[0], ends[-1])
        except PolError as error:
            shown, blind = None, str(error)
    relaid = []
    for position, state in enumerate(answers.states()):
        sampler.add_cut(position, state, answers.layout(position))
        if position and answers.head.layout[position] != answers.head.layout[position - 1]:
            relaid.append(position - 1)
        if shown is not None:
            try:
                shown.add(position, state)
            except PolError as error:
                shown, blind = None, str(error)
    sampler.end()
    trained = sampler.trained(described.members, rules, by_part, bounds)
    measures = weight_measures(trained, sampler.memory())
    function: Function | None = None
    if shown is not None:
        try:
            function = shown.finish(lambda number: None)
            measures += function.measures(count)
        except PolError as error:
            blind = str(error)
    seen = replace(
        found, measures=measures, function=function, blind=blind, relaid=sorted({*found.relaid, *relaid}),
        restless=UNRULED if strange else "",
    )  # fmt: skip
    return Looked(seen, shown)
