"""Calibrated comparison: where the environment is not reproduced, the verifier's own noise sets the limits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from proof_of_learning import TaskReference, prove, verify
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.measure import (
    Comparison,
    Detail,
    Direction,
    Distance,
    TensorError,
    compare,
    detail,
    nudged,
)
from proof_of_learning.replay.requests import Noise, Replay, Replayed
from proof_of_learning.state.state import State
from proof_of_learning.task import load_task
from proof_of_learning.verifier.calibrated import (
    CAP,
    FLOOR,
    LOOKS,
    MARGIN,
    NEAR,
    Measured,
    Noises,
    closeness,
    doubtful,
    rejects,
    tolerance,
    violations,
)
from proof_of_learning.verifier.checks.drift import MATERIAL, SIGMAS, drift_statistic
from proof_of_learning.verifier.evidence import Answers
from proof_of_learning.verifier.strays import Strays
from support_forging import rewrite
from support_proofs import smallest

NOISY = f"{Path(__file__).parents[1] / 'support_noise.py'}:task"


@pytest.fixture(scope="module")
def noisy() -> TaskReference:
    """A task whose noise follows from the number of threads, and is there on every processor."""
    return TaskReference(NOISY, {})


@pytest.fixture(scope="module")
def elsewhere(noisy: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proof made with another thread count than this process has. Read only."""
    return Path(prove(noisy, tmp_path_factory.mktemp("elsewhere") / "run.pol", interval=3, threads=3).path)


def test_an_honest_proof_of_another_environment_is_valid_only_if_that_is_allowed(
    noisy: TaskReference, elsewhere: Path
) -> None:
    strict = verify(elsewhere, noisy, reproduce=False, random=4)
    assert strict.verdict == "inconclusive"
    assert any("threads: recorded 3, here 1" in line for line in strict.unreproduced)
    allowed = verify(elsewhere, noisy, reproduce=False, random=4, allow_calibrated=True)
    assert (allowed.verdict, allowed.exactness) == ("valid", "calibrated"), allowed.reason
    assert allowed.check("drift").status == "pass"
    assert allowed.check("drift").evidence["momentum_null_cosine"] > 0  # momenta were looked at
    judged = [segment for segment in allowed.segments if not segment.exact]
    assert judged and all(s.limit_share is not None and s.limit_share < 1 / 3 for s in judged)
    assert all(FLOOR <= entry["rho"] <= CAP for entry in allowed.check("trajectory").evidence["tolerances"].values())


def test_a_calibrated_verification_in_this_process_leaves_its_threads_alone(
    noisy: TaskReference, elsewhere: Path
) -> None:
    task = replace(load_task(noisy), reference=None)
    before = torch.get_num_threads()
    verdict = verify(elsewhere, task, reproduce=False, random=2, top_q=0, allow_calibrated=True)
    assert any(segment.limit_share is not None for segment in verdict.segments)  # there was a second worker
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_honest_noise_that_leads_to_its_own_errors_is_no_drift(tmp_path: Path) -> None:
    """A bias before a BatchNorm has no gradient but noise, of which AdamW makes steps of full size.

    The noise is the task's own, so that it is the same on every processor: with the bias, the errors' direction is 2.5 times
    beyond its limit, and what they explain is a fifth of what something could be gained from.
    """
    task = TaskReference(NOISY, {"optimizer": "adamw", "norm": True, "steps": 72})
    prove(task, tmp_path / "run.pol", interval=3, threads=3)
    verdict = verify(tmp_path / "run.pol", task, reproduce=False, everything=True, allow_calibrated=True, sandbox="off")
    check = verdict.check("drift")
    assert check.status == "pass", check.summary
    assert check.evidence["segments"] == 24
    assert "model/parameters/0.bias" in check.evidence["left_out"]
    assert not any(name.endswith("weight") for name in check.evidence["left_out"])
    assert check.evidence["z"] < check.evidence["limit"] < check.evidence["everything"]["z"]
    assert 0 < check.evidence["everything"]["progress_explained"] < MATERIAL


