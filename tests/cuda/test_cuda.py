"""On a GPU: recorded, replayed by another process, and the CPU's bits in portable arithmetic. Skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from proof_of_learning import TaskReference, prove
from proof_of_learning.numeric.portable import selftest
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.state.state import capture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HERE = Path(__file__).parents[1]


def reference(**settings: Any) -> TaskReference:
    return TaskReference(f"{HERE}/tasks.py:task", {"steps": 12, **settings})


def verified(path: Path, task: TaskReference, *, sees_gpu: bool = True) -> dict[str, Any]:
    """The verdict of another process on every segment."""
    settings = [word for name, value in task.settings.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "proof_of_learning", "verify", str(path), "--task", task.target, *settings, "--all", "--sandbox", "off",
         "--json", "-"],
        env=os.environ if sees_gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "settings", [{"net": "batchnorm"}, {"net": "batchnorm", "optimizer": "adamw"}], ids=["SGD", "AdamW"]
)
def test_a_run_is_replayed_bit_for_bit_by_another_process(settings: dict[str, Any], tmp_path: Path) -> None:
    task = reference(**settings)
    prove(task, tmp_path / "run.pol", interval=3, device="cuda")
    verdict = verified(tmp_path / "run.pol", task)
    assert (verdict["verdict"], verdict["exactness"]) == ("valid", "exact"), verdict["reason"]
    assert all(segment["exact"] for segment in verdict["segments"])


def test_portable_arithmetic_gives_the_published_bits() -> None:
    assert selftest.differing("cuda") == []


def test_a_portable_proof_from_a_gpu_is_verified_to_the_bit_without_one(tmp_path: Path) -> None:
    task = reference(net="batchnorm", optimizer="adamw")
    prove(task, tmp_path / "run.pol", interval=3, device="cuda", arithmetic="portable")
    verdict = verified(tmp_path / "run.pol", task, sees_gpu=False)
    assert (verdict["verdict"], verdict["exactness"]) == ("valid", "exact"), verdict["reason"]


def test_a_state_is_captured_as_it_stood_when_steps_go_on_at_once() -> None:
    model = torch.nn.Linear(512, 512).to("cuda")
    wanted = model.weight.detach().cpu().clone()
    state = capture({"model": model})
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(next(t for name, t in state.tensors.items() if name.endswith("weight")), wanted)


def test_steps_may_go_on_while_a_state_is_copied() -> None:
    first, norm = torch.nn.Linear(2048, 2048).to("cuda"), torch.nn.BatchNorm1d(3).to("cuda")
    norm.weight.data = norm.weight.data.to(torch.bfloat16)
    model = torch.nn.Sequential(first, norm, torch.nn.BatchNorm1d(5).to("cuda"))
    optimizer = torch.optim.Adam(first.parameters(), lr=0.1)
    first(torch.ones(2, 2048, device="cuda")).sum().backward()
    optimizer.step()  # whose step counter is on the CPU
    parts = {"model": model, "optimizer": optimizer}
    for _ in range(3):
        wanted = capture(parts).digest()
        state = capture(parts, live=True, behind=True)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(-1)
        optimizer.step()
        state.wait()
        assert state.digest() == wanted != capture(parts).digest()
        assert not state.live and all(tensor.device.type == "cpu" for tensor in state.tensors.values())


SCRIPT = """
import torch
import proof_of_learning as pol
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
made = torch.Generator().manual_seed(1)
data = TensorDataset(torch.randn(256, 8, generator=made), torch.randint(4, (256,), generator=made))
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4)).cuda()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = DataLoader(data, batch_size=32, shuffle=True)
run = pol.Run(model=model, optimizer=optimizer, interval=4)
for _ in range(3):
    for x, y in run.batches(loader):
        loss = nn.functional.cross_entropy(model(x.cuda()), y.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
run.close()
"""


def test_a_script_is_recorded_on_a_gpu_and_replayed_by_another_process(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    pol = [sys.executable, "-m", "proof_of_learning"]
    made = subprocess.run(
        [*pol, "prove", "train.py", "-o", "run.pol"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    done = subprocess.run(
        [*pol, "verify", "run.pol", "--task", "train.py", "--all", "--sandbox", "off", "--json", "-"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    verdict = json.loads(done.stdout)
    assert all(segment["exact"] for segment in verdict["segments"]), verdict.get("reason")


def test_generators_of_the_gpu_are_restored() -> None:
    torch.rand(1, device="cuda")
    before = RngSnapshot.take()
    drawn = torch.rand(5, device="cuda")
    before.restore()
    assert torch.equal(torch.rand(5, device="cuda"), drawn)
