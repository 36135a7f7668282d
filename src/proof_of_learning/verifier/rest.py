"""Where states come to rest whose optimizer follows no rule that is known here: a worker takes the task's own optimizer's steps
without gradients, and what it arrives at is measured as weights and as a function.

Without it a false momentum would show only in the honest steps that it is spent in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import PolError
from proof_of_learning.replay.protocol import Coasting, Rest
from proof_of_learning.state.names import split_entry
from proof_of_learning.verifier.dynamics import Family, idle_by_rest
from proof_of_learning.verifier.progress import Measure, function_measures, places_measures
from proof_of_learning.verifier.sampling import Sampler, Trained

STEPS = 64  # without gradients: a momentum of 0.9 is spent but for a thousandth; longer ones are seen in part

Array = npt.NDArray[np.float64]


class Resting:
    """Collects where states come to rest. ``weights``: the tensors that are looked at; ``bounds``: [T+1] steps at which states stand.

    why: that it cannot be found out; nothing is asked from then on.
    """

    def __init__(self, sampler: Sampler, weights: Sequence[str], bounds: npt.NDArray[np.int64]) -> None:
        self._sampler, self._names, self._bounds = sampler, weights, bounds
        self._places: dict[str, bytes] = {}
        self._at: dict[int, dict[str, Array]] = {}
        self._apart: dict[int, tuple[float, float]] = {}
        self._glided: dict[int, dict[str, Array]] = {}
        self.why = ""

    def ask(self, positions: Sequence[int], whole: bool = False) -> Coasting | None:
        """What a worker is told; ``whole``: the steps of the segments that start there come before."""
        if self.why:
            return None
        self._places = self._places or self._sampler.places(self._names)
        lengths = np.append(np.diff(self._bounds), 0)
        steps = [STEPS + (int(lengths[position]) if whole else 0) for position in positions]
        return Coasting(steps, int(self._bounds[-1]), self._places)

    def add(self, position: int, rest: Rest, apart: tuple[float, float]) -> None:
        """Where the state at a position came to rest, and how far its function is there from the end and from the start."""
        found = self._read(rest)
        if found is not None:
            self._at[position], self._apart[position] = found, apart

    def glided(self, position: int, rest: Rest) -> None:
        """The same, after as many steps more as the segment has that starts there."""
        found = self._read(rest)
        if found is not None:
            self._glided[position] = found

    def lacks(self, position: int) -> bool:
        return not self.why and position not in self._at

    def measures(self, trained: Mapping[str, Trained], segments: int) -> list[Measure]:
        """The measures of progress by where states come to rest, by segment."""
        positions = sorted(self._at)
        there = {name: item for name, item in trained.items() if name in self._places}
        if self.why or len(positions) < 2 or not there:
            return []
        tables = {name: np.stack([self._at[p][name] for p in positions]) for name in there}
        found = places_measures(tables, there, positions, segments)
        to_end, from_start = np.array([self._apart[p] for p in positions]).T
        return found + function_measures("function at rest", positions, to_end, from_start, segments)

    def idle(self, trained: Mapping[str, Trained]) -> dict[str, Array]:
        """By tensor: of the segments that were looked at, the share of coordinates that no gradient reached, [T]."""
        rows = [position for position in sorted(self._glided) if position + 1 in self._at]
        found = {}
        for name in self._places if rows and not self.why else ():
            if name in trained:
                glided = np.stack([self._glided[row][name] for row in rows])
                reached = np.stack([self._at[row + 1][name] for row in rows])
                found[name] = idle_by_rest(trained[name].course, np.array(rows), glided, reached)
        return found

    def _read(self, rest: Rest) -> dict[str, Array] | None:
        if rest.why:
            self.why = self.why or rest.why
            return None
        found = {}
        for name in self._places:
            raw, wanted = rest.weights.get(name, b""), self._sampler.columns(name)
            if len(raw) != 8 * wanted:
                raise PolError("the replay worker answered something else than it was asked")
            found[name] = np.frombuffer(raw, dtype="<f8").astype(np.float64)
        return found


def unruled(
    members: Mapping[str, str], families: Mapping[str, Family | None], rates: Mapping[str, Array] | None
) -> list[str]:
    """The tensors of weights whose optimizer follows no rule that is known here."""
    parts = {entry: split_entry(entry)[0] for entry in members}
    return [
        weight
        for entry, weight in members.items()
        if weight and (rates is None or parts[entry] not in rates or families.get(parts[entry]) is None)
    ]