def test_exact_replay_can_be_required(noisy: TaskReference, elsewhere: Path) -> None:
    options = {"allow_calibrated": True, "random": 0, "top_q": 0}
    verdict = verify(elsewhere, noisy, reproduce=False, require="exact", **options)  # type: ignore[arg-type]
    assert verdict.verdict == "inconclusive"
    assert verify(elsewhere, noisy, require="exact", random=0, top_q=0).verdict == "valid"


@pytest.mark.parametrize("name", ["concatenation", "infinitesimal-update"])
def test_attacks_are_rejected_within_tolerance_too(
    noisy: TaskReference, elsewhere: Path, tmp_path: Path, name: str
) -> None:
    ATTACKS[name]().forge(Proof.open(elsewhere), load_task(noisy), tmp_path / "forged.pol")
    verdict = verify(tmp_path / "forged.pol", noisy, reproduce=False, allow_calibrated=True, random=6, keep_going=True)
    assert verdict.verdict == "invalid"
    assert verdict.check("trajectory").status == "fail"
    assert all(s.limit_share is None or s.limit_share > 3 for s in verdict.segments if s.status == "fail")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("factor", "here", "elsewhere"),
    [(1.0, "valid", "valid"), (1 + 1e-7, "invalid", "valid"), (1 + 1e-4, "invalid", "invalid")],
)
def test_a_loss_may_differ_in_its_last_noisy_in_another_environment(
    factor: float, here: str, elsewhere: str, tmp_path: Path
) -> None:
    task = smallest()  # too small for threads to matter: every environment arrives at the same bits
    made = Path(prove(task, tmp_path / "run.pol", interval=2, threads=3).path)
    told = rewrite(made, tmp_path / "told.pol", columns=lambda given: [replace(c, loss=c.loss * factor) for c in given])
    assert verify(told, task).verdict == here
    verdict = verify(told, task, reproduce=False, allow_calibrated=True)
    assert verdict.unreproduced and all(segment.exact for segment in verdict.segments)
    assert verdict.verdict == elsewhere, verdict.reason


# ---- the limits themselves ----------------------------------------------------------------------------


def noise(errors: dict[str, float], span: float = 1.0, elements: int = 100, along: float = 0.0) -> Measured:
    """Measured errors by tensor, each over the same span."""
    tensors = {name: TensorError(error, span, elements) for name, error in errors.items()}
    total = math.sqrt(sum(error * error for error in errors.values()))
    overall = Distance(total, total, max(errors.values()), total**2)
    moved = Distance(span * len(errors), span * math.sqrt(len(errors)), span, 1.0)
    return Measured(Comparison(overall, {}, []), Detail(tensors, {W: Direction(along, 1.0, total, 1.0)}, moved=moved))


W, B, M = "model/parameters/w", "model/parameters/b", "optimizer/state/0/momentum_buffer"


def test_limits_follow_the_largest_noise_between_floor_and_cap() -> None:
    assert tolerance([noise({W: 1e-7}), noise({W: 2e-7})]).rho == FLOOR
    assert tolerance([noise({W: 1e-4}), noise({W: 2e-4})]).rho == pytest.approx(MARGIN * 2e-4)
    assert tolerance([noise({W: 2e-3})]).rho == CAP
    assert tolerance([noise({W: 2e-3})]).sharp


def test_a_segment_too_long_for_a_sharp_answer_says_so() -> None:
    limits = tolerance([noise({W: 0.02})])
    assert not limits.sharp and limits.reasons


def test_noise_driven_tensors_are_listed_and_not_judged_alone() -> None:
    wide = {W: 1e-5, M: 1e-5, B: 0.3}
    limits = tolerance([replace(noise(wide), detail=_with_small_bias(noise(wide)))])
    assert set(limits.noisy) == {B}
    assert limits.sharp and limits.rho == FLOOR


