"""Huge learning rates: a few legitimate updates in every window are so large that top-Q looks at nothing else.

In each window of the verifier's ranking the attacker takes the real steps of ``per_window`` segments, at a learning rate many
times the task's. With the rates that the proof states for them they replay bit for bit, and their displacement is the largest
of the window. All other segments are filler: a straight line back and on to the target's weights, which takes no gradients. For
each of the real segments the smallest rate is searched that makes it larger than the filler. The first segment is honest. (With
momentum the task's own rate may do: the displacement of the full state is then mostly that of the momentum.)

``claimed=huge`` states these rates, in the blocks and in the states from which the segments start; a task that the verifier names
contradicts them. ``claimed=schedule`` states the task's own everywhere, and then the large segments do not replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_claimed, on_the_way, windows
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session, derived_feed

GROWTH = 3.0  # from one tried rate to the next
TRIES = 12


@dataclass(init=False, frozen=True)
class HugeRate(Attack):
    name = "huge-rate"
    summary = "a few real segments at huge learning rates, at which top-Q looks, and interpolated filler between them"
    source = "Jia et al., IEEE S&P 2021, section VIII (a learning rate that bypasses top-Q)"
    knowledge = "the target's final state, the data and the task"

    per_window: int = parameter(1, "real segments in each window: the verifier's Q", low=1)
    factor: float = parameter(
        1.0, "rate of the real segments over the task's, from which the search goes up", low=1.0, high=1e6
    )
    margin: float = parameter(1.1, "displacement of a real segment over that of the filler", low=1.0)
    claimed: str = parameter("huge", "the rates that the proof states", choices=("huge", "schedule"))
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        made = _Run(victim, self, seed)

        def states() -> Iterator[State]:
            for state in made.states():
                progress("building windows", made.position, len(victim.proof.segments))
                yield state

        rates = (made.rates[step] for step in range(victim.steps)) if self.claimed == "huge" else None
        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"loss": (made.losses[step] for step in range(victim.steps)), "rates": rates},
            seed=seed, environment=victim.environment, **as_claimed(victim),
        )  # fmt: skip
        filler = [index for index in range(len(made.window)) if index not in made.real]
        return Mounted(made.samples, filler if self.claimed == "huge" else range(len(made.window)))


class _Run:
    def __init__(self, victim: Victim, attack: HugeRate, seed: int) -> None:
        self.victim, self.attack, self.seed = victim, attack, seed
        self.session, self.clock = victim.own_session(seed), victim.own_session(seed)
        self.window = windows(victim, victim.interval)
        self.schedule = list(victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch))
        self.rates: list[list[float]] = []
        self.losses: list[float] = []
        self.samples = self.position = 0
        self.factor = attack.factor
        self._plausible = plausible_loss(victim.steps)
        self.real = {i for i in range(len(self.window) - 1) if i == 0 or self._first(i)}

    def states(self) -> Iterator[State]:
        state = self.session.capture()
        count = len(self.window)
        real = self.real
        for index in range(count):
            begin, end = index * self.victim.interval, min((index + 1) * self.victim.interval, self.victim.steps)
            if index in real:
                before, after = self._real(state, begin, end, self._filler(state, index, real) if index else 0.0)
                yield before  # which states the rate that has just been found
            else:
                yield state
                left = sum(i not in real for i in range(index, count))
                after = on_the_way(self.victim, self.clock, state, self.victim.final, end, 1.0 / left)
                self.rates += self.schedule[begin:end]
                self.losses += self._plausible[begin:end].tolist()
            state = after
            self.position = index + 1
        yield state

    def _first(self, index: int) -> bool:
        """Whether ``index`` is among the first segments of its window, the very first segment of the run left out."""
        return index - self.attack.per_window < 1 or self.window[index] != self.window[index - self.attack.per_window]

    def _filler(self, state: State, index: int, real: set[int]) -> float:
        """The displacement of a filler segment from ``state`` on."""
        left = sum(i not in real for i in range(index, len(self.window)))
        return displacement(state, self.victim.final).state / left

    def _real(self, state: State, begin: int, end: int, filler: float) -> tuple[State, State]:
        """Real steps at the smallest rate that makes them larger than the filler: the states before and after."""
        factor = 1.0 if begin == 0 else self.factor  # the initial state is given, and its rate with it
        for _ in range(TRIES):
            session = self.victim.own_session(self.seed)
            session.restore(state)
            _multiply(session, factor)
            before, losses = session.capture(), list[float]()
            rates = _record(session, self.victim, end, losses)
            self.samples += self.victim.samples(begin, end)
            huge = session.capture()
            if displacement(before, huge).state >= self.attack.margin * filler:
                break
            factor *= GROWTH
        self.factor = max(factor, self.factor)
        self.rates += rates
        self.losses += losses
        if self.attack.claimed == "huge":
            return before, huge
        return state, on_the_way(self.victim, self.clock, state, huge, end, 1.0)


def _record(session: Session, victim: Victim, stop: int, losses: list[float]) -> list[list[float]]:
    feed, order = derived_feed(session.task, victim.data, session.key, victim.device)
    rates = []
    for result in session.run(stop, feed, order):
        rates.append(result.rates)
        losses.append(float(result.loss))
    return rates


def _multiply(session: Session, factor: float) -> None:
    for optimizer in session.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
