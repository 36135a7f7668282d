"""Small tasks that can be sealed, by name, and some that cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler
from torch.utils.data import TensorDataset

from proof_of_learning import Task

SAMPLES, SIZE, WORDS = 84, 8, 20  # 84 = 2 · 32 + 20: an epoch's last step is a short one
# Rarely the same loss twice, so that another order of operations would show.


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(SAMPLES, 1, SIZE, SIZE, generator=generator)
    return TensorDataset(pixels, torch.randint(0, 10, (SAMPLES,), generator=generator))


def texts() -> TensorDataset:
    return TensorDataset(torch.randint(0, WORDS, (SAMPLES, 13), generator=torch.Generator().manual_seed(1)))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.cells = nn.Embedding(WORDS, 16), nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.cells(self.words(x))[0])
        return out


class Attentive(nn.Module):
    """A Transformer with tied weights, a parameter of its own and a table that is no part of its ``state_dict``."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 16), nn.Parameter(torch.randn(12, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, WORDS, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(12), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.words(x) + self.places, mask=self.mask, is_causal=True)
        out: Tensor = self.out(self.norm(x))
        return out


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def following(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())


def groups(model: nn.Module) -> AdamW:
    wide, thin = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]
    return AdamW([{"params": wide, "weight_decay": 0.1}, {"params": thin, "weight_decay": 0.0}], lr=0.01)


COMMON: dict[str, Any] = {"batch_size": 32, "steps": 7}
TASKS: dict[str, Callable[[], Task]] = {
    "mlp": lambda: Task(
        name="mlp", model=mlp, data=images, loss=classify, optimizer=lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9),
        scheduler=lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.5), **COMMON,
    ),
    "cnn": lambda: Task(
        name="cnn", model=cnn, data=images, loss=classify, clip_norm=1.0, **COMMON,
        optimizer=lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        scheduler=lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    ),
    "lstm": lambda: Task(
        name="lstm", model=Recurrent, data=texts, loss=following, optimizer=lambda m: Adam(m.parameters(), lr=0.01),
        scheduler=lambda o: lr_scheduler.CosineAnnealingLR(o, 3), schedule="epoch", **COMMON,
    ),
    "transformer": lambda: Task(
        name="transformer", model=Attentive, data=texts, loss=following, optimizer=groups, accumulate=2, **COMMON
    ),
}  # fmt: skip


def task(name: str = "mlp") -> Task:
    return TASKS[name]()


# ---- what cannot be sealed ---------------------------------------------------------------------------


def depends(model: nn.Module, batch: Any) -> Tensor:
    loss = classify(model, batch)
    if loss > 1:  # a condition on a number
        loss = loss * 2
    return loss


def cast(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):  # another type
        return classify(model, batch)


def chosen(model: nn.Module, batch: Any) -> Tensor:
    out = model(batch[0])
    return F.cross_entropy(out[batch[1] > 4], batch[1][batch[1] > 4])  # a shape from the data


def strange(model: nn.Module, batch: Any) -> Tensor:
    return classify(model, batch) + torch.linalg.svdvals(batch[0][0, 0]).sum()  # outside the list


def still(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():  # a switch
        out = model(batch[0])
    return classify(model, batch) + out.sum() * 0


def foreign() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("3.bias").copy_(torch.from_numpy(np.random.randn(10)))  # NumPy's generator
    return model
