"""What optimizers hold: groups, the state of each parameter, entries under a name, and what wrappers keep besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from proof_of_learning.canonical import brief
from proof_of_learning.errors import FormatError, TaskError
from proof_of_learning.state.modules import fresh, tensors_in

_BASE = ("state", "param_groups")  # of a state_dict
OWN = "_pol_own_groups"  # attribute of an optimizer: how many groups it had when it was built


def own_groups(optimizer: Any) -> int:
    """How many groups it was built with; all that it has, where nobody took note. Groups that training adds come behind them."""
    held: int = getattr(optimizer, "__dict__", {}).get(OWN, len(optimizer.param_groups))
    return held


def settle_groups(optimizer: Any) -> int:
    """Take the groups that it has now for those that it was built with, unless note was taken already; how many these are."""
    own = own_groups(optimizer)
    if isinstance(optimizer, Optimizer):  # an optimizer of another make cannot be given further ones
        vars(optimizer)[OWN] = own
    return own


def parameters_of(optimizer: Any) -> list[Tensor]:
    """Its parameters in the order of groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def rates_of(name: str, optimizer: Any) -> list[float]:
    """The learning rates of the groups that an optimizer was built with; TaskError where one has none.

    Those of groups that training added lie in the states alone, so that a row of rates is as long throughout a run.
    """
    own = optimizer.param_groups[: own_groups(optimizer)]
    for number, group in enumerate(own):
        if group.get("lr") is None:
            raise TaskError(
                f"parameter group {number} of the optimizer {name!r} has no learning rate (lr), which a proof records at every "
                "step; give it one (Adafactor: lr=1e-3, relative_step=False)"
            )
    return [float(group["lr"]) for group in own]


def added_groups(part: str, optimizer: Optimizer, named: Mapping[int, str]) -> list[list[str]]:
    """Of each group that was added after it was built, the names of its parameters. TaskError where one has none.

    named: by identity, what states call the parameters of modules.
    """
    found = [
        [named.get(id(parameter), "") for parameter in group["params"]]
        for group in optimizer.param_groups[own_groups(optimizer) :]
    ]
    if not all(names and all(names) for names in found):
        raise TaskError(
            f"a parameter group without parameters, or with some that neither the model nor a further part holds, was added to "
            f"{part!r}; name their module in the task's `parts`"
        )
    return found


def regroup(part: str, optimizer: Optimizer, values: Mapping[str, Any], named: Mapping[str, Tensor]) -> None:
    """Give an optimizer the further groups that a captured one had, and no others. FormatError where these do not fit the task.

    named: the parameters of modules, by what states call them.
    """
    added = values.get("added", [])
    own = len(values["groups"]) - len(added)
    if own < 1 or (OWN in vars(optimizer) and own != vars(optimizer)[OWN]) or own > len(optimizer.param_groups):
        raise FormatError(f"{part}: the state has {own} parameter groups from the start, the task's optimizer others")
    wanted: list[list[Tensor]] = []
    for names, group in zip(added, values["groups"][own:], strict=True):
        strange = next((name for name in names if not isinstance(name, str) or name not in named), None)
        if strange is not None or not names or len({*names}) != len(names) or len(names) != len(group["params"]):
            raise FormatError(
                f"{part}: a parameter group that was added holds {brief(repr(strange))}, which the task does not train"
            )
        wanted.append([named[name] for name in names])
    live = optimizer.param_groups
    kept = own
    while kept - own < len(wanted) and kept < len(live) and _are(live[kept]["params"], wanted[kept - own]):
        kept += 1
    del live[kept:]
    for tensors, group in zip(wanted[kept - own :], values["groups"][kept:], strict=True):
        optimizer.add_param_group({**fresh(group), "params": tensors})
    vars(optimizer)[OWN] = own


def _are(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


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
