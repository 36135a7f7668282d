"""Inertia against what real optimizers do when they are given gradients of zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from proof_of_learning.state.state import capture
from proof_of_learning.verifier.inertia import inertia
from support_dynamics import VARIANTS

Made = tuple[nn.Module, torch.optim.Optimizer]


def trained(make: Callable[[Any], torch.optim.Optimizer], seed: int = 0) -> Made:
    torch.manual_seed(seed)
    model = nn.Linear(6, 4)
    optimizer = make(model.parameters())
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def step_without_gradient(made: Made, rate: float) -> float:
    model, optimizer = made
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = rate
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    pairs = zip(before, model.parameters(), strict=True)
    return math.sqrt(sum(float((p.detach() - b).norm()) ** 2 for b, p in pairs))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "adagrad"])
def test_inertia_is_the_step_that_follows_without_a_gradient(name: str) -> None:
    made = trained(VARIANTS[name])
    found = inertia(capture({"model": made[0], "optimizer": made[1]}), {"optimizer": [0.3]})
    assert found == pytest.approx(step_without_gradient(made, 0.3), rel=1e-4, abs=1e-6)


def test_each_optimizer_moves_at_its_own_rates() -> None:
    """The task's order of optimizers is not that of their names."""
    big, small = (trained(VARIANTS["sgd"], seed) for seed in (1, 2))
    state = capture({"model": nn.ModuleList([big[0], small[0]]), "optimizer.z": big[1], "optimizer.a": small[1]})
    found = inertia(state, {"optimizer.z": [100.0], "optimizer.a": [0.01]})
    moves = [step_without_gradient(made, rate) for made, rate in ((big, 100.0), (small, 0.01))]
    assert found == pytest.approx(math.hypot(*moves), rel=1e-4)
    other = inertia(state, {"optimizer.z": [0.01], "optimizer.a": [100.0]})
    assert other != pytest.approx(found, rel=1e-2)


def test_rates_that_nobody_is_named_for_are_taken_at_their_largest() -> None:
    first, second = (trained(VARIANTS["sgd"], seed) for seed in (1, 2))
    state = capture({"model": nn.ModuleList([first[0], second[0]]), "optimizer.a": first[1], "optimizer.b": second[1]})
    largest = inertia(state, {"optimizer.a": [3.0], "optimizer.b": [3.0]})
    assert inertia(state, [0.1, 3.0]) == inertia(state, [3.0, 0.1]) == pytest.approx(largest)
    assert inertia(state, {"optimizer.a": [3.0]}) == pytest.approx(largest)
    only = capture({"model": first[0], "optimizer": first[1]})
    assert inertia(only, [0.5]) == inertia(only, {"optimizer": [0.5]}) > 0


@pytest.mark.parametrize("cls", ["NAdam", "RAdam", "Adadelta", "Adamax"])
def test_unknown_optimizers_have_inertia_too(cls: str) -> None:
    made = trained(getattr(torch.optim, cls))
    assert inertia(capture({"model": made[0], "optimizer": made[1]}), {"optimizer": [0.1]}) > 0


def test_a_malformed_state_has_infinite_inertia() -> None:
    made = trained(VARIANTS["adam"])
    state = capture({"model": made[0], "optimizer": made[1]})
    short = {n: t[:1] if n.endswith("exp_avg_sq") else t for n, t in state.tensors.items()}
    nothing = {n: t * math.nan if n.endswith("exp_avg") else t for n, t in state.tensors.items()}
    for tensors in (short, nothing):
        assert inertia(replace(state, tensors=tensors), {"optimizer": [0.1]}) == math.inf
    assert inertia(replace(state, tree={"d": [["s:optimizer", {"d": []}]]}), {"optimizer": [0.1]}) == math.inf


def test_both_parts_of_complex_weights_move() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4, dtype=torch.cfloat)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 6, dtype=torch.cfloat)).abs().square().mean().backward()
        optimizer.step()
    found = inertia(capture({"model": model, "optimizer": optimizer}), {"optimizer": [0.3]})
    assert found == pytest.approx(step_without_gradient((model, optimizer), 0.3), rel=1e-4)
