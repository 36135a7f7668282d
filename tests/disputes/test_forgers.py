"""Forgers who hold the final weights and the data, and trained nothing: they answer, and open whatever is drawn."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import support_opening
from proof_of_learning import TaskReference, prove
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.proof.reader import Proof
from proof_of_learning.state.names import is_weight
from proof_of_learning.state.state import State
from support_opening import INTERVAL, STEPS

JUMP = 30


def stolen(folder: Path, task: TaskReference) -> tuple[State, dict[str, Any]]:
    """The start of the run, and the weights in which somebody else's ends."""
    prove(task, folder / "victim.pol", interval=INTERVAL, rehearse=False)
    proof = Proof.open(folder / "victim.pol")
    last = proof.state(proof.segments[-1].state)
    return proof.state(proof.initial_state), {name: t for name, t in last.tensors.items() if is_weight(name)}


def between(start: State, end: dict[str, Any], share: float) -> State:
    return State(
        start.tree, {name: t + share * (end[name] - t) if name in end else t for name, t in start.tensors.items()}
    )


def straight(folder: Path, task: TaskReference) -> Path:
    """From the start straight to the stolen weights."""
    start, end = stolen(folder, task)
    forge_proof(folder / "run.pol", task, [between(start, end, i / STEPS) for i in range(STEPS + 1)], None, interval=1)
    return folder / "run.pol"


def jump(folder: Path, task: TaskReference) -> Path:
    """All of it in one segment."""
    start, end = stolen(folder, task)
    forge_proof(
        folder / "run.pol", task, [between(start, end, float(i > JUMP)) for i in range(STEPS + 1)], None, interval=1
    )
    return folder / "run.pol"


class Liar(Proof):
    """Answers for the states around the jump as if they went there step by step."""

    around = 5

    def state(self, digest: str, *, surveyed: bool = False) -> State:
        digests = self.state_digests()
        position = digests.index(digest)
        own = super().state(digest, surveyed=surveyed)
        if not JUMP - self.around < position <= JUMP + self.around:
            return own
        last = super().state(digests[-1])
        end = {name: tensor for name, tensor in last.tensors.items() if is_weight(name)}
        start = super().state(digests[0])
        share = (position - JUMP + self.around) / (2 * self.around)
        there = between(start, end, share).tensors
        return State(own.tree, {name: there[name] if name in end else t for name, t in own.tensors.items()})


def lying(proof: Proof) -> Proof:
    return Liar(*(getattr(proof, field.name) for field in fields(Proof)))


LIKE = pytest.mark.slow(reason="a line to the target is found as a jump to it is")


@pytest.mark.parametrize(
    ("make", "answered"),
    [pytest.param(straight, None, marks=LIKE), (jump, None), (jump, lying)],
    ids=["straight", "jump", "liar"],
)
def test_who_trained_nothing_is_found_out(make: Any, answered: Any, tmp_path: Path) -> None:
    table = support_opening.build(tmp_path / "table", make, 12, answered)
    verdict = table.verify()
    assert verdict.verdict == "invalid", verdict.reason
    assert "not the one that was answered for" in verdict.reason or verdict.check("trajectory").status == "fail" or (
        verdict.check("hyperparameters").status == "fail"
    )  # fmt: skip


def test_a_jump_is_drawn_wherever_it_is(tmp_path: Path) -> None:
    """All of the progress is in one segment, so that even the smallest budget has it opened."""
    table = support_opening.build(tmp_path / "table", jump, 2)
    assert JUMP in [index for index, _ in table.second.segments]
