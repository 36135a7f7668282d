"""`pol doctor`: everything that a replay would trip over, in one list; nothing where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import proof_of_learning.doctor as doctors
import tasks
from proof_of_learning.rehearsal.hops import Hop
from proof_of_learning.replay import protocol
from proof_of_learning.state.state import State
from proof_of_learning.task import TaskReference
from support_cli import one_line, pol
from support_situations import Lazy

TRAPS = f"{Path(__file__).parents[1]}/support_traps.py:task"


def test_everything_is_found_at_once_with_cause_and_cure(tmp_path: Path) -> None:
    """Six things are wrong with this task; the first hides none of the others."""
    result = pol("doctor", TRAPS, "--set", "trap=many", "--steps", "4", "--json", tmp_path / "found.json")
    assert result.exit_code == 1, result.output
    told = json.loads((tmp_path / "found.json").read_text())
    assert (told["schema"], told["steps"]) == ("pol/doctor/v1", 4)
    text = "\n".join(" | ".join(finding.values()) for finding in told["findings"])
    for words in (
        "evaluate must return a mapping",
        "another process finds other data",
        "the data set is changed in place while training",
        "attribute 'generator' of the model is a private generator",
        "attribute '_last' of part 'optimizer'",
        "variable 'centres', which the task's loss uses",
    ):
        assert words in text, text
        assert words in result.stdout
    assert all(finding["cure"] for finding in told["findings"] if finding["cause"])
    assert result.stdout.rstrip().endswith("replays") and f"{len(told['findings'])} findings" in result.stdout


def test_a_healthy_task_has_nothing(tiny: TaskReference) -> None:
    result = pol(
        "doctor",
        tiny.target,
        "-k",
        "2",
        "--steps",
        "8",
        "--set",
        "net=dropout",
        "--set",
        "scheduler=cosine",
        "--json",
        "-",
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["findings"] == [] and told["skipped"] == []
    assert told["steps"] == 8 and told["replays"] > 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.py:task",), "there is no file"),
        ((TRAPS, "--set", "trap=unheard"), "the task failed while loading .*ValueError: unheard"),
        ((TRAPS, "--json", "/nowhere/found.json"), "there is no folder"),
    ],
)
def test_what_cannot_be_loaded_is_unusable(arguments: tuple[str, ...], words: str) -> None:
    import re

    assert re.search(words, one_line(pol("doctor", *arguments), 2))


# ---- what ends a diagnosis early, without processes -------------------------------------------------


class Nobody:
    """Processes that agree with everything."""

    course: Any = None

    def __init__(self, *given: Any) -> None:
        self.given = given

    def ask(self, request: protocol.AnyRequest, states: Any = ()) -> Any:
        raise doctors.WorkerError("nobody is there")

    def close(self) -> None:
        pass


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "ProcessPlayer", Nobody)


def diagnosed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> doctors.Diagnosis:
    from dataclasses import replace

    reference = TaskReference("given:task")
    task = replace(tasks.task(steps=8), reference=reference, **changes)
    monkeypatch.setattr(doctors, "load_task", lambda named: task)
    return doctors.diagnose(reference)


@pytest.mark.usefixtures("alone")
def test_what_ends_training_is_one_finding_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        raise RuntimeError(
            "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'"
        )

    found = diagnosed(monkeypatch, loss=loss, evaluate=lambda model: {"loss": float("nan")})
    assert [finding.what.split(":")[0] for finding in found.findings] == [
        "the evaluation of the model is not finite",
        "the operation cumsum_cuda_kernel is not deterministic on cpu",
    ]
    assert found.findings[1].where == "taking step 0" and "another operation" in found.findings[1].cure
    assert found.skipped == ["training and replays: the task cannot be trained as it is"]


@pytest.mark.usefixtures("alone")
def test_refusals_are_findings_and_processes_that_fail_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = diagnosed(monkeypatch, model=lambda: Lazy(unused=True), evaluate=None)
    assert len(lazy.findings) == 1 and "has no shape before the first forward pass" in lazy.findings[0].what
    assert lazy.findings[0].cure.startswith("call the model once on a sample where it is built")
    endless = diagnosed(monkeypatch, loss=lambda model, batch: tasks.loss(model, batch) * torch.inf)
    assert any("the loss of step 0 is not finite" in finding.what for finding in endless.findings)
    fine = diagnosed(monkeypatch)
    assert fine.findings == [] and [text[-15:] for text in fine.skipped] == ["nobody is there"] * 2


def test_single_steps_segments_and_a_resumed_half_are_replayed() -> None:
    kept = doctors._kept(60, 5, 20, 1000)
    course = doctors._Course(None, {step: State({"d": []}, {}) for step in kept})  # type: ignore[arg-type]
    course.results = [None] * 60  # type: ignore[list-item]
    made: list[tuple[int, int]] = []

    def hop(self: Any, start: int, stop: int) -> Hop:
        made.append((start, stop))
        return Hop(start, course.states[start])

    doctors._Course.hop, own = hop, doctors._Course.hop  # type: ignore[method-assign]
    try:
        doctors._hops(course, 5)
    finally:
        doctors._Course.hop = own  # type: ignore[method-assign]
    assert made[:3] == [(0, 1), (1, 2), (2, 3)]
    assert {(19, 20), (20, 21), (5, 10), (30, 60)} <= set(made)
    assert len(doctors._kept(60, 5, 20, 4)) == 4
