"""Interrupted recordings with every way to store states: beside the loop, as differences, rounded, thinned."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import proof_of_learning as pol
import tasks
from proof_of_learning import Proof
from proof_of_learning.errors import RecordingError
from proof_of_learning.proof.codecs import packed
from support_proofs import contents

STEPS, INTERVAL = 30, 3
SETTINGS: dict[str, Any] = {"steps": STEPS, "net": "dropout", "scheduler": "cosine", "optimizer": "adamw"}
WAYS: dict[str, dict[str, Any]] = {
    "raw beside": {"codec": "raw", "asynchronous": True},
    "lossless": {"codec": "lossless"},
    "lossless beside, thinned": {"codec": "lossless", "asynchronous": True, "keep_every": 4},
    "float16 beside": {"codec": "float16", "asynchronous": True},
    "quantised": {"codec": "quantised"},
    "compact": {"codec": "compact"},
    "quantised beside": {"codec": "quantised", "asynchronous": True},
    "quantised, thinned": {"codec": "quantised", "keep_every": 4},
    "raw, thinned": {"codec": "raw", "keep_every": 3},
}
KILLS = 5  # of each way; with those of test_resume.py, more than fifty in `make test-all`
ALIKE = pytest.mark.slow(reason="each codec, the writer beside the loop and thinning stay in other rows")
RARE = {"lossless", "float16 beside", "raw, thinned"}


def prove(path: Path, way: dict[str, Any], progress: Any = None) -> str:
    more = {} if progress is None else {"progress": progress}
    return pol.prove(tasks.task(**SETTINGS), path, interval=INTERVAL, **way, **more).root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, way in WAYS.items():
        prove(folder / name, way)
    return {name: folder / name for name in WAYS}


def completes(path: Path, name: str, undisturbed: dict[str, Path]) -> None:
    prove(path, WAYS[name])
    assert contents(path) == contents(undisturbed[name])
    assert pol.check(path).status == "pass"


def test_how_states_are_written_is_not_under_the_root(undisturbed: dict[str, Path]) -> None:
    roots: dict[str, set[str]] = {}
    for name, way in WAYS.items():
        roots.setdefault(way["codec"], set()).add(Proof.open(undisturbed[name]).root)
    assert all(len(found) == 1 for found in roots.values())
    assert len(set.union(*roots.values())) == len(roots)


# ---- killed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "test_resume_codecs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2])))
        forkserver.ensure_running()
    return context


def child(path: Path, way: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    tasks.pause = 0.004
    prove(path, way)


def lines(path: Path) -> int:
    try:
        return (path / "log.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [pytest.param(way, marks=ALIKE if way in RARE else ()) for way in WAYS])
def test_a_run_killed_again_and_again_ends_in_the_same_files(
    name: str, processes: ForkServerContext, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    path, chance, kills, reached = tmp_path / "run.pol", random.Random(name), 0, [0]
    while kills < KILLS:
        process = processes.Process(target=child, args=(path, WAYS[name]))
        process.start()
        before = lines(path)
        target = min(before + chance.randrange(1, 4), STEPS // INTERVAL - 1)
        while process.is_alive() and lines(path) < target:
            time.sleep(0.0002)
        time.sleep(chance.random() * 0.012)
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0)
        kills += process.exitcode == -9
        reached.append(lines(path))
        # At most the interval under way and the line that was being written are lost.
        assert reached[-1] >= before - 1
        if process.exitcode == 0 or reached[-1] > STEPS // INTERVAL - 1:
            completes(path, name, undisturbed)
            shutil.rmtree(path)
    assert max(reached) > 2
    completes(path, name, undisturbed)


# ---- interrupted in ways that a kill rarely hits ----------------------------------------------------------------


class Stop(Exception):  # noqa: N818
    pass


def begun_at(path: Path, way: dict[str, Any], after: int | None) -> int:
    """Go on, for ``after`` steps of the whole run or to the end; returns the step at which it went on."""
    told: list[int] = []

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training":
            told.append(done)
            if after is not None and done >= after:
                raise Stop

    if after is None:
        prove(path, way, progress)
    else:
        with pytest.raises(Stop):
            prove(path, way, progress)
    return told[0]


def test_too_little_memory_for_a_state_is_not_taken_for_damage(
    undisturbed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        def decompress(self, *arguments: Any, **options: Any) -> bytes:
            raise MemoryError

    path, name = tmp_path / "run.pol", "lossless"
    begun_at(path, WAYS[name], STEPS // 2)
    before = contents(path)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_zstd", SimpleNamespace(decompressor=Small()))
        with pytest.raises(RecordingError, match=r"memory; nothing was changed, try again"):
            prove(path, WAYS[name])
    assert contents(path) == before
    completes(path, name, undisturbed)


@pytest.mark.parametrize(
    ("name", "after"),
    [
        pytest.param(name, after, marks=() if name == "lossless beside, thinned" or after == 4 * INTERVAL else ALIKE)
        for name in WAYS
        for after in (0, 1, INTERVAL, 4 * INTERVAL, STEPS - 1, STEPS)
    ],
)
def test_an_exception_is_as_good_as_a_kill(name: str, after: int, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "run.pol"
    begun_at(path, WAYS[name], after)
    assert begun_at(path, WAYS[name], None) == after // INTERVAL * INTERVAL  # what was complete is not trained again
    assert contents(path) == contents(undisturbed[name])


def test_a_thinned_recording_keeps_its_newest_state_through_two_kills(
    undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    """Killed after a kept state was indexed and before its line: the state before it is the one to go on from, twice."""
    path, name = tmp_path / "run.pol", "quantised, thinned"
    begun_at(path, WAYS[name], 8 * INTERVAL)
    log = (path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (path / "log.jsonl").write_bytes(b"".join(log[:-1]))
    for _ in range(3):
        assert begun_at(path, WAYS[name], 0) == 7 * INTERVAL
    completes(path, name, undisturbed)


@pytest.mark.parametrize(
    ("codec", "first", "then"),
    [
        pytest.param(codec, first, then, marks=() if codec == "quantised" or (first, then) == (4, 3) else ALIKE)
        for codec in ("raw", "lossless", "quantised")
        for first, then in ((None, 4), (4, None), (4, 3), (3, 4), (1, 5))
    ],
)
def test_it_may_go_on_with_other_states_kept(
    codec: str, first: int | None, then: int | None, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run.pol"
    begun_at(path, {"codec": codec, "keep_every": first}, 7 * INTERVAL + 1)
    assert begun_at(path, {"codec": codec, "keep_every": then}, 9 * INTERVAL) == 7 * INTERVAL
    root = prove(path, {"codec": codec, "keep_every": then})
    proof = Proof.open(path)
    assert (
        root
        == Proof.open(
            undisturbed["quantised" if codec == "quantised" else f"{codec}, thinned" if codec == "raw" else codec]
        ).root
    )
    assert pol.check(path).status == "pass"
    for digest in proof.index:
        assert proof.state(digest).digest() == digest
    assert pol.verify(path, tasks.task(**SETTINGS), everything=True).verdict == "valid"


# ---- errors of the writer beside the loop -----------------------------------------------------------------------


def broken_after(path: Path, step: int, steps: list[int]) -> Any:
    """Take away the folder of the objects once ``step`` is done."""

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training":
            steps.append(done)
            if done == step:
                (path / "objects").rename(path.parent / "aside")
                (path / "objects").write_text("in the way")

    return progress


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param(name, step, marks=() if "thinned" in name or step == INTERVAL else ALIKE)
        for name, way in WAYS.items()
        if way.get("asynchronous")
        for step in (1, INTERVAL, STEPS - INTERVAL, STEPS - 1)
    ],
)
def test_errors_of_the_writer_reach_the_loop(
    name: str, step: int, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    path, steps = tmp_path / "run.pol", list[int]()
    with pytest.raises(RecordingError) as caught:
        prove(path, WAYS[name], broken_after(path, step, steps))
    assert "\n" not in str(caught.value)
    # The next checkpoint fails, and that is said before the one after it is taken, or at the end.
    assert steps[-1] <= min((step // INTERVAL + 2) * INTERVAL + 1, STEPS)
    assert not (path / "seal.json").exists()
    (path / "objects").unlink()
    completes(path, name, undisturbed)


@pytest.mark.timeout(120)
def test_a_state_that_cannot_be_dropped_is_said_in_one_line(undisturbed: dict[str, Path], tmp_path: Path) -> None:
    path, name, aside = tmp_path / "run.pol", "lossless beside, thinned", tmp_path / "aside"
    aside.mkdir()

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training" and done == 4 * INTERVAL + 1:
            for folder in (path / "objects").iterdir():
                folder.rename(aside / folder.name)
                folder.write_text("in the way")

    with pytest.raises(RecordingError, match=r"run\.pol.* cannot be written: (Not a directory|File exists)"):
        prove(path, {**WAYS[name], "asynchronous": False}, progress)
    for folder in aside.iterdir():
        (path / "objects" / folder.name).unlink()
        folder.rename(path / "objects" / folder.name)
    completes(path, name, undisturbed)


FULL_DISK = """
import shutil, sys
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads(1)
import test_resume_codecs
from pathlib import Path
from proof_of_learning.errors import RecordingError
for name in {names!r}:
    disk, failures = Path({disk!r}), []
    ballast = shutil.disk_usage(disk).free - 40_960
    while True:
        (disk / "ballast").write_bytes(bytes(ballast))
        try:
            root = test_resume_codecs.prove(disk / name, test_resume_codecs.WAYS[name])
            break
        except RecordingError as error:
            failures.append(str(error))
            ballast -= 16_384
        finally:
            (disk / "ballast").unlink()
    print(len(failures), all("the disk is full" in f for f in failures), root)
"""


@pytest.mark.timeout(240)
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_space(
    undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    bwrap = shutil.which("bwrap") or "bwrap"
    size = ["--size", str(4 << 20), "--tmpfs", str(tmp_path), "--"]
    command = [bwrap, "--bind", "/", "/", "--dev", "/dev", *size]
    if shutil.which("bwrap") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("bubblewrap is not there to make a small disk")
    names = ["raw beside", "lossless beside, thinned", "quantised"]
    script = FULL_DISK.format(
        tests=[str(folder) for folder in Path(__file__).parents[:2]], disk=str(tmp_path), names=names
    )
    done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        failures, told, root = line.split()
        assert int(failures) >= 1
        assert told == "True"
        assert root == Proof.open(undisturbed[name]).root
