"""Numbers below the smallest normal one: whether the processor makes zeros of them in this thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def flushes_denormals() -> bool:
    import torch

    return bool((torch.tensor([1e-310], dtype=torch.float64) * 1.0).item() == 0.0)


def with_denormals(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, which then gives the same whether or not its caller makes zeros of denormal numbers.

    Where it does, another thread calls it: PyTorch's own threads keep the switch that the thread had which first needed them.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        import torch

        if not flushes_denormals():
            return function(*args, **kwargs)
        with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(False,)) as thread:
            return thread.submit(function, *args, **kwargs).result()

    return called
