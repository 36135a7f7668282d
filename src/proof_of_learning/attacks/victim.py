"""What an attacker works with: the target's proof, its task, and the moves that attacks have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import AttackError, FormatError, IntegrityError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.reader import Proof
from proof_of_learning.state import state as states
from proof_of_learning.state.names import family_of
from proof_of_learning.state.state import State
from proof_of_learning.task import Task, compare, task_code
from proof_of_learning.training.batches import Indices, Order
from proof_of_learning.training.steps import Session, derived_feed


@dataclass(frozen=True)
class Victim:
    """A target that can be attacked: ``final`` is its last state, ``environment`` that of the attacker's own process.

    sessions: those in which the attacker takes steps of their own.
    """

    proof: Proof
    task: Task
    data: Dataset
    final: State
    device: str
    environment: Environment
    sessions: list[Session] = field(default_factory=list)

    @staticmethod
    def device_of(target: Proof) -> str:
        """Where the target was trained, if this process has such a device; else the CPU."""
        kind = next(iter(target.environments.values())).device.type
        return "cuda" if kind == "cuda" and torch.cuda.is_available() else "cpu"

    @classmethod
    def of(cls, target: Proof, task: Task, device: str, environment: Environment) -> Victim:
        """Raises AttackError where ``target`` cannot be used."""
        if target.header.program.sealed is not None:
            raise AttackError("the target's steps are sealed; attacks take a proof recorded without --seal-program")
        with task_code("loading the data"):
            data = task.data()
            samples = len(data)
        session = Session(task, randomness.key_from_seed(task.seed), device)
        description, claim = session.describe(), target.header.task
        if description.digest() != claim.digest:
            lines = compare(description.content, claim.description)
            raise AttackError(
                f"the target is a proof of another task: {lines[0] if lines else 'the descriptions differ'}"
            )
        if (target.steps, target.header.training.steps_per_epoch) != (
            task.total_steps(samples),
            task.steps_per_epoch(samples),
        ):
            raise AttackError(
                f"the target has {target.steps:,} steps, the task {task.total_steps(samples):,}; name the target's own task"
            )
        last = target.segments[-1].state
        if not target.has_state(last):
            raise AttackError(
                "the target's final state is not in its proof (it was thinned), so there is no model to claim"
            )
        try:
            final = target.state(last)
            session.restore(final)
        except (FormatError, IntegrityError) as error:
            raise AttackError(f"the target's final state cannot be used: {error}") from error
        return cls(target, task, data, final, device, environment)

    @property
    def steps(self) -> int:
        return self.proof.steps

    @property
    def interval(self) -> int:
        return self.proof.header.training.interval

    @property
    def steps_per_epoch(self) -> int:
        return self.proof.header.training.steps_per_epoch

    def samples(self, start: int, stop: int) -> int:
        """How many samples the task's training processes in the steps ``start`` up to ``stop``."""
        per_step = self.task.batch_size * self.task.accumulate
        per_epoch = min(len(self.data), per_step * self.steps_per_epoch)

        def until(step: int) -> int:
            epochs, rest = divmod(step, self.steps_per_epoch)
            return epochs * per_epoch + min(rest * per_step, per_epoch)

        return until(stop) - until(start)

    def own_seed(self, chosen: int | None) -> int:
        """The seed of the attacker's own run: the chosen one, or one that nobody else has."""
        if chosen is not None:
            return chosen
        return randomness.derive(bytes.fromhex(canonical.sha256(self.proof.root.encode())[7:]), "attack")

    def own_session(self, seed: int) -> Session:
        """A fresh session of the task under the attacker's seed."""
        return self.session(replace(self.task, seed=seed))

    def session(self, task: Task) -> Session:
        """A fresh session of the attacker's own task, under its seed."""
        self.sessions.append(Session(task, randomness.key_from_seed(task.seed), self.device))
        return self.sessions[-1]


