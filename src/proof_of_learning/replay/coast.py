"""Coasting: what the task's own optimizers do to the weights without any gradient.

For optimizers whose rule the verifier does not know. A momentum that somebody falsified carries the weights here, where no honest
step stands between it and what it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proof_of_learning.replay.protocol import Coasting
from proof_of_learning.state.names import weight_name
from proof_of_learning.state.parts import optimizers
from proof_of_learning.task import task_code
from proof_of_learning.training.steps import Session

BLOCK = 16  # steps after which is looked whether anything moved


@dataclass(frozen=True)
class Driven:
    """What coasts: named parts with their progress. ``end``: what happens at the end of a step, given the step."""

    parts: Mapping[str, Any]
    end: Callable[[int], object] = lambda step: None

    @property
    def optimizers(self) -> list[Any]:
        return list(optimizers(self.parts).values())


def of_session(session: Session, per_epoch: int) -> Driven:
    """A session, whose schedule goes on as in a run."""

    def end(step: int) -> None:
        session.step_schedulers((step + 1) % per_epoch == 0)

    return Driven(session.parts, end)


def coast(driven: Driven, steps: int, until: int) -> None:
    """Take up to ``steps`` steps of all optimizers with gradients of zero, but none beyond step ``until`` of the run.

    The schedule goes on as in a run; what follows a metric, a custom step's own, or a script's, is not known, and stays. Ends early
    where nothing moves any more. Raises TaskError for an optimizer that takes no step by itself (one that needs a closure).
    """
    trained = [
        parameter
        for optimizer in driven.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    count = max(0, min(steps, until - driven.parts["progress"].step))
    try:
        _coast(driven, count, trained)
    finally:
        for parameter in trained:
            parameter.grad = None


def _coast(driven: Driven, count: int, trained: list[Tensor]) -> None:
    before: list[Tensor] = []
    with task_code("taking its optimizers' steps without gradients"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            if number % BLOCK == 0:
                here = [parameter.detach().clone() for parameter in trained]
                if before and all(map(torch.equal, before, here)):
                    return
                before = here
            for optimizer in driven.optimizers:
                optimizer.step()
            for parameter in trained:  # some optimizers write into what they are given
                if parameter.grad is not None:
                    parameter.grad.zero_()
            driven.end(driven.parts["progress"].step)
            driven.parts["progress"].step += 1


def at_places(model: nn.Module, coasting: Coasting) -> dict[str, bytes]:
    """The elements of the model's weights that are asked for."""
    found = {}
    for name, parameter in model.named_parameters():
        places = coasting.places.get(weight_name(name))
        if places is not None:
            flat = parameter.detach().reshape(-1)
            if places:
                flat = flat[torch.from_numpy(np.frombuffer(places, dtype="<i8").copy()).to(flat.device)]
            found[weight_name(name)] = flat.double().cpu().numpy().astype("<f8").tobytes()
    return found
