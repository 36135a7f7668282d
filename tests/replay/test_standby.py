"""Workers on standby: the next verification takes processes that were begun when the last one had ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import proof_of_learning as pol
from proof_of_learning import TaskReference
from proof_of_learning.numeric import environment as environments
from proof_of_learning.replay import pool as pools
from proof_of_learning.replay import standby
from proof_of_learning.replay.process import WorkerProcess
from proof_of_learning.replay.sandbox import Sandbox, find
from proof_of_learning.replay.standby import Standby


def test_who_verifies_many_proofs_finds_workers_that_are_there(
    tiny: TaskReference, tiny_proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, list[WorkerProcess]] = {"asked for": [], "ahead": []}

    def noting(why: str) -> Any:
        def start(*given: Any, **named: Any) -> WorkerProcess:
            begun[why].append(WorkerProcess(*given, **named))
            return begun[why][-1]

        return start

    monkeypatch.setattr(pools, "WorkerProcess", noting("asked for"))
    monkeypatch.setattr(standby, "WorkerProcess", noting("ahead"))
    verdicts = []
    with pol.standby() as ready:
        for _ in range(2):
            verdicts.append(pol.verify(tiny_proof, tiny, nonce="0a" * 32, pool=ready))
            assert len(begun["asked for"]) == 2  # one that takes steps, one that looks at states; then none any more
        later = pol.verify(tiny_proof, tiny, nonce="0a" * 32, pool=ready, timeout=77.0)
        assert (
            later.check("trajectory").status == "pass" and len(begun["asked for"]) == 4
        )  # they wait for the same options alone
    assert [v.check("trajectory").status for v in verdicts] == ["pass", "pass"]
    assert [s.index for s in verdicts[0].segments] == [s.index for s in verdicts[1].segments]
    assert all(worker._process.poll() is not None for worker in (*begun["asked for"], *begun["ahead"]))


def test_a_worker_that_would_now_be_begun_otherwise_is_not_taken(
    tiny: TaskReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, name = environments.current(), ("taking", 0)
    shown = tmp_path / "task"
    shown.mkdir()
    sandboxes: list[Sandbox | None] = [None]
    if find()[0] is not None:
        sandboxes.append(Sandbox(str(find()[0]), folders=(shown,)))

    def waits(ready: Standby, sandbox: Sandbox | None) -> bool:
        process = ready.take(name, environment, sandbox, 60.0)
        if process is not None:
            process.close()
        ready.ended()
        for item in ready._waiting:
            item.process.result()  # begun as things are now
        return process is not None

    for sandbox in sandboxes:
        ready = Standby(1)
        try:
            assert not waits(ready, sandbox) and waits(ready, sandbox)
            if sandbox is not None:
                (shown / ".env").write_text("secret")  # which a fresh one would not see
                assert not waits(ready, sandbox) and waits(ready, sandbox)
            with monkeypatch.context() as changed:
                changed.setenv("POL_DATA", str(tmp_path))
                assert not waits(ready, sandbox) and waits(ready, sandbox)
                changed.chdir(tmp_path)  # a task that is named by a relative path is another one from here
                assert not waits(ready, sandbox) and waits(ready, sandbox)
        finally:
            ready.close()
        assert not ready._waiting
        ready.ended()  # a verification that ends later begins nothing
        assert not ready._waiting
