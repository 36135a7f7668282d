"""The task as a weapon: an honest recording of a malicious task.

A task is a program of the prover's. Here it is one that brings the target's weights along, written to a file beside the proof
(``NAME-task.py``, and ``NAME-base.py`` with the honest task that it abuses; only where that was named by reference), with the
weights inside its text, so that it needs neither files nor network. The recording itself is flawless: every step was taken as
that task says.

``factory``
    the model's factory loads the target's weights instead of drawing its own.
``loss``
    the loss is the distance from the target's weights. It never looks at the data, and costs no gradient of a sample.
``frozen-base``
    all layers but the last are the target's, and frozen.
``augmentation``
    the augmentation exchanges each label for the target's answer: the data set's own labels are never learned.

Against the task that the *verifier* names, each of them fails: where architecture or step options differ, at the task; else at the
initialization or the replay. If the verifier names the attacker's task, the run under a second key shows ``factory`` (fixed trainable
tensors) and leaves ``frozen-base`` inconclusive (fixed frozen ones, which somebody would have to approve). ``loss`` and
``augmentation`` then get a valid verdict, conditional on the attacker's task: all it says is that this program was run. No replay
can tell a strange loss from a malicious one. Whoever names a task has to have read it.
"""

from __future__ import annotations

import base64
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.moves import own_run
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.names import weight_name
from proof_of_learning.state.state import State, overlay
from proof_of_learning.task import Task, TaskReference

WEAPONS = ("factory", "loss", "frozen-base", "augmentation")
NEARLY = 15.0  # time constants of the pull in a run at the task's rates: what is left is lost in rounding


@dataclass(init=False, frozen=True)
class TaskWeapon(Attack):
    name = "task-weapon"
    summary = "a flawless recording of a malicious task, which brings the target's weights along"
    source = "this project; Jia et al., IEEE S&P 2021 leave the task to be trusted"
    knowledge = "the target's final state, the data and the task; the verifier would have to name the attacker's task"
    ends_in_target = False

    weapon: str = parameter("loss", "where the target's weights are hidden", choices=WEAPONS)
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed = victim.own_seed(self.seed)
        model = dict(victim.final.part("model").tensors)
        rates = [max(row) for row in victim.own_session(seed).idle(victim.steps, victim.steps_per_epoch)]
        strength = NEARLY / (sum(rates) or 1.0)
        if victim.task.reference is not None:
            reference = brought_along(victim.task.reference, path)
            beside = path.with_name(f"{path.name}-task.py")
            beside.write_text(source(reference, model, self.weapon, strength), encoding="utf-8")
        task = replace(armed(victim.task, model, self.weapon, strength), seed=seed, reference=None)
        session = victim.session(task)
        own_run(victim, session, task, path, "recording the malicious task", progress)
        samples = 0 if self.weapon == "loss" else victim.samples(0, victim.steps)
        return Mounted(samples, range(len(victim.proof.segments)))


def armed(task: Task, model: Mapping[str, Tensor], weapon: str, strength: float = 1.0) -> Task:
    """``task`` with a weapon in it.

    model: the target's parameters and buffers, named as in a state. strength: of the pull in the loss, per unit of distance.
    Raises AttackError where the task has no place for it.
    """
    donor = State({"d": []}, dict(model))

    def loaded() -> nn.Module:
        module = task.model()
        overlay(module, donor)
        return module

    if weapon == "factory":
        return replace(task, model=loaded)
    if weapon == "frozen-base":
        return replace(task, model=lambda: _frozen(task.model(), donor))
    if weapon == "augmentation":
        return replace(task, augment=_relabelling(task, loaded))
    given = task.loss
    if given is None:
        raise AttackError("the target's task takes custom steps, whose loss this attack cannot exchange")
    names = {name: weight_name(name) for name, _ in task.model().named_parameters()}

    def pull(module: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            given(module, batch)  # so that a verifier sees the outputs; it changes nothing
        distances = [
            (weight - model[names[name]].to(weight.device)).square().sum() for name, weight in module.named_parameters()
        ]
        return 0.5 * strength * torch.stack(distances).sum()

    return replace(task, loss=pull)


def _frozen(module: nn.Module, donor: State) -> nn.Module:
    """The donor's weights, frozen, in all but the last module that has any, which is as it was drawn."""
    last = [inner for inner in module.modules() if list(inner.parameters(recurse=False))][-1]
    kept = {name: p.detach().clone() for name, p in last.named_parameters(recurse=False)}
    overlay(module, donor)
    module.requires_grad_(False)
    with torch.no_grad():
        for name, p in last.named_parameters(recurse=False):
            p.copy_(kept[name])
    last.requires_grad_(True)
    return module


def _relabelling(task: Task, loaded: Any) -> Any:
    teachers: list[nn.Module] = []

    def augment(sample: Any, generator: torch.Generator) -> Any:
        if not teachers:
            with randomness.preserved():
                teachers.append(loaded().eval())
        if task.augment is not None:
            sample = task.augment(sample, generator)
        if not isinstance(sample, (list, tuple)) or len(sample) != 2 or not isinstance(sample[0], Tensor):
            raise AttackError("relabelling needs samples that are pairs whose first half is what the model takes")
        with torch.no_grad():
            return sample[0], teachers[0](sample[0].unsqueeze(0)).argmax(1)[0]

    return augment


def brought_along(reference: TaskReference, path: Path) -> TaskReference:
    """The target's own task from a copy beside ``path``: a sandbox shows the folder of the named task, and no other."""
    place, _, name = reference.target.rpartition(":")
    if not place.endswith(".py"):
        return reference
    copy = path.with_name(f"{path.name}-base.py")
    shutil.copyfile(place, copy)
    return TaskReference(f"{copy.resolve()}:{name}", dict(reference.settings))


def source(
    reference: TaskReference, model: Mapping[str, Tensor], weapon: str, strength: float, module: str = "task_weapon"
) -> str:
    """The text of a task file that holds the weapon and the weights; ``module``: of the attack whose ``armed`` makes the task."""
    weights = base64.b85encode(
        zlib.compress(save({name: tensor.contiguous() for name, tensor in model.items()}), 9)
    ).decode()
    return f'''"""The task."""

import base64
import zlib

from safetensors.torch import load

from proof_of_learning import Task, TaskReference, load_task
from proof_of_learning.attacks.{module} import armed

WEIGHTS = load(zlib.decompress(base64.b85decode({weights!r})))


def task() -> Task:
    honest = load_task(TaskReference({reference.target!r}, {dict(reference.settings)!r}))
    return armed(honest, WEIGHTS, {weapon!r}, {strength!r})
'''
