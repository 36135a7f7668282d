"""Recorded orders: nearly a permutation of the data in every epoch, or no proof is valid unless the verifier accepts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler, Sampler, WeightedRandomSampler
from typer.testing import CliRunner

import proof_of_learning as pol
import tasks
from proof_of_learning import Indexed, Recorder, Task
from proof_of_learning.cli.main import app
from proof_of_learning.numeric import randomness

SAMPLES, BATCH = tasks.SAMPLES, 10  # 92 samples: nine full steps and one of two
Rows = list[list[int]]


class Given(Sampler[list[int]]):
    """Batches as they were handed in."""

    def __init__(self, rows: Iterable[list[int]]) -> None:
        self.rows = list(rows)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows)


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with randomness.preserved():
        torch.manual_seed(3)
        yield


def task(**changes: Any) -> Task:
    return replace(tasks.task(batch_size=BATCH), evaluate=None, **{"steps": None, "epochs": 3, **changes})


def observe(path: Path, described: Task, loader: Any) -> Path:
    """A plain loop over ``loader``, again and again, recorded as a run of ``described``."""
    model = tasks.Net()
    parts = {"model": model, "optimizer": described.optimizer(model)}
    with Recorder.observe(path, described, parts, interval=4) as recorder:
        while not recorder.finished:
            for x, y in recorder.watch(loader, described.accumulate):
                loss = F.cross_entropy(model(x), y)
                recorder.loss(loss)
                (loss / described.accumulate).backward()
                if len(recorder._pending.losses) == recorder._pending.batches:  # type: ignore[union-attr]
                    parts["optimizer"].step()
                    parts["optimizer"].zero_grad()
        recorder.close()
    return path


def order(path: Path, described: Task, **options: Any) -> pol.verifier.verdict.CheckResult:
    return pol.verify(path, described, random=0, top_q=0, **options).check("order")


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Indexed(tasks.data()), **{"batch_size": BATCH, "shuffle": True, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("described", "options"),
    [
        ({}, {}),
        ({}, {"shuffle": False}),
        ({"shuffle": False}, {"shuffle": False}),
        ({"drop_last": True, "epochs": 12}, {"drop_last": True}),
        ({"drop_last": True, "shuffle": False, "epochs": 12}, {"drop_last": True, "shuffle": False}),
        ({"epochs": None, "steps": 7}, {}),
        ({"epochs": None, "steps": 25}, {}),
        ({"batch_size": 5, "accumulate": 2, "drop_last": True}, {"batch_size": 5, "drop_last": True}),
    ],
    ids=str,
)
def test_honest_loaders_pass(described: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    run = task(**described)
    found = order(observe(tmp_path / "run.pol", run, loader(**options)), run)
    assert found.status == "pass", found.summary
    assert found.evidence["most_repeats_in_an_epoch"] == 0


def epochs(count: int) -> list[list[int]]:
    return [torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(i)).tolist() for i in range(count)]


def cut(epoch: list[int]) -> Rows:
    return [epoch[start : start + BATCH] for start in range(0, len(epoch), BATCH)]


def resumed() -> Rows:
    """A run of 40 epochs that was taken up again once, amid an epoch, with a new permutation."""
    rows = [cut(epoch) for epoch in epochs(40)]
    rows[20] = [*rows[20][:2], *rows[21][2:]]
    return [row for epoch in rows for row in epoch]


def test_a_run_that_was_taken_up_again_amid_an_epoch_passes(tmp_path: Path) -> None:
    run = task(epochs=40)
    found = order(observe(tmp_path / "run.pol", run, loader(batch_sampler=Given(resumed()), **PLAIN)), run)
    assert found.status == "pass", found.summary
    assert 0 < found.evidence["most_repeats_in_an_epoch"] < 20


PLAIN = {"batch_size": 1, "shuffle": False}
ODD: dict[str, tuple[dict[str, Any], Rows, str]] = {
    "one sample, over and over": ({}, cut([5] * SAMPLES), "a sample comes 92 times in one epoch"),
    "every step as short as the last": ({}, [row[:2] for row in cut(epochs(1)[0])], "step 0 has the size of an epoch's last step"),
    "one short step": ({}, [*cut(epochs(1)[0])[:3], [1, 2], *cut(epochs(1)[0])[4:]], "step 3 has the size"),
    "half of the data, twice": ({}, cut([*range(SAMPLES // 2)] * 2), "had come before in the same epoch"),
    "the same samples always left out": (
        {"drop_last": True, "batch_size": 40, "epochs": 20}, [list(range(40)), list(range(40, 80))],
        "12 samples were never used, more than reshuffling",
    ),
    "shuffled against the task": ({"shuffle": False}, cut(epochs(1)[0]), "the data in its own order"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_other_orders_are_inconclusive_unless_they_are_accepted(kind: str, tmp_path: Path) -> None:
    described, rows, words = ODD[kind]
    run = task(**described)
    path = observe(tmp_path / "run.pol", run, loader(batch_sampler=Given(rows), **PLAIN))
    verdict = pol.verify(path, run, everything=True)
    found = verdict.check("order")
    assert (found.status, verdict.verdict) == ("inconclusive", "inconclusive")
    assert words in found.summary and "of the samples used" in found.summary
    assert "--accept-order" in found.summary and "training.free_order" in found.summary
    assert verdict.check("trajectory").status == "pass"
    (tmp_path / "policy.toml").write_text("[training]\nfree_order = true")
    for options in ({"accept_order": True}, {"policy": tmp_path / "policy.toml"}):
        accepted = order(path, run, **options)
        assert accepted.status == "pass"
        assert words in accepted.evidence["accepted"] and words in accepted.summary


@pytest.mark.parametrize("kind", ["weighted", "with replacement"])
def test_samplers_with_replacement_need_to_be_accepted(kind: str, tmp_path: Path) -> None:
    run = task()
    sampler: Sampler[int] = (
        WeightedRandomSampler([1.0 + i for i in range(SAMPLES)], SAMPLES)
        if kind == "weighted"
        else RandomSampler(tasks.data(), replacement=True)
    )
    path = observe(tmp_path / "run.pol", run, loader(sampler=sampler, shuffle=False))
    assert order(path, run).status == "inconclusive"
    assert 0.5 < order(path, run).evidence["samples_used"] < 1.0
    assert order(path, run, accept_order=True).status == "pass"


@pytest.mark.quick
def test_derived_orders_need_no_acceptance(tiny_proof: Path) -> None:
    assert order(tiny_proof, tasks.task()).summary == "24 steps, order derived from seed 0"


def test_the_command_accepts_an_order(tmp_path: Path) -> None:
    path = observe(tmp_path / "run.pol", task(), loader(batch_sampler=Given(cut([5] * SAMPLES)), **PLAIN))
    for more, status in (((), "inconclusive"), (("--accept-order",), "pass")):
        common = ["--set", "batch_size=10", "--set", "steps=30", "--sandbox", "off", "--json", "-"]
        result = CliRunner().invoke(app, ["verify", str(path), "--task", f"{tasks.__file__}:task", *common, *more])
        found = pol.Verdict.from_json(result.stdout).check("order")
        assert found.status == status, result.stdout
