"""The sandbox, with the real bubblewrap: what a hostile task gets at without it, and does not get at within it."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from proof_of_learning import TaskReference, load_task, verify
from proof_of_learning.cli.main import app
from proof_of_learning.errors import TaskError, UsageError
from proof_of_learning.numeric.portable import engine
from proof_of_learning.numeric.portable.native import build
from proof_of_learning.replay import process, sandbox
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.report.html import render_html
from proof_of_learning.report.terminal import print_verdict

pytestmark = pytest.mark.real_workers
HERE = Path(__file__).parents[1]

HOSTILE = """
import json, os, signal, socket
from pathlib import Path

targets = json.loads((Path(__file__).parent / "targets.json").read_text())

def file():
    assert Path(targets["secret"]).read_text() == "secret"

def hidden():
    assert (Path(__file__).parent / ".env").read_text() == "secret"

def variable():
    assert os.environ["POL_TEST_SECRET"] == "secret"

def network():
    socket.create_connection(("127.0.0.1", targets["port"]), timeout=5).close()

def write():
    Path(targets["outside"]).write_text("loot")

def write_home():
    (Path(__file__).parent / "loot").write_text("loot")

def write_proof():
    (Path(targets["proof"]) / "loot").write_text("loot")

def processes():
    os.kill(targets["process"], 0)

def kernel():
    assert os.access("/proc/sys/kernel/core_pattern", os.W_OK)

def task():
    got = []
    for attempt in (file, hidden, variable, network, write, write_home, write_proof, processes, kernel):
        try:
            attempt()
            got.append(attempt.__name__)
        except Exception:
            pass
    raise RuntimeError("got at: " + " ".join(got) + ".")
"""
ATTEMPTS = ("file", "hidden", "variable", "network", "write", "write_home", "write_proof", "processes")


@pytest.fixture(scope="session")
def bubblewrap() -> str:
    program, obstacle = sandbox.find()
    if program is None:
        pytest.skip(f"{obstacle}: the sandbox cannot be tried")
    return program


@pytest.fixture
def hostile(
    tmp_path: Path, tiny_proof: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path, list[Path]]]:
    """A task that helps itself; a proof to hold it against; what it leaves behind if it can."""
    for name in ("task", "elsewhere"):
        (tmp_path / name).mkdir()
    proof = shutil.copytree(tiny_proof, tmp_path / "run.pol")
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    (tmp_path / "task" / ".env").write_text("secret")
    (tmp_path / "task" / "hostile.py").write_text(HOSTILE)
    monkeypatch.setenv("POL_TEST_SECRET", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        targets = {
            "secret": str(tmp_path / "elsewhere" / "secret"), "outside": str(tmp_path / "elsewhere" / "loot"),
            "port": server.getsockname()[1], "proof": str(proof), "process": os.getpid(),
        }  # fmt: skip
        (tmp_path / "task" / "targets.json").write_text(json.dumps(targets))
        loot = [tmp_path / "elsewhere" / "loot", tmp_path / "task" / "loot", proof / "loot"]
        yield f"{tmp_path}/task/hostile.py:task", proof, loot


def haul(task: str, proof: Path, mode: str) -> list[str]:
    """What the hostile task says it got at."""
    with pytest.raises(TaskError, match="got at: ") as caught:
        verify(proof, task, sandbox=mode)
    return str(caught.value).partition("got at: ")[2].partition(".")[0].split()


def test_a_task_gets_at_everything_outside_the_sandbox(hostile: tuple[str, Path, list[Path]]) -> None:
    task, proof, loot = hostile
    assert [name for name in haul(task, proof, "off") if name != "kernel"] == list(ATTEMPTS)
    assert all(path.is_file() for path in loot)


def test_a_task_gets_at_nothing_inside_the_sandbox(bubblewrap: str, hostile: tuple[str, Path, list[Path]]) -> None:
    task, proof, loot = hostile
    assert haul(task, proof, "require") == []
    assert not any(path.exists() for path in loot)


def test_an_honest_proof_is_valid_in_the_sandbox(bubblewrap: str, digits: TaskReference, digits_proof: Path) -> None:
    """Bit for bit: the processor looks the same from inside. (Starting the sandbox takes some 20 ms, PyTorch two seconds.)"""
    verdict = verify(digits_proof, digits, sandbox="require", top_q=0, random=2)
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.unreproduced == []
    assert verdict.warnings == []
    assert verdict.check("task").evidence["isolation"] == sandbox.CONFINED


REFUSAL = "bwrap: No permissions to create a new namespace"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("programs", "obstacle"),
    [
        ({}, "bubblewrap is not installed"),
        (
            {"bwrap": f"#!/bin/sh\necho '{REFUSAL}' >&2\nexit 1\n"},
            f"bubblewrap is not permitted to work here ({REFUSAL})",
        ),
    ],
)
def test_where_it_cannot_be_had(
    programs: dict[str, str], obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = sandbox.isolation("auto")
    assert (found.sandbox, found.note, found.warnings) == (None, f"{obstacle}: {sandbox.FREE}", [found.note])
    with pytest.raises(UsageError, match=f"cannot be confined here: {re.escape(obstacle)}$"):
        sandbox.isolation("require")


def test_the_verdict_warns(
    tiny: TaskReference, tiny_proof: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    verdict = verify(tiny_proof, tiny, top_q=0, random=0)
    assert verdict.verdict == "valid"
    assert verdict.warnings == [f"bubblewrap is not installed: {sandbox.FREE}"]
    assert verdict.check("task").evidence["isolation"] == verdict.warnings[0]
    console = Console(record=True, width=1000, file=io.StringIO())
    print_verdict(verdict, console)
    for shown in (console.export_text(), html.unescape(render_html(verdict))):
        assert sandbox.FREE in shown


def test_no_sandbox_on_request_and_for_objects(tiny: TaskReference, tiny_proof: Path) -> None:
    assert sandbox.isolation("off").warnings == [f"the sandbox was switched off: {sandbox.FREE}"]
    task = replace(load_task(tiny), reference=None)
    assert verify(tiny_proof, task, top_q=0, random=0).warnings == [sandbox.IN_PROCESS]
    with pytest.raises(UsageError, match="name it by reference"):
        verify(tiny_proof, task, sandbox="require")
    assert verify(tiny_proof, None).warnings == []


def test_options_are_checked(tiny: TaskReference, tiny_proof: Path) -> None:
    command = ["verify", str(tiny_proof), "--task", tiny.target]
    for options, message in (
        (["--sandbox", "maybe"], "--sandbox maybe: expected auto, require or off"),
        (["--allow-read", "/no/such/folder"], "--allow-read /no/such/folder: there is no such file or folder"),
        (["--allow-read", "/"], "--allow-read /: that is everything; name the folders that the task needs"),
    ):
        result = CliRunner().invoke(app, command + options)
        assert (result.exit_code, result.stderr) == (2, f"pol: {message}\n")


READER = """
import sys
sys.path.insert(0, {tests!r})
import tasks

