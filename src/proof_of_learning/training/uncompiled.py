"""Steps without PyTorch's compiler: its import takes as long as PyTorch's own, and a plain step uses two functions of it that do
nothing where nothing is compiled; gradient checkpointing reads its settings, too, a module that needs nothing of the others.

PyTorch imports ``torch._dynamo`` with the first optimizer. In a process that only replays, a stand-in takes its place until somebody
asks for anything else of it (``torch.compile``): then the real one is loaded, and takes over.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"
_SETTINGS = f"{_NAME}.config"


class _StandIn(ModuleType):
    """``graph_break`` and ``disable`` as they are outside of compiled code; all else is the real module's."""

    def __init__(self) -> None:
        super().__init__(_NAME)
        vars(self).update(_real=None, _loading=threading.RLock())

    def graph_break(self, *args: Any, **more: Any) -> None:
        real = vars(self)["_real"]
        if real is not None:
            real.graph_break(*args, **more)

    def disable(self, fn: Callable[..., Any] | None = None, *args: Any, **more: Any) -> Any:
        """The function as it is; once the real module is there, what that makes of it."""
        if not callable(fn):
            return getattr(_load(self), "disable")(fn, *args, **more)  # noqa: B009 (not this one)
        made: list[Callable[..., Any]] = []

        @functools.wraps(fn)
        def disabled(*given: Any, **named: Any) -> Any:
            real = vars(self)["_real"]
            if real is None:
                return fn(*given, **named)
            if not made:
                made.append(real.disable(fn, *args, **more))
            return made[0](*given, **named)

        return disabled

    def __getattr__(self, name: str) -> Any:
        if (
            name.startswith("__") and name != "__path__"
        ):  # as `inspect` asks of every module, in the midst of an import perhaps
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r} yet")
        return _settings(self) if name == "config" else getattr(_load(self), name)


def _settings(stand_in: _StandIn) -> ModuleType:
    """The module of settings, by itself; the real package takes it over when it is loaded."""
    import torch

    with vars(stand_in)["_loading"]:
        if _SETTINGS not in sys.modules:
            assert torch.__file__ is not None
            spec = importlib.util.spec_from_file_location(
                _SETTINGS, Path(torch.__file__).parent / "_dynamo" / "config.py"
            )
            assert spec is not None
            assert spec.loader is not None
            sys.modules[_SETTINGS] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[_SETTINGS]


def _load(stand_in: _StandIn) -> ModuleType:
    import torch

    held = vars(stand_in)
    with held["_loading"]:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]
            vars(torch).pop("_dynamo", None)
        real = importlib.import_module(_NAME)
        held["_real"] = real
        return real


def defer_compiler() -> None:
    """Let this process do without the compiler until it is used; nothing where it has been imported already."""
    import torch

    if _NAME not in sys.modules:
        stand_in = _StandIn()
        sys.modules[_NAME] = stand_in
        vars(torch)["_dynamo"] = stand_in
