"""What the tests of scripts share: a small loop with places to change, and how one is run, recorded and verified."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import proof_of_learning as pol
from conftest import nursery
from proof_of_learning.task import TaskReference

SCRIPTS = Path(__file__).parents[1] / "examples" / "scripts"

# A loop of one hidden layer, with places for what a test wants to be different.
LOOP = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import proof_of_learning as pol
from proof_of_learning.data.digits import digits

torch.manual_seed(1)
x, y = digits()
data = TensorDataset(torch.tensor(x[:640].reshape(640, 64), dtype=torch.float32) / 16, torch.tensor(y[:640]))
loader = DataLoader(data, batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
run = pol.Run(model=model, optimizer=optimizer)
steps = 0
for epoch in run.epochs(EPOCHS):
    for number, (a, b) in enumerate(run.batches(loader)):
        BEGIN
        loss = nn.functional.cross_entropy(model(a), b)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        STEP
    EPOCH
END
"""


def script(folder: Path, name: str = "train.py", *, epochs: int = 2, begin: str = "pass", step: str = "pass", epoch: str = "pass",
           end: str = "run.close()") -> Path:  # fmt: skip
    text = LOOP.replace("EPOCHS", str(epochs)).replace("BEGIN", begin).replace("STEP", step)
    text = text.replace("    EPOCH\n", f"    {epoch}\n").replace("END", end)
    (folder / name).write_text(text)
    return folder / name


def variables(rehearse: bool = False) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POL_REHEARSAL": str(int(rehearse))}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """The script by itself."""
    done = nursery.run(command, variables(), kind="script")
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def record(
    path: Path, out: Path, *arguments: str, interval: int = 4, rehearse: bool = False
) -> subprocess.CompletedProcess[str]:
    """``pol prove PATH -o OUT -- ARGUMENTS`` in a process of its own."""
    command = ("prove", path, "-o", out, "-k", interval, "--", *arguments)
    done = nursery.run(command, variables(rehearse), out.parent)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def verdict(proof: Path, path: Path, *, arguments: tuple[str, ...] | None = None, **choices: object) -> pol.Verdict:
    return pol.verify(proof, TaskReference(str(path), arguments=arguments), **choices)  # type: ignore[arg-type]
