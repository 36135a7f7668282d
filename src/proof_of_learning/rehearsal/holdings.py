"""What a task's objects and functions hold beside the recorded state: attributes, closures, globals, generators.

Two looks, before and after some steps, name what has changed in between, and so what a replay from a recorded state alone would not
find. Nothing is judged by it: it names the likely cause of a difference in bits that was seen.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import random
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proof_of_learning.canonical import brief
from proof_of_learning.state.modules import tensors_in
from proof_of_learning.state.optimizers import OWN
from proof_of_learning.state.parts import adapter_of, of_kind

MAX_THINGS = 20_000  # are looked at
MAX_DEPTH = 12
MAX_ITEMS = 256  # of one container
MAX_SAMPLE = 1 << 15  # elements of a large tensor, at its beginning and spread over it

_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_FOREIGN = ("torch._", "torch.fx", "torch.jit", "torch.cuda", "torch.nn.parallel", "proof_of_learning")
LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ENDS = re.compile(r"[.\[]")  # of the ancestors in a path
FUNCTIONS = ("loss", "step", "augment", "collate")  # of a task, that take part in a step


@dataclass(frozen=True)
class Held:
    """One thing that is held: where (a phrase), of what kind (``generator``, ``tensor``, ``container``, ``value``), and a mark of its
    content; ``shown``: the content where it is short.
    """

    place: str
    kind: str
    mark: bytes
    shown: str = ""


@dataclass(frozen=True)
class Change:
    """Something that is not what it was: ``place`` is a phrase, ``how`` says how it changed where that is short."""

    place: str
    kind: str
    how: str


def look(parts: Mapping[str, Any], task: Any, data: Any = None) -> dict[str, Held]:
    """What is held by the live ``parts``, the ``task``'s functions and its ``data`` beside the recorded state, by path."""
    roots = [(f"task.{name}", f"the task's {name}", getattr(task, name, None)) for name in FUNCTIONS]
    return look_at(parts, [*roots, ("data", "the data set", data)])


def look_at(parts: Mapping[str, Any], roots: Iterable[tuple[str, str, Any]]) -> dict[str, Held]:
    """What is held by the live ``parts`` and by further things, each with its path and its place."""
    walk = _Walk(parts)
    of_parts = [
        (name, f"the {name}" if name in ("model", "scaler") else f"part {name!r}", part) for name, part in parts.items()
    ]
    for path, place, thing in [*of_parts, *roots]:
        walk.visit(thing, path, place, 0)
    return walk.found


def changed(before: Mapping[str, Held], after: Mapping[str, Held]) -> list[Change]:
    """What of ``before`` is not so in ``after``, one for each place; what draws numbers first, then by path."""
    found: dict[str, Change] = {}
    paths: set[str] = set()
    for path in [*before, *(path for path in after if path not in before)]:
        was, now = before.get(path), after.get(path)
        if was is not None and now is not None and was.mark == now.mark:
            continue
        if was is None and any(path[: match.start()] in paths for match in _ENDS.finditer(path)):
            continue  # what is new in something that is named already
        paths.add(path)
        one = now or was
        assert one is not None
        how = f"{was.shown} → {now.shown}" if was is not None and now is not None and was.shown and now.shown else ""
        if one.place not in found or (how and not found[one.place].how):
            found[one.place] = Change(one.place, one.kind, how)
    order = ("generator", "tensor", "container", "value")
    return sorted(found.values(), key=lambda change: order.index(change.kind))


