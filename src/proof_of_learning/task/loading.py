"""From a reference to a task: the module is imported, which trains nothing, and its function is called with the settings."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.errors import TaskError, UsageError
from proof_of_learning.task.definition import Setting, Task, TaskReference, place_and_name
from proof_of_learning.task.guard import task_code


def load_task(reference: str | TaskReference | Task, settings: Mapping[str, Setting] | None = None) -> Task:
    """Load a task by reference. A Task passes through. Raises UsageError or TaskError, one line each."""
    if isinstance(reference, Task):
        return reference
    if isinstance(reference, str):
        reference = TaskReference(reference, dict(settings or {}))
    place, name = place_and_name(reference.target)
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


def module_of(task: Task) -> ModuleType | None:
    """The module that the task was loaded from; None where it has no reference."""
    return None if task.reference is None else sys.modules.get(_module_name(place_and_name(task.reference.target)[0]))


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
