"""``pol plan``: what a verification costs is known before it runs, and it costs that."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import proof_of_learning as pol
from proof_of_learning import TaskReference
from proof_of_learning.cli.main import app
from proof_of_learning.errors import UsageError
from proof_of_learning.replay.process import WorkerProcess
from proof_of_learning.verifier import forecast as forecasts
from proof_of_learning.verifier.forecast import forecast
from proof_of_learning.verifier.guarantee import uniform_miss
from proof_of_learning.verifier.plan import make_nonce

NONCE = "23" * 32


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process may be started."""

    def start(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(WorkerProcess, "__init__", start)


def test_a_verification_costs_what_was_planned(
    digits_proof: Path, digits: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "make_nonce", lambda value: make_nonce(NONCE))
    planned = forecast(digits_proof, digits)
    verdict = pol.verify(digits_proof, digits, nonce=NONCE)
    assert planned.known and planned.random is None
    assert planned.replayed_segments == len(verdict.segments)
    assert planned.replayed_steps == verdict.cost.steps_replayed
    assert planned.draws["uniform"] == verdict.guarantee.uniform_draws
    assert planned.draws["progress"] == verdict.guarantee.progress_draws
    assert planned.times is not None and planned.times.step > 0 and planned.times.total > planned.times.replay


@pytest.mark.quick
@pytest.mark.usefixtures("alone")
def test_without_a_task_nothing_of_it_is_run(digits_proof: Path) -> None:
    planned = forecast(digits_proof, confidence=0.9, forged=0.3)
    assert not planned.known and planned.times is None and planned.random is not None
    assert planned.replayed_steps == 5 * planned.replayed_segments
    assert uniform_miss(12, 4, planned.draws["uniform"]) <= 0.1 < uniform_miss(12, 4, planned.draws["uniform"] - 1)
    assert planned.random // 2 >= planned.draws["uniform"]


@pytest.mark.usefixtures("alone")
def test_more_confidence_and_smaller_forgeries_cost_more(digits_proof: Path) -> None:
    usual = forecast(digits_proof, confidence=0.9, forged=0.3)
    surer, finer = (
        forecast(digits_proof, confidence=0.99, forged=0.3),
        forecast(digits_proof, confidence=0.9, forged=0.1),
    )
    assert usual.draws["uniform"] < min(surer.draws["uniform"], finer.draws["uniform"])


@pytest.mark.usefixtures("alone")
def test_of_a_thinned_proof_the_way_to_each_start_is_counted(digits_proof: Path, tmp_path: Path) -> None:
    thinned = pol.thin(digits_proof, 4, tmp_path / "thin.pol").path
    planned = forecast(thinned, confidence=0.6, forged=0.3)
    assert planned.known and planned.draws["progress"] == 0
    assert planned.replayed_steps > 5 * planned.replayed_segments  # some steps are on the way to a start
    assert any("--accept-uniform" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("option", "value"), [("confidence", 1.0), ("confidence", 0.0), ("forged", 0.0), ("forged", 1.5)]
)
def test_what_is_no_probability_is_refused(option: str, value: float, digits_proof: Path) -> None:
    with pytest.raises(UsageError, match="lies between 0 and 1"):
        forecast(digits_proof, **{option: value})  # type: ignore[arg-type]


@pytest.mark.usefixtures("alone")
def test_the_command_prints_the_command_that_verifies(digits_proof: Path) -> None:
    asked = ["plan", str(digits_proof), "--confidence", "0.999", "--forged", "0.2", "--workers", "2"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    line = done.stdout.splitlines()[-1]
    told = json.loads(CliRunner().invoke(app, [*asked, "--json", "-"]).stdout)
    assert line == told["command"] and told["schema"] == "pol/plan/v1"
    words = shlex.split(line)
    assert words[:3] == ["pol", "verify", str(digits_proof)]
    assert words[words.index("--random") + 1] == str(told["random"]) and words[-2:] == ["--workers", "2"]
