"""Switching portable arithmetic on for a while: every ATen operation of this thread goes through the table, or is refused."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from proof_of_learning.errors import TaskError
from proof_of_learning.numeric.denormals import flushes_denormals
from proof_of_learning.numeric.portable import (
    drawing,
    elementwise,
    engine,
    linear,
    moving,
    normalisation,
    products,
    recurrent,
    reductions,
)
from proof_of_learning.numeric.portable.fitting import FITTING
from proof_of_learning.numeric.portable.moving import VIEWS
from proof_of_learning.numeric.portable.table import IN_USE, TABLE, RefusedError, into_first

_ENTRIES = (drawing, elementwise, moving, normalisation, products, reductions)  # importing them fills the table
_UNKNOWN = {torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.complex32}
_NO_ARITHMETIC = ("profiler", "prim")
_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
ADVICE = "see `What is in the table` in docs/guide/portable.md; without --arithmetic portable the task can be proved as it is"


class _Portable(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing here to compile, and PyTorch's guard would cost more than all of this

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = _RESOLVED.get(id(func))  # an overload lives as long as the process
        name, operation, checked = found if found is not None else _RESOLVED.setdefault(id(func), _find(func))
        if not checked:  # a view: nothing to compute
            return operation(*args, **kwargs) if kwargs else operation(*args)
        kwargs = kwargs or {}
        fitting = FITTING.get(name)
        if fitting is not None:
            fitting(*args, **kwargs)
        try:
            other = IN_USE.get(name)
            if other is not None:
                given = other(*args, **kwargs)
                if given is not NotImplemented:
                    return given
            _check(func, (*args, *kwargs.values()) if kwargs else args)
            if operation is not None:
                return operation(*args, **kwargs)
        except RefusedError as error:
            raise _refusal(func, str(error)) from None
        with self:  # composed by PyTorch of others
            composed = func.decompose(*args, **kwargs)
        if composed is NotImplemented:
            raise _refusal(func, str(func))
        return composed


class _Composed(TorchFunctionMode):
    """Composes recurrent layers as a CPU does, on devices that have one fused operation for them, and linear ones in one step."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kind = getattr(func, "__name__", "")
        if kind == "linear" and linear.taken(args, kwargs or {}):
            return linear.Linear.apply(*args)  # type: ignore[no-untyped-call]
        if kind == "item" and type(args[0]) in linear.KINDS and args[0].dtype is torch.float32:
            with torch._C._DisableTorchDispatch():  # an optimizer asks for its step count of each parameter
                return func(*args)
        if kind in recurrent.CELLS and len(args) == 9 and isinstance(args[0], Tensor) and args[0].device.type != "cpu":
            return recurrent.run(kind, *args)
        return func(*args, **kwargs) if kwargs else func(*args)


def _composing() -> AbstractContextManager[Any]:
    return _Composed() if torch.accelerator.is_available() else nullcontext()


def _check(func: Any, args: Sequence[Any]) -> None:
    """TaskError for a kind of number that has no portable form, among arguments or in lists of theirs."""
    for arg in args:
        for tensor in (arg,) if isinstance(arg, Tensor) else arg if isinstance(arg, (list, tuple)) else ():
            if isinstance(tensor, Tensor) and tensor.dtype in _UNKNOWN:
                raise _refusal(func, f"{str(tensor.dtype).removeprefix('torch.')} numbers")


# By the identity of an overload: its name in the table, what computes it, and whether there is anything to look at: not of a view.
_RESOLVED: dict[int, tuple[str, Any, bool]] = {}


def _find(func: Any) -> tuple[str, Any, bool]:
    """What computes an overload; None where it has to be composed of others."""
    namespace, _, name = str(func).partition(".")
    if namespace in _NO_ARITHMETIC:
        return "", func, True
    if namespace != "aten":
        return "", None, True
    if name in TABLE:
        return name, _single(name), name not in VIEWS
    base, _, overload = name.rpartition(".")
    if base.startswith("_foreach_"):
        return name, _each(base.removeprefix("_foreach_"), overload), True
    return name, None, True


def _single(name: str) -> Any:
    """What computes an overload that is in the table; None for one that PyTorch does not have."""
    base, _, overload = name.partition(".")
    if not hasattr(torch.ops.aten, base):
        return None
    return TABLE[name] or getattr(getattr(torch.ops.aten, base), overload)._op if name in TABLE else None


def _each(base: str, overload: str) -> Any:
    """An operation on lists, as that operation on each of their members; None if it is not in the table."""
    into, base = base.endswith("_"), base.removesuffix("_")
    known = {"add": "add.Tensor", "sub": "sub.Tensor", "mul": "mul.Tensor", "div": "div.Tensor", "pow": "pow.Tensor_Scalar",
             "lerp": "lerp.Scalar", "norm": "linalg_vector_norm.default", "maximum": "maximum.default",
             "minimum": "minimum.default", "copy": "copy.default", "clamp_min": "clamp_min.default",
             "clamp_max": "clamp_max.default"}  # fmt: skip
    name = known.get(base, f"{base}.default")
    if base == "pow" and overload != "Scalar":
        return None
    short, _, of = name.partition(".")
    operation = _single(f"{short}_.{of}" if into else name)
    if into and operation is None:  # of some, as of `maximum`, only lists have a form in place
        out_of_place = _single(name)
        operation = into_first(out_of_place) if out_of_place is not None else None
    if operation is None:
        return None
    by_value = base in ("addcmul", "addcdiv")

    def call(first: Sequence[Tensor], *rest: Any, **options: Any) -> list[Tensor] | None:
        found = []
        scalars = overload in ("Scalar", "Tensor", "ScalarAndTensor") or base == "norm"
        for place, member in enumerate(first):
            own = [
                r[place]
                if isinstance(r, (list, tuple)) and len(r) == len(first) and not (scalars and base == "norm")
                else r
                for r in rest
            ]
            more = dict(options)
            if by_value and len(own) == 3:
                more["value"] = own.pop()
            found.append(operation(member, *own, **more))
        return None if into else found

    return call


