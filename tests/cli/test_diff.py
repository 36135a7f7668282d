"""Where two proofs part: the same run, another seed, another length, one step made otherwise, bytes that are gone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_
from typer.testing import CliRunner

import proof_of_learning as pol
from proof_of_learning import Proof, canonical
from proof_of_learning.cli.main import app
from proof_of_learning.diff import Diff, diff
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.state.names import is_weight
from proof_of_learning.state.state import State
from support_forging import rewrite
from support_proofs import INTERVAL, recorded


def found(first: Path, second: Path) -> Diff:
    return diff(Proof.open(first), Proof.open(second))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("diff")
    return Path(recorded(folder / "one.pol").path), Path(recorded(folder / "two.pol").path)


@pytest.mark.quick
def test_equal_runs_are_the_same_proof(again: tuple[Path, Path]) -> None:
    seen = found(*again)
    assert seen.same and seen.same_weights and not seen.said and seen.parted is None and seen.state is None
    done = run(*again)
    assert done.exit_code == 0 and Proof.open(again[0]).root in done.stdout


def test_another_seed_parts_at_the_start(tiny_proof: Path, tmp_path: Path) -> None:
    other = Path(pol.prove(f"{Path(__file__).parents[1]}/tasks.py:task", tmp_path / "o.pol", interval=5, seed=7).path)
    seen = found(tiny_proof, other)
    assert (seen.states, seen.parted, seen.columns) == (0, 0, ["loss"])
    assert "randomness.seed" in {each.name for each in seen.said}
    assert seen.state is not None and seen.state.step == 0 and seen.state.overall is not None
    assert seen.final is not None and seen.final.relative is not None and seen.final.tensors and not seen.same_weights


def test_a_changed_state_is_found_where_it_stands(again: tuple[Path, Path], tmp_path: Path) -> None:
    """One weight of one checkpoint: what came before is equal, the state and the tensor are named, and the end is the same."""

    def moved(states: list[State]) -> list[State]:
        name = next(name for name in states[4].tensors if is_weight(name))
        tensors = {**states[4].tensors, name: states[4].tensors[name].clone()}
        tensors[name].view(-1)[0] += 0.5
        return [*states[:4], State(states[4].tree, tensors), *states[5:]]

    seen = found(again[0], rewrite(again[0], tmp_path / "moved.pol", states=moved))
    assert (seen.same, seen.states, seen.parted, seen.same_weights) == (False, 4, None, True)
    assert seen.state is not None and seen.state.step == 4 * INTERVAL and len(seen.state.tensors) == 1
    assert seen.state.overall is not None and seen.state.overall.l2 == pytest.approx(0.5, rel=1e-4)
    assert seen.final is not None and seen.final.overall is not None and seen.final.overall.l2 == 0


def test_a_changed_loss_is_found_at_its_step(again: tuple[Path, Path], tmp_path: Path) -> None:
    def said(columns: list[Columns]) -> list[Columns]:
        loss = columns[3].loss.copy()
        loss[1] += 1
        return [*columns[:3], replace(columns[3], loss=loss), *columns[4:]]

    seen = found(again[0], rewrite(again[0], tmp_path / "said.pol", columns=said))
    assert (seen.parted, seen.columns) == (3 * INTERVAL + 1, ["loss"])


def test_names_with_brackets_are_names(again: tuple[Path, Path], tmp_path: Path) -> None:
    """What a proof calls its settings is no markup of the terminal's, which it could end in an error or paint with."""

    def named(header: Any) -> Any:
        told = {**header.task.description, "[/x]": "[bold red]valid[/]"}
        digest = canonical.sha256(b"pol/v1/task\0", canonical.encode(told))
        return replace_(header, task=replace_(header.task, description=told, digest=digest))

    seen = run(again[0], rewrite(again[1], tmp_path / "named.pol", header=named))
    assert seen.exit_code == 1
    assert "[/x]" in seen.output and "[bold red]valid[/]" in seen.output


def test_what_is_gone_has_no_distance(again: tuple[Path, Path], tiny_proof: Path, tmp_path: Path) -> None:
    thin = pol.thin(again[1], 5, tmp_path / "thin.pol").path
    assert found(again[0], thin).same  # bytes that are gone change no root
    seen = found(thin, tiny_proof)
    assert not seen.same and seen.final is not None


def test_json_is_alone_and_the_status_says_it(again: tuple[Path, Path], tiny_proof: Path) -> None:
    done = run(again[0], tiny_proof, "--json", "-")
    assert done.exit_code == 1 and json.loads(done.stdout)["schema"] == "pol/diff/v1"
    shown = run(again[0], tiny_proof)
    assert shown.exit_code == 1 and "first step that differs" in shown.stdout
    missing = run(again[0], "nowhere.pol")
    assert missing.exit_code == 2 and "does not exist" in missing.output
