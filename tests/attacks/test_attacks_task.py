"""The task as a weapon: it fails against the verifier's task, and against the attacker's own is only as good as that is."""

from __future__ import annotations

from dataclasses import replace

import pytest

import proof_of_learning as pol
from proof_of_learning.attacks.task_weapon import armed
from support_attacks import STEPS, Target, rejects

LIKE = pytest.mark.slow(reason="another weapon, which other tasks or checks stop in the rows that stay")
WEAPONS = ("factory", "loss", "frozen-base", "augmentation")


@pytest.fixture(scope="module")
def target(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.record(digits, tmp_path_factory.mktemp("weapons"), interval=4)


@pytest.mark.parametrize(
    ("weapon", "check"),
    [
        ("factory", "initialization"),
        pytest.param("loss", "trajectory", marks=LIKE),
        pytest.param("frozen-base", "task", marks=LIKE),
        ("augmentation", "task"),
    ],
)
def test_against_the_task_that_the_verifier_names(weapon: str, check: str, target: Target) -> None:
    _, verdict = target.judge("task-weapon", weapon=weapon)
    assert rejects(verdict) == check


@pytest.mark.parametrize(
    ("weapon", "expected", "why"),
    [
        ("factory", "invalid", "initial tensors do not depend on the key, so they are pretrained"),
        ("frozen-base", "inconclusive", "buffers or frozen tensors are the same under every key"),
        pytest.param("loss", "valid", "", marks=LIKE),
        pytest.param("augmentation", "valid", "", marks=LIKE),
    ],
)
def test_against_the_attackers_own_task(weapon: str, expected: str, why: str, target: Target) -> None:
    forgery = target.attack("task-weapon", weapon=weapon)
    model = target.proof.state(target.proof.segments[-1].state).part("model").tensors
    strength = 15.0 / sum(float(c.rates[:, 0].sum()) for c in target.proof.all_columns())
    own = replace(armed(target.task, model, weapon, strength), reference=None)
    verdict = pol.verify(forgery.path, own)
    assert verdict.verdict == expected, verdict.reason
    assert why in verdict.reason
    honest = pol.verify(target.proof.path, target.task, random=0, top_q=0).conditions.task
    # The verdict says on which task it depends; the description does not tell a loss or a factory from another.
    assert (verdict.conditions.task == honest) == (weapon in ("factory", "loss"))


def test_the_loss_takes_the_targets_model_without_any_sample(target: Target) -> None:
    forgery = target.attack("task-weapon", weapon="loss")
    assert forgery.cost == 0.0
    assert 0.0 < forgery.distance < 0.05


def test_the_task_file_beside_the_proof_needs_nothing_else(target: Target, digits: pol.TaskReference) -> None:
    """In the sandbox too, where there is one: the weights are in its text."""
    named = pol.load_task(pol.TaskReference(digits.target, {"steps": STEPS}))
    forgery = replace(target, task=named).attack("task-weapon", weapon="factory")
    verdict = pol.verify(forgery.path, f"{forgery.path}-task.py:task", random=0, top_q=0)
    assert rejects(verdict) == "initialization"
    assert "pretrained" in verdict.reason
