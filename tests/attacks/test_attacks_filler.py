"""Attacks that fill a run with what is no training: straight lines, standing still, and data made to fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.attacks.base import Forgery
from proof_of_learning.attacks.gamble import Odds, fixed_nonces, odds, surveyed
from proof_of_learning.attacks.synthetic_data import load_data
from proof_of_learning.errors import AttackError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.task import Task
from proof_of_learning.verifier.survey import survey

STEPS = 360


@pytest.fixture(scope="module")
def task(digits: pol.TaskReference) -> Task:
    return replace(pol.load_task(pol.TaskReference(digits.target, {"steps": STEPS})), reference=None)


@pytest.fixture(scope="module")
def target(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return Proof.open(pol.prove(task, tmp_path_factory.mktemp("honest") / "target", interval=1).path)


def fare(forgery: Forgery, task: Task, nonces: int) -> Odds:
    proof = Proof.open(forgery.path)
    return odds(proof, forgery.forged, fixed_nonces(nonces), found=surveyed(proof, task))


def failed(verdict: pol.Verdict) -> list[str]:
    return [check.name for check in verdict.checks if check.status == "fail"]


@pytest.mark.slow(reason="two forgeries of 360 segments and forty draws; test_attacks forges and judges one of them")
@pytest.mark.usefixtures("every_segment")
def test_a_blindfold_shows_the_directed_choices_genuine_segments_and_the_draws_filler(
    task: Task, target: Proof, tmp_path: Path
) -> None:
    plain = ATTACKS["blindfold"](adapt=False).forge(target, task, tmp_path / "plain")
    aware = ATTACKS["blindfold"]().forge(target, task, tmp_path / "aware")
    seen = [fare(f, task, 20) for f in (plain, aware)]
    assert len(seen[1].conspicuous) < len(seen[0].conspicuous)
    assert plain.cost < aware.cost < 0.5
    assert seen[1].segment_share > 0.5 and seen[1].miss == 0.0
    verdict = pol.verify(aware.path, task, nonce=fixed_nonces(1)[0], accept_nonce=True)
    assert failed(verdict) == ["trajectory"]
    wrong = {segment.index for segment in verdict.segments if segment.status == "fail"}
    assert wrong == set(aware.forged) & {segment.index for segment in verdict.segments}


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ("rate", "hyperparameters"),
        pytest.param("tiny", "hyperparameters", marks=pytest.mark.slow(reason="found by the same check as the rate")),
        ("skipped", "trajectory"),
    ],
)
def test_padding_is_caught_and_does_not_count(how: str, check: str, task: Task, target: Proof, tmp_path: Path) -> None:
    forgery = ATTACKS["padding"](how=how).forge(target, task, tmp_path / "forged")
    assert forgery.distance == 0.0
    assert failed(pol.verify(forgery.path, task)) == [check]
    trivial = survey(Proof.open(forgery.path)).trivial.sum()
    assert trivial == (STEPS * 0.9 if how == "rate" else 0)


@pytest.mark.slow(reason="fifty draws over 360 segments; test_attacks_gambling looks for jumps at rate 0, too")
def test_padding_that_the_schedule_allows_leaves_the_jump_among_few(task: Task, tmp_path: Path) -> None:
    """A task whose rate is 0 from step 40 on: nine tenths of the segments replay, and none of them is drawn in the jump's place."""
    idle = replace(task, scheduler=lambda o: lr_scheduler.LambdaLR(o, lambda step: float(step < 40)))
    honest = Proof.open(pol.prove(idle, tmp_path / "honest", interval=1).path)
    forgery = ATTACKS["padding"](how="rate", share=0.89).forge(honest, idle, tmp_path / "forged")
    found = fare(forgery, idle, 50)
    assert len(forgery.forged) == 1 and found.segment_share == 1 / 40
    assert found.miss == 0.0
    assert pol.verify(forgery.path, idle, nonce=fixed_nonces(1)[0], accept_nonce=True).verdict == "invalid"


@pytest.mark.parametrize(
    ("parameters", "replays"),
    [({"variant": "I"}, True), ({"variant": "III", "interval": 2}, True), ({"variant": "II", "delta": 0.05}, False)],
)
def test_synthetic_data_are_not_the_verifiers(
    parameters: dict[str, Any], replays: bool, task: Task, target: Proof, tmp_path: Path
) -> None:
    forgery = ATTACKS["synthetic-data"](iterations=4, **parameters).forge(target, task, tmp_path / "forged")
    assert failed(pol.verify(forgery.path, task)) == ["data"]
    data, steps = load_data(forgery.path), Proof.open(forgery.path).header.training.planned
    assert torch.isfinite(data.tensors[0]).all()
    named_by_the_prover = replace(task, data=lambda: data, steps=steps)
    verdict = pol.verify(forgery.path, named_by_the_prover)
    assert verdict.verdict == (
        "valid" if replays else "invalid"
    )  # a verdict is conditional on the data for this reason
    assert (forgery.distance == 0.0) == (not replays)
    start, final = Proof.open(forgery.path).initial_state, target.segments[-1].state
    begun = weight_distance(weights(Proof.open(forgery.path).state(start)), weights(target.state(final)))
    assert (
        forgery.distance < 1.05 * begun
    )  # about as far: each update is a problem of its own, and four iterations solve none
    assert forgery.samples_processed > 0


def test_what_synthetic_data_need(tiny: pol.TaskReference, tmp_path: Path) -> None:
    task = replace(pol.load_task(pol.TaskReference(tiny.target, {"optimizer": "adam"})), reference=None)
    honest = Proof.open(pol.prove(task, tmp_path / "honest", interval=4).path)
    with pytest.raises(AttackError, match="SGD with one group"):
        ATTACKS["synthetic-data"]().forge(honest, task, tmp_path / "forged")
