"""Training with untrusted workers, attacked by who did not write it: coordinators who frame, journals that are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import support_rounds
from test_untrusted import OWNER, PLACE, RULES, crowd, dataclasses_replace, key, one_fraud, train

from proof_of_learning import canonical
from proof_of_learning.distributed import events, fraud, journal, messages
from proof_of_learning.distributed.coordinator import Coordinator
from proof_of_learning.distributed.core import Work
from proof_of_learning.distributed.events import Commitment
from proof_of_learning.distributed.examine import examine
from proof_of_learning.distributed.messages import Head, Run
from proof_of_learning.distributed.rounds import Slice, Slices, weights_digest
from proof_of_learning.distributed.workers import Here, Honest
from proof_of_learning.errors import FormatError, IntegrityError

TASK = f"{PLACE}:task"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(crowd("sign-flip", 1, 1, {"rounds": 2}), folder, dataclasses_replace(RULES, rounds=2), rounds=2)
    return folder


def retold(
    folder: Path, change: Callable[[list[events.AnyEvent]], None], run_changes: dict[str, Any] | None = None
) -> Path:
    """Write journal, run and head anew, as a coordinator who lies would."""
    place = folder / "run.json"
    told = canonical.decode(place.read_bytes(), Run, "it")
    found = [event for event, _, _ in journal.read(folder / "journal.jsonl", told.digest())]
    told = msgspec.structs.replace(told, **(run_changes or {}))
    change(found)
    place.write_bytes(canonical.encode(told))
    (folder / "journal.jsonl").unlink()
    made = journal.Journal(folder / "journal.jsonl", told.digest())
    for event in found:
        made.add(event)
    made.close()
    root = next((event.root for event in reversed(found) if isinstance(event, events.Finished)), "")
    (folder / "head.dsse.json").write_bytes(messages.signed(Head(told.digest(), made.head, root), OWNER))
    return folder


# ---- framing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [np.nan, np.inf, 1e38])
def test_bits_of_numbers_that_are_none_prove_no_lie(start: float, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator hands out weights from which nothing finite can be computed. Which NaN comes out depends on the machine's order of
    operands, so that an honest worker's would differ from a checker's."""
    proof, task, worker = one_fraud(run), support_rounds.task(rounds=2), Honest(support_rounds.task(rounds=2), key(7))
    asked = messages.opened(proof.assignment, events.Assignment, OWNER.public, "it")
    weights = np.full(len(proof.start) // 4, start, np.float32)
    mine = msgspec.structs.replace(asked, worker=worker.public.digest, start=weights_digest(weights))
    envelope = messages.signed(mine, OWNER)
    with pytest.raises(FormatError, match="nothing is signed") if not np.isfinite(start) else nullcontext():
        worker.work(envelope, weights.tobytes(), proof.run)
    here = Slices(task, bytes.fromhex(canonical.decode(proof.run, Run, "it").key))
    made = here.compute(asked.round, asked.slot, weights)
    assert np.isnan(made.update).any()
    elsewhere = Slice(
        np.where(np.isnan(made.update), -made.update, made.update), made.loss, made.steps
    )  # the same, other bits
    signed = messages.signed(Commitment(mine.digest(), messages.result_digest(messages.pack(elsewhere)), []), key(7))
    framed = fraud.FraudProof(proof.run, envelope, signed, worker.public, weights.tobytes())
    assert not fraud.check(framed, task, OWNER.public).proven


class Framing(Coordinator):
    """Says of one worker's slice that its replay gave something else."""

    victim = ""

    def _replay(self, work: Work) -> None:
        if work.assignment.worker == self.victim:
            self._event(events.Replayed(work.name, "sha256:" + "0" * 64, list(work.steps)))
        else:
            super()._replay(work)


def test_a_ban_does_not_rest_on_a_lie_of_another_run(run: Path, tmp_path: Path) -> None:
    """Who lied once is banned again, by the old proof, where they told the truth."""
    task, folder = support_rounds.task(rounds=2), tmp_path / "run"
    liar = crowd("sign-flip", 1, 0)[0]
    reformed = Honest(task, liar.key)  # type: ignore[attr-defined]
    shutil.copytree(run / "fraud", folder / "fraud")
    transport = Here([reformed, Honest(task, key(1))])
    made = Framing(task, dataclasses_replace(RULES, rounds=2), OWNER, transport, folder)
    made.victim = liar.public.digest
    assert len(made.run().book.bans) == 1
    seen = examine(folder, task, OWNER.public)
    assert not seen.holds
    assert "another slice" in seen.problems[0]


# ---- folders that are no runs -----------------------------------------------------------------------------------


def first(found: list[events.AnyEvent], kind: type[Any], **changes: Any) -> None:
    place = next(i for i, event in enumerate(found) if isinstance(event, kind))
    found[place] = msgspec.structs.replace(found[place], **changes)


@pytest.mark.parametrize(
    ("change", "rules", "agreed"),
    [
        (lambda found: first(found, events.Drawn, link="zz"), {}, {}),
        (lambda found: first(found, events.Drawn, link="0" * 63), {}, {}),
        (lambda found: first(found, events.Opened, round=-1), {}, {}),
        (lambda found: first(found, events.Opened, round=2**52), {}, {}),
        (lambda found: first(found, events.Joined, worker=""), {}, {}),
        (lambda found: first(found, events.Replayed, assignment=""), {}, {}),
        (lambda found: None, {"slots": 2**50}, {}),
        (lambda found: None, {"slots": 3}, {}),
        (lambda found: None, {"slots": -1}, {}),
        (lambda found: None, {"rounds": 2**50}, {}),
        (lambda found: None, {"finality": -(2**40)}, {}),
        (lambda found: None, {}, {"key": "zz"}),
        (lambda found: None, {}, {"key": ""}),
        (lambda found: None, {}, {"anchor": "zz"}),
        (lambda found: None, {}, {"arithmetic": "other"}),
        (lambda found: None, {}, {"coordinator": "zz"}),
    ],
)  # fmt: skip
def test_a_run_that_makes_no_sense_is_refused_in_one_line(
    change: Any, rules: dict[str, Any], agreed: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    told = canonical.decode((run / "run.json").read_bytes(), Run, "it")
    agreed = {**agreed, "rules": msgspec.structs.replace(told.rules, **rules)}
    with pytest.raises((FormatError, IntegrityError)) as caught:
        examine(retold(tmp_path / "run", change, agreed), support_rounds.task(rounds=2), OWNER.public)
    assert "\n" not in str(caught.value)
