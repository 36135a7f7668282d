"""Stolen proofs: what a new seal gives away, and what no replay can tell."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

import proof_of_learning as pol
from proof_of_learning import registration
from proof_of_learning.errors import AttackError
from proof_of_learning.proof.format import Initialization
from support_attacks import STEPS, Target, rejects


@pytest.fixture(scope="module")
def target(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.record(digits, tmp_path_factory.mktemp("stolen"))


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ("other-seed", "initialization"),
        ("other-claim", "initialization"),
        ("observed-claim", "registration"),
        ("cut", "order"),
    ],
)
def test_a_new_seal_contradicts_the_states(how: str, check: str, target: Target) -> None:
    forgery, verdict = target.judge("stolen", how=how)
    assert rejects(verdict) == check
    assert forgery.cost == 0.0
    assert (forgery.distance == 0.0) == (how != "cut")


def test_a_thiefs_own_claim_does_not_help_where_the_verifier_is_given_it(target: Target) -> None:
    forgery = target.attack("stolen", how="observed-claim")
    claim = forgery.path.with_name(f"{forgery.path.name}-claim.json")
    verdict = target.verdict(forgery, registration=claim)
    assert rejects(verdict) == "registration"
    assert "follow from its hash, but here they were recorded" in verdict.reason


def test_a_recorded_start_under_a_claim_is_refused_too(target: Target) -> None:
    """Derived batches do not make up for a start that was chosen."""
    proof = target.proof
    environment = next(iter(proof.environments.values()))
    own = registration.new_claim(proof.header, environment)
    header = registration.apply(own, proof.header, environment)
    assert not registration.violations(header, proof.environments)
    chosen = msgspec.structs.replace(header, initialization=Initialization("recorded"))
    assert registration.violations(chosen, proof.environments) == [
        "under a claim the initial state follows from its hash, but here it was recorded"
    ]


def test_a_cut_is_no_run_of_the_shorter_task_whose_schedule_ends_earlier(
    target: Target, digits: pol.TaskReference
) -> None:
    forgery = target.attack("stolen", how="cut", share=0.5)
    shorter = pol.load_task(pol.TaskReference(digits.target, {"steps": STEPS // 2}))
    assert rejects(pol.verify(forgery.path, replace(shorter, reference=None))) == "task"


@pytest.mark.parametrize(("how", "assurance"), [("copied", "seed-derived"), ("observed", "observed")])
def test_a_true_record_stays_valid_whoever_hands_it_in(how: str, assurance: str, target: Target) -> None:
    """By nature: the steps were taken. Who took them first, only a timestamp and a signature can say."""
    forgery, verdict = target.judge("stolen", how=how)
    assert (verdict.verdict, verdict.assurance) == ("valid", assurance)
    assert (forgery.root == target.proof.root) == (how == "copied")


def test_a_thinned_proof_cannot_be_sealed_again(target: Target) -> None:
    middle = target.proof.segments[9].state
    index = {digest: stored for digest, stored in target.proof.index.items() if digest != middle}
    thinned = replace(target, proof=replace(target.proof, index=index))
    with pytest.raises(AttackError, match="1 of the 61 checkpoints"):
        thinned.attack("stolen")