def task(path: str = {path!r}):
    assert open(path).read() == "42"
    return tasks.task(seed=0)
"""


def test_what_the_verifier_allows_can_be_read(bubblewrap: str, tiny_proof: Path, tmp_path: Path) -> None:
    """And where it was not allowed, the failure says how."""
    (tmp_path / "task").mkdir()
    (tmp_path / "data").mkdir()
    data = tmp_path / "data" / "values"
    data.write_text("42")
    (tmp_path / "task" / "reader.py").write_text(READER.format(tests=str(HERE), path=str(data)))
    target = f"{tmp_path}/task/reader.py:task"
    plan: dict[str, Any] = {"sandbox": "require", "top_q": 0, "random": 0}
    with pytest.raises(TaskError, match=r"FileNotFoundError.*\(--allow-read DIR shows it more\)"):
        verify(tiny_proof, target, allow_read=[HERE], **plan)
    assert verify(tiny_proof, target, allow_read=[HERE, data.parent], **plan).verdict == "valid"


# ---- the sandbox alone, without PyTorch -------------------------------------------------------------


def run(confined: Sandbox, code: str, **variables: str) -> str:
    """What a fresh Python inside prints."""
    environment = confined.variables({**os.environ, **variables})
    done = subprocess.run(
        confined.command([sys.executable, "-c", code]), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_scratch_folder_can_be_written(bubblewrap: str, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    confined = Sandbox(bubblewrap, read=(tmp_path,), scratch=tmp_path / "scratch")
    code = f"""
import os, pathlib
for folder in ({str(tmp_path)!r}, {str(tmp_path / "scratch")!r}, "/", "/usr", "/proc/sys/kernel", "/tmp"):
    try:
        pathlib.Path(folder, "written").write_text("x")
        print(folder)
    except OSError:
        pass
"""
    assert run(confined, code).splitlines() == [str(tmp_path / "scratch"), "/tmp"]
    assert (tmp_path / "scratch" / "written").read_text() == "x"
    assert not Path("/tmp/written").exists()


def test_settings_and_the_data_folder_can_be_read(
    bubblewrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("set", "data", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "values").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POL_DATA", str(tmp_path / "data"))
    confined = Sandbox(bubblewrap).serving(TaskReference("m:task", {"folder": "set", "rate": 0.1, "text": "a\0b"}))
    code = f"import os; print(*(n for n in ('set', 'data', 'other') if os.path.exists({str(tmp_path)!r} + '/' + n)))"
    assert run(confined, code) == "set data"


def test_it_has_no_rights_and_no_company(bubblewrap: str) -> None:
    code = """
