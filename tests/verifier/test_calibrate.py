"""`calibrate`: d_ref, honest noise by interval and environment, a recommended interval, and a cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from proof_of_learning import Task, TaskReference, calibrate, calibration, load_task
from proof_of_learning.calibration import Calibration
from proof_of_learning.cli.main import app
from proof_of_learning.errors import UsageError
from proof_of_learning.verifier.calibrated import CAP, FLOOR

ENVIRONMENTS = {"threads 1 → 2", "the verifier's second"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def measured(tiny: TaskReference, cache: Path) -> Calibration:
    """With two of the environments that are to be had, for each is a start of Python and PyTorch."""
    every = calibration._variants
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setattr(calibration, "_variants", lambda here: [row for row in every(here) if row[0] in ENVIRONMENTS])
        return calibrate(tiny, intervals=(1, 4), steps=12, runs=2, segments=2)


@pytest.mark.slow
def test_there_are_environments_of_every_kind(tiny: TaskReference) -> None:
    measured = calibrate(tiny, intervals=(4,), steps=12, runs=2, segments=1, cache=False)
    found = {row.environment for row in measured.noise}
    assert {*ENVIRONMENTS, "without oneDNN", calibration.NUDGED} <= found
    assert len(found) == 1 + len(list(calibration._variants(measured.environment)))


def test_noise_is_measured_for_every_interval_and_environment(measured: Calibration) -> None:
    environments = {row.environment for row in measured.noise}
    assert environments >= ENVIRONMENTS
    assert {(row.k, row.environment) for row in measured.noise} == {(k, e) for k in (1, 4) for e in environments}
    assert all(0 <= row.overall < CAP / 3 for row in measured.noise)  # a small MLP strays by rounding alone
    assert set(measured.rho) == {"1", "4"} and all(FLOOR <= rho <= CAP for rho in measured.rho.values())
    assert measured.recommended_interval == 4


def test_independent_runs_are_d_ref_apart(measured: Calibration) -> None:
    assert measured.d_ref.l2 > 0 and 0.3 < measured.d_ref.cos < 1.7
    assert measured.d_ref_estimate.l2 == pytest.approx(measured.d_ref.l2, rel=0.5)


def test_the_result_comes_from_the_cache(
    tiny: TaskReference, measured: Calibration, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (stored,) = (cache / "proof-of-learning" / "calibration").iterdir()
    stored.write_bytes(stored.read_bytes().replace(b'"name": "tiny"', b'"name": "from the cache"'))
    again = calibrate(tiny, intervals=(1, 4), steps=12, runs=2, segments=2)
    assert again.name == "from the cache"
    stored.write_bytes(stored.read_bytes().replace(b'"name": "from the cache"', b'"name": "tiny"'))


def test_a_task_without_a_reference_cannot_be_calibrated(tiny: TaskReference) -> None:
    task = load_task(tiny)
    bare = Task(**{name: getattr(task, name) for name in task.__dataclass_fields__ if name != "reference"})
    with pytest.raises(UsageError, match="by reference"):
        calibrate(bare)


def test_the_command_writes_json_and_a_picture(
    tiny: TaskReference, measured: Calibration, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    options = ["--steps", "12", "--runs", "2", "--segments", "2", "--intervals", "1,4"]
    result = CliRunner().invoke(
        app, ["calibrate", tiny.target, *options, "--json", str(tmp_path / "c.json"), "--plot", str(tmp_path / "n.svg")]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "pol/calibration/v1"
    assert "<svg" in (tmp_path / "n.svg").read_text()
    assert "recommended interval: 4" in result.stdout