def _with_small_bias(found: Measured) -> Detail:
    tensors = {**found.detail.tensors, B: TensorError(0.003, 0.01, 1)}
    return msgspec.structs.replace(found.detail, tensors=tensors)


def test_an_error_beyond_its_limit_is_named_and_nan_is_beyond_any() -> None:
    limits = tolerance([noise({W: 1e-5, M: 1e-5})])
    assert violations(noise({W: 5e-4, M: 5e-4}), limits) == []
    assert any(W in line for line in violations(noise({W: 0.5, M: 1e-5}), limits))
    assert any(M in line for line in violations(noise({W: 1e-5, M: 0.5}), limits))
    assert violations(noise({W: math.nan, M: 1e-5}), limits)
    assert violations(noise({W: math.inf, M: 1e-5}), limits)


def test_the_share_of_the_limit_says_over_whatever_is_over() -> None:
    """Two tensors that move little and err within their own limits, and together beyond that of their kind."""
    names = [f"model/parameters/{i}" for i in range(4)]
    limits = tolerance([noise({**dict.fromkeys(names, 1e-5), M: 2e-4})])
    found = noise({**dict.fromkeys(names, 1.2e-3), M: 1e-5})
    assert violations(found, limits) and closeness(found, limits) > 1
    kinds = replace(limits, tensors=dict.fromkeys(limits.tensors, CAP), rho=CAP)
    assert violations(found, kinds) and closeness(found, kinds) > 1


def test_a_closer_look_is_worth_it_near_a_limit_that_may_rise() -> None:
    calm = tolerance([noise({W: 1e-5})])
    assert not doubtful(noise({W: 0.9 * NEAR * FLOOR}), calm)
    assert doubtful(noise({W: 1.1 * NEAR * FLOOR}), calm)
    assert doubtful(noise({W: 5 * FLOOR}), calm)
    assert doubtful(noise({W: 9 * CAP}), calm)  # events grow with the interval
    assert not doubtful(noise({W: math.nan}), calm)
    unequal = Comparison(Distance(), {}, ["optimizer/state/0/step"])
    assert not doubtful(replace(noise({W: 5 * FLOOR}), comparison=unequal), calm)
    loud = tolerance([noise({W: 2e-3})])
    assert doubtful(noise({W: 0.9 * CAP}), loud)  # noise alone may drive this one
    assert not doubtful(noise({W: 0.9 * NEAR * CAP}), loud)
    blunt = tolerance([noise({W: 0.02})])
    assert not doubtful(noise({W: 0.1}), blunt)
    assert doubtful(noise({W: 0.3}), blunt)  # far beyond what was seen


def common(*noises: Measured) -> Noises:
    return Noises.of(dict(enumerate(noises)))


def test_the_event_of_one_segment_blurs_no_other() -> None:
    calm, event = noise({W: 1e-5, M: 1e-5}), noise({W: 0.02, M: 0.02})
    assert not tolerance([*[calm] * 9, event]).sharp
    for calm_ones in (9, 3):
        noises = common(*[calm] * calm_ones, event)
        assert noises.calm == set(range(calm_ones)) and noises.common.sharp
        assert not noises.limits(calm_ones).sharp  # no answer on that one
        assert noises.limits(0) is noises.common
    assert not common(calm, calm, event).common.sharp  # too many to be called rare
    assert common(*[calm] * 3).calm == {0, 1, 2}


def test_noise_that_blurs_different_tensors_in_different_segments_does_not_add_up() -> None:
    """As Adam's: each segment is sharp in most of its movement, and their union in none."""
    names = [f"model/parameters/{i}" for i in range(8)]
    everywhere = "model/parameters/bias"

    def blurred(*which: str) -> Measured:
        return noise({name: 0.3 if name in (*which, everywhere) else 1e-5 for name in (*names, everywhere)})

    noises = common(*[blurred()] * 20, blurred(*names[:3]), blurred(*names[3:6]))
    assert noises.common.sharp and set(noises.common.noisy) == {everywhere}
    own = noises.limits(20)
    assert own.sharp and set(own.noisy) == {everywhere, *names[:3]}
    assert violations(blurred(*names[:3]), own) == []
    assert any(names[3] in line for line in violations(blurred(names[3]), own))
    assert not noises.limits(20, [blurred(*names[3:6])]).sharp  # a closer look that brings out too much
    assert not common(*[blurred(name) for name in names]).common.sharp  # nothing is common to them


