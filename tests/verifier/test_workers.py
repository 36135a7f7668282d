"""Several workers at once: the verdict is the sequential one, whatever arrives first, dies or is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import proof_of_learning as pol
import tasks
from conftest import nursery
from proof_of_learning import Proof, TaskReference, Verdict
from proof_of_learning.errors import UsageError
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.replay import lanes, protocol
from proof_of_learning.replay.process import WorkerProcess
from proof_of_learning.replay.protocol import Take
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import AnyCheckRequest, Noise, Replay
from support_forging import rewrite

NONCE = "17" * 32
HERE = Path(__file__).parents[1]
SCRIPT = HERE.parent / "examples" / "scripts" / "classify.py"


def told(verdict: Verdict) -> bytes:
    """A verdict as JSON, without times and without who did what."""
    cost = msgspec.structs.replace(verdict.cost, seconds=0.0, phases={}, workers=[])
    return msgspec.structs.replace(verdict, cost=cost).to_json()


def alike(path: Path, task: TaskReference, counts: tuple[int, ...] = (2,), **options: Any) -> Verdict:
    """The verdict of one worker, which those of several have to be."""
    options = {"nonce": NONCE, "accept_nonce": True, "sandbox": "off", **options}
    alone = pol.verify(path, task, workers=1, **options)
    for count in counts:
        several = pol.verify(path, task, workers=count, **options)
        assert told(several) == told(alone)
        assert len(several.cost.workers) <= count
    return alone


@pytest.fixture(scope="module")
def long(tiny: TaskReference) -> TaskReference:
    """Sixty steps of the smallest task."""
    return TaskReference(tiny.target, {"steps": 60})


@pytest.fixture(scope="module")
def long_proof(long: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In twelve segments. Read only."""
    return Path(pol.prove(long, tmp_path_factory.mktemp("long") / "run.pol", interval=5).path)


# ---- the same verdict -------------------------------------------------------------------------------------


@pytest.mark.quick
def test_an_honest_proof(long_proof: Path, long: TaskReference) -> None:
    verdict = alike(long_proof, long, (2, 3))
    assert verdict.verdict == "valid"
    (share,) = verdict.cost.workers
    assert share.segments == [s.index for s in verdict.segments] and share.steps == verdict.cost.steps_replayed


def test_every_segment(long_proof: Path, long: TaskReference) -> None:
    assert alike(long_proof, long, everything=True).verdict == "valid"


