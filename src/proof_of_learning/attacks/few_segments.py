"""A few false segments between honest ones: a gamble on the random draws.

The attacker trains honestly under a seed of his own, moves to the target's state in a row of jumps, and trains honestly on
from there to the end. Everything but the jumps replays bit for bit, and whether the forgery is rejected depends on whether one of
them is replayed. They are placed where the verifier's deterministic choices are not expected to look: no jump is longer than the
largest displacement that the target's own run shows in the same window (momentum counts, so that this is far more than weights
usually move), and neither the first nor the last segment is one. Of such places the latest is taken, for the steps that follow
lead away from the target; a stretch of the schedule whose rates are 0 comes before any other.

Jumps that cover the whole way make most of the progress, which is what draws in proportion to progress look for. With a small
``reach`` they only tamper with the attacker's own model (as one who plants something in it would), and make next to none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.moves import as_stored
from proof_of_learning.attacks.victim import Victim, between, graft, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.plan import window
from proof_of_learning.verifier.survey import survey

FAIR = 0.5  # with this probability uniform draws miss as many segments as are forged by default


@dataclass(init=False, frozen=True)
class FewSegments(Attack):
    name = "few-segments"
    summary = "honest training but for a few jumps to the target, each too short for the top-Q"
    source = "this project, on Jia et al., IEEE S&P 2021, section VII-C1"
    knowledge = (
        "the target's proof (without it, its final state and a guess of how far segments move), the data and the task"
    )

    segments: int | None = parameter(
        None, "number of jumps (default: as many as uniform draws miss with a probability of a half)", low=1
    )
    at: int | None = parameter(None, "first segment that is a jump (default: where jumps are least conspicuous)", low=1)
    reach: float = parameter(1.0, "share of the way to the target that the jumps cover", low=0.0, high=1.0)
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        total = len(victim.proof.segments)
        count = self.segments or unnoticed(total)
        if count > total - 2:
            raise AttackError(f"the target has {total} segments; {count} jumps need {count + 2}")
        session = victim.own_session(victim.own_seed(self.seed))
        way = displacement(session.capture(), victim.final)
        first = self.at or place(victim, count, self.reach * way.state / count)
        if first + count >= total:
            raise AttackError(f"{count} jumps from segment {first} on leave no honest end to a run of {total} segments")
        return write(victim, path, victim.own_seed(self.seed), range(first, first + count), self.reach, progress)


def unnoticed(total: int) -> int:
    """The most segments of ``total`` that a verifier's uniform draws miss with a probability of a half; at least 1."""
    draws = guarantee.uniform_draws_needed(total)
    return max(1, guarantee.forgeable_segments(total, draws, FAIR))


def place(victim: Victim, count: int, length: float) -> int:
    """Where ``count`` jumps in a row, each of ``length``, are least conspicuous: the index of the first."""
    found, header = survey(victim.proof), victim.proof.header
    total = len(victim.proof.segments)
    windows = np.arange(total) * header.training.interval // window(victim.proof.steps)
    moved = np.nan_to_num(found.displacement)
    top = np.array([moved[windows == w].max() for w in windows])

    def rank(first: int) -> tuple[bool, bool, float]:
        row = slice(first, first + count)
        hidden = bool((length < 0.9 * top[row]).all())
        return hidden and bool(found.trivial[row].all()), hidden, first if hidden else float(top[row].min())

    return max(range(1, total - count), key=rank)


def write(victim: Victim, path: Path, seed: int, jumps: range, reach: float, progress: ProgressCallback) -> Mounted:
    """Write a proof that is honest under ``seed`` but for ``jumps``, which lead to the target's state in equal parts (or a
    share ``reach`` of the way there)."""
    interval, total = victim.interval, len(victim.proof.segments)
    session = victim.own_session(seed)
    losses: list[float] = []

    def states() -> Iterator[State]:
        start = session.capture()
        yield start
        for done, start in enumerate(run(victim, session, jumps.start * interval, losses), 1):
            progress("training honestly", done, total)
            yield start
        # Nobody trained in the jumps: what the steps before them lost is said again, and does not stand out.
        left_out = len(jumps) * interval
        losses.extend(itertools.islice(itertools.cycle(losses[-left_out:]), left_out))
        for number, index in enumerate(jumps, 1):
            for _ in session.idle((index + 1) * interval, victim.steps_per_epoch):
                pass
            graft(session, victim.final)
            session.restore(between(start, session.capture(), victim.final, reach * number / len(jumps)))
            yield session.capture()
        for done, state in enumerate(run(victim, session, victim.steps, losses), jumps.stop + 1):
            progress("training honestly", done, total)
            yield state

    forge_proof(
        path, victim.task, states(), None,
        hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
        seed=seed, interval=interval, steps=victim.steps, data=victim.proof.header.data, environment=victim.environment,
        **as_stored(victim),
    )  # fmt: skip
    saved = victim.samples(jumps.start * interval, jumps.stop * interval)
    return Mounted(victim.samples(0, victim.steps) - saved, jumps)