def test_whether_a_segment_can_be_judged_depends_on_its_own_movement() -> None:
    """What is blurred in it may be most of what others move."""

    def moved(error: float, span: float) -> Measured:
        found = noise({W: 1e-5, M: error})
        tensors = {**found.detail.tensors, M: TensorError(error, span, 100)}
        return replace(found, detail=msgspec.structs.replace(found.detail, tensors=tensors))

    noises = common(*[moved(1e-5, 9.0)] * 20, moved(0.05, 0.5), moved(0.9, 9.0))
    assert noises.common.sharp and not noises.common.noisy
    assert noises.limits(20).sharp and set(noises.limits(20).noisy) == {M}
    assert not noises.limits(21).sharp


def test_what_a_closer_look_finds_raises_the_limits_of_that_segment() -> None:
    event = noise({W: 7e-4})
    assert violations(event, tolerance([noise({W: 1e-5}), noise({W: 2e-5})])) == []
    rare = noise({W: 3e-3})
    assert violations(rare, tolerance([noise({W: 1e-5})]))
    assert violations(rare, tolerance([noise({W: 1e-5}), *(noise({W: size}) for size in (1e-5, 2.9e-3))])) == []


def test_nudged_numbers_are_near_and_the_rest_stays() -> None:
    values = torch.tensor([0.0, 1.0, -1.5, 1e-30, 3e20, math.inf])
    state = State(
        {}, {"w": values, "step": torch.tensor(3.0), "n": torch.tensor([1, 2]), "h": torch.ones(64).bfloat16()}
    )
    moved, same, other = nudged(state, 1), nudged(state, 1), nudged(state, 2)
    assert moved.digest() == same.digest() != other.digest()
    assert moved.tensors["w"][0] == 0 and moved.tensors["w"][5] == math.inf
    gaps = (moved.tensors["w"][1:5] / values[1:5] - 1).abs()
    assert ((gaps > 0) & (gaps <= 2**-18)).all()
    assert moved.tensors["step"] == 3 and moved.tensors["n"].tolist() == [1, 2]
    assert torch.equal(moved.tensors["h"], state.tensors["h"])  # a unit of its last place is as much as many steps


def test_what_must_be_equal_is_a_violation_however_small_the_errors() -> None:
    limits = tolerance([noise({W: 1e-5})])
    found = noise({W: 1e-6})
    unequal = Comparison(found.comparison.overall, {}, ["optimizer/state/0/step"])
    assert "step" in violations(Measured(unequal, found.detail), limits)[0]


def test_what_must_be_equal_is_no_less_so_where_limits_are_blunt() -> None:
    names = ["model/buffers/n", "(structure or scalars)"]
    blunt, found = noise({W: 0.02}), noise({W: 0.02})
    changed = replace(found, comparison=Comparison(found.comparison.overall, {}, names))
    assert rejects(found, tolerance([blunt])) is None
    assert names[0] in str(rejects(changed, tolerance([blunt])))
    calm = noise({W: 1e-5})
    differs = replace(calm, comparison=Comparison(calm.comparison.overall, {}, names[:1]))
    limits = tolerance([calm, differs])  # the verifier's own replays do not agree on it
    assert not limits.sharp and names[0] in limits.reasons[0]
    assert rejects(replace(calm, comparison=differs.comparison), limits) is None
    assert names[1] in str(rejects(changed, limits))