@dataclass
class _Walk:
    parts: Mapping[str, Any]
    found: dict[str, Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen = {id(torch.default_generator), id(np.random.mtrand._rand), id(random._inst)}  # seeded for each step
        self._kept: list[Any] = []  # what was made on the way, so that no identity is used twice
        self._optimizers = {id(part) for part in of_kind(self.parts, "optimizer").values()}
        self._modules = {
            id(module) for part in self.parts.values() if isinstance(part, nn.Module) for module in part.modules()
        }
        self._recorded = {
            _storage(tensor)
            for part in self.parts.values()
            if isinstance(part, nn.Module)
            for tensor in (*part.parameters(), *part.buffers())
        }
        self._plain: dict[int, set[str]] = {}
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                continue
            values = adapter_of(part).capture(part)
            self._recorded |= {_storage(tensor) for tensor in tensors_in(values)}
            if id(part) not in self._optimizers and isinstance(values, Mapping):
                self._plain[id(part)] = {
                    key
                    for key, value in values.items()
                    if isinstance(key, str) and next(tensors_in(value), None) is None
                }

    def visit(self, thing: Any, path: str, place: str, depth: int) -> None:
        """Note what ``thing`` is, and go into what it holds."""
        if len(self.found) >= MAX_THINGS or depth > MAX_DEPTH:
            return
        simple = _simple(thing)
        if simple is not None:
            self.found[path] = Held(
                place, "value", hashlib.sha256(simple.encode()).digest(), brief(simple) if len(simple) < 24 else ""
            )
            return
        if id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        self._kept.append(thing)
        generator = _generator_state(thing)
        if generator is not None:
            self.found[path] = Held(place, "generator", hashlib.sha256(generator).digest())
        elif isinstance(thing, Tensor):
            if _storage(thing) not in self._recorded:
                self.found[path] = Held(place, "tensor", _tensor_mark(thing))
        elif isinstance(thing, np.ndarray):
            if thing.dtype != object:
                self.found[path] = Held(place, "tensor", _array_mark(thing))
        elif isinstance(thing, (Mapping, list, tuple, set, frozenset, collections.deque)):
            self._container(thing, path, place, depth)
        else:
            for name, inside, value in self._inside(thing, place):
                self.visit(value, f"{path}.{name}", inside, depth + 1)

    def _container(self, thing: Any, path: str, place: str, depth: int) -> None:
        size = f"{len(thing):,} entries"
        self.found[path] = Held(place, "container", size.encode(), size)
        if isinstance(thing, (set, frozenset)):
            simple = sorted(filter(None, map(_simple, thing)))
            self.found[f"{path}:"] = Held(place, "container", hashlib.sha256(repr(simple).encode()).digest())
            return
        items: Any = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
        for number, (key, value) in enumerate(items):
            if number >= MAX_ITEMS:
                return
            self.visit(value, f"{path}[{key if isinstance(key, (str, int)) else number!r}]", place, depth + 1)

    def _inside(self, thing: Any, place: str) -> Iterator[tuple[str, str, Any]]:
        """Names, places and values of what an object holds."""
        if isinstance(thing, types.MethodType):
            yield "self", place, thing.__self__
            yield "func", place, thing.__func__
        elif isinstance(thing, types.FunctionType):
            yield from _of_function(thing, place)
        elif isinstance(thing, nn.Module):
            yield from self._of_module(thing, place)
        elif isinstance(thing, types.ModuleType):
            if _own(thing.__name__):
                for name, value in vars(thing).items():
                    if not name.startswith("__") and not isinstance(
                        value, (types.FunctionType, type, types.ModuleType)
                    ):
                        yield name, f"{name!r} of module {thing.__name__}", value
        elif isinstance(thing, type):
            if _own(thing.__module__):
                for name, value in vars(thing).items():
                    if not name.startswith("__") and not callable(value) and not hasattr(type(value), "__get__"):
                        yield name, f"attribute {name!r} of the class {thing.__name__}", value
        elif not (type(thing).__module__ or "").startswith(_FOREIGN):
            yield from self._of_object(thing, place)

    def _of_object(self, thing: Any, place: str) -> Iterator[tuple[str, str, Any]]:
        passing = set(self._plain.get(id(thing), ()))
        if isinstance(thing, torch.optim.Optimizer):
            passing |= _of_any_optimizer()
            passing -= set() if id(thing) in self._optimizers else {"state", "param_groups"}
        held = dict(getattr(thing, "__dict__", None) or {})
        for slot in (name for cls in type(thing).__mro__ for name in _slots(cls)):
            held.setdefault(slot, getattr(thing, slot, None))
        if callable(getattr(thing, "func", None)) and hasattr(thing, "keywords"):  # functools.partial
            held |= {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
        trusted = id(thing) in self._plain and type(thing).__module__.startswith("torch.")  # to give back what counts
        for name, value in held.items():
            if name not in passing and not (trusted and name.startswith("_")):
                yield name, f"attribute {name!r} of {place}", value
        yield "class", place, type(thing)

    def _of_module(self, module: nn.Module, place: str) -> Iterator[tuple[str, str, Any]]:
        for name, value in module.__dict__.items():
            if name not in _MODULE:
                yield name, f"attribute {name!r} of {place}", value
        for hooks in _HOOKS:
            yield hooks, f"a hook of {place}", dict(module.__dict__[hooks])
        if id(module) not in self._modules:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                yield name, f"{name!r} of {place}", tensor
        for name, child in module._modules.items():
            if place == "the model":
                yield name, f"module {name!r} of the model", child
            elif place.startswith("module ") and place.endswith(" of the model"):
                yield name, f"module '{place[8:-14]}.{name}' of the model", child
            else:
                yield name, f"module {name!r} of {place}", child
        yield "class", place, type(module)


def _of_function(function: types.FunctionType, place: str) -> Iterator[tuple[str, str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        yield name, f"variable {name!r}, which {place} uses", value
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"default{number}", f"a default argument of {place}", value
    yield "dict", f"an attribute of {place}", vars(function)
    if not _own(function.__module__):
        return
    for name in _names(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            named = (
                f"{place}" if isinstance(value, (types.FunctionType, type)) else f"global {name!r}, which {place} uses"
            )
            yield f"global {name}", named, value


@functools.cache
def _of_any_optimizer() -> frozenset[str]:
    """The attributes that PyTorch gives every optimizer."""
    plain = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    return frozenset(vars(plain)) | {"step", "_opt_called", "_step_count", "_warned_capturable_if_run_uncaptured", OWN}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _own(module: str | None) -> bool:
    """Whether a module is the user's own, and no library."""
    if module is None or module.split(".")[0] in ("builtins", "torch", "numpy", "proof_of_learning"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not file.startswith(LIBRARIES)


def _simple(thing: Any) -> str | None:
    """A text for a plain value; None for what is none."""
    if thing is None or isinstance(
        thing, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.generic)
    ):
        return repr(thing)
    return None


def _generator_state(thing: Any) -> bytes | None:
    if isinstance(thing, torch.Generator):
        return bytes(thing.get_state().tolist())
    if isinstance(thing, np.random.Generator):
        return repr(thing.bit_generator.state).encode()
    if isinstance(thing, np.random.RandomState):
        return repr([_list(item) for item in thing.get_state(legacy=True)]).encode()
    if isinstance(thing, random.Random):
        return repr(thing.getstate()).encode()
    return None


def _list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _storage(tensor: Tensor) -> tuple[str, int]:
    try:
        return str(tensor.device), tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse, fake, functional
        return str(tensor.device), id(tensor)


@torch.no_grad()
def _tensor_mark(tensor: Tensor) -> bytes:
    """Of shape, type and a sample of the values."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return head
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    stride = max(1, flat.numel() // MAX_SAMPLE)
    sample = torch.cat([flat[:MAX_SAMPLE], flat[::stride][: 2 * MAX_SAMPLE]]).cpu()
    return hashlib.sha256(head + sample.contiguous().view(torch.uint8).numpy().tobytes()).digest()


def _array_mark(array: np.ndarray) -> bytes:
    flat = array.reshape(-1)
    sample = np.concatenate([flat[:MAX_SAMPLE], flat[:: max(1, flat.size // MAX_SAMPLE)][: 2 * MAX_SAMPLE]])
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + sample.tobytes()).digest()
