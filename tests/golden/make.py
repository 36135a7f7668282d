"""Records the golden proofs of the format version that this package writes, in a numeric environment that other machines share:

    ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 python tests/golden/make.py tests/golden/vN

Once committed they stay: later versions of the package must check and verify them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import proof_of_learning as pol
from proof_of_learning.proof.pack import pack

TASK = f"{Path(__file__).parent}/task.py:task"
INTERVAL = 4


def observe(path: Path, interval: int, early: int | None = None) -> None:
    """A loop of its own: order and generator states are recorded. ``early``: it ends after so many steps."""
    task = pol.load_task(TASK)
    assert task.loss is not None and task.scheduler is not None
    torch.manual_seed(5)
    model = task.model()
    optimizer = task.optimizer(model)
    schedule: Any = task.scheduler(optimizer)
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    with pol.Recorder.observe(path, task, parts, interval=interval) as recorder:
        loader: DataLoader[Any] = DataLoader(pol.Indexed(task.data()), batch_size=task.batch_size, shuffle=True)  # type: ignore[arg-type]
        while not recorder.finished and recorder.steps_done + 1 != early:
            for batch in recorder.watch(loader):
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                recorder.loss(loss)
                if recorder.steps_done + 1 == early:
                    break
        recorder.close(early=early is not None)


def make(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for codec in ("raw", "lossless", "quantised", "compact"):
            pol.prove(TASK, folder / codec, interval=INTERVAL, codec=codec, portable=True)
        pol.thin(folder / "raw", 2, folder / "thinned")
        claim = home / "claim.json"
        pol.register(TASK, claim, interval=INTERVAL, portable=True)
        pol.prove(TASK, folder / "registered", registration=claim, portable=True)
        observe(folder / "observed", 2 * INTERVAL)
        observe(folder / "stopped", INTERVAL, early=14)
        for proof in sorted(folder.iterdir()):
            pack(proof, home / f"{proof.name}.tar")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
