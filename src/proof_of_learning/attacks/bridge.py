"""A bridge: an honest run that is led to the target in its last segments, none of which looks conspicuous.

The attacker trains honestly under a seed of his own. Toward the end a few segments take him in a straight line to the target's
state. Top-Q looks at the largest displacements of each window, so a bridge segment keeps below the largest honest displacement of
its window, and every window keeps one honest segment, its first, to be the largest. (The displacement of the full state includes the
momentum, whose honest changes from checkpoint to checkpoint are large; a bridge moves the weights in their shadow.)

How many segments the bridge needs follows from what the honest ones leave room for: the attack goes on training until the room that
is left behind it would not suffice any more, so that it forges as few segments as it can. Uniform draws then seldom meet one. The
draws by progress do: hardly any progress toward the target is made elsewhere.

The last segment is always replayed. With ``end=borrowed`` it is the target's own, batches included, which makes the randomness a
recorded one; with ``end=bridge`` all randomness is derived, and the bridge ends in the target's weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, tee
from pathlib import Path
from typing import Any

import numpy as np

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_claimed, on_the_way, windows
from proof_of_learning.attacks.victim import Victim, claimed_steps, run, step_snapshot
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import Indices
from proof_of_learning.training.steps import derived_feed
from proof_of_learning.verifier.inertia import inertia

RESERVE = 1.2  # room kept behind, for honest segments on the bridge lead away from the target
HONEST = 3  # honest segments expected in each window of the bridge
FEW = 0.05  # share of the segments in a bridge that no number of segments would hide


@dataclass(init=False, frozen=True)
class Bridge(Attack):
    name = "bridge"
    summary = "an honest run that is led to the target in its last segments, each kept below what top-Q looks at"
    source = "this project, after Fang et al., EuroS&P 2023 (blindfold top-Q)"
    knowledge = "the target's final state (borrowed: its last two checkpoints and their batches), the data and the task"

    end: str = parameter("borrowed", "the last segment", choices=("borrowed", "bridge"))
    margin: float = parameter(
        0.95, "largest bridge segment, as a share of its window's largest honest one", low=0.01, high=1.0
    )
    segments: float | None = parameter(
        None, "share of the segments in the bridge (default: the fewest that stay below the margin)", low=0.0, high=1.0
    )
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        proof, seed, borrowed = victim.proof, victim.own_seed(self.seed), self.end == "borrowed"
        count = len(proof.segments)
        if count < 3:
            raise AttackError(f"the target has {count} segments; a bridge needs 3")
        before_last = proof.state_digests()[count - 1]
        if borrowed and not proof.has_state(before_last):
            raise AttackError(
                "the target's last checkpoint but one is not in its proof (it was thinned); use end=bridge"
            )
        goal = proof.state(before_last) if borrowed else victim.final
        builder = _Builder(victim, self, seed, goal, count - 1 if borrowed else count)

        def states() -> Iterator[State]:
            for state in builder.states():
                progress("training, then bridging", builder.position, count)
                yield state
            if borrowed:
                yield victim.final

        claims: dict[str, Any] = {"environment": victim.environment}
        batches: Iterator[Indices] | None = None
        if borrowed:
            last = proof.segments[-1].start
            _, order = derived_feed(builder.session.task, victim.data, builder.session.key, victim.device)
            own = ((order.indices(step), step_snapshot(builder.session.key, step)) for step in range(last))
            rows, generators = tee(chain(own, claimed_steps(victim, last, victim.steps)))
            batches = (indices for indices, _ in rows)
            claims["rng"], claims["initialization"] = (rng for _, rng in generators), "derived"
            environments: list[Environment] = [victim.environment] * (count - 1)
            claims["environment"] = [*environments, proof.environments[proof.segments[-1].environment]]

        def losses() -> Iterator[float]:
            yield from (
                builder.losses[step] for step in range(builder.stop * victim.interval if borrowed else victim.steps)
            )
            if borrowed:
                yield from proof.columns(count - 1).loss.tolist()

        forge_proof(
            path, victim.task, states(), batches,
            hyperparameters={"loss": losses()}, seed=seed, **claims, **as_claimed(victim),
        )  # fmt: skip
        return Mounted(builder.samples, builder.bridged)


class _Builder:
    """Trains, decides when the bridge has to begin, and builds it; ``samples`` counts the gradients that took."""

    def __init__(self, victim: Victim, attack: Bridge, seed: int, goal: State, stop: int) -> None:
        self.victim, self.attack, self.goal, self.stop = victim, attack, goal, stop
        self.session, self.clock = victim.own_session(seed), victim.own_session(seed)
        self.losses: list[float] = []
        self.samples = self.position = 0
        self.bridged: list[int] = []
        self._peaks = (
            np.abs(list(victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch))).max(axis=0).tolist()
        )
        self._window = windows(victim, victim.interval)
        self._moved, self._inertia = dict[int, float](), dict[int, float]()  # largest of the honest segments, by window
        self._recent = 0.0
        self._plausible = plausible_loss(victim.steps)

    def states(self) -> Iterator[State]:
        """The states up to the goal, the initial one included."""
        state = self.session.capture()
        yield state
        first = self._fixed_start()
        for index in range(self.stop):
            if first is None and self._window[index] > 0 and not self._room_after(index, state):
                hopeless = self._window[index - 1] == 0  # from the beginning: then as few as the recipe says
                first = self.stop - max(1, round(FEW * len(self._window))) if hopeless else index
            begun = index == self.stop - 1 or (first is not None and index >= first)
            state = self._bridge(index, state) if begun and self._hidden(index, state) else self._train(index, state)
            self.position = index + 1
            yield state

    def _fixed_start(self) -> int | None:
        share = self.attack.segments
        return None if share is None else self.stop - max(1, round(share * len(self._window)))

    def _room_after(self, index: int, state: State) -> bool:
        """Whether the segments after ``index`` would suffice for the way that is left."""
        windows_left = self._window[self.stop - 1] - self._window[index]
        slots = self.stop - index - 1 - HONEST * windows_left
        return RESERVE * displacement(state, self.goal).state <= slots * self.attack.margin * self._recent

    def _hidden(self, index: int, state: State) -> bool:
        """Whether a bridge segment here would be the largest of its window in nothing; True too where no choice is left."""
        window = self._window[index]
        if self._moved and self._needed(state, max(self._moved.values())) >= self.stop - index:
            return True
        small = window in self._moved and self._inertia[window] >= inertia(state, self._peaks)
        return small or index == self.stop - 1

    def _needed(self, state: State, largest: float) -> int:
        return math.ceil(displacement(state, self.goal).state / (self.attack.margin * largest or 1.0))

    def _train(self, index: int, state: State) -> State:
        self.session.restore(state)
        begin, end = index * self.victim.interval, min((index + 1) * self.victim.interval, self.victim.steps)
        (arrived,) = run(self.victim, self.session, end, self.losses)
        self.samples += self.victim.samples(begin, end)
        moved, window = displacement(state, arrived).state, self._window[index]
        self._moved[window] = max(self._moved.get(window, 0.0), moved)
        self._inertia[window] = max(self._inertia.get(window, 0.0), inertia(state, self._peaks))
        self._recent = 0.9 * self._recent + 0.1 * moved if self._recent else moved
        return arrived

    def _bridge(self, index: int, state: State) -> State:
        end = min((index + 1) * self.victim.interval, self.victim.steps)
        left = self.stop - index
        way = displacement(state, self.goal).state
        room = max(self.attack.margin * self._moved.get(self._window[index], 0.0), 0.0)
        share = 1.0 if left == 1 or way == 0.0 else min(1.0, max(room / way, 1.0 / left if room == 0.0 else 0.0))
        self.bridged.append(index)
        self.losses += self._plausible[index * self.victim.interval : end].tolist()
        return on_the_way(self.victim, self.clock, state, self.goal, end, share)
