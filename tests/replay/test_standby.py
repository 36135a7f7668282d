"""Workers on standby: the next verification takes processes that were begun when the last one had ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import proof_of_learning as pol
from proof_of_learning import TaskReference
from proof_of_learning.replay import pool as pools
from proof_of_learning.replay import standby
from proof_of_learning.replay.process import WorkerProcess


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
