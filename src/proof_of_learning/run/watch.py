"""What is seen of a step without asking for it: what ``backward`` is called on, and that and how optimizers step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from proof_of_learning.state.optimizers import rates_of
from proof_of_learning.state.parts import family, optimizers


class Seen:
    """The losses of the step under way, the rates that its optimizers used, and whether there was an update."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._optimizers = optimizers(parts)
        self._names = {id(optimizer): name for name, optimizer in self._optimizers.items()}
        self._scaler = next(iter(family(parts, "scaler").values()), None)
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._total: Tensor | None = None
        self._told: Tensor | None = None
        self._rates = {name: rates_of(name, optimizer) for name, optimizer in self._optimizers.items()}
        self.updated = not self._optimizers

    def backward(self, value: Tensor) -> None:
        loss = value.detach().reshape(())
        if self._scaler is not None and self._scaler.is_enabled():
            loss = loss / self._scaler.get_scale()
        self._total = loss.double() if self._total is None else self._total + loss.double()

    def tell(self, value: Any) -> None:
        """The script says what the loss is."""
        self._told = torch.as_tensor(value).detach().reshape(()).double()

    def stepped(self, optimizer: Any) -> None:
        name = self._names.get(id(optimizer))
        if name is not None:
            self._rates[name], self.updated = rates_of(name, optimizer), True

    @property
    def loss(self) -> Tensor:
        """The sum over the step; 0 for a step without ``backward``."""
        if self._told is not None:
            return self._told
        return torch.zeros((), dtype=torch.float64) if self._total is None else self._total

    @property
    def rates(self) -> list[float]:
        return [rate for rates in self._rates.values() for rate in rates]


@contextmanager
def watching(seen: Callable[[], Seen | None]) -> Iterator[None]:
    """Patch ``Tensor.backward`` and hook optimizers; both go on as ever."""
    plain: Any = Tensor.backward

    def backward(self: Tensor, *arguments: Any, **options: Any) -> Any:
        now = seen()
        if now is not None and self.numel() == 1:
            now.backward(self)
        return plain(self, *arguments, **options)

    def before_step(optimizer: Any, arguments: Any, options: Any) -> None:
        now = seen()
        if now is not None:
            now.stepped(optimizer)

    Tensor.backward = backward  # type: ignore[method-assign]
    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()
        Tensor.backward = plain  # type: ignore[method-assign]
