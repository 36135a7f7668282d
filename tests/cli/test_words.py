"""What users read: help in 80 columns, tables in a pipe, and words that say what a number is of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import typer
from click.testing import CliRunner

from proof_of_learning.cli.main import COMMANDS, app
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.report import render_html, words
from proof_of_learning.verifier.checks.data import DataCheck
from proof_of_learning.verifier.evidence import Answers
from proof_of_learning.verifier.verdict import Conditions
from support_cli import one_line
from support_cli import pol as command
from support_forging import rewrite
from support_verdicts import digest, trajectory, verdict_of

HELD: Any = typer.main.get_command(app)  # made once: it takes a third of a second


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole_in_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(HELD, [name, "--help"]).stdout
    assert max(map(len, shown.splitlines())) <= 80 and "**" not in shown and "\\b" not in shown
    for parameter in HELD.commands[name].params:
        assert all(option in shown for option in parameter.opts if option.startswith("--"))
        assert flat(parameter.help or "") in flat(shown), parameter.name


def test_the_list_of_commands_says_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("--help").stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("asked", [("inspect",), ("plan",), ("verify",)])
def test_a_table_in_a_pipe_is_neither_wrapped_nor_padded(
    asked: tuple[str, ...], tiny_proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However narrow the terminal beside it is."""
    monkeypatch.setenv("COLUMNS", "40")
    rows = command(*asked, tiny_proof).stdout.splitlines()
    assert [row for row in rows if row != row.rstrip()] == []
    assert max(map(len, rows)) > 80


def test_a_plan_says_what_a_forgery_is_a_share_of(tiny_proof: Path) -> None:
    said = flat(command("plan", tiny_proof).stdout)
    assert "with a probability of 99 %, any forgery that makes more than 10 % of the segments that do work" in said
    assert "50 % of the segments" in flat(command("plan", tiny_proof, "--forged", "0.5").stdout)


def test_all_differences_can_be_seen(tiny_proof: Path, digits_proof: Path) -> None:
    few = command("diff", tiny_proof, digits_proof)
    left = re.search(r"and ([\d,]+) other differences \(--all names them", few.stdout)
    assert left is not None and int(left[1]) > 0
    every = json.loads(command("diff", tiny_proof, digits_proof, "--all", "--json", "-").stdout)
    assert len(every["said"]) == 10 + int(left[1]) and every["others"] == 0
    shown = command("diff", tiny_proof, digits_proof, "--all").stdout
    assert all(f"{each['name']} " in shown for each in every["said"]) and "other difference" not in shown


def test_a_proof_says_what_its_arithmetic_means(tiny_proof: Path, tmp_path: Path) -> None:
    run, page, means = tmp_path / "run.pol", tmp_path / "page.html", "gives the same bits on any machine"
    rewrite(tiny_proof, run, header=lambda claimed: msgspec.structs.replace(claimed, arithmetic="portable"))
    assert f"portable. A replay {means}" in flat(command("inspect", run).stdout)
    said = flat(command("verify", run, "--report", page).stdout)
    assert f"portable arithmetic: a replay {means}" in said and f"A replay {means}" in page.read_text()
    usual = flat(command("inspect", tiny_proof).stdout)
    assert "native. A replay gives the same bits in an environment like the recorded one" in usual


def test_a_salted_root_is_not_said_to_be_unnamed() -> None:
    salted: Any = SimpleNamespace(
        disclosed=None, proof=SimpleNamespace(header=SimpleNamespace(data=DataCommitment(digest(2), 5, True)))
    )
    found = DataCheck().judge(salted, Answers())
    verdict = verdict_of(trajectory(20), [], [found], conditions=Conditions(task=digest(1)))
    assert found.status == "inconclusive" and "not compared: the root is salted" in words.data(verdict)
    page = render_html(verdict)
    assert "Not compared: the root is salted" in page and "named no data" not in page


def test_what_is_recorded_of_each_step_is_named(tiny_proof: Path) -> None:
    said = json.loads(command("inspect", tiny_proof, "--json", "-").stdout)["per_step"]
    assert (
        said == ["loss", "learning rates"]
        and "per step       loss, learning rates" in command("inspect", tiny_proof).stdout
    )


def test_a_folder_that_is_no_proof_and_a_script_that_is_a_task_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("def task(): ...\n")
    for typed in (("check",), ("inspect",), ("verify",), ("diff", tmp_path)):
        said = one_line(command(*typed, tmp_path), 2)
        assert f"{tmp_path} holds no header.json; a proof is the directory that `pol prove -o` wrote" in said
    said = one_line(command("prove", tmp_path / "task.py", "-o", tmp_path / "run.pol"), 2)
    assert "holds no pol.Run" in said and "a task is named with its function, FILE.py:FUNCTION" in said
