"""Recording to a store: two that do it, copies that are cut short, and stores that hang."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from proof_of_learning import TaskReference
from proof_of_learning.cli.main import app
from proof_of_learning.errors import BusyError, FormatError, RecordingError
from proof_of_learning.proof import remote
from support_proofs import contents, recorded
from support_remote import Stop, copied, spools, stopping, upload, watch

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(recorded(tmp_path_factory.mktemp("remote") / "run.pol").path)


def test_nobody_else_records_to_an_address_until_all_is_copied(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, tried = "memory://runs/run.pol", list[str]()

    def again(path: str) -> None:
        if path.endswith("seal.json") and not tried:
            tried.append(path)
            with pytest.raises(BusyError, match=f"recording into {address};"):
                recorded(address)

    watch(monkeypatch, "pipe_file", again)
    recorded(address)
    assert tried
    assert copied(address, tmp_path) == contents(local)


@pytest.mark.parametrize("when", ["blocks.bin", "seal.json"])
def test_what_vanishes_here_is_not_removed_there(
    when: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "memory://runs/run.pol"

    def vanish(path: str) -> None:
        for folder in spools(tmp_path):
            if path.endswith(when) and (folder / "seal.json").exists():
                shutil.rmtree(folder)

    monkeypatch.setattr(remote, "EVERY", 1e9)  # all is left for the end
    watch(monkeypatch, "pipe_file", vanish)
    if when == "seal.json":  # the last to be copied
        recorded(address)
        assert copied(address, tmp_path) == contents(local)
        return
    with pytest.raises(RecordingError, match=r"log\.jsonl is gone"):
        recorded(address)
    there = copied(address, tmp_path)
    assert {name for name in contents(local) if name.startswith("objects/")} <= there.keys()
    assert "seal.json" not in there


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_further_in_the_store_is_gone_on_with(
    finished: bool, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, begun = "memory://runs/run.pol", list[int]()
    with pytest.raises(Stop):
        recorded(address, progress=stopping(3))
    with monkeypatch.context() as another_machine:
        another_machine.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        if finished:
            [stale] = spools(tmp_path)
            with (stale / "log.jsonl").open("ab") as log:
                log.write(bytes(1 << 16))  # as a power cut may leave it: longer, and of no use
            recorded(address)
        else:
            with pytest.raises(Stop):
                recorded(address, progress=stopping(15))
    recorded(address, progress=lambda doing, done, total: begun.append(done) if doing == "training" else None)
    assert begun == [] if finished else begun[0] > 2
    assert copied(address, tmp_path) == contents(local)


def test_what_is_further_here_is_gone_on_with(local: Path, tmp_path: Path) -> None:
    address, begun = "memory://runs/run.pol", list[int]()
    with pytest.raises(Stop):
        recorded(address, progress=stopping(3))
    there = copied(address, tmp_path)
    with pytest.raises(Stop):
        recorded(address, progress=stopping(15))
    system, root = fsspec.core.url_to_fs(address)
    for name, raw in there.items():
        system.pipe_file(f"{root}/{name}", raw)
    recorded(address, progress=lambda doing, done, total: begun.append(done) if doing == "training" else None)
    assert begun[0] == 14
    assert copied(address, tmp_path) == contents(local)


def test_what_a_kill_leaves_of_a_copy_is_not_in_the_way(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "memory://runs/run.pol"
    upload(local, address)

    def fail(path: str, **options: Any) -> None:
        if path.endswith("index.jsonl"):
            raise OSError("the store is on fire")

    with monkeypatch.context() as patch:
        watch(patch, "cat_file", fail)
        with pytest.raises(FormatError, match="on fire"):
            recorded(address)
    for folder in [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()]:
        (folder / ".tmp-abc").write_bytes(b"torn")
    recorded(address)
    assert copied(address, tmp_path) == contents(local)


def test_what_a_kill_leaves_of_a_finished_recording_is_not_taken_for_one(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "memory://runs/run.pol"

    def killed(folder: Path) -> None:
        (folder / "log.jsonl").unlink()
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Stop):
            recorded(address)
    assert spools(tmp_path)
    recorded(address)
    assert copied(address, tmp_path) == contents(local)
    assert not spools(tmp_path)


def test_a_store_that_hangs_holds_nothing_up(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, trained, waits = "memory://runs/run.pol", threading.Event(), list[bool]()
    watch(monkeypatch, "pipe_file", lambda path: waits.append(trained.wait(10 if all(waits) else 0)))
    recorded(address, progress=lambda doing, done, total: trained.set() if (doing, done) == ("training", 24) else None)
    assert waits and all(waits)
    assert copied(address, tmp_path) == contents(local)


def test_why_nothing_is_copied_is_said_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    address, reason = "memory://runs/run.pol", ["on fire"]

    def fail(path: str) -> None:
        if reason[0]:
            raise OSError(f"the store is {reason[0]}")

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training":
            time.sleep(0.03)  # several copies are tried in each state of the store
            reason[0] = "on fire" if done < 8 else "" if done < 16 else "under water"

    watch(monkeypatch, "pipe_file", fail)
    with pytest.warns(RuntimeWarning) as told, pytest.raises(RecordingError, match="under water"):
        recorded(address, progress=progress)
    texts = [str(warning.message) for warning in told if address in str(warning.message)]
    assert [text.split(": ")[1].split("; ")[0] for text in texts] == [
        "the store is on fire",
        "the store is under water",
    ]
    assert all(text.startswith(f"{address}/") and " cannot be written: " in text for text in texts)
    assert all("copying is tried again" in text and "\n" not in text for text in texts)


def test_the_command_warns_in_one_line(tiny: TaskReference, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise OSError("the store is on fire")

    watch(monkeypatch, "pipe_file", fail)
    address = "memory://runs/run.pol"
    done = CliRunner().invoke(app, ["prove", tiny.target, "-o", address, "-k", "2", "--set", "steps=400"])
    warned, ended = done.stderr.splitlines()
    assert done.exit_code == 2
    assert warned.startswith(f"pol: warning: {address}/") and "copying is tried again" in warned
    assert ended.startswith("pol: ") and "the store is on fire" in ended
