"""Operations on lists of tensors, as optimizers have them: one launch for all of a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from proof_of_learning.numeric.portable.cuda import pointwise
from proof_of_learning.numeric.portable.cuda.launching import MOST, f32, f64, given, i32, launch, taken, takes
from proof_of_learning.numeric.portable.cuda.operations import one
from proof_of_learning.numeric.portable.grid import SUM_BITS, ceil_log2
from proof_of_learning.numeric.portable.table import cuda

Number = float | int | bool
Numbers = Number | Tensor | Sequence[Number]
Tensors = Sequence[Tensor]
SIZE = 1024  # numbers of a program
KEPT = 512  # lists that are remembered


@dataclass(frozen=True)
class Cut:
    """Which program has what of tensors of some sizes, and how many programs:

    blocks [programs, 2], sizes [tensors], the factors of norms [tensors].
    """

    blocks: Tensor
    sizes: Tensor
    factors: Tensor
    programs: int


# An optimizer asks for the same lists in each step, and its gradients mostly lie where they lay in the last one.
_CUTS: dict[tuple[Any, ...], Cut] = {}
_PLACES: dict[tuple[Any, ...], Tensor | None] = {}


def _there(numbers: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, without waiting for it."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _cut(sizes: tuple[int, ...], device: torch.device) -> Cut:
    found = _CUTS.get((device, sizes))
    if found is None:
        if len(_CUTS) >= KEPT:
            _CUTS.clear()
        blocks = [(which, start) for which, n in enumerate(sizes) for start in range(0, n, SIZE)]
        factors = [1.5 * 2.0 ** (54 - SUM_BITS + ceil_log2(n)) for n in sizes]
        found = Cut(_there(blocks, i32, device), _there(sizes, i32, device), _there(factors, f32, device), len(blocks))
        _CUTS[device, sizes] = found
    return found


def _places(lists: Sequence[Tensors], sizes: tuple[int, ...], device: torch.device) -> Tensor | None:
    """The addresses of tensors [lists, tensors], int64; None where a result would be written to what another is read from.

    The first list has the results.
    """
    key = (device, sizes, *(x.data_ptr() for tensors in lists for x in tensors))
    if key not in _PLACES:
        if len(_PLACES) >= KEPT:
            _PLACES.clear()
        rows = [[x.data_ptr() for x in tensors] for tensors in lists]
        apart = all(
            x == y or abs(x - y) >= 4 * size for row in rows[1:] for x, y, size in zip(rows[0], row, sizes, strict=True)
        )
        _PLACES[key] = _there(rows, torch.int64, device) if apart else None
    return _PLACES[key]


def _alike(first: Tensors, others: Sequence[Tensors]) -> tuple[int, ...] | None:
    """How many numbers each has, if all are contiguous float32 on one device, and the others of the first ones' shapes."""
    if not first or not takes(first[0]):
        return None
    device, shapes = first[0].get_device(), [x.shape for x in first]
    for tensors in (first, *others):
        if len(tensors) != len(first) or [x.shape for x in tensors] != shapes:
            return None
        for x in tensors:
            if not taken(x) or x.get_device() != device or not x.is_contiguous():
                return None
    sizes = tuple([x.numel() for x in first])
    return sizes if min(sizes) > 0 and sum(sizes) < MOST else None


def _computed(which: int, xs: Tensors, others: Sequence[Tensors], numbers: Numbers, into: bool) -> Any:
    """``which`` of each member; None where they were written ``into`` the first, else the results; NotImplemented for other kinds."""
    sizes = _alike(xs, others)
    if sizes is None:
        return NotImplemented
    device = xs[0].device
    each, number = 0, 0.0
    table: Tensor = xs[0]
    if isinstance(numbers, Tensor):
        if numbers.numel() != 1 or not takes(numbers) or numbers.device != device:
            return NotImplemented
        each, table = 2, numbers
    elif isinstance(numbers, (list, tuple)):
        if len(numbers) != len(xs):
            return NotImplemented
        if len(set(numbers)) == 1:
            number = float(numbers[0])
        else:
            each, table = 1, _there(numbers, f32, device)
    else:
        number = float(numbers)  # type: ignore[arg-type]
    ys = list(xs) if into else [torch.empty(x.shape, dtype=f32, device=device) for x in xs]
    places = _places((ys, xs, *others), sizes, device)
    if places is None:
        return NotImplemented
    cut = _cut(sizes, device)
    tensors, constants = (cut.blocks, places, cut.sizes, table), (which, len(others), each, SIZE)
    launch(pointwise.lists_kernel, (cut.programs, 1, 1), tensors, (len(xs), number), constants)
    return None if into else ys


