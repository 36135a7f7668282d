"""Histories of a gradient scaler: every honest one is possible, the false ones are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from proof_of_learning.verifier.dynamics import scaler_consistent

START = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 10, "_growth_tracker": 0}


def history(overflows: Any, **settings: Any) -> list[dict[str, Any]]:
    """States of a real scaler, whose update is told of an overflow where ``overflows`` says so."""
    scaler = torch.amp.GradScaler("cpu", **settings)
    scaler.scale(torch.ones(1))
    states = [scaler.state_dict()]
    for overflow in overflows:
        scale, tracker = scaler._scale, scaler._growth_tracker
        assert scale is not None and tracker is not None
        torch._amp_update_scale_(
            scale, tracker, torch.tensor(float(overflow)), scaler.get_growth_factor(), scaler.get_backoff_factor(),
            scaler.get_growth_interval(),
        )  # fmt: skip
        states.append(scaler.state_dict())
    return states


@pytest.mark.parametrize("settings", [
    {"growth_interval": 4}, {"growth_interval": 1}, {"growth_interval": 3, "growth_factor": 1.7, "backoff_factor": 0.9},
    {"growth_interval": 2, "init_scale": 2.0**125}, {"growth_interval": 50, "backoff_factor": 0.99},
])  # fmt: skip
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_every_honest_history_is_possible(settings: dict[str, Any], share: float) -> None:
    states = history(np.random.default_rng(1).random(60) < share, **settings)
    for steps in (1, 2, 5, 17, 60):
        for start in range(61 - steps):
            assert scaler_consistent(states[start], states[start + steps], steps) is None


FALSE: list[tuple[dict[str, Any], str]] = [
    *(({"scale": value}, "scale") for value in (float("nan"), float("inf"), "much", None, [1.0], 10**400)),
    *(({"scale": value}, "positive") for value in (0.0, -2.0)),
    *(({"scale": value}, "updates") for value in (1.0, 131072.0, 2.0**100, 60000.0, 1e-320)),
    ({"_growth_tracker": 6}, "updates"),
    *(({"_growth_tracker": value}, "interval") for value in (10, -1, 0.5)),
    ({"backoff_factor": 1.0}, "settings"),
    ({"growth_interval": 0}, "settings"),
    ({"growth_factor": float("nan")}, "growth_factor"),
    ({"growth_interval": 10**9}, "change"),
]


@pytest.mark.parametrize(("changes", "says"), FALSE)
def test_false_histories_are_named(changes: dict[str, Any], says: str) -> None:
    sentence = scaler_consistent(START, {**START, **changes}, 5)
    assert sentence is not None and says in sentence


def test_a_scale_that_is_false_from_the_start_is_named_and_so_is_a_missing_entry() -> None:
    frozen = {**START, "scale": float("nan")}
    assert scaler_consistent(frozen, frozen, 5) is not None
    assert "no '_growth_tracker'" in str(scaler_consistent(START, {k: v for k, v in START.items() if k[0] != "_"}, 5))
    assert "no 'scale'" in str(scaler_consistent({}, START, 5))
    assert scaler_consistent({}, {}, 5) is None


def test_extreme_numbers_are_answered() -> None:
    for growth in (1e300, 1 + 1e-12):
        for backoff in (1e-300, 1 - 1e-12):
            state = {**START, "growth_factor": growth, "backoff_factor": backoff, "growth_interval": 1}
            for scale in (1e-45, 1e38, 65536.0, 1e300):
                scaler_consistent(state, {**state, "scale": scale}, 1000)
