"""Entry by entry: what is one IEEE operation already, what is several of them in a fixed order, and the functions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from proof_of_learning.numeric.portable import functions
from proof_of_learning.numeric.portable.functions import Kernel
from proof_of_learning.numeric.portable.table import RefusedError, as_they_are, portable, single

aten = torch.ops.aten
Number = float | int | bool

# One operation of IEEE 754 for each number (or none): every implementation gives the same.
_SINGLE = (
    "mul.Tensor", "mul.Scalar", "neg", "abs", "maximum", "minimum", "fmax", "fmin", "clamp.Tensor", "clamp_min.Tensor",
    "clamp_max.Tensor", "sign", "sgn", "floor", "ceil", "round", "trunc", "reciprocal",
    "masked_fill.Scalar", "masked_fill.Tensor", "logical_not", "logical_and", "logical_or", "logical_xor",
    "bitwise_not", "bitwise_and.Tensor", "bitwise_and.Scalar", "bitwise_or.Tensor", "bitwise_or.Scalar", "bitwise_xor.Tensor",
    "bitwise_xor.Scalar", "bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "bitwise_right_shift.Tensor",
    "bitwise_right_shift.Tensor_Scalar", "eq.Tensor", "eq.Scalar", "ne.Tensor", "ne.Scalar", "lt.Tensor", "lt.Scalar",
    "le.Tensor", "le.Scalar", "gt.Tensor", "gt.Scalar", "ge.Tensor", "ge.Scalar", "copysign.Tensor", "nan_to_num", "threshold",
)  # fmt: skip
for _name in _SINGLE:
    _base, _, _overload = _name.partition(".")
    as_they_are(f"{_base}.{_overload or 'default'}", f"{_base}_.{_overload or 'default'}")
as_they_are(
    "isnan.default", "isinf.default", "isfinite.default", "where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar",
    "threshold_backward.default", "heaviside.default", "signbit.default", "maximum.out", "minimum.out",
)  # fmt: skip


@lru_cache(256)
def _below(low: float, dtype: torch.dtype) -> float:
    """The largest number of a type below ``low``."""
    return float(torch.nextafter(torch.tensor(low, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)))


@portable("clamp_min.default", inplace=True)
def _clamp_min(x: Tensor, low: Number) -> Tensor:
    """What is below ``low`` becomes it; what equals it, as -0 does 0, stays as it is, and so does NaN.

    The instructions for a maximum disagree on both, so this is PyTorch's threshold, which compares, with what is next below.
    """
    if not x.is_floating_point() or not math.isfinite(low):
        return aten.clamp_min.default(x, low)  # type: ignore[no-any-return]
    return aten.threshold.default(x, _below(float(low), x.dtype), low)  # type: ignore[no-any-return]


@portable("clamp_max.default", inplace=True)
def _clamp_max(x: Tensor, high: Number) -> Tensor:
    if not x.is_floating_point() or not math.isfinite(high):
        return aten.clamp_max.default(x, high)  # type: ignore[no-any-return]
    return torch.where(x > high, high, x)


@portable("clamp.default", inplace=True)
def _clamp(x: Tensor, min: Number | None = None, max: Number | None = None) -> Tensor:
    x = x if min is None else _clamp_min(x, min)
    return x if max is None else _clamp_max(x, max)


@portable("hardtanh.default", inplace=True)
def _hardtanh(x: Tensor, low: Number = -1, high: Number = 1) -> Tensor:
    return _clamp(x, low, high)


@portable("hardtanh_backward.default")
def _hardtanh_backward(grad: Tensor, x: Tensor, low: Number, high: Number) -> Tensor:
    """Nothing where ``x`` is NaN: with PyTorch's own that depends on the place of a number in its vector."""
    return torch.where((x > low) & (x < high), grad, torch.zeros((), dtype=grad.dtype, device=grad.device))


@portable("relu.default", inplace=True)
def _relu(x: Tensor) -> Tensor:
    return _clamp_min(x, 0)


def _times(x: Tensor | Number, factor: Number) -> Tensor | Number:
    return x if factor == 1 else x * factor


@portable("add.Tensor", "add.Scalar")
def _add(x: Tensor, y: Tensor | Number, alpha: Number = 1) -> Tensor:
    return aten.add.Tensor(x, _times(y, alpha))  # type: ignore[no-any-return]


@portable("sub.Tensor", "sub.Scalar")
def _sub(x: Tensor, y: Tensor | Number, alpha: Number = 1) -> Tensor:
    return aten.sub.Tensor(x, _times(y, alpha))  # type: ignore[no-any-return]


