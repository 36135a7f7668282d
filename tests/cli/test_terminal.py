"""What reaches a terminal: text from proofs, tasks and workers is shown and never obeyed."""

from __future__ import annotations

import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from proof_of_learning import Proof
from proof_of_learning.proof import format
from proof_of_learning.state.state import State, encode_tree
from support_forging import relog, rewrite

PAINT = "\x1b[2J\x1b[H\x1b[32mVALID\x1b[0m \x9b31m \u202egnorw\u2028\r\nVALID  every check passed\a\x7f"
TASKS = Path(__file__).parents[1] / "tasks.py"
HOSTILE_TASK = f"""
import sys, warnings
sys.path.insert(0, {str(TASKS.parent)!r})
import tasks
PAINT = {PAINT!r}

def raises():
    made = tasks.task()
    import dataclasses
    def loss(model, batch):
        raise RuntimeError(PAINT)
    return dataclasses.replace(made, loss=loss)

def dies():
    import dataclasses, os
    def loss(model, batch):
        os.write(2, PAINT.encode())
        os._exit(7)
    return dataclasses.replace(tasks.task(), loss=loss)

def unloadable():
    raise RuntimeError(PAINT)

def warns():
    warnings.warn(PAINT)
    return tasks.task()
"""


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pol(command: Callable[..., subprocess.CompletedProcess[bytes]]) -> Command:
    """The command in a process of its own, its output decoded strictly; asserts that all of it is harmless."""
    return lambda *arguments, **variables: harmless(
        command(*arguments, PYTHONIOENCODING="utf-8", COLUMNS="100", **variables)
    )


def harmless(made: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[str]:
    for shown in (made.stdout.decode(), made.stderr.decode()):
        odd = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c not in "\n\t"}
        assert not odd, shown
        assert not any(text.strip().startswith("VALID  every check") for text in shown.splitlines()), shown
    return subprocess.CompletedProcess(made.args, made.returncode, made.stdout.decode(), made.stderr.decode())


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "hostile.py"
    path.write_text(HOSTILE_TASK)
    return path


@pytest.fixture(scope="module")
def painted(tiny_proof: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proof with escape sequences in every place that takes text."""

    def header(claimed: format.Header) -> format.Header:
        return msgspec.structs.replace(claimed, task=msgspec.structs.replace(claimed.task, name=PAINT))

    def states(held: list[State]) -> list[State]:
        found = []
        for state in held:
            tensors = dict(state.tensors)
            node = encode_tree({PAINT: torch.ones(2)}, PAINT, tensors)
            pairs = sorted(
                [*state.tree["d"], [f"s:{PAINT}", {"d": [[node["d"][0][0], {"t": next(reversed(tensors))}]]}]]
            )
            found.append(State({"d": pairs}, tensors))
        return found

    path = rewrite(
        tiny_proof, tmp_path_factory.mktemp("painted") / "run.pol", header=header, states=states,
        evaluation={PAINT: 1.0}, environment=lambda here: msgspec.structs.replace(here, torch=PAINT, machine=PAINT),
    )  # fmt: skip
    Proof.open(path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("check", "{proof}"),
        ("inspect", "{proof}"),
        ("inspect", "{proof}", "--json", "-"),
        ("verify", "{proof}"),
        ("verify", "{proof}", "--json", "-", "--task", "{tasks}:task", "--keep-going"),
        ("verify", "{proof}", "--task", "{tasks}:task", "--keep-going"),
        ("thin", "{proof}", "--keep-every", "3", "-o", "{out}"),
        ("attack", "concatenation", "--target", "{proof}", "--task", "{tasks}:task", "-o", "{out}"),
    ],
    ids=" ".join,
)
def test_a_hostile_proof_paints_nothing(words: tuple[str, ...], pol: Command, painted: Path, tmp_path: Path) -> None:
    places = {"proof": painted, "tasks": TASKS, "out": tmp_path / "out"}
    done = pol(*(word.format(**places) for word in words))
    assert "Traceback" not in done.stderr


def test_a_state_that_cannot_be_brought_back_paints_nothing(pol: Command, painted: Path, tmp_path: Path) -> None:
    assert pol("thin", painted, "--keep-every", "4", "-o", tmp_path / "thin.pol").returncode == 0
    done = pol("regenerate", tmp_path / "thin.pol", "--task", f"{TASKS}:task", "--segments", "1")
    assert done.returncode and "\\u{1b}" in done.stderr


@pytest.mark.parametrize("name", ["raises", "dies", "unloadable", "warns"])
def test_what_a_task_says_paints_nothing(name: str, pol: Command, task_file: Path, tiny_proof: Path) -> None:
    done = pol("verify", tiny_proof, "--task", f"{task_file}:{name}", "--sandbox", "off")
    assert name == "warns" or "\\u{" in done.stdout + done.stderr


@pytest.mark.parametrize("debug", ["", "1"], ids=["", "traceback"])
@pytest.mark.parametrize("name", ["raises", "warns"])
def test_what_a_task_says_in_the_command_itself_paints_nothing(
    name: str, debug: str, pol: Command, task_file: Path, tmp_path: Path
) -> None:
    done = pol("prove", f"{task_file}:{name}", "-o", tmp_path / "run.pol", "--interval", "5", POL_DEBUG=debug)
    assert "\\u{1b}" in done.stderr


@pytest.mark.quick
def test_a_broken_log_paints_nothing(pol: Command, tiny_proof: Path, tmp_path: Path) -> None:
    path = rewrite(tiny_proof, tmp_path / "run.pol")

    def edit(lines: list[dict[str, Any]]) -> None:
        lines[1]["environment"]["variables"] = {PAINT: "x"}

    done = pol("check", relog(path, edit))
    assert done.returncode == 2 and "which is not allowed" in done.stderr
