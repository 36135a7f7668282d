"""Elementwise operations of several roundings, on a tensor or on lists: one call of a kernel for all that an optimizer keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.numeric.portable.composite import (
    OVER,
    OVER_NUMBER,
    PLUS,
    PLUS_NUMBER,
    PLUS_PRODUCT,
    PLUS_QUOTIENT,
    PLUS_SCALED,
    ROOT,
    TIMES,
    TIMES_NUMBER,
    TOWARD,
    enter,
)
from proof_of_learning.numeric.portable.native.calls import run
from proof_of_learning.numeric.portable.native.operations import KINDS, f32
from proof_of_learning.numeric.portable.table import native

Number = float | int | bool
Numbers = Number | Sequence[Number]
Tensors = Sequence[Tensor]


def _computed(which: int, xs: Tensors, others: Sequence[Tensors], numbers: Numbers | None, into: bool) -> Any:
    """``which`` of each member; None where they were written ``into`` the first, else the results; NotImplemented for other kinds."""
    count, lists = len(xs), (xs, *others)
    for tensors in lists:
        for x in tensors:
            if type(x) not in KINDS or x.dtype is not f32 or not x.is_cpu or not x.is_contiguous():
                return NotImplemented
    shapes, sizes = [x.shape for x in xs], [x.numel() for x in xs]
    if any([y.shape for y in tensors] != shapes for tensors in others) or 0 in sizes:
        return NotImplemented
    places = [[x.data_ptr() for x in tensors] for tensors in lists]
    if into and any(
        0 < abs(x - y) < 4 * size for rest in places[1:] for x, y, size in zip(places[0], rest, sizes, strict=True)
    ):
        return NotImplemented  # what is read would have been written to
    ys = list(xs) if into else [torch.empty(shape, dtype=f32) for shape in shapes]
    if numbers is None:
        given = None
    elif isinstance(numbers, (list, tuple)):
        if len(numbers) != count:
            return NotImplemented
        given = (c_float * count)(*numbers)
    else:
        given = (c_float * count)(*[float(numbers)] * count)  # type: ignore[arg-type]
    pointers = [(c_void_p * count)(*row) for row in places]
    found = pointers[0] if into else (c_void_p * count)(*[y.data_ptr() for y in ys])
    a = pointers[1] if len(others) > 0 else None
    b = pointers[2] if len(others) > 1 else None
    run(
        "pol_elementwise",
        which,
        count,
        (c_int64 * count)(*sizes),
        pointers[0],
        a,
        b,
        given,
        found,
    )
    return None if into else ys


def _number(value: Any) -> bool:
    return all(isinstance(v, (float, int)) for v in (value if isinstance(value, (list, tuple)) else (value,)))


# ---- lists ----------------------------------------------------------------------------------------------


def _lists(
    base: str, overloads: Sequence[str], call: Callable[[bool, Tensors, Sequence[Any], dict[str, Any]], Any]
) -> None:
    for overload in overloads:
        for into in (False, True):

            def entry(first: Tensors, *rest: Any, into: bool = into, **options: Any) -> Any:
                return call(into, first, rest, options)

            native(f"_foreach_{base}{'_' if into else ''}.{overload}")(entry)


def _by_number(which: int) -> Callable[..., Any]:
    def call(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
        if options or len(rest) != 1 or not _number(rest[0]):
            return NotImplemented
        return _computed(which, first, (), rest[0], into)

    return call


def _by_list(which: int) -> Callable[..., Any]:
    def call(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
        if options or len(rest) != 1:
            return NotImplemented
        return _computed(which, first, (rest[0],), None, into)

    return call


def _add(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
    alpha = options.get("alpha", 1)
    if len(rest) != 1 or set(options) - {"alpha"} or not _number(alpha):
        return NotImplemented
    if isinstance(rest[0], Tensor):  # the same number for all
        if rest[0].numel() != 1 or alpha != 1 or rest[0].dtype is not torch.float32 or not rest[0].is_cpu:
            return NotImplemented
        return _computed(PLUS_NUMBER, first, (), rest[0].item(), into)
    if alpha == 1:
        return _computed(PLUS, first, (rest[0],), None, into)
    return _computed(PLUS_SCALED, first, (rest[0],), alpha, into)


def _by_value(which: int) -> Callable[..., Any]:
    def call(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
        value = options.get("value", 1) if len(rest) == 2 else rest[2]
        if not _number(value):
            return NotImplemented
        return _computed(which, first, rest[:2], value, into)

    return call


def _lerp(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
    if options or len(rest) != 2 or not _number(rest[1]):
        return NotImplemented
    return _computed(TOWARD, first, (rest[0],), rest[1], into)


def _sqrt(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
    return _computed(ROOT, first, (), None, into)


_lists("add", ("List", "Tensor"), _add)
_lists("add", ("Scalar", "ScalarList"), _by_number(PLUS_NUMBER))
_lists("mul", ("Scalar", "ScalarList"), _by_number(TIMES_NUMBER))
_lists("mul", ("List",), _by_list(TIMES))
_lists("div", ("Scalar", "ScalarList"), _by_number(OVER_NUMBER))
_lists("div", ("List",), _by_list(OVER))
_lists("addcmul", ("Scalar", "ScalarList"), _by_value(PLUS_PRODUCT))
_lists("addcdiv", ("Scalar", "ScalarList"), _by_value(PLUS_QUOTIENT))
_lists("lerp", ("Scalar",), _lerp)
_lists("sqrt", ("default",), _sqrt)


# ---- one tensor -----------------------------------------------------------------------------------------


def _one(which: int, x: Tensor, others: Tensors, number: Any, into: bool) -> Any:
    if not isinstance(number, (float, int)):
        return NotImplemented
    found = _computed(which, (x,), [(other,) for other in others], number, into)
    return found if found is NotImplemented else x if into else found[0]


enter(native, _one)
