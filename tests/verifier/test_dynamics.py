"""What is said of optimizers, held against PyTorch's own on small real networks."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from proof_of_learning.verifier.dynamics import (
    IDENTITY_LIMIT,
    Course,
    coasting,
    family,
    identity,
    idle_segments,
    idle_share,
    idle_tensors,
    miscounted,
    moved,
    rates_by_part,
    read_rule,
    still,
)
from support_dynamics import VARIANTS, Transformer, cnn, kill, mlp, train

PLAIN = {"foreach": False}


@functools.cache
def trained(name: str, steps: int = 40) -> Course:
    torch.manual_seed(0)
    return train(mlp(16), VARIANTS[name], steps)["1.weight"]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def changed(make: Any, **options: Any) -> Any:
    def made(parameters: Any) -> Any:
        optimizer = make(parameters)
        for group in optimizer.param_groups:
            group.update(options)
        return optimizer

    return made


def idle(courses: dict[str, Course], parts: dict[str, str] | None = None) -> dict[str, Any]:
    return idle_tensors(
        {name: idle_segments(course) for name, course in courses.items()},
        parts or dict.fromkeys(courses, "optimizer"),
        {name: moved(course) for name, course in courses.items()},
    )


def network_share(courses: dict[str, Course], parts: dict[str, str] | None = None) -> Any:
    return idle_share(idle(courses, parts), {name: course.weights.shape[1] for name, course in courses.items()})


# ---- which optimizer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_pytorchs_optimizers_are_known_by_their_state(name: str) -> None:
    course = trained(name)
    assert course.rule is not None
    assert course.rule.family == name.split("-")[0]


@pytest.mark.parametrize("cls", ["NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop", "Adafactor"])
def test_others_are_unknown(cls: str) -> None:
    course = train(mlp(8), getattr(torch.optim, cls), 3)["1.weight"]
    assert course.rule is None
    assert np.isnan(identity(course)).all()
    assert np.isnan(still(course)).all()
    assert np.isnan(idle_segments(course)).all()
    assert (coasting(course) == course.weights).all()


def test_a_foreign_key_or_entry_means_another_optimizer() -> None:
    settings = {k: v for k, v in VARIANTS["sgd"]([torch.zeros(1)]).param_groups[0].items() if k != "params"}
    assert family(settings, ["momentum_buffer"]) == "sgd"
    assert family({**settings, "label": "head"}, []) == "sgd"
    assert family({**settings, "trust_coefficient": 0.001}, []) is None
    assert family(settings, ["momentum_buffer", "old_p"]) is None
    adam = {"lr": 1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    assert family(adam, []) == "adam"
    assert family({**adam, "weight_decay": 0.1}, []) is None  # Adam or AdamW of an earlier PyTorch


def test_an_optimizer_of_a_known_class_keeps_its_rule_whatever_lies_beside_it() -> None:
    settings = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
    rule = read_rule([settings, {**settings, "trust_coefficient": 1.0}], "sgd")
    assert rule is not None
    assert (rule.family, rule.momentum.tolist(), rule.sound.tolist()) == ("sgd", [0.9, 0.9], [True, True])
    assert read_rule([settings], None) is None
    broken = read_rule([settings, {**settings, "momentum": "much"}], "sgd")
    assert broken is not None
    assert broken.sound.tolist() == [True, False]


# ---- the optimizer's own equation ---------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("options", [PLAIN, {"foreach": True}, {"fused": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_honest_steps_obey_the_identity(name: str, options: dict[str, Any]) -> None:
    rate = 0.01 if "maximize" in options else 1.0  # uphill, lest it fly off
    courses = train(mlp(8), changed(VARIANTS[name], **options), 40, schedule=lambda step: rate * (1 - step / 100))
    for course in courses.values():
        deviation = identity(course)
        assert (deviation <= 1.1).all(), deviation.max()
        assert not miscounted(course).any()


@pytest.mark.parametrize("name", ["sgd-decay", "adam", "adamw"])
def test_convolutions_and_transformers_obey_it_too(name: str) -> None:
    for courses in (train(cnn(), VARIANTS[name], 30), train(Transformer(), VARIANTS[name], 10, batch=4)):
        assert max(identity(course).max() for course in courses.values()) <= 1.1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_jump_of_one_weight_breaks_the_identity(name: str) -> None:
    course = trained(name)
    living = int(np.argmax(np.abs(course.weights[-1] - course.weights[0])))
    weights = course.weights.copy()
    weights[21:, living] += np.float32(0.5)
    deviation = identity(replace(course, weights=weights))
    assert deviation[20] > 100 * IDENTITY_LIMIT
    assert (
        np.delete(deviation, 20) <= IDENTITY_LIMIT
    ).sum() >= 20  # coupled decay hides the shift from SGD's later steps


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("adam", "exp_avg"), ("adam", "exp_avg_sq"), ("adamw", "exp_avg"), ("adam-amsgrad", "max_exp_avg_sq"),
        ("sgd", "momentum_buffer"), ("sgd-nesterov", "momentum_buffer"), ("rmsprop", "square_avg"), ("rmsprop-both", "grad_avg"),
        ("rmsprop-momentum", "momentum_buffer"), ("adagrad", "sum"),
    ],
)  # fmt: skip
def test_a_false_entry_breaks_it(name: str, entry: str) -> None:
    course = trained(name)
    false = course.entries[entry].copy()
    living = int(np.argmax(np.abs(course.weights[-1] - course.weights[0])))
    false[21, living] = np.abs(false[21]).max() * 3 + 1e-3
    deviation = identity(replace(course, entries={**course.entries, entry: false}))
    assert deviation[20:22].max() > IDENTITY_LIMIT
    assert (deviation[:20] <= IDENTITY_LIMIT).all()


@pytest.mark.parametrize(("name", "mean", "square"), [
    ("adam", "exp_avg", "exp_avg_sq"), ("adamw", "exp_avg", "exp_avg_sq"), ("rmsprop-momentum", "momentum_buffer", "square_avg"),
])  # fmt: skip
def test_second_moments_that_do_not_follow_from_the_gradients_break_it(name: str, mean: str, square: str) -> None:
    """Even where the weights follow from them."""
    course = trained(name)
    living = int(np.argmax(np.abs(course.weights[-1] - course.weights[0])))
    entries = {key: values.copy() for key, values in course.entries.items()}
    weights = course.weights.copy()
    entries[square][21, living] *= np.float32(1e-6)
    if name != "rmsprop-momentum":  # whose weights follow from the momentum alone
        moments, count = entries[mean][21, living], 21.0
        correction = np.sqrt(entries[square][21, living] / (1 - 0.999**count)) + 1e-8
        kept = weights[20, living] * (1 - 2e-3 * 0.1 * (name == "adamw"))
        weights[21, living] = kept - 2e-3 / (1 - 0.9**count) * moments / correction
    assert identity(course)[20] <= 1.1
    assert identity(replace(course, weights=weights, entries=entries))[20] > 100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop-both", "adagrad"])
def test_values_that_are_not_finite_break_it(name: str, value: float) -> None:
    course = trained(name)
    for entry in ("weights", *course.entries):
        values = (course.weights if entry == "weights" else course.entries[entry]).copy()
        values[11] = value
        false = (
            replace(course, weights=values)
            if entry == "weights"
            else replace(course, entries={**course.entries, entry: values})
        )
        if entry != "grad_avg":
            assert identity(false)[10] == np.inf, entry
        for function in (coasting, still, idle_segments, moved, miscounted):
            function(false)


def test_settings_that_are_no_numbers_break_it() -> None:
    course = train(mlp(8), VARIANTS["adam"], 5)["1.weight"]
    for betas in ((), "no", (0.9, None), (np.nan, 0.9), (1.0, 1.0), (10.0**300, 10.0**300)):
        settings = {
            "lr": 1,
            "betas": betas,
            "eps": 1e-8,
            "weight_decay": 0,
            "amsgrad": False,
            "decoupled_weight_decay": False,
        }
        false = replace(course, rule=read_rule([settings] * 6, "adam"))
        assert not (identity(false) <= IDENTITY_LIMIT).any()
        coasting(false), idle_segments(false)


def test_a_skipped_update_is_no_broken_identity_and_a_false_counter_is() -> None:
    course = train(mlp(8), VARIANTS["adam"], 20, skipped=(7,))["1.weight"]
    assert identity(course)[7] == 0
    assert (identity(course) <= IDENTITY_LIMIT).all()
    assert not moved(course)[7] and moved(course).sum() == 19
    assert not miscounted(course).any()
    counter = course.entries["step"].copy()
    counter[11:] += 1
    false = replace(course, entries={**course.entries, "step": counter})
    assert identity(false)[10] == np.inf
    assert np.flatnonzero(miscounted(false)).tolist() == [10]


def test_nothing_is_said_of_longer_segments_and_of_sgd_without_momentum() -> None:
    assert np.isnan(identity(train(mlp(8), VARIANTS["adam"], 6, 2)["1.weight"])).all()
    assert np.isnan(identity(train(mlp(8), lambda p: torch.optim.SGD(p, lr=0.1), 6)["1.weight"])).all()


# ---- without gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", [*VARIANTS, "sgd-plain"])
def test_still_is_what_pytorch_does_with_gradients_of_zero(name: str, k: int) -> None:
    make = VARIANTS.get(name, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-2))
    weights = torch.nn.Parameter(torch.randn(64))
    optimizer = make([weights])
    for _ in range(6):
        weights.grad = torch.randn(64)
        optimizer.step()
    rates = np.linspace(0.02, 0.01, k)
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    start = {
        "weights": weights.detach().clone(),
        **{n: v.clone() for n, v in optimizer.state[weights].items() if v is not None},
    }
    for rate in rates:
        weights.grad = torch.zeros(64)
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    entries = {name: np.stack([value.numpy()] * 2) for name, value in start.items()}
    before = entries.pop("weights")
    course = Course(before, entries, read_rule([settings] * 2, family(settings, entries)), rates, np.array([0, k]))
    assert still(course)[0] == pytest.approx(weights.detach().numpy(), rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_dead_network_comes_to_rest_and_is_idle(name: str, k: int) -> None:
    def die(step: int, model: Any) -> None:
        if step == 40:
            kill(model)

    courses = train(mlp(16), VARIANTS[name], 100, k, before=die, schedule=lambda step: 1 - step / 150)
    dead = slice(40 // k + 1, None)
    share = network_share(courses)
    assert (share[dead] > 0.5).all(), share
    assert (share[: 40 // k - 1] < 0.1).all()
    weight = courses["1.weight"]
    assert (idle_segments(weight)[dead] == 1).all()
    # Momentum and decay still move the weights, and none of it is progress.
    path = coasting(weight)
    lived = np.abs(np.diff(path[: 40 // k], axis=0)).sum(0).mean()
    assert np.abs(np.diff(path[dead], axis=0)).sum(0).mean() < 1e-3 * lived


@pytest.mark.parametrize("name", ["sgd", "sgd-decay", "adam", "adamw", "rmsprop", "adagrad"])
def test_honest_training_is_not_idle(name: str) -> None:
    courses = train(mlp(), VARIANTS[name], 100, 2)
    assert (network_share(courses) < 0.1).all()
    assert np.nanmin(idle_segments(courses["1.weight"])) < 0.5  # though some pixels are always 0


def test_tokens_that_never_occur_and_rare_ones_are_not_idle_training() -> None:
    courses = train(Transformer(1000), VARIANTS["adamw"], 30, batch=1)
    assert np.nanmean(idle_segments(courses["tokens.weight"])) > 0.05
    assert (network_share(courses) < 0.1).all()


def test_an_optimizer_that_waits_for_its_turn_is_not_idle_but_all_that_wait_are() -> None:
    courses = train(mlp(8), VARIANTS["sgd"], 40)
    waiting = train(mlp(8), VARIANTS["sgd"], 40, skipped=range(0, 40, 2))
    both = {**{f"a.{n}": c for n, c in courses.items()}, **{f"b.{n}": c for n, c in waiting.items()}}
    assert (network_share(both, {name: name[0] for name in both}) < 0.1).all()
    assert (network_share(waiting)[2::2] == 1).all()
    assert (idle_segments(waiting["1.weight"])[2::2] == 1).all()  # though its momentum would have moved it


def test_a_tensor_is_measured_by_its_own_best_segment() -> None:
    shares = {"embedding": np.array([0.97, 0.98, 0.96]), "layer": np.array([0.1, 0.95, 0.2])}
    found = idle_tensors(shares, dict.fromkeys(shares, "optimizer"), dict.fromkeys(shares, np.ones(3, dtype=bool)))
    assert found["embedding"].tolist() == [0, 0, 0]
    assert found["layer"].tolist() == [0, 1, 0]
    assert idle_share(found, {"embedding": 3, "layer": 1}).tolist() == [0, 0.25, 0]


def test_the_layer_that_was_shut_off_is_named() -> None:
    """However many live above it."""
    deep = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32))
    for _ in range(6):
        deep.extend([torch.nn.ReLU(), torch.nn.Linear(32, 32)])

    def die(step: int, model: Any) -> None:
        if step == 20:
            kill(model)

    tensors = idle(train(deep, VARIANTS["adam"], 60, before=die))
    assert {name for name, found in tensors.items() if found[21:].all()} == {"1.weight", "1.bias", "3.weight"}
    assert {name for name, found in tensors.items() if found.any()} == {"1.weight", "1.bias", "3.weight"}


def test_frozen_and_empty_tensors_are_not_judged() -> None:
    course = trained("adam")
    none = np.zeros((41, 0))
    for weights in (none, np.ones((41, 3))):
        entries = {
            name: value if value.ndim == 1 else np.full(weights.shape, np.nan) for name, value in course.entries.items()
        }
        frozen = replace(course, weights=weights, entries={**entries, "step": np.full(41, np.nan)})
        assert np.isnan(idle_segments(frozen)).all()
        assert (identity(frozen) == 0).all()
        assert not moved(frozen).any()
        assert coasting(frozen) == pytest.approx(weights)
        assert idle({"frozen": frozen}) == {}


def test_a_segment_without_a_rate_is_not_judged() -> None:
    course = train(mlp(8), VARIANTS["sgd"], 12, 2, schedule=lambda step: float(not 4 <= step < 8))["1.weight"]
    assert np.flatnonzero(np.isnan(idle_segments(course))).tolist() == [2, 3]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_resting_points_start_and_end_with_the_weights(name: str) -> None:
    """Less decay, what gradients brought about adds up to what the weights did."""
    course = train(mlp(8), changed(VARIANTS[name], weight_decay=0.0), 60, 3, schedule=lambda step: 1 - step / 100)[
        "1.weight"
    ]
    path = coasting(course)
    scale = np.abs(course.weights[-1] - course.weights[0]).max()
    assert np.abs(path[0] - course.weights[0]).max() < 1e-6
    assert np.abs(path[-1] - course.weights[-1]).max() < 0.02 * scale


@pytest.mark.parametrize(
    ("name", "entry"), [("sgd", "momentum_buffer"), ("sgd-nesterov", "momentum_buffer"), ("adam", "exp_avg")]
)
def test_a_false_momentum_is_progress_where_it_was_put_in(name: str, entry: str) -> None:
    """The weights go on honestly for many steps; what they gain is due to the one false segment."""
    honest = train(mlp(16), VARIANTS[name], 60)["1.weight"]
    model = mlp(16)

    def push(optimizer: Any) -> Any:
        steps = 0

        def hook(self: Any, args: Any, kwargs: Any) -> None:
            nonlocal steps
            if steps == 20:
                parameter = self.param_groups[0]["params"][0]
                self.state[parameter][entry] += 10 * self.state[parameter][entry].abs().max()
            steps += 1

        optimizer.register_step_pre_hook(hook)
        return optimizer

    pushed = train(model, lambda p: push(VARIANTS[name](p)), 60)["1.weight"]
    # The hook falls between two checkpoints; it belongs to the segment whose end shows it.
    moved_by = np.abs(np.diff(coasting(pushed), axis=0)).mean(axis=1)
    walked = np.abs(np.diff(pushed.weights.astype(np.float64), axis=0)).mean(axis=1)
    usual = np.abs(np.diff(coasting(honest), axis=0)).mean(axis=1).max()
    assert moved_by.argmax() == 20
    assert moved_by[20] > 5 * usual
    assert moved_by[20] > 3 * np.delete(moved_by, 20).max()
    assert walked[21:25].min() > walked[:20].max()  # the weights alone would charge it to honest segments


# ---- rates of several optimizers ----------------------------------------------------------------------


def test_rates_belong_to_the_optimizers_in_the_tasks_own_order() -> None:
    rates = np.stack([np.linspace(1, 2, 6), np.full(6, 0.5), np.linspace(5, 3, 6)], axis=1)
    found = rates_by_part(rates, {"optimizer.z": 1, "optimizer.a": 2})
    assert found is not None
    assert (found["optimizer.z"] == rates[:, :1]).all()
    assert (found["optimizer.a"] == rates[:, 1:]).all()
    assert rates_by_part(rates, {"optimizer.z": 1}) is None