@pytest.fixture(scope="module")
def forged(long_proof: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proof with wrong losses in the segments 4 and 8."""

    def lied(columns: list[Columns]) -> list[Columns]:
        return [replace(c, loss=c.loss * (0.999 if index in (4, 8) else 1)) for index, c in enumerate(columns)]

    return rewrite(long_proof, tmp_path_factory.mktemp("forged") / "run.pol", columns=lied)


def test_a_forged_proof(forged: Path, long: TaskReference) -> None:
    verdict = alike(forged, long, everything=True)
    assert verdict.verdict == "invalid"
    assert [s.status for s in verdict.segments] == [*["pass"] * 4, "fail", *["skipped"] * 7]
    assert "1 of 5 segments that were replayed before it ended (of 12 challenged)" in verdict.reason


def test_a_forged_proof_to_the_end(forged: Path, long: TaskReference) -> None:
    verdict = alike(forged, long, (2,), everything=True, keep_going=True)
    assert [s.index for s in verdict.segments if s.status == "fail"] == [4, 8]


@pytest.mark.parametrize("late", [4, 8])
def test_the_first_forgery_is_the_plans_whichever_arrives_first(
    late: int, forged: Path, long: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, arrived, ask = Replay(12 - late), threading.Event(), Replayer.ask

    def slow(self: Replayer, request: Any, *more: Any, **options: Any) -> Any:
        if request == Replay(late):
            assert arrived.wait(100)
        try:
            return ask(self, request, *more, **options)
        finally:
            if request == other:
                arrived.set()

    monkeypatch.setattr(Replayer, "ask", slow)
    verdict = pol.verify(forged, long, everything=True, workers=2, sandbox="off")
    assert [s.index for s in verdict.segments if s.status == "fail"] == [4]
    assert all(s.status == "pass" for s in verdict.segments[:4])


def test_a_script(tmp_path: Path) -> None:
    command = ("prove", SCRIPT, "-o", tmp_path / "run.pol", "-k", 5, "--", "--epochs", "1", "--lr", "0.1")
    done = nursery.run(command, {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert alike(tmp_path / "run.pol", TaskReference(str(SCRIPT)), (2,)).verdict == "valid"


def test_a_thinned_proof(long_proof: Path, long: TaskReference, tmp_path: Path) -> None:
    thinned = pol.thin(long_proof, 4, tmp_path / "thin.pol").path
    verdict = alike(thinned, long, everything=True, accept_uniform=True)
    assert (verdict.verdict, verdict.cost.steps_replayed) == ("valid", 60)
    few = alike(thinned, long, (2,), top_q=0, random=5, accept_uniform=True)
    assert few.cost.steps_replayed >= 5 * len(few.segments)


def test_a_comparison_within_noise(tiny_proof: Path, tiny: TaskReference) -> None:
    """Noise is measured on what a replay left behind, in a row of its own for each segment."""
    alike(tiny_proof, tiny, (2,), everything=True, allow_calibrated=True, reproduce=False, keep_going=True)


# ---- which answers go together ----------------------------------------------------------------------------


def test_what_starts_where_another_replay_ends_is_answered_in_a_row(
    long_proof: Path, long: TaskReference, tmp_path: Path
) -> None:
    thinned = Proof.open(pol.thin(long_proof, 4, tmp_path / "thin.pol").path)
    with Replayer(thinned, long) as replayer:
        asked: list[AnyCheckRequest] = [Replay(index) for index in (0, 1, 3, 4, 6, 10, 11)]
        assert replayer._chains(asked) == [[0, 1, 2], [3, 4], [5, 6]]
    with Replayer(Proof.open(long_proof), long) as replayer:
        assert replayer._chains(asked) == [[0], [1], [2], [3], [4], [5], [6]]
        noise: list[AnyCheckRequest] = [
            Noise(3, keep=True, nudge=1),
            Noise(3, nudge=2),
            Noise(4, nudge=1),
            protocol.Describe(),
        ]
        assert replayer._chains(noise) == [[0, 1], [2], [3]]


def test_nothing_behind_the_last_wanted_answer_is_begun() -> None:
    begun: list[int] = []

    def carry(positions: Any) -> Any:
        for position in positions:
            begun.append(position)
            yield position, -position

    stream = lanes.Stream([[0], [1, 2], [3]], carry)
    for position, answer in stream:
        assert answer == -position
        stream.until(1)
    assert begun == [0, 1]


# ---- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_is_killed_over_its_steps_costs_nothing_but_time(
    count: int, long_proof: Path, long: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"nonce": NONCE, "accept_nonce": True, "sandbox": "off", "random": 4}
    undisturbed = pol.verify(long_proof, long, **options)
    taken, stopped, asking = list[int](), list[Any](), threading.local()
    ask, send, wait = WorkerProcess.ask, protocol.send, WorkerProcess._wait

    def asked(self: WorkerProcess, *request: Any) -> Any:
        asking.process = self._process
        return ask(self, *request)

    def noted(stream: Any, message: Any, states: Any = ()) -> None:
        if isinstance(message, Take):
            taken.append(message.start)
            if len(taken) == 3:
                stopped.append(asking.process)
                os.kill(asking.process.pid, signal.SIGSTOP)  # so that it has not answered when it is killed
        send(stream, message, states)

    def killed(self: WorkerProcess) -> None:
        if self._process in stopped:
            self._process.kill()
        wait(self)

    monkeypatch.setattr(WorkerProcess, "ask", asked)
    monkeypatch.setattr(protocol, "send", noted)
    monkeypatch.setattr(WorkerProcess, "_wait", killed)
    assert told(pol.verify(long_proof, long, workers=count, **options)) == told(undisturbed)
    assert stopped and len(taken) == len(undisturbed.segments) + 1


def test_steps_over_which_every_worker_ends_are_not_tried_for_ever(tiny_proof: Path) -> None:
    task = TaskReference(f"{HERE}/support_bad_tasks.py:task", {"schedule": "7:die"})
    verdict = alike(tiny_proof, task, (2,), everything=True)
    assert [s.status for s in verdict.segments] == ["pass", "inconclusive", "pass", "pass", "pass"]
    assert "ended unexpectedly (status 7" in verdict.segments[1].note


@pytest.mark.parametrize("count", [1, 3])
def test_an_interruption_ends_every_worker(
    count: int, long_proof: Path, long: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[WorkerProcess] = []
    begin = WorkerProcess.__init__

    def noted(self: WorkerProcess, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        started.append(self)

    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "checking trajectory" and done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(WorkerProcess, "__init__", noted)
    with pytest.raises(KeyboardInterrupt):
        pol.verify(long_proof, long, everything=True, workers=count, progress=interrupt, sandbox="off")
    assert len(started) == count + 1  # and one that looks at states
    assert all(worker._process.poll() is not None for worker in started)


def test_a_worker_with_another_environment_is_not_given_steps(
    long_proof: Path, long: TaskReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = WorkerProcess.ask

    def other(self: WorkerProcess, request: Any, *more: Any) -> Any:
        answer, states = ask(self, request, *more)
        if isinstance(answer, protocol.Opened) and self.name == "worker 2":
            answer = protocol.Opened(msgspec.structs.replace(answer.environment, torch="0.0"), answer.forks)
        return answer, states

    monkeypatch.setattr(WorkerProcess, "ask", other)
    verdict = pol.verify(long_proof, long, everything=True, workers=2, sandbox="off")
    assert verdict.verdict == "valid"
    assert [share.name for share in verdict.cost.workers] == ["worker 1"]


def test_a_task_that_is_an_object_has_one_worker(tiny_proof: Path) -> None:
    with pytest.raises(UsageError, match="3 workers need a task that is named by reference"):
        pol.verify(tiny_proof, tasks.task(), workers=3)


@pytest.mark.parametrize("count", [0, -1, 5000])
def test_a_number_of_workers_that_makes_no_sense_is_refused(count: int, tiny_proof: Path, tiny: TaskReference) -> None:
    with pytest.raises(UsageError, match="workers make no sense"):
        pol.verify(tiny_proof, tiny, workers=count)


@pytest.mark.real_workers
def test_workers_as_they_are_started_outside_of_tests(tiny_proof: Path, tiny: TaskReference) -> None:
    verdict = pol.verify(tiny_proof, tiny, workers=2, everything=True)
    assert verdict.verdict == "valid"
    assert sorted(index for share in verdict.cost.workers for index in share.segments) == list(range(5))