def run(
    victim: Victim,
    session: Session,
    stop: int,
    losses: list[float],
    interval: int | None = None,
    order: Order | None = None,
) -> Iterator[State]:
    """Honest steps from where ``session`` stands up to ``stop``; yields the state at every checkpoint, appends to ``losses``.

    ``interval``: steps between checkpoints, if not the target's. ``order``: which samples each step takes, if not those that follow
    from the session's key; all steps then begin with the generators as the first of a run has them.
    """
    interval = interval or victim.interval
    feed, derived = derived_feed(session.task, victim.data, session.key, victim.device)
    first = None if order is None else step_snapshot(session.key, 0)
    rng = None if first is None else lambda step: first
    pending: list[Tensor] = []
    for result in session.run(stop, feed, order or derived, rng=rng):
        pending.append(result.loss)
        taken = result.step + 1
        if taken % interval == 0 or taken == victim.steps:
            losses += torch.stack(pending).double().cpu().tolist()
            pending.clear()
            yield session.capture()


def graft(session: Session, donor: State) -> None:
    """Put the donor's model, optimizer memory and further parts into ``session``, which keeps its own schedule and progress."""
    own = [
        [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        for optimizer in session.optimizers.values()
    ]
    kept = [name for name in session.parts if name == "progress" or family_of(name) == "scheduler"]
    place = session.capture().part(*kept)
    session.restore(donor)
    states.restore({name: session.parts[name] for name in kept}, place)
    for optimizer, groups in zip(session.optimizers.values(), own, strict=True):
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)


def between(start: State, here: State, final: State, share: float) -> State:
    """``here`` (the final state, but for schedule and progress) with its tensors at ``share`` of the way from ``start``."""

    def at(name: str, end: Tensor) -> Tensor:
        if name not in final.tensors or "/groups/" in name or not torch.equal(end, final.tensors[name]):
            return end
        begin = start.tensors.get(name)
        begin = torch.zeros_like(end) if begin is None or begin.shape != end.shape else begin
        if share == 1.0 or torch.equal(begin, end) or end.is_complex():
            return end
        if end.is_floating_point() and end.ndim:
            return torch.lerp(begin.double(), end.double(), share).to(end.dtype)
        counted = begin.double() + (end.double() - begin.double()) * share  # counters of steps stay whole
        return counted.round().to(end.dtype)

    return State(here.tree, {name: at(name, tensor) for name, tensor in here.tensors.items()})


def shrink_rates(session: Session, factor: float) -> None:
    """Make every learning rate in ``session`` smaller, those that schedulers start from included."""
    for optimizer in session.optimizers.values():
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                if name in group:
                    group[name] = group[name] * factor
    for scheduler in session.schedulers.values():
        for part in (scheduler, *getattr(scheduler, "_schedulers", ())):
            if hasattr(part, "base_lrs"):
                part.base_lrs = [rate * factor for rate in part.base_lrs]


def step_snapshot(key: bytes, step: int) -> RngSnapshot:
    """The generators' states in which a run under ``key`` begins ``step``, as an observed run would have written them down."""
    randomness.seed_everything(randomness.derive(key, randomness.STEP, step))
    return RngSnapshot.take()


def claimed_steps(victim: Victim, start: int, stop: int) -> Iterator[tuple[Indices, RngSnapshot]]:
    """The batch indices and generator states of the target's own steps ``start`` up to ``stop`` (whole segments)."""
    header = victim.proof.header
    if header.randomness.mode == "derived":
        key = bytes.fromhex(header.randomness.key)
        _, order = derived_feed(victim.task, victim.data, key, victim.device)
        for step in range(start, stop):
            yield order.indices(step), step_snapshot(key, step)
        return
    for segment in victim.proof.segments:
        if start <= segment.start < stop:
            columns = victim.proof.columns(segment.index)
            assert columns.indices is not None and columns.rng is not None
            yield from zip(columns.indices, columns.rng, strict=True)
