"""Attacks on the way to the target: bridges, huge steps, pulls, steered rates, and training backwards."""

from __future__ import annotations

from typing import Any

import pytest

import proof_of_learning as pol
from proof_of_learning.attacks.inverse_gradient import Solver
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.numeric import environment as environments
from proof_of_learning.replay.measure import weight_distance, weights
from support_attacks import STEPS, Target, rejects


@pytest.fixture(scope="module")
def target(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.record(digits, tmp_path_factory.mktemp("trajectory"))


@pytest.fixture(scope="module")
def plain(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Trained by SGD without momentum."""
    return Target.record(digits, tmp_path_factory.mktemp("plain"), momentum=0.0)


@pytest.fixture(scope="module")
def long(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Four hundred segments, in windows of twenty."""
    return Target.record(digits, tmp_path_factory.mktemp("long"), interval=1, steps=400)


# Rows for `make test-all`: what the verifier does is what it does in the rows that stay.
ALIKE = pytest.mark.slow(reason="another parameter of an attack whose other rows are forged, replayed and judged alike")


def reasons(verdict: pol.Verdict, status: str) -> set[str]:
    return {why for segment in verdict.segments if segment.status == status for why in segment.why}


@pytest.mark.slow(reason="four hundred segments; a bridge over sixty is judged below")
@pytest.mark.usefixtures("every_segment")
@pytest.mark.parametrize(("end", "assurance"), [("borrowed", "observed"), ("bridge", "seed-derived")])
def test_a_bridge_hides_from_top_q_and_inertia_but_not_from_random_draws(
    end: str, assurance: str, long: Target
) -> None:
    forgery, verdict = long.judge("bridge", end=end, segments=0.4)
    assert rejects(verdict) == "trajectory"
    assert (verdict.assurance, forgery.distance) == (assurance, 0.0)
    assert 0.5 < forgery.cost < 0.8  # so at least eighty segments are forged
    assert "progress" in reasons(verdict, "fail")
    shown = [s for s in verdict.segments if s.status == "fail" and set(s.why) & {"top-q", "inertia"}]
    assert len(shown) <= 2  # it has to be in time at its end, where nothing hides it


@pytest.mark.usefixtures("every_segment")
def test_a_bridge_that_no_number_of_segments_hides_has_few(target: Target) -> None:
    _, verdict = target.judge("bridge", {"everything": True})
    assert rejects(verdict) == "trajectory"
    assert 1 <= sum(segment.status == "fail" for segment in verdict.segments) <= 3
    assert "top-q" in reasons(verdict, "fail")


@pytest.mark.usefixtures("every_segment")
@pytest.mark.parametrize("claimed", ["huge", pytest.param("schedule", marks=ALIKE)])
def test_huge_steps_draw_top_q_but_not_the_other_draws(claimed: str, target: Target) -> None:
    forgery, verdict = target.judge("huge-rate", claimed=claimed)
    assert rejects(verdict) == "trajectory"
    assert forgery.distance == 0.0
    assert forgery.cost < 0.5
    largest = [segment for segment in verdict.segments if "top-q" in segment.why]
    assert sum(segment.status == "pass" for segment in largest) > len(largest) / 2
    assert {"uniform", "progress"} <= reasons(verdict, "fail")


@pytest.mark.parametrize(
    ("claimed", "check"), [("huge", "hyperparameters"), pytest.param("schedule", "trajectory", marks=ALIKE)]
)
def test_rates_beyond_the_tasks_are_found_before_any_replay(claimed: str, check: str, target: Target) -> None:
    _, verdict = target.judge("huge-rate", claimed=claimed, factor=10)
    assert rejects(verdict) == check


@pytest.mark.usefixtures("every_segment")
@pytest.mark.parametrize(
    ("name", "parameters", "check"),
    [
        ("directed-weights", {}, "trajectory"),
        pytest.param("directed-weights", {"close": 0.9}, "trajectory", marks=ALIKE),
        ("rate-steering", {}, "trajectory"),
        pytest.param("rate-steering", {"claimed": "steered"}, "hyperparameters", marks=ALIKE),
    ],
)
def test_a_pull_that_the_replay_lacks_shows_in_every_segment(
    name: str, parameters: dict[str, Any], check: str, target: Target
) -> None:
    forgery, verdict = target.judge(name, **parameters)
    assert rejects(verdict) == check
    assert all(segment.status == "fail" for segment in verdict.segments)
    assert forgery.distance == 0.0
    assert 0.97 < forgery.cost < 1.0


def test_a_stronger_pull_comes_nearer_before_the_jump(target: Target) -> None:
    def left(close: float) -> float:
        proof = pol.Proof.open(target.attack("directed-weights", close=close).path)
        before, final = (weights(proof.state(segment.state)) for segment in proof.segments[-2:])
        return weight_distance(before, final) / weight_distance(weights(proof.state(proof.initial_state)), final)

    assert left(0.001) < left(0.1) < 0.5 < left(1.0)


def test_one_step_of_plain_sgd_has_an_exact_inverse(plain: Target) -> None:
    with environments.recording("cpu") as environment:
        victim = Victim.of(plain.proof, plain.task, "cpu", environment)
        solver = Solver(victim, seed=9, iterations=30, tolerance=1e-7)
        found = solver.invert(victim.final, STEPS - 1, STEPS)
    assert (found.residual, found.unequal) == (0.0, 0)
    assert found.gradients < 20


@pytest.mark.usefixtures("every_segment")
def test_an_inverted_end_replays_and_the_way_to_it_does_not(plain: Target) -> None:
    forgery, verdict = plain.judge("inverse-gradient", share=0.02)
    assert rejects(verdict) == "trajectory"
    assert verdict.segments[-1].exact  # the last step, on the attacker's own batch
    assert forgery.distance == 0.0


@pytest.mark.usefixtures("every_segment")
def test_with_momentum_the_weights_replay_and_the_memory_does_not(target: Target) -> None:
    _, verdict = target.judge("inverse-gradient", {"random": 0, "top_q": 0}, share=0.02)
    assert rejects(verdict) == "trajectory"
    last = verdict.segments[-1]
    assert last.kinds["model/parameters"].l2 < 1e-6 < last.kinds["optimizer/momentum_buffer"].l2


@pytest.mark.slow(reason="other settings of an attack whose ends are judged above")
def test_training_backwards_ends_in_no_initialization(target: Target) -> None:
    forgery, verdict = target.judge("inverse-gradient", interval=4, iterations=4)
    assert rejects(verdict) in ("initialization", "trajectory")
    assert verdict.check("initialization").status != "pass"
    assert forgery.cost > 1.0
