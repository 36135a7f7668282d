"""What all tests share: one honest proof, and how much hypothesis may try."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, settings

import support_attestation
from proof_of_learning import TaskReference, prove
from proof_of_learning.proof import remote
from proof_of_learning.prover import Recording
from proof_of_learning.rehearsal import beside
from proof_of_learning.replay import pool, process
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.verifier.checks.trajectory import TrajectoryCheck
from support_workers import Nursery

HERE = Path(__file__).parent
os.environ[beside.VARIABLE] = "0"  # tests of rehearsals ask for them
torch.set_num_threads(1)  # on tensors this small, more threads only wait for each other

# Repeatable by default; HYPOTHESIS_PROFILE=explore tries other and more examples each time.
quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Replay workers are forked from a process that has imported what they import (support_workers), but in tests of how they start.
nursery = Nursery()
vars(process)["subprocess"] = SimpleNamespace(Popen=nursery.popen, PIPE=subprocess.PIPE)
vars(pool)["WorkerProcess"] = nursery.worker
Replayer.ahead = lambda *given: nursery.ahead(*given)  # type: ignore[method-assign]

# Where tests are of what a verdict says, and not of who takes its steps, replays take theirs in the test's own process, as those of
# a task without a reference do; but not under POL_TEST_WORKERS=real, and not in tests for `make quick`.
HERE_REPLAYED = (
    "attacks/", "attestation/", "disputes/", "program/", "recording/", "rehearsal/test_situations.py", "report/", "state/",
    "verifier/",
)  # fmt: skip
APART = (  # of processes, and of tasks that end theirs
    "verifier/test_workers.py", "verifier/test_abreast.py", "verifier/test_plan.py", "verifier/test_calibrate.py",
    "proof/test_hostile.py", "recording/test_task.py",
)  # fmt: skip


# One process runs all tests of a file: those that take longest come first, so that none is left for the end.
LONGEST = (
    "attacks/test_attacks.py", "run/test_scripts.py", "cli/test_cli.py", "replay/test_sandbox.py",
    "report/test_report.py", "numeric/test_portable_proofs.py", "program/test_sealing.py", "replay/test_replay.py",
    "run/test_scripts_derived.py", "recording/test_resume_codecs.py", "verifier/test_workers.py",
    "attacks/test_attacks_jumps.py", "integrations/test_frameworks.py", "rehearsal/test_situations.py",
    "attacks/test_attacks_calibrated.py", "run/test_scripts_ranks.py", "run/test_scripts_attacks.py",
    "run/test_scripts_rehearsal.py", "distributed/test_untrusted.py", "recording/test_resume.py",
    "proof/test_bombs.py", "attacks/test_attacks_trajectory.py", "attacks/test_attacks_lazy.py",
    "disputes/test_opening.py", "proof/test_remote.py", "numeric/test_portable.py", "disputes/test_dispute.py",
    "verifier/test_calibrate.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a test often waits for processes that it has started."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    marked = item.get_closest_marker("real_workers") is not None
    nursery.real = marked or os.environ.get("POL_TEST_WORKERS") == "real"
    place = item.path.relative_to(HERE).as_posix()
    nursery.here = (
        place.startswith(HERE_REPLAYED) and not place.startswith(APART) and item.get_closest_marker("quick") is None
    )


def pytest_unconfigure() -> None:
    nursery.close()


@pytest.fixture(scope="session")
def digits() -> TaskReference:
    """The digits example, shortened."""
    return TaskReference(f"{HERE.parent}/examples/digits.py:task", {"steps": 60})


@pytest.fixture(scope="session")
def digits_recording(digits: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """An honest proof of 60 steps in 12 segments. Read only: copy it before changing it."""
    return prove(digits, tmp_path_factory.mktemp("honest") / "digits.pol", interval=5)


@pytest.fixture(scope="session")
def digits_proof(digits_recording: Recording) -> Path:
    return Path(digits_recording.path)


@pytest.fixture(scope="session")
def tiny() -> TaskReference:
    """The smallest task: an MLP with 700 parameters, 24 steps."""
    return TaskReference(f"{HERE}/tasks.py:task", {})


@pytest.fixture(scope="session")
def tiny_proof(tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest proof of the tiny task: 5 segments, the last one shorter. Read only."""
    return Path(prove(tiny, tmp_path_factory.mktemp("honest") / "tiny.pol", interval=5).path)


@pytest.fixture(scope="session")
def world(tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> support_attestation.World:
    """Two authorities, an owner and a stranger, and a proof that was registered, signed and stamped by both. Read only."""
    return support_attestation.build(tiny, tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_variables() -> Iterator[None]:
    """A command pins variables of its process, which here is ours: put them back after each test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def every_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays go on behind the first proven forgery, for tests of what an attack leaves in all challenged segments."""
    monkeypatch.setattr(TrajectoryCheck, "proves", lambda *asked: False)


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs ``pol`` on one thread, in a process of its own: ``command(*arguments, **variables)``."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return lambda *arguments, **variables: nursery.run(arguments, {**os.environ, **threads, **variables})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores that answer at once and forget, and a cache of one's own for what is recorded to them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "EVERY", 0.0)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
