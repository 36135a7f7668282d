"""Lazy work: whatever a worker leaves out, a replay of what it claims arrives elsewhere."""

from __future__ import annotations

import pytest
import torch

import proof_of_learning as pol
from support_attacks import SEGMENTS, Target, rejects

SAVED = {
    "skipped-steps": 0.5,
    "stale-gradients": 0.5,
    "smaller-batches": 0.5,
    "other-data": 1.0,
    "lower-precision": 1.0,
}
ALIKE = pytest.mark.slow(reason="another way to save work, made and judged by the same lines as those that stay")
WAYS = [pytest.param(how, marks=() if how in {"skipped-steps", "lower-precision"} else ALIKE) for how in sorted(SAVED)]


@pytest.fixture(scope="module")
def target(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target.record(digits, tmp_path_factory.mktemp("lazy"))


@pytest.mark.usefixtures("every_segment")
@pytest.mark.parametrize("how", WAYS)
def test_every_challenged_segment_shows_it(how: str, target: Target) -> None:
    forgery, verdict = target.judge("lazy", how=how)
    assert rejects(verdict) == "trajectory"
    assert verdict.assurance == "seed-derived"  # it is the worker's own run, and claims nothing else
    assert all(segment.status == "fail" for segment in verdict.segments)
    assert forgery.cost == pytest.approx(SAVED[how], abs=0.01)
    assert forgery.distance > 1.0  # of the target it takes nothing


@pytest.mark.parametrize("how", WAYS)
def test_segments_without_savings_replay_bit_for_bit(how: str, target: Target) -> None:
    """So that what the other test finds is the laziness, and nothing else in how these proofs are made."""
    forgery, verdict = target.judge("lazy", how=how, segments=0.0)
    assert verdict.verdict == "valid", verdict.reason
    assert forgery.cost == 1.0


@pytest.mark.usefixtures("every_segment")
def test_a_few_lazy_segments_are_just_those_that_fail(target: Target) -> None:
    forgery, verdict = target.judge("lazy", {"everything": True}, segments=0.05)
    failed = [segment.index for segment in verdict.segments if segment.status == "fail"]
    assert len(failed) == 3
    assert not {0, SEGMENTS - 1} & set(failed)
    assert 0.97 < forgery.cost < 0.98


def test_tolerance_does_not_cover_lower_precision(target: Target, digits: pol.TaskReference) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)  # an environment that the verifier below does not reproduce
        forgery = target.attack("lazy", how="lower-precision")
    finally:
        torch.set_num_threads(threads)
    verdict = target.verdict(forgery, allow_calibrated=True, reproduce=False, random=2, top_q=0)
    assert verdict.unreproduced
    assert rejects(verdict) == "trajectory"