@pytest.mark.parametrize("jump", [20.0, 1000.0])
def test_a_jump_is_not_measured_against_itself(jump: float) -> None:
    """The weights move sharply, and noise alone drives a third of the movement of what they carry on."""

    def state(weights: float, memory: torch.Tensor) -> State:
        return State({"d": []}, {W: torch.full((100,), weights), M: memory})

    moved = torch.zeros(100)
    moved[0] = 7.0
    before, own, other = state(0.0, torch.zeros(100)), state(1.0, moved), state(1.0, moved.roll(1))
    forged = state(1.0, moved * jump)

    def measured(arrived: State, reference: State) -> Measured:
        return Measured(compare(arrived, reference), detail(arrived, reference, before, None))

    limits = tolerance([measured(other, own)])
    assert limits.sharp and set(limits.noisy) == {M}
    assert violations(measured(own, other), limits) == []
    assert any(M in line for line in violations(measured(own, forged), limits))
    blunt = tolerance([measured(state(1.2, moved.roll(1)), own)])
    assert not blunt.sharp
    assert rejects(measured(own, forged), blunt) is not None


def test_large_noise_is_not_multiplied_beyond_the_whole_movement() -> None:
    def limit(error: float) -> float:
        return tolerance([noise({W: 1e-5, M: error})]).tensors[M]

    assert limit(0.05) == pytest.approx(0.5)
    assert limit(0.3) == pytest.approx(1.0)
    assert limit(1.2) == pytest.approx(3.6)


def test_weights_that_noise_alone_drives_are_not_judged_by_a_large_momentum() -> None:
    wide = noise({W: 0.05, M: 1e-5})
    tensors = {**wide.detail.tensors, M: TensorError(1e-5, 100.0, 100)}
    limits = tolerance([replace(wide, detail=msgspec.structs.replace(wide.detail, tensors=tensors))])
    assert not limits.sharp and limits.judged == 0.0


def test_drift_sees_a_common_direction_far_below_the_noise() -> None:
    null = [noise({W: 1e-3}, along=sign * 1e-5) for sign in (1, -1, 1, -1, 1, -1, 1, -1)]
    honest = [(error, other) for error, other in zip(null, reversed(null), strict=True)]
    nudged = [(noise({W: 1e-3}, along=1e-4), other) for other in null]
    assert drift_statistic(honest).z < SIGMAS
    assert drift_statistic(nudged).z > SIGMAS
    assert drift_statistic([(noise({W: 1e-3}, along=-1e-4), other) for other in null]).z < SIGMAS


def test_small_errors_the_other_way_do_not_hide_large_ones() -> None:
    null = [noise({W: 1e-6}, along=sign * 1e-8) for sign in (1, -1) * 30]
    toward, away = noise({W: 9e-4}, along=9e-4), noise({W: 3e-6}, along=-3e-6)

    def made(progress: float) -> list[tuple[Measured, Measured]]:
        errors = [toward if index % 3 == 0 else away for index in range(60)]
        return [(_progressing(error, progress), other) for error, other in zip(errors, null, strict=True)]

    found = drift_statistic(made(1e-3))
    assert found.z < 0 and found.weighted > found.limit and found.nudges
    assert not drift_statistic(made(1.0)).nudges  # from which nothing is gained: as an honest event


def _progressing(found: Measured, progress: float) -> Measured:
    """The same error in a segment that makes so much progress."""
    (way,) = found.detail.weights.values()
    weights = {W: msgspec.structs.replace(way, moved_along=progress)}
    return replace(found, detail=msgspec.structs.replace(found.detail, weights=weights))


def test_without_noise_to_compare_with_a_direction_is_no_proof_of_a_nudge() -> None:
    none = noise({W: 0.0})
    assert drift_statistic([(noise({W: 1e-7}, along=1e-8), none)] * 20).silent
    assert not drift_statistic([(noise({W: 1e-7}, along=1e-8), none)] * 20).nudges
    assert not drift_statistic([(noise({W: 1e-7}, along=-1e-8), none)] * 20).silent
    assert drift_statistic([(_progressing(noise({W: 1e-2}, along=1e-2), 0.1), none)] * 20).nudges


