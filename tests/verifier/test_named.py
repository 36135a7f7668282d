"""What the verifier mistyped is no forgery: other settings of a task are named, with those that the proof was recorded with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import proof_of_learning as pol
from proof_of_learning import TaskReference
from proof_of_learning.cli.main import app
from proof_of_learning.errors import UsageError
from proof_of_learning.report.advice import OTHERWISE, next_steps
from proof_of_learning.task import compare


@pytest.fixture(scope="module")
def shorter(tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest proof of the tiny task with a setting of its own."""
    settings = {"steps": 16, "batch_size": 4}
    folder = tmp_path_factory.mktemp("named")
    return Path(pol.prove(TaskReference(tiny.target, settings), folder / "run.pol", interval=4).path)


@pytest.mark.parametrize("named", [{}, {"steps": 24, "batch_size": 4}, {"steps": 16, "batch_size": 8}])
def test_other_settings_are_named_and_no_forgery(shorter: Path, tiny: TaskReference, named: dict[str, int]) -> None:
    found = pol.verify(shorter, TaskReference(tiny.target, named))
    assert found.verdict == "inconclusive", found.reason
    assert "you named other settings" in found.reason and "--set" in found.reason
    assert OTHERWISE in next_steps(found)


def test_the_recorded_settings_give_the_verdict(shorter: Path, tiny: TaskReference) -> None:
    found = pol.verify(shorter, TaskReference(tiny.target, {"steps": "16", "batch_size": "4"}), everything=True)
    assert found.check("order").status == found.check("trajectory").status == "pass"


def test_settings_that_agree_excuse_nothing(shorter: Path, tiny: TaskReference, tmp_path: Path) -> None:
    """The same settings, and another loss: what the proof says of itself is false."""
    (tmp_path / "other.py").write_text(
        Path(tiny.target.rpartition(":")[0]).read_text() + "\n\n_task = task\n\n\ndef task(steps=24, batch_size=8):\n"
        "    from dataclasses import replace\n    return replace(_task(steps=steps, batch_size=batch_size), steps=steps + 4)\n"
    )
    found = pol.verify(shorter, TaskReference(f"{tmp_path}/other.py:task", {"steps": 16, "batch_size": 4}))
    assert found.verdict == "invalid", found.reason


def test_a_script_that_is_named_for_a_tasks_proof_is_a_slip(shorter: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    said = "the proof is of a task, and train.py is a script; name the task that was agreed, path.py:function"
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        pol.verify(shorter, f"{tmp_path}/train.py")
    told = CliRunner().invoke(app, ["verify", str(shorter), "--task", f"{tmp_path}/train.py", "--sandbox", "off"])
    assert (told.exit_code, told.stderr) == (2, f"pol: {said}\n")


def test_differences_of_settings_are_readable() -> None:
    first, second = ({"lr": {"d": [["s:lr", {"f": rate.hex()}], ["s:nesterov", False]]}} for rate in (0.5, 0.25))
    assert compare(first, second) == ["lr.lr: the task has 0.5, the proof has 0.25"]
