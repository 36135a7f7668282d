"""What recorded states hold beside trained values: the task's own in every honest proof, and compared with it in every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import proof_of_learning as pol
import support_forging
import tasks
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.state.state import State
from proof_of_learning.training.context import StepContext, standard_step


def local(tiny: pol.TaskReference, **settings: Any) -> pol.Task:
    return replace(pol.load_task(pol.TaskReference(tiny.target, settings)), reference=None)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "scheduler": "onecycle"},
        {"optimizer": "nesterov", "scheduler": "onecycle", "schedule": "epoch"},
        {"scheduler": "sequential", "schedule": "epoch"},
        {"optimizer": "adagrad", "scheduler": "multistep"},
        {"scaler": True},
        {"custom": True, "scheduler": "cosine", "optimizer": "amsgrad"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_honest_states_hold_the_settings_that_the_schedule_leads_to(
    settings: dict[str, Any], tiny: pol.TaskReference, tmp_path: Path
) -> None:
    task = local(tiny, **settings)
    pol.prove(task, tmp_path / "honest", interval=5)
    assert pol.verify(tmp_path / "honest", task, random=2, top_q=0).verdict == "valid"


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        (("optimizer", "groups", 0, "weight_decay"), {"f": (0.5).hex()}, "optimizer.groups[0].weight_decay: the task has 0.001"),
        (("optimizer", "groups", 0, "maximize"), True, "optimizer.groups[0].maximize: the task has False, the proof has True"),
        (("scheduler", "gamma"), {"f": (0.5).hex()}, "scheduler.gamma: the task has 0.95, the proof has 0.5"),
        (("model", "frozen"), {"l": ["first.weight"]}, "model.frozen: the task has [], the proof has ['first.weight']"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_other_settings_in_one_state_are_found_without_being_challenged(
    path: tuple[str | int, ...], value: Any, shown: str, tiny: pol.TaskReference, tmp_path: Path
) -> None:
    task = local(tiny, scheduler="exponential")
    pol.prove(task, tmp_path / "honest", interval=3)

    def falsify(states: list[State]) -> list[State]:
        return [*states[:4], State(_with(states[4].tree, path, value), states[4].tensors), *states[5:]]

    support_forging.rewrite(tmp_path / "honest", tmp_path / "forged", states=falsify)
    verdict = pol.verify(tmp_path / "forged", task, random=0, top_q=0)
    assert {segment.index for segment in verdict.segments} <= {0, 7}
    check = verdict.check("hyperparameters")
    assert (verdict.verdict, check.status) == ("invalid", "fail")
    assert check.summary.startswith(f"the settings in the state at step 12 are not the task's: {shown}")


def stepped_by_itself(context: StepContext, batches: list[Any]) -> Any:
    loss = standard_step(context, batches, tasks.loss)
    if context.step % 6 == 5:
        context.schedulers["scheduler"].step(loss.detach())
    return loss


@pytest.mark.parametrize("step", [None, stepped_by_itself], ids=["standard", "custom"])
def test_a_schedule_that_follows_a_metric_gets_a_verdict(step: Any, tiny: pol.TaskReference, tmp_path: Path) -> None:
    task = local(tiny, scheduler="plateau")
    task = task if step is None else replace(task, loss=None, step=step)
    pol.prove(task, tmp_path / "honest", interval=4)
    rates = [row[0] for columns in pol.Proof.open(tmp_path / "honest").all_columns() for row in columns.rates.tolist()]
    assert rates == [*[0.05] * 12, *[0.025] * 6, *[0.0125] * 6]
    assert pol.verify(tmp_path / "honest", task, random=1, top_q=0).verdict == "valid"

    def halved(states: list[State]) -> list[State]:
        tree = _with(states[2].tree, ("optimizer", "groups", 0, "lr"), {"f": (0.025).hex()})
        return [*states[:2], State(tree, states[2].tensors), *states[3:]]

    support_forging.rewrite(tmp_path / "honest", tmp_path / "forged", states=halved)
    verdict = pol.verify(tmp_path / "forged", task, random=0, top_q=0)
    assert (verdict.verdict, verdict.check("hyperparameters").status) == ("invalid", "fail")


def test_rates_that_do_not_follow_from_the_recorded_losses_are_found(tiny: pol.TaskReference, tmp_path: Path) -> None:
    task = local(tiny, scheduler="plateau")
    pol.prove(task, tmp_path / "honest", interval=3)

    def improved(columns: list[Columns]) -> list[Columns]:
        return [*columns[:4], *(replace(c, loss=c.loss / 1000) for c in columns[4:6]), *columns[6:]]

    support_forging.rewrite(tmp_path / "honest", tmp_path / "forged", columns=improved)
    check = pol.verify(tmp_path / "forged", task, random=0, top_q=0).check("hyperparameters")
    assert (check.status, check.summary) == (
        "fail",
        "step 18: the proof says learning rate [0.0125], the task's schedule gives [0.025]",
    )


def test_a_scheduler_that_needs_more_than_a_metric_is_refused_by_name(tiny: pol.TaskReference, tmp_path: Path) -> None:
    class Timed(torch.optim.lr_scheduler.ExponentialLR):
        def step(self, epoch: int) -> None:  # type: ignore[override]
            super().step(epoch)

    task = replace(local(tiny), scheduler=lambda optimizer: {"slow": object.__new__(Timed)})
    with pytest.raises(pol.PolError, match="the scheduler 'slow' cannot be stepped without epoch; use one"):
        pol.prove(task, tmp_path / "run")


def test_settings_that_training_itself_makes_need_a_replay_of_every_segment(
    tiny: pol.TaskReference, tmp_path: Path
) -> None:
    plain = local(tiny)

    def step(context: StepContext, batches: list[Any]) -> Any:
        assert plain.loss is not None
        loss = standard_step(context, batches, plain.loss)
        context.optimizer.param_groups[0]["weight_decay"] *= 0.9
        return loss

    task = replace(plain, loss=None, step=step)
    pol.prove(task, tmp_path / "honest", interval=5)
    few = pol.verify(tmp_path / "honest", task, random=0, top_q=0)
    assert (few.verdict, few.check("hyperparameters").status) == ("inconclusive", "inconclusive")
    assert "only a replay of every segment covers them" in few.reason
    assert pol.verify(tmp_path / "honest", task, everything=True).verdict == "valid"


def _with(node: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A state's tree with one node exchanged."""
    if not path:
        return value
    ((tag, body),) = node.items()
    if isinstance(body, Mapping) or tag == "d":
        return {tag: [[key, _with(below, path[1:], value) if key == f"s:{path[0]}" else below] for key, below in body]}
    return {tag: [_with(below, path[1:], value) if at == path[0] else below for at, below in enumerate(body)]}
