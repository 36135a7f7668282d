"""Moves that several attacks make: points on the way, the windows in which top-Q looks, claims like the target's, own runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import tee
from pathlib import Path
from typing import Any

from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.attacks.victim import Victim, between, claimed_steps, graft, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.task import Task
from proof_of_learning.training.steps import Session
from proof_of_learning.verifier.plan import window


def on_the_way(victim: Victim, session: Session, start: State, goal: State, step: int, share: float) -> State:
    """The state at ``share`` of the way from ``start`` to ``goal``, with the schedule where it stands at ``step``.

    ``session`` moves on to ``step`` and holds the goal's model and memory afterwards, not the returned state's.
    """
    for _ in session.idle(step, victim.steps_per_epoch):
        pass
    graft(session, goal)
    return between(start, session.capture(), goal, share)


def windows(victim: Victim, interval: int) -> list[int]:
    """For each segment of ``interval`` steps the window in which the verifier ranks displacements."""
    length = window(victim.steps)
    return [start // length for start in range(0, victim.steps, interval)]


def as_claimed(victim: Victim) -> dict[str, Any]:
    """What a forgery claims as the target does, as arguments of ``forge_proof``."""
    return {
        "interval": victim.interval,
        "steps": victim.steps,
        "data": victim.proof.header.data,
        "evaluation": victim.proof.end.evaluation,
        **as_stored(victim),
    }


def as_stored(victim: Victim) -> dict[str, Any]:
    """The same of how states are stored. Under a codec in the loop the attacker's own steps go on from what it makes of them."""
    proof = victim.proof
    stored = {segment.state: segment.arrived for segment in proof.segments} if proof.header.codec.in_loop else {}
    return {"codec": proof.header.codec, "stored": stored, "sessions": victim.sessions}


def sealed_again(
    victim: Victim, path: Path, kept: int, progress: ProgressCallback, *, observed: bool,
    change: Callable[[State], State] = lambda state: state, **claims: Any,
) -> None:  # fmt: skip
    """Write the target's first ``kept`` segments down as a proof of one's own, each state changed by ``change``.

    observed: with batches and generators as recorded; else as they follow from the key that is claimed. claims: of ``forge_proof``,
    beside what is the target's. Raises AttackError where states are missing.
    """
    proof = victim.proof
    digests, stop = proof.state_digests()[: kept + 1], proof.segments[kept - 1].stop
    if missing := sum(not proof.has_state(digest) for digest in digests):
        raise AttackError(f"{missing} of the {len(digests)} checkpoints are not in the target's proof (it was thinned)")
    batches, generators = tee(claimed_steps(victim, 0, stop)) if observed else (None, None)

    def states() -> Iterator[State]:
        for done, digest in enumerate(digests):
            progress("copying the target's states", done, kept)
            yield change(proof.state(digest))

    own: dict[str, Any] = {
        "steps": stop, "interval": victim.interval, "data": proof.header.data, "keep_progress": True,
        "evaluation": proof.end.evaluation if kept == len(proof.segments) else None,
        "environment": [proof.environments[segment.environment] for segment in proof.segments[:kept]],
        **as_stored(victim),
    }  # fmt: skip
    forge_proof(
        path, victim.task, states(), None if batches is None else (indices for indices, _ in batches),
        hyperparameters={
            "loss": (loss for c in proof.all_columns() for loss in c.loss.tolist()),
            "rates": (row for c in proof.all_columns() for row in c.rates),
        },
        rng=None if generators is None else (rng for _, rng in generators),
        **{**own, **claims},
    )  # fmt: skip


def own_run(
    victim: Victim, session: Session, claimed: Task, path: Path, doing: str, progress: ProgressCallback
) -> None:
    """Take all the steps of ``session``, the attacker's own, and record them as a derived run of ``claimed``."""
    losses: list[float] = []
    evaluation: dict[str, float] = {}

    def states() -> Iterator[State]:
        yield session.capture()
        for state in run(victim, session, victim.steps, losses):
            progress(doing, session.progress.step, victim.steps)
            if session.progress.step == victim.steps:
                evaluation.update(session.evaluate() or {})
            yield state

    claims = {**as_claimed(victim), "evaluation": None if claimed.evaluate is None else evaluation}
    forge_proof(
        path, claimed, states(), None,
        hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
        seed=session.task.seed, environment=victim.environment, **claims,
    )  # fmt: skip
