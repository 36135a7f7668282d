"""Numbers below the smallest normal one: whether the processor makes zeros of them in this thread."""

from __future__ import annotations


def flushes_denormals() -> bool:
    import torch

    return bool((torch.tensor([1e-310], dtype=torch.float64) * 1.0).item() == 0.0)
