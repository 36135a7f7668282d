"""What a segment contributed: a jump shows in one of the ways, whatever was done to hide it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from proof_of_learning.state.state import State, encode_tree
from proof_of_learning.verifier.dynamics import Course
from proof_of_learning.verifier.progress import MAIN, SINGLE, Measure, importance, on_grid, shares, weight_measures
from proof_of_learning.verifier.sampling import COORDINATES, Sampler, Trained

SEGMENTS = 100
DISTANCES = st.lists(
    st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, 1.0, float("inf"), float("nan")])), min_size=2, max_size=30
)


def learning(segments: int = SEGMENTS) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the end and from the start of a run that learns evenly and restlessly."""
    rng = np.random.default_rng(0)
    way = np.linspace(0, 1, segments + 1) + np.append(0, 0.01 * rng.random(segments))
    way[-1] = 1.0
    return np.abs(1 - way), np.abs(way)


# ---- shares --------------------------------------------------------------------------------------------


@given(DISTANCES, st.data())
def test_shares_add_up_to_one_or_there_are_none(to_end: list[float], data: st.DataObject) -> None:
    from_start = data.draw(st.lists(st.floats(0, 1e6), min_size=len(to_end), max_size=len(to_end)))
    for part in shares(np.array(to_end), np.array(from_start)):
        assert len(part) == len(to_end) - 1
        assert (part >= 0).all()
        assert part.sum() == pytest.approx(1.0) or not part.any()


def largest(to_end: np.ndarray, from_start: np.ndarray, among: set[int]) -> float:
    """Of the ways in which they may show, the largest share that some segments have together."""
    return max(float(part[sorted(among)].sum()) for part in shares(to_end, from_start))


def test_an_even_run_has_no_large_segment() -> None:
    assert largest(*learning(), {50}) < 0.05


@pytest.mark.parametrize(
    ("places", "forged"),
    [
        # of the states: (distance to the end, from the start); a run that rests at the start, jumps to the end and stays
        ([(1.0, 0.0)] * 50 + [(0.0, 1.0)] * 51, {49}),
        # goes away at once, idles there, and comes back to the end
        ([(1.0, 0.0)] + [(5.0, 5.0)] * 99 + [(0.0, 1.0)], {99}),
        # on the way out: it is what the other ways miss where the end is reached by many small honest steps
        ([(1.0, 0.0)] * 2 + [(5.0, 5.0)] * 89 + [(0.1 * i, 1.0) for i in range(9, -1, -1)], {1, 90}),
    ],
)
def test_a_jump_of_any_kind_has_a_large_share(places: list[tuple[float, float]], forged: set[int]) -> None:
    to_end, from_start = np.array(places).T
    assert len(to_end) == SEGMENTS + 1
    for index in forged:
        assert largest(to_end, from_start, {index}) > SINGLE


@given(st.integers(1, 98), st.floats(0, 3), st.floats(0.3, 1.0))
def test_a_jump_is_not_made_smaller_by_a_detour(at: int, detour: float, length: float) -> None:
    """Honest steps first to anywhere, then the jump to near the end: it shows by all that is left, or by the way back."""
    to_end, from_start = learning()
    to_end[1 : at + 1] += detour
    from_start[1 : at + 1] += detour
    assume(to_end[at] > length)
    to_end[at + 1 :] = np.minimum(to_end[at + 1 :], to_end[at] - length)
    to_end[-1] = 0.0
    gained = to_end[: at + 1].min() - to_end[at + 1]
    back = to_end[at] - to_end[at + 1 :].max()
    assert largest(to_end, from_start, {at}) >= max(gained / to_end[0], back / to_end.max()) - 1e-9


@given(st.integers(1, 90), st.integers(1, 9))
def test_splitting_a_jump_does_not_lower_its_sum(at: int, parts: int) -> None:
    to_end = np.where(np.arange(SEGMENTS + 1) <= at, 1.0, 0.2)
    split = np.interp(np.arange(SEGMENTS + 1), [at, at + parts], [1.0, 0.2])
    to_end[-1] = split[-1] = 0.0
    whole = shares(to_end, 1 - to_end)
    parted = shares(split, 1 - split)
    for one, many in zip(whole, parted, strict=True):
        assert many[at : at + parts].sum() >= one[at] - 1e-12


