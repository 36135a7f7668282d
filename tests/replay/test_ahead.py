"""Replays that are begun before they are asked for: a verdict is the same with and without them."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import proof_of_learning as pol
import support_hidden
from proof_of_learning import Proof, TaskReference
from proof_of_learning.replay.process import WorkerProcess
from proof_of_learning.replay.protocol import Probe, Take
from proof_of_learning.replay.replayer import Replayer

HERE = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = {"nonce": "05", "accept_nonce": True, "random": 6, "top_q": 1, "sandbox": "off"}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskReference]:
    task = TaskReference(f"{HERE}/tasks.py:task", {"steps": 24})
    return Path(pol.prove(task, tmp_path_factory.mktemp("ahead") / "run.pol", interval=1, codec="lossless")), task


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What workers were asked, and whether in the verifier's main thread."""
    told, ask = list[tuple[str, bool]](), WorkerProcess.ask

    def noted(worker: WorkerProcess, request: Any, *more: Any) -> Any:
        told.append((type(request).__name__, threading.current_thread() is threading.main_thread()))
        return ask(worker, request, *more)

    monkeypatch.setattr(WorkerProcess, "ask", noted)
    return told


def told(verdict: pol.Verdict) -> Any:
    """All of a verdict but times."""
    return verdict.verdict, verdict.reason, verdict.segments, verdict.cost.steps_replayed


def test_the_first_steps_are_taken_while_states_are_looked_at(
    honest: tuple[Path, TaskReference], asked: list[tuple[str, bool]]
) -> None:
    path, task = honest
    assert pol.verify(path, task, **OPTIONS).verdict == "valid"
    takes = [main for name, main in asked if name == Take.__name__]
    assert not all(takes)  # some were begun beside
    assert asked.index((Take.__name__, False)) < max(n for n, (name, _) in enumerate(asked) if name == Probe.__name__)


@pytest.mark.parametrize("kind", ["", "model"], ids=["valid", "invalid"])
@pytest.mark.parametrize("keep_going", [False, True])
def test_a_verdict_is_the_same_with_and_without(
    kind: str, keep_going: bool, honest: tuple[Path, TaskReference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = honest
    if kind:  # of which segments but the first do not replay: one is named, and those behind it are left
        task = TaskReference(f"{HERE}/support_hidden.py:task", {"kind": kind})
        path = Path(pol.prove(task, tmp_path / "run.pol", interval=support_hidden.INTERVAL).path)
    beside = pol.verify(path, task, keep_going=keep_going, **OPTIONS)
    monkeypatch.setattr(Replayer, "ahead", lambda *given: None)
    assert told(beside) == told(pol.verify(path, task, keep_going=keep_going, **OPTIONS))
    assert beside.verdict == ("invalid" if kind else "valid")
    statuses = {segment.status for segment in beside.segments}
    assert statuses == ({"pass"} if not kind else {"pass", "fail"} | (set() if keep_going else {"skipped"}))


def test_a_segment_that_ends_its_worker_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TaskReference(f"{HERE}/support_hidden.py:ending")
    path = pol.prove(task, tmp_path / "run.pol", interval=support_hidden.INTERVAL)
    monkeypatch.setenv("POL_TEST_ENDING", "1")
    options = {**OPTIONS, "everything": True, "keep_going": True}
    beside = pol.verify(path, task, **options)
    monkeypatch.setattr(Replayer, "ahead", lambda *given: None)
    assert told(beside) == told(pol.verify(path, task, **options))
    assert "ended unexpectedly" in " ".join(segment.note for segment in beside.segments)


def test_states_are_read_by_several_threads_at_once(honest: tuple[Path, TaskReference]) -> None:
    path, _ = honest
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    proof, alone = Proof.open(path), Proof.open(path)
    digests = proof.state_digests()
    for digest in digests:
        alone.state(digest)
    faults = list[BaseException]()

    def read(order: list[str]) -> None:
        try:
            for digest in order:
                assert proof.state(digest).digest() == digest
        except BaseException as error:
            faults.append(error)

    threads = [
        threading.Thread(target=read, args=(order,)) for order in (digests * 3, digests[::-1] * 3, digests[::2] * 5)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(often)
    assert not faults
    assert [proof.weight(digest) for digest in digests] == [alone.weight(digest) for digest in digests]
