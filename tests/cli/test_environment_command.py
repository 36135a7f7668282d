"""`pol environment`: the files that bring a recorded numeric environment back, and what they make of a hostile one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from proof_of_learning import Proof
from proof_of_learning.cli import environment as command
from proof_of_learning.cli.main import app
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.environment import PORTABLE, VARIABLES, Device, Environment


@pytest.fixture(scope="module")
def recorded(tiny_proof: Path) -> Environment:
    (found,) = Proof.open(tiny_proof).environments.values()
    return found


def test_what_is_written_and_said_of_this_machine(tiny_proof: Path, recorded: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    done = CliRunner().invoke(app, ["environment", str(tiny_proof), "-o", str(folder)])
    assert done.exit_code == 0, done.output
    assert "environment 1 of 1: a process on this machine has it" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "requirements.txt", "variables.sh"]
    assert f"torch=={recorded.torch}\nnumpy=={recorded.numpy}\n" in (folder / "requirements.txt").read_text()
    assert Proof.open(tiny_proof).root in (folder / "README.md").read_text()
    again = CliRunner().invoke(app, ["environment", str(tiny_proof), "-o", str(folder)])
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_the_shell_gets_these_variables_and_no_other_that_counts(recorded: Environment, tmp_path: Path) -> None:
    portable = msgspec.structs.replace(
        recorded, threads=3, variables={**PORTABLE, "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"}
    )
    script = tmp_path / "variables.sh"
    script.write_text(command.variables(portable))
    shell = subprocess.run(
        ["sh", "-c", f". {script} && env"], env={"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, capture_output=True, text=True
    )
    found = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    assert {name: found[name] for name in VARIABLES if name in found} == portable.variables
    assert found["OMP_NUM_THREADS"] == "3"


def test_what_this_machine_lacks_is_named(recorded: Environment) -> None:
    other = msgspec.structs.replace(recorded, torch="1.0.0", vendor="Nobody", threads=recorded.threads + 1)
    named = " ".join(command.missing(other, own_numpy=False))
    assert "torch: recorded 1.0.0" in named and "vendor: recorded Nobody" in named
    assert "threads:" not in named  # a process can be given them


@pytest.mark.parametrize(
    "version", ["2.0\n--index-url=http://x", "2.0 --pre", "", "; rm -rf /", "2.0 #", "९.0", "@ file:///x"]
)
def test_a_version_that_is_none_is_refused(recorded: Environment, version: str) -> None:
    with pytest.raises(FormatError, match="is no version"):
        command.requirements(msgspec.structs.replace(recorded, torch=version))


def test_text_of_a_proof_stays_in_its_comment(recorded: Environment) -> None:
    hostile = msgspec.structs.replace(
        recorded, vendor="\ntouch /tmp/x\r$(id)\u2028`id`", isa=["\n\n<script>"], device=Device("cuda", name="\nexport A=1")
    )  # fmt: skip
    lines = command.variables(hostile).splitlines()
    assert len(lines) == len(command.variables(recorded).splitlines())
    assert not set("$`<>\r") & set("".join(lines[:3]))
