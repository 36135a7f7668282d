"""What the states compute: the outputs of the task's networks on samples that the verifier draws once the root is known.

The distance of two functions is bounded: the total variation of the distributions they give where the data are labelled, else the
mean distance of outputs, clipped. Unlike weights, it is not bought with a bias of a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from proof_of_learning.errors import PolError
from proof_of_learning.numeric import randomness
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.process import OnWork
from proof_of_learning.replay.process import idle as unwatched
from proof_of_learning.replay.protocol import Coasting, Described, Glimpse, Head, Probe
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.verifier.progress import MISSED, Measure, function_measures, on_grid
from proof_of_learning.verifier.rest import Resting

SAMPLES = 64
GRID = 64  # states that are evaluated at least, at equal distances, beside those in which is looked at gradients
CLOSER = 512  # states at most, with those between where the function moves, unless ``COST`` pays for more
PAYS = 0.005  # of all importance, that a further state has to spare
COST = 0.02  # of the training's, which evaluating states may take
ROUND, TOGETHER = 32, 64  # states that are chosen together; that a worker is shown at once
AT_ONCE = 64 << 20  # bytes of them
GRADIENTS = 64  # states in which is looked at how far gradients reach
LIVING = 0.1  # share of a layer's outputs that a gradient reaches, below which it learns nothing
SHUFFLES = 16
KNOWN = 0.3  # of the final function, that a start under a fresh key may know; honest ones know 0 but for chance (64 samples)
FRESH = 4  # such starts that are tried, until one knows no more: a single one may resemble the end by chance
UNSEEN = ("optimizer", "scheduler", "scaler")  # parts that a standard loop's loss is not handed
LAST, NEAR = 0.01, 5  # of the run, and states: how far the final function moves at the end

Array = npt.NDArray[np.float64]
Outputs = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Function:
    """What was seen of the states' functions.

    positions, to_end, from_start: the states that were evaluated, and their distances to the final function and from the first one.
    known: how much of the final function the start knew already: 1 less the distance of the outputs, over that with the samples
        shuffled. ``fresh_known``: the same of starts under keys that nobody could know, the least of a few.
    idle: of the states that were looked at for it (``looked``), the share in which a layer passes no gradient.
    heads: the outputs that were looked at; ``scored``: whether all of them are scores of classes, so that distances are those of
        distributions. Those of other outputs are in units of what moved between the first function and the final one.
    """

    positions: list[int]
    to_end: Array
    from_start: Array
    known: float
    fresh_known: float
    idle: float
    looked: int
    heads: list[str]
    layers: dict[str, float] = field(default_factory=dict)
    scored: bool = True

    def measures(self, segments: int) -> list[Measure]:
        """The three measures of progress, by segment."""
        return function_measures("function", self.positions, self.to_end, self.from_start, segments)

    @property
    def moved(self) -> float:
        """The distance of the first function from the final one."""
        return float(self.to_end[0])

    @property
    def unrest(self) -> float:
        """The largest distance of the final function from those just before it: of the last hundredth of the run, one at least."""
        close = [p >= (1 - LAST) * self.positions[-1] for p in self.positions[:-1]]
        near = self.to_end[:-1][-min(NEAR, max(1, sum(close))) :]
        return max((float(distance) for distance in near if math.isfinite(distance)), default=0.0)

    @property
    def settled(self) -> int:
        """The first position from which on 95 % of the function's way is covered."""
        best = np.minimum.accumulate(np.nan_to_num(self.to_end, nan=np.inf))
        return self.positions[int(np.argmax(best <= 0.05 * best[0]))]


