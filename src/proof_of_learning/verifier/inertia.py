"""Inertia: how far the optimizer's state alone would move the weights, without any gradient.

A forger who falsifies only a momentum makes the next, honestly replayable segment jump; the false state itself shows
no displacement of its weights. Ranking segments by the inertia of their start points at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.training.state import State, decode_tree

_PIECE = 1 << 18  # elements


def inertia(state: State, rates: Sequence[float]) -> float:
    """l2 norm of the update that one step with zero gradient would make at the learning rates ``rates`` (by group).

    Knows the families of PyTorch's optimizers by their state: SGD's momentum, Adam's moments, RMSprop's momentum. For
    another optimizer, the norm of its floating-point state times the rate. Infinite for a state that is malformed.
    """
    squares, position = 0.0, 0
    try:
        parts = decode_tree(state.tree, state.tensors)
        for name in sorted(parts):
            if name != "optimizer" and not name.startswith("optimizer."):
                continue
            groups, entries = parts[name]["groups"], parts[name]["state"]
            for group in groups:
                rate = rates[position] if position < len(rates) else 1.0
                position += 1
                for index in group["params"]:
                    if index in entries:
                        squares += (rate * _step_length(entries[index], group)) ** 2
    except (FormatError, KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError):
        return math.inf
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


def _step_length(entry: dict[str, Any], group: dict[str, Any]) -> float:
    if "exp_avg" in entry and "exp_avg_sq" in entry:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        steps = float(entry["step"]) + 1.0
        mean, square = entry["exp_avg"], entry.get("max_exp_avg_sq", entry["exp_avg_sq"])
        if mean.shape != square.shape:
            return math.inf
        mean, square, total = mean.flatten(), square.flatten(), 0.0
        for start in range(0, len(mean), _PIECE):  # in pieces, for in double precision the whole would fill the memory
            spread = square[start : start + _PIECE].double() * beta2 / (1.0 - beta2**steps)
            move = mean[start : start + _PIECE].double() * beta1 / (1.0 - beta1**steps)
            total += float((move / (spread.sqrt() + float(group["eps"]))).norm()) ** 2
        return math.sqrt(total)
    buffer = entry.get("momentum_buffer")
    if isinstance(buffer, Tensor):
        return float(group.get("momentum", 1.0)) * _norm(buffer)
    known = {"step", "square_avg", "sum", "grad_avg", "momentum_buffer"}
    if set(entry) <= known:
        return 0.0  # RMSprop and Adagrad without momentum do not move by themselves
    return math.sqrt(
        sum(_norm(v) ** 2 for v in entry.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim)
    )


def _norm(tensor: Tensor) -> float:
    flat = tensor.flatten()
    pieces = (flat[start : start + _PIECE].double() for start in range(0, len(flat), _PIECE))
    return math.sqrt(sum(float(torch.linalg.vector_norm(piece)) ** 2 for piece in pieces))
