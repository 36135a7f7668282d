"""Inertia: how far the optimizer's state alone would move the weights, without any gradient.

A forger who falsifies only a momentum makes the next, honestly replayable segment jump; the false state itself shows
no displacement of its weights. Ranking segments by the inertia of their start points at it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.training.state import State, decode_tree
from proof_of_learning.verifier.dynamics import family

_PIECE = 1 << 18  # elements
_ERRORS = (FormatError, KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RuntimeError)


def inertia(state: State, rates: Mapping[str, Sequence[float]] | Sequence[float]) -> float:
    """l2 norm of the update that one step with zero gradient would make at the learning rates ``rates``.

    rates: those of each optimizer's groups, by the name of its part (``optimizer.generator``). A plain sequence is that of the only
        optimizer; with several, none can be told to be whose, and each group is given the largest. So is a group without a rate.

    Knows the families of PyTorch's optimizers by their state: SGD's momentum, Adam's moments, RMSprop's momentum. For
    another optimizer, the norm of its floating-point state times the rate. Infinite for a state that is malformed.
    """
    squares = 0.0
    try:
        parts = decode_tree(state.tree, state.tensors)
        names = [name for name in parts if name == "optimizer" or name.startswith("optimizer.")]
        if not isinstance(rates, Mapping):
            rates = {names[0]: rates} if len(names) == 1 else {"": rates}
        largest = max((abs(rate) for group in rates.values() for rate in group), default=1.0)
        for name in names:
            groups, entries, own = parts[name]["groups"], parts[name]["state"], rates.get(name, ())
            for number, group in enumerate(groups):
                rate = own[number] if number < len(own) else largest
                if 0 < len(own) <= number:  # added while training: its rate is in the states alone
                    rate = max(rate, abs(float(group["lr"])))
                for index in group["params"]:
                    if index in entries:
                        squares += (rate * _step_length(entries[index], group)) ** 2
    except _ERRORS:
        return math.inf
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


def _step_length(entry: dict[str, Any], group: dict[str, Any]) -> float:
    kind = family(group, {name for name, value in entry.items() if value is not None})
    if kind in ("adam", "adamw") or {"exp_avg", "exp_avg_sq"} <= set(entry):
        return _adam(entry, group)  # relatives of Adam too: they move by nearly as much
    if kind in ("sgd", "rmsprop"):
        buffer, momentum = entry.get("momentum_buffer"), float(group["momentum"])
        carried = momentum**2 if group.get("nesterov") else momentum
        return carried * _norm(buffer) if isinstance(buffer, Tensor) else 0.0
    if kind == "adagrad":
        return 0.0
    return math.sqrt(
        sum(_norm(v) ** 2 for v in entry.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim)
    )


def _adam(entry: dict[str, Any], group: dict[str, Any]) -> float:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    steps = float(entry["step"]) + 1.0
    mean, square = entry["exp_avg"], entry["exp_avg_sq"]
    shrunk = beta2
    if "max_exp_avg_sq" in entry:
        square, shrunk = entry["max_exp_avg_sq"], 1.0  # the largest so far does not shrink
    if mean.shape != square.shape:
        return math.inf
    mean, square, total = mean.flatten(), square.flatten(), 0.0
    for start in range(0, len(mean), _PIECE):  # in pieces, for in double precision the whole would fill the memory
        spread = square[start : start + _PIECE].double() * shrunk / (1.0 - beta2**steps)
        move = mean[start : start + _PIECE].double() * beta1 / (1.0 - beta1**steps)
        total += float((move / (spread.sqrt() + float(group.get("eps", 0.0)))).norm()) ** 2
    return math.sqrt(total)


def _norm(tensor: Tensor) -> float:
    flat = tensor.flatten()
    pieces = (flat[start : start + _PIECE].double() for start in range(0, len(flat), _PIECE))
    return math.sqrt(sum(float(torch.linalg.vector_norm(piece)) ** 2 for piece in pieces))
