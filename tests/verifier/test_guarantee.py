"""What random draws guarantee, against plain enumeration; and which segments a challenge picks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proof_of_learning.errors import UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.verifier import guarantee, plan
from proof_of_learning.verifier.options import Draw
from proof_of_learning.verifier.plan import Challenge, challenge, make_nonce
from proof_of_learning.verifier.progress import MAIN, Measure
from proof_of_learning.verifier.survey import Survey, survey

WEIGHTS = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=7)


def exact_miss(weights: Sequence[float], forged: frozenset[int], draws: int) -> float:
    """The probability that successive draws in proportion to the weights miss ``forged``, by enumeration."""

    @cache
    def miss(left: frozenset[int], draws: int) -> float:
        if draws == 0 or not left:
            return 1.0
        total = sum(weights[i] for i in left)
        return sum(weights[i] / total * miss(left - {i}, draws - 1) for i in left - forged)

    return miss(frozenset(range(len(weights))), draws)


def subsets(n: int) -> list[frozenset[int]]:
    return [frozenset(c) for size in range(n + 1) for c in itertools.combinations(range(n), size)]


def test_uniform_misses_are_those_of_all_choices() -> None:
    for total in range(1, 9):
        for draws in range(total + 1):
            choices = list(itertools.combinations(range(total), draws))
            for forged in range(total + 1):
                missed = sum(all(i >= forged for i in choice) for choice in choices)
                assert guarantee.uniform_miss(total, forged, draws) == pytest.approx(missed / len(choices), abs=1e-12)


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.001, 0.5))
def test_forgeable_segments_are_the_most_that_escape(total: int, draws: int, miss: float) -> None:
    draws = min(draws, total)
    most = guarantee.forgeable_segments(total, draws, miss)
    escaping = [forged for forged in range(total + 1) if guarantee.uniform_miss(total, forged, draws) > miss]
    assert most == max(escaping, default=0)


@given(st.integers(0, 300), st.floats(0.01, 0.9), st.floats(0.001, 0.5))
def test_no_fewer_draws_would_do(total: int, fraction: float, miss: float) -> None:
    draws = guarantee.uniform_draws_needed(total, fraction, miss)
    forged = math.floor(fraction * total) + 1
    assert forged > fraction * total
    assert draws == total or guarantee.uniform_miss(total, forged, draws) <= miss
    assert draws == 0 or guarantee.uniform_miss(total, forged, draws - 1) > miss
    assert guarantee.forgeable_segments(total, draws, miss) <= fraction * total


@pytest.mark.quick
def test_the_numbers_that_the_design_promises() -> None:
    assert guarantee.uniform_draws_needed(20_000) == 44
    assert guarantee.uniform_draws_needed(10**6) == 44
    assert guarantee.uniform_miss(1000, 7, 44) == pytest.approx(0.73, abs=0.005)
    assert guarantee.progress_draws_needed(np.ones(20_000)) == 44


@given(st.integers(1, 40), st.data())
def test_for_equal_weights_progress_is_number(total: int, data: st.DataObject) -> None:
    draws, forged = data.draw(st.integers(0, total)), data.draw(st.integers(1, total))
    found = guarantee.progress_miss(np.full(total, data.draw(st.floats(1e-6, 1e6))), forged / total, draws)
    assert found == pytest.approx(guarantee.uniform_miss(total, forged, draws), abs=1e-9)


@settings(max_examples=40)
@given(WEIGHTS, st.integers(0, 7))
def test_progress_misses_are_bounded_for_every_forgery(weights: list[float], draws: int) -> None:
    array, total = np.array(weights), sum(weights)
    unexplained = guarantee.unexplained_progress(array, draws)
    for forged in subsets(len(weights))[1:]:
        share = sum(weights[i] for i in forged) / total
        exact = exact_miss(weights, forged, draws)
        assert exact <= guarantee.progress_miss(array, share, draws) + 1e-9
        if share > unexplained + 2e-6:
            assert exact <= guarantee.MISS_PROBABILITY + 1e-9


@given(WEIGHTS, st.floats(0.01, 0.9), st.floats(0.001, 0.5))
def test_no_fewer_progress_draws_would_do(weights: list[float], fraction: float, miss: float) -> None:
    array = np.array(weights)
    draws = guarantee.progress_draws_needed(array, fraction, miss)
    assert guarantee.progress_miss(array, fraction, draws) <= miss
    assert draws == 0 or guarantee.progress_miss(array, fraction, draws - 1) > miss


def test_segments_without_progress_do_not_count() -> None:
    weights = np.array([0.0, 2.0, 0.0, 1.0, 1.0])
    kept = weights[weights > 0]
    for draws in range(6):
        assert guarantee.progress_miss(weights, 0.3, draws) == guarantee.progress_miss(kept, 0.3, min(draws, 3))
    assert guarantee.unexplained_progress(np.zeros(3), 2) == 0.0
    assert guarantee.progress_draws_needed(np.zeros(3)) == 0
    assert guarantee.unexplained_progress(weights, 0) == pytest.approx(1.0, abs=1e-5)
    assert guarantee.unexplained_progress(weights, 3) == 0.0


def test_weighted_draws_come_as_often_as_they_should() -> None:
    weights, trials, rng = np.array([5.0, 0.0, 1.0, 2.0, 0.5, 1.5]), 20_000, np.random.default_rng(0)
    positive = [0, 2, 3, 4, 5]
    for draws in (1, 2, 4):
        counts = np.zeros(len(weights))
        firsts = np.zeros(len(weights))
        for _ in range(trials):
            drawn = guarantee.draw_weighted(weights, draws, rng.random(len(weights)))
            assert len(set(drawn)) == draws
            counts[drawn] += 1
            firsts[drawn[0]] += 1
        for place, index in enumerate(positive):
            inclusion = 1 - exact_miss([float(weights[i]) for i in positive], frozenset({place}), draws)
            sigma = math.sqrt(inclusion * (1 - inclusion) / trials)
            assert abs(counts[index] / trials - inclusion) < 5 * sigma
            assert abs(firsts[index] / trials - weights[index] / 10) < 5 * math.sqrt(0.25 / trials)
        assert counts[1] == 0


def test_uniform_draws_come_equally_often() -> None:
    trials, rng = 10_000, np.random.default_rng(1)
    counts = dict.fromkeys([3, 7, 8, 9, 20], 0)
    for _ in range(trials):
        drawn = guarantee.draw_uniform(list(counts), 2, rng.random(30))
        assert len(set(drawn)) == 2
        for index in drawn:
            counts[index] += 1
    assert all(abs(count / trials - 0.4) < 5 * math.sqrt(0.24 / trials) for count in counts.values())


# ---- the challenge -------------------------------------------------------------------------------------

COUNT, INTERVAL, EPOCH = 200, 10, 500  # 2000 steps: windows of 200 steps, that is of 20 segments
WINDOW = 20


def measures(weights: Any, function: Any = None) -> list[Measure]:
    """What the survey measures where weights and function came nearer to the end by so much."""
    rest = weights if function is None else function
    return [
        Measure(name, np.asarray(gains, float) / max(float(np.sum(gains)), 1e-300), missed)
        for name, gains, missed in (("weights", weights, MAIN), ("function: nearer", rest, MAIN))
    ]


@cache
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    drawn = {name: rng.uniform(1, 2, COUNT) for name in ("displacement", "weights", "inertia")}
    return {
        **drawn,
        "measures": measures(rng.uniform(0, 1, COUNT), rng.uniform(0, 1, COUNT)),
        "trivial": np.zeros(COUNT, bool),
        "distance": np.ones(COUNT + 1),
        "identity": np.full(COUNT, np.nan),
        "irregular": {},
        "jumps": [],
    }


@pytest.fixture(scope="module")
def measured(tiny_proof: Path) -> Any:
    found = survey(Proof.open(tiny_proof))
    return lambda **changed: replace(found, **{**arrays(), **changed})


@pytest.fixture(scope="module")
def pick(tiny_proof: Path, measured: Any) -> Any:

    def picked(
        found: Survey | None = None, root: str = "sha256:00", nonce: str | None = "00", **options: Any
    ) -> Challenge:
        return challenge(COUNT * INTERVAL, INTERVAL, root, found or measured(), make_nonce(nonce), Draw(**options))

    return picked


def because(chosen: Challenge, why: str) -> set[int]:
    return {index for index, reasons in chosen.segments.items() if why in reasons}


def test_the_same_root_and_nonce_give_the_same_segments(pick: Any) -> None:
    assert pick() == pick()
    uniform, progress = because(pick(), "uniform"), because(pick(), "progress")
    assert uniform != progress
    for other in (pick(nonce="01"), pick(root="sha256:01"), pick(nonce=None)):
        assert because(other, "uniform") != uniform
        assert because(other, "progress") != progress
        assert because(other, "top-q") == because(pick(), "top-q")
    assert because(pick(nonce=None), "uniform") != because(pick(nonce=None), "uniform")


def test_a_nonce_is_drawn_or_said_to_be_chosen() -> None:
    drawn = make_nonce(None)
    assert drawn.origin == "drawn"
    assert len(bytes.fromhex(drawn.value)) == 32
    assert make_nonce(None) != drawn
    assert make_nonce("AB" * 32).origin == "self-chosen"
    assert make_nonce("AB" * 32) == make_nonce("ab" * 32)
    for wrong in ("", "a", "xy", "0x00", "00" * 1025):
        with pytest.raises(UsageError, match="nonce"):
            make_nonce(wrong)


def test_the_first_the_last_and_the_largest_are_always_challenged(pick: Any, measured: Any) -> None:
    found = measured()
    chosen = pick(found, random=0)
    assert because(chosen, "first") == {0}
    assert because(chosen, "last") == {COUNT - 1}
    for why, values in (("top-q", found.displacement), ("inertia", found.inertia)):
        largest = {start + int(np.argmax(values[start : start + WINDOW])) for start in range(0, COUNT, WINDOW)}
        assert because(chosen, why) == largest
        of_all = set(np.argsort(-values)[:3].tolist())
        assert {index - 1 for index in of_all if index} <= because(chosen, "predecessor")
    assert because(chosen, "uniform") == because(chosen, "progress") == set()
    two = pick(found, random=0, top_q=2)
    assert because(two, "top-q") > because(chosen, "top-q")
    assert len(because(two, "top-q")) == 20
    assert set(pick(found, random=0, top_q=0).segments) == {0, COUNT - 1}
    assert list(chosen.segments) == sorted(chosen.segments)


def test_an_infinite_inertia_comes_first(pick: Any, measured: Any) -> None:
    inertia = measured().inertia.copy()
    inertia[57] = math.inf
    assert 57 in because(pick(measured(inertia=inertia), random=0), "inertia")
    assert 56 in because(pick(measured(inertia=inertia), random=0), "predecessor")


def test_random_draws_are_as_many_as_the_guarantee_needs(pick: Any) -> None:
    chosen = pick()
    promise = chosen.guarantee
    assert (promise.uniform_draws, promise.progress_draws) == (
        len(because(chosen, "uniform")),
        len(because(chosen, "progress")),
    )
    assert promise.uniform_draws == guarantee.uniform_draws_needed(COUNT)
    assert promise.forged_fraction <= 0.1
    assert promise.progress_fraction <= 0.1
    assert promise.function_fraction <= 0.1
    assert promise.group_fraction <= 0.3
    assert promise.excursion_fraction <= 0.3
    assert not promise.missing
    few = pick(random=9)
    assert (few.guarantee.uniform_draws, few.guarantee.progress_draws) == (5, 4)
    assert few.guarantee.forged_fraction == guarantee.forgeable_segments(COUNT, 5) / COUNT
    assert few.guarantee.progress_fraction > 0.5
    none = pick(random=0)
    assert (none.guarantee.forged_fraction, none.guarantee.progress_fraction) == (1.0, pytest.approx(1.0, abs=1e-5))
    every = pick(everything=True)
    assert because(every, "all") == set(range(COUNT))
    assert (every.guarantee.forged_fraction, every.guarantee.progress_fraction) == (0.0, 0.0)
    assert len(pick(random=10_000).segments) == COUNT


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.sampled_from(["weights", "function: nearer"]), st.integers(10, 80))
def test_what_escapes_the_draws_is_no_larger_than_promised(
    pick: Any, measured: Any, seed: int, name: str, draws: int
) -> None:
    """Whoever forges a set of segments with more than the promised share of a measure is missed as rarely as promised."""
    rng = np.random.default_rng(seed)
    found = measured(measures=measures(rng.pareto(1, COUNT), rng.pareto(1, COUNT)))
    promise = pick(found, random=draws).guarantee
    share = {"weights": promise.progress_fraction, "function: nearer": promise.function_fraction}[name]
    shares = next(measure.shares for measure in found.measures if measure.name == name)
    # The forger's best choice: the segments that bring most of this measure for their weight.
    weight = np.max([measure.shares / measure.missed for measure in found.measures], axis=0)
    best = np.argsort(-shares / weight)
    size = int(np.searchsorted(np.cumsum(shares[best]), share)) + 1
    if size <= COUNT:
        forged = float(weight[best[:size]].sum() / weight.sum())
        assert guarantee.progress_miss(weight, forged, draws // 2) <= guarantee.MISS_PROBABILITY + 1e-9


def test_each_guarantee_stands_or_falls_by_itself(pick: Any, measured: Any) -> None:
    """A task that shows no outputs: nothing is promised about its function, and what is missing is named."""
    blind = pick(measured(measures=measured().measures[:1])).guarantee
    assert blind.missing == ["function"]
    assert blind.progress_fraction <= 0.1
    assert pick(measured(measures=[])).guarantee.missing == ["weights", "function"]
    assert not pick(measured(measures=[]), everything=True).guarantee.missing


def test_what_moves_in_one_measure_alone_is_drawn(pick: Any, measured: Any) -> None:
    """The function jumps where the weights hardly move, and the other way round."""
    weights, function = np.ones(COUNT), np.ones(COUNT)
    weights[40], function[120] = 100, 100
    chosen = pick(measured(measures=measures(weights, function)))
    assert {40, 120} <= because(chosen, "progress")


def test_trivial_segments_do_not_dilute_the_draws_and_are_drawn_beside_them(pick: Any, measured: Any) -> None:
    """Segments at rate 0 count as no work, but a state may be falsified in one."""
    trivial = np.arange(COUNT) % 10 != 3
    progress = np.where(trivial, 0.0, 1.0)
    chosen = pick(measured(trivial=trivial, measures=measures(progress)))
    assert because(chosen, "uniform") | because(chosen, "progress") <= set(range(3, COUNT, 10))
    assert len(because(chosen, "trivial")) == guarantee.uniform_draws_needed(180)
    assert because(chosen, "trivial") <= set(np.flatnonzero(trivial))
    few = pick(measured(trivial=trivial, measures=measures(progress)), random=8)
    assert len(because(few, "trivial")) == 4
    assert chosen.guarantee.uniform_draws == guarantee.uniform_draws_needed(20)
    assert chosen.guarantee.forged_fraction <= 0.1
    jump = pick(measured(trivial=trivial, measures=measures(np.arange(COUNT) == 50)))
    assert because(jump, "progress") == {50}  # at rate 0, and yet nearer to the end
    nothing = pick(measured(trivial=np.ones(COUNT, bool), measures=measures(np.zeros(COUNT))))
    assert nothing.guarantee.forged_fraction is nothing.guarantee.progress_fraction is None


def test_segments_without_progress_are_not_drawn_for_it(pick: Any, measured: Any) -> None:
    gains = np.zeros(COUNT)
    gains[[5, 50]] = 1.0
    chosen = pick(measured(measures=measures(gains)))
    assert because(chosen, "progress") == {5, 50}


def test_a_thinned_proof_gets_no_promise_about_progress(pick: Any, measured: Any) -> None:
    unknown = measured().displacement.copy()
    unknown[::2] = np.nan
    chosen = pick(measured(displacement=unknown, missing=100, measures=[]))
    assert chosen.guarantee.missing == ["weights", "function"]
    assert "only uniform draws protect" in chosen.notes[0]
    assert because(chosen, "top-q") <= set(range(1, COUNT, 2))


def test_neighbours_of_missing_states_are_replayed(pick: Any, measured: Any) -> None:
    """Around a gap: whoever dropped the states that show a jump kept those before and after it."""
    unknown = measured().displacement.copy()
    unknown[60:70] = np.nan
    chosen = pick(measured(displacement=unknown, missing=9, measures=[]), random=0)
    assert because(chosen, "missing") == {59, 70}


def test_broken_identities_counters_and_jumps_of_the_loss_are_replayed(pick: Any, measured: Any) -> None:
    broken = np.zeros(COUNT)
    broken[[31, 33]] = np.inf
    chosen = pick(measured(identity=broken, irregular={77: "its counter"}, jumps=[90, 91]), random=0)
    assert because(chosen, "identity") == {31, 33}
    assert because(chosen, "counter") == {77}
    assert because(chosen, "loss") == {90, 91}
    everywhere = pick(measured(identity=np.full(COUNT, np.inf)), random=0)
    assert len(because(everywhere, "identity")) == 8  # a step of the task's own: it says nothing about any segment


def test_what_no_honest_step_brings_about_is_replayed_without_ranks_too(pick: Any, measured: Any) -> None:
    """And of very many the nonce draws, so that nobody could put a false one behind the first of them."""
    unknown = measured().displacement.copy()
    unknown[60:70] = np.nan
    broken = np.zeros(COUNT)
    broken[31] = np.inf
    odd = {"identity": broken, "irregular": {77: "its counter"}, "relaid": [80], "jumps": [90, 91]}
    chosen = pick(measured(displacement=unknown, missing=9, measures=[], **odd), random=0, top_q=0)
    wanted = {"identity": {31}, "counter": {77}, "layout": {80}, "missing": {59, 70}}
    assert {why: because(chosen, why) for why in wanted} == wanted
    assert not any(because(chosen, why) for why in ("top-q", "inertia", "predecessor", "loss"))
    many = measured(relaid=list(range(COUNT)), irregular=dict.fromkeys(range(COUNT), "its counter"))
    for why in ("layout", "counter"):
        drawn = [because(pick(many, nonce=nonce, random=0, top_q=0), why) for nonce in ("00", "01")]
        assert [len(found) for found in drawn] == [64, 64]
        assert drawn[0] != drawn[1]
        assert max(max(found) for found in drawn) > 64


def test_a_real_proof_is_surveyed_to_the_same_numbers(tiny_proof: Path) -> None:
    proof = Proof.open(tiny_proof)
    found = survey(proof)
    assert found.displacement == pytest.approx([s.displacement.state for s in proof.segments])
    assert found.weights == pytest.approx([s.displacement.weights for s in proof.segments])
    assert found.distance[0] == 0
    assert found.progress.sum() == pytest.approx(found.distance[-1] ** 2)
    assert found.progress_share()[-1] == pytest.approx(1.0)
    assert not found.trivial.any()
    assert found.inertia[0] == 0  # before the first step there is no momentum
    assert (found.inertia[1:] > 0).all()


def test_the_largest_of_each_window_are_found_in_one_pass_as_window_by_window() -> None:
    """Ties, values that are not numbers, and windows in any order included."""
    draw = np.random.default_rng(0)
    for number in range(200):
        count = int(draw.integers(0, 40))
        values = draw.choice([np.nan, np.inf, -np.inf, 0.0, 1.0, 2.0, 3.0, -5.0], count)
        windows = draw.integers(0, 6, count)
        windows = np.sort(windows) if number % 2 else windows
        for q in (0, 1, 3):
            expected: list[int] = []
            for window in range(6):
                members = [i for i in range(count) if windows[i] == window and values[i] > -np.inf]
                expected += sorted(members, key=lambda i: (-values[i], i))[:q]
            assert plan._top(values, windows, q) == expected
