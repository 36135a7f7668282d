"""Elementwise operations of several roundings: their numbers, and which of PyTorch's, on one tensor, is which of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

# In the order of pol_elementwise in native/kernels/functions.cpp, and of ``computed`` in cuda/pointwise.py.
PLUS_SCALED, PLUS_PRODUCT, PLUS_QUOTIENT, TOWARD, TIMES_NUMBER, OVER_NUMBER, ROOT, PLUS_NUMBER, PLUS, TIMES, OVER = (
    range(11)
)

One = Callable[[int, Any, Sequence[Any], Any, bool], Any]


def enter(entry: Callable[[str], Callable[[Any], Any]], one: One, divisions: Sequence[str] = ("div.Tensor",)) -> None:
    """Fill an engine's table, each operation in two forms, that make a result and that write into the first.

    ``one(which, x, others, number, into)`` computes one, or gives NotImplemented. divisions: overloads of division that may be by a
    number.
    """

    def both(name: str, call: Callable[..., Any]) -> None:
        base, _, overload = name.partition(".")
        entry(name)(lambda *args, **kwargs: call(False, *args, **kwargs))
        entry(f"{base}_.{overload}")(lambda *args, **kwargs: call(True, *args, **kwargs))

    def add(into: bool, x: Tensor, y: Any, alpha: float = 1) -> Any:
        if alpha == 1 or not isinstance(y, Tensor):  # one operation
            return NotImplemented
        return one(PLUS_SCALED, x, (y,), alpha, into)

    def divide(into: bool, x: Tensor, y: Any) -> Any:
        return NotImplemented if isinstance(y, Tensor) else one(OVER_NUMBER, x, (), y, into)

    both("add.Tensor", add)
    both("addcmul.default", lambda into, x, a, b, *, value=1: one(PLUS_PRODUCT, x, (a, b), value, into))
    both("addcdiv.default", lambda into, x, a, b, *, value=1: one(PLUS_QUOTIENT, x, (a, b), value, into))
    both("lerp.Scalar", lambda into, x, end, weight: one(TOWARD, x, (end,), weight, into))
    for name in divisions:
        both(name, divide)
