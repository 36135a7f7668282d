"""The command `pol`: good input, wrong input, none, and an interrupt; one line for an error, the documented exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proof_of_learning import Proof, TaskReference, Verdict, check, load_task, prove, verify
from proof_of_learning._version import __version__
from proof_of_learning.proof.format import HEADER_FILE, LOG_FILE
from support_cli import one_line, pol

# A shell that starts us in the background has the interrupt ignored, which children inherit; a terminal's do not.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{START}; from proof_of_learning.cli.main import run; run()"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def target(tiny: TaskReference) -> str:
    return tiny.target


def test_options_that_a_script_has_no_use_for_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('it was run')")
    said = one_line(
        pol("prove", tmp_path / "train.py", "-o", tmp_path / "run.pol", "--codec", "raw", "--evaluations", 2), 2
    )
    assert "--evaluations, --codec" in said and "--set" not in said
    assert not (tmp_path / "run.pol").exists()


@pytest.mark.quick
def test_prove_verify_check_inspect(target: str, tmp_path: Path) -> None:
    run = tmp_path / "run.pol"
    proved = pol("prove", target, "-o", run, "-k", "5", "--save-model", tmp_path / "model.safetensors")
    assert proved.exit_code == 0, proved.output
    assert Proof.open(run).root in proved.stdout
    verified = pol(
        "verify", run, "--task", target, "--json", tmp_path / "v.json", "--report", tmp_path / "r.html",
        "--model", tmp_path / "model.safetensors", "--sandbox", "off",
    )  # fmt: skip
    assert verified.exit_code == 0, verified.output
    verdict = Verdict.from_json((tmp_path / "v.json").read_bytes())
    assert (verdict.verdict, verdict.proof.root) == ("valid", Proof.open(run).root)
    assert "VALID" in verified.stdout and "<html" in (tmp_path / "r.html").read_text()
    assert pol("check", run).exit_code == 0
    inspected = pol("inspect", run, "--json", "-")
    assert json.loads(inspected.stdout)["root"] == Proof.open(run).root
    again = pol("prove", target, "-o", run, "-k", "5")  # finished already: says so by doing nothing
    assert again.exit_code == 0 and Proof.open(run).root in again.stdout


def test_json_on_standard_output_is_alone_there(
    target: str, tiny_proof: Path, command: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    done = command("verify", tiny_proof, "--task", target, "--all", "--json", "-")
    verdict = json.loads(done.stdout)
    assert (verdict["schema"], verdict["verdict"], done.returncode) == ("pol/verdict/v1", "valid", 0)
    fields = ("assurance", "randomness", "exactness", "conditions", "proof", "checks", "segments", "thresholds")
    assert {*fields, "guarantee", "nonce", "cost"} <= set(verdict)
    assert verdict["guarantee"]["forged_fraction"] == 0.0  # all segments were replayed
    seen = verdict["trajectory"]["function"]
    assert [seen[0][0], seen[-1][0]] == [0, verdict["proof"]["steps"]]
    assert seen[0][1] > 0 and seen[-1][1] == 0


def test_without_a_task_nothing_is_run_and_the_verdict_is_open(tiny_proof: Path) -> None:
    result = pol("verify", tiny_proof, "--json", "-")
    verdict = json.loads(result.stdout)
    assert (result.exit_code, verdict["verdict"], verdict["cost"]["steps_replayed"]) == (3, "inconclusive", 0)
    assert "no task was named" in verdict["checks"][-1]["summary"]
    assert "INCONCLUSIVE  no task was named" in pol("verify", tiny_proof).stdout


def test_another_task_is_invalid(target: str, tiny_proof: Path) -> None:
    result = pol("verify", tiny_proof, "--task", target, "--set", "batch_size=8", "--sandbox", "off")
    assert result.exit_code == 1
    assert "batch_size" in result.stdout


def test_a_nonce_that_was_handed_in_is_marked(target: str, tiny_proof: Path) -> None:
    for more, status in (((), 3), (("--accept-nonce",), 0)):
        result = pol(
            "verify", tiny_proof, "--task", target, "--nonce", "c0ffee", "--json", "-", "--sandbox", "off", *more
        )
        assert result.exit_code == status
        assert json.loads(result.stdout)["nonce"] == {"value": "c0ffee", "origin": "self-chosen"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("prove", "nowhere.py:task", "-o", "{out}"), "there is no file"),
        (("prove", "{task}", "-o", "{out}", "--set", "nonsense=1"), "takes no setting 'nonsense'"),
        (("prove", "{task}", "-o", "{out}", "--set", "steps"), "expected NAME=VALUE"),
        (("prove", "{task}", "-o", "{out}", "-k", "0"), "interval must be at least 1"),
        (("prove", "{task}", "-o", "{out}", "--device", "cuda"), "no CUDA device"),
        (("prove", "{task}", "-o", "{out}", "--data", "{out}/none"), "no such folder"),
        (("prove", "{task}", "-o", "{out}", "--registration", "{out}/none.json"), "none.json does not exist"),
        (("verify", "{out}", "--task", "{task}"), "does not exist"),
        (("verify", "{proof}", "--task", "nonsense"), "expected path.py:function"),
        (("verify", "{proof}", "--task", "{task}", "--nonce", "xyz"), "hex digits"),
        (("verify", "{proof}", "--task", "{task}", "--require", "calibrated"), "takes 'exact'"),
        (("verify", "{proof}", "--task", "{task}", "--report", "{out}/none/r.html"), "there is no folder"),
        (("verify", "{proof}", "--task", "{task}", "--report", "{proof}"), "is a folder"),
        (("verify", "{proof}", "--task", "{task}", "--json", "{out}/none/v.json"), "there is no folder"),
        (("prove", "{task}", "-o", "{out}", "--json", "{proof}"), "is a folder"),
        (("verify", "{proof}", "--task", "{task}", "--chain", "{proof}={task}"), "not part of the chain"),
        (("verify", "{proof}", "--task", "{task}", "--model", "{proof}/header.json", "--sandbox", "off"), "safetensors"),
        (("check", "{proof}/log.jsonl"), "is not a directory"),
        (("inspect", "{out}"), "does not exist"),
        (("attack", "nonsense"), "there is no attack"),
        (("attack", "concatenation"), "needs --target"),
        (("attack", "concatenation", "--target", "{proof}", "--task", "{task}", "-o", "{out}", "--param", "x=1"), "no parameter"),
        (("register", "{task}", "-o", "{proof}/header.json"), "never overwritten"),
        (("calibrate", "{task}", "--intervals", "a,b"), "numbers separated by commas"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_changes_nothing(
    arguments: tuple[str, ...], text: str, target: str, tiny_proof: Path, tmp_path: Path
) -> None:
    names = {"out": str(tmp_path / "out"), "task": target, "proof": str(tiny_proof)}
    before = sorted(tiny_proof.rglob("*"))
    line = one_line(pol(*(argument.format(**names) for argument in arguments)), 2)
    assert text in line
    assert sorted(tiny_proof.rglob("*")) == before
    assert not (tmp_path / "out" / HEADER_FILE).exists()


def test_the_package_is_the_command_too() -> None:
    for command in (["-m", "proof_of_learning", "-V"], ["-m", "proof_of_learning", "--version"]):
        told = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
        assert told.stdout == f"proof-of-learning {__version__}\n"


@pytest.mark.parametrize("command", ["prove", "verify", "check", "inspect", "register", "calibrate"])
def test_no_input_is_a_usage_error_and_help_has_examples(command: str) -> None:
    assert pol(command).exit_code == 2
    shown = pol(command, "--help")
    assert shown.exit_code == 0
    assert f"pol {command} " in re.sub(r"\s+", " ", shown.stdout)


def test_a_proof_that_contradicts_itself_is_invalid_everywhere(target: str, tiny_proof: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pol"
    shutil.copytree(tiny_proof, broken)
    log = bytearray((broken / LOG_FILE).read_bytes())
    log[-200] ^= 1
    (broken / LOG_FILE).write_bytes(log)
    assert pol("check", broken).exit_code in (1, 2)
    assert pol("verify", broken, "--task", target).exit_code in (1, 2)
    (tmp_path / "v.json").unlink(missing_ok=True)


def test_an_interrupted_prove_says_so_and_resumes_to_the_same_root(
    target: str, tiny_proof: Path, tmp_path: Path
) -> None:
    """Ctrl-C in a real process, at a moment when some segments are on disk."""
    run = tmp_path / "run.pol"
    arguments = [*COMMAND, "prove", target, "-o", str(run), "-k", "5", "--set", "steps=200000"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (run / LOG_FILE).exists() and (run / LOG_FILE).read_bytes().count(b"\n") > 8
    ):
        time.sleep(0.02)
    errors = interrupt(process)
    assert process.returncode == 130
    text = errors.decode()
    assert "what is recorded is intact" in text and "Traceback" not in text
    unfinished = one_line(pol("check", run), 2)
    assert "not finished" in unfinished


def test_an_interrupted_verify_leaves_the_proof_and_no_child(target: str, tiny_proof: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tiny_proof.rglob("*") if path.is_file()}
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, time\n"
        f"import sys; sys.path.insert(0, {str(Path(target.split(':')[0]).parent)!r})\n"
        "import tasks\n"
        f"open({str(tmp_path / 'started')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(300)\n"
        "task = tasks.task\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "verify", tiny_proof, "--task", f"{slow}:task", "--sandbox", "off"], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "started").exists():
        time.sleep(0.05)
    worker = int((tmp_path / "started").read_text())
    errors = interrupt(process)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(100):  # the worker is killed, and reaped by whoever inherits it
        if not _alive(worker):
            break
        time.sleep(0.05)
    assert not _alive(worker)


def interrupt(process: subprocess.Popen[bytes]) -> bytes:
    """Press Ctrl-C, and return what the process says before it ends."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_complete_proof_is_not_said_to_have_been_trained(target: str, tmp_path: Path) -> None:
    run = tmp_path / "run.pol"
    first = pol("prove", target, "-o", run)
    again = pol("prove", target, "-o", run, "--json", tmp_path / "again.json")
    assert first.exit_code == again.exit_code == 0
    assert "complete already" not in first.stdout
    assert again.stdout.startswith(f"{run}: complete already, nothing was trained; ")
    assert first.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]  # the root
    assert json.loads((tmp_path / "again.json").read_text())["complete_before"] is True


