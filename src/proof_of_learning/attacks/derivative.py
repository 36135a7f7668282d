"""Derivatives of the target's model, presented as the outcome of training (Jia et al., IEEE S&P 2021, sections VII-B and VII-C1).

What the attacker wants here is not the target's weights but a model as good as the target's that looks like his own:

``fine-tuned``
    honest steps from the target's weights.
``pruned``
    the smallest weights are set to 0, then honest steps.
``sparsified``
    the same, and at every checkpoint those weights are set to 0 again, so that the final model is sparse.
``distilled``
    a fresh network learns the target's outputs instead of the labels (Hinton et al., 2015; matching of outputs after Ba and
    Caruana, 2014). The batches must be pairs whose first half is what the model takes.

The steps are taken in the last ``effort`` of the segments, and replay bit for bit (fine-tuned and pruned). What comes before is filler
without any gradient, from the state that the proof claims to start from:

``recorded``
    the derivative itself, as a recorded initialization: the filler stands still.
``arranged``
    values that pass the test of recorded initializations, in the order of the derivative's (see the attack ``rank-matched``).
``derived``
    the fresh initialization of the attacker's own seed, as it should be; the only choice that distillation has.

With ``effort=1`` and an arranged start the proof is valid, and nothing in it is false: honest steps were taken for as long as the
task says, from weights that nobody shows to be random. It costs what honest training costs, and its assurance is ``observed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.forge import forge_proof, plausible_loss
from proof_of_learning.attacks.moves import as_claimed, on_the_way
from proof_of_learning.attacks.rank_matched import arranged
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import measured, weights
from proof_of_learning.state.state import State


@dataclass(init=False, frozen=True)
class Derivative(Attack):
    name = "derivative"
    summary = "the target's model fine-tuned, pruned, sparsified or distilled, presented as the outcome of training"
    source = "Jia et al., IEEE S&P 2021, sections VII-B and VII-C1; distillation: Hinton et al., 2015"
    knowledge = "the target's final state, the data and the task"
    ends_in_target = False

    how: str = parameter("fine-tuned", "the derivative", choices=("fine-tuned", "pruned", "sparsified", "distilled"))
    start: str = parameter("recorded", "the initial state that is claimed", choices=("recorded", "arranged", "derived"))
    effort: float = parameter(0.1, "share of the segments in which steps are taken", low=0.0, high=1.0)
    zeros: float = parameter(
        0.3, "share of each tensor's weights that are set to 0 (pruned, sparsified)", low=0.0, high=1.0
    )
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        count, interval = len(victim.proof.segments), victim.interval
        head = count - max(1, round(self.effort * count))
        distilled = self.how == "distilled"
        session = victim.session(self._task(victim, seed))
        fresh = session.capture()
        mask = _mask(victim.final, self.zeros) if self.how in ("pruned", "sparsified") else {}
        model = fresh if distilled else _masked(_with_model(fresh, victim.final), mask)
        start = fresh
        if self.start != "derived" and not distilled:
            start = model if self.start == "recorded" else arranged(fresh, model, seed)
        losses: list[float] = []
        evaluation: dict[str, float] = {}

        def states() -> Iterator[State]:
            yield start
            losses.extend(plausible_loss(victim.steps)[: head * interval].tolist())
            state = start
            for index in range(head):
                progress("filling", index + 1, count)
                state = on_the_way(victim, session, start, model, (index + 1) * interval, (index + 1) / head)
                yield state
            session.restore(state)
            for index in range(head, count):
                progress("training", index + 1, count)
                (state,) = run(victim, session, min((index + 1) * interval, victim.steps), losses)
                if self.how == "sparsified":
                    state = _masked(state, mask)
                    session.restore(state)
                if index + 1 == count:
                    evaluation.update(session.evaluate() or {})
                yield state

        claims = {**as_claimed(victim), "evaluation": None if victim.task.evaluate is None else evaluation}
        kind = "derived" if self.start == "derived" or distilled else "recorded"
        forge_proof(
            path, victim.task, states(), None,
            hyperparameters={"loss": (losses[step] for step in range(victim.steps))},
            seed=seed, initialization=kind, environment=victim.environment, **claims,
        )  # fmt: skip
        altered = self.how in ("distilled", "sparsified")  # the steps themselves are not the task's
        return Mounted(victim.samples(head * interval, victim.steps), range(count if altered else head))

    def _task(self, victim: Victim, seed: int) -> Any:
        """The task as the attacker really trains it."""
        task = replace(victim.task, seed=seed)
        if self.how != "distilled":
            return task
        if task.step is not None:
            raise AttackError("the target's task takes custom steps, whose loss this attack cannot exchange")
        teacher = victim.own_session(seed)
        teacher.restore(victim.final)
        return replace(task, loss=_matching(teacher.model))


def _matching(teacher: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
    """The loss of distillation: mean squared distance of the two models' outputs."""
    teacher.eval()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (list, tuple)) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            raise AttackError("distillation needs batches of pairs whose first half is what the model takes")
        with torch.no_grad():
            wanted = teacher(batch[0])
        return F.mse_loss(model(batch[0]), wanted)

    return loss


def _with_model(fresh: State, donor: State) -> State:
    """``fresh`` with the donor's parameters and buffers: a start whose optimizer has not moved yet."""
    own = {
        name: tensor for name, tensor in donor.tensors.items() if name.startswith("model/") and name in fresh.tensors
    }
    return State(fresh.tree, {**fresh.tensors, **own})


def _mask(model: State, zeros: float) -> dict[str, Tensor]:
    """For each parameter of two and more dimensions, which elements stay: all but the smallest."""
    kept = {}
    for name, tensor in weights(model).items():
        if measured(tensor) and tensor.ndim > 1:
            sizes = tensor.abs().flatten()
            stays = torch.ones_like(sizes, dtype=torch.bool)
            stays[torch.argsort(sizes)[: round(zeros * sizes.numel())]] = False
            kept[name] = stays.reshape(tensor.shape)
    return kept


def _masked(state: State, mask: dict[str, Tensor]) -> State:
    changed = {name: state.tensors[name] * stays for name, stays in mask.items()}
    return State(state.tree, {**state.tensors, **changed}) if changed else state
