"""Concatenation of two honest runs (Jia et al., IEEE S&P 2021, section VII-C1, "PoL Concatenation").

The attacker trains honestly from a random initialization of his own for a few steps, and lets a second honest run that ends in
the target's weights follow, as if the one had led to the other. Both parts replay bit for bit; the one segment in which they are
joined does not, and the distance that it has to cover is about d_ref.

The length of a run is fixed by its task, so the second part decides what the attack costs:

``stolen``
    the target's own checkpoints. The proof ends in exactly the target's weights, for the price of the first part. The stolen steps
    follow the target's order, not the one that the attacker's seed gives, so the forgery claims recorded randomness, with an
    initialization derived from his seed. (Under the target's seed the first part would be the target's own.) Where a task augments its
    samples, what augmentation draws follows from the key all the same, and the stolen part does not replay either.
``fine-tuned``
    the paper's own: honest steps from the target's final state, under the attacker's seed. All randomness is derived, but the proof
    ends near the target's weights, not in them, and every step but those of one segment is paid for.

One segment is forged whatever the fraction. A joint early in the run is the cheapest, and makes the smallest share of the progress,
by which part of the verifier's draws are weighted: there it bridges two starts of training, near its end two trained models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, tee
from pathlib import Path

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_claimed
from proof_of_learning.attacks.victim import Victim, claimed_steps, graft, run, step_snapshot
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import Indices
from proof_of_learning.training.steps import derived_feed


@dataclass(init=False, frozen=True)
class Concatenation(Attack):
    name = "concatenation"
    summary = "a short honest run from another start, joined in one segment to the target's own last part"
    source = "Jia et al., IEEE S&P 2021, section VII-C1"
    knowledge = "the target's last checkpoints with their batches (fine-tuned: its final state), the data and the task"

    fraction: float = parameter(0.01, "share of the segments that are the attacker's own run", low=0.0, high=1.0)
    tail: str = parameter("stolen", "what follows the joint", choices=("stolen", "fine-tuned"))
    seed: int | None = parameter(
        None, "seed of the attacker's own run (default: one of his own)", low=0, high=2**64 - 1
    )

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        segments = len(victim.proof.segments)
        if segments < 3:
            raise AttackError(
                f"the target has {segments} segments; a joint that is neither the first nor the last needs 3"
            )
        seed = victim.own_seed(self.seed)
        if str(seed) == victim.proof.header.randomness.seed:
            raise AttackError(
                f"seed {seed} is the target's own, under which the first part would be the target's too; choose another"
            )
        joint = min(max(round(self.fraction * segments), 1), segments - 2)
        write = _stolen if self.tail == "stolen" else _fine_tuned
        return write(victim, path, joint, seed, progress)


def _stolen(victim: Victim, path: Path, joint: int, seed: int, progress: ProgressCallback) -> Mounted:
    """Segments before ``joint`` are the attacker's, those after it the target's."""
    proof, head_ends, tail_starts = victim.proof, joint * victim.interval, (joint + 1) * victim.interval
    tail = proof.state_digests()[joint + 1 :]
    missing = sum(not proof.has_state(digest) for digest in tail)
    if missing:
        raise AttackError(
            f"{missing} of the target's last {len(tail)} checkpoints are not in its proof; steal less with a larger fraction, or "
            "make the last part with tail=fine-tuned"
        )
    session = victim.own_session(seed)
    _, order = derived_feed(session.task, victim.data, session.key, victim.device)
    losses: list[float] = []

    def states() -> Iterator[State]:
        yield session.capture()
        for done, state in enumerate(run(victim, session, head_ends, losses), 1):
            progress("training the first part", done, joint)
            yield state
        for done, digest in enumerate(tail, 1):
            progress("copying the target's part", done, len(tail))
            yield proof.state(digest)

    def own_steps() -> Iterator[tuple[Indices, RngSnapshot]]:
        for step in range(tail_starts):
            yield order.indices(step), step_snapshot(session.key, step)

    def all_losses() -> Iterator[float]:
        yield from (losses[step] for step in range(head_ends))
        for columns in proof.all_columns(joint):
            yield from columns.loss.tolist()

    environments: list[Environment] = [victim.environment] * (joint + 1)
    environments += [proof.environments[segment.environment] for segment in proof.segments[joint + 1 :]]
    batches, generators = tee(chain(own_steps(), claimed_steps(victim, tail_starts, victim.steps)))
    forge_proof(
        path, victim.task, states(), (indices for indices, _ in batches),
        hyperparameters={"loss": all_losses()}, rng=(rng for _, rng in generators), initialization="derived",
        seed=seed, environment=environments, **as_claimed(victim),
    )  # fmt: skip
    stop = len(proof.segments) if victim.task.augment is not None else joint + 1
    return Mounted(victim.samples(0, head_ends), range(joint, stop))


def _fine_tuned(victim: Victim, path: Path, joint: int, seed: int, progress: ProgressCallback) -> Mounted:
    """At the end of ``joint`` stands the target's final state; honest steps lead to it and away from it."""
    head_ends, tail_starts = joint * victim.interval, (joint + 1) * victim.interval
    session = victim.own_session(seed)
    losses: list[float] = []

    def states() -> Iterator[State]:
        yield session.capture()
        for state in run(victim, session, head_ends, losses):
            progress("training the first part", session.progress.step, head_ends)
            yield state
        for _ in session.idle(tail_starts, victim.steps_per_epoch):
            pass
        graft(session, victim.final)
        losses.extend(plausible_loss(victim.steps)[head_ends:tail_starts].tolist())
        yield session.capture()
        for state in run(victim, session, victim.steps, losses):
            progress("fine-tuning the target's model", session.progress.step - tail_starts, victim.steps - tail_starts)
            yield state

    forge_proof(
        path, victim.task, states(), None,
        hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
        seed=seed, environment=victim.environment, **{**as_claimed(victim), "evaluation": None},
    )  # fmt: skip
    return Mounted(victim.samples(0, head_ends) + victim.samples(tail_starts, victim.steps), (joint,))
