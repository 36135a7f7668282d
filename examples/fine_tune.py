"""Fine-tuning from another proof: the digits network keeps its convolutions and learns to tell odd from even.

The start is another proof's final state, wherever names and shapes agree (here the convolutions); the new last layer follows
from this run's own key::

    pol prove examples/digits.py:task -o base.pol
    pol prove examples/fine_tune.py:task -o tuned.pol --start-from base.pol
    pol verify tuned.pol --task examples/fine_tune.py:task --chain base.pol=examples/digits.py:task
"""

from __future__ import annotations

import digits
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task


def training_data() -> TensorDataset:
    x, y = digits.training_data().tensors
    return TensorDataset(x, y % 2)


def model() -> nn.Module:
    network = digits.model()
    assert isinstance(network, nn.Sequential)
    network[-1] = nn.Linear(64, 2)
    return network


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def evaluate(model: nn.Module) -> dict[str, float]:
    x, y = digits.images()
    held = torch.arange(len(x)) % digits.TEST_SHARE == 0
    device = next(model.parameters()).device
    right = model(x[held].to(device)).argmax(1).cpu() == y[held] % 2
    return {"test_accuracy": right.double().mean().item()}


def task(steps: int = 500, batch_size: int = 32, lr: float = 0.01, seed: int = 0) -> Task:
    return Task(
        name="odd-or-even",
        model=model,
        data=training_data,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9),
        loss=loss,
        evaluate=evaluate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
