"""The plain PyTorch loop that everything is measured against: the example's model, optimizer and loss, and nothing of ours.

As a program (``plain.py STEPS``) it trains in a fresh process and prints the cost of the loop as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from common import Cost, fashion, timed
from torch import Tensor

from proof_of_learning import Task, load_task


class Loop:
    """A model in training, batch by batch in a fresh random order each epoch."""

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.model().train()
        self.optimizer = task.optimizer(self.model)
        self.columns: tuple[Tensor, ...] = task.data().tensors  # type: ignore[attr-defined]
        self.order, self.position, self.done = torch.empty(0, dtype=torch.int64), 0, 0
        self.loss: Tensor | None = None

    def run(self, steps: int, after: Callable[[int], None] = lambda step: None) -> None:
        assert self.task.loss is not None
        for _ in range(steps):
            if self.position >= len(self.order):
                self.order, self.position = torch.randperm(len(self.columns[0])), 0
            chosen = self.order[self.position : self.position + self.task.batch_size]
            self.position += self.task.batch_size
            loss = self.task.loss(self.model, [column[chosen] for column in self.columns])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.loss = loss.detach()  # one, for thousands of small tensors would keep the memory between them
            self.done += 1
            after(self.done)


def deterministic() -> None:
    """The numeric settings in which a managed training runs."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def main() -> None:
    steps = int(sys.argv[1])
    deterministic()
    torch.manual_seed(0)
    loop = Loop(load_task(fashion()))
    cost: Cost = timed(lambda: loop.run(steps))
    print(json.dumps({"wall": cost.wall, "cpu": cost.cpu}))


if __name__ == "__main__":
    main()
