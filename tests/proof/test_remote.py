"""Proofs in a store: recorded to, read from, gone on with; and a store that is not there, lies, or holds something else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

import proof_of_learning as pol
import tasks
from proof_of_learning import limits
from proof_of_learning.cli.main import app
from proof_of_learning.errors import FormatError, PolError, RecordingError, UsageError
from proof_of_learning.proof import remote
from support_proofs import contents, recorded
from support_remote import Stop, copied, spools, stopping, upload, watch

BUCKET = "proofs"
NOBODY = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1",
          "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}  # fmt: skip


pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(recorded(tmp_path_factory.mktemp("remote") / "run.pol").path)


# ---- a real server -------------------------------------------------------------------------------------------


class Server:
    """An S3 server of moto's in a process of its own, which can be taken away and brought back empty."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from moto.server import main; main(sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **NOBODY},
        )  # fmt: skip
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT"), timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    pytest.importorskip("s3fs")
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The user's configuration: the variables that every S3 client knows."""
    for name, value in {**NOBODY, "AWS_ENDPOINT_URL": running.url}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return running


def test_a_proof_in_s3_is_recorded_checked_and_verified(server: Server, local: Path, tmp_path: Path) -> None:
    address = f"s3://{BUCKET}/there/run.pol"
    made = recorded(address)
    assert made.path == address
    assert copied(address, tmp_path) == contents(local)
    assert not spools(tmp_path)
    assert pol.check(address).status == "pass"
    verdict = pol.verify(address, tasks.task(), random=2)
    assert (verdict.verdict, verdict.proof.root) == ("valid", made.root)
    for command in ("check", "inspect"):
        result = CliRunner().invoke(app, [command, address])
        assert result.exit_code == 0, result.output
    assert recorded(address).root == made.root  # finished already
    assert copied(address, tmp_path) == contents(local)


def test_a_recording_goes_on_from_the_store_alone(server: Server, local: Path, tmp_path: Path) -> None:
    address = f"s3://{BUCKET}/broken/run.pol"

    def stop(doing: str, done: int, total: int) -> None:
        if doing == "training":
            time.sleep(0.3)  # training waits for no copy
            if copied(address, tmp_path).get("log.jsonl", b"").count(b"\n") > 4:
                raise Stop

    with pytest.raises(Stop):
        recorded(address, progress=stop)
    with pytest.raises(FormatError, match="not finished"):
        pol.check(address)
    shutil.rmtree(tmp_path / "cache")
    begun: list[int] = []
    recorded(address, progress=lambda doing, done, total: begun.append(done) if doing == "training" else None)
    assert begun[0] > 4  # not from the beginning
    assert copied(address, tmp_path) == contents(local)


