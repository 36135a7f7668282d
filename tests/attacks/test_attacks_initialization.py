"""Attacks on where training begins: arranged weights, and derivatives of the target as a start."""

from __future__ import annotations

import pytest
import torch

import proof_of_learning as pol
from proof_of_learning.attacks.rank_matched import accepted, arranged
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.state.state import State
from support_attacks import Target, rejects

# Each derivative and each start once; the other pairs are for `make test-all`.
STATUS = {"recorded": "inconclusive", "arranged": "pass", "derived": "pass"}
DRAWN = {("fine-tuned", "recorded"), ("pruned", "arranged"), ("sparsified", "derived")}
PAIRED = pytest.mark.slow(
    reason="what is made of the target and where it starts are told apart in other pairs of the two"
)
PAIRS = [
    pytest.param(how, start, status, marks=() if (how, start) in DRAWN else PAIRED)
    for how in ("fine-tuned", "pruned", "sparsified")
    for start, status in STATUS.items()
]


@pytest.fixture(scope="module")
def target(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.record(digits, tmp_path_factory.mktemp("initialization"), interval=4)


def first_and_last(proof: pol.Proof) -> tuple[State, State]:
    return proof.state(proof.initial_state), proof.state(proof.segments[-1].state)


def test_an_arranged_start_is_a_permutation_that_passes_and_is_nearer(target: Target) -> None:
    fresh, final = first_and_last(target.proof)
    start = arranged(fresh, final, seed=5)
    assert accepted(start) and not accepted(State(fresh.tree, {**fresh.tensors, **weights(final)}))
    for name, tensor in weights(start).items():
        assert torch.equal(tensor.flatten().sort().values, fresh.tensors[name].flatten().sort().values)
    unrelated = arranged(fresh, final, seed=5, share=0.0)
    assert weight_distance(weights(start), weights(final)) < weight_distance(weights(unrelated), weights(final))


def test_the_search_takes_no_larger_share_than_passes(target: Target) -> None:
    """A perfect order of strongly structured weights shows in the spectrum; the search stops short of it."""
    fresh, final = first_and_last(target.proof)
    name = next(n for n, t in weights(final).items() if t.ndim == 4 and t.shape[1] == 8)
    ridge = torch.linspace(-1, 1, 16).reshape(16, 1, 1, 1) * torch.ones(16, 8, 3, 3)
    model = State(final.tree, {**final.tensors, name: ridge + 1e-3 * final.tensors[name]})
    assert not accepted(arranged(fresh, model, seed=5, share=1.0))
    found = arranged(fresh, model, seed=5)
    assert accepted(found)
    assert weights(found)[name].flatten().argsort().tolist() != weights(fresh)[name].flatten().argsort().tolist()


def test_rank_matching_passes_the_test_of_the_start_and_fails_at_the_replay(target: Target) -> None:
    forgery, verdict = target.judge("rank-matched")
    assert verdict.check("initialization").status == "pass"
    assert rejects(verdict) == "trajectory"
    assert (forgery.cost, forgery.distance, verdict.assurance) == (0.0, 0.0, "observed")


@pytest.mark.parametrize(("how", "start", "status"), PAIRS)
def test_derivatives_are_rejected_by_the_way_from_their_start(
    how: str, start: str, status: str, target: Target
) -> None:
    """That weights fit no usual law is no proof of forgery: what was trained so little is no less independent than a draw."""
    forgery, verdict = target.judge("derivative", how=how, start=start)
    assert rejects(verdict) == "trajectory"
    assert verdict.check("initialization").status == status
    assert forgery.cost == pytest.approx(0.1, abs=0.001)
    assert 0.0 < forgery.distance < 1.0


def test_distillation_is_rejected_though_its_start_is_honest(target: Target) -> None:
    forgery, verdict = target.judge("derivative", how="distilled", effort=0.5)
    assert verdict.check("initialization").status == "pass"
    assert rejects(verdict) == "trajectory"
    assert forgery.cost == pytest.approx(0.5, abs=0.01)


def test_sparse_models_are_sparse_at_the_end(target: Target) -> None:
    proofs = {how: pol.Proof.open(target.attack("derivative", how=how).path) for how in ("pruned", "sparsified")}
    zeros = {
        how: [int((t == 0).sum()) / t.numel() for t in weights(first_and_last(proof)[1]).values() if t.ndim > 1]
        for how, proof in proofs.items()
    }
    assert all(share == pytest.approx(0.3, abs=0.01) for share in zeros["sparsified"])
    assert all(some < all_ for some, all_ in zip(zeros["pruned"], zeros["sparsified"], strict=True))


def test_honest_steps_from_the_target_itself_have_no_verdict_for_their_start_alone(target: Target) -> None:
    forgery, verdict = target.judge("derivative", {"keep_going": True}, effort=1.0)
    assert verdict.verdict == "inconclusive"
    assert [c.name for c in verdict.checks if c.status == "inconclusive"] == ["initialization", "learning"]
    assert "fit no law of the public pool" in verdict.reason
    assert forgery.cost == 1.0


def test_an_arranged_start_with_all_the_steps_is_valid_but_only_observed(target: Target) -> None:
    """Nothing in it is false and it costs what training costs; that its order is derived lends the start no weight."""
    forgery, verdict = target.judge("derivative", effort=1.0, start="arranged")
    assert (verdict.verdict, verdict.assurance, verdict.randomness) == ("valid", "observed", "derived")
    assert "weights arranged to look random are not excluded" in verdict.check("initialization").summary
    assert forgery.cost == 1.0
