"""Every program in ``experiments/`` and ``benchmarks/`` runs from end to end, as small as it gets, and writes what it says."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proof_of_learning.numeric import environment, randomness

ROOT = Path(__file__).parents[2]
RUN = {  # every file that can be run: the options that it takes beside the common ones
    path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text()
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
}
PARTS = {"benchmarks/plain", "experiments/portable_run", "experiments/private_party"}  # run by others
PARTS |= {"experiments/pages"}  # computes nothing; test_experiments compares what it writes
# Most of what these take is the start of one process after another, which is what they measure or compare.
SLOW = {
    "benchmarks/attestation_cost", "benchmarks/calibrated_cost", "benchmarks/frameworks", "benchmarks/memory", "benchmarks/opening",
    "benchmarks/overhead", "benchmarks/probe_cost", "benchmarks/profile", "benchmarks/rehearsal_cost", "benchmarks/scale",
    "benchmarks/storage",
    "benchmarks/verify_cost", "benchmarks/whole", "experiments/byzantine", "experiments/gpu", "experiments/honest",
    "experiments/other_environments", "experiments/paper", "experiments/portable",
}  # fmt: skip

TAKES = pytest.mark.slow(reason="starts processes or trains several times, by what other programs use too")


def failures(value: Any) -> Iterator[str]:
    """What parts of a run say went wrong."""
    if isinstance(value, dict):
        for key, item in value.items():
            if item and (key == "error" or (key == "errors" and isinstance(item, dict))):
                yield str(item)
            yield from failures(item)
    elif isinstance(value, list):
        for item in value:
            yield from failures(item)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=TAKES if name in SLOW else ()) for name in sorted(RUN.keys() - PARTS)],
)
def test_a_program_runs_from_end_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RUN.keys() >= SLOW
    path, out = ROOT / f"{name}.py", tmp_path / "out.json"
    pages = '"--output"' in RUN[name]
    arguments = [str(path), "--tiny", "--json", str(out), *(["--output", str(tmp_path / "pages")] if pages else [])]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delenv("POL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with environment.restored(), randomness.preserved():
        runpy.run_path(str(path), run_name="__main__")
    document = json.loads(out.read_text())
    assert (document["schema"], document["size"], document["quick"]) == ("pol/benchmark/v1", "tiny", True)
    assert document["results"]
    assert list(failures(document)) == []
    failed = [result for result in document["results"] if result["name"] == "runs that failed to run"]
    assert all(result["value"] == 0 for result in failed)
    assert not pages or list((tmp_path / "pages").glob("*.md"))
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.work"))
