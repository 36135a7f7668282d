"""Replay: every segment alone, from its recorded start, gives the recorded bits; and nothing else passes for that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import proof_of_learning as pol
import tasks
from proof_of_learning import Proof, Task, TaskReference, Verdict, load_task
from proof_of_learning.errors import PolError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.program.folder import export
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.format import Header
from proof_of_learning.prover import Recording
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session, derived_feed
from support_forging import relog, rewrite
from support_replay import replays_alone

ROOT = Path(__file__).parents[2]
WEIGHT = "model/parameters/first.weight"


EVERYTHING: dict[str, Any] = {
    "net": "dropout", "optimizer": "adamw", "scheduler": "sequential", "clip": 0.1, "augment": True, "custom": True, "batch_size": 8,
}  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    *({"optimizer": name} for name in tasks.OPTIMIZERS),
    *({"scheduler": name} for name in tasks.SCHEDULERS),
    *(
        {"scheduler": name, "schedule": "epoch", "batch_size": 31}
        for name in ("exponential", "multistep", "sequential")
    ),
    *({"net": name} for name in ("batchnorm", "dropout", "tied")),
    {"net": "batchnorm", "accumulate": 3, "clip": 0.05},
    {"accumulate": 2, "drop_last": True, "scheduler": "cosine", "schedule": "epoch"},
    {"augment": True, "shuffle": False},
    {"collate": True, "augment": True},
    {"drop_last": True},
    {"custom": True},
    {"scaler": True, "clip": 0.1},
    {"scaler": True, "accumulate": 2},
    EVERYTHING,
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_segment_replays_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    task = tasks.task(**settings)
    recording = pol.prove(task, tmp_path / "run.pol", interval=5, evaluations=2)
    assert recording.steps == 24
    replays_alone(Path(recording.path), task)
    proof = Proof.open(recording.path)
    assert [s.evaluation is not None for s in proof.segments] == [False, True, False, True, False]
    assert not torch.equal(
        *(proof.state(digest).tensors[WEIGHT] for digest in proof.state_digests()[:2])
    )  # it did train


@pytest.mark.parametrize(("interval", "segments"), [(1, 24), (7, 4), (24, 1), (1000, 1)])
def test_any_interval_gives_the_same_training(interval: int, segments: int, tmp_path: Path) -> None:
    task = tasks.task(**EVERYTHING)
    recording = pol.prove(task, tmp_path / "run.pol", interval=interval)
    replays_alone(Path(recording.path), task)
    proof = Proof.open(recording.path)
    assert len(proof.segments) == segments
    other = Proof.open(pol.prove(task, tmp_path / "other.pol", interval=5).path)
    assert proof.end.final_weights == other.end.final_weights
    assert proof.segments[-1].state == other.segments[-1].state
    assert proof.root != other.root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the formats of the data sets that the examples read."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape in (("cifar10", (3, 32, 32)), ("fashion_mnist", (28, 28))):
        arrays = {f"{part}_x": rng.integers(0, 256, (20, *shape), dtype=np.uint8) for part in ("train", "test")}
        np.savez(folder / f"{name}.npz", train_y=np.arange(20) % 10, test_y=np.arange(20) % 10, **arrays)  # type: ignore[arg-type]
    (folder / "tiny_shakespeare.txt").write_text("To be, or not to be, that is the question:\n" * 60)
    return folder


SMALL: dict[str, dict[str, Any]] = {
    "char_transformer.py": {"window": 16, "width": 16, "layers": 1, "heads": 2},
    "cifar10_resnet20.py": {"batch_size": 4},
    "fashion_mnist.py": {"batch_size": 4},
}


EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("[a-z]*.py"))
NOT_SEALED = {"cifar10_resnet20.py": "augment", "custom_step.py": "step of its own"}


def example_task(name: str, folder: Path) -> Task:
    settings = {"steps": 4, **SMALL.get(name, {}), **({"data": str(folder)} if name in SMALL else {})}
    return load_task(TaskReference(f"{ROOT}/examples/{name}:task", settings))


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_replay(example: str, folder: Path, tmp_path: Path) -> None:
    task = replace(example_task(example, folder), reference=None)
    replays_alone(Path(pol.prove(task, tmp_path / "run.pol", interval=3).path), task)


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SMALL.keys() - NOT_SEALED.keys() else ())
        for name in EXAMPLES
    ],
)
def test_the_examples_replay_sealed_or_say_what_keeps_them_from_it(example: str, folder: Path, tmp_path: Path) -> None:
    task = example_task(example, folder)
    if example in NOT_SEALED:
        with pytest.raises(PolError, match=NOT_SEALED[example]):
            pol.prove(task, tmp_path / "run.pol", seal_program=True)
        return
    pol.prove(task, tmp_path / "run.pol", interval=3, seal_program=True)
    export(task.data(), tmp_path / "samples")
    verdict = pol.verify(tmp_path / "run.pol", pol.sealed_program(tmp_path / "samples"), everything=True)
    assert all(segment.exact for segment in verdict.segments) and len(verdict.segments) == 2
    assert verdict.check("task").status == verdict.check("trajectory").status == "pass", verdict.reason


@pytest.mark.quick
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_an_honest_proof_is_valid_in_a_process_of_its_own_and_in_this_one(settings: Any, tmp_path: Path) -> None:
    reference = TaskReference(f"{ROOT}/tests/tasks.py:task", settings)
    path = pol.prove(reference, tmp_path / "run.pol", interval=5).path
    for verdict in (
        pol.verify(path, reference, everything=True),
        pol.verify(path, tasks.task(**settings), everything=True),
    ):
        assert verdict.verdict == "valid", verdict.reason
        assert verdict.exit_status == 0
        assert [s.exact for s in verdict.segments] == [True] * 5
        assert verdict.exactness == "exact"
        assert verdict.guarantee.forged_fraction == 0
        assert verdict.cost.steps_replayed == 24


def test_the_digits_example_is_valid(digits_recording: Recording, digits: TaskReference) -> None:
    verdict = pol.verify(digits_recording.path, digits)
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.assurance == "seed-derived"
    assert verdict.nonce.origin == "drawn"
    assert verdict.proof.root == digits_recording.root
    assert {check.status for check in verdict.checks if check.mandatory} == {"pass"}
    assert Verdict.from_json(verdict.to_json()).proof == verdict.proof


def test_without_a_task_nothing_is_run_and_nothing_is_valid(tiny_proof: Path) -> None:
    verdict = pol.verify(tiny_proof)
    assert verdict.verdict == "inconclusive"
    assert verdict.exit_status == 3
    assert verdict.check("structure").status == "pass"
    assert {check.status for check in verdict.checks[1:]} == {"skipped"}


def test_the_seed_is_the_proofs_and_its_key_follows_from_it(tmp_path: Path) -> None:
    one = pol.prove(tasks.task(), tmp_path / "one.pol", interval=6, seed=7)
    other = pol.prove(tasks.task(seed=7), tmp_path / "other.pol", interval=6)
    assert one.root == other.root != pol.prove(tasks.task(), tmp_path / "third.pol", interval=6).root
    assert pol.verify(one.path, tasks.task(seed=3)).verdict == "valid"


# ---- other numeric environments ------------------------------------------------------------------------


def test_another_number_of_threads_is_reproduced(tiny: TaskReference, tmp_path: Path) -> None:
    path = pol.prove(tiny, tmp_path / "run.pol", interval=5, threads=2).path
    assert next(iter(Proof.open(path).environments.values())).threads == 2
    verdict = pol.verify(path, tiny, everything=True)
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.unreproduced == []
    assert torch.get_num_threads() == 1


@pytest.mark.skipif("AVX2" not in torch.backends.cpu.get_cpu_capability() and "AVX512" not in
                    torch.backends.cpu.get_cpu_capability(), reason="the portable environment is that of AVX2")  # fmt: skip
def test_a_portable_proof_is_reproduced(digits: TaskReference, tmp_path: Path) -> None:
    script = (
        "import sys, proof_of_learning as pol\n"
        "pol.prove(pol.TaskReference(sys.argv[1], {'steps': 20}), sys.argv[2], interval=5, portable=True)"
    )
    command = [sys.executable, "-c", script, digits.target, str(tmp_path / "run.pol")]
    subprocess.run(command, check=True, env={**os.environ, **environments.PORTABLE})
    environment = next(iter(Proof.open(tmp_path / "run.pol").environments.values()))
    assert environment.variables == environments.PORTABLE
    assert (environment.capability, environment.threads) == ("AVX2", 1)
    verdict = pol.verify(tmp_path / "run.pol", TaskReference(digits.target, {"steps": 20}), everything=True)
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.unreproduced == []


def test_a_portable_recording_needs_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environments.PORTABLE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pol.errors.NumericEnvironmentError, match="ATEN_CPU_CAPABILITY=avx2"):
        pol.prove(tasks.task(), tmp_path / "run.pol", portable=True)
    assert not (tmp_path / "run.pol").exists()


def elsewhere(environment: Environment) -> Environment:
    return msgspec.structs.replace(environment, torch="9.9.9", isa=["avx1024"])


def nudged(states: list[State], index: int = 3, by: float = 1e-6) -> list[State]:
    """The weights at one checkpoint moved a little."""
    state = states[index]
    return [
        *states[:index],
        State(state.tree, {**state.tensors, WEIGHT: state.tensors[WEIGHT] + by}),
        *states[index + 1 :],
    ]


def test_a_foreign_environment_that_gives_the_same_bits_is_exact_all_the_same(tiny_proof: Path, tmp_path: Path) -> None:
    forged = rewrite(tiny_proof, tmp_path / "run.pol", environment=elsewhere)
    verdict = pol.verify(forged, tasks.task(), everything=True)
    assert verdict.verdict == "valid"
    assert any(line.startswith("torch: recorded 9.9.9, here ") for line in verdict.unreproduced)


@pytest.mark.parametrize("foreign", [False, True])
def test_other_data_elsewhere_may_have_been_computed(tiny_proof: Path, tmp_path: Path, foreign: bool) -> None:
    path = rewrite(tiny_proof, tmp_path / "run.pol", environment=elsewhere) if foreign else tiny_proof
    x, y = tasks.data().tensors

    def data() -> TensorDataset:
        return TensorDataset(x + 2.0**-20, y)

    verdict = pol.verify(path, replace(tasks.task(), data=data), everything=True, keep_going=True)
    assert verdict.check("data").status == ("inconclusive" if foreign else "fail")
    assert ("torch: recorded 9.9.9, here " in verdict.check("data").summary) == foreign
    fewer = replace(tasks.task(), data=lambda: TensorDataset(x[:-1], y[:-1]))
    assert pol.verify(path, fewer, everything=True, keep_going=True).check("data").status == "fail"


def test_a_wrong_end_elsewhere_is_inconclusive_and_names_the_difference(tiny_proof: Path, tmp_path: Path) -> None:
    forged = rewrite(tiny_proof, tmp_path / "run.pol", environment=elsewhere, states=nudged)
    verdict = pol.verify(forged, tasks.task(), everything=True)
    assert verdict.verdict == "inconclusive"
    assert verdict.exit_status == 3
    assert [s.status for s in verdict.segments] == ["pass", "pass", "inconclusive", "inconclusive", "pass"]
    assert "torch: recorded 9.9.9, here " in verdict.reason
    assert "isa: recorded avx1024, here " in verdict.reason


def test_a_wrong_end_here_is_invalid_however_small(tiny_proof: Path, tmp_path: Path) -> None:
    forged = rewrite(tiny_proof, tmp_path / "run.pol", states=nudged)
    assert pol.check(forged).status == "pass"  # nothing in it contradicts itself
    verdict = pol.verify(forged, tasks.task(), everything=True, keep_going=True)
    assert verdict.verdict == "invalid"
    assert verdict.exit_status == 1
    assert verdict.unreproduced == []
    assert [s.status for s in verdict.segments] == ["pass", "pass", "fail", "fail", "pass"]
    wrong = verdict.segments[2]
    assert wrong.error is not None
    assert wrong.relative is not None
    assert wrong.error.linf == pytest.approx(1e-6, rel=0.2)
    assert 0 < wrong.relative.l2 < 1e-3
    assert wrong.kinds["optimizer/momentum_buffer"].l2 == 0


def test_training_cannot_go_on_from_another_state_than_it_arrived_at(tiny_proof: Path, tmp_path: Path) -> None:
    """Honest replays joined by jumps: each segment arrives where it should, and the next starts elsewhere."""
    proof = Proof.open(tiny_proof)
    states = [proof.state(digest) for digest in proof.state_digests()]
    for index in (2, 4):
        states = nudged(states, index, by=0.3)
    session, data = Session(tasks.task(), bytes.fromhex(proof.header.randomness.key)), tasks.data()
    feed, order = derived_feed(session.task, data, session.key, "cpu")
    arrived, columns = {}, []
    for segment in proof.segments:
        session.restore(states[segment.index])
        results = list(session.run(segment.stop, feed, order))
        arrived[segment.index] = session.capture().digest()
        columns.append(Columns(np.array([r.loss.item() for r in results]), np.array([r.rates for r in results])))
    forged = rewrite(
        tiny_proof, tmp_path / "run.pol", states=lambda _: states, columns=lambda _: columns, arrived=arrived
    )
    verdict = pol.verify(forged, tasks.task(), everything=True)
    assert verdict.verdict == "invalid"
    assert "another state than it arrived at" in verdict.reason
    # Nor by claiming that a codec in the loop is to blame.
    in_loop: Callable[[Header], Header] = lambda header: msgspec.structs.replace(  # noqa: E731
        header, codec=msgspec.structs.replace(header.codec, in_loop=True)
    )
    forged = rewrite(
        tiny_proof,
        tmp_path / "two.pol",
        header=in_loop,
        states=lambda _: states,
        columns=lambda _: columns,
        arrived=arrived,
    )
    with pytest.raises(pol.errors.FormatError, match="codec 'raw'"):
        pol.verify(forged, tasks.task(), everything=True)


def test_what_the_log_says_of_a_segment_must_be_what_happened(tiny_proof: Path, tmp_path: Path) -> None:
    def other_losses(columns: list[Columns]) -> list[Columns]:
        return [*columns[:2], replace(columns[2], loss=columns[2].loss * 0.999), *columns[3:]]

    def other_rates(columns: list[Columns]) -> list[Columns]:
        return [*columns[:2], replace(columns[2], rates=columns[2].rates * 2), *columns[3:]]

    losses = pol.verify(rewrite(tiny_proof, tmp_path / "a.pol", columns=other_losses), tasks.task(), everything=True)
    assert losses.verdict == "invalid"
    assert "the recorded losses are not those of the replay" in losses.segments[2].note
    rates = pol.verify(rewrite(tiny_proof, tmp_path / "b.pol", columns=other_rates), tasks.task(), keep_going=True)
    assert rates.check("hyperparameters").status == "fail"
    assert "step 10: the proof says learning rate [0.1], the task's schedule gives [0.05]" in rates.reason


def test_a_start_that_does_not_follow_from_the_key_is_invalid(tiny_proof: Path, tmp_path: Path) -> None:
    forged = rewrite(tiny_proof, tmp_path / "run.pol", states=lambda states: nudged(states, 0))
    verdict = pol.verify(forged, tasks.task())
    assert verdict.verdict == "invalid"
    assert verdict.reason.startswith("initialization")


def test_a_segment_cannot_be_presented_at_another_place(tmp_path: Path) -> None:
    """The second half of a run is no run: states say at which step they stand."""
    task = tasks.task(steps=10, shuffle=False, batch_size=92)
    path = Path(pol.prove(task, tmp_path / "long.pol", interval=5).path)
    proof = Proof.open(path)
    shifted = rewrite(
        path, tmp_path / "short.pol",
        header=lambda header: msgspec.structs.replace(header, training=msgspec.structs.replace(header.training, planned=5)),
        states=lambda states: states[1:], columns=lambda columns: columns[1:],
    )  # fmt: skip
    verdict = pol.verify(shifted, replace(task, steps=5), everything=True, keep_going=True)
    assert verdict.verdict == "invalid"
    assert "says it stands at step 5" in verdict.segments[0].note
    assert len(proof.segments) == 2


def test_another_run_length_or_data_set_is_named(tiny_proof: Path) -> None:
    verdict = pol.verify(tiny_proof, tasks.task(steps=30))
    assert verdict.verdict == "invalid"
    assert "the proof has 24 steps (6 an epoch); the task has 30 (6)" in verdict.reason
    changed = tasks.data()
    changed.tensors[0][17, 3] += 1
    verdict = pol.verify(tiny_proof, replace(tasks.task(), data=lambda: changed))
    assert verdict.verdict == "invalid"
    assert verdict.reason.startswith("data:")


def test_a_proof_changes_nothing_that_lasts_in_the_verifiers_process(tiny_proof: Path, tmp_path: Path) -> None:
    """PyTorch lets a process set its inter-operator threads once; whoever set them first would decide for all that follow."""
    before = torch.get_num_interop_threads(), torch.get_num_threads()
    path = rewrite(
        tiny_proof, tmp_path / "run.pol",
        environment=lambda here: msgspec.structs.replace(here, interop_threads=here.interop_threads + 1, threads=here.threads + 1),
    )  # fmt: skip
    verdict = pol.verify(path, tasks.task())
    assert any("interop" in line for line in verdict.unreproduced)
    assert (torch.get_num_interop_threads(), torch.get_num_threads()) == before


def test_what_the_last_segment_claims_is_held_to_as_well(tiny_proof: Path, tmp_path: Path) -> None:
    """Beside the claim at the log's end, which is the true one here."""
    shutil.copytree(tiny_proof, tmp_path / "run.pol")

    def claim(lines: list[dict[str, Any]]) -> None:
        last = [line for line in lines if line["kind"] == "segment"][-1]
        last["evaluation"] = {"accuracy": lines[-1]["evaluation"]["accuracy"] + 0.01}

    verdict = pol.verify(relog(tmp_path / "run.pol", claim), tasks.task())
    assert verdict.verdict == "invalid"
    assert verdict.reason.startswith("performance: ")


def test_a_claimed_performance_is_repeated(tiny_proof: Path, tmp_path: Path) -> None:
    proof = Proof.open(tiny_proof)
    assert proof.end.evaluation is not None
    better = {"accuracy": proof.end.evaluation["accuracy"] + 0.01}
    forged = rewrite(tiny_proof, tmp_path / "run.pol", evaluation=better)
    verdict = pol.verify(forged, tasks.task())
    assert verdict.verdict == "invalid"
    assert verdict.reason.startswith("performance: ")
    unable = pol.verify(tiny_proof, replace(tasks.task(), evaluate=None))
    assert unable.verdict == "inconclusive"
    failing = pol.verify(tiny_proof, replace(tasks.task(), evaluate=lambda model: {"accuracy": 1 / 0}))
    assert failing.verdict == "inconclusive"
    assert "ZeroDivisionError" in failing.reason
