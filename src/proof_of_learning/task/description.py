"""What identifies a task: a canonical description of its fresh objects, the digests of its sources, and where two of them differ.

The description covers the module tree with shapes, optimizer groups, schedule and step options; not data, seed, number of
steps or paths.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from proof_of_learning import canonical, sources
from proof_of_learning.state.state import DTYPE_NAMES, encode_tree
from proof_of_learning.task.definition import Task, place_and_name
from proof_of_learning.task.loading import module_of

_SOURCES = ("model", "data", "optimizer", "loss", "step", "scheduler", "parts", "augment", "collate", "evaluate")


@dataclass(frozen=True)
class Description:
    """The canonical description of a task, whose digest is the task's identity; beside it ``sources``: digests of what its
    functions and local modules are made of (see :mod:`proof_of_learning.sources`)."""

    content: dict[str, Any]
    sources: dict[str, str]

    def digest(self) -> str:
        return canonical.sha256(b"pol/v1/task\0", canonical.encode(self.content))

    def sources_digest(self) -> str | None:
        """One digest over description and sources; None where a source is unavailable."""
        return sources.digest(self.digest(), self.sources)


def describe(task: Task, model: nn.Module, optimizers: Mapping[str, Any], schedulers: Mapping[str, Any],
             parts: Mapping[str, Any]) -> Description:  # fmt: skip
    """Describe a task by the freshly built objects of one session."""
    home = {str(getattr(getattr(task, name), "__module__", "")) for name in _SOURCES}
    step = {
        "accumulate": task.accumulate,
        "augment": task.augment is not None,
        "batch_size": task.batch_size,
        "clip_norm": None if task.clip_norm is None else float(task.clip_norm).hex(),
        "collate": task.collate is not None,
        "custom": task.step is not None,
        "drop_last": task.drop_last,
        "schedule": task.schedule,
        "shuffle": task.shuffle,
    }
    content = {**describe_parts(model, optimizers, schedulers, parts, home), "step": step}
    if task.program is not None:
        content["program"] = task.program
    return Description(content, _sources(task))


def describe_parts(model: nn.Module, optimizers: Mapping[str, Any], schedulers: Mapping[str, Any], parts: Mapping[str, Any],
                   home: Collection[str]) -> dict[str, Any]:  # fmt: skip
    """Describe fresh objects. ``home``: the modules whose classes are the task's own."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        "model": {
            "modules": [[name, _qualified(type(m), home), m.extra_repr()] for name, m in model.named_modules()],
            "parameters": [[n, *_shape(p), p.requires_grad] for n, p in model.named_parameters()],
            "buffers": [[name, *_shape(b)] for name, b in model.named_buffers()],
        },
        "optimizers": {
            name: {
                "class": _qualified(type(optimizer), home),
                "groups": [
                    {
                        "options": _plain({k: v for k, v in group.items() if k != "params"}, f"optimizer {name}"),
                        "params": [names.get(id(p), f"outside the model: {_shape(p)}") for p in group["params"]],
                    }
                    for group in optimizer.param_groups
                ],
            }
            for name, optimizer in optimizers.items()
        },
        "schedulers": {
            name: {"class": _qualified(type(s), home), "state": _plain(s.state_dict(), f"scheduler {name}")}
            for name, s in schedulers.items()
        },
        "parts": {name: _qualified(type(part), home) for name, part in parts.items()},
    }


def _sources(task: Task) -> dict[str, str]:
    if task.program is not None:  # nothing else takes part
        return {sources.MODULE + "program": canonical.sha256(canonical.encode(task.program))}
    given = {name: getattr(task, name) for name in _SOURCES if getattr(task, name) is not None}
    every = given if task.scaler is None else {**given, "scaler": task.scaler}
    # Data are committed to by themselves, and where they and an evaluation's lie is a matter of the machine.
    steps = {name: function for name, function in every.items() if name not in ("data", "evaluate")}
    return {
        **{name: sources.of_function(function) for name, function in given.items()},
        **sources.of_modules(every.values(), module_of(task)),
        sources.VALUES: sources.of_values(steps),
    }


def resumable(task: Task) -> str:
    """A digest of the functions and local modules that decide a run's numbers: all but the task's ``evaluate``. Two tasks that
    share it, and a header but for its sources, are the same run.
    """
    if task.program is not None:
        return canonical.sha256(canonical.encode(task.program))
    given = {name: getattr(task, name) for name in _SOURCES if getattr(task, name) is not None and name != "evaluate"}
    given = given if task.scaler is None else {**given, "scaler": task.scaler}
    steps = {name: function for name, function in given.items() if name != "data"}
    entry = None if task.reference is None else place_and_name(task.reference.target)[1]
    content = {
        **{name: sources.of_function(function) for name, function in given.items()},
        **sources.decisive(given.values(), task.evaluate, "evaluate", module_of(task), entry),
        sources.VALUES: sources.of_values(steps),
    }
    return canonical.sha256(b"pol/resumable\0", canonical.encode(content))


def compare(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two descriptions differ: ``path: the task has X, the proof has Y``, innermost differences only."""
    expected, found = _named(expected), _named(found)
    if isinstance(expected, dict) and isinstance(found, dict) and not (_number(expected) or _number(found)):
        return [
            line
            for key in sorted(set(expected) | set(found), key=str)
            for line in compare(expected.get(key), found.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            line for i, pair in enumerate(zip(expected, found, strict=True)) for line in compare(*pair, f"{path}[{i}]")
        ]
    if expected == found and type(expected) is type(found):
        return []
    return [f"{path}: the task has {_short(expected)}, the proof has {_short(found)}"]


def _named(value: Any) -> Any:
    """The entries of an encoded dict (:func:`state.state.encode_tree`) by their keys, as they are meant."""
    body = value.get("d") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(body, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in body):
        return value
    return {str(key).partition(":")[2] or str(key): item for key, item in body}


def _number(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("i", "f")


def _short(value: Any) -> str:
    if _number(value):
        ((tag, body),) = value.items()
        value = float.fromhex(body) if tag == "f" else body
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _qualified(cls: type, home: Collection[str]) -> str:
    """A class's name; the modules that the task's own functions come from are called ``task``, however they were loaded."""
    module = "task" if cls.__module__ in home or cls.__module__.startswith("pol_task_") else cls.__module__
    return f"{module}.{cls.__qualname__}"


def _shape(tensor: Tensor) -> tuple[str, list[int]]:
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)


def _plain(value: Any, what: str) -> Any:
    tensors: dict[str, Tensor] = {}
    tree = encode_tree(value, what, tensors)
    return [tree, {name: [*_shape(t), t.flatten().tolist()] for name, t in tensors.items()}] if tensors else tree
