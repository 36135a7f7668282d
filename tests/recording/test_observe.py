"""Foreign loops: an ordinary PyTorch loop, recorded from outside, replays step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import proof_of_learning as pol
import tasks
from proof_of_learning import Indexed, Proof, Recorder, Task
from proof_of_learning.errors import BusyError, RecordingError, TrainingError, UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.state.state import capture
from support_replay import replays_alone

EPOCHS, BATCH = 3, 10
PER_EPOCH = 10  # 92 samples: nine full batches and one of two


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(tasks.FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, tasks.CLASSES)
    )


def accuracy(model: nn.Module) -> dict[str, float]:
    x, y = tasks.data().tensors
    return {"accuracy": (model(x).argmax(1) == y).double().mean().item()}


def task(*, schedule: str = "epoch", accumulate: int = 1) -> Task:
    return Task(
        name="observed",
        model=network,
        data=tasks.data,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        scheduler=lambda optimizer: lr_scheduler.StepLR(optimizer, 1, gamma=0.7),
        schedule=schedule,  # type: ignore[arg-type]
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=accuracy,
        batch_size=BATCH,
        accumulate=accumulate,
        epochs=EPOCHS,
    )


class Loop:
    """A training loop as people write them, with everything that disturbs a recording."""

    def __init__(self, *, workers: int = 0, schedule: str = "epoch", accumulate: int = 1, shuffle: bool = True) -> None:
        self.schedule, self.accumulate = schedule, accumulate
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = lr_scheduler.StepLR(self.optimizer, 1, gamma=0.7)
        more = {"num_workers": workers, "prefetch_factor": 3} if workers else {}
        self.loader: DataLoader[Any] = DataLoader(Indexed(tasks.data()), batch_size=BATCH, shuffle=shuffle, **more)  # type: ignore[arg-type]
        self.steps = 0

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            torch.rand(7), random.random(), np.random.rand(2)  # evaluations draw numbers, and not always as many
            result = accuracy(self.model)
        self.model.train()
        return result

    def train(self, recorder: Recorder, stop: Callable[[], bool] = lambda: False) -> None:
        for epoch in range(EPOCHS):
            if epoch == 1:
                torch.rand(13)
            count = 0
            for x, y in recorder.watch(self.loader, batches_per_step=self.accumulate):
                loss = F.cross_entropy(self.model(x), y)
                recorder.loss(loss)
                last = self.accumulate if self.steps % self.per_epoch < self.per_epoch - 1 else self.remainder
                (loss / last).backward()
                count += 1
                if count == last:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.steps, count = self.steps + 1, 0
                    if self.schedule == "step":
                        self.scheduler.step()
                    if self.steps % 4 == 0:
                        self.evaluate()
                    if stop():
                        return
            if self.schedule == "epoch":
                self.end_epoch(recorder)
            self.evaluate()

    def end_epoch(self, recorder: Recorder) -> None:
        self.scheduler.step()

    @property
    def per_epoch(self) -> int:
        return -(-PER_EPOCH // self.accumulate)

    @property
    def remainder(self) -> int:
        return PER_EPOCH - (self.per_epoch - 1) * self.accumulate


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with randomness.preserved():
        torch.manual_seed(11)
        random.seed(12)
        np.random.seed(13)
        yield


@pytest.mark.parametrize("interval", [1, 4, 10])
@pytest.mark.parametrize("schedule", ["epoch", "step"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_step_of_a_foreign_loop_replays(accumulate: int, schedule: str, interval: int, tmp_path: Path) -> None:
    loop, described = Loop(schedule=schedule, accumulate=accumulate), task(schedule=schedule, accumulate=accumulate)
    with Recorder.observe(tmp_path / "run.pol", described, loop.parts, interval=interval) as recorder:
        loop.train(recorder)
        root = recorder.close(loop.evaluate())
    replays_alone(tmp_path / "run.pol", described)
    proof = Proof.open(tmp_path / "run.pol")
    assert proof.root == root
    assert proof.header.randomness.mode == "recorded"
    assert proof.header.training.planned == EPOCHS * loop.per_epoch == loop.steps
    state = proof.state(proof.segments[-1].state)
    assert state.part("model", "optimizer", "scheduler").digest() == capture(loop.parts).digest()


def test_a_foreign_loop_steps_its_plateau_scheduler_with_the_loss_of_the_epoch(tmp_path: Path) -> None:
    class Driven(Loop):
        def end_epoch(self, recorder: Recorder) -> None:
            self.scheduler.step(recorder.epoch_loss())  # type: ignore[arg-type]

    described, loop = replace(task(), scheduler=tasks.SCHEDULERS["plateau"]), Driven()
    loop.optimizer = described.optimizer(loop.model)
    loop.scheduler = tasks.SCHEDULERS["plateau"](loop.optimizer)
    with Recorder.observe(tmp_path / "run.pol", described, loop.parts, interval=4) as recorder:
        loop.train(recorder)
        recorder.close()
    replays_alone(tmp_path / "run.pol", described)
    check = pol.verify(tmp_path / "run.pol", described, random=0, top_q=0, keep_going=True).check("hyperparameters")
    assert check.status == "pass", check.summary
    assert check.evidence["rate_lowest"] == 0.005 < check.evidence["rate_highest"]


def test_workers_that_run_ahead_do_not_disturb_the_recorded_order(tmp_path: Path) -> None:
    loop = Loop(workers=2)
    with Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=4) as recorder:
        loop.train(recorder)
        recorder.close(loop.evaluate())
    replays_alone(tmp_path / "run.pol", task())
    rows = [row.tolist() for columns in Proof.open(tmp_path / "run.pol").all_columns() for row in columns.indices or []]
    assert [len(row) for row in rows] == [*[BATCH] * 9, 2] * EPOCHS
    for epoch in range(EPOCHS):
        seen = [index for row in rows[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] for index in row]
        assert sorted(seen) == list(range(tasks.SAMPLES)) != seen


def test_the_verdict_on_a_foreign_loop(tmp_path: Path) -> None:
    loop = Loop()
    with Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=4) as recorder:
        loop.train(recorder)
        recorder.close(loop.evaluate())
    verdict = pol.verify(tmp_path / "run.pol", task(), everything=True, keep_going=True)
    assert verdict.assurance == "observed"
    assert verdict.randomness == "recorded"
    assert verdict.verdict in ("valid", "inconclusive")  # which, the initialization decides: nobody can derive it
    statuses = {check.name: check.status for check in verdict.checks if check.name != "initialization"}
    assert {name: status for name, status in statuses.items() if status not in ("pass", "skipped")} == {}
    assert (
        statuses["trajectory"] == statuses["order"] == statuses["hyperparameters"] == statuses["performance"] == "pass"
    )


def test_a_foreign_loop_that_did_something_else_is_invalid(tmp_path: Path) -> None:
    loop = Loop()

    def nudge() -> bool:
        if loop.steps == 14:
            with torch.no_grad():
                next(loop.model.parameters()).add_(1e-3)
        return False

    with Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=4) as recorder:
        loop.train(recorder, stop=nudge)
        recorder.close()
    verdict = pol.verify(tmp_path / "run.pol", task(), everything=True, keep_going=True)
    assert verdict.verdict == "invalid"
    assert [s.index for s in verdict.segments if s.status == "fail"] == [3]


def test_recording_changes_nothing_about_the_training(tmp_path: Path) -> None:
    def run(observed: bool) -> str:
        torch.manual_seed(5)
        loop = Loop()
        if observed:
            with Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=3) as recorder:
                loop.train(recorder)
                recorder.close()
        else:
            loop.train(Unrecorded())  # type: ignore[arg-type]
        return capture(loop.parts).digest()

    class Unrecorded:
        def watch(self, loader: Any, batches_per_step: int) -> Iterator[Any]:
            yield from (batch for _, batch in loader)

        def loss(self, value: Tensor) -> None:
            pass

    assert run(observed=True) == run(observed=False)


def test_an_interrupted_foreign_loop_goes_on(tmp_path: Path) -> None:
    loop = Loop()
    with Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=4) as recorder:
        loop.train(recorder, stop=lambda: loop.steps == 14)
    torch.manual_seed(99)
    again = Loop()  # other weights, which the recorder replaces
    with Recorder.observe(tmp_path / "run.pol", task(), again.parts, interval=4) as recorder:
        assert recorder.steps_done == 12
        again.steps = 12
        for x, y in recorder.watch(
            DataLoader(Indexed(tasks.data()), batch_size=BATCH)  # type: ignore[arg-type]
        ):  # no loop is made to resume by itself
            loss = F.cross_entropy(again.model(x), y)
            recorder.loss(loss)
            again.optimizer.zero_grad()
            loss.backward()
            again.optimizer.step()
            if (recorder.steps_done + 1) % PER_EPOCH == 8:
                break
        with pytest.raises(RecordingError, match="18 of 30 steps were taken"):
            recorder.close()
    assert not (tmp_path / "run.pol" / "seal.json").exists()


def test_a_loop_that_ends_early_learns_what_went_wrong_beside_it(tmp_path: Path) -> None:
    loop = Loop()

    def begin() -> Recorder:
        return Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=4, asynchronous=True)

    def diverge(recorder: Recorder, error: Exception | None = None) -> None:
        for _ in recorder.watch(loop.loader):
            if recorder.steps_done == 4:
                break
            recorder.loss(torch.tensor(torch.nan))
        if error is not None:
            raise error

    with pytest.raises(TrainingError, match="no longer finite"), begin() as recorder:
        diverge(recorder)
    with pytest.raises(KeyError, match="mine"), begin() as recorder:  # what the loop itself raises comes first
        diverge(recorder, KeyError("mine"))
    with begin() as recorder:  # the directory was given back both times
        assert recorder.steps_done == 0


def test_a_finished_recording_is_not_recorded_again(tmp_path: Path) -> None:
    loop = Loop()
    with Recorder.observe(tmp_path / "run.pol", task(), loop.parts, interval=4) as recorder:
        loop.train(recorder)
        root = recorder.close()
    again = Loop()
    with Recorder.observe(tmp_path / "run.pol", task(), again.parts, interval=4) as recorder:
        assert recorder.complete
        assert recorder.finished
        assert list(recorder.watch(again.loader)) == []
        assert recorder.close() == root


@pytest.mark.quick
def test_mistakes_of_the_loop_are_named(tmp_path: Path) -> None:
    loop = Loop()
    with pytest.raises(
        UsageError, match=r"the task has the parts \['model', 'optimizer', 'scheduler'\]; the loop gave \['model'\]"
    ):
        Recorder.observe(tmp_path / "a.pol", task(), {"model": loop.model})
    assert not (tmp_path / "a.pol").exists()
    with Recorder.observe(tmp_path / "b.pol", task(), loop.parts) as recorder:
        with pytest.raises(UsageError, match="belongs between the batches"):
            recorder.loss(torch.tensor(1.0))
        batches = recorder.watch(loop.loader)
        next(batches)
        with pytest.raises(UsageError, match="once for each batch"):
            next(batches)
        with pytest.raises(UsageError, match="left step 0 after 0 losses for 1 batches"):
            recorder.close()
        with pytest.raises(BusyError):
            Recorder.observe(tmp_path / "b.pol", task(), loop.parts)
    with Recorder.observe(tmp_path / "c.pol", task(accumulate=2), loop.parts) as recorder:
        for _ in recorder.watch(loop.loader, batches_per_step=2):
            recorder.loss(torch.tensor(1.0))
            break
        with pytest.raises(UsageError, match="left step 0 after 1 losses for 2 batches"):
            recorder.close()
        with pytest.raises(UsageError, match="not derived"):
            recorder.step(torch.tensor(1.0), [0.1])


def test_the_description_is_that_of_the_task_in_a_file(tmp_path: Path) -> None:
    """A loop in a script names a task in a module: the digests agree, although the classes were imported otherwise."""
    described = replace(tasks.task(custom=False), name="x")
    live: dict[str, Any] = {"model": tasks.Net()}
    live["optimizer"] = tasks.OPTIMIZERS["momentum"](live["model"].parameters())
    with Recorder.observe(tmp_path / "run.pol", described, live, interval=4) as recorder:
        for _ in range(4):
            for x, y in recorder.watch(DataLoader(Indexed(tasks.data()), batch_size=16, shuffle=True)):  # type: ignore[arg-type]
                loss = F.cross_entropy(live["model"](x), y)
                recorder.loss(loss)
                live["optimizer"].zero_grad()
                loss.backward()
                live["optimizer"].step()
        recorder.close()
    verdict = pol.verify(
        tmp_path / "run.pol", f"{Path(__file__).parents[1]}/tasks.py:task", everything=True, keep_going=True
    )
    assert verdict.check("task").status == "pass"
    assert verdict.check("trajectory").status == "pass", verdict.check("trajectory").summary
