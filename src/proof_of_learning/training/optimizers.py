"""What optimizers hold: groups, the state of each parameter, entries under a name, and what wrappers keep besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.training.modules import fresh, tensors_in

_BASE = ("state", "param_groups")  # of a state_dict


def parameters_of(optimizer: Any) -> list[Tensor]:
    """Its parameters in the order of groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def rates_of(name: str, optimizer: Any) -> list[float]:
    """The learning rates of an optimizer's groups; TaskError where one has none."""
    for number, group in enumerate(optimizer.param_groups):
        if group.get("lr") is None:
            raise TaskError(
                f"parameter group {number} of the optimizer {name!r} has no learning rate (lr), which a proof records at every "
                "step; give it one (Adafactor: lr=1e-3, relative_step=False)"
            )
    return [float(group["lr"]) for group in optimizer.param_groups]


def capture_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """``state`` by a parameter's position, ``groups``; and where there are any, ``shared`` entries under names, ``own``: what its own
    ``state_dict`` has besides, or ``inner``: the optimizers that it wraps.
    """
    # Not `state_dict()` alone: its inverse casts an fp32 momentum to the dtype of a bf16 parameter.
    index = {id(p): i for i, p in enumerate(parameters_of(optimizer))}
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [index[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    state = {index[id(p)]: dict(s) for p, s in optimizer.state.items() if id(p) in index}
    held: dict[Any, Any] = dict(optimizer.state)
    shared = {key: value for key, value in held.items() if isinstance(key, str)}
    if len(state) + len(shared) != len(optimizer.state):
        raise TaskError(
            "an optimizer keeps state for something that is neither one of its parameters nor a name, which cannot be "
            "recorded; key it by a parameter or by a text, as in optimizer.state['global']"
        )
    found = {"state": state, "groups": groups, **({"shared": shared} if shared else {})}
    own = _own(optimizer, {**state, **shared})
    inner = {} if own else {name: capture_optimizer(wrapped) for name, wrapped in _inner(optimizer).items()}
    return {**found, **({"own": own} if own else {}), **({"inner": inner} if inner else {})}


def restore_optimizer(part: str, optimizer: Optimizer, values: Mapping[str, Any]) -> None:
    """The inverse. FormatError where the groups hold other parameters than the optimizer's."""
    _restore_standard(part, optimizer, values)
    own = values.get("own", {})
    if own:
        device = next((p.device for p in parameters_of(optimizer)), None)
        index = {id(p): i for i, p in enumerate(parameters_of(optimizer))}
        held: dict[Any, Any] = dict(optimizer.state)
        base = {
            "state": {key if isinstance(key, str) else index[id(key)]: dict(entry) for key, entry in held.items()},
            "param_groups": [
                {**group, "params": [index[id(p)] for p in group["params"]]} for group in optimizer.param_groups
            ],
        }
        optimizer.load_state_dict({**base, **fresh(own, device)})
        _restore_standard(part, optimizer, values)  # which has the dtypes that load_state_dict() may have changed
    inner, wrapped = values.get("inner", {}), {} if own else _inner(optimizer)
    if set(inner) != set(wrapped):
        raise FormatError(f"{part}: the state is of an optimizer that wraps others")
    for name, below in wrapped.items():
        restore_optimizer(f"{part}.{name}", below, inner[name])


def _restore_standard(part: str, optimizer: Optimizer, values: Mapping[str, Any]) -> None:
    parameters = parameters_of(optimizer)
    index = {id(p): i for i, p in enumerate(parameters)}
    if len(values["groups"]) != len(optimizer.param_groups):
        raise FormatError(f"{part}: the state has {len(values['groups'])} parameter groups")
    for live, given in zip(optimizer.param_groups, values["groups"], strict=True):
        if given["params"] != [index[id(p)] for p in live["params"]]:
            raise FormatError(f"{part}: the parameter groups of the state hold other parameters than the task's")
        live.update({name: fresh(value) for name, value in given.items() if name != "params"})
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()
    for position, entry in values["state"].items():
        parameter = parameters[position]
        group = group_of[id(parameter)]
        # PyTorch keeps `step` on the CPU unless the optimizer is capturable or fused.
        on_cpu = not (group.get("capturable") or group.get("fused"))
        optimizer.state[parameter] = {
            name: fresh(value, None if name == "step" and on_cpu else parameter.device) for name, value in entry.items()
        }
    shared: dict[Any, Any] = optimizer.state
    for key, value in values.get("shared", {}).items():
        shared[key] = fresh(value, parameters[0].device if parameters else None)


def _own(optimizer: Optimizer, state: Mapping[Any, Any]) -> dict[str, Any]:
    """What a ``state_dict`` that a class wrote itself holds besides ``state`` and groups; nothing where keys are objects."""
    if type(optimizer).state_dict is Optimizer.state_dict:
        return {}
    told = dict(optimizer.state_dict())
    if not _plain_keys(told):
        return {}
    if _same(told.get("state"), state):
        return {key: value for key, value in told.items() if key not in _BASE}
    return told


def _same(told: Any, state: Mapping[Any, Any]) -> bool:
    """Whether two mappings of entries hold the very same tensors."""
    if not isinstance(told, Mapping) or set(told) != set(state):
        return False
    return [id(t) for key in state for t in tensors_in(told[key])] == [
        id(t) for key in state for t in tensors_in(state[key])
    ]


def _plain_keys(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, (str, int)) and _plain_keys(item) for key, item in value.items())
    return all(map(_plain_keys, value)) if isinstance(value, (list, tuple)) else True


def _inner(optimizer: Optimizer) -> dict[str, Optimizer]:
    """The optimizers that it wraps, by attribute."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, torch.optim.Optimizer) and value is not optimizer
    }
