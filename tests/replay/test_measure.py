"""Distances of states: four metrics against their definitions, and no trick with what is not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proof_of_learning.replay import measure
from proof_of_learning.replay.measure import (
    Distance,
    compare,
    displacement,
    estimate_d_ref,
    measured,
    ratio,
    relative_errors,
    weight_distance,
    weights,
)
from proof_of_learning.state.state import State, encode_tree

INF, NAN = math.inf, math.nan


def state(scalars: Any = None, buffers: Any = None, **parameters: Tensor) -> State:
    values = {
        "model": {"parameters": parameters, "buffers": buffers or {}},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "lr": scalars},
    }
    tensors: dict[str, Tensor] = {}
    return State({"d": [[f"s:{name}", encode_tree(v, name, tensors)] for name, v in values.items()]}, tensors)


def of(*values: float) -> State:
    return state(w=torch.tensor(values, dtype=torch.float64))


def expected(a: Any, b: Any) -> Distance:
    x, y = (np.concatenate([np.asarray(v, np.float64).ravel() for v in values]) for values in (a, b))
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return Distance(
        *(float(v) for v in (np.abs(x - y).sum(), np.linalg.norm(x - y), np.abs(x - y).max(), 1 - x @ y / norms))
    )


def near(a: Distance, b: Distance, tolerance: float = 1e-9) -> bool:
    return all(
        math.isclose(getattr(a, m), getattr(b, m), rel_tol=tolerance, abs_tol=tolerance)
        for m in ("l1", "l2", "linf", "cos")
    )


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_metrics_are_what_their_names_say(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in (("u", (3, 4)), ("v", (5,)))}
        for _ in "ab"
    )
    found = compare(state(**one), state(**other))
    arrays = [[*(t.double().numpy() for t in tensors.values())] for tensors in (one, other)]
    assert near(found.kinds["model/parameters"], expected(*arrays), 1e-6)
    assert near(found.overall, expected(*([*a, np.ones(2)] for a in arrays)), 1e-6)  # the momentum, which is equal
    assert found.kinds["optimizer/momentum_buffer"] == Distance()
    assert found.unequal == []
    assert found.finite
    moved = displacement(state(**one), state(**other))
    assert moved.weights == pytest.approx(found.kinds["model/parameters"].l2, rel=1e-6)
    assert moved.state == pytest.approx(found.overall.l2, rel=1e-6)


def test_complex_tensors_are_measured_by_their_parts() -> None:
    found = compare(state(w=torch.tensor([1 + 2j, 3j])), state(w=torch.tensor([1 - 2j, 7j]))).kinds["model/parameters"]
    assert near(found, expected([[1, 2, 0, 3]], [[1, -2, 0, 7]]), 1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6))
def test_equal_states_have_no_distance(values: list[float]) -> None:
    found = compare(of(*values), of(*values))
    assert found.overall == Distance()
    assert displacement(of(*values), of(*values)).state == 0.0


def test_the_estimate_of_d_ref_counts_every_part_of_a_number() -> None:
    drawn, constant = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
    d_ref = estimate_d_ref({"w": drawn, "b": constant}, {"w": drawn * 2, "b": constant + 3})
    assert d_ref.l2 == pytest.approx(math.sqrt(2 * (100 + 18)))
    assert d_ref.linf == pytest.approx(math.sqrt(2) * 8)
    complex_ = estimate_d_ref({"w": torch.tensor([1j, 2.0])}, {"w": torch.tensor([3 + 4j, 0j])})
    assert complex_ == estimate_d_ref({"w": torch.tensor([0.0, 1, 2, 0])}, {"w": torch.tensor([3.0, 4, 0, 0])})


def test_many_tensors_of_all_sizes_and_types_are_measured_as_one_vector() -> None:
    draw = torch.Generator().manual_seed(3)
    types = [torch.float32, torch.float64, torch.bfloat16]
    sizes = [1, 7, 100_000, 200_000, 300_000, 60_000]
    one = {
        f"{i}-{str(kind)[6:]}": torch.randn(size, generator=draw).to(kind)
        for i, size in enumerate(sizes)
        for kind in types
    }
    other = {name: (tensor.float() * 1.25).to(tensor.dtype) for name, tensor in one.items()}
    way = math.sqrt(sum(float(((other[name].double() - one[name].double()) ** 2).sum()) for name in one))
    moved = displacement(state(**one), state(**other))
    assert [moved.state, moved.weights] == pytest.approx([way, way], rel=1e-9)
    assert weight_distance(one, other) == pytest.approx(way, rel=1e-9)
    other["0-float32"] = torch.tensor([INF])
    assert displacement(state(**one), state(**other)).weights == INF


def test_tiny_differences_keep_their_digits() -> None:
    a, b = torch.full((1000,), 1.0, dtype=torch.float64), torch.full((1000,), 1.0, dtype=torch.float64)
    b[0] += 1e-12
    found = compare(state(w=a), state(w=b)).kinds["model/parameters"]
    assert found.l2 == pytest.approx(1e-12, rel=1e-3)
    # 1 - cos = |a-b|² sin² / 2|a||b|: a naive 1 - a·b/|a||b| gives 0 or 1e-16 here.
    assert 0 < found.cos < 1e-26


@pytest.mark.parametrize(
    ("error", "scale", "wanted"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, INF), (5e-324, 0.0, INF), (NAN, 0.0, NAN), (1.0, 2.0, 0.5), (NAN, 1.0, NAN), (INF, 0.0, INF),
     (INF, 1.0, INF), (1.0, INF, 0.0), (0.0, NAN, NAN), (INF, INF, NAN)],
)  # fmt: skip
def test_ratios_where_division_is_delicate(error: float, scale: float, wanted: float) -> None:
    assert ratio(error, scale) == wanted or (math.isnan(wanted) and math.isnan(ratio(error, scale)))
    over = Distance(error, error, error, error).over(Distance(scale, scale, scale, scale))
    assert over.l1 == wanted or (math.isnan(wanted) and math.isnan(over.l1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_what_is_not_finite_on_both_sides_alike_is_no_difference(value: float, dtype: torch.dtype) -> None:
    mask = torch.tensor([value, 0.0, value], dtype=dtype)
    one, other = (state(w=torch.tensor(v, dtype=dtype), buffers={"mask": mask}) for v in ([3.0, 4.0], [3.0, 8.0]))
    found = compare(one, other)
    assert found.finite
    assert found.overall.l2 == found.overall.linf == found.overall.l1 == 4.0
    assert 0 < found.overall.cos < 1
    assert displacement(one, other) == displacement(other, one)
    assert displacement(one, other).state == 4.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (NAN, 0.0),
        (0.0, NAN),
        (INF, 0.0),
        (0.0, INF),
        (INF, -INF),
        (NAN, INF),
        (1e300, -1e300),
        (1e200, 0.0),
        (1.7e308, -1.7e308),
    ],
)
def test_what_is_not_finite_on_one_side_never_passes_for_small(a: float, b: float) -> None:
    for values in ((a, 1.0), (1.0, a)):
        one, other = of(*values), of(*(b if v is a else v for v in values))
        found = compare(one, other)
        assert not found.finite
        assert not found.overall.l2 <= 1e300
        assert not found.overall.linf <= 1e150
        assert not found.overall.over(Distance(1.0, 1.0, 1.0, 1.0)).l2 <= 0.01
        assert displacement(one, other).state == displacement(one, other).weights == INF
        assert weight_distance(weights(one), weights(other)) == INF


def test_a_float32_difference_that_overflows_is_infinite() -> None:
    one, other = (state(w=torch.tensor([v, 0.0])) for v in (3e38, -3e38))
    assert displacement(one, other).state == INF
    assert not compare(one, other).finite


def test_nan_is_not_lost_behind_other_tensors() -> None:
    """A maximum that is taken in the wrong order forgets a NaN."""
    for names in (("a", "b"), ("b", "a")):
        one = state(**{names[0]: torch.tensor([NAN]), names[1]: torch.tensor([1.0])})
        other = state(**{names[0]: torch.tensor([0.0]), names[1]: torch.tensor([5.0])})
        assert math.isnan(compare(one, other).overall.linf)
        assert math.isnan(compare(one, other).overall.l2)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.tensor(1.0), torch.tensor(2.0)),  # without dimensions: a step count, which would drown the rest
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.tensor([1.0]), torch.tensor([1.0]).double()),
        (torch.tensor([1.0]), torch.tensor([[1.0]])),
    ],
    ids=str,
)
def test_what_is_not_measured_must_be_equal(a: Tensor, b: Tensor) -> None:
    one, other = state(w=a), state(w=b)
    assert compare(one, other).unequal == ["model/parameters/w"]
    assert compare(one, one).unequal == []
    assert compare(one, other).overall == Distance()  # and adds nothing to the distance
    assert displacement(one, other).state == 0.0


def test_which_tensors_are_measured() -> None:
    assert [measured(t) for t in (torch.ones(1), torch.ones(0), torch.ones(1, 1).half(), torch.ones(1) * 1j)] == [
        True
    ] * 4
    assert [measured(t) for t in (torch.tensor(1.0), torch.ones(1).int(), torch.ones(1).bool())] == [False] * 3


def test_states_of_other_structure_are_unequal() -> None:
    base = state(0.1, w=torch.ones(2))
    assert compare(base, state(0.2, w=torch.ones(2))).unequal == ["(structure or scalars)"]
    assert compare(base, state(0.1, w=torch.ones(2), v=torch.ones(1))).unequal == ["(structure or scalars)"]
    assert compare(state(0.1, w=torch.ones(2), v=torch.ones(1)), base).unequal == [
        "(structure or scalars)", "model/parameters/v"
    ]  # fmt: skip
    assert compare(state(True, w=torch.ones(2)), state(1, w=torch.ones(2))).unequal == ["(structure or scalars)"]
    assert (
        compare(base, state(math.nextafter(0.1, 1), w=torch.ones(2))).unequal == []
    )  # a schedule in another C library
    assert compare(state(math.nan, w=torch.ones(2)), state(math.nan, w=torch.ones(2))).unequal == []


def test_tensors_without_elements_are_at_no_distance() -> None:
    empty = state(w=torch.empty(0, 3))
    assert compare(empty, empty).overall == Distance()
    assert compare(state(w=torch.zeros(3)), state(w=torch.zeros(3))).overall.cos == 0.0
    assert compare(state(w=torch.zeros(3)), state(w=torch.ones(3))).kinds["model/parameters"].cos == 1.0


def test_relative_errors_by_tensor() -> None:
    a, b = state(u=torch.tensor([3.0, 4.0]), v=torch.zeros(2)), state(u=torch.tensor([3.0, 5.0]), v=torch.ones(2))
    errors = relative_errors(a, b)
    assert errors["model/parameters/u"] == pytest.approx(1 / math.sqrt(34))
    assert errors["model/parameters/v"] == pytest.approx(1.0)
    assert relative_errors(b, a)["model/parameters/v"] == INF
    assert relative_errors(state(v=torch.ones(2)), b)["model/parameters/u"] == INF
    assert relative_errors(state(u=torch.ones(3), v=torch.ones(2)), b)["model/parameters/u"] == INF


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e5m2, torch.complex64, torch.int64])
def test_weights_of_any_type_have_an_estimate_of_d_ref(dtype: torch.dtype) -> None:
    """A mask that is a parameter, say: constant at the start, so that its way is what counts."""
    start, end = torch.zeros(4).to(dtype), torch.tensor([0.0, 1.0, 0.0, 1.0]).to(dtype)
    assert math.isfinite(estimate_d_ref({"w": start}, {"w": end}).l2)


def test_what_is_made_of_losses_may_differ_as_losses_do_between_machines() -> None:
    def holding(best: float, losses: float, factor: float = 0.5) -> State:
        tree = {
            "scheduler": {"best": best, "factor": factor, "num_bad_epochs": 1},
            "progress": {"step": 3, "losses": [losses, 2]},
        }
        return State(encode_tree(tree, "", {}), {})

    assert compare(holding(2.0, 3.0), holding(2.000001, 3.000001)).unequal == []
    for other in (holding(2.1, 3.0), holding(2.0, 3.1), holding(2.0, 3.0, 0.500001)):
        assert compare(holding(2.0, 3.0), other).unequal == ["(structure or scalars)"]


def one_by_one(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The rule of lengths as it was first written: small differences laid end to end in memory, one at a time."""
    piece, lengths, waiting, size = measure.PIECE, list[float](), list[tuple[Tensor, Tensor]](), 0

    def flush() -> None:
        room, end = torch.empty(size, dtype=torch.float32), 0
        for left, right in waiting:
            torch.sub(left.float(), right.float(), out=room[end : end + left.numel()].view(left.shape))
            end += left.numel()
        length = measure._norm(room)
        lengths.extend([length] if math.isfinite(length) else [measure._distance(*pair) for pair in waiting])

    for left, right in pairs:
        if left.numel() >= piece or left.is_complex() or left.dtype == torch.float64:
            lengths.append(measure._distance(left, right))
            continue
        if size + left.numel() > piece:
            flush()
            waiting, size = [], 0
        waiting.append((left, right))
        size += left.numel()
    flush()
    return math.sqrt(sum(length**2 for length in lengths))


@pytest.mark.parametrize("seed", range(6))
def test_differences_measured_together_have_the_bits_of_those_measured_one_by_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(0,), (1, 7), (3, 5, 2), (64, 64, 3, 3), (300_000,), (17,), (1, 1), (640, 400)]
    dtypes = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64)
    pairs = []
    for number in range(60):
        shape = shapes[int(torch.randint(len(shapes), (1,), generator=generator))]
        dtype = dtypes[number % (1 if seed == 0 else len(dtypes))]
        left, right = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        if seed == 5 and number == 30 and left.numel():
            left.view(-1)[0] = right.view(-1)[0] = math.inf
        pairs.append((left, right))
    assert measure._together(pairs) == one_by_one(pairs)
    assert measure._together([]) == one_by_one([]) == 0.0
