"""What a script hands to ``Run``, under the names that states have: the trained modules as ``model``, optimizers, schedulers …"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.state.optimizers import parameters_of
from proof_of_learning.state.parts import Progress, adapter_of, of_kind

MODEL, PLACE, GENERATORS = "model", "progress", "generators"


class Modules(nn.Module):
    """Several trained modules by name, so that "the weights" means the same everywhere."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Place(Progress):
    """At which step a state stands, and which modules are not in training mode there."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules = {
            f"{part}.{name}" if name else part: module
            for part, root in modules.items()
            for name, module in root.named_modules()
            if not isinstance(module, Modules)
        }

    def state_dict(self) -> dict[str, Any]:
        evaluating = sorted(name for name, module in self._modules.items() if not module.training)
        return {**super().state_dict(), **({"evaluating": evaluating} if evaluating else {})}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        super().load_state_dict(values)
        evaluating = set(values.get("evaluating", ()))
        if not evaluating <= set(self._modules):
            raise FormatError("a state has modules in evaluation mode that the script does not have")
        for name, module in self._modules.items():
            module.training = name not in evaluating


class Generators:
    """The process's generators as a part of the state: for loops that draw their own samples, which follow from them."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(state.copy()) for name, state in RngSnapshot.take().states.items()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        RngSnapshot({name: np.asarray(state) for name, state in values.items()}).restore()


def arrange(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts under the names of their families. Raises UsageError for what holds no state."""
    optimizers, modules = of_kind(given, "optimizer"), of_kind(given, "module")
    trained = {id(p) for optimizer in optimizers.values() for p in parameters_of(optimizer)}
    learning = {name: m for name, m in modules.items() if any(id(p) in trained for p in m.parameters())} or modules
    schedulers, scalers = of_kind(given, "scheduler"), of_kind(given, "scaler")
    if not learning:
        raise UsageError(
            "pol.Run was given no module; hand over what is trained: pol.Run(model=model, optimizer=optimizer)"
        )
    arranged: dict[str, Any] = {
        MODEL: next(iter(learning.values())) if len(learning) == 1 else Modules(learning),
        **_named("optimizer", optimizers),
        **_named("scheduler", schedulers),
        **_named("scaler", scalers),
    }
    families = (*learning, *optimizers, *schedulers, *scalers)
    for name, part in given.items():
        if name in families:
            continue
        if name in (*arranged, PLACE, GENERATORS):
            raise UsageError(f"pol.Run calls something else {name!r}; give this part another name")
        if not adapter_of(part).fits(part):
            raise UsageError(
                f"the part {name!r} is a {type(part).__name__} without state_dict() and load_state_dict(), so it holds no state "
                "that could be recorded; wrap it in an object that has them"
            )
        arranged[name] = part
    return {**arranged, PLACE: Place(of_kind(arranged, "module"))}


def _named(family: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """One part has the family's name; of several, each has its own behind it."""
    if len(parts) == 1:
        return dict(zip((family,), parts.values(), strict=True))
    return {f"{family}.{name}": part for name, part in parts.items()}
