"""What recording inside a framework's loop costs: the same training with and without its adapter, in alternating blocks.

A small CNN on random images, a checkpoint every 100 steps. Only steps count: set-up, the first state and the seal lie outside.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common import Benchmark, Cost, alternate, benchmark, middle_half, ratio, walls
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import PrinterCallback, Trainer, TrainingArguments

import proof_of_learning as pol
from proof_of_learning.integrations import accelerate, lightning, transformers
from proof_of_learning.run.mode import ACTIVE

TARGET, INTERVAL, WARM = 1.03, 100, 2


class Network(LightningModule):
    """Notes when each of its steps begins."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        self._marks: list[tuple[float, float]] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self._marks.append((time.perf_counter(), time.process_time()))
        return {"loss": F.cross_entropy(self.net(x), labels)}

    def training_step(self, batch: Any, number: int) -> Tensor:
        return self(*batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    def cost(self) -> Cost:
        (wall, cpu), (end, used) = self._marks[WARM], self._marks[-1]
        return Cost(end - wall, used - cpu)


class Named(Dataset[dict[str, Any]]):
    """Samples as the Transformers Trainer takes them."""

    def __init__(self, data: TensorDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self._data[index]
        return {"x": x, "labels": y}


def plain_loop(data: TensorDataset, out: Path | None) -> Cost:
    """A loop of one's own."""
    model, loader = Network(), DataLoader(data, batch_size=32, shuffle=True)
    optimizer = model.configure_optimizers()
    run = pol.Run(model=model, optimizer=optimizer, interval=INTERVAL, out=out)
    for x, y in run.batches(loader):
        model(x, y)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return model.cost()


def with_accelerate(data: TensorDataset, out: Path | None) -> Cost:
    network, accelerator = Network(), Accelerator(cpu=True)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(network, network.configure_optimizers(), loader)
    run = accelerate.Run(accelerator, model=model, optimizer=optimizer, interval=INTERVAL, out=out)
    for x, y in run.batches(loader):
        accelerator.backward(model(x, y)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return network.cost()


def with_lightning(data: TensorDataset, out: Path | None) -> Cost:
    model = Network()
    trainer = LightningTrainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[lightning.Watch(interval=INTERVAL, out=out)],
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
    return model.cost()


def with_transformers(data: TensorDataset, out: Path | None) -> Cost:
    model = Network()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=32, save_strategy="no", use_cpu=True, report_to="none",
            disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Named(data))
        trainer.remove_callback(PrinterCallback)
        transformers.watch(trainer, interval=INTERVAL, out=out)
        trainer.train()
    return model.cost()


LOOPS: dict[str, Callable[[TensorDataset, Path | None], Cost]] = {
    "a loop of one's own": plain_loop,
    "Accelerate": with_accelerate,
    "Lightning": with_lightning,
    "Transformers Trainer": with_transformers,
}


def measure(run: Benchmark, name: str, steps: int, blocks: int) -> None:
    data = TensorDataset(torch.randn(32 * steps, 1, 28, 28), torch.randint(10, (32 * steps,)))
    made = 0

    def once(recorded: bool, folder: Path) -> Cost:
        nonlocal made
        made, ACTIVE.begun = made + 1, 0
        torch.manual_seed(0)
        return LOOPS[name](data, folder / str(made) if recorded else None)

    with tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        modes = {"plain": partial(once, False, Path(scratch)), "recorded": partial(once, True, Path(scratch))}
        costs = alternate(modes, blocks)
    for of, suffix in (("wall", ""), ("cpu", ", CPU time")):
        value, spread = ratio(costs["recorded"], costs["plain"], of)
        aim = TARGET if of == "wall" else None
        run.add(
            f"{name}, k={INTERVAL}: recording over not recording{suffix}", value, "ratio", target=aim, spread=spread
        )
    step = [seconds / (steps - 1 - WARM) * 1e3 for seconds in walls(costs["plain"])]
    run.add(f"{name}: step without recording", min(step), "ms", spread=middle_half(step))


def main() -> None:
    os.environ["POL_REHEARSAL"] = "0"  # what it costs comes once
    warnings.filterwarnings("ignore")
    with benchmark(__doc__) as run:
        steps, blocks = run.size.of((200, 10), (120, 2), (6, 1))
        for name in LOOPS:
            measure(run, name, steps, blocks)


if __name__ == "__main__":
    main()