class Prober:
    """Evaluates states of one proof. ``seed``: what samples and all else that is drawn follow from.

    ``grid``: the states that are evaluated in any case; ``gradients``: those in which is looked at how far gradients reach, too.
    ``resting``: takes note of where the states come to rest, where an optimizer follows no rule that is known here. ``on_work``: told
    how many states were looked at, and of how many at most.
    """

    def __init__(
        self,
        proof: Proof,
        replayer: Replayer,
        described: Described,
        seed: int,
        resting: Resting | None = None,
        on_work: OnWork = unwatched,
    ) -> None:
        self._on_work = on_work
        self._proof, self._replayer, self._seed, self._resting = proof, replayer, seed, resting
        self._loss_alone = described.loop_schedule
        count = min(SAMPLES, described.samples)
        drawn = randomness.permutation(randomness.derive(self._key, "samples"), described.samples)[:count]
        self._samples = np.sort(drawn).astype("<i8").tobytes()
        digests = proof.state_digests()
        self._held = [position for position, digest in enumerate(digests) if proof.has_state(digest)]
        states = len(self._held)
        # A step costs about three evaluations of its batch; of these states there may be as many as ``COST`` pays for.
        affordable = int(COST * proof.steps * 3 * described.batch / max(1, count))
        self._room = max(CLOSER, affordable)
        stride = math.ceil(states / max(GRID, affordable // 2))
        # Where it begins nobody could know: a false segment could else be the last before each of its states.
        offset = randomness.derive(self._key, "grid") % stride
        self.grid = {self._held[0], *self._held[offset::stride], self._held[-1]}
        among = np.asarray(self._held[:-1] or self._held)
        chosen = randomness.permutation(randomness.derive(self._key, "idle"), len(among))[:GRADIENTS]
        self.gradients = set(among[chosen].tolist())
        self._waiting: dict[bool, list[tuple[int, State]]] = {False: [], True: []}  # by whether gradients are looked at
        self._bytes = {False: 0, True: 0}  # of these states
        self._ends: tuple[Outputs, Outputs] | None = None
        self._scales: list[Array] = []
        self._found: dict[int, tuple[float, float]] = {}
        self._heads: list[tuple[str, bool]] = []
        self._living: dict[int, dict[str, float]] = {}
        self._waiting_in: dict[int, list[str]] = {}  # layers whose optimizers took no step there
        self._loose: set[str] = set()  # layers that no optimizer holds

    @property
    def _key(self) -> bytes:
        return randomness.key_from_seed(self._seed)

    def begin(self, first: State, last: State) -> None:
        """The two functions that all others are compared with."""
        glimpses = self._ask([first, last])
        self._heads = [(head.name, head.scores) for head in glimpses[1].heads]
        start, end = (self._outputs(glimpse.heads) for glimpse in glimpses)
        self._ends = start, end
        self._scales = [_scale(a, b) for a, b in zip(start, end, strict=True)]

    @property
    def wanted(self) -> Set[int]:
        """The positions of the states that :meth:`add` is to be given."""
        return self.gradients | self.grid

    def add(self, position: int, state: State) -> None:
        """Evaluate a state, some time, if it is wanted; a look at gradients shows its outputs too."""
        gradients = position in self.gradients
        if gradients:
            self._wait(position, state, gradients=True)
        if position in self.grid and not (gradients and self._resting is None):
            self._wait(position, state)

    def _wait(self, position: int, state: State, gradients: bool = False) -> None:
        self._waiting[gradients].append((position, state))
        self._bytes[gradients] += state.nbytes
        if len(self._waiting[gradients]) >= TOGETHER or sum(self._bytes.values()) > AT_ONCE:
            self._flush(max(self._bytes, key=self._bytes.__getitem__))

    def flush(self) -> None:
        """Evaluate what waits."""
        for gradients in (True, False):
            self._flush(gradients)

    def _flush(self, gradients: bool) -> None:
        waiting, self._waiting[gradients], self._bytes[gradients] = self._waiting[gradients], [], 0
        if not waiting:
            return
        positions = [position for position, _ in waiting]
        coasting = None if self._resting is None else self._resting.ask(positions, whole=gradients)
        glimpses = self._ask([state for _, state in waiting], gradients, coasting)
        del waiting
        for position, glimpse in zip(positions, glimpses, strict=True):
            self._found[position] = self._apart(self._outputs(glimpse.heads))
            if gradients:
                self._note(position, glimpse)
            if self._resting is not None and glimpse.rest is not None:
                if gradients:
                    self._resting.glided(position, glimpse.rest)
                else:
                    apart = (math.nan, math.nan) if glimpse.rest.why else self._apart(self._outputs(glimpse.rest.heads))
                    self._resting.add(position, glimpse.rest, apart)
        self._on_work(len(self._found), min(self._room, len(self._held)))

    def finish(self, other_start: Callable[[int], State | None]) -> Function:
        """Look more closely where the function moves most, at how far gradients reach, and at what the start knew."""
        self.flush()
        idle, looked = self._idle()
        self._refine()
        assert self._ends is not None
        start, end = self._ends
        known, fresh_known = self._known(start, end), self._fresh_known(other_start, end)
        positions = sorted(self._found)
        return Function(
            positions=positions,
            to_end=np.array([self._found[p][0] for p in positions]),
            from_start=np.array([self._found[p][1] for p in positions]),
            known=known,
            fresh_known=known
            if fresh_known is None
            else fresh_known,  # the initialization's check says why there is none
            idle=idle,
            looked=looked,
            heads=[name for name, _ in self._heads],
            layers=self._layers(),
            scored=all(scores for _, scores in self._heads),
        )

    # ---- parts ---------------------------------------------------------------------------------------

    def _refine(self) -> None:
        """Look between two states as long as their stretch, weighed by all that moved in it, costs many draws."""
        missed = np.array(MISSED)[:, None]
        while (left := self._room - len(self._found)) > 0:
            positions = sorted(self._found)
            parts = np.array([self._found[p] for p in positions])
            shares = on_grid(range(len(positions)), parts[:, 0], parts[:, 1], len(positions) - 1)
            weight = np.max(np.stack(shares) / missed, axis=0)
            ranks = np.searchsorted(self._held, positions)
            spare = weight * (np.diff(ranks) - 1)  # what of the weights may vanish
            enough = PAYS * float((weight * np.diff(ranks)).sum())
            order = [int(i) for i in np.argsort(-spare, kind="stable")[: min(ROUND, left)]]
            middles = [self._held[(ranks[i] + ranks[i + 1]) // 2] for i in order if spare[i] > 0 and spare[i] >= enough]
            if not middles:
                return
            digests = self._proof.state_digests()
            # In their order: a state that is a difference is decoded from the one that was read before it.
            for middle in sorted(middles):
                self._wait(middle, self._proof.state(digests[middle], surveyed=True))
            self.flush()

    def _idle(self) -> tuple[float, int]:
        """Of states drawn uniformly the share in which some layer learns nothing, and how many were looked at."""
        if self._resting is not None:  # where those segments end is looked at as well
            digests = self._proof.state_digests()
            for end in sorted(position + 1 for position in self.gradients if self._resting.lacks(position + 1)):
                self._wait(end, self._proof.state(digests[end], surveyed=True))
            self.flush()
        return self._idle_share()

    def _note(self, position: int, glimpse: Glimpse) -> None:
        """What a look at gradients showed."""
        self._living[position], self._waiting_in[position] = glimpse.living, glimpse.waiting
        self._loose.update(glimpse.loose)

    def _idle_share(self) -> tuple[float, int]:
        """Of the states in which gradients were looked at the share in which some layer learns nothing, and how many these are."""
        # Sparse designs are measured by their own best state, and what is trained now and then where it is: then by itself, for it is
        # seen in fewer states.
        best = self._layers()
        dead: dict[str, list[bool]] = {name: [] for name in best}
        idle = []
        for position, living in self._living.items():
            waits = {name for name in self._waiting_in[position] if best.get(name, 0.0) > 0.0}
            judged = {
                n: share == 0.0 or share < LIVING * best[n]
                for n, share in living.items()
                if n in best and n not in waits
            }
            for name, is_dead in judged.items():
                dead[name].append(is_dead)
            idle.append(any(judged.values()))
        shares = [float(np.mean(found)) for found in (idle, *dead.values()) if found]
        return max(shares, default=0.0), len(idle)

    def _layers(self) -> dict[str, float]:
        """Of each layer the largest share that gradients reached."""
        best: dict[str, float] = {}
        for living in self._living.values():
            for name, share in living.items():
                best[name] = max(best.get(name, 0.0), share)
        # What no optimizer holds and no gradient ever reached (a teacher, an average) is not there to learn.
        return {name: share for name, share in best.items() if share > 0.0 or name not in self._loose}

    def _ask(self, states: Sequence[State], gradients: bool = False, coasting: Coasting | None = None) -> list[Glimpse]:
        if self._loss_alone and not gradients and coasting is None:
            states = [state.part(*(name for name in state.parts() if name not in UNSEEN)) for state in states]
        return self._replayer.probe(Probe(self._samples, self._seed, gradients, coasting), states)

    def _outputs(self, heads: Sequence[Head]) -> Outputs:
        found = {head.name: head for head in heads}
        outputs = []
        for name, scores in self._heads:
            head = found.get(name)
            if (
                head is None
                or head.scores != scores
                or not 0 < head.rows <= 1 << 16
                or len(head.values) % (4 * head.rows)
            ):
                raise PolError(f"the task's step shows the output of {name} in some states only")
            outputs.append(np.frombuffer(head.values, dtype="<f4").reshape(head.rows, -1))
        return outputs

    def _apart(self, outputs: Outputs) -> tuple[float, float]:
        assert self._ends is not None
        start, end = self._ends
        return self._distance(outputs, end), self._distance(outputs, start)

    def _distance(self, a: Outputs, b: Outputs) -> float:
        found = [
            _apart(x, y, scores, scale)
            for x, y, (_, scores), scale in zip(a, b, self._heads, self._scales, strict=True)
        ]
        return float(np.mean(found))

    def _fresh_known(self, other_start: Callable[[int], State | None], end: Outputs) -> float | None:
        """The least that a few starts under fresh keys know; one of few outputs may resemble the end by chance."""
        known: float | None = None
        for number in range(FRESH):
            state = other_start(number)
            if state is None:
                break
            found = self._known(self._outputs(self._ask([state])[0].heads), end)
            known = found if known is None else min(known, found)
            if known <= KNOWN:
                break
        return known

    def _known(self, start: Outputs, end: Outputs) -> float:
        """How much nearer outputs are on the same samples than on others."""
        shuffled = []
        for number in range(SHUFFLES):
            orders = [
                randomness.permutation(randomness.derive(self._key, "shuffle", number, len(table)), len(table))
                for table in end
            ]
            shuffled.append(self._distance(start, [table[order] for table, order in zip(end, orders, strict=True)]))
        by_chance = float(np.mean(shuffled))
        return 1.0 - self._distance(start, end) / by_chance if by_chance > 1e-6 else 0.0


def look(
    proof: Proof,
    replayer: Replayer,
    described: Described,
    seed: int,
    first: State,
    last: State,
    resting: Resting | None = None,
    on_work: OnWork = unwatched,
) -> tuple[Prober | None, str]:
    """A prober for a proof; None, and why, where the task shows no function."""
    try:
        prober = Prober(proof, replayer, described, seed, resting, on_work)
        prober.begin(first, last)
    except PolError as error:
        return None, str(error)
    return prober, ""


def _apart(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], scores: bool, scale: Array) -> float:
    if a.shape != b.shape:
        return math.nan
    with np.errstate(all="ignore"):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    difference[np.isnan(difference)] = np.inf
    if scores:
        return float(np.minimum(0.5 * difference.sum(axis=1), 1.0).mean())
    return float(np.minimum(difference / scale, 1.0).mean())


def _scale(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> Array:
    """[columns] at which distance outputs count as quite different: three medians of that between the first function and the last.

    Each output by itself, for they may be in units of their own; one that does not move is measured by all of them.
    """
    if a.shape != b.shape:
        return np.ones(1)
    with np.errstate(all="ignore"):
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    moving = np.where(np.isfinite(difference) & (difference > 0), difference, np.nan)
    if np.isnan(moving).all():
        return np.ones(1)
    still = np.isnan(moving).all(axis=0)
    moving[:, still] = np.nanmedian(moving)
    return 3.0 * np.nanmedian(moving, axis=0)
