"""``pol inspect`` of what people have at hand: a proof, a manifest, a claim, another file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proof_of_learning import prove, register, thin, verify
from proof_of_learning.disputes.answering import manifest
from proof_of_learning.task import TaskReference
from support_cli import one_line, pol


def test_a_claim_says_what_it_fixes(tiny: TaskReference, tmp_path: Path) -> None:
    made = register(tiny, tmp_path / "claim.json", interval=5)
    shown = pol("inspect", tmp_path / "claim.json")
    assert shown.exit_code == 0, shown.output
    for told in (
        made.claim.digest(),
        made.claim.task,
        made.claim.data.root,
        "in segments of 5",
        "nobody signed or stamped it",
    ):
        assert told in shown.stdout, told
    content = json.loads(pol("inspect", tmp_path / "claim.json", "--json", "-").stdout)
    assert content["digest"] == made.claim.digest() and content["claim"]["interval"] == 5
    assert content["claim"]["owners"] == content["beside"] == content["runs"] == []
    assert "--program" in one_line(pol("inspect", tmp_path / "claim.json", "--program"), 2)


@pytest.mark.parametrize("text", ["import torch", '{"schema": "pol/challenge/v1"}', '{"schema": 3}', "[" * 5000])
def test_another_file_is_refused_by_what_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    told = one_line(pol("inspect", tmp_path / "file"), 2)
    assert "neither a claim (`pol register`) nor a proof" in told and ("pol/challenge/v1" in told) == (
        "challenge" in text
    )


def test_a_manifest_says_that_nothing_can_be_replayed(tiny_proof: Path, tmp_path: Path) -> None:
    manifest(tiny_proof, tmp_path / "manifest.pol")
    assert "nothing can be replayed, for no state is here" in pol("inspect", tmp_path / "manifest.pol").stdout
    assert "none of their states, all digests correct" in pol("check", tmp_path / "manifest.pol").stdout
    thin(tiny_proof, 2, tmp_path / "thin.pol")
    assert "states are missing, so none are weighted" in pol("inspect", tmp_path / "thin.pol").stdout


def test_whole_states_are_weighed_against_differences(tiny: TaskReference, tiny_proof: Path, tmp_path: Path) -> None:
    prove(tiny, tmp_path / "run.pol", interval=2, codec="quantised", rehearse=False)
    states = json.loads(pol("inspect", tmp_path / "run.pol", "--json", "-").stdout)["states"]
    assert 0 < states["differences"] < states["held"] and states["bytes_of_differences"] < states["bytes"]
    shown = pol("inspect", tmp_path / "run.pol").stdout
    (row,) = (line for line in shown.splitlines() if line.startswith("whole states"))
    here, long = (
        float(part.split()[-1]) for part in (row.split(" bytes a parameter")[0], row.split(" in a long run")[0])
    )
    assert 0 < long < here, row
    assert "whole states" not in pol("inspect", tiny_proof).stdout  # raw: there are no differences


def test_what_is_missing_from_a_proof_makes_no_forgery(tiny: TaskReference, tiny_proof: Path, tmp_path: Path) -> None:
    """A manifest is honest, and holds no state: nothing can be replayed, and nothing is false."""
    manifest(tiny_proof, tmp_path / "manifest.pol")
    found = verify(tmp_path / "manifest.pol", tiny)
    (trajectory,) = (check for check in found.checks if check.name == "trajectory")
    assert (found.verdict, trajectory.status) == ("inconclusive", "inconclusive"), found.reason
    assert "`pol challenge`" in trajectory.summary


def test_a_verdict_is_shown_though_its_file_cannot_be_written(tiny_proof: Path) -> None:
    done = pol("verify", tiny_proof, "--json", "/proc/no.json")
    assert done.exit_code == 2 and "INCONCLUSIVE" in done.stdout and "/proc/no.json cannot be written" in done.stderr


def test_a_proof_in_place_of_a_disputed_model_is_named(tiny_proof: Path) -> None:
    told = one_line(pol("dispute", tiny_proof, f"{tiny_proof}=nowhere.py:task"), 2)
    assert "is a proof, and a model is wanted" in told and "pol export" in told
