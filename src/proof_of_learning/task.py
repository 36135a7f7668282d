"""The task: what is trained and how, as a frozen description made of factories.

A task is loaded by reference (``path.py:function`` or ``module:function``) so that a replay worker can build it
again; importing one trains nothing. Its digest covers a canonical description: module tree with shapes,
optimizer groups, schedule and step options; not data, seed, number of steps or paths.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from proof_of_learning import canonical, sources
from proof_of_learning.errors import PolError, TaskError, UsageError
from proof_of_learning.training.state import DTYPE_NAMES, encode_tree

if TYPE_CHECKING:
    from proof_of_learning.data.commit import Dataset
    from proof_of_learning.training.steps import StepContext

Setting = str | int | float | bool
SEALED = "(the sealed program in the proof)"  # the target of a reference that names no task
DEFAULT_SEGMENTS = 1000  # the default interval aims at this many segments a run


@dataclass(frozen=True)
class TaskReference:
    """Where a task is found: ``target`` is ``path.py:function`` or ``module:function``, or a script (``path.py``).

    ``settings``: the function's arguments. ``arguments``: the script's; None: those that the proof was recorded with.
    """

    target: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    arguments: tuple[str, ...] | None = None

    def absolute(self) -> TaskReference:
        """The same reference, valid from any working directory."""
        if is_script(self.target):
            return dataclasses.replace(self, target=str(Path(self.target).resolve()))
        place, name = _split(self.target)
        if place.endswith(".py"):
            return TaskReference(f"{Path(place).resolve()}:{name}", dict(self.settings))
        return self


def sealed_program(data: str | Path) -> TaskReference:
    """What names, to ``verify``, the sealed program in the proof, over the samples in the folder ``data`` (``pol export-data``)."""
    return TaskReference(SEALED, {"data": str(Path(data).resolve())})


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained and how.

    model: factory of the network; its random choices follow from the run's key.
    data: factory of a map-style data set (``len`` and ``[index]``), deterministic: randomness belongs in ``augment``.
    optimizer: from the model to an optimizer, or to a dict of named ones.
    loss: ``loss(model, batch) -> Tensor`` for the standard step; or
    step: ``step(context, batches) -> Tensor``, a custom step (see ``training.steps.StepContext``).
    scheduler: from what ``optimizer`` returned to a scheduler, or to a dict of named ones, stepped per ``schedule``. One that is
        driven by a metric (``ReduceLROnPlateau``) is given the mean of the training losses at the end of each epoch, whatever
        ``schedule`` says; beside a custom step it is that step's to step (``context.schedulers``).
    parts: further named parts of the state (EMA, queues, …): objects with ``state_dict``/``load_state_dict`` or modules.
    scaler: factory of a gradient scaler.
    batch_size: samples in a batch; a step takes ``accumulate`` batches.
    steps / epochs: the length of the run; exactly one.
    clip_norm: largest gradient norm (l2, all parameters), or None.
    augment: ``augment(sample, generator) -> sample``, random only through the ``torch.Generator`` handed in.
    collate: list of samples to a batch; default ``torch.utils.data.default_collate``.
    evaluate: ``evaluate(model) -> {"name": value}``, called in evaluation mode without gradients.
    seed: decides every random choice of a run without a registered claim (0 <= seed < 2^64).
    program: the document of the sealed program that it was made of (:mod:`proof_of_learning.program`), as plain values.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Dataset]
    optimizer: Callable[[nn.Module], Any]
    batch_size: int
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    step: Callable[[StepContext, list[Any]], Tensor] | None = None
    scheduler: Callable[[Any], Any] | None = None
    schedule: Literal["step", "epoch"] = "step"
    parts: Callable[[nn.Module], Mapping[str, Any]] | None = None
    scaler: Callable[[], Any] | None = None
    steps: int | None = None
    epochs: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    drop_last: bool = False
    shuffle: bool = True
    augment: Callable[[Any, torch.Generator], Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    seed: int = 0
    name: str = "task"
    reference: TaskReference | None = None
    program: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise TaskError(f"task {self.name!r}: {message}")

        need((self.loss is None) != (self.step is None), "give exactly one of loss and step")
        need((self.steps is None) != (self.epochs is None), "give exactly one of steps and epochs")
        for name in ("batch_size", "accumulate", "steps", "epochs"):
            value = getattr(self, name)
            need(
                value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1),
                f"{name} must be a positive integer, not {value!r}",
            )
        need(self.schedule in ("step", "epoch"), f"schedule must be 'step' or 'epoch', not {self.schedule!r}")
        need(isinstance(self.seed, int) and 0 <= self.seed < 2**64, "seed must be an integer from 0 to 2^64 - 1")
        need(self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be above 0, not {self.clip_norm!r}")

    def steps_per_epoch(self, samples: int) -> int:
        """S for a data set of ``samples``; raises TaskError where that is none."""
        per_step = self.batch_size * self.accumulate
        count = samples // per_step if self.drop_last else -(-samples // per_step)
        if count == 0:
            raise TaskError(
                f"task {self.name!r}: {samples} samples make no step of {per_step}; lower batch_size or drop_last"
            )
        return count

    def total_steps(self, samples: int) -> int:
        """T for a data set of ``samples``."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch(samples)