@pytest.mark.parametrize("problem", ["no bucket", "no server", "another's bucket"])
def test_a_store_that_does_not_answer_is_said_at_once(
    problem: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{BUCKET if problem == 'no server' else 'elsewhere'}/run.pol"
    if problem == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(FormatError) as caught:
        pol.check(address)
    assert "\n" not in str(caught.value)
    result = CliRunner().invoke(app, ["check", address])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.*copying is tried again")
def test_a_server_that_goes_away_holds_nothing_up(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server, address = Server(), f"s3://{BUCKET}/run.pol"
    server.start()
    for name, value in {**NOBODY, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    done: list[int] = []

    def progress(doing: str, step: int, total: int) -> None:
        done.extend([step] if doing == "training" else [])
        if step == 11 and doing == "training":
            server.stop()

    try:
        with pytest.raises(RecordingError, match="run the same command again") as caught:
            recorded(address, progress=progress)
        assert done[-1] == 24 and "\n" not in str(caught.value)  # training went on to its end
        [spool] = spools(tmp_path)
        assert contents(spool) == contents(local)
        server.start()  # empty
        done.clear()
        recorded(address, progress=progress)
        assert done == []  # nothing is trained again
        assert copied(address, tmp_path) == contents(local)
        assert not spools(tmp_path)
    finally:
        server.stop()


# ---- any store ---------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("options", [{"keep_every": 5}, {"codec": "quantised", "asynchronous": True}])
def test_what_is_in_the_store_is_what_would_be_here(options: dict[str, Any], tmp_path: Path) -> None:
    recorded(tmp_path / "here.pol", **options)
    recorded("memory://runs/run.pol", **options)
    assert copied("memory://runs/run.pol", tmp_path) == contents(tmp_path / "here.pol")


WAYS: list[dict[str, Any]] = [{}, {"keep_every": 5}, {"codec": "lossless", "keep_every": 3, "asynchronous": True}]
FEWER = pytest.mark.slow(reason="the whole and the thinned recording are ended once, the last one everywhere")


@pytest.mark.parametrize(
    ("options", "after"),
    [
        pytest.param(way, after, marks=() if "codec" in way or after == 14 else FEWER)
        for way in WAYS
        for after in (0, 1, 9, 14, 23)
    ],
)
def test_an_interrupted_recording_goes_on_elsewhere(options: dict[str, Any], after: int, tmp_path: Path) -> None:
    address = "memory://runs/run.pol"
    with pytest.raises(Stop):
        recorded(address, progress=stopping(after), **options)
    shutil.rmtree(tmp_path / "cache")
    recorded(address, **options)
    recorded(tmp_path / "here.pol", **options)
    assert copied(address, tmp_path) == contents(tmp_path / "here.pol")


def test_another_run_in_the_store_is_left_alone(local: Path, tmp_path: Path) -> None:
    address = "memory://runs/run.pol"
    recorded(address)
    before = copied(address, tmp_path)
    with pytest.raises(RecordingError, match="another run"):
        recorded(address, seed=1)
    assert copied(address, tmp_path) == before
    recorded("memory://runs/other.pol", seed=1)
    with pytest.raises(Stop):
        recorded("memory://runs/third.pol", seed=1, progress=stopping(5))
    upload(local, "memory://runs/third.pol")  # meanwhile somebody else's run is there
    before = copied("memory://runs/third.pol", tmp_path)
    with pytest.raises(RecordingError, match="another run"):
        recorded("memory://runs/third.pol", seed=1)
    assert copied("memory://runs/third.pol", tmp_path) == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "data/thesis.pdf", "objects/zz", "objects/ab/notes.txt", "run.pol/header.json"]
)
@pytest.mark.parametrize("with_proof", [False, True])
def test_what_else_lies_there_is_never_touched(name: str, with_proof: bool, local: Path, tmp_path: Path) -> None:
    """Recording to the address of a folder that is in use must not tidy it up."""
    address = "memory://runs/mine"
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/runs/mine/{name}", b"precious")
    if with_proof:
        upload(local, address)
    before = copied(address, tmp_path)
    for judge in (recorded, pol.check):
        with pytest.raises(PolError, match="which no proof does"):
            judge(address)
    assert copied(address, tmp_path) == before


# ---- stores that lie ----------------------------------------------------------------------------------------------


def test_files_are_fetched_in_pieces(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    upload(local, "memory://runs/run.pol")
    monkeypatch.setattr(remote, "PIECE", 1000)
    watch(monkeypatch, "cat_file", lambda path, start, end: asked.append(end - start))
    assert pol.check("memory://runs/run.pol").status == "pass"
    assert max(asked) <= 1001
    assert sum(asked) - len(contents(local)) == sum(map(len, contents(local).values()))


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("header.json", limits.MAX_HEADER),
        ("index.jsonl", limits.MAX_LOG),
        ("log.jsonl", limits.MAX_LOG),
        ("seal.json", limits.MAX_SEAL),
    ],
)
def test_a_size_that_no_proof_has_is_refused_unread(
    name: str, limit: int, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(local, "memory://runs/run.pol")
    plain = MemoryFileSystem.find

    def find(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        found = plain(self, path, **options)
        found[f"{path}/{name}"]["size"] = limit + 1
        return found

    monkeypatch.setattr(MemoryFileSystem, "find", find)
    watch(monkeypatch, "cat_file", lambda path, **options: pytest.fail("it was read"))
    with pytest.raises(FormatError, match=f"{name}: the store announced {limit + 1:,} bytes, which no proof has"):
        pol.check("memory://runs/run.pol")


class Liar(MemoryFileSystem):
    """A store that announces other sizes than it sends, fails, or sends something else."""

    protocol = "liar"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    lie: str = ""

    def find(self, path: str, *more: Any, **options: Any) -> Any:
        found = super().find(path, *more, **options)
        if options.get("detail"):
            for name, entry in found.items():
                if name.endswith("log.jsonl"):
                    entry["size"] += {"more": 1, "less": -1, "huge": 1 << 60}.get(self.lie, 0)
                if self.lie == "no size":
                    entry["size"] = None
                if self.lie == "negative":
                    entry["size"] = -5
        if self.lie == "a way out" and options.get("detail"):
            found[f"{path}/../../evil"] = {"size": 4}
        if self.lie == "another root" and options.get("detail"):
            found["/etc/passwd"] = {"size": 4}
        if self.lie == "nonsense":
            return "nonsense"
        return found

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        if self.lie == "fails":
            raise OSError("the store is on fire\nand says so in two lines")
        if self.lie == "text":
            return "text"
        raw = super().cat_file(path, start, end, **options)
        return raw[: len(raw) // 2] if self.lie == "half" else bytes(len(raw)) if self.lie == "zeros" else raw


@pytest.mark.parametrize(
    "lie",
    [
        "more",
        "less",
        "huge",
        "no size",
        "negative",
        "a way out",
        "another root",
        "nonsense",
        "fails",
        "half",
        "zeros",
        "text",
    ],
)
def test_a_store_is_believed_no_more_than_a_proof(lie: str, local: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("liar", Liar, clobber=True)
    Liar.lie = ""
    upload(local, "liar://runs/run.pol")
    assert pol.check("liar://runs/run.pol").status == "pass"
    Liar.lie = lie
    for judge in (pol.check, pol.verify):
        with pytest.raises(FormatError) as caught:
            judge("liar://runs/run.pol")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("address", "kind"),
    [("memory://runs/none.pol", FormatError), ("nosuch://x/y", UsageError), ("http://", FormatError)],
)
def test_addresses_that_lead_nowhere(address: str, kind: type[PolError]) -> None:
    with pytest.raises(kind) as caught:
        pol.check(address)
    assert "\n" not in str(caught.value)