def test_fewer_segments_need_a_larger_deviation() -> None:
    """Chance alone: errors and noise of the same kind."""

    def rejected(count: int) -> int:
        generator = torch.Generator().manual_seed(count)
        cosines = torch.randn((2000, 2, count), generator=generator, dtype=torch.float64).mul(1e-5).tolist()
        found = (
            drift_statistic(
                [(noise({W: 1e-3}, along=a), noise({W: 1e-3}, along=b)) for a, b in zip(*pair, strict=True)]
            )
            for pair in cosines
        )
        return sum(one.z > one.limit for one in found)

    assert [rejected(count) for count in (1, 2, 3)] == [0, 0, 0]
    limits = [drift_statistic([(noise({W: 1e-3}, along=1e-5),) * 2] * count).limit for count in (1, 8, 40, 10_000)]
    assert limits == sorted(limits, reverse=True) and SIGMAS < limits[-1] < 1.01 * SIGMAS


def test_what_noise_alone_drives_leads_to_its_own_errors_and_is_left_out_of_the_drift() -> None:
    """As a bias before a BatchNorm under Adam: it wanders, and ends where its errors pointed."""

    def found(error: float, along: float, moved: float = 1.0) -> Measured:
        base = noise({W: 1e-6, B: error})
        return replace(base, detail=Detail(base.detail.tensors, {
            W: Direction(0.0, 1.0, 1e-6, 1.0), B: Direction(along, moved * along, error, 0.1),
        }))  # fmt: skip

    null = [found(1e-3, sign * 1e-5) for sign in (1, -1) * 4]
    wandering = [(found(1e-3, 5e-5), other) for other in null]
    assert drift_statistic(wandering).z > SIGMAS
    assert drift_statistic(wandering, [[B]] * len(wandering)).z < SIGMAS
    assert drift_statistic(wandering).explained == pytest.approx(5e-5, rel=1e-3)
    assert drift_statistic([(found(1e-3, 5e-5, -1e6), other) for other in null]).explained == math.inf


# ---- which segments are looked at more closely ------------------------------------------------------------


def strays(errors: list[float], nudged: dict[int, float]) -> Strays:
    """What would follow from these errors, calm own noise, and closer looks that brought out that much."""

    def replayed(found: Measured) -> Replayed:
        return Replayed("", "", [], [], found.comparison, found.detail.moved, found.detail, 0.0, 0.0, 2)

    answers = Answers()
    for index, error in enumerate(errors):
        answers.add(Replay(index, calibrate=True), replayed(noise({W: error})))
        answers.add(Noise(index), replayed(noise({W: 1e-5})))
    for index, found in nudged.items():
        answers.add(Noise(index, nudge=1), replayed(noise({W: found})))
    segments = [SimpleNamespace(start=2 * index, stop=2 * index + 2) for index in range(len(errors))]
    challenge = SimpleNamespace(segments=set(range(len(errors))))
    return Strays(SimpleNamespace(proof=SimpleNamespace(segments=segments), challenge=challenge), answers)  # type: ignore[arg-type]


def test_the_worst_are_looked_at_first_and_none_where_one_is_beyond_excuse() -> None:
    errors = [1e-5, 2e-3, 3e-3, 1e-5, 5e-3]
    assert strays(errors, {}).suspects == [4, 2, 1]
    assert strays([*errors, math.nan], {}).suspects == []


def test_what_was_not_looked_at_is_open_only_after_all_looks_excused_worse_errors() -> None:
    errors = [9e-3 - 1e-3 * index for index in range(LOOKS + 2)] + [1e-5] * 20
    explained = {index: errors[index] / 3 for index in range(LOOKS)}
    assert strays(errors, explained).passed_over == {LOOKS, LOOKS + 1}
    assert strays(errors, {**explained, LOOKS - 1: 1e-5}).passed_over == set()
    assert strays(errors, {}).passed_over == set()
