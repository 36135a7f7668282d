"""Learning: steps that were taken and did nothing, or that had nothing to do, are not valid; honest tiny runs are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import proof_of_learning as pol
import tasks
from proof_of_learning.task import Task

STEPS = 40


def dead() -> nn.Module:
    """No gradient passes its second layer: whatever comes, nothing gets over the bias of -100."""
    net = nn.Sequential(
        nn.Linear(tasks.FEATURES, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, tasks.CLASSES)
    )
    with torch.no_grad():
        net.get_parameter("2.bias").sub_(100.0)
    return net


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(tasks.FEATURES, 16), nn.Tanh(), nn.Linear(16, tasks.CLASSES))


class Knowing(nn.Module):
    """Fresh weights, which a rule of thumb for the labels outweighs: under every key it knows the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tasks.Net()

    def forward(self, x: Tensor) -> Tensor:
        answer = (x[:, 0] * 2 + x[:, 1] + 2).long().clamp(0, tasks.CLASSES - 1)
        return 0.1 * self.net(x) + 5.0 * F.one_hot(answer, tasks.CLASSES)


def of(**changes: Any) -> Task:
    return replace(tasks.task(optimizer="momentum", steps=STEPS), evaluate=None, **changes)


def judged(task: Task, folder: Path, interval: int = 1, **options: Any) -> tuple[pol.Verdict, Any]:
    verdict = pol.verify(pol.prove(task, folder / "run", interval=interval).path, task, random=8, **options)
    return verdict, verdict.check("learning")


@pytest.mark.quick
def test_a_network_that_no_gradient_passes_learned_nothing(tmp_path: Path) -> None:
    verdict, found = judged(of(model=dead, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.05)), tmp_path)
    assert (verdict.verdict, found.status) == ("inconclusive", "inconclusive")
    assert "learned nothing" in found.summary and "training.max_idle_share" in found.summary
    assert verdict.check("trajectory").status == "pass"


def test_a_policy_may_allow_idle_parts(tmp_path: Path) -> None:
    task = of(model=dead, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.05))
    policy = tmp_path / "policy.toml"
    policy.write_text("[training]\nmax_idle_share = 1.0")
    _, found = judged(task, tmp_path, policy=policy)
    assert "learned nothing" not in found.summary


def test_a_run_that_stays_where_it_began_learned_nothing(tmp_path: Path) -> None:
    """Every step is honest; the rate is so small that no output moves but by rounding."""
    task = of(model=plain, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-30))
    verdict, found = judged(task, tmp_path, accept_uniform=True)
    assert (verdict.verdict, found.status) == ("inconclusive", "inconclusive")
    assert "nothing was learned: the first function is 0 from the final one" in found.summary


def jittering(context: Any, batches: list[Any]) -> Tensor:
    """A step that puts the weights somewhere beside where they began: the last states are as far from each other as from the first."""
    value = tasks.loss(context.model, batches[0])
    context.backward(value)
    context.update()
    with torch.no_grad():
        for name, weight in context.model.named_parameters():
            home = context.parts["home"].values[name]
            weight.copy_(home + 0.1 * torch.randn(home.shape))
    return value


class Home:
    def __init__(self, model: nn.Module) -> None:
        self.values = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.values = values["values"]


@pytest.mark.parametrize("interval", [1, 4])
def test_a_run_that_jitters_about_its_start_learned_nothing(interval: int, tmp_path: Path) -> None:
    task = of(loss=None, step=jittering, parts=lambda model: {"home": Home(model)})
    verdict, found = judged(task, tmp_path, interval)
    assert (verdict.verdict, found.status) == ("inconclusive", "inconclusive")
    assert "nothing was learned" in found.summary
    assert found.evidence["first_to_final"] < 2 * found.evidence["final_unrest"]


def test_a_start_that_knows_under_every_key_leaves_nothing_to_teach(tmp_path: Path) -> None:
    verdict, found = judged(of(model=Knowing), tmp_path)
    assert (verdict.verdict, found.status) == ("inconclusive", "inconclusive")
    assert "a start under a fresh key knows" in found.summary
    assert found.evidence["known_under_a_fresh_key"] > 0.9


LENGTHS = (1, 4, 20, STEPS)
KINDS: list[dict[str, Any]] = [{"optimizer": "sgd"}, {}, {"optimizer": "adam"}, {"net": "batchnorm"}]
PAIRED = pytest.mark.slow(reason="each kind at another length, and each length with another kind, stay")


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        pytest.param(kind, length, marks=() if place == at or kind == {} else PAIRED)
        for place, kind in enumerate(KINDS)
        for at, length in enumerate(LENGTHS)
    ],
    ids=str,
)
def test_honest_runs_of_few_segments_learned_something(settings: dict[str, Any], interval: int, tmp_path: Path) -> None:
    _, found = judged(tasks.task(steps=STEPS, **settings), tmp_path, interval)
    assert found.status == "pass", found.summary
