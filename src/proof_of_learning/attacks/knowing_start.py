"""Knowing start: a task whose initial weights depend on the key in every value, and answer as the target from the first step.

Units of a layer of ReLUs can be exchanged, and each made larger by what the next layer takes back: the function stays. A factory that
does so with the target's weights, by permutations and factors drawn from the key, gives weights under two keys that share nothing.
The recording is flawless, as in ``task-weapon``: there is nothing to learn, and the run may be as short as the task says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.moves import own_run
from proof_of_learning.attacks.task_weapon import brought_along, source
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State, overlay
from proof_of_learning.task import Task
from proof_of_learning.training.steps import Session

THROUGH = (nn.Flatten, nn.Identity, nn.Dropout, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)


@dataclass(init=False, frozen=True)
class KnowingStart(Attack):
    name = "knowing-start"
    summary = "a task that permutes and rescales the target's hidden units by the key and calls that its initialization"
    source = "this project, found by an attack from outside on its own verifier"
    knowledge = "the target's final weights, the data and the task; the verifier would have to name the attacker's task"
    ends_in_target = False

    spread: float = parameter(0.5, "spread of the units' factors (deviation of their logarithm)", low=0.0, high=3.0)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = ({}, {"spread": 0.05}, {"spread": 1.5})

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        model = dict(victim.final.part("model").tensors)
        task = replace(armed(victim.task, model, "", self.spread), seed=seed, reference=None)
        if victim.task.reference is not None:
            text = source(brought_along(victim.task.reference, path), model, "", self.spread, module="knowing_start")
            path.with_name(f"{path.name}-task.py").write_text(text, encoding="utf-8")
        session = Session(task, randomness.key_from_seed(seed), victim.device)
        own_run(victim, session, task, path, "recording the malicious task", progress)
        return Mounted(victim.samples(0, victim.steps), range(len(victim.proof.segments)))


def armed(task: Task, model: Mapping[str, Tensor], weapon: str, spread: float) -> Task:
    """``task`` with the factory; raises AttackError where its model has no layers in a row of which to exchange units.

    model: the target's parameters and buffers, named as in a state. weapon: not used, for there is one.
    """
    donor = State({"d": []}, dict(model))

    def disguised() -> nn.Module:
        module = task.model()
        overlay(module, donor)
        disguise(module, spread)
        return module

    with randomness.preserved():
        disguised()
    return replace(task, model=disguised)


@torch.no_grad()
def disguise(module: nn.Module, spread: float) -> None:
    """Exchange and rescale the hidden units of a ``nn.Sequential`` at random; the classes' probabilities stay, but for rounding."""
    rows = [inner for inner in module.modules() if not list(inner.children())]
    affine = [i for i, inner in enumerate(rows) if isinstance(inner, (nn.Linear, nn.modules.conv._ConvNd))]
    if not isinstance(module, nn.Sequential) or len(affine) < 2:
        raise AttackError("this attack needs a task whose model is a Sequential of layers with ReLUs between them")
    for here, there in pairwise(affine):
        first, second, between = rows[here], rows[there], rows[here + 1 : there]
        if not any(isinstance(inner, nn.ReLU) for inner in between) or not all(
            isinstance(inner, (nn.ReLU, *THROUGH)) for inner in between
        ):
            raise AttackError("this attack needs a task whose model is a Sequential of layers with ReLUs between them")
        assert isinstance(first.weight, Tensor) and isinstance(second.weight, Tensor)
        units = len(first.weight)
        order, factor = torch.randperm(units), torch.exp(spread * torch.randn(units))
        first.weight.copy_((first.weight * factor.reshape(-1, *[1] * (first.weight.ndim - 1)))[order])
        if isinstance(first.bias, Tensor):
            first.bias.copy_((first.bias * factor)[order])
        blocks = second.weight.reshape(len(second.weight), units, -1)
        second.weight.copy_((blocks / factor[None, :, None])[:, order].reshape(second.weight.shape))
    last = rows[affine[-1]]
    if isinstance(last.bias, Tensor):
        last.bias.add_(torch.randn(()))  # all scores alike: the softmax does not see it
