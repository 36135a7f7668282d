"""Steps without PyTorch's compiler: its import takes as long as PyTorch's own, and a plain step uses two functions of it that do
nothing where nothing is compiled.

PyTorch imports ``torch._dynamo`` with the first optimizer. In a process that only replays, a stand-in takes its place until somebody
asks for anything else of it (``torch.compile``, its settings): then the real one is loaded, and takes over.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


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
        return getattr(_load(self), name)


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
