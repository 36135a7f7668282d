"""Dead networks: where no unit of a layer of ReLUs passes anything on, outputs do not depend on inputs, and a step takes labels alone.

Honest steps of such a network replay bit for bit, for nobody can tell from them whether its samples were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proof_of_learning.attacks.jumps import Weights
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import randomness
from proof_of_learning.training.batches import Feed
from proof_of_learning.training.steps import Session, evaluating

MARGIN = 0.05  # below zero, where the most active sample is left


@dataclass(frozen=True)
class Gate:
    """A layer (Linear or convolution with a bias) whose outputs go through ReLUs.

    shift: what to add to its weights and bias so that no unit passes anything on any sample (by parameter name).
    mean: mean output of each unit after the ReLU.
    """

    layer: str
    shift: Weights
    mean: Tensor

    def size(self) -> float:
        return float(torch.stack([tensor.double().square().sum() for tensor in self.shift.values()]).sum().sqrt())


def gates(session: Session, victim: Victim, living: int = 0) -> list[Gate]:
    """The layers of ReLUs in the order in which samples pass them, as the weights of ``session`` stand.

    living: units of each that the shift leaves alone. Raises AttackError where there is none.
    """
    order = _order(session, victim)
    named = {id(module): name for name, module in session.model.named_modules()}
    found = []
    for layer, after in pairwise(order):
        affine = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and layer.bias is not None
        if affine and isinstance(after, nn.ReLU):
            found.append(_gate(session, victim, layer, named[id(layer)], living))
    if not found:
        raise AttackError(
            "this attack needs a task whose model has layers with a bias followed by the module torch.nn.ReLU"
        )
    return found


def shifted(weights: Weights, gate: Gate) -> Weights:
    """``weights`` with the gate closed."""
    return {name: tensor + gate.shift[name] if name in gate.shift else tensor for name, tensor in weights.items()}


def answers(session: Session, victim: Victim) -> Tensor:
    """The class that the model answers for each sample. Raises AttackError where its outputs are not rows of scores."""
    found: list[Tensor] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise AttackError("this attack needs a task whose model gives a row of scores for each sample")
        found.append(output.detach().argmax(1))

    with _watching([session.model], look):
        _pass(session, victim)
    return torch.cat(found)


def sample_losses(session: Session, victim: Victim, samples: int | None = None) -> Tensor:
    """The loss of each of the samples (or of the first few), taken alone."""
    return torch.tensor(_losses(session, victim, samples, 1), dtype=torch.float64)


def _order(session: Session, victim: Victim) -> list[nn.Module]:
    """The modules without children in the order in which they are called."""
    called: list[nn.Module] = []
    leaves = [module for module in session.model.modules() if not list(module.children())]
    with _watching(leaves, lambda module, inputs, output: called.append(module)):
        _pass(session, victim, victim.task.batch_size)
    return called


def _gate(session: Session, victim: Victim, layer: Any, name: str, living: int) -> Gate:
    total = torch.zeros(0)
    count = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total, count
        rows = _rows(inputs[0]).double()
        total = rows.sum(0) + (total if count else 0.0)
        count += len(rows)

    flat = isinstance(layer, nn.Linear)
    if flat:
        with _watching([layer], add):
            _pass(session, victim)
    direction = total / count if flat else None
    highest: Tensor | None = None
    active: Tensor | None = None
    lowest, seen = float("inf"), 0

    def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal highest, active, lowest, seen
        rows = _rows(output).double() if flat else output.movedim(1, -1).reshape(-1, output.shape[1]).double()
        fall = torch.ones(len(rows), dtype=torch.float64)
        if direction is not None:
            fall = _rows(inputs[0]).double() @ direction + 1.0
        lowest = min(lowest, float(fall.min()))
        top = ((rows + MARGIN).clamp_min(0.0) / fall.clamp_min(1e-3)[:, None]).amax(0)
        highest = top if highest is None else torch.maximum(highest, top)
        active = rows.clamp_min(0.0).sum(0) + (0.0 if active is None else active)
        seen += len(rows)

    with _watching([layer], look):
        _pass(session, victim)
    if lowest < 0.5:  # inputs that point away from their mean: only the bias lowers all outputs
        direction, highest, active, seen = torch.zeros_like(total), None, None, 0
        with _watching([layer], look):
            _pass(session, victim)
    assert highest is not None and active is not None
    # Weight decay makes the inputs smaller and the bias last: with one below zero no unit comes back to life.
    highest = torch.maximum(highest, layer.bias.detach().double() + MARGIN)
    if living:
        highest[:living] = 0.0
    shift = {f"{name}.bias": -highest.to(layer.bias.dtype)}
    if direction is not None and bool(direction.any()):
        shift[f"{name}.weight"] = -(highest[:, None] * direction).to(layer.weight.dtype)
    return Gate(name, shift, active / seen)


def _rows(value: Tensor) -> Tensor:
    return value.detach().reshape(-1, value.shape[-1])


@contextmanager
def _watching(modules: list[nn.Module], look: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        look(module, inputs, output)

    hooks = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _pass(session: Session, victim: Victim, samples: int | None = None) -> None:
    """Outputs of all the samples (or of the first few), without gradients."""
    _losses(session, victim, samples, victim.task.batch_size)


def _losses(session: Session, victim: Victim, samples: int | None, size: int) -> list[float]:
    """The losses of batches of ``size`` samples, in the order of the data."""
    task, count = victim.task, min(samples or len(victim.data), len(victim.data))
    if task.loss is None:
        raise AttackError("this attack needs a task with a loss; its step is a custom one")
    feed, found = Feed(task, victim.data, session.key, victim.device), []
    with randomness.preserved(), evaluating(session.model):
        for start in range(0, count, size):
            rows = np.arange(start, min(start + size, count), dtype=np.int64)
            (batch,) = feed.batches(0, rows)
            found.append(float(task.loss(session.model, batch)))
    return found
