"""Attacks on comparison within tolerance: a false environment keeps the verifier from replaying exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.attacks.claimed_environment import CARRIED
from proof_of_learning.attacks.drift import Drift
from proof_of_learning.proof.reader import Proof
from proof_of_learning.task import load_task
from proof_of_learning.verifier.calibrated import LOOKS, NUDGES

# What is nudged or carried that other rows or tests carry.
ALIKE = pytest.mark.slow(reason="the row that stays is harder to see; other tests of this file carry the rest")


@pytest.fixture(scope="module")
def noisy() -> pol.TaskReference:
    """A task whose noise follows from the number of threads, and is there on every processor."""
    return pol.TaskReference(f"{Path(__file__).parents[1] / 'support_noise.py'}:task", {})


@pytest.fixture(scope="module")
def target(noisy: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return Proof.open(pol.prove(noisy, tmp_path_factory.mktemp("honest") / "target", interval=2).path)


def judged(noisy: pol.TaskReference, target: Proof, path: Path, carries: str, **options: Any) -> pol.Verdict:
    ATTACKS["claimed-environment"](carries=carries).forge(target, load_task(noisy), path)
    return pol.verify(path, noisy, random=6, keep_going=True, **options)


def failed(verdict: pol.Verdict) -> list[str]:
    return [check.name for check in verdict.checks if check.status == "fail"]


def test_an_environment_that_nobody_has_is_at_best_inconclusive_by_default(
    noisy: pol.TaskReference, target: Proof, tmp_path: Path
) -> None:
    verdict = judged(noisy, target, tmp_path / "forged", "momentum-drift")
    assert verdict.verdict == "inconclusive"
    assert verdict.check("trajectory").status == "inconclusive"
    assert any("torch: recorded 2.0.1" in line for line in verdict.unreproduced)


def test_an_environment_that_the_verifier_can_have_is_replayed_exactly(
    noisy: pol.TaskReference, target: Proof, tmp_path: Path
) -> None:
    ATTACKS["claimed-environment"](carries="momentum-drift", claims="threads").forge(
        target, load_task(noisy), tmp_path / "forged"
    )
    verdict = pol.verify(tmp_path / "forged", noisy, random=6, allow_calibrated=True)
    assert (verdict.verdict, failed(verdict)) == ("invalid", ["trajectory"])


@pytest.mark.parametrize("carries", [pytest.param("decoy-weight", marks=ALIKE), "decoy-nan"])
def test_what_is_carried_fails_within_tolerance_too(
    carries: str, noisy: pol.TaskReference, target: Proof, tmp_path: Path
) -> None:
    verdict = judged(noisy, target, tmp_path / "forged", carries, allow_calibrated=True)
    assert verdict.verdict == "invalid"
    assert failed(verdict)[0] == "trajectory"


def test_a_nudged_momentum_shows_no_error_in_the_weights_and_is_seen_all_the_same(
    noisy: pol.TaskReference, target: Proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the target's own seed the run ends where it is nudged to, as a drift does that is long enough."""
    monkeypatch.setitem(CARRIED, "drift", Drift(nudge="momentum", seed=0))
    verdict = judged(noisy, target, tmp_path / "forged", "drift", allow_calibrated=True)
    check = verdict.check("drift")
    assert (verdict.verdict, check.status) == ("invalid", "fail")
    assert check.evidence["z"] == 0.0 and check.evidence["momentum_z"] > 3 * check.evidence["momentum_limit"]


def test_a_decoy_hides_every_error_but_where_it_is_put_in(digits: pol.TaskReference, tmp_path: Path) -> None:
    """Relative errors vanish beside it; the segment in which it appears is among those that are always replayed."""
    target = Proof.open(pol.prove(digits, tmp_path / "target", interval=2).path)
    verdict = judged(digits, target, tmp_path / "forged", "decoy", allow_calibrated=True)
    shares = {s.index: s.limit_share for s in verdict.segments if s.limit_share is not None}
    put_in = next(s for s in verdict.segments if s.index == CARRIED["decoy"].first)  # type: ignore[attr-defined]
    assert {"top-q", "inertia", "predecessor"} & set(put_in.why)
    assert shares[put_in.index] > 3
    assert any(share < 1 for index, share in shares.items() if index > put_in.index)


def test_a_closer_look_excuses_no_error_that_the_segment_does_not_bring_out_itself(
    noisy: pol.TaskReference, target: Proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of twice the limit, not so large that no noise could explain them, most of them in segments that replay calmly."""
    monkeypatch.setitem(CARRIED, "drift", Drift(share=2.0))
    verdict = judged(noisy, target, tmp_path / "forged", "drift", allow_calibrated=True)
    check = verdict.check("trajectory")
    looks = [index for index, own in check.evidence["own_limits"].items() if own["closer_look"]]
    assert check.status == "fail"
    assert 1 <= len(looks) <= LOOKS
    refused = [s for s in verdict.segments if str(s.index) in looks and s.status == "fail"]
    assert len(refused) == 1  # no look is taken after one that says no
    assert refused[0].limit_share is not None and 1 < refused[0].limit_share < 3


def test_a_closer_look_at_what_is_near_the_limit_is_taken_a_few_times_only(
    noisy: pol.TaskReference, target: Proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CARRIED, "drift", Drift(share=0.75))
    verdict = judged(noisy, target, tmp_path / "forged", "drift", allow_calibrated=True)
    check = verdict.check("trajectory")
    assert check.status == "pass"
    assert sum(own["closer_look"] for own in check.evidence["own_limits"].values()) == LOOKS < len(verdict.segments)
    assert verdict.cost.steps_replayed == 2 * (2 * len(verdict.segments) + LOOKS * (NUDGES + 1))


@pytest.mark.parametrize("nudge", [pytest.param("weights", marks=ALIKE), "momentum", pytest.param("both", marks=ALIKE)])
def test_exact_replay_sees_the_smallest_nudge(
    nudge: str, noisy: pol.TaskReference, target: Proof, tmp_path: Path
) -> None:
    forgery = Drift(nudge=nudge, rho=1e-5).forge(target, load_task(noisy), tmp_path / "forged")
    verdict = pol.verify(tmp_path / "forged", noisy, random=0)
    assert (verdict.verdict, failed(verdict)) == ("invalid", ["trajectory"])
    assert forgery.forged == tuple(range(30)) and forgery.cost == 1.0


def test_steps_of_one_sample_are_those_of_another_task(noisy: pol.TaskReference, target: Proof, tmp_path: Path) -> None:
    forgery = Drift(batch=1).forge(target, load_task(noisy), tmp_path / "forged")
    assert forgery.samples_processed == 60 < forgery.honest_samples / 20
    verdict = pol.verify(tmp_path / "forged", noisy, random=0)
    assert (verdict.verdict, failed(verdict)) == ("invalid", ["task"])