def _refusal(func: Any, what: str) -> TaskError:
    """Names the operation and the line of the task's code from which it was called."""
    place = _place()
    return TaskError(f"portable arithmetic does not have {what} ({func}){place}; {ADVICE}")


def _place() -> str:
    frames = traceback.extract_stack()
    for frame in reversed(frames):
        name = os.path.abspath(frame.filename)
        if name.startswith((_HERE, _TORCH)) or frame.filename.startswith("<"):
            if frame.name == "backward" and name.startswith(_TORCH):
                return ", in the backward pass"
            continue
        return f", called at {frame.filename}:{frame.lineno}" + (f" ({frame.line})" if frame.line else "")
    return ""


# ---- optimizers ---------------------------------------------------------------------------------------------

# PyTorch has up to three forms of each optimizer, which compose a step differently. Where nobody chose the device does, so that a GPU
# would take other steps than a CPU. Portable arithmetic has one: that of the loop over parameters, whatever ``foreach`` says. Of some
# the form for lists composes the same steps, of far fewer operations, and is taken.
_ALIKE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
    torch.optim.Adamax,
)
_FORM = "_pol_foreach"  # attribute of an optimizer during a step: what its groups had


def _one_form(optimizer: Optimizer, *_: Any) -> None:
    _own_form(optimizer)  # where a step before failed
    if not getattr(_thread, "active", False):
        return
    groups = [group for group in optimizer.param_groups if "foreach" in group]
    if any(group.get("fused") for group in optimizer.param_groups):
        raise TaskError(
            f"portable arithmetic does not have fused=True of {type(optimizer).__name__}{_place()}; leave it out, or {ADVICE}"
        )
    vars(optimizer)[_FORM] = [(group, group["foreach"]) for group in groups]
    for group in groups:
        group["foreach"] = type(optimizer) in _ALIKE and not any(
            group.get(name) for name in ("capturable", "differentiable")
        ) and not any(isinstance(value, Tensor) for value in (group.get("lr"), *group.get("betas", ())))  # fmt: skip


def _own_form(optimizer: Optimizer, *_: Any) -> None:
    for group, form in vars(optimizer).pop(_FORM, ()):
        group["foreach"] = form


register_optimizer_step_pre_hook(_one_form)
register_optimizer_step_post_hook(_own_form)


# ---- switches of PyTorch that choose between implementations -----------------------------------------------

_lock = threading.Lock()
_thread = threading.local()
_users = 0
_before: dict[str, Any] = {}


def _switches() -> dict[str, Any]:
    return {
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "flash": torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        "cudnn attention": torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        "math": torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
    }


def _switch(to: Mapping[str, Any]) -> None:
    torch.backends.mkldnn.enabled = to["mkldnn"]
    torch.backends.cudnn.enabled = to["cudnn"]
    torch.backends.cuda.enable_flash_sdp(to["flash"])
    torch.backends.cuda.enable_mem_efficient_sdp(to["efficient"])
    torch.backends.cuda.enable_cudnn_sdp(to["cudnn attention"])
    torch.backends.cuda.enable_math_sdp(to["math"])
    torch.backends.mha.set_fastpath_enabled(to["fast path"])
    torch.set_deterministic_debug_mode(to["deterministic"])


_OFF = {
    "mkldnn": False, "cudnn": False, "flash": False, "efficient": False, "cudnn attention": False, "math": True,
    "fast path": False,
    "deterministic": 0,  # exact sums are the same in any order; what has no ordered form on an accelerator would be refused
}  # fmt: skip


@contextmanager
def portable_arithmetic() -> Iterator[None]:
    """Within it, every tensor operation of this thread (and of the backward passes that it starts) is computed portably.

    Raises TaskError, with the operation's name and the line that called it, for what is not in the table. The switches by which
    PyTorch chooses fused implementations are the process's own; they are put back when the last thread leaves. The processor's switch
    that makes zeros of denormal numbers is the thread's own, and off.
    """
    global _users
    if getattr(_thread, "active", False):
        yield
        return
    engine.prepare()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        engine.prepare_for_cuda()
    with _lock:
        if _users == 0:
            _before.update(_switches())
            _switch(_OFF)
        _users += 1
    _thread.active, flushes = True, flushes_denormals()
    if flushes:
        torch.set_flush_denormal(False)
    try:
        with _composing(), _Portable():  # type: ignore[no-untyped-call]
            yield
    finally:
        _thread.active = False
        if flushes:
            torch.set_flush_denormal(True)
        with _lock:
            _users -= 1
            if _users == 0:
                _switch(_before)
