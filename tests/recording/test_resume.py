"""Interrupted recordings: whatever stops one, going on ends in the root of an undisturbed run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import proof_of_learning as pol
import tasks
from proof_of_learning.errors import BusyError, FormatError, PolError, RecordingError
from proof_of_learning.proof import files
from proof_of_learning.proof.files import exclusive

STEPS, INTERVAL = 30, 3
SETTINGS: dict[str, Any] = {"steps": STEPS, "net": "dropout", "scheduler": "cosine", "augment": True}


def prove(path: Path, *, seed: int = 0, interval: int = INTERVAL, progress: Any = None, **settings: Any) -> str:
    task = tasks.task(**{**SETTINGS, **settings})
    more = {} if progress is None else {"progress": progress}
    return pol.prove(task, path, interval=interval, seed=seed, evaluations=2, **more).root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("resume") / "undisturbed.pol"
    return path, prove(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def completes(path: Path, undisturbed: tuple[Path, str]) -> None:
    """Going on gives the same root, the same files, and a proof without a flaw."""
    assert prove(path) == undisturbed[1]
    assert contents(path) == contents(undisturbed[0])
    assert pol.check(path).status == "pass"


class Stop(Exception):  # noqa: N818
    pass


def interrupted(path: Path, after: int) -> Path:
    """A recording whose process got an exception after that many steps."""

    def stop(doing: str, done: int, total: int) -> None:
        if doing == "training" and done >= after:
            raise Stop

    with pytest.raises(Stop):
        prove(path, progress=stop)
    return path


def lines(path: Path) -> int:
    try:
        return (path / "log.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


# ---- killed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Child processes that need not import PyTorch again, since they are forked from one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "test_resume"])  # the first is what the first step imports
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2])))
        forkserver.ensure_running()
    return context


def child(path: Path, pause: float) -> None:
    torch.set_num_threads(1)
    tasks.pause = pause
    prove(path)


def started(processes: ForkServerContext, path: Path, pause: float = 0.004) -> ForkServerProcess:
    process = processes.Process(target=child, args=(path, pause))
    process.start()
    return process


def wait_for(condition: Callable[[], bool], process: ForkServerProcess) -> None:
    while process.is_alive() and not condition():
        time.sleep(0.0002)


@pytest.mark.parametrize(
    "times", [8, pytest.param(20, marks=pytest.mark.slow(reason="the same, at more places of a run"))]
)
def test_a_run_killed_again_and_again_ends_in_the_same_root(
    times: int, processes: ForkServerContext, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    path, chance, kills, reached = tmp_path / "run.pol", random.Random(0), 0, []
    while kills < times:
        process = started(processes, path)
        # At first in the very beginning, then further and further, at no particular point of a step.
        target = 0 if kills < 2 else min(lines(path), STEPS // INTERVAL - 2) + chance.randrange(1, 3)
        wait_for(path.exists if kills < 2 else lambda target=target: lines(path) >= target, process)  # type: ignore[misc]
        time.sleep(chance.random() * 0.01)
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0)
        kills += process.exitcode == -9
        reached.append(lines(path))
        if process.exitcode == 0 or lines(path) > STEPS // INTERVAL - 1:  # (nearly) done: on with a new run
            completes(path, undisturbed)
            shutil.rmtree(path)
    assert max(reached) >= 3
    completes(path, undisturbed)


def test_two_processes_do_not_write_into_one_directory(
    processes: ForkServerContext, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.pol"
    process = started(processes, path, pause=0.05)
    wait_for(lambda: lines(path) >= 3, process)
    with pytest.raises(BusyError, match="another process is recording"):
        prove(path)
    assert process.is_alive()
    process.kill()
    process.join()
    completes(path, undisturbed)


@pytest.mark.quick
def test_a_directory_is_locked_before_it_holds_anything(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(BusyError):
        prove(tmp_path)
    assert not list(tmp_path.iterdir())
    prove(tmp_path)


# ---- what a power cut may leave --------------------------------------------------------------------------


def objects(path: Path) -> list[Path]:
    """The objects of a recording, in the order in which they were stored."""
    index = (path / "index.jsonl").read_text().splitlines()
    names = [line.split('"object":"sha256:')[1][:64] for line in index]
    return [path / "objects" / name[:2] / name for name in names]


def cut(name: str, count: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, max(0, (path / name).stat().st_size - count))


def last_line(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        *before, last, _ = (path / name).read_bytes().split(b"\n")
        (path / name).write_bytes(b"\n".join([*before, change(last)]))

    return damage


def removed(files: list[Path]) -> None:
    for file in files:
        file.unlink()


def zeroed(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(bytes(size))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    **{f"log without its last {n} bytes": cut("log.jsonl", n) for n in (1, 2, 100, 500, 1000, 2000)},
    **{f"index without its last {n} bytes": cut("index.jsonl", n) for n in (1, 200, 400)},
    **{f"blocks without their last {n} bytes": cut("blocks.bin", n) for n in (1, 300, 1000)},
    "log torn in the last line": last_line("log.jsonl", lambda raw: raw[: len(raw) // 2]),
    "log with a damaged last line": last_line("log.jsonl", lambda raw: raw[:-9] + b"x" + raw[-8:] + b"\n"),
    "log with zeros at its end": lambda path: (path / "log.jsonl").open("ab").write(bytes(100)),
    "index with zeros at its end": lambda path: (path / "index.jsonl").open("ab").write(bytes(100)),
    "blocks with zeros at their end": lambda path: (path / "blocks.bin").open("ab").write(bytes(9)),
    "an empty log": lambda path: os.truncate(path / "log.jsonl", 0),
    "no log": lambda path: (path / "log.jsonl").unlink(),
    "no blocks": lambda path: (path / "blocks.bin").unlink(),
    "blocks of zeros": lambda path: zeroed(path / "blocks.bin"),
    "no objects": lambda path: shutil.rmtree(path / "objects"),
    "last object missing": lambda path: objects(path)[-1].unlink(),
    "last object empty": lambda path: os.truncate(objects(path)[-1], 0),
    "last object of zeros": lambda path: zeroed(objects(path)[-1]),
    "last two objects missing": lambda path: removed(objects(path)[-2:]),
    "a middle object missing": lambda path: objects(path)[2].unlink(),
    "a middle object torn": lambda path: os.truncate(objects(path)[2], 50),
    "a stray temporary file": lambda path: (path / ".tmp-abc").write_bytes(b"x"),
    "a stray temporary object": lambda path: (objects(path)[0].parent / ".tmp-abc").write_bytes(b"x"),
    "an object that nothing names": lambda path: (objects(path)[0].parent / ("0" * 64)).write_bytes(b"x"),
    "a stray folder": lambda path: (path / "objects" / "zz").mkdir(),
}


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted(tmp_path_factory.mktemp("resume") / "halfway.pol", after=STEPS // 2 + 1)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_end_is_cut_off_and_made_again(
    damage: Callable[[Path], None], halfway: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.pol"
    shutil.copytree(halfway, path)
    damage(path)
    completes(path, undisturbed)


def no_start(path: Path) -> None:
    zeroed(objects(path)[0])
    (path / "blocks.bin").unlink()


LOST: dict[str, Callable[[Path], None]] = {
    "no index": lambda path: (path / "index.jsonl").unlink(),
    "an index of zeros": lambda path: zeroed(path / "index.jsonl"),
    "the first object missing": lambda path: objects(path)[0].unlink(),
    "the first object of zeros, and no blocks": lambda path: no_start(path),
}


@pytest.mark.parametrize("damage", LOST.values(), ids=LOST)
def test_states_are_not_thrown_away_because_the_first_is_lost(
    damage: Callable[[Path], None], halfway: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.pol"
    shutil.copytree(halfway, path)
    damage(path)
    before = contents(path)
    said = f"{STEPS // 2 // INTERVAL} segments .* not even the initial state"
    with pytest.raises(RecordingError, match=said) as caught:
        prove(path)
    assert "\n" not in str(caught.value)
    assert contents(path) == before
    shutil.copytree(halfway, path, dirs_exist_ok=True)  # one of the two ways out that are named
    completes(path, undisturbed)


def opening(name: Callable[[Path], str], number: int) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """The system refuses to open the file of that name."""

    def refuse(patch: pytest.MonkeyPatch, path: Path) -> None:
        refused, plain = name(path), os.open

        def opens(file: Any, *more: Any, **options: Any) -> int:
            if str(file).endswith(refused):
                raise OSError(number, os.strerror(number), file)
            return plain(file, *more, **options)

        patch.setattr(os, "open", opens)

    return refuse


def bad_sector(patch: pytest.MonkeyPatch, path: Path) -> None:
    inode, plain = objects(path)[-1].stat().st_ino, os.preadv

    def reads(descriptor: int, *more: Any) -> int:
        if os.fstat(descriptor).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(descriptor, *more)

    patch.setattr(os, "preadv", reads)


def no_memory(patch: pytest.MonkeyPatch, path: Path) -> None:
    size = objects(path)[-1].stat().st_size

    def allocate(wanted: int) -> bytearray:
        if wanted == size:
            raise MemoryError
        return bytearray(wanted)

    patch.setattr(files, "bytearray", allocate, raising=False)


UNREADABLE: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "header": opening(lambda path: "header.json", errno.EMFILE),
    "log": opening(lambda path: "log.jsonl", errno.EACCES),
    "index": opening(lambda path: "index.jsonl", errno.EIO),
    "blocks": opening(lambda path: "blocks.bin", errno.ESTALE),
    "first object": opening(lambda path: objects(path)[0].name, errno.EMFILE),
    "last object": opening(lambda path: objects(path)[-1].name, errno.ENOMEM),
    "bad sector": bad_sector,
    "no memory": no_memory,
}


@pytest.mark.parametrize("disturb", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_just_now_is_not_taken_for_damaged(
    disturb: Callable[[pytest.MonkeyPatch, Path], None],
    halfway: Path,
    undisturbed: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run.pol"
    shutil.copytree(halfway, path)
    before = contents(path)
    with monkeypatch.context() as patch:
        disturb(patch, path)
        with pytest.raises(RecordingError, match=r"cannot be resumed: .*; nothing was changed, try again") as caught:
            prove(path)
    assert "\n" not in str(caught.value)
    assert contents(path) == before
    completes(path, undisturbed)


def test_it_goes_on_from_where_it_stopped(halfway: Path, tmp_path: Path) -> None:
    path, told = tmp_path / "run.pol", []
    shutil.copytree(halfway, path)
    prove(path, progress=lambda doing, done, total: told.append(done) if doing == "training" else None)
    assert told == list(range(STEPS // 2, STEPS + 1))


@pytest.mark.parametrize("after", [0, 1, INTERVAL, STEPS - 1, STEPS])
def test_an_exception_anywhere_is_as_good_as_a_kill(after: int, undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    completes(interrupted(tmp_path / "run.pol", after), undisturbed)


def test_a_run_that_lacks_only_its_seal_gets_it(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "run.pol"
    shutil.copytree(undisturbed[0], path)
    (path / "seal.json").unlink()
    completes(path, undisturbed)


@pytest.mark.parametrize("left", [(), ("objects/",), (".tmp-x",), ("objects/", ".tmp-x")])
def test_a_directory_abandoned_before_its_header_can_be_used(
    left: tuple[str, ...], undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.pol"
    path.mkdir()
    for name in left:
        (path / name).mkdir() if name.endswith("/") else (path / name).write_bytes(b"torn")
    completes(path, undisturbed)


def test_an_unfinished_proof_is_none(halfway: Path) -> None:
    for judge in (pol.check, pol.verify):
        with pytest.raises(FormatError, match="not finished"):
            judge(halfway)


# ---- other runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, "randomness: there"),
        ({"interval": 5}, "training: there"),
        ({"steps": 40}, "training: there"),
        ({"batch_size": 8}, "task: there"),
        ({"net": "batchnorm"}, "task: there"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_the_directory_of_another_run_is_left_alone(
    changed: dict[str, Any], words: str, finished: bool, halfway: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "run.pol"
    shutil.copytree(undisturbed[0] if finished else halfway, path)
    before = contents(path)
    with pytest.raises(RecordingError, match="another run" if finished else words):
        prove(path, **changed)
    assert contents(path) == before
    completes(path, undisturbed)


def test_a_finished_directory_gives_the_same_recording(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "run.pol"
    shutil.copytree(undisturbed[0], path)
    before = contents(path)
    task = tasks.task(**SETTINGS)
    again = pol.prove(task, path, interval=INTERVAL)
    first = pol.prove(task, tmp_path / "first.pol", interval=INTERVAL)
    assert again.root == undisturbed[1]
    assert again.evaluation == first.evaluation
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name))
    assert contents(path) == before


@pytest.mark.parametrize("kind", ["file", "full folder", "below a file", "header is a folder", "header is a link"])
def test_a_path_that_cannot_be_used_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pol"
    if kind in ("file", "below a file"):
        path.write_text("hello")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    if kind == "header is a folder":
        (path / "header.json").mkdir()
    if kind == "header is a link":
        (path / "header.json").symlink_to(path / "notes.txt")
    before = contents(tmp_path)
    with pytest.raises(PolError) as caught:
        prove(path / "below" if kind == "below a file" else path)
    assert isinstance(caught.value, RecordingError)
    assert str(path) in str(caught.value)
    assert contents(tmp_path) == before


# ---- a full disk ----------------------------------------------------------------------------------------

FULL_DISK = """
import os, sys
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads(1)
import test_resume
from pathlib import Path
from proof_of_learning.errors import RecordingError
disk = Path({disk!r})
failures = []
ballast = (4 << 20) - 40_960
while True:
    # Less and less ballast: the disk fills up at another point of the run each time.
    (disk / "ballast").write_bytes(bytes(ballast))
    try:
        root = test_resume.prove(disk / "run.pol")
        break
    except RecordingError as error:
        failures.append(str(error))
        ballast -= {step}
        (disk / "ballast").unlink()
print(len(failures), all("the disk is full" in f and "free some space" in f for f in failures), root)
"""


@pytest.mark.slow(reason="test_resume_codecs fills a disk too, under three ways to store states")
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_space(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    bwrap = shutil.which("bwrap")
    command = [
        bwrap or "bwrap",
        "--bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--size",
        str(4 << 20),
        "--tmpfs",
        str(tmp_path),
        "--",
    ]
    if bwrap is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("bubblewrap is not there to make a small disk")
    script = FULL_DISK.format(
        tests=[str(folder) for folder in Path(__file__).parents[:2]], disk=str(tmp_path), step=16_384
    )
    done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failures, told, root = done.stdout.split()
    assert int(failures) >= 3
    assert told == "True"
    assert root == undisturbed[1]
