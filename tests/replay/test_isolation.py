"""Segments are replayed in isolation: what one finds depends on nothing but its own start."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import proof_of_learning as pol
import support_hidden
from proof_of_learning import Proof, TaskReference
from proof_of_learning.errors import TaskError, WorkerError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric.environment import Device
from proof_of_learning.replay import protocol
from proof_of_learning.replay.process import WorkerProcess
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import Replay

HERE = Path(__file__).parents[1]
SEGMENTS = support_hidden.STEPS // support_hidden.INTERVAL
KINDS = ("model", "data", "module")


def reference(kind: str) -> TaskReference:
    return TaskReference(f"{HERE}/support_hidden.py:task", {"kind": kind})


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Honest runs of tasks of which only the beginning can be replayed."""
    folder = tmp_path_factory.mktemp("hidden")
    interval = support_hidden.INTERVAL
    return {kind: Path(pol.prove(reference(kind), folder / kind, interval=interval).path) for kind in KINDS}


def told(verdict: pol.Verdict) -> dict[int, tuple[Any, ...]]:
    return {segment.index: (segment.status, segment.exact, segment.error) for segment in verdict.segments}


def test_a_verdict_on_a_segment_does_not_depend_on_the_other_draws(proofs: dict[str, Path]) -> None:
    options: dict[str, Any] = {"keep_going": True, "accept_nonce": True, "sandbox": "off"}
    task = reference("model")
    every = pol.verify(proofs["model"], task, everything=True, **options)
    assert len(told(every)) == SEGMENTS
    drawn = set[tuple[int, ...]]()
    for number in range(2):
        some = pol.verify(proofs["model"], task, random=4, top_q=0, nonce=f"{number:02x}", **options)
        found = told(some)
        drawn.add(tuple(found))
        assert {index: told(every)[index] for index in found} == found
        assert some.verdict == every.verdict == "invalid"
    assert len(drawn) == 2
    # The first segment alone starts from objects as fresh as the prover's.
    assert [index for index, segment in told(every).items() if segment[0] == "pass"] == [0]


@pytest.mark.parametrize(
    ("kind", "apart", "replayable"),
    [
        pytest.param("model", True, 1, marks=pytest.mark.real_workers),
        ("data", True, 3), ("module", True, 1),  # the data are fresh for one epoch
        ("model", False, 1), ("data", False, 3),  # what a module of this process holds is not replaced
    ],
)  # fmt: skip
def test_replays_are_alike_in_any_order(kind: str, apart: bool, replayable: int, proofs: dict[str, Path]) -> None:
    proof = Proof.open(proofs[kind])
    task = reference(kind) if apart else support_hidden.task(kind)
    with Replayer(proof, task) as replayer:
        asked = [(index, replayer.ask(Replay(index)).arrived) for index in (3, 0, 1, 2, 3, 5, 3, 2)]
    found = dict(asked)
    assert len(set(asked)) == len(found)  # each the same as before
    assert [index for index in sorted(found) if found[index] == proof.segments[index].arrived] == [*range(replayable)]


def test_a_process_that_ends_is_replaced_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment's child crashes: so does the worker, with a line of its own, and the next segment has another."""
    task = TaskReference(f"{HERE}/support_hidden.py:ending", {})
    path = pol.prove(task, tmp_path / "run.pol", interval=support_hidden.INTERVAL).path
    monkeypatch.setenv("POL_TEST_ENDING", "1")
    with Replayer(Proof.open(path), task) as replayer:
        expected = [segment.arrived for segment in Proof.open(path).segments]
        assert replayer.ask(Replay(1)).arrived == expected[1]
        with pytest.raises(WorkerError, match=r"the replay worker ended unexpectedly \(status -6"):
            replayer.ask(Replay(0))
        assert replayer.ask(Replay(2)).arrived == expected[2]


# ---- children ------------------------------------------------------------------------------------------


