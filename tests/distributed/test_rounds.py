"""Rounds as a task's step, and aggregation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import support_rounds

import proof_of_learning as pol
from proof_of_learning.distributed import aggregation
from proof_of_learning.distributed.rounds import Slices, collective, conclude, rounds_of
from proof_of_learning.errors import TaskError, UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.portable import using
from proof_of_learning.prover import describe
from proof_of_learning.training.context import StepContext
from proof_of_learning.training.steps import Session, derived_feed

PLACE = str(Path(support_rounds.__file__))


@pytest.mark.parametrize("arithmetic", ["native", "portable"])
@pytest.mark.parametrize("local", [0, 3])
def test_slices_computed_one_by_one_give_the_step(arithmetic: str, local: int) -> None:
    task = support_rounds.task(local=local)
    key = randomness.key_from_seed(0)
    whole = Session(task, key, arithmetic=arithmetic)
    with using(arithmetic):  # drawn numbers are others
        data = task.data()
    list(whole.run(2, *derived_feed(task, data, key, "cpu")))
    apart, slices = Session(task, key, arithmetic=arithmetic), Slices(task, key, arithmetic)
    elsewhere = Slices(task, key, arithmetic)
    rounds, _ = rounds_of(task)
    for step in range(2):
        start = support_start(apart)
        found = [(elsewhere if slot % 2 else slices).compute(step, slot, start) for slot in reversed(range(4))][::-1]
        apart.task = pol.Task(
            **{**vars(task), "step": lambda context, batches, f=found: conclude_all(context, rounds, f)}
        )
        apart.take(step, [], epoch_ends=False)
    assert apart.capture().digest() == whole.capture().digest()
    assert len(found[0].steps) == local


def support_start(session: Session) -> aggregation.Vector:
    from proof_of_learning.distributed.rounds import flat, trained

    return flat(trained(session.model)).copy()


def conclude_all(context: StepContext, rounds: object, found: list[object]):  # type: ignore[no-untyped-def]
    from proof_of_learning.distributed.rounds import trained

    return conclude(context, trained(context.model), rounds, found)  # type: ignore[arg-type]


@pytest.mark.quick
def test_a_proof_of_rounds_is_valid(tmp_path: Path) -> None:
    reference = pol.TaskReference(f"{PLACE}:task", {"rounds": 6, "local": 2})
    pol.prove(reference, tmp_path / "p", interval=1, rehearse=False)
    verdict = pol.verify(tmp_path / "p", reference, everything=True, sandbox="off")
    assert {c.name: c.status for c in verdict.checks}["trajectory"] == "pass", verdict.reason


def test_how_rounds_are_shared_out_is_part_of_the_tasks_sources() -> None:
    found = {
        describe(support_rounds.task(**settings)).sources_digest()
        for settings in ({}, {"clip": 2.0}, {"aggregation": "median"}, {"local": 2}, {"slots": 5})
    }
    assert len(found) == 5 and None not in found


def test_layers_that_keep_statistics_are_refused() -> None:
    task = support_rounds.task(norm=True)
    slices = Slices(task, randomness.key_from_seed(0))
    with pytest.raises(TaskError, match=r"changes the buffer .*GroupNorm"):
        slices.compute(0, 0, support_start(slices.session))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accumulate": 2}, "accumulates"),
        ({"scaler": lambda: None}, "scaler"),
        ({"loss": None, "step": lambda c, b: None}, "custom"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(change: dict[str, object], told: str) -> None:
    base = {**vars(support_rounds.task()), "step": None, "loss": support_rounds.loss, "accumulate": 1, **change}
    with pytest.raises(TaskError, match=told):
        collective(pol.Task(**base), rounds_of(support_rounds.task())[0])


HONEST = [np.array([1.0, 2.0, 3.0], np.float32) + 0.01 * k for k in range(6)]
FALSE = [np.array([-300.0, 900.0, 5.0], np.float32)] * 2


@pytest.mark.parametrize("rule", aggregation.RULES)
def test_robust_rules_resist_a_minority_and_the_mean_does_not(rule: str) -> None:
    found = aggregation.aggregate(rule, HONEST + FALSE, dishonest=2)
    near = float(np.abs(found - HONEST[0]).max()) < 1.0
    assert near == (rule != "mean")
    assert found.dtype == np.float32


def test_clipping_bounds_what_one_update_can_do() -> None:
    assert np.linalg.norm(aggregation.aggregate("mean", [*HONEST, *FALSE], clip=1.0)) <= 1.0
    assert np.allclose(aggregation.aggregate("mean", HONEST[:1], clip=100.0), HONEST[0])


def test_the_sum_by_halves_is_a_sum() -> None:
    for n in (0, 1, 2, 3, 17, 1000):
        assert aggregation.total(np.arange(n, dtype=np.float64)) == n * (n - 1) / 2


@pytest.mark.parametrize("rule", ["krum", "trimmed-mean"])
def test_a_rule_needs_enough_updates(rule: str) -> None:
    ask: Callable[[], object] = partial(aggregation.aggregate, rule, HONEST[:4], dishonest=2)
    with pytest.raises(UsageError, match="needs 5 of them"):
        ask()
