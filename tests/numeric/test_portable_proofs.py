"""Proofs in portable arithmetic: recorded in one setting, verified to the bit in another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from test_portable import SETTINGS
from torch import nn

import proof_of_learning as pol
import tasks
from conftest import nursery
from proof_of_learning import TaskReference, prove, register, verify
from proof_of_learning.doctor import diagnose
from proof_of_learning.errors import FormatError, TaskError, UsageError
from proof_of_learning.numeric.denormals import flushes_denormals
from proof_of_learning.numeric.environment import Environment, current, differences
from proof_of_learning.numeric.portable import selftest, using
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import replayer
from proof_of_learning.state.state import State
from support_forging import rewrite

HERE = Path(__file__).parents[1]
SETTING = {**SETTINGS["no vector units"], "OMP_NUM_THREADS": "1"}
TASK = TaskReference(f"{HERE}/tasks.py:task", {"net": "batchnorm", "optimizer": "adamw", "steps": 12})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portable") / "run.pol"
    prove(TASK, path, interval=2, arithmetic="portable")
    return path


def verified_elsewhere(path: Path, *more: str) -> dict[str, Any]:
    """The verdict of a process without vector units."""
    settings = [word for name, value in TASK.settings.items() for word in ("--set", f"{name}={value}")]
    words = ["verify", path, "--task", TASK.target, *settings, "--all", "--sandbox", "off", "--json", "-", *more]
    done = nursery.run(words, {**os.environ, **SETTING})
    return json.loads(done.stdout)


def moved(states: list[State]) -> list[State]:
    """One weight of the state in the middle is another by its last bit."""
    middle = states[len(states) // 2]
    name = next(name for name in middle.tensors if name.endswith("first.weight"))
    other = middle.tensors[name].clone()
    other.view(-1)[3] = torch.nextafter(other.view(-1)[3], torch.tensor(9.0))
    states[len(states) // 2] = State(middle.tree, {**middle.tensors, name: other})
    return states


def test_a_proof_is_valid_to_the_bit_in_another_setting_and_a_forged_bit_is_not(recorded: Path, tmp_path: Path) -> None:
    verdict = verified_elsewhere(recorded)
    assert (verdict["verdict"], verdict["exactness"]) == ("valid", "exact")
    assert verdict["unreproduced"] == [] and all(segment["exact"] for segment in verdict["segments"])
    forged = rewrite(recorded, tmp_path / "forged.pol", states=moved)
    assert verified_elsewhere(forged)["verdict"] == "invalid"


def test_the_header_says_the_arithmetic_and_an_environment_is_no_reason_for_other_bits(
    recorded: Path, tmp_path: Path
) -> None:
    proof = Proof.open(recorded)
    assert proof.header.arithmetic == "portable"

    def foreign(environment: Environment) -> Environment:
        return msgspec.structs.replace(
            environment, vendor="Another", isa=["sve"], machine="aarch64", capability="SVE", threads=7
        )

    moved_away = rewrite(recorded, tmp_path / "foreign.pol", environment=foreign)
    assert verify(moved_away, TASK).verdict == "valid"
    forged = rewrite(recorded, tmp_path / "forged.pol", environment=foreign, states=moved)
    assert verify(forged, TASK, everything=True).verdict == "invalid"


def test_where_the_self_test_fails_other_bits_are_inconclusive(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = rewrite(recorded, tmp_path / "forged.pol", states=moved)
    task = tasks.task(net="batchnorm", optimizer="adamw", steps=12)  # replayed in this process
    assert verify(forged, task, everything=True).verdict == "invalid"
    monkeypatch.setattr(selftest, "differing", lambda device: ["mm 5 7 3"])
    verdict = verify(forged, task, everything=True)
    assert verdict.verdict == "inconclusive"
    assert any("mm 5 7 3" in line and "pol selftest" in line for line in verdict.unreproduced)
    assert verify(recorded, task, everything=True).verdict == "valid"  # the bits are those that were recorded


def test_flushing_small_numbers_is_no_environment_of_portable_arithmetic(recorded: Path, tmp_path: Path) -> None:
    """A switch in a recorded environment that makes the verifier's own self-test fail would excuse any forged bit."""

    def flushing(environment: Environment) -> Environment:
        flags = msgspec.structs.replace(environment.flags, flush_denormal=True, mkldnn=False, matmul_precision="medium")
        return msgspec.structs.replace(environment, flags=flags)

    forged = rewrite(recorded, tmp_path / "forged.pol", environment=flushing, states=moved)
    verdict = verify(forged, TASK, everything=True, allow_calibrated=True)
    assert verdict.unreproduced == [] and verdict.verdict == "invalid", verdict.reason


