"""Numbers that no distance measures: where one breaks, or changes as it hardly ever does, the segment is replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import proof_of_learning as pol
import support_forging
import tasks
from proof_of_learning import Proof, Task
from proof_of_learning.state.state import State, encode_tree
from proof_of_learning.training.context import StepContext, standard_step
from proof_of_learning.training.steps import Session, derived_feed
from proof_of_learning.verifier import scalars
from proof_of_learning.verifier.scalars import LONGEST, MAX_KEPT, Scalars


class Watch:
    """A part with a counter, a switch that the loss obeys, a figure that falls, and a number in a tensor."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"count": 0, "on": 1, "best": 10.0, "name": "x", "level": torch.tensor(1.0)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.values)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.values = dict(values)


def step(context: StepContext, batches: list[Any]) -> Tensor:
    values = context.parts["watch"].values
    values["count"] += 1
    values["best"] *= 0.99
    return standard_step(context, batches, lambda m, b: tasks.loss(m, b) * values["on"] * values["level"])


def watched(steps: int = 24) -> Task:
    return replace(tasks.task(steps=steps), loss=None, step=step, parts=lambda model: {"watch": Watch()}, evaluate=None)


def scaled() -> Task:
    return tasks.task(scaler=True)


def from_there(folder: Path, task: Task, at: int, part: str, **changes: Any) -> Path:
    """A run that is honest but for one segment, the one before position ``at``, at whose end some numbers are others."""
    pol.prove(task, folder / "honest", interval=2)
    honest = Proof.open(folder / "honest")

    def falsify(states: list[State]) -> list[State]:
        session = Session(task, bytes.fromhex(honest.header.randomness.key))
        session.restore(states[at])
        live = session.parts[part]
        live.load_state_dict({**live.state_dict(), **changes})
        forged = [*states[:at], session.capture()]
        feed, order = derived_feed(task, task.data(), session.key, "cpu")
        for segment in honest.segments[at:]:
            for _ in session.run(segment.stop, feed, order):
                pass
            forged.append(session.capture())
        return forged

    return support_forging.rewrite(folder / "honest", folder / "forged", states=falsify)


LIKE = pytest.mark.slow(reason="another number that is found as the one beside it")