def _number(value: Any) -> bool:
    return all(isinstance(v, (float, int)) for v in (value if isinstance(value, (list, tuple)) else (value,)))


Call = Callable[[bool, Tensors, Sequence[Any], dict[str, Any]], Any]


def _lists(base: str, overloads: Sequence[str], call: Call) -> None:
    for overload in overloads:
        for into in (False, True):

            def entry(first: Tensors, *rest: Any, into: bool = into, **options: Any) -> Any:
                return call(into, first, rest, options)

            cuda(f"_foreach_{base}{'_' if into else ''}.{overload}")(entry)


def _by_number(which: int) -> Call:
    def call(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
        if options or len(rest) != 1 or not (_number(rest[0]) or isinstance(rest[0], Tensor)):
            return NotImplemented
        return _computed(which, first, (), rest[0], into)

    return call


def _by_list(which: int) -> Call:
    def call(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
        if options or len(rest) != 1:
            return NotImplemented
        return _computed(which, first, (rest[0],), 0.0, into)

    return call


def _add(into: bool, first: Tensors, rest: Sequence[Any], options: dict[str, Any]) -> Any:
    alpha = options.get("alpha", 1)
    if len(rest) != 1 or set(options) - {"alpha"} or not isinstance(alpha, (float, int)):
        return NotImplemented
    if isinstance(rest[0], Tensor):  # the same number for all
        return NotImplemented if alpha != 1 else _computed(PLUS_NUMBER, first, (), rest[0], into)
    return _computed(PLUS if alpha == 1 else PLUS_SCALED, first, (rest[0],), alpha, into)


def _by_value(which: int) -> Call:
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
    return _computed(ROOT, first, (), 0.0, into)


_lists("add", ("List", "Tensor"), _add)
_lists("add", ("Scalar", "ScalarList"), _by_number(PLUS_NUMBER))
_lists("mul", ("Scalar", "ScalarList", "Tensor"), _by_number(TIMES_NUMBER))
_lists("mul", ("List",), _by_list(TIMES))
_lists("div", ("Scalar", "ScalarList"), _by_number(OVER_NUMBER))
_lists("div", ("List",), _by_list(OVER))
_lists("addcmul", ("Scalar", "ScalarList"), _by_value(PLUS_PRODUCT))
_lists("addcdiv", ("Scalar", "ScalarList"), _by_value(PLUS_QUOTIENT))
_lists("lerp", ("Scalar",), _lerp)
_lists("sqrt", ("default",), _sqrt)


@cuda("_foreach_norm.Scalar")
def _norm(xs: Tensors, order: Number = 2, dtype: torch.dtype | None = None) -> Any:
    """2-norms: one launch finds the largest magnitudes, one adds up, one takes the roots."""
    sizes = _alike(xs, ())
    if order != 2 or dtype not in (None, f32) or sizes is None:
        return NotImplemented
    device, count = xs[0].device, len(xs)
    cut, places = _cut(sizes, device), _places((xs,), sizes, device)
    assert places is not None  # nothing is written
    blank = torch.zeros(2 * count, dtype=torch.int64, device=device)
    sums, largest = blank[:count].view(f64), blank[count:].view(i32)
    out, grid = torch.empty(count, dtype=f32, device=device), (cut.programs, 1, 1)
    launch(pointwise.norm_largest_kernel, grid, (cut.blocks, places, cut.sizes, largest), (), (SIZE,))
    launch(pointwise.norm_sum_kernel, grid, (cut.blocks, places, cut.sizes, largest, cut.factors, sums), (), (SIZE,))
    launch(pointwise.norm_finish_kernel, (-(-count // 256), 1, 1), (sums, out), (count,), (256,))
    return list(out.unbind(0))


# ---- one tensor -----------------------------------------------------------------------------------------


def _one(which: int, x: Any, others: Tensors, number: Any, into: bool) -> Any:
    if not isinstance(number, (float, int)) or not given(x, *others):
        return NotImplemented
    if any(y.shape != x.shape or (into and 0 < abs(y.data_ptr() - x.data_ptr()) < 4 * x.numel()) for y in others):
        return NotImplemented
    return one(which, x, others, number, into)


enter(cuda, _one, ("div.Tensor", "div.Scalar"))