def test_very_many_environments_are_no_reason_for_other_bits_either(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof may name more than are tried; but all of them are one here."""
    monkeypatch.setattr(replayer, "MAX_ENVIRONMENTS", 0)
    task = tasks.task(net="batchnorm", optimizer="adamw", steps=12)
    assert verify(recorded, task, everything=True).verdict == "valid"
    forged = rewrite(recorded, tmp_path / "forged.pol", states=moved)
    assert verify(forged, task, everything=True).verdict == "invalid"


def test_it_is_the_same_arithmetic_where_small_numbers_are_flushed() -> None:
    torch.set_flush_denormal(True)
    try:
        with using("portable"):
            assert (torch.tensor([1e-40]) * 1.0).item() != 0.0
        assert selftest.differing() == []
        assert flushes_denormals()  # put back
    finally:
        torch.set_flush_denormal(False)


def test_only_another_pytorch_and_numpy_in_steps_are_told() -> None:
    here = current()
    other = msgspec.structs.replace(here, torch="9.9.0+cu1", vendor="Another", threads=99, numpy="9.9")
    assert differences(other, here, portable=True) == [f"torch: recorded 9.9.0, here {here.torch.partition('+')[0]}"]
    assert len(differences(other, here, portable=True, own_numpy=True)) == 2


def test_a_killed_run_goes_on_to_the_same_root(recorded: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(TASK, tmp_path / "run.pol", interval=2, arithmetic="portable", progress=interrupt)
    assert prove(TASK, tmp_path / "run.pol", interval=2, arithmetic="portable").root == Proof.open(recorded).root


def test_a_claim_fixes_the_arithmetic(tmp_path: Path) -> None:
    claim = tmp_path / "claim.json"
    assert register(TASK, claim, interval=8, arithmetic="portable").claim.arithmetic == "portable"
    with pytest.raises(UsageError, match="arithmetic as portable, not native"):
        prove(TASK, tmp_path / "native.pol", registration=claim, arithmetic="native")
    prove(TASK, tmp_path / "run.pol", registration=claim)
    assert Proof.open(tmp_path / "run.pol").header.arithmetic == "portable"
    assert verify(tmp_path / "run.pol", TASK, registration=claim).verdict == "valid"


def test_an_arithmetic_that_does_not_exist_is_refused(tmp_path: Path, recorded: Path) -> None:
    with pytest.raises(UsageError, match="there is no arithmetic 'exact'"):
        prove(TASK, tmp_path / "run.pol", arithmetic="exact")
    forged = rewrite(recorded, tmp_path / "other.pol", header=lambda h: msgspec.structs.replace(h, arithmetic="exact"))
    with pytest.raises(FormatError, match="arithmetic"):
        Proof.open(forged)


def unportable() -> pol.Task:
    """A step with an operation outside of the table."""

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return torch.linalg.det(model(batch[0]).t() @ model(batch[0])).abs().log1p()  # HERE

    return pol.Task(name="unportable", data=tasks.data, model=lambda: nn.Linear(tasks.FEATURES, 3), loss=loss,
                    optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.01), batch_size=8, steps=4)  # fmt: skip


def test_what_has_no_portable_form_is_named_with_its_line(tmp_path: Path) -> None:
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# HERE"))
    with pytest.raises(TaskError, match=rf"_linalg_det.*test_portable_proofs\.py:{line} .*docs/guide/portable\.md"):
        prove(unportable(), tmp_path / "run.pol", arithmetic="portable")
    found = diagnose(TaskReference(f"{__file__}:unportable"), steps=2, arithmetic="portable").findings
    assert any("_linalg_det" in finding.what and f":{line}" in finding.what for finding in found)


def test_a_native_proof_is_what_it_was(tmp_path: Path) -> None:
    prove(TASK, tmp_path / "run.pol", interval=8)
    assert Proof.open(tmp_path / "run.pol").header.arithmetic == "native"
    assert verify(tmp_path / "run.pol", TASK).verdict == "valid"