@portable("add_.Tensor", "add_.Scalar")
def _add_into(x: Tensor, y: Tensor | Number, alpha: Number = 1) -> Tensor:
    return aten.add_.Tensor(x, _times(y, alpha))  # type: ignore[no-any-return]


@portable("sub_.Tensor", "sub_.Scalar")
def _sub_into(x: Tensor, y: Tensor | Number, alpha: Number = 1) -> Tensor:
    return aten.sub_.Tensor(x, _times(y, alpha))  # type: ignore[no-any-return]


@portable("rsub.Scalar", "rsub.Tensor")
def _rsub(x: Tensor, y: Tensor | Number, alpha: Number = 1) -> Tensor:
    return y - _times(x, alpha)  # type: ignore[return-value]


def divide(x: Tensor | Number, y: Tensor | Number) -> Tensor:
    """A quotient, rounded once: a number is made a tensor, for some devices multiply by its reciprocal."""
    if not isinstance(y, Tensor):
        assert isinstance(x, Tensor)
        y = torch.full((), y, dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)
    return aten.div.Tensor(x, y)  # type: ignore[no-any-return]


@portable("div.Tensor", "div.Scalar", "true_divide.Tensor", inplace=True)
def _div(x: Tensor, y: Tensor | Number) -> Tensor:
    return divide(x, y)


def _of_integers(name: str) -> None:
    """Entries for integers alone."""
    operation = getattr(aten, name.partition(".")[0])
    overload = getattr(operation, name.partition(".")[2])

    def check(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, float) or (isinstance(a, Tensor) and a.is_floating_point()) for a in args):
            raise RefusedError(f"{name} of floating-point numbers; portable arithmetic has it for integers")
        return overload(*args, **kwargs)

    portable(name)(check)


for _name in (
    "floor_divide.default", "floor_divide.Scalar", "div.Tensor_mode", "div.Scalar_mode", "remainder.Tensor", "remainder.Scalar",
    "remainder_.Scalar", "fmod.Scalar", "fmod.Tensor", "floor_divide_.Scalar",
):  # fmt: skip
    _of_integers(_name)


@portable("addcmul.default", inplace=True)
def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Tensor:
    return x + _times(a * b, value)


@portable("addcdiv.default", inplace=True)
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Tensor:
    return x + _times(divide(a, b), value)


@portable("lerp.Scalar", "lerp.Tensor", inplace=True)
def _lerp(x: Tensor, end: Tensor, weight: Tensor | Number) -> Tensor:
    return x + (end - x).mul_(weight)


# ---- functions ------------------------------------------------------------------------------------------


def _function(name: str, kernel: Kernel, *more: str) -> None:
    @portable(f"{name}.default", inplace=True)
    def call(x: Tensor) -> Tensor:
        return functions.apply(kernel, single(x, name))

    for other in more:
        portable(f"{other}.default", inplace=True)(call)


for _name in (
    "mish",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "tanh",
    "sigmoid",
    "erf",
    "erfc",
    "silu",
    "sin",
    "cos",
):
    _function(_name, getattr(functions, _name))
_function("special_erf", functions.erf)


@portable("sqrt.default", inplace=True)
def square_root(x: Tensor) -> Tensor:
    return functions.square_root(single(x, "a square root"))


@portable("rsqrt.default", inplace=True)
def _rsqrt(x: Tensor) -> Tensor:
    return square_root(x).reciprocal_()


@portable("pow.Tensor_Scalar", inplace=True)
def _pow(x: Tensor, y: Number) -> Tensor:
    if not x.is_floating_point() and isinstance(y, int):
        return aten.pow.Tensor_Scalar(x, y)  # type: ignore[no-any-return]
    if x.dtype is torch.float64 and y in (1, 2):  # one operation at most
        return x * x if y == 2 else x.clone()
    x = single(x, "a power")
    if y in (0.5, -0.5):
        root = square_root(x)
        return root if y > 0 else root.reciprocal_()
    if y in (1, 2, 3, -1):
        return x.reciprocal() if y == -1 else x.clone() if y == 1 else x * x if y == 2 else (x * x).mul_(x)
    return functions.apply(functions.power, x, torch.full_like(x, y))


