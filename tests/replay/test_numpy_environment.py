"""NumPy computes no step of a standard loop, but it may compute samples: then its version and CPU features count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import proof_of_learning as pol
import tasks
from proof_of_learning import Proof, TaskReference
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.state.state import State
from support_forging import rewrite

VARIABLE = "NPY_DISABLE_CPU_FEATURES"
TASK = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from proof_of_learning import Task


def augment(sample, generator):
    x, y = sample
    noise = torch.randn(x.shape, generator=generator).numpy()
    return torch.from_numpy(np.exp(np.sin(noise) * x.numpy()) + np.tanh(noise)), y


def task():
    x = torch.arange(32 * 24, dtype=torch.float32).reshape(32, 24) / 768
    return Task(
        name="augmented", model=lambda: nn.Linear(24, 3), data=lambda: TensorDataset(x, torch.arange(32) % 3),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.1),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), augment=augment, batch_size=8, steps=6,
    )
"""


def features() -> list[str]:
    """What this NumPy found on this processor and could do without."""
    umath: Any = pytest.importorskip("numpy._core._multiarray_umath")
    return [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]


def another_numpy(environment: Environment) -> Environment:
    return msgspec.structs.replace(environment, numpy="1.99.0")


def elsewhere(states: list[State]) -> list[State]:
    """One state as a sample with other last bits would have left it."""
    name = "model/parameters/first.weight"
    return [
        *states[:2],
        State(states[2].tree, {**states[2].tensors, name: states[2].tensors[name] + 1e-6}),
        *states[3:],
    ]


@pytest.mark.parametrize("code", ["augment", "collate", "custom"])
def test_other_bits_under_another_numpy_are_inconclusive_where_the_task_may_use_it(code: str, tmp_path: Path) -> None:
    task = tasks.task(**{code: True})  # type: ignore[arg-type]
    path = Path(pol.prove(task, tmp_path / "honest.pol", interval=5).path)
    same = rewrite(path, tmp_path / "same.pol", environment=another_numpy)
    assert pol.verify(same, task, everything=True).verdict == "valid"  # the bits agree
    verdict = pol.verify(
        rewrite(path, tmp_path / "run.pol", environment=another_numpy, states=elsewhere), task, everything=True
    )
    assert verdict.verdict == "inconclusive"
    assert "numpy: recorded 1.99.0, here " in verdict.reason


def test_a_standard_loop_computes_no_step_with_numpy(tiny_proof: Path, tmp_path: Path) -> None:
    forged = rewrite(tiny_proof, tmp_path / "run.pol", environment=another_numpy, states=elsewhere)
    verdict = pol.verify(forged, tasks.task(), everything=True)
    assert (verdict.verdict, verdict.unreproduced) == ("invalid", [])


@pytest.mark.slow
def test_the_features_that_numpy_did_without_are_recorded_and_reproduced(tmp_path: Path) -> None:
    if not (found := features()):
        pytest.skip("this NumPy has nothing to do without")
    (tmp_path / "augmented.py").write_text(TASK)
    reference = TaskReference(f"{tmp_path}/augmented.py:task")
    script = "import sys, proof_of_learning as pol\npol.prove(pol.TaskReference(sys.argv[1]), sys.argv[2], interval=2)"
    command = [sys.executable, "-c", script, reference.target, str(tmp_path / "run.pol")]
    subprocess.run(command, check=True, env={**os.environ, VARIABLE: ", ".join(found)})
    (recorded,) = Proof.open(tmp_path / "run.pol").environments.values()
    assert recorded.variables == {VARIABLE: " ".join(found)}
    verdict = pol.verify(tmp_path / "run.pol", reference, everything=True)
    assert (verdict.verdict, verdict.unreproduced) == ("valid", []), verdict.reason
    own = pol.verify(tmp_path / "run.pol", reference, everything=True, reproduce=False)
    assert own.verdict in ("valid", "inconclusive")  # whether the bits differ, the processor decides
    assert f"variables.{VARIABLE}: recorded {' '.join(found)}, here unset" in own.unreproduced


def test_numpy_is_not_told_what_it_would_refuse_to_start_with(tiny_proof: Path) -> None:
    (environment,) = Proof.open(tiny_proof).environments.values()
    umath: Any = pytest.importorskip("numpy._core._multiarray_umath")
    asked = " ".join([*umath.__cpu_baseline__, "NOVEL_512"])
    passed = environments.process_variables(msgspec.structs.replace(environment, variables={VARIABLE: asked}))
    assert VARIABLE not in passed
    some = umath.__cpu_dispatch__[:1]
    given = msgspec.structs.replace(environment, variables={VARIABLE: " ".join([*umath.__cpu_baseline__, *some])})
    assert environments.process_variables(given).get(VARIABLE, "").split() == some