def default_interval(total_steps: int) -> int:
    """k such that a run has about a thousand segments (many short segments make verification cheap)."""
    return max(1, total_steps // DEFAULT_SEGMENTS)


# ---- loading ----------------------------------------------------------------------------------------


def load_task(reference: str | TaskReference | Task, settings: Mapping[str, Setting] | None = None) -> Task:
    """Load a task by reference. A Task passes through. Raises UsageError or TaskError, one line each."""
    if isinstance(reference, Task):
        return reference
    if isinstance(reference, str):
        reference = TaskReference(reference, dict(settings or {}))
    place, name = _split(reference.target)
    with task_code(f"loading {reference.target}"):
        module = _import(place)
        factory = getattr(module, name, None)
        if factory is None:
            raise UsageError(f"{place} has no {name!r}; name the function that returns the task, as in {place}:task")
        if isinstance(factory, Task):
            made: Any = factory
        elif callable(factory):
            made = factory(**_arguments(factory, reference))
        else:
            raise TaskError(f"{reference.target} is a {type(factory).__name__}, neither a function nor a Task")
    if not isinstance(made, Task):
        raise TaskError(f"{reference.target} returned a {type(made).__name__}, not a proof_of_learning.Task")
    return dataclasses.replace(made, reference=reference)


def is_script(target: str) -> bool:
    """Whether a reference names a script with a loop of its own, and no function."""
    return target.endswith(".py") and (":" not in target or Path(target).is_file())


def _split(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(f"task {target!r}: expected path.py:function or module:function")
    return place, name


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise UsageError(f"there is no module {place!r} to load the task from") from error
            raise
    path = Path(place).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {place!r} to load the task from")
    name = _module_name(place)
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(place: str) -> str:
    """What the module of a task is called in ``sys.modules``."""
    if not place.endswith(".py"):
        return place
    return "pol_task_" + canonical.sha256(str(Path(place).resolve()).encode())[7:23]


def _arguments(factory: Callable[..., Any], reference: TaskReference) -> dict[str, Setting]:
    parameters = inspect.signature(factory).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments: dict[str, Setting] = {}
    for name, value in reference.settings.items():
        if name not in parameters and not free:
            raise UsageError(
                f"{reference.target} takes no setting {name!r}; it takes {', '.join(parameters) or 'none'}"
            )
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        arguments[name] = _parse(name, value, annotation)
    return arguments


def _parse(name: str, value: Setting, annotation: Any) -> Setting:
    """A setting typed on the command line, read as the parameter's annotation (or as the plainest type that fits)."""
    if not isinstance(value, str):
        return value
    wanted = str(getattr(annotation, "__name__", annotation))
    kinds = [kind for kind in ("bool", "int", "float", "str") if kind in wanted] or ["bool", "int", "float", "str"]
    for kind in kinds:
        if (
            kind == "bool"
            and value.lower() in ("true", "false", "yes", "no", "1", "0")
            and (len(kinds) == 1 or value.isalpha())
        ):
            return value.lower() in ("true", "yes", "1")
        try:
            if kind == "int":
                return int(value)
            if kind == "float":
                return float(value)
        except ValueError:
            continue
        if kind == "str":
            return value
    raise UsageError(f"setting {name}={value!r} is not of type {' or '.join(kinds)}")


@contextmanager
def task_code(doing: str) -> Iterator[None]:
    """Run the task's own code; whatever it raises becomes a TaskError of one line that names the place."""
    try:
        yield
    except (PolError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit included: a task must not end the verifier
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "proof_of_learning" not in Path(f.filename).parts and "importlib" not in f.filename]
        where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
        text = " ".join(str(error).split())[:500]
        raise TaskError(f"the task failed while {doing}: {type(error).__name__}: {text}{where}") from error


# ---- description ------------------------------------------------------------------------------------


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
        **sources.of_modules(every.values(), _root(task)),
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
    entry = None if task.reference is None else _split(task.reference.target)[1]
    content = {
        **{name: sources.of_function(function) for name, function in given.items()},
        **sources.decisive(given.values(), task.evaluate, "evaluate", _root(task), entry),
        sources.VALUES: sources.of_values(steps),
    }
    return canonical.sha256(b"pol/resumable\0", canonical.encode(content))


def _root(task: Task) -> ModuleType | None:
    return None if task.reference is None else sys.modules.get(_module_name(_split(task.reference.target)[0]))


_SOURCES = ("model", "data", "optimizer", "loss", "step", "scheduler", "parts", "augment", "collate", "evaluate")


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
    """The entries of an encoded dict (:func:`training.state.encode_tree`) by their keys, as they are meant."""
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
