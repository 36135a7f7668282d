"""What a custom step is given: the live parts and the standard moves, as plain fields. It knows neither task nor session."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from proof_of_learning.errors import TaskError
from proof_of_learning.state.optimizers import parameters_of


@dataclass(frozen=True, kw_only=True, eq=False)
class StepContext:
    """What a custom step is given: the live parts, and the standard moves to build from.

    step: the number of the step, from 0.
    model: the network, in training mode.
    optimizers / schedulers / parts: by name. Schedulers that are driven by a metric are the custom step's to step; the others
        move by themselves.
    scaler: the gradient scaler, where the task has one.
    clip_norm: largest gradient norm (l2, all parameters of an optimizer), or None.
    idle: the model's parameters that no optimizer had when it was built.
    """

    step: int
    model: Any
    optimizers: Mapping[str, Any]
    schedulers: Mapping[str, Any]
    parts: Mapping[str, Any]
    scaler: Any = None
    clip_norm: float | None = None
    idle: Sequence[nn.Parameter] = ()

    @property
    def optimizer(self) -> Any:
        """The only optimizer; TaskError where there are several."""
        if len(self.optimizers) != 1:
            raise TaskError(f"this task has the optimizers {', '.join(self.optimizers)}; name one of them")
        return next(iter(self.optimizers.values()))

    def backward(self, loss: Tensor) -> None:
        """Backward, through the gradient scaler where the task has one."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self, name: str | None = None) -> None:
        """Clip, step one optimizer (by name, or the only one) and clear its gradients."""
        optimizer = self.optimizer if name is None else self.optimizers[name]
        if self.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters_of(optimizer), self.clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        clear_gradients(optimizer)

    def clear_idle(self) -> None:
        """Clear the gradients of the model's parameters that no optimizer had when it was built."""
        for parameter in self.idle:
            parameter.grad = None


def clear_gradients(optimizer: Any) -> None:
    """Set the gradients of an optimizer's parameters to None, by its own ``zero_grad`` and whatever arguments that takes."""
    try:
        options = {"set_to_none": True} if takes_set_to_none(optimizer.zero_grad) else {}
    except (TypeError, ValueError):  # a signature that cannot be read
        options = {"set_to_none": True}
    optimizer.zero_grad(**options)
    if not options:
        for parameter in parameters_of(optimizer):
            parameter.grad = None


def takes_set_to_none(zero_grad: Callable[..., Any]) -> bool:
    parameters = inspect.signature(zero_grad).parameters.values()
    return any(p.name == "set_to_none" or p.kind is p.VAR_KEYWORD for p in parameters)


def standard_step(context: StepContext, batches: list[Any], loss_of: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    """Mean loss over the step's batches, one update. Returns the loss."""
    total: Tensor | None = None
    for batch in batches:
        loss = loss_of(context.model, batch) / len(batches)
        context.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    context.update()
    context.clear_idle()
    assert total is not None
    return total
