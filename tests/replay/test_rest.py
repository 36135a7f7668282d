"""Optimizers that no rule is known of: the task's own steps without gradients show where they carry the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import proof_of_learning as pol
import tasks
from proof_of_learning.attacks.base import Attack, Mounted
from proof_of_learning.attacks.jumps import falsified_run, slots
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Coasting, Describe, Glimpse, Probe
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.task import Task
from proof_of_learning.training.context import StepContext
from proof_of_learning.training.steps import Session
from proof_of_learning.verifier.survey import Looking, Survey, survey

STEPS, AT = 60, 30
MORE = pytest.mark.slow(reason="another optimizer that nothing here knows; what is done for one is done for all")


class Sums(torch.optim.SGD):
    """A class of the task's own, with an extra entry in its groups; its steps are SGD's."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05, momentum=0.9)
        self.param_groups[0]["trust"] = 1.0


class Closed(torch.optim.SGD):
    """It takes no step without being told how to compute a loss."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.005),
    "sums": Sums,
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.005),
    "closed": lambda p: Closed(p, lr=0.05, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


def closed_step(context: StepContext, batches: list[Any]) -> Tensor:
    loss = tasks.loss(context.model, batches[0])
    context.backward(loss)
    context.optimizer.step(lambda: None)
    context.optimizer.zero_grad()
    return loss.detach()


def of(name: str, **changes: Any) -> Task:
    changes = {"step": closed_step, "loss": None} | changes if name == "closed" else changes
    made = OPTIMIZERS[name]
    task = replace(tasks.task(steps=STEPS), optimizer=lambda m: made(m.parameters()), reference=None)
    return replace(task, scheduler=None, evaluate=None, **changes)


def looked(path: Path | str, task: Task) -> Survey:
    proof = Proof.open(path)
    with Replayer(proof, task) as replayer:
        return survey(proof, Looking(replayer, replayer.ask(Describe()), 7))


@dataclass(init=False, frozen=True)
class Pushed(Attack):
    """One false momentum, in the middle of honest steps."""

    name, summary, source, knowledge = "pushed", "", "", ""

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        @torch.no_grad()
        def push(before: State, live: Session) -> None:
            for _, weight, _, entries, _ in slots(live):
                for key in ("momentum_buffer", "exp_avg"):
                    if key in entries:
                        entries[key].copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))

        return falsified_run(victim, victim.own_session(3), path, {AT: push}, (), progress)


@pytest.mark.parametrize("name", [pytest.param("nadam", marks=MORE), "sums"])
def test_a_false_momentum_is_progress_where_it_was_put_in_whatever_the_optimizer(name: str, tmp_path: Path) -> None:
    task = of(name)
    target = Proof.open(pol.prove(task, tmp_path / "target", interval=1).path)
    path = Pushed().forge(target, task, tmp_path / "forged").path
    measures = {measure.name: measure.shares for measure in looked(path, task).measures}
    found = [measures[name][AT] for name in ("weights at rest", "weights")]
    assert found[0] > 0.2
    assert found[0] > 5 * found[1]  # the weights alone would charge it to honest segments
    assert {f"function at rest: {way}" for way in ("nearer", "back", "away")} <= set(measures)


@pytest.mark.parametrize("name", ["nadam", pytest.param("rprop", marks=MORE), pytest.param("sums", marks=MORE)])
def test_honest_runs_of_unknown_optimizers_are_valid_with_every_guarantee(name: str, tmp_path: Path) -> None:
    task = of(name)
    path = pol.prove(task, tmp_path / "run", interval=2).path
    verdict = pol.verify(path, task, random=8)
    assert verdict.verdict == "valid", verdict.reason
    assert not verdict.guarantee.missing
    assert verdict.check("learning").evidence["idle_segments"] == 0.0


class Dead(tasks.Net):
    """From some step on it says the same of everything, and no gradient passes any of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.calls[0] < AT // 3)


@pytest.mark.parametrize("name", [pytest.param("nadam", marks=MORE), "sums"])
def test_an_unknown_optimizer_that_is_given_no_gradient_is_idle(name: str, tmp_path: Path) -> None:
    task = of(name, model=Dead)
    path = pol.prove(task, tmp_path / "run", interval=1).path
    found = looked(path, task)
    assert (found.idle[: AT // 6] == 0.0).all()
    late = found.idle[AT:]
    assert (late[~np.isnan(late)] == 1.0).all()
    assert (~np.isnan(late)).sum() > 10
    verdict = pol.verify(path, task, random=2)
    assert verdict.check("learning").status == "inconclusive"
    assert "decay and momentum alone" in verdict.check("learning").summary


def test_an_optimizer_that_takes_no_step_by_itself_leaves_no_guarantee_over_weights(tmp_path: Path) -> None:
    task = of("closed")
    path = pol.prove(task, tmp_path / "run", interval=2).path
    verdict = pol.verify(path, task, random=8)
    assert (verdict.verdict, verdict.guarantee.missing) == ("inconclusive", ["weights"])
    assert "closure" in verdict.check("policy").summary
    assert pol.verify(path, task, random=8, accept_uniform=True).verdict == "valid"


def rests(path: Path | str, task: Task, steps: int, until: int) -> list[Glimpse]:
    proof = Proof.open(path)
    places = {
        "model/parameters/last.weight": np.array([3, 5], dtype="<i8").tobytes(),
        "model/parameters/last.bias": b"",
    }
    with Replayer(proof, task) as replayer:
        states = [proof.state(digest) for digest in proof.state_digests()[10:12]]
        return replayer.probe(Probe(b"", 5, coasting=Coasting([steps] * 2, until, places)), states)


def test_weights_coast_as_far_as_their_momentum_carries_them_and_no_farther_than_the_run(tmp_path: Path) -> None:
    task = of("sgd")
    path = pol.prove(task, tmp_path / "run", interval=1).path
    state = Proof.open(path).state(Proof.open(path).state_digests()[10])
    members = {"last.weight": [3, 5], "last.bias": [0, 1, 2, 3]}
    names = [name for name, _ in task.model().named_parameters()]
    for steps, until, taken in ((4, STEPS, 4), (300, STEPS, STEPS - 10), (4, 11, 1), (4, 10, 0)):
        rest = rests(path, task, steps, until)[0].rest
        assert rest is not None
        for name, places in members.items():
            weight = state.tensors[f"model/parameters/{name}"].flatten()[places].double()
            buffer = state.tensors[f"optimizer/state/{names.index(name)}/momentum_buffer"].flatten()[places].double()
            wanted = weight - 0.05 * buffer * sum(0.9**i for i in range(1, taken + 1))
            assert np.frombuffer(rest.weights[f"model/parameters/{name}"], "<f8") == pytest.approx(
                wanted.numpy(), abs=1e-5
            )


def test_each_state_coasts_from_itself(tmp_path: Path) -> None:
    task = of("nadam", model=lambda: tasks.Net("dropout"))
    path = pol.prove(task, tmp_path / "run", interval=1).path
    both = rests(path, task, 20, STEPS)
    assert both == rests(path, task, 20, STEPS)
    assert both[0].rest != both[1].rest
