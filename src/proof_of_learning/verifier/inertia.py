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
from proof_of_learning.proof.codecs.base import batched
from proof_of_learning.state.state import State, decode_tree
from proof_of_learning.verifier.dynamics import family

_PIECE = 1 << 18  # elements
_ERRORS = (FormatError, KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RuntimeError)
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_Entry = dict[str, Any]


def inertia(state: State, rates: Mapping[str, Sequence[float]] | Sequence[float]) -> float:
    """l2 norm of the update that one step with zero gradient would make at the learning rates ``rates``.

    rates: those of each optimizer's groups, by the name of its part (``optimizer.generator``). A plain sequence is that of the only
        optimizer; with several, none can be told to be whose, and each group is given the largest. So is a group without a rate.

    Knows the families of PyTorch's optimizers by their state: SGD's momentum, Adam's moments, RMSprop's momentum. For
    another optimizer, the norm of its floating-point state times the rate. Infinite for a state that is malformed.
    """
    squares = 0.0
    try:
        tree = {"d": [[key, node if _is_optimizer(key[2:]) else None] for key, node in state.tree["d"]]}
        parts = decode_tree(tree, state.tensors)
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
                for length in _step_lengths([entries[index] for index in group["params"] if index in entries], group):
                    squares += (rate * length) ** 2
    except _ERRORS:
        return math.inf
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


def _is_optimizer(part: str) -> bool:
    return part == "optimizer" or part.startswith("optimizer.")


def _step_lengths(entries: Sequence[_Entry], group: _Entry) -> list[float]:
    """Of each parameter of a group, how far what is kept for it would move it at a rate of 1."""
    kinds: dict[frozenset[str], str | None] = {}
    found, carried, adams = dict[int, float](), dict[int, tuple[float, Tensor]](), dict[int, _Entry]()
    for number, entry in enumerate(entries):
        names = frozenset(name for name, value in entry.items() if value is not None)
        if names not in kinds:
            kinds[names] = family(group, names)
        kind = kinds[names]
        if kind in ("adam", "adamw") or {"exp_avg", "exp_avg_sq"} <= set(entry):
            adams[number] = entry  # relatives of Adam too: they move by nearly as much
        elif kind in ("sgd", "rmsprop"):
            buffer, momentum = entry.get("momentum_buffer"), float(group["momentum"])
            if isinstance(buffer, Tensor):
                carried[number] = momentum**2 if group.get("nesterov") else momentum, buffer
            found[number] = 0.0
        elif kind == "adagrad":
            found[number] = 0.0
        else:
            tensors = [v for v in entry.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim]
            found[number] = math.sqrt(sum(length**2 for length in _norms(tensors)))
    lengths = _norms([buffer for _, buffer in carried.values()])
    found |= {number: carried[number][0] * length for number, length in zip(carried, lengths, strict=True)}
    found |= dict(zip(adams, _adams(list(adams.values()), group), strict=True))
    return [found[number] for number in range(len(entries))]


def _adams(entries: Sequence[_Entry], group: _Entry) -> list[float]:
    """Of each, how far Adam would move: for small ones that stand at one step all at once, which gives the same bits."""
    found, alike = dict[int, float](), dict[tuple[float, bool], list[int]]()
    for number, entry in enumerate(entries):
        held = [entry[name] for name in _MOMENTS if name in entry]
        if all(map(_small, held)) and all(moment.shape == held[0].shape for moment in held):
            alike.setdefault((float(entry["step"]), len(held) > 2), []).append(number)
        else:
            found[number] = _adam(entry, group)
    for numbers in alike.values():
        for chosen in batched(numbers, lambda number: entries[number]["exp_avg"].numel(), _PIECE):
            some = [entries[number] for number in chosen]
            whole = {n: torch.cat([entry[n].flatten() for entry in some]) for n in _MOMENTS if n in some[0]}
            moves = torch.split(_move({**some[0], **whole}, group), [entry["exp_avg"].numel() for entry in some])
            lengths = torch.stack(torch._foreach_norm(moves)).tolist()
            found |= {number: math.sqrt(length**2) for number, length in zip(chosen, lengths, strict=True)}
    return [found[number] for number in range(len(entries))]


def _adam(entry: _Entry, group: _Entry) -> float:
    mean, square = entry["exp_avg"], entry["max_exp_avg_sq" if "max_exp_avg_sq" in entry else "exp_avg_sq"]
    if mean.shape != square.shape:
        return math.inf
    flat = {name: entry[name].flatten() for name in _MOMENTS if name in entry}
    total = 0.0
    for start in range(0, mean.numel(), _PIECE):  # in pieces, for in double precision the whole would fill the memory
        piece = {name: values[start : start + _PIECE] for name, values in flat.items()}
        total += float(_move({**entry, **piece}, group).norm()) ** 2
    return math.sqrt(total)


def _move(entry: _Entry, group: _Entry) -> Tensor:
    """The step that Adam's moments make at a rate of 1, without a gradient; float64, by element."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    steps = float(entry["step"]) + 1.0
    # The largest second moment so far does not shrink.
    square, shrunk = (entry["max_exp_avg_sq"], 1.0) if "max_exp_avg_sq" in entry else (entry["exp_avg_sq"], beta2)
    spread = _double(square).mul_(shrunk).div_(1.0 - beta2**steps).sqrt_()
    move = _double(entry["exp_avg"]).mul_(beta1).div_(1.0 - beta1**steps)
    return move.div_(spread.add_(float(group.get("eps", 0.0))))


def _double(value: Tensor) -> Tensor:
    """A copy in float64; of complex numbers both parts, each of which PyTorch's optimizers move by itself."""
    return (torch.view_as_real(value) if value.is_complex() else value).to(torch.float64, copy=True)


def _small(value: Any) -> bool:
    """Whether it is a tensor of which many are looked at together."""
    return isinstance(value, Tensor) and value.dtype == torch.float32 and 0 < value.numel() <= _PIECE


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """The l2 norm of each."""
    small = [number for number, tensor in enumerate(tensors) if _small(tensor)]
    lengths = torch._foreach_norm([tensors[number] for number in small], dtype=torch.float64) if small else ()
    found = dict(zip(small, torch.stack(lengths).tolist() if lengths else (), strict=True))
    return [math.sqrt(found[n] ** 2) if n in found else _norm(tensor) for n, tensor in enumerate(tensors)]


def _norm(tensor: Tensor) -> float:
    flat = tensor.flatten()
    pieces = (flat[start : start + _PIECE].double() for start in range(0, len(flat), _PIECE))
    return math.sqrt(sum(float(torch.linalg.vector_norm(piece)) ** 2 for piece in pieces))
