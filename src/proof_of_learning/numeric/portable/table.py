"""The closed table: by the exact name of an ATen overload, what computes it portably. What is not in it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from proof_of_learning.errors import PolError

Operation = Callable[..., Any]
Kept = TypeVar("Kept", bound=Operation)
Given = ParamSpec("Given")
Found = TypeVar("Found")

# By overload name ("add.Tensor"): what is called in its place; None where PyTorch's own has one result only.
TABLE: dict[str, Operation | None] = {}


# What another engine computes them by, by the same names, and by those of what they are composed of (``grid.total``). Each gives the
# same bits, or NotImplemented for what it does not take; then the plain one does it. ``IN_USE`` holds those of the engine that runs.
NATIVE: dict[str, Operation] = {}
CUDA: dict[str, Operation] = {}
IN_USE: dict[str, Operation] = {}


class RefusedError(PolError):
    """An operation, or a kind of number, that has no portable form."""


def portable(*names: str, inplace: bool = False) -> Callable[[Kept], Kept]:
    """Put an operation into the table.

    inplace: so do the forms that write their result into the first argument (``add_.Tensor``).
    """

    def put(operation: Kept) -> Kept:
        for name in names:
            TABLE[name] = operation
            if inplace:
                base, dot, overload = name.partition(".")
                TABLE[f"{base}_{dot}{overload}"] = into_first(operation)
        return operation

    return put


def as_they_are(*names: str) -> None:
    """Put operations into the table of which PyTorch's own implementation can give one result only."""
    for name in names:
        TABLE[name] = None


def native(*names: str) -> Callable[[Kept], Kept]:
    """Name what computes these natively."""

    def put(operation: Kept) -> Kept:
        NATIVE.update(dict.fromkeys(names, operation))
        return operation

    return put


def cuda(*names: str) -> Callable[[Kept], Kept]:
    """Name what computes these on a CUDA device."""

    def put(operation: Kept) -> Kept:
        CUDA.update(dict.fromkeys(names, operation))
        return operation

    return put


def use(entries: Mapping[str, Operation]) -> None:
    """Have these in use too. Where a name has an entry already, that one is asked for what the new one does not take."""
    for name, entry in entries.items():
        before = IN_USE.get(name)
        IN_USE[name] = entry if before is None else _one_of(entry, before)


@contextmanager
def plainly() -> Iterator[None]:
    """Within it the plain engine computes, in all threads of the process."""
    held = dict(IN_USE)
    IN_USE.clear()
    try:
        yield
    finally:
        IN_USE.update(held)


def _one_of(first: Operation, second: Operation) -> Operation:
    def call(*args: Any, **kwargs: Any) -> Any:
        found = first(*args, **kwargs)
        return second(*args, **kwargs) if found is NotImplemented else found

    return call


def either(name: str, plain: Callable[Given, Found]) -> Callable[Given, Found]:
    """The one of the engine that runs, where it takes what it is given, else the plain one."""

    @wraps(plain)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        other = IN_USE.get(name)
        if other is not None:
            found = other(*args, **kwargs)
            if found is not NotImplemented:
                return found  # type: ignore[no-any-return]
        return plain(*args, **kwargs)

    return call


def building_block(name: str) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """Of what operations are composed of: each engine may have its own."""
    return lambda plain: either(name, plain)


def into_first(operation: Operation) -> Operation:
    def write(first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return first.copy_(operation(first, *args, **kwargs))

    return write


def single(x: Tensor, what: str) -> Tensor:
    """``x`` as float32, to which integers are converted; RefusedError for any other floating-point type."""
    if x.dtype is torch.float32:
        return x
    if x.is_floating_point() or x.is_complex():
        raise RefusedError(
            f"{what} of {str(x.dtype).removeprefix('torch.')} numbers; portable arithmetic has it for float32"
        )
    return x.to(torch.float32)


def real(x: Tensor, what: str) -> Tensor:
    """``x``, if it is float32 or float64; else as :func:`single`."""
    return x if x.dtype is torch.float64 else single(x, what)
