"""A loop of one's own that does something else than its task, or nothing, is told so in one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import proof_of_learning as pol
import tasks
from proof_of_learning import Task
from proof_of_learning.errors import RecordingWarning, TaskError


def loop(
    path: Path, task: Task, *, epochs: int | None = None, close: bool = True, stop: int | None = None, early: bool = False,
    rehearse: bool = True, **settings: Any,
) -> nn.Module:  # fmt: skip
    """A plain loop: the scheduler is stepped whenever the loop over the loader ends, wherever the run stands then."""
    torch.manual_seed(3)
    parts: dict[str, Any] = {"model": (model := task.model())}
    parts["optimizer"] = optimizer = task.optimizer(model)
    if task.scheduler is not None:
        parts["scheduler"] = task.scheduler(optimizer)
    optimizer.param_groups[0].update(settings)
    loader: DataLoader[Any] = DataLoader(pol.Indexed(task.data()), batch_size=task.batch_size, shuffle=True)  # type: ignore[arg-type]
    with pol.Recorder.observe(path, task, parts, interval=2, rehearse=rehearse) as recorder:
        taken = 0
        while epochs != 0 and not (epochs is None and recorder.finished):
            epochs = None if epochs is None else epochs - 1
            for x, y in recorder.watch(loader):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.loss(loss)
                taken += 1
                if taken == stop:
                    break
            if taken == stop:
                break
            if task.scheduler is not None:
                parts["scheduler"].step()
        if close:
            recorder.close(early=early)
    return model


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("settings", [{"lr": 0.01}, {"weight_decay": 0.5}, {"maximize": True}])
def test_other_settings_than_the_tasks_are_said_before_the_first_step(settings: dict[str, Any], tmp_path: Path) -> None:
    (name,) = settings
    with pytest.raises(
        TaskError, match=rf"the loop does not begin as its task says: .*groups\[0\].{name}: the task has"
    ):
        loop(tmp_path / "run.pol", tasks.task(steps=8), **settings)
    assert not (tmp_path / "run.pol").exists()


def test_a_scheduler_that_is_stepped_elsewhere_is_said_at_the_first_rate(tmp_path: Path) -> None:
    per_epoch = tasks.task().steps_per_epoch(tasks.SAMPLES)
    task = tasks.task(steps=3 * per_epoch, scheduler="exponential", schedule="epoch")
    with silence():
        loop(tmp_path / "run.pol", task)
    words = f"the learning rate .* its task's schedule gives .* Step the scheduler once every {per_epoch} steps, also after a restart"
    cut = tasks.task(steps=3 * per_epoch - 2, scheduler="exponential", schedule="epoch")
    with pytest.raises(
        TaskError, match=f"before step {cut.steps} the loop has {words}"
    ):  # the last epoch is no whole one
        loop(tmp_path / "cut.pol", cut)
    loop(tmp_path / "killed.pol", task, stop=3, close=False)
    with pytest.raises(TaskError, match=f"before step {per_epoch} the loop has {words}"):
        loop(tmp_path / "killed.pol", task)


def test_what_trains_or_seals_nothing_is_said(tmp_path: Path) -> None:
    task = tasks.task(steps=8)
    with pytest.warns(RecordingWarning, match="all 8 steps of the task are taken; nothing beyond them is trained"):
        loop(tmp_path / "long.pol", task, epochs=6)
    with pytest.warns(RecordingWarning, match=r"every step was taken, and the loop ended without close\(\)"):
        loop(tmp_path / "open.pol", task, close=False)
    with silence():
        loop(tmp_path / "open.pol", task)  # and goes on where it stood
        loop(tmp_path / "killed.pol", task, stop=3, close=False)
        loop(tmp_path / "early.pol", task, stop=3, early=True)


def test_a_finished_recording_gives_the_trained_model(tmp_path: Path) -> None:
    task = tasks.task(steps=8)
    trained = loop(tmp_path / "run.pol", task)
    with pytest.warns(RecordingWarning, match="this run is finished; nothing is trained, and the parts are what"):
        again = loop(tmp_path / "run.pol", task)
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True)
    )