@portable("pow.Tensor_Tensor", inplace=True)
def _pow_tensors(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point() and not y.is_floating_point():
        return aten.pow.Tensor_Tensor(x, y)  # type: ignore[no-any-return]
    x, y = torch.broadcast_tensors(single(x, "a power"), single(y, "a power"))  # type: ignore[no-untyped-call]
    return functions.apply(functions.power, x, y)


@portable("pow.Scalar")
def _pow_of_number(x: Number, y: Tensor) -> Tensor:
    y = single(y, "a power")
    return functions.apply(functions.power, torch.full_like(y, x), y)


@portable("gelu.default", inplace=True)
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functions.apply(functions.gelu if approximate == "none" else functions.gelu_tanh, single(x, "gelu"))


@portable("gelu_backward.default")
def _gelu_backward(g: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    kernel = functions.gelu_backward if approximate == "none" else functions.gelu_tanh_backward
    return functions.apply(kernel, *_two(g, x, "gelu"))


def _two(g: Tensor, x: Tensor, what: str) -> tuple[Tensor, Tensor]:
    g, x = torch.broadcast_tensors(single(g, what), single(x, what))  # type: ignore[no-untyped-call]
    return g, x


@portable("silu_backward.default")
def _silu_backward(g: Tensor, x: Tensor) -> Tensor:
    return functions.apply(functions.silu_backward, *_two(g, x, "silu"))


@portable("mish_backward.default")
def _mish_backward(g: Tensor, x: Tensor) -> Tensor:
    return functions.apply(functions.mish_backward, *_two(g, x, "mish"))


@portable("xlogy.Tensor")
def _xlogy(x: Tensor, y: Tensor) -> Tensor:
    return functions.apply(functions.xlogy, *_two(x, y, "xlogy"))


@portable("sigmoid_backward.default")
def _sigmoid_backward(g: Tensor, y: Tensor) -> Tensor:
    return (1 - y).mul_(y).mul_(g)


@portable("tanh_backward.default")
def _tanh_backward(g: Tensor, y: Tensor) -> Tensor:
    return (1 - y * y).mul_(g)


@portable("log_sigmoid_forward.default")
def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    return functions.apply(functions.log_sigmoid, single(x, "logsigmoid")), x.new_empty(0)


@portable("log_sigmoid_backward.default")
def _log_sigmoid_backward(g: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    return functions.apply(functions.log_sigmoid_backward, *_two(g, x, "logsigmoid"))


@portable("leaky_relu.default", inplace=True)
def _leaky_relu(x: Tensor, slope: Number = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@portable("leaky_relu_backward.default")
def _leaky_relu_backward(g: Tensor, x: Tensor, slope: Number, of_result: bool) -> Tensor:
    return torch.where(x > 0, g, g * slope)


@portable("elu.default", inplace=True)
def _elu(x: Tensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Tensor:
    below = functions.apply(functions.expm1, single(x, "elu") * input_scale).mul_(alpha).mul_(scale)
    return torch.where(x > 0, x * scale, below)


@portable("elu_backward.default")
def _elu_backward(g: Tensor, alpha: Number, scale: Number, input_scale: Number, of_result: bool, x: Tensor) -> Tensor:
    if of_result:
        slope = (x + alpha * scale).mul_(input_scale)
    else:
        slope = functions.apply(functions.exp, single(x, "elu") * input_scale).mul_(alpha * scale * input_scale)
    return g * torch.where(x > 0, torch.full_like(x, scale), slope)


@portable("softplus.default")
def _softplus(x: Tensor, beta: Number = 1, threshold: Number = 20) -> Tensor:
    z = single(x, "softplus") * beta
    grown = functions.apply(lambda a: functions.log1p(functions.exp(a)), z)
    return torch.where(z > threshold, x, divide(grown, beta))


@portable("softplus_backward.default")
def _softplus_backward(g: Tensor, x: Tensor, beta: Number, threshold: Number) -> Tensor:
    z = single(x, "softplus") * beta
    return torch.where(z > threshold, g, functions.apply(functions.sigmoid, z).mul_(g))


@portable("hardsigmoid.default", inplace=True)
def _hardsigmoid(x: Tensor) -> Tensor:
    return divide((x + 3).clamp_(0, 6), 6)


@portable("hardsigmoid_backward.default")
def _hardsigmoid_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), divide(g, 6), torch.zeros_like(g))


@portable("hardswish.default", inplace=True)
def _hardswish(x: Tensor) -> Tensor:
    return divide((x + 3).clamp_(0, 6).mul_(x), 6)


@portable("hardswish_backward.default")
def _hardswish_backward(g: Tensor, x: Tensor) -> Tensor:
    inside = (divide(x, 3) + 0.5).mul_(g)
    return torch.where(x < -3, torch.zeros_like(g), torch.where(x <= 3, inside, g))


@portable("_prelu_kernel.default")
def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * weight)


@portable("_prelu_kernel_backward.default")
def _prelu_backward(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(x > 0, g, g * weight), torch.where(x > 0, torch.zeros_like(g), g * x)


@portable("logit.default")
def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    x = single(x, "logit") if eps is None else single(x, "logit").clamp(eps, 1 - eps)
    return functions.apply(functions.log, divide(x, 1 - x))