def test_what_is_not_a_number_counts_as_the_farthest() -> None:
    to_end, from_start = learning()
    to_end[40] = from_start[40] = np.nan
    nearer, back, away = shares(to_end, from_start)
    assert back[40] > 0.3  # it comes back from where nobody knows
    assert away[39] > 0.3
    assert nearer.sum() == pytest.approx(1.0)


# ---- on a grid -----------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(2, 20))
def test_each_segment_of_a_gap_is_weighted_by_all_that_happened_in_it(seed: int, known: int) -> None:
    """So no segment has less than what it has where every state is known."""
    rng = np.random.default_rng(seed)
    to_end, from_start = learning()
    to_end[1:-1] *= rng.uniform(0.5, 1.5, SEGMENTS - 1)
    inner = rng.choice(np.arange(1, SEGMENTS), known - 2, replace=False) if known > 2 else np.zeros(0, int)
    positions = sorted({0, SEGMENTS, *inner.tolist()})
    coarse = shares(to_end[positions], from_start[positions])
    for part, share in zip(on_grid(positions, to_end[positions], from_start[positions], SEGMENTS), coarse, strict=True):
        assert len(part) == SEGMENTS
        assert part.sum() >= 1.0 - 1e-9
        for number, (begin, end) in enumerate(itertools.pairwise(positions)):
            assert (part[begin:end] == share[number]).all()


def test_a_grid_of_all_states_is_none() -> None:
    to_end, from_start = learning()
    for part, whole in zip(
        on_grid(range(SEGMENTS + 1), to_end, from_start, SEGMENTS), shares(to_end, from_start), strict=True
    ):
        assert np.array_equal(part, whole)


# ---- weights of the draws ------------------------------------------------------------------------------


def test_importance_is_the_largest_share_over_what_may_be_missed() -> None:
    one, two = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.1, 0.9, 0.0])
    found = importance([Measure("weights", one, MAIN), Measure("excursion", two, SINGLE)], 4)
    assert found.tolist() == pytest.approx([5.0, 5.0, 3.0, 0.0])
    assert importance([], 4).tolist() == [0.0] * 4


# ---- weights -------------------------------------------------------------------------------------------


def tensor(values: np.ndarray, dimensions: int = 2, elements: int | None = None) -> Trained:
    """One tensor of weights at N+1 states, trained by no optimizer that is known."""
    bounds = np.arange(len(values), dtype=np.int64)
    course = Course(values.astype(np.float32), {}, None, np.full(len(values) - 1, 0.1), bounds)
    return Trained(course, elements or values.shape[1], dimensions, "optimizer")


def even(coordinates: int, seed: int = 0) -> np.ndarray:
    goal = np.random.default_rng(seed).normal(size=coordinates)
    return np.linspace(0, 1, SEGMENTS + 1)[:, None] * goal


def by_name(measures: list[Measure]) -> dict[str, np.ndarray]:
    return {measure.name: measure.shares for measure in measures}


def test_a_huge_coordinate_does_not_decide() -> None:
    """A thousand honest coordinates that jump in segment 50, and one that goes a million times as far, evenly."""
    values = np.where(np.arange(SEGMENTS + 1)[:, None] <= 50, 0.0, even(1000)[-1])
    values[:, 0] = np.linspace(0, 1e6, SEGMENTS + 1)
    found = by_name(weight_measures({"model/parameters/a": tensor(values)}))
    assert found["weights"][50] > 0.9


def test_a_large_tensor_does_not_hide_a_small_one() -> None:
    """A bias jumps; a matrix of a million elements learns evenly."""
    bias = np.where(np.arange(SEGMENTS + 1)[:, None] <= 70, 0.0, even(10)[-1])
    trained = {
        "model/parameters/0.weight": tensor(even(512), elements=10**6),
        "model/parameters/0.bias": tensor(bias, dimensions=1),
    }
    measures = weight_measures(trained)
    assert by_name(measures)["0.bias: nearer"][70] == pytest.approx(1.0)
    assert by_name(measures)["weights"][70] > 0.4
    assert importance(measures, SEGMENTS).argmax() == 70