def child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, for children of this one would inherit the tests' threads."""
    program = "import os, sys\nfrom proof_of_learning.replay import fork\n" + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ, **variables}
    )


needs_children = pytest.mark.skipif(sys.platform != "linux", reason="children are used on Linux")


@needs_children
def test_what_a_child_changes_does_not_reach_its_parent() -> None:
    ran = child(
        """
        import torch
        held, weights = [0], torch.zeros(1000)
        def work():
            held[0] += 1
            weights.add_(1)
            os.environ["CHANGED"] = "1"
            print("child", held[0], float(weights.sum()), flush=True)
        for _ in range(2):
            fork.run(work)
        print("parent", held[0], float(weights.sum()), os.environ.get("CHANGED"))
        """
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["child 1 1000.0", "child 1 1000.0", "parent 0 0.0 None"]


@needs_children
@pytest.mark.parametrize(
    ("work", "status"),
    [("os.abort()", -6), ("os.kill(os.getpid(), 9)", -9), ("os._exit(7)", 7), ("1 / 0", 1), ("sys.exit(0)", 1)],
)
def test_the_parent_ends_as_its_child_ended(work: str, status: int) -> None:
    """In good order it only ends when the work is done: what leaves early has no answer."""
    ran = child(f"fork.run(lambda: {work})\nprint('went on')")
    assert (ran.returncode, ran.stdout) == (status, "")


@needs_children
def test_two_threads_compute_in_children() -> None:
    """The pool of threads that the parent had already started does not survive in a child, which builds its own."""
    ran = child(
        """
        import torch
        torch.set_num_threads(2)
        x = torch.arange(600 * 600, dtype=torch.float32).reshape(600, 600) / 1e5
        def product():
            return float((torch.relu(x) @ x.T).double().sum())
        expected = product()  # starts the parent's threads
        assert fork.possible(2)
        def work():
            assert torch.get_num_threads() == 2
            assert product() == expected
            print("equal", flush=True)
        for _ in range(3):
            fork.run(work)
        assert product() == expected
        """,
        OMP_NUM_THREADS="2",
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "equal\n" * 3, "")


def test_where_nothing_was_computed_on_a_gpu_no_worker_sees_one(
    tiny_proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (cpu,) = Proof.open(tiny_proof).environments.values()
    gpu = msgspec.structs.replace(cpu, device=Device("cuda", "some GPU"))
    seen = [environments.process_variables(environment)["CUDA_VISIBLE_DEVICES"] for environment in (cpu, gpu)]
    assert seen == ["", "0"]


# ---- what is said ahead ----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"kind": "model"}, {"kind": "x" * (1 << 17)}], ids=["small", "large"])
def test_a_worker_that_was_told_ahead_answers_once(settings: dict[str, str]) -> None:
    opening = protocol.Open(f"{HERE}/support_hidden.py:task", dict(settings), "00" * 32, 0, None)
    worker = WorkerProcess(None)
    try:
        worker.expect(opening)
        worker.expect(opening)
        if settings["kind"] == "model":
            assert isinstance(worker.ask(opening)[0], protocol.Opened)
            assert isinstance(worker.ask(protocol.Describe())[0], protocol.Described)
        else:  # no pipe is sure to hold it, so it was not sent; and the task knows no such kind
            with pytest.raises(TaskError, match="xxx"):
                worker.ask(opening)
    finally:
        worker.close()


def test_a_worker_that_ended_is_told_nothing_ahead_and_says_so() -> None:
    opening = protocol.Open(f"{HERE}/support_hidden.py:task", {"kind": "model"}, "00" * 32, 0, None)
    worker = WorkerProcess(None)
    try:
        worker.kill()
        while not worker.died:
            time.sleep(0.01)
        worker.expect(opening)
        with pytest.raises(WorkerError, match="ended unexpectedly"):
            worker.ask(opening)
    finally:
        worker.close()
