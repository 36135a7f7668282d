"""Workers that nobody vouches for: who answers falsely is found and named, an honest proof stays valid, a false one does not pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

import proof_of_learning as pol
from proof_of_learning import Proof, TaskReference, Verdict
from proof_of_learning.cli.main import app
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.replay import doubt, protocol
from proof_of_learning.replay.pool import Job, LocalPool
from proof_of_learning.replay.process import AnyWorker
from proof_of_learning.replay.protocol import Describe, Reply
from proof_of_learning.replay.requests import Replay, Replayed
from proof_of_learning.replay.sandbox import Sandbox
from proof_of_learning.report import words
from proof_of_learning.report.html import render_html
from proof_of_learning.state.state import State
from proof_of_learning.verifier.checks.hyperparameters import HyperparametersCheck
from proof_of_learning.verifier.checks.trajectory import TrajectoryCheck
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult
from support_forging import rewrite
from support_scripts import record, script

OPTIONS: dict[str, Any] = {"nonce": "17" * 32, "accept_nonce": True, "sandbox": "off", "everything": True}

Answer = Callable[[protocol.Take, Sequence[State], Callable[[], Reply]], Reply]


class Outside(LocalPool):
    """Workers of which the ones at some places answer steps as ``falsely`` has it."""

    def __init__(
        self, places: Sequence[int], falsely: Answer, job: Job, timeout: float, sandbox: Sandbox | None
    ) -> None:
        super().__init__(job, timeout, sandbox, workers=2)
        self._places, self._falsely = places, falsely

    def _new(self, environment: Environment, role: str, place: int) -> AnyWorker:
        worker: Any = super()._new(environment, role, place)
        ask = worker.ask

        def answered(request: protocol.AnyRequest, states: Sequence[State] = (), *more: Any) -> Reply:
            if isinstance(request, protocol.Take) and place in self._places:
                return self._falsely(request, states, lambda: ask(request, states, *more))
            return ask(request, states, *more)

        worker.ask = answered
        worker.name = f"worker {place + 1} elsewhere"
        made: AnyWorker = worker
        return made


def verified(
    path: Path, task: TaskReference, falsely: Answer, share: float = 0.2, places: Sequence[int] = (1,), **options: Any
) -> Verdict:
    def pool(job: Job, timeout: float, sandbox: Sandbox | None) -> Outside:
        return Outside(places, falsely, job, timeout, sandbox)

    return pol.verify(path, task, pool=pool, double_check=share, **{**OPTIONS, **options})


def honest(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
    return ask()


def lazy(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
    """Takes no step: the start is the end."""
    answer, _ = ask()
    return answer, states


def late(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
    """Honest, but for the last tenth of the run, so that it has been believed before."""
    return lazy(request, states, ask) if request.start >= 50 else ask()


def telling(**falsely: Any) -> Answer:
    """Arrives where it should, and says something false of the way there."""

    def answered(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
        answer, arrived = ask()
        return msgspec.structs.replace(answer, **{name: told(answer) for name, told in falsely.items()}), arrived

    return answered


def test_honest_workers_are_counted_and_the_own_share_is_said(
    digits_proof: Path, digits: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[float]()

    def every_third(share: float) -> bool:
        asked.append(share)
        return len(asked) % 3 == 0

    monkeypatch.setattr(doubt, "drawn", every_third)
    verdict = verified(digits_proof, digits, honest, share=1 / 3)
    assert verdict.verdict == "valid" and not any("falsely" in line for line in verdict.warnings)
    assert not any(worker.lied for worker in verdict.cost.workers)
    assert verdict.cost.own_share is not None and 0 < verdict.cost.own_share < 1


def test_a_share_of_one_replays_all_here(digits_proof: Path, digits: TaskReference) -> None:
    verdict = verified(digits_proof, digits, honest, share=1.0)
    assert (verdict.verdict, verdict.cost.own_share) == ("valid", 1.0)
    assert verdict.cost.colluding_miss == pytest.approx(verdict.guarantee.miss_probability)
    assert [worker.name for worker in verdict.cost.workers] == [doubt.HERE]


MORE = pytest.mark.slow(reason="another answer that another worker contradicts")
LOSSES = telling(losses=lambda told: [2 * loss for loss in told.losses])
RATES = telling(rates=lambda told: [[2 * rate for rate in rates] for rates in told.rates])


@pytest.mark.parametrize(
    "falsely",
    [lazy, pytest.param(late, marks=MORE), LOSSES, pytest.param(RATES, marks=MORE)],
    ids=["lazy", "late", "losses", "rates"],
)
def test_a_lazy_worker_condemns_nobody_and_is_named(falsely: Answer, digits_proof: Path, digits: TaskReference) -> None:
    verdict = verified(digits_proof, digits, falsely, share=1e-9, places=(0, 1))
    assert verdict.verdict == "valid" and all(s.status == "pass" and s.exact for s in verdict.segments)
    found_out = [worker for worker in verdict.cost.workers if worker.lied]
    assert found_out and not any(worker.segments for worker in found_out)  # what it said before was asked again
    assert any(found_out[0].name in line and "answered falsely" in line for line in verdict.warnings)


def test_workers_that_say_that_a_script_goes_another_way_condemn_nobody(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1)
    assert record(path, tmp_path / "run.pol", interval=10).returncode == 0
    elsewhere = telling(closed=lambda told: not told.closed, asked=lambda told: [0, -1, 0, 0])
    verdict = verified(tmp_path / "run.pol", TaskReference(str(path)), elsewhere, share=1e-9, places=(0, 1))
    assert verdict.verdict == "valid", verdict.reason
    assert any(worker.lied for worker in verdict.cost.workers)


def test_what_an_earlier_check_went_by_is_judged_again_once_its_worker_is_found_out(
    digits_proof: Path, digits: TaskReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check before the trajectory asks for the forged segment, and nothing is drawn until the trajectory asks."""
    forged = rewrite(
        digits_proof, tmp_path / "run.pol",
        columns=lambda columns: [replace(c, loss=c.loss * (0.999 if i == 4 else 1)) for i, c in enumerate(columns)],
    )  # fmt: skip
    held, asked = Proof.open(forged), list[int]()

    def colluding(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
        answer, arrived = ask()
        losses = held.columns(request.start // held.header.training.interval).loss.tolist()
        return msgspec.structs.replace(answer, losses=losses), arrived

    def early(self: HyperparametersCheck, evidence: Evidence, answers: Answers) -> Plan:
        yield [Describe()]
        yield [Replay(4)]
        asked.append(4)
        yield from plan(self, evidence, answers)

    def early_judged(self: HyperparametersCheck, evidence: Evidence, answers: Answers) -> CheckResult:
        told = answers.get(Replay(4), Replayed).losses == held.columns(4).loss.tolist()
        return result(self, "pass" if told else "fail", "as the answer has it")

    plan = HyperparametersCheck.plan
    monkeypatch.setattr(HyperparametersCheck, "plan", early)
    monkeypatch.setattr(HyperparametersCheck, "judge", early_judged)
    monkeypatch.setattr(doubt, "drawn", lambda share: bool(asked))
    monkeypatch.setattr(TrajectoryCheck, "plan", lambda *given: [[Replay(3)]])
    liar = telling(losses=lambda told: [2 * loss for loss in told.losses])

    def late(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
        return (liar if request.start == 15 else colluding)(request, states, ask)

    found = verified(forged, digits, late, share=0.2, places=(0, 1))
    assert found.check("hyperparameters").status == "fail", found.reason


def test_a_worker_that_colludes_passes_what_is_not_replayed_here_and_the_verdict_says_what_that_is_worth(
    digits_proof: Path, digits: TaskReference, tmp_path: Path
) -> None:
    def lied(columns: list[Columns]) -> list[Columns]:
        return [replace(c, loss=c.loss * (0.999 if index == 4 else 1)) for index, c in enumerate(columns)]

    forged = rewrite(digits_proof, tmp_path / "run.pol", columns=lied)
    held = Proof.open(forged)

    def colluding(request: protocol.Take, states: Sequence[State], ask: Callable[[], Reply]) -> Reply:
        answer, arrived = ask()
        assert isinstance(answer, protocol.Taken)
        index = request.start // held.header.training.interval
        return msgspec.structs.replace(answer, losses=held.columns(index).loss.tolist()), arrived

    passed = verified(forged, digits, colluding, share=1e-9, places=(0, 1))
    assert passed.verdict == "valid"  # nothing was replayed here, and that is what it says:
    assert (passed.cost.own_share, round(passed.cost.colluding_miss or 0, 6)) == (0.0, 1.0)
    assert "is missed with a probability of up to 100 %" in words.own_share(passed)
    assert "Outside workers" in render_html(passed)
    caught = verified(forged, digits, colluding, share=1.0, places=(0, 1))
    assert caught.verdict == "invalid" and [s.index for s in caught.segments if s.status == "fail"] == [4]


def test_what_makes_no_sense_is_said_before_anything_is_read(tmp_path: Path, digits: TaskReference) -> None:
    with pytest.raises(UsageError, match=r"--double-check is for workers on machines that are not yours"):
        pol.verify(tmp_path / "nothing", digits, double_check=0.5)
    with pytest.raises(UsageError, match=r"expected a share above 0, up to 1"):
        pol.verify(tmp_path / "nothing", digits, double_check=0.0)
    done = CliRunner().invoke(app, ["verify", str(tmp_path), "--task", "x.py:task", "--double-check", "2"])
    assert done.exit_code == 2
