"""What ``gpu.py`` records on a GPU: the examples as they are, and with automatic mixed precision or a compiled model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import char_transformer
import cifar10_resnet20
import fashion_mnist

from proof_of_learning import Task

TRANSFORMER: dict[str, Any] = {"width": 128, "layers": 2, "window": 64, "batch_size": 32, "accumulate": 1}


def cnn(steps: int = 200) -> Task:
    return fashion_mnist.task(steps=steps)


def resnet20(steps: int = 200) -> Task:
    return cifar10_resnet20.task(steps=steps)


def transformer(steps: int = 200) -> Task:
    return char_transformer.task(steps=steps, **TRANSFORMER)


def bf16(steps: int = 200) -> Task:
    """The Transformer with bfloat16 products."""

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        with torch.autocast(batch[0].device.type, dtype=torch.bfloat16):
            return char_transformer.loss(model, batch)

    return replace(transformer(steps), name="char-transformer-bf16", loss=loss)


def fp16(steps: int = 200) -> Task:
    """The Transformer with float16 products and a scaler of gradients, which skips steps while its scale is too high."""

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        with torch.autocast(batch[0].device.type, dtype=torch.float16):
            return char_transformer.loss(model, batch)

    made: Any = lambda: torch.amp.GradScaler("cuda" if torch.cuda.is_available() else "cpu", init_scale=2.0**24)  # noqa: E731
    return replace(transformer(steps), name="char-transformer-fp16", loss=loss, scaler=made)


def compiled(steps: int = 200) -> Task:
    """The CNN, compiled."""

    def model() -> nn.Module:
        made = fashion_mnist.model()
        made.compile()
        return made

    return replace(fashion_mnist.task(steps=steps), name="fashion-mnist-compiled", model=model)


def wide(steps: int = 60) -> Task:
    """A Transformer of 25 million parameters."""
    return char_transformer.task(steps=steps, width=512, layers=8, heads=8, window=128, batch_size=64, accumulate=1)