def test_many_tensors_are_pooled_into_few_groups() -> None:
    """In the order of depth, so that a group is a part of the network."""
    trained = {f"model/parameters/{i}.weight": tensor(even(20, seed=i)) for i in range(40)}
    trained |= {f"model/parameters/{i}.bias": tensor(even(4, seed=i), dimensions=1) for i in range(40)}
    names = list(by_name(weight_measures(trained)))
    assert len(names) == 1 + 3 * 8
    assert "matrices 5 of 5: back" in names and "vectors 3 of 3: away" in names


def test_what_is_still_has_no_progress() -> None:
    assert weight_measures({}) == []
    still = weight_measures({"model/parameters/a": tensor(np.ones((SEGMENTS + 1, 5)))})
    assert not any(measure.shares.any() for measure in still)


# ---- coordinates ---------------------------------------------------------------------------------------


ELEMENTS = 5000


def state(shift: float = 0.0, elements: int = ELEMENTS) -> State:
    """Weights and a momentum whose values name their places."""
    place = torch.arange(elements, dtype=torch.float32).reshape(-1, 10)
    values: dict[str, Any] = {
        "model": {"parameters": {"w": place + shift, "small": torch.zeros(3)}},
        "optimizer": {
            "state": {0: {"momentum_buffer": place.clone() + shift}, 1: {"momentum_buffer": torch.zeros(3)}},
            "groups": [{"lr": 0.1, "momentum": 0.9, "params": [0, 1]}],
        },
    }
    tensors: dict[str, torch.Tensor] = {}
    return State({"d": [[f"s:{part}", encode_tree(value, part, tensors)] for part, value in values.items()]}, tensors)


def trained(sampler: Sampler, members: dict[str, str]) -> dict[str, Trained]:
    rates = {"optimizer": np.full((2, 1), 0.1)}
    return sampler.trained(members, {"optimizer": "sgd"}, rates, np.arange(3, dtype=np.int64))


def sampled(seed: int, elements: int = ELEMENTS) -> dict[str, Trained]:
    sampler = Sampler(3, seed)
    for position in range(3):
        sampler.add(position, state(0.25 * position, elements))
    members = {"optimizer/state/0": "model/parameters/w", "optimizer/state/1": "model/parameters/small"}
    return sampler.trained(
        members, {"optimizer": "sgd"}, {"optimizer": np.full((2, 1), 0.1)}, np.arange(3, dtype=np.int64)
    )


@pytest.mark.parametrize("elements", [ELEMENTS, 10 * ELEMENTS])
def test_weights_and_momenta_are_looked_at_in_the_same_places(elements: int) -> None:
    found = sampled(7, elements)["model/parameters/w"]
    weights, momenta = found.course.weights, found.course.entries["momentum_buffer"]
    assert weights.shape == (3, COORDINATES)
    assert found.elements == elements
    assert np.array_equal(weights, momenta)
    assert len(set(weights[0].tolist())) == COORDINATES
    assert np.array_equal(weights[1], weights[0] + 0.25)  # of every state the same


def test_another_nonce_looks_at_other_places_and_the_same_one_at_the_same() -> None:
    def places(seed: int) -> set[float]:
        return set(sampled(seed)["model/parameters/w"].course.weights[0].tolist())

    assert places(7) == places(7)
    # Two draws of 512 of 5,000 share about 52.
    assert len(places(7) & places(8)) < 120
    assert sampled(7)["model/parameters/small"].course.weights.shape == (3, 3)  # taken whole


def test_where_a_state_is_missing_nothing_is_said() -> None:
    sampler = Sampler(3, 1)
    sampler.add(0, state())
    sampler.add(2, state())
    assert sampler.trained({"optimizer/state/0": "model/parameters/w"}, {}, {}, np.arange(3)) == {}


def test_a_tensor_that_changes_its_shape_is_infinitely_far_there() -> None:
    sampler = Sampler(3, 1)
    for position, held in enumerate((state(), state(elements=ELEMENTS - 10), state())):
        sampler.add(position, held)
    members = {"optimizer/state/0": "model/parameters/w"}
    found = sampler.trained(
        members, {"optimizer": "sgd"}, {"optimizer": np.full((2, 1), 0.1)}, np.arange(3, dtype=np.int64)
    )["model/parameters/w"]
    assert np.isinf(found.course.weights[1]).all()
    assert np.isfinite(found.course.weights[[0, 2]]).all()
