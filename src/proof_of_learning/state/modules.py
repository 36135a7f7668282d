"""Putting values back into a live module: in place where they fit, so that ties stay, and as fresh tensors where they do not.

Buffers may be made by the first forward pass, change their shape, vanish, or be expanded views, into which nothing can be copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from proof_of_learning.errors import FormatError, TaskError


def capture_module(module: nn.Module) -> dict[str, Any]:
    """Parameters, buffers (non-persistent ones, too), which are frozen, and what its modules keep as extra state."""
    base = nn.Module.get_extra_state
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    lazy = next((name for held in (parameters, buffers) for name, tensor in held.items() if is_lazy(tensor)), None)
    if lazy is not None:
        raise TaskError(unshaped(lazy))
    return {
        "parameters": parameters,
        "buffers": buffers,
        "frozen": sorted(name for name, parameter in parameters.items() if not parameter.requires_grad),
        "extra": {
            name: m.get_extra_state() for name, m in module.named_modules() if type(m).get_extra_state is not base
        },
    }


def lazy_tensor(module: nn.Module) -> str | None:
    """The first parameter or buffer that has no shape before a forward pass (``LazyLinear``); None where all have one."""
    named = (*module.named_parameters(), *module.named_buffers())
    return next((name for name, tensor in named if is_lazy(tensor)), None)


def unshaped(name: str) -> str:
    """What is wrong with a lazy layer, and what helps."""
    return (
        f"{name!r} of the model has no shape before the first forward pass (a lazy layer); call the model once on a sample where it "
        "is built (a task: inside its `model` factory), or give the layer its sizes"
    )


def frozen(module: nn.Module) -> list[str]:
    """The names of its parameters that take no gradient, sorted."""
    return sorted(name for name, parameter in module.named_parameters() if not parameter.requires_grad)


def restore_module(part: str, module: nn.Module, values: Mapping[str, Any]) -> None:
    """The inverse of :func:`capture_module`; gradients are cleared. FormatError where the state does not fit."""
    restore_parameters(part, module, values["parameters"])
    restore_buffers(part, module, values["buffers"])
    fixed = set(values["frozen"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in fixed)
        parameter.grad = None
    modules = dict(module.named_modules())
    for name, extra in values["extra"].items():
        modules[name].set_extra_state(fresh(extra))


def fresh(value: Any, device: torch.device | None = None) -> Any:
    """A private copy of a decoded value, tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.clone() if device is None or device.type == "cpu" else value.to(device)
    if isinstance(value, dict):
        return type(value)({key: fresh(item, device) for key, item in value.items()})
    if isinstance(value, list):
        return [fresh(item, device) for item in value]
    return tuple(fresh(item, device) for item in value) if isinstance(value, tuple) else value


def restore_parameters(part: str, module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Copy ``given`` into the module's parameters; FormatError where names, shapes or dtypes differ."""
    live = dict(module.named_parameters())
    if set(given) != set(live):
        odd = sorted(set(given) ^ set(live))[0]
        raise FormatError(f"{part}/parameters: {odd!r} is in only one of the state and the task's model")
    for name, parameter in live.items():
        source = given[name]
        if source.shape != parameter.shape or source.dtype != parameter.dtype:
            raise FormatError(
                f"{part}/parameters/{name}: the task's model has {parameter.dtype} {tuple(parameter.shape)}, "
                f"the state has {source.dtype} {tuple(source.shape)}"
            )
        with torch.no_grad():
            if _expanded(parameter):
                parameter.data = _like(parameter, source)
            else:
                parameter.copy_(source)


def restore_buffers(part: str, module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Give the module's buffers the values of ``given``, and it no others: those not in it become None.

    FormatError where a buffer belongs to a module that is not there, or has another dtype.
    """
    modules = dict(module.named_modules())
    live = dict(module.named_buffers())
    for name in set(live) - set(given):
        for owner, key in _places(module, live[name]):
            owner._buffers[key] = None
    for name, source in given.items():
        tensor = live.get(name)
        if tensor is None:
            home, _, key = name.rpartition(".")
            if home not in modules or key in modules[home]._parameters or key in modules[home]._modules:
                raise FormatError(f"{part}/buffers: {name!r} is in only one of the state and the task's model")
            _set(modules[home], key, source.to(_device(module), copy=True))
            continue
        if source.dtype != tensor.dtype:
            raise FormatError(
                f"{part}/buffers/{name}: the task's model has {tensor.dtype}, the state has {source.dtype}"
            )
        with torch.no_grad():
            if source.shape == tensor.shape and not _expanded(tensor):
                tensor.copy_(source)
            else:
                fresh = _like(tensor, source)
                for owner, key in _places(module, tensor):
                    owner._buffers[key] = fresh


class BufferSnapshot:
    """What a module's buffers are now, which :meth:`put_back` makes them again: the same objects with the same values."""

    def __init__(self, module: nn.Module) -> None:
        self._slots = [
            (owner, dict(owner._buffers), set(owner._non_persistent_buffers_set)) for owner in module.modules()
        ]
        # A lazy buffer gets its shape and its first values later, in place.
        known = [t for _, slots, _ in self._slots for t in slots.values() if t is not None and not is_lazy(t)]
        self._values = {id(t): t.clone() for t in known}

    def put_back(self) -> None:
        with torch.no_grad():
            for owner, slots, passing in self._slots:
                for key, tensor in slots.items():
                    if tensor is None or id(tensor) not in self._values:
                        continue
                    value = self._values[id(tensor)]
                    if tensor.shape != value.shape:
                        tensor.set_(value)  # type: ignore[call-overload]
                    elif not _expanded(tensor):
                        tensor.copy_(value)
                    elif not _same(tensor, value):
                        slots[key] = value
                owner._buffers.clear()
                owner._buffers.update(slots)
                owner._non_persistent_buffers_set.clear()
                owner._non_persistent_buffers_set.update(passing)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _places(module: nn.Module, tensor: Tensor) -> Iterator[tuple[nn.Module, str]]:
    """Every module and name under which ``tensor`` is a buffer."""
    for owner in module.modules():
        for key, buffer in list(owner._buffers.items()):
            if buffer is tensor:
                yield owner, key


def _set(owner: nn.Module, key: str, value: Tensor) -> None:
    if key in owner._buffers:  # declared, and None so far; it stays persistent or not
        owner._buffers[key] = value
        return
    owner.__dict__.pop(key, None)
    try:
        owner.register_buffer(key, value)
    except KeyError as error:
        raise FormatError(f"the task's model cannot have a buffer {key!r}: {error}") from error


def _device(module: nn.Module) -> torch.device:
    tensor: Any = next(module.parameters(), None)
    tensor = next(module.buffers(), None) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


def _expanded(tensor: Tensor) -> bool:
    """Whether several elements lie at one place in memory, as far as strides of 0 tell."""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _like(tensor: Tensor, source: Tensor) -> Tensor:
    """A fresh copy of ``source`` on the device of ``tensor``, expanded as that is where the values allow it."""
    if source.shape == tensor.shape and _expanded(tensor):
        base = source
        for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            base = base.narrow(axis, 0, 1) if size > 1 and stride == 0 else base
        if _same(base.expand(source.shape), source):
            return base.to(tensor.device, copy=True).expand(source.shape)
    return source.to(tensor.device, copy=True)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())
