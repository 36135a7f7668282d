"""What a sealed step costs: the interpreted program over the task's own step, one thread, CPU time.

    python benchmarks/sealed_cost.py [--quick] --json FILE

Both take the same steps with the same bits, in alternating blocks; the ratio is that of the least of each. Sealing is timed once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from common import Cost, alternate, benchmark, timed
from portable_cost import cnn, transformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from proof_of_learning import Task
from proof_of_learning.numeric import randomness
from proof_of_learning.program.sealed import task_of
from proof_of_learning.program.tracing import seal
from proof_of_learning.training.steps import Session, derived_feed

TARGET = 1.1
FOREVER = 1 << 20


def classify(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def following(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def digits_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.rand(512, 1, 28, 28, generator=generator), torch.randint(10, (512,), generator=generator)
    )


def texts() -> TensorDataset:
    return TensorDataset(*torch.randint(65, (2, 512, 64), generator=torch.Generator().manual_seed(0)))


def tasks(batch: int) -> dict[str, Task]:
    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def adamw(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), 1e-3)

    return {
        "MLP": Task(model=digits_mlp, data=images, optimizer=sgd, loss=classify, batch_size=batch, steps=FOREVER),
        "CNN": Task(model=cnn, data=images, optimizer=sgd, loss=classify, batch_size=batch, steps=FOREVER),
        "Transformer 64": Task(
            model=lambda: transformer(64), data=texts, optimizer=adamw, loss=following, batch_size=batch, steps=FOREVER
        ),
    }


def main() -> None:
    torch.set_num_threads(1)
    with benchmark(__doc__ or "") as run:
        blocks, each, batch = run.size.of(12, 10, 1), run.size.of(20, 8, 1), run.size.of(64, 32, 4)
        for name, task in tasks(batch).items():
            data = task.data()
            begun = time.perf_counter()
            sealed = task_of(seal(task, data), task.data)
            run.add(f"{name}: sealing", time.perf_counter() - begun, "s")
            modes: dict[str, Callable[[], Cost]] = {}
            for mode, made in (("task", task), ("sealed", sealed)):
                key = randomness.key_from_seed(0)
                steps = Session(made, key).run(FOREVER, *derived_feed(made, data, key, "cpu"))

                def block(steps: object = steps) -> Cost:
                    return timed(lambda: list(itertools.islice(steps, each)))  # type: ignore[call-overload]

                block()
                modes[mode] = block
            costs = alternate(modes, blocks)
            least = {mode: min(cost.cpu for cost in found) / each for mode, found in costs.items()}
            run.add(f"{name}: step of the task", least["task"] * 1e3, "ms")
            run.add(f"{name}: sealed over the task", least["sealed"] / least["task"], "times", target=TARGET)


if __name__ == "__main__":
    main()
