"""Replaying segments one by one."""

from __future__ import annotations

from pathlib import Path

from proof_of_learning import Proof, Task
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import Replay


def replays_alone(path: Path, task: Task) -> None:
    """Replay every segment, last first, so that nothing of one can help the next; compare bits, losses and rates."""
    proof = Proof.open(path)
    with Replayer(proof, task) as workers:
        for segment in reversed(proof.segments):
            answer = workers.ask(Replay(segment.index))
            columns = proof.columns(segment.index)
            assert answer.arrived == segment.arrived, segment.index
            assert answer.losses == columns.loss.tolist()
            assert answer.rates == columns.rates.tolist()
            assert answer.comparison is None
