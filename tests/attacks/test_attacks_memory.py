"""Attacks on what a state holds beside its weights: the optimizer's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD, Adam, lr_scheduler

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.attacks.gamble import fixed_nonces, odds, surveyed
from proof_of_learning.errors import AttackError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.task import Task

STEPS = 120
ALIKE = pytest.mark.slow(reason="another parameter of a teleport whose other rows are forged and judged alike")
OPTIMIZERS = {
    "momentum": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9),
    "nesterov": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda m: Adam(m.parameters(), lr=0.003),
    "plain": lambda m: SGD(m.parameters(), lr=0.05),
}


def rest(step: int) -> float:
    """The rate is 0 for thirty steps, and falls to 0 toward the end."""
    return 0.0 if 30 <= step < 60 else 1.0 - step / STEPS


def honest(digits: pol.TaskReference, path: Path, optimizer: str, paused: bool) -> tuple[Task, Proof]:
    task = pol.load_task(pol.TaskReference(digits.target, {"steps": STEPS}))
    if paused:
        task = replace(task, scheduler=lambda o: lr_scheduler.LambdaLR(o, rest))
    task = replace(task, optimizer=OPTIMIZERS[optimizer], reference=None)
    return task, Proof.open(pol.prove(task, path, interval=2).path)


@pytest.mark.usefixtures("every_segment")
@pytest.mark.parametrize(
    ("optimizer", "paused", "parameters", "near"),
    [
        pytest.param("momentum", False, {"parts": 1}, 0.2, marks=ALIKE),
        ("momentum", False, {"parts": 6}, 0.15),
        pytest.param("nesterov", False, {}, 0.15, marks=ALIKE),
        ("adam", False, {"how": "adam"}, 0.2),
        pytest.param("adam", False, {"how": "adam", "shrink": 0.1}, 0.9, marks=ALIKE),
        pytest.param("momentum", True, {"how": "latent"}, 0.9, marks=ALIKE),  # the next test forges it, too
    ],
)
def test_a_teleport_comes_near_the_target_and_its_false_momentum_is_always_replayed(
    optimizer: str, paused: bool, parameters: dict[str, Any], near: float, digits: pol.TaskReference, tmp_path: Path
) -> None:
    task, target = honest(digits, tmp_path / "honest", optimizer, paused)
    forgery = ATTACKS["teleport"](**parameters).forge(target, task, tmp_path / "forged")
    verdict = pol.verify(forgery.path, task, random=0)
    assert [check.name for check in verdict.checks if check.status == "fail"] == ["trajectory"]
    wrong = {s.index for s in verdict.segments if s.status == "fail"}
    assert wrong == set(forgery.forged) & {s.index for s in verdict.segments}
    proof = Proof.open(forgery.path)
    found = odds(proof, forgery.forged, fixed_nonces(3), found=surveyed(proof, task))
    assert found.conspicuous and found.miss == 0.0  # inertia and displacement point at them, whatever the nonce
    assert forgery.cost == 1.0
    assert forgery.distance < near * verdict.trajectory.distance[-1]


def test_a_latent_teleport_makes_a_trivial_segment_false(digits: pol.TaskReference, tmp_path: Path) -> None:
    task, target = honest(digits, tmp_path / "honest", "momentum", paused=True)
    forgery = ATTACKS["teleport"](how="latent").forge(target, task, tmp_path / "forged")
    (false,) = forgery.forged
    assert 30 <= 2 * false < 60
    verdict = pol.verify(forgery.path, task, random=8)
    assert verdict.trajectory.weights[false] == 0.0
    why = next(segment.why for segment in verdict.segments if segment.index == false)
    assert set(why) & {"top-q", "inertia", "predecessor"}


@pytest.mark.parametrize(
    ("optimizer", "how", "message"),
    [
        ("plain", "momentum", "SGD with momentum, or Adam"),
        ("adam", "momentum", "whose optimizer is SGD"),
        ("momentum", "adam", "whose optimizer is Adam"),
        ("momentum", "latent", "a segment of rate 0"),
    ],
)
def test_a_teleport_says_what_it_needs(
    optimizer: str, how: str, message: str, digits: pol.TaskReference, tmp_path: Path
) -> None:
    task, target = honest(digits, tmp_path / "honest", optimizer, paused=False)
    with pytest.raises(AttackError, match=message):
        ATTACKS["teleport"](how=how).forge(target, task, tmp_path / "forged")
