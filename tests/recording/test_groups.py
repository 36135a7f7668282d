"""Parameter groups that an optimizer is given while training (gradual unfreezing): recorded, replayed, resumed; not taken on trust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import proof_of_learning as pol
import support_forging
import support_traps
import tasks
from proof_of_learning import Task
from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.state.optimizers import own_groups, settle_groups
from proof_of_learning.state.state import State, added_rates, capture, restore, settings
from support_scripts import record, script, verdict
from support_situations import interrupted, judged


def unfreezing(**changes: Any) -> Task:
    return replace(support_traps.task("unfreezing"), **changes)


def twice(context: Any, batches: list[Any]) -> Any:
    """Unfreezes one layer after the other."""
    model, optimizer = context.model, context.optimizer
    if context.step in (5, 9):
        layer = model.middle if context.step == 5 else model.first
        optimizer.add_param_group({"params": list(layer.requires_grad_().parameters()), "lr": 0.01, "momentum": 0.5})
    loss = tasks.loss(model, batches[0])
    context.backward(loss)
    context.update()
    return loss


def head_only(model: Any) -> torch.optim.Optimizer:
    model.first.requires_grad_(False)
    model.middle.requires_grad_(False)
    return torch.optim.AdamW(model.last.parameters(), lr=0.05)


class Unfreezing(torch.optim.lr_scheduler.ExponentialLR):
    """A schedule that adds the group itself, in a standard step."""

    def __init__(self, optimizer: Any, later: list[Any]) -> None:
        self.later = later
        super().__init__(optimizer, 0.97)

    def step(self, epoch: Any = None) -> None:
        super().step()
        if self.last_epoch == 6:
            self.optimizer.add_param_group({"params": self.later, "lr": 0.01, "initial_lr": 0.01})

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "later"}


def scheduled() -> Task:
    held: dict[str, Any] = {}

    def optimizer(model: Any) -> torch.optim.Optimizer:
        held["later"] = list(model.middle.parameters())
        return torch.optim.SGD([*model.first.parameters(), *model.last.parameters()], lr=0.05, momentum=0.9)

    task = support_traps.task("")
    return replace(task, optimizer=optimizer, scheduler=lambda made: Unfreezing(made, held["later"]), schedule="step")


SAME = pytest.mark.slow(reason="as before the next epoch begins")
GROWN = {
    "one": unfreezing(),
    "two": unfreezing(step=twice, optimizer=head_only),
    "with a scheduler": unfreezing(
        scheduler=lambda made: torch.optim.lr_scheduler.ExponentialLR(made, 0.9), schedule="step"
    ),
    "by a scheduler": scheduled(),
}
KEPT = {("one", 4), ("two", 1), ("with a scheduler", 4), ("by a scheduler", 1)}
OTHER = pytest.mark.slow(reason="each of these at the other interval, and each interval for others, stay")


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        pytest.param(name, interval, marks=() if (name, interval) in KEPT else OTHER)
        for name in GROWN
        for interval in (1, 4)
    ],
)
def test_groups_added_in_mid_run_are_valid_under_every_draw(name: str, interval: int, tmp_path: Path) -> None:
    task = GROWN[name]
    made = pol.prove(task, tmp_path / "run.pol", interval=interval, rehearse=True)
    assert made.root == pol.prove(task, tmp_path / "alone.pol", interval=interval, rehearse=False).root
    for options in ({"everything": True}, {"random": 2, "top_q": 0}, {}):
        verdict = pol.verify(made.path, task, keep_going=True, **options)
        assert verdict.verdict == "valid", verdict.reason
    blocks = list(pol.Proof.open(made.path).all_columns())
    assert {block.rates.shape[1] for block in blocks} == {1}  # those of the groups that it was built with


def test_a_run_that_was_killed_after_the_addition_resumes(tmp_path: Path) -> None:
    whole = pol.prove(unfreezing(), tmp_path / "whole.pol", interval=2)
    for after in (6, 7, 11):
        interrupted(unfreezing(), tmp_path / f"{after}.pol", after, interval=2)
        assert pol.prove(unfreezing(), tmp_path / f"{after}.pol", interval=2).root == whole.root


def test_a_codec_in_the_loop_takes_them_too(tmp_path: Path) -> None:
    made = pol.prove(unfreezing(), tmp_path / "run.pol", interval=4, codec="quantised", rehearse=True)
    judged(made.path, unfreezing())


def falsified(states: list[State], from_: int, change: Callable[[dict[str, Any]], None]) -> list[State]:
    """The settings of the group that was added are others from one state on."""

    def other(state: State) -> State:
        model, optimizer = tasks.Net(), None
        optimizer = support_traps.unfreezing_optimizer(model)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        settle_groups(optimizer)
        restore(parts, state.part("model", "optimizer"))
        change(optimizer.param_groups[1])
        changed = capture(parts)
        tree = {
            "d": [item for item in state.tree["d"] if item[0] not in ("s:model", "s:optimizer")] + changed.tree["d"]
        }
        tree["d"].sort(key=lambda item: item[0])
        return State(tree, {**state.tensors, **changed.tensors})

    return [state if at < from_ else other(state) for at, state in enumerate(states)]


@pytest.mark.parametrize("from_", [2, 4])
def test_other_settings_of_an_added_group_are_found_without_being_challenged(from_: int, tmp_path: Path) -> None:
    made = pol.prove(unfreezing(), tmp_path / "run.pol", interval=4)
    forged = support_forging.rewrite(
        Path(made.path), tmp_path / "forged.pol", states=lambda held: falsified(held, from_, lambda g: g.update(lr=0.5))
    )
    check = pol.verify(forged, unfreezing(), random=0, top_q=0, keep_going=True).check("hyperparameters")
    assert check.status == "fail" and "not the task's" in check.summary, check.summary


# ---- what adds them elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 17])
def test_a_group_added_outside_of_what_replays_is_refused_by_name(step: int, tmp_path: Path) -> None:
    held: list[Any] = []

    def optimizer(model: Any) -> torch.optim.Optimizer:
        held.extend([list(model.middle.parameters()), support_traps.unfreezing_optimizer(model)])
        made: torch.optim.Optimizer = held[-1]
        return made

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training" and done == step:
            live[-1].add_param_group({"params": live[-2], "lr": 0.01})

    live: list[Any] = []

    def loss(model: Any, batch: Any) -> Any:
        if not live:  # the session that trains is the first to ask for a loss
            live.extend(
                next(pair for pair in zip(held[::2], held[1::2], strict=True) if pair[0][0] is model.middle.weight)
            )
        return tasks.loss(model, batch)

    task = replace(support_traps.task(""), optimizer=optimizer, loss=loss)
    with pytest.raises(TaskError) as raised:
        pol.prove(task, tmp_path / "run.pol", interval=4, progress=progress, rehearse=True)
    line = str(raised.value)
    assert "'optimizer' was given a further parameter group by something that a replay does not do" in line
    assert "Add it in the task's own `step` or scheduler" in line and "\n" not in line


def test_groups_that_are_taken_away_are_refused(tmp_path: Path) -> None:
    def optimizer(model: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": m.parameters()} for m in (model.first, model.middle, model.last)], lr=0.05)

    def step(context: Any, batches: list[Any]) -> Any:
        if context.step == 6:
            del context.optimizer.param_groups[1]
        loss = tasks.loss(context.model, batches[0])
        context.backward(loss)
        context.update()
        return loss

    with pytest.raises(TaskError, match=r"3 when it was built, 2 before step 7.*Give the optimizer all its groups"):
        pol.prove(unfreezing(optimizer=optimizer, step=step), tmp_path / "run.pol", interval=4, rehearse=False)


FROZEN = "model[0].requires_grad_(False); optimizer = torch.optim.SGD(model[3].parameters()"
ADD = 'optimizer.add_param_group({"params": list(model[0].requires_grad_().parameters()), "lr": 0.02})'


@pytest.mark.parametrize(
    "places",
    [
        pytest.param(
            {"epoch": f"if epoch == 0: {ADD}"},
            marks=SAME,
        ),
        {"begin": f"if epoch == 1 and number == 3: {ADD}"},
        {"before": f"if epoch == 1: {ADD}"},
    ],
    ids=["behind an epoch", "in a step", "before an epoch"],
)
def test_a_script_that_unfreezes_is_valid_under_every_draw(places: dict[str, str], tmp_path: Path) -> None:
    before = places.pop("before", "pass")
    path = script(tmp_path, epochs=3, **places)
    text = path.read_text().replace("optimizer = torch.optim.SGD(model.parameters()", FROZEN)
    path.write_text(text.replace("    for number,", f"    {before}\n    for number,"))
    done = record(path, tmp_path / "run.pol", interval=7)
    assert done.returncode == 0, done.stderr
    for options in ({"everything": True}, {"random": 2, "top_q": 0}):
        found = verdict(tmp_path / "run.pol", path, keep_going=True, **options)
        assert found.verdict == "valid", found.reason


# ---- hostile states ---------------------------------------------------------------------------------


def grown() -> tuple[dict[str, Any], State]:
    parts = fresh()
    parts["optimizer"].add_param_group({"params": list(parts["model"].middle.parameters()), "lr": 0.01})
    return parts, capture(parts)


def fresh() -> dict[str, Any]:
    model = tasks.Net()
    optimizer = support_traps.unfreezing_optimizer(model)
    settle_groups(optimizer)
    return {"model": model, "optimizer": optimizer}


def test_a_state_says_which_parameters_a_group_holds() -> None:
    _, state = grown()
    entries = dict(dict(state.tree["d"])["s:optimizer"]["d"])
    names = ["model/parameters/middle.weight", "model/parameters/middle.bias"]
    assert entries["s:added"] == {"l": [{"l": names}]}
    assert added_rates(settings(state)) == [0.01]
    other = fresh()
    for _ in range(2):  # a state is restored into an optimizer that has the group already, too
        restore(other, state)
        assert own_groups(other["optimizer"]) == 1
        assert other["optimizer"].param_groups[1]["params"][0] is other["model"].middle.weight
        assert capture(other).digest() == state.digest()
    before = capture(fresh())
    restore(other, before)  # and the group is gone again
    assert capture(other).digest() == before.digest()


HOSTILE: dict[str, tuple[Any, str]] = {
    "stranger": (
        {"l": [{"l": ["model/parameters/none", "model/parameters/middle.bias"]}]},
        "which the task does not train",
    ),
    "number": ({"l": [{"l": [{"i": "7"}, {"i": "8"}]}]}, "which the task does not train"),
    "too few": ({"l": [{"l": ["model/parameters/middle.weight"]}]}, "which the task does not train"),
    "none": ({"l": [{"l": []}]}, "which the task does not train"),
    "held": ({"l": [{"l": ["model/parameters/first.weight", "model/parameters/first.bias"]}]}, "does not fit the task"),
    "twice": ({"l": [{"l": ["model/parameters/middle.weight"] * 2}]}, "which the task does not train"),
    "all": ({"l": [{"l": []}, {"l": []}]}, "0 parameter groups from the start"),
    "no list": ({"i": "1"}, "does not fit the task"),
    "a text": ("x", "which the task does not train"),
    "nothing": (None, "does not fit the task"),
    "left out": ({"l": []}, "2 parameter groups from the start"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_group_is_refused(kind: str) -> None:
    _, state = grown()
    value, words = HOSTILE[kind]
    tree = {
        "d": [
            [part, {"d": [[name, value if name == "s:added" else node] for name, node in body["d"]]}]
            for part, body in state.tree["d"]
        ]
    }
    with pytest.raises(FormatError, match=words):
        restore(fresh(), State(tree, state.tensors))
    assert all(rate > 0 for rate in added_rates(settings(State(tree, state.tensors))))


def test_a_parameter_that_no_part_holds_is_refused() -> None:
    parts = fresh()
    parts["optimizer"].add_param_group({"params": list(nn.Linear(2, 1).parameters())})
    with pytest.raises(TaskError, match="was added to 'optimizer'; name their module in the task's `parts`"):
        capture(parts)
