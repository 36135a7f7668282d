"""The kinds of parts that a state is made of, in one table: how each is captured and restored, its settings and its rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from proof_of_learning.errors import FormatError
from proof_of_learning.state.modules import capture_module, fresh, frozen, restore_module, tensors_in
from proof_of_learning.state.names import family_of, joined
from proof_of_learning.state.optimizers import (
    added_groups,
    capture_optimizer,
    own_groups,
    parameters_of,
    rates_of,
    regroup,
    restore_optimizer,
)

Kind = Literal["module", "optimizer", "scheduler", "scaler", "stateful", "progress"]


class Progress:
    """The part that ties a state to its place in the run.

    ``adding``: it holds the sum of the epoch's losses as well, for schedulers that are given their mean.
    """

    def __init__(self, adding: bool = False) -> None:
        self.step, self.adding = 0, adding
        self._sum, self._count = torch.zeros((), dtype=torch.float64), 0

    def add(self, loss: Tensor, epoch_ends: bool) -> float | None:
        """Take a step's loss; the mean of the epoch's where it ends. Until then nothing waits for an accelerator."""
        if not self.adding:
            return None
        mean = self.mean(loss) if epoch_ends else None
        self._sum, self._count = self._with(loss), self._count + 1
        if epoch_ends:
            self._sum, self._count = torch.zeros_like(self._sum), 0
        return mean

    def mean(self, loss: Tensor) -> float:
        """The mean of the epoch's losses, the last of which is ``loss``."""
        return float(self._with(loss)) / (self._count + 1)

    def _with(self, loss: Tensor) -> Tensor:
        return self._sum.to(loss.device) + loss.detach().reshape(()).double()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, **({"losses": [float(self._sum), self._count]} if self.adding else {})}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        step = values["step"]
        # A float of the same value would be equal to the step that is expected, and is no address of a random choice.
        if type(step) is not int or not 0 <= step < 2**64:
            raise FormatError("the state does not say, as an integer, at which step it stands")
        self.step = step
        if self.adding:
            total, count = values["losses"]
            if type(total) is not float or not math.isfinite(total) or type(count) is not int or count < 0:
                raise FormatError("the state does not say what the losses of its epoch add up to")
            self._sum, self._count = torch.tensor(total, dtype=torch.float64), count


def _load(name: str, part: Any, values: Any) -> None:
    part.load_state_dict(fresh(values))  # a part may keep what it is given, and train it


def _state_dict(part: Any) -> Any:
    return part.state_dict()


@dataclass(frozen=True)
class Adapter:
    """How parts of one kind are handled.

    kind: as headers call it. fits: whether a part is of it.
    capture: its state, as plain values and the live tensors. restore: the inverse, given the part's name; raises FormatError, or
        anything, for a state that does not fit.
    settings: the entries of its state that are beside trained values (None: all). told: these alone, without a look at the rest.
    rates: the learning rates in force, given the part's name; TaskError where a group has none.
    """

    kind: Kind
    fits: Callable[[Any], bool]
    capture: Callable[[Any], Any] = _state_dict
    restore: Callable[[str, Any, Any], None] = _load
    settings: tuple[str, ...] | None = ()
    told: Callable[[Any], Any] | None = None
    rates: Callable[[str, Any], list[float]] = lambda name, part: []


def _of(*types: type) -> Callable[[Any], bool]:
    return lambda part: isinstance(part, types)


# The first that fits; whatever has `state_dict` and `load_state_dict` fits the last.
ADAPTERS = (
    Adapter(
        "module", _of(nn.Module), capture_module, restore_module, ("frozen",), lambda module: {"frozen": frozen(module)}
    ),
    Adapter(
        "optimizer",
        _of(torch.optim.Optimizer),
        capture_optimizer,
        restore_optimizer,
        ("groups", "added"),
        rates=rates_of,
    ),
    Adapter("scheduler", _of(torch.optim.lr_scheduler.LRScheduler), settings=None),
    Adapter("scaler", _of(torch.amp.GradScaler), settings=("backoff_factor", "growth_factor", "growth_interval")),
    Adapter("progress", _of(Progress)),
    Adapter(
        "stateful",
        lambda part: hasattr(part, "state_dict") and hasattr(part, "load_state_dict"),
        rates=lambda name, part: (
            rates_of(name, part) if hasattr(part, "param_groups") else []
        ),  # an optimizer of its own make
    ),
)
# Settings are compared with the task's in the parts of these families, whatever they are made of.
FAMILIES: dict[str, Kind] = {
    "model": "module", "optimizer": "optimizer", "scheduler": "scheduler", "scaler": "scaler",
}  # fmt: skip
SETTINGS = {family: next(a.settings for a in ADAPTERS if a.kind == kind) for family, kind in FAMILIES.items()}


def adapter_of(part: Any) -> Adapter:
    """The adapter of a part. An object without ``state_dict()`` has the last one, and fails when it is captured."""
    return next((adapter for adapter in ADAPTERS if adapter.fits(part)), ADAPTERS[-1])


def captured(parts: Mapping[str, Any], name: str) -> Any:
    """The state of one of the parts: what its adapter captures, and of an optimizer that training gave further groups, of which
    parameters these consist.
    """
    part = parts[name]
    adapter = adapter_of(part)
    values = adapter.capture(part)
    if adapter.kind == "optimizer" and len(part.param_groups) > own_groups(part):
        values["added"] = added_groups(name, part, {id(tensor): key for key, tensor in _parameters(parts).items()})
    return values


def restored(parts: Mapping[str, Any], name: str, values: Any) -> None:
    """Put what :func:`captured` gave back into one of the parts. Raises as its adapter does."""
    part = parts[name]
    adapter = adapter_of(part)
    if adapter.kind == "optimizer":
        regroup(name, part, values, _parameters(parts) if "added" in values else {})
    adapter.restore(name, part, values)


def _parameters(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters of modules, by what states call them."""
    return {
        joined(name, "parameters", short): parameter
        for name, module in sorted(of_kind(parts, "module").items(), reverse=True)
        for short, parameter in module.named_parameters()
    }


def of_kind(parts: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The parts of one kind, in their order."""
    return {name: part for name, part in parts.items() if adapter_of(part).kind == kind}


def rates(parts: Mapping[str, Any]) -> list[float]:
    """The learning rates in force, by optimizer and group. TaskError where a group has none."""
    return [rate for name, part in optimizers(parts).items() for rate in adapter_of(part).rates(name, part)]


def optimizers(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a run steps, of whatever make, in their order; other parts may be optimizers as well."""
    return family(parts, "optimizer")


def family(parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The parts of a family, in their order."""
    return {part: item for part, item in parts.items() if family_of(part) == name}


def stray_parameters(parts: Mapping[str, Any]) -> dict[str, int]:
    """By optimizer, the number of the first of its parameters that no part holds, so that no state would have its values."""
    every = of_kind(parts, "optimizer")
    known, places = set[int](), set[int]()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            known |= {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        elif name not in every and hasattr(part, "state_dict"):
            places |= {tensor.data_ptr() for tensor in tensors_in(part.state_dict())}
    found: dict[str, int] = {}
    for name, optimizer in every.items():
        for number, parameter in enumerate(parameters_of(optimizer)):
            if id(parameter) not in known and parameter.data_ptr() not in places:
                found.setdefault(name, number)
    return found
