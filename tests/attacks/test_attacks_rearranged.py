"""A run with its hidden units rearranged: what no replay can tell, what its grade says, and that a dispute names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS, Forgery
from proof_of_learning.errors import AttackError
from proof_of_learning.task import Task
from support_attacks import rejects


@pytest.fixture(scope="module")
def task(tiny: pol.TaskReference) -> Task:
    return replace(pol.load_task(tiny), reference=None)


@pytest.fixture(scope="module")
def target(task: Task, tmp_path_factory: pytest.TempPathFactory) -> pol.Proof:
    return pol.Proof.open(pol.prove(task, tmp_path_factory.mktemp("rearranged") / "target", interval=2).path)


def forged(target: pol.Proof, task: Task, path: Path, **parameters: str | float) -> Forgery:
    forgery = ATTACKS["rearranged"](**parameters).forge(target, task, path)
    assert forgery.cost == 0.0 and forgery.distance > 0
    return forgery


def test_within_tolerance_it_is_a_valid_observed_run_and_a_dispute_names_it(
    target: pol.Proof, task: Task, tmp_path: Path
) -> None:
    forgery = forged(target, task, tmp_path / "forged")
    pol.export(forgery.path, tmp_path / "model.safetensors")
    proofs = [(target.path, task), (forgery.path, task)]
    found = pol.dispute(tmp_path / "model.safetensors", proofs, fresh=0, allow_calibrated=True)
    owner, thief = found.proofs
    said = thief.verdict
    assert (said.verdict, said.assurance, said.exactness) == ("valid", "observed", "calibrated"), said.reason
    assert (found.outcome, owner.end.kind, thief.end.kind) == ("undecided", "rearranged", "exact")
    assert any(line.startswith("The starts of A and B are not independent") for line in found.findings), found.findings


def test_exactly_no_other_order_replays(target: pol.Proof, task: Task, tmp_path: Path) -> None:
    forgery = forged(target, task, tmp_path / "forged", claims="nothing", share=0.2)
    assert rejects(pol.verify(forgery.path, task)) == "trajectory"


def test_signs_need_odd_activations_and_then_no_tolerance(
    target: pol.Proof, task: Task, digits: pol.TaskReference, digits_proof: Path, tmp_path: Path
) -> None:
    forgery = forged(target, task, tmp_path / "forged", how="signs", claims="nothing")
    verdict = pol.verify(forgery.path, task)
    assert (verdict.verdict, verdict.assurance, verdict.exactness) == ("valid", "observed", "exact"), verdict.reason
    assert not forgery.forged
    with pytest.raises(AttackError, match="units' signs changed"):
        ATTACKS["rearranged"](how="signs").forge(pol.Proof.open(digits_proof), pol.load_task(digits), tmp_path / "relu")
