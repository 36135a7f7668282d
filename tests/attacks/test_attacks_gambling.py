"""Attacks that gamble on the draw: how often they win, measured over nonces without a replay, against what is promised."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from torch.optim import lr_scheduler

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.attacks.base import Forgery
from proof_of_learning.attacks.gamble import Odds, fixed_nonces, missed, odds, surveyed
from proof_of_learning.attacks.grinding import nearest_seed
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.numeric import environment as environments
from proof_of_learning.proof.reader import Proof
from proof_of_learning.task import Task
from proof_of_learning.verifier.guarantee import uniform_draws_needed, uniform_miss
from proof_of_learning.verifier.plan import make_nonce, survey_seed

STEPS, INTERVAL, SEGMENTS = 240, 2, 120  # at an interval of 1 the optimizer's identity leaves nothing to gamble on
NONCES = fixed_nonces(200)
FEWER = pytest.mark.slow(reason="other numbers of segments stay, on both sides of what is promised")
NOISE = 4 / math.sqrt(len(NONCES))  # eight standard deviations of the most uncertain rate


@pytest.fixture(scope="module")
def task(tiny: pol.TaskReference) -> Task:
    return replace(pol.load_task(pol.TaskReference(tiny.target, {"steps": STEPS})), reference=None)


@pytest.fixture(scope="module")
def target(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return Proof.open(pol.prove(task, tmp_path_factory.mktemp("honest") / "target", interval=INTERVAL).path)


def fare(forgery: Forgery, task: Task) -> Odds:
    """How often the forgery is missed by a verifier who looks at all that it can measure without a replay."""
    proof = Proof.open(forgery.path)
    return odds(proof, forgery.forged, NONCES, found=surveyed(proof, task))


@pytest.mark.usefixtures("every_segment")
@pytest.mark.parametrize("segments", [pytest.param(1, marks=FEWER), 7])
def test_jumps_to_the_target_are_never_missed_for_they_make_the_progress(
    segments: int, task: Task, target: Proof, tmp_path: Path
) -> None:
    forgery = ATTACKS["few-segments"](segments=segments).forge(target, task, tmp_path / "forged")
    assert len(forgery.forged) == segments
    assert 1 - 1.5 * segments / SEGMENTS < forgery.cost < 1
    found = fare(forgery, task)
    assert found.progress_share > 0.25
    assert found.miss == 0 <= found.bound < 1e-6
    verdict = pol.verify(forgery.path, task, nonce=NONCES[0], accept_nonce=True)
    assert [check.name for check in verdict.checks if check.status == "fail"] == ["trajectory"]
    failed = {segment.index for segment in verdict.segments if segment.status == "fail"}
    assert failed == set(forgery.forged) & {segment.index for segment in verdict.segments}  # and all others replay


@pytest.mark.parametrize("segments", [1, pytest.param(5, marks=FEWER), 13])
def test_segments_that_make_no_progress_are_missed_as_often_as_is_promised(
    segments: int, task: Task, target: Proof, tmp_path: Path
) -> None:
    """Tampering with one's own model: draws by progress do not see it, and the uniform ones as often as computed."""
    forgery = ATTACKS["few-segments"](segments=segments, reach=1e-4, at=60).forge(target, task, tmp_path / "forged")
    found = fare(forgery, task)
    if not found.conspicuous:
        assert found.miss <= uniform_miss(SEGMENTS, segments, uniform_draws_needed(SEGMENTS)) + NOISE
    if segments > 0.1 * SEGMENTS:
        assert found.bound <= 0.01 and found.miss <= 0.01 + NOISE


@pytest.mark.slow(
    reason="forges until one is inconspicuous, and is judged four times; that a nonce was chosen is said elsewhere"
)
def test_grinding_helps_only_against_a_nonce_that_is_known_before_the_root(
    task: Task, target: Proof, tmp_path: Path
) -> None:
    guess = "ab" * 32
    for at in range(60, 90):  # where no choice by rule meets it, which depends on the attacker's own run
        one = {"reach": 1e-4, "segments": 1, "at": at}
        plain = ATTACKS["few-segments"](**one).forge(target, task, tmp_path / f"plain-{at}")
        if not fare(plain, task).conspicuous:
            break
    ground = ATTACKS["grinding"](nonce=guess, **one).forge(target, task, tmp_path / "ground")
    assert pol.check(ground.path).status == "pass"
    assert ground.forged == plain.forged
    sealed = Proof.open(ground.path)
    seen = surveyed(sealed, task, survey_seed(sealed.root, make_nonce(guess)))
    assert missed(sealed, ground.forged, [guess], found=seen) == [True]
    lucky = pol.verify(ground.path, task, nonce=guess, accept_nonce=True)
    assert lucky.nonce.origin == "self-chosen"  # the verdict says that its nonce could have been ground for
    before, after = (fare(forgery, task) for forgery in (plain, ground))
    assert not before.conspicuous and not after.conspicuous
    assert abs(after.miss - before.miss) < NOISE
    assert after.miss <= after.bound + NOISE
    assert pol.verify(ground.path, task, everything=True).verdict == "invalid"


def test_no_seed_begins_much_nearer_to_the_target(task: Task, target: Proof) -> None:
    with environments.recording("cpu") as environment:
        victim = Victim.of(target, task, "cpu", environment)
        seed, distances = nearest_seed(victim, range(1, 51))
    assert distances[seed - 1] == min(distances) > 0.8 * sum(distances) / len(distances)


def test_grinding_seeds_is_rejected_like_any_jump(task: Task, target: Proof, tmp_path: Path) -> None:
    forgery = ATTACKS["grinding"](what="seed", tries=20).forge(target, task, tmp_path / "forged")
    verdict = pol.verify(forgery.path, task)
    assert [check.name for check in verdict.checks if check.status == "fail"] == ["trajectory"]


@pytest.mark.usefixtures("every_segment")
def test_jumps_at_rate_0_are_drawn_too(task: Task, tmp_path: Path) -> None:
    """Without top-Q: those segments count for nothing, but the random draws must see what is falsified in them."""
    idle = range(int(0.4 * STEPS), int(0.8 * STEPS))
    paused = replace(task, scheduler=lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.0 if step in idle else 1.0))
    honest = pol.prove(paused, tmp_path / "honest", interval=INTERVAL).path
    forgery = ATTACKS["few-segments"](segments=8, at=idle.start // INTERVAL + 5).forge(
        Proof.open(honest), paused, tmp_path / "f"
    )
    assert {segment * INTERVAL for segment in forgery.forged} <= set(idle)
    for reasons in (("progress",), ("trivial",)):
        verdict = pol.verify(forgery.path, paused, top_q=0, nonce=NONCES[0], accept_nonce=True)
        seen = [s for s in verdict.segments if s.status == "fail" and set(s.why) & set(reasons)]
        assert seen and verdict.verdict == "invalid"