import os
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
print(set(caps), sorted(name for name in os.listdir("/proc") if name.isdigit()), os.listdir("/sys/class") if
      os.path.exists("/sys/class") else "", os.path.exists("/etc/passwd"), os.access("/proc/sys/kernel/core_pattern", os.W_OK))
"""
    assert run(Sandbox(bubblewrap), code) == "{'0000000000000000'} ['1', '2']  False False"


def test_variables_that_could_hold_secrets_stay_outside(bubblewrap: str) -> None:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    found = json.loads(
        run(Sandbox(bubblewrap), code, AWS_SECRET_ACCESS_KEY="x", GITHUB_TOKEN="x", SSH_AUTH_SOCK="x", MKL_CBWR="AVX2")
    )
    assert not {"AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK"} & set(found)
    assert (found["MKL_CBWR"], found["HOME"]) == ("AVX2", "/tmp")


def test_what_was_built_of_the_native_engine_can_be_loaded_and_not_changed(
    bubblewrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from proof_of_learning.numeric.portable import engine; print(engine.prepare().name)"
    here = engine.prepare().name
    assert run(Sandbox(bubblewrap), code) == here
    write = "import os; from proof_of_learning.numeric.portable.native import build; print(os.access(build.folder(), os.W_OK))"
    assert here == "plain" or run(Sandbox(bubblewrap), write) == "False"
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    monkeypatch.setenv(build.FOLDER, str(empty))
    assert run(Sandbox(bubblewrap), code) == "plain"  # it is not built in there


def test_a_module_brings_its_package_and_a_file_its_folder(
    bubblewrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package" / ".git").mkdir(parents=True)
    (tmp_path / "package" / ".git" / "config").touch()
    for name in ("package/__init__.py", "package/tasks.py", "package/.env", "single.py", "notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    code = "import os; print(*sorted(os.path.join(d, f) for d, _, fs in os.walk('.') for f in fs))"
    shown = run(Sandbox(bubblewrap).serving(TaskReference("package.tasks:task")), code)
    assert shown.split() == ["./package/.env", "./package/__init__.py", "./package/tasks.py"]
    with pytest.raises(AssertionError, match="PermissionError"):
        run(Sandbox(bubblewrap).serving(TaskReference("package.tasks:task")), "open('package/.env')")
    everything = [
        "./notes.txt",
        "./package/.env",
        "./package/.git/config",
        "./package/__init__.py",
        "./package/tasks.py",
    ]
    for target in ("single:task", f"{tmp_path}/single.py:task"):
        assert run(Sandbox(bubblewrap).serving(TaskReference(target)), code).split() == [*everything, "./single.py"]


def test_a_task_in_the_home_folder_brings_its_python_files_only(
    bubblewrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "Documents").mkdir()
    for name in ("task.py", "helpers.py", "diary.txt", ".secret.py", "Documents/thesis.py"):
        (tmp_path / name).touch()
    confined = Sandbox(bubblewrap).serving(TaskReference(f"{tmp_path}/task.py:task"))
    assert run(confined, f"import os; print(*sorted(os.listdir({str(tmp_path)!r})))") == "helpers.py task.py"
    assert not sandbox._names_path(str(tmp_path))


def test_symbolic_links_lead_to_what_they_mean(bubblewrap: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "task.py").write_text("x = 1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    confined = Sandbox(bubblewrap, read=(tmp_path / "link",))
    code = f"print(*(open(p).read() for p in ({str(tmp_path / 'link/task.py')!r}, {str(tmp_path / 'real/task.py')!r})))"
    assert run(confined, code) == "x = 1 x = 1"


@pytest.mark.parametrize("confined", [False, True])
def test_a_worker_takes_its_memory_in_large_pages(
    confined: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the C library can tell it so, and see that there are any; unless the user has told it something else."""
    started: list[dict[str, str]] = []

    def popen(*arguments: object, env: dict[str, str], **more: object) -> None:
        started.append(env)
        raise FileNotFoundError

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    box = Sandbox("/usr/bin/bwrap", (tmp_path,)) if confined else None
    for own in ("", "glibc.malloc.hugetlb=0"):
        if own:
            monkeypatch.setenv("GLIBC_TUNABLES", own)
        with pytest.raises(FileNotFoundError):
            process.WorkerProcess(None, sandbox=box)
    first, second = (env["GLIBC_TUNABLES"] for env in started)
    assert "glibc.malloc.hugetlb=1" in first and second == "glibc.malloc.hugetlb=0"
    pages = "/sys/kernel/mm/transparent_hugepage"
    if box is not None and os.path.exists(pages):
        assert pages in box.command(["python"])