def test_the_library_logs_and_prints_nothing(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "proof_of_learning"):
        prove(load_task(target), tmp_path / "run.pol")
        check(tmp_path / "run.pol")
    assert capsys.readouterr() == ("", "")
    assert any("from step 0 of 24" in message for message in caplog.messages)


def test_what_is_logged_is_shown_where_it_is_asked_for(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "from step" not in pol("prove", target, "-o", tmp_path / "a.pol").stderr
    monkeypatch.setenv("POL_DEBUG", "1")
    said = pol("prove", target, "-o", tmp_path / "b\x1b[2J.pol").stderr
    assert "pol: info: prover: recording into " in said and "\x1b" not in said


def test_a_shell_can_complete_commands() -> None:
    asked = {"_POL_COMPLETE": "complete_bash", "COMP_WORDS": "pol env", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stdout.split() == ["environment"]


def test_the_bar_says_that_the_states_are_looked_at(digits: TaskReference, digits_proof: Path) -> None:
    doing: list[str] = []
    verify(digits_proof, digits, random=2, progress=lambda what, done, total: doing.append(what))
    assert {"reading the proof", "looking at what the states compute"} <= set(doing)


def test_demo_tells_the_whole_story(tmp_path: Path) -> None:
    result = pol("demo", "-o", tmp_path / "demo", "--steps", "100")
    assert result.exit_code == 0, result.output
    found = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {
        "honest.pol",
        "verdict.json",
        "report.html",
        "verdict-concatenation.json",
        "report-infinitesimal-update.html",
    } <= found
    assert json.loads((tmp_path / "demo" / "verdict.json").read_text())["verdict"] == "valid"
    assert json.loads((tmp_path / "demo" / "verdict-concatenation.json").read_text())["verdict"] == "invalid"