@pytest.mark.parametrize(
    ("task", "part", "changes", "words"),
    [
        (scaled, "scaler", {"scale": math.nan}, "scaler/scale is nan"),
        pytest.param(scaled, "scaler", {"scale": math.inf}, "scaler/scale is inf", marks=LIKE),
        (scaled, "scaler", {"_growth_tracker": -5}, "scaler/_growth_tracker is -5"),
        (watched, "watch", {"on": 0}, "watch/on changes as it hardly ever does"),
        pytest.param(watched, "watch", {"count": 1000}, "watch/count changes as it hardly ever does", marks=LIKE),
        (watched, "watch", {"best": math.nan}, "watch/best is not finite any more"),
        (watched, "watch", {"name": "y"}, "watch/name changes"),
        (watched, "watch", {"level": torch.tensor(0.0)}, "watch/level changes"),
    ],
)  # fmt: skip
def test_a_number_that_one_false_segment_changes_is_found_without_a_draw(
    task: Callable[[], Task], part: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    described = task()
    path = from_there(tmp_path, described, 5, part, **changes)
    verdict = pol.verify(path, described, random=0, top_q=0)
    found = verdict.check("hyperparameters")
    assert (verdict.verdict, found.status) == ("invalid", "fail")
    assert found.summary.startswith(f"{words}") and "in the state at step 10" in found.summary
    assert found.evidence["segment"] == 4
    assert 4 not in {segment.index for segment in verdict.segments}
    assert pol.verify(tmp_path / "honest", described, random=0, top_q=0).check("hyperparameters").status == "pass"


def test_honest_changes_that_are_rare_are_replayed_and_pass(tmp_path: Path) -> None:
    def switching(context: StepContext, batches: list[Any]) -> Tensor:
        if context.step == 9:
            context.parts["watch"].values.update(on=0.5, best=math.inf)
        return step(context, batches)

    task = replace(watched(), step=switching)
    pol.prove(task, tmp_path / "run.pol", interval=2)
    verdict = pol.verify(tmp_path / "run.pol", task, random=0, top_q=0)
    assert verdict.verdict == "valid", verdict.reason
    assert len(verdict.check("hyperparameters").evidence["scalars_replayed"]) == 1
    assert verdict.cost.steps_replayed == 6  # the first, the last, and the one that switches


def test_a_scale_that_training_itself_breaks_needs_every_segment(tmp_path: Path) -> None:
    def breaking(context: StepContext, batches: list[Any]) -> Tensor:
        loss = standard_step(context, batches, tasks.loss)
        if context.step == 9:
            assert context.scaler is not None
            context.scaler.load_state_dict({**context.scaler.state_dict(), "scale": math.inf})
        return loss

    task = replace(scaled(), loss=None, step=breaking, evaluate=None)
    pol.prove(task, tmp_path / "run.pol", interval=2)
    few = pol.verify(tmp_path / "run.pol", task, random=0, top_q=0)
    assert few.verdict == "inconclusive" and "every later step is skipped" in few.reason
    assert pol.verify(tmp_path / "run.pol", task, everything=True).check("hyperparameters").status == "pass"


# ---- the history ------------------------------------------------------------------------------------


def history(values: list[Any], steps: int = 2) -> Scalars:
    found = Scalars()
    for position, value in enumerate(values):
        if value is ...:
            found.add(position, None, steps)
            continue
        tensors: dict[str, Tensor] = {}
        tree = {"d": [["s:part", encode_tree({"x": value}, "part", tensors)]]}
        found.add(position, State(tree, tensors), steps)
    return found


@pytest.mark.parametrize(
    ("values", "segments"),
    [
        (list(range(20)), []),
        ([*range(10), *range(15, 25)], [9]),
        ([1.0] * 10 + [2.0] * 10, [9]),
        ([0, 1] * 10, []),  # as often as not
        ([i * 0.37 for i in range(20)], []),
        ([0.37 * i for i in range(9)] + [9.5] * 2 + [0.37 * i for i in range(11, 20)], [9]),  # it stands still once
        ([1] * 10 + [...] + [2] * 10, []),  # a missing state's neighbours are drawn by themselves
        (([1] * 200 + [0]) + [1] * 200, [199, 200]),  # there and back, each once
        (([1] * 20 + [0]) * 30, []),  # one in ten
        ([10**30] * 5 + [10**40] * 5, [4]),
    ],
)
def test_which_changes_are_rare(values: list[Any], segments: list[int]) -> None:
    assert list(history(values).rare(8)) == segments


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "large", True, 2.0])
def test_a_scale_that_cannot_scale_is_unsound(value: Any) -> None:
    found = Scalars()
    for position in range(3):
        tree = encode_tree({"scaler": {"scale": value if position else 2.0, "_growth_tracker": 0}}, "", {})
        found.add(position, State(tree, {}), 1)
    assert (found.unsound is None) == (value == 2.0)
    assert found.unsound is None or (found.unsound[0] == 1 and found.unsound[1].startswith("scaler/scale is "))


def test_a_history_is_bounded_whatever_the_states_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "MAX_PATHS", few := 100)
    found = Scalars()
    for position in range(200):
        items = {str(i): float(i) if position % 2 else math.nan for i in range(few + 50)}
        tensors: dict[str, Tensor] = {}
        found.add(position, State({"d": [["s:part", encode_tree(items, "part", tensors)]]}, tensors), 1)
    assert len(found._paths) == few and len(found.broken) <= MAX_KEPT
    assert all(len(w) <= MAX_KEPT for p in found._paths.values() for w in p.where.values())
    assert len(found.rare(10)) <= 10


def test_a_long_name_is_not_written_out_for_each_node_below_it() -> None:
    """400,000 characters above 100,000 nodes took half a minute."""
    below: Any = {"l": [None] * 50}
    for _ in range(3):
        below = {"d": [["s:" + "k" * 10_000, below]]}
    found = [path for path, _ in Scalars()._numbers(State({"d": [["s:own", below]]}, {}))]
    assert len(set(found)) == len(found) == 51
    assert all(len(path) < LONGEST + 100 for path in found)
