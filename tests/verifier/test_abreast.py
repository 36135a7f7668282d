"""States read by several processes at once: the same survey, the same faults, whatever happens to a process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proof_of_learning import prove
from proof_of_learning.errors import FormatError, IntegrityError, PolError
from proof_of_learning.proof.reader import Proof, object_path
from proof_of_learning.replay import fork
from proof_of_learning.state.state import State
from proof_of_learning.task import TaskReference
from proof_of_learning.verifier import abreast
from proof_of_learning.verifier.readings import Reader
from proof_of_learning.verifier.survey import Survey, survey
from support_forging import rewrite


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with two cores, in short rows."""
    monkeypatch.setattr(fork, "cores", lambda: 2)
    monkeypatch.setattr(abreast, "STRETCH", 2)


@pytest.fixture(scope="module", params=["raw", "lossless"])
def proof(request: pytest.FixtureRequest, tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("abreast") / "run.pol"
    prove(tiny, path, interval=1, codec=request.param, rehearse=False)
    return path


@pytest.fixture
def damaged(proof: Path, tmp_path: Path) -> Path:
    """The proof with one byte of its fourteenth state turned."""
    path = tmp_path / "damaged.pol"
    shutil.copytree(proof, path)
    opened = Proof.open(path)
    target = object_path(path, opened.index[opened.state_digests()[13]].object)
    raw = bytearray(target.read_bytes())
    raw[-1] ^= 1
    target.write_bytes(raw)
    return path


def told(found: Survey) -> dict[str, Any]:
    """What a survey found, to the bit."""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return {name: v.tobytes() if isinstance(v, np.ndarray) else repr(v) for name, v in values.items()}


def fault(path: Path, processes: int) -> str:
    with pytest.raises(PolError) as caught:
        survey(Proof.open(path), processes=processes)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.quick
def test_two_processes_find_what_one_finds(proof: Path) -> None:
    assert told(survey(Proof.open(proof), processes=2)) == told(survey(Proof.open(proof)))


def test_both_processes_read(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: list[int] = []
    read = Reader.read

    def noted(reader: Reader, position: int, before: Any) -> Any:
        own.append(position)
        return read(reader, position, before)

    monkeypatch.setattr(Reader, "read", noted)
    survey(Proof.open(proof), processes=2)
    assert own == []  # in this process, behind the first state


def test_a_damaged_state_is_named_as_by_one_process(damaged: Path) -> None:
    alone = fault(damaged, 1)
    assert "IntegrityError" in alone and fault(damaged, 2) == alone


def test_a_process_that_is_killed_leaves_no_gap(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = told(survey(Proof.open(proof)))
    read = Reader.read

    def killed(reader: Reader, position: int, before: Any) -> Any:
        if position == 12 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, position, before)

    parent = os.getpid()
    monkeypatch.setattr(Reader, "read", killed)
    assert told(survey(Proof.open(proof), processes=2)) == alone


def test_states_have_no_more_room_than_for_one_process(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each process would still take is too much for all of them together."""
    if Proof.open(proof).header.codec.name == "raw":
        return  # which takes none
    taken = sum(_weights(proof))

    def opened() -> Proof:
        found = Proof.open(proof)
        found._memory.room.left = int(taken * 0.8)
        return found

    messages = []
    for processes in (1, 2):
        with pytest.raises(FormatError, match="bomb") as caught:
            survey(opened(), processes=processes)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def _weights(path: Path) -> list[int]:
    proof = Proof.open(path)
    survey(proof)
    return [proof.weight(digest) for digest in proof.state_digests()]


def test_a_false_displacement_is_found(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Proof.open(proof)
    claimed = opened.segments[9].displacement
    opened.segments[9] = _with(opened.segments[9], displacement=_with(claimed, state=claimed.state * 1.01))
    with pytest.raises(IntegrityError, match="segment 9 claims a displacement"):
        survey(opened, processes=2)


def _with(struct: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(struct, **changes)


def test_rows_begin_behind_states_that_stand_for_themselves(proof: Path) -> None:
    opened = Proof.open(proof)
    reader = Reader(opened, opened.state_digests(), None, None, [], None, frozenset())
    rows = abreast.stretches(reader)
    assert [position for row in rows for position in row] == list(range(1, len(reader.digests)))
    assert len(rows) > 1
    for row in rows[1:]:
        assert opened.index[reader.digests[row.start - 1]].base is None


def _bare(node: Any) -> Any:
    """A tree without its tensors."""
    if not isinstance(node, dict) or set(node) not in ({"d"}, {"c"}):
        return node
    ((tag, body),) = node.items()
    return {tag: [[key, _bare(below)] for key, below in body if not (isinstance(below, dict) and "t" in below)]}


def test_a_state_without_tensors_is_read_as_by_one_process(proof: Path, tmp_path: Path) -> None:
    """Two of them, in rows of different processes, with another order of tensors behind."""

    def changed(states: list[State]) -> list[State]:
        for position in (5, 8, 15):
            states[position] = State(_bare(states[position].tree), {})
        for position in (6, 16):
            states[position] = State(states[position].tree, dict(reversed(states[position].tensors.items())))
        return states

    forged = rewrite(proof, tmp_path / "forged.pol", states=changed)
    alone = survey(Proof.open(forged), processes=1)
    assert told(survey(Proof.open(forged), processes=2)) == told(alone)


def test_what_cannot_be_read_of_a_process_is_read_here(proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = told(survey(Proof.open(proof)))
    sent = abreast._told

    def lying(reader: Reader, reading: Any, layouts: dict[Any, int]) -> Any:
        return _with(sent(reader, reading, layouts), **({"layout": 7} if reading.position == 9 else {}))

    monkeypatch.setattr(abreast, "_told", lying)
    opened = Proof.open(proof)
    assert told(survey(opened, processes=2)) == alone
    assert [opened.weight(digest) for digest in opened.state_digests()] == _weights(proof)
