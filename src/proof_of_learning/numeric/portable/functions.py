"""Functions of one number, as fixed sequences of single IEEE operations in float64; each is rounded to float32 once, at its end.

Polynomials are evaluated from the highest coefficient, a product and a sum each, never fused. Coefficients are interpolated at
Chebyshev nodes with 50 digits; relative errors: exp 2**-31, log 2**-38, erfc 2**-30, erf near 0 2**-35, sin and cos 2**-43.

A *kernel* takes float64 tensors, which it may overwrite, and is run on stretches that stay in a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from proof_of_learning.numeric.portable.table import building_block

f64, i64 = torch.float64, torch.int64
Kernel = Callable[..., Tensor]

STRETCH = 1 << 14  # numbers
_MAGIC = 1.5 * 2.0**52
_LOG2E = float.fromhex("0x1.71547652b82fep+0")
_LN2 = (float.fromhex("0x1.62e42fefa2000p-1"), float.fromhex("0x1.9ef35793c7673p-41"))  # the first has 40 bits
_HALF_PI = tuple(map(float.fromhex, ("0x1.921fb54400000p+0", "0x1.0b4611a600000p-34", "0x1.3198a2e037073p-69")))
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_ROOT_HALF = 0.7071067811865476
_BELOW = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


def _floats(*hexadecimal: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, hexadecimal))


_EXPM1 = _floats(  # (exp(r) - 1) / r for |r| <= log(2) / 2
    "0x1.0000000000000p+0", "0x1.000000287f871p-1", "0x1.55555567532adp-3", "0x1.5554accdfb593p-5", "0x1.1110c632a3088p-7",
    "0x1.6d7543e4127b8p-10", "0x1.a15179d80ae96p-13",
)  # fmt: skip
_LOG = _floats(  # log((1 + t) / (1 - t)) / t, in t**2, for |t| <= 0.1716
    "0x1.0000000004990p+1", "0x1.555554db62b8ap-1", "0x1.999a9bd09c3aep-2", "0x1.2432e86d5da18p-2", "0x1.e3aa5e803484dp-3",
)  # fmt: skip
_ERFC_SCALE, _ERFC_END = 0.45, 10.2
_ERFC = _floats(  # erfc(a) exp(a**2), in 1 / (1 + 0.45 a), for 0 <= a <= 10.2
    "-0x1.479ad80c9e4bap-19", "0x1.040e60124fbc0p-2", "0x1.02e7a13c6ddecp-2", "0x1.e4d01df2ae61ap-3", "0x1.0c9e6e949c71fp-3",
    "0x1.196e09c84d53fp-2", "-0x1.940bd3532fbc8p-2", "0x1.8197c9e73fc1ep-1", "-0x1.f12f7ce0f1e05p-1", "0x1.523070f304541p-1",
    "-0x1.d90a432fa974fp-3", "0x1.12265b6afe7c0p-5",
)  # fmt: skip
_ERF = _floats(  # erf(x) / x, in x**2, for |x| <= 0.75
    "0x1.20dd75040cba1p+0", "-0x1.8127466155e0bp-2", "0x1.ce2efe7c7c525p-4", "-0x1.b826ff5d16495p-6", "0x1.55e2dd6cfac0cp-8",
    "-0x1.b62014f23ad75p-11", "0x1.8d20046681d67p-14",
)  # fmt: skip
_SIN = _floats(  # sin(r) / r, in r**2, for |r| <= pi / 4
    "0x1.fffffffff679cp-1", "-0x1.555555494598bp-3", "0x1.11110749b33f3p-7", "-0x1.a00ee6c400e9cp-13", "0x1.6cb7064fa68a0p-19",
)  # fmt: skip
_COS = _floats(  # cos(r), in r**2
    "0x1.ffffffffffe0bp-1", "-0x1.ffffffffe36efp-2", "0x1.5555554472cfap-5", "-0x1.6c16b2d1a9e50p-10", "0x1.a00e955bbe076p-16",
    "-0x1.23c58ba448ef7p-22",
)  # fmt: skip


@building_block("functions.apply")
def apply(kernel: Kernel, *inputs: Tensor) -> Tensor:
    """The kernel's values for float32 inputs (of one shape) in float32."""
    first = inputs[0]
    found = torch.empty(first.shape, dtype=torch.float32, device=first.device)
    flat, given = found.view(-1), [x.reshape(-1) for x in inputs]
    stretch = STRETCH if first.device.type == "cpu" else max(1, first.numel())
    for start in range(0, first.numel(), stretch):
        stop = start + stretch
        flat[start:stop] = kernel(*(x[start:stop].to(f64) for x in given))
    return found


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    found = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        found.add_(c).mul_(x)
    return found.add_(coefficients[0])


def _powers_of_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """(exp(r) - 1, bits that, added to a float64's, multiply it by 2**k) with x = k log(2) + r. Overwrites ``x``."""
    x.clamp_(-700.0, 700.0)
    shifted = (x * _LOG2E).add_(_MAGIC)
    k = shifted - _MAGIC
    x.sub_(k * _LN2[0]).sub_(k.mul_(_LN2[1]))
    return _polynomial(x, _EXPM1).mul_(x), shifted.view(i64).bitwise_left_shift_(52)


def exp(x: Tensor) -> Tensor:
    less_one, bits = _powers_of_two(x)
    found = less_one.add_(1.0)
    found.view(i64).add_(bits)
    return found


def expm1(x: Tensor) -> Tensor:
    found, bits = _powers_of_two(x)
    scale = torch.ones_like(found)
    scale.view(i64).add_(bits)
    return found.mul_(scale).add_(scale.sub_(1.0))


def log(x: Tensor) -> Tensor:
    bits = x.view(i64)
    exponent = (bits - _BELOW).bitwise_right_shift_(52)
    m = (bits - exponent.bitwise_left_shift(52)).view(f64)
    t = (m - 1.0).div_(m.add_(1.0))
    found = _polynomial(t * t, _LOG).mul_(t).add_(exponent.to(f64).mul_(_LN2_WHOLE))
    found.masked_fill_(x == 0, -math.inf).masked_fill_(x == math.inf, math.inf)
    return found.masked_fill_((x >= 0).logical_not_(), math.nan)


_LN2_WHOLE = 0.6931471805599453


def log1p(x: Tensor) -> Tensor:
    small = x.abs() < 2.0**-20
    series = x - (x * x).mul_(0.5)
    return torch.where(small, series, log(x + 1.0))


def log2(x: Tensor) -> Tensor:
    return log(x).mul_(_LOG2E)


def log10(x: Tensor) -> Tensor:
    return log(x).mul_(0.4342944819032518)


def tanh(x: Tensor) -> Tensor:
    grown = expm1(x.mul_(2.0).clamp_(-60.0, 60.0))
    return grown / (grown + 2.0)


def sigmoid(x: Tensor) -> Tensor:
    return exp(x.neg_()).add_(1.0).reciprocal_()


def _half_erfc(a: Tensor) -> tuple[Tensor, Tensor]:
    """(erfc(a) / 2, exp(-a**2)) for a >= 0. Overwrites ``a``."""
    falling = exp((a * a).neg_())
    t = a.clamp_(max=_ERFC_END).mul_(_ERFC_SCALE).add_(1.0).reciprocal_()
    return _polynomial(t, _ERFC).mul_(falling).mul_(0.5), falling


def erf(x: Tensor) -> Tensor:
    a = x.abs()
    near = _polynomial(x * x, _ERF).mul_(x)
    far = _half_erfc(a.clone())[0].mul_(-2.0).add_(1.0)
    return torch.where(a < 0.75, near, torch.where(x < 0, -far, far))


def erfc(x: Tensor) -> Tensor:
    tail = _half_erfc(x.abs())[0].mul_(2.0)
    return torch.where(x < 0, 2.0 - tail, tail)


def _normal_cdf(x: Tensor) -> tuple[Tensor, Tensor]:
    """(Phi(x), exp(-x**2 / 2))."""
    tail, falling = _half_erfc(x.abs().mul_(_ROOT_HALF))
    return torch.where(x < 0, tail, 1.0 - tail), falling


def gelu(x: Tensor) -> Tensor:
    return _normal_cdf(x)[0].mul_(x)


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    share, falling = _normal_cdf(x)
    return share.add_(falling.mul_(x).mul_(0.3989422804014327)).mul_(g)


def _tanh_inside(x: Tensor) -> Tensor:
    return (x * x).mul_(x).mul_(0.044715).add_(x).mul_(0.7978845608028654)


def gelu_tanh(x: Tensor) -> Tensor:
    return tanh(_tanh_inside(x)).add_(1.0).mul_(0.5).mul_(x)


def gelu_tanh_backward(g: Tensor, x: Tensor) -> Tensor:
    t = tanh(_tanh_inside(x))
    slope = (x * x).mul_(0.134145).add_(1.0).mul_(0.7978845608028654)
    inner = (1.0 - t * t).mul_(slope).mul_(x)
    return t.add_(1.0).add_(inner).mul_(0.5).mul_(g)


def silu(x: Tensor) -> Tensor:
    return sigmoid(x.clone()).mul_(x)


def silu_backward(g: Tensor, x: Tensor) -> Tensor:
    s = sigmoid(x.clone())
    return (1.0 - s).mul_(x).add_(1.0).mul_(s).mul_(g)


def log_sigmoid(x: Tensor) -> Tensor:
    return x.clamp(max=0.0).sub_(log1p(exp(x.abs().neg_())))


def log_sigmoid_backward(g: Tensor, x: Tensor) -> Tensor:
    return sigmoid(x.neg_()).mul_(g)


def mish(x: Tensor) -> Tensor:
    return tanh(_softened(x)).mul_(x)


def _softened(x: Tensor) -> Tensor:
    """log(1 + exp(x)), of x itself where it is above 20."""
    return torch.where(x > 20.0, x, log1p(exp(x.clone())))


def mish_backward(g: Tensor, x: Tensor) -> Tensor:
    t = tanh(_softened(x))
    inner = (1.0 - t * t).mul_(sigmoid(x.clone())).mul_(x)
    return inner.add_(t).mul_(g)


def xlogy(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x == 0) & (y == y), torch.zeros_like(x), log(y).mul_(x))


def _turned(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sin(r), cos(r), k modulo 4) with x = k pi / 2 + r. Overwrites ``x``; good for |x| < 2**20."""
    shifted = (x * _TWO_OVER_PI).add_(_MAGIC)
    k = shifted - _MAGIC
    for part in _HALF_PI:
        x.sub_(k * part)
    square = x * x
    return _polynomial(square, _SIN).mul_(x), _polynomial(square, _COS), shifted.view(i64).bitwise_and_(3)


def sin(x: Tensor) -> Tensor:
    s, c, quarter = _turned(x)
    found = torch.where((quarter & 1) == 1, c, s)
    return torch.where(quarter >= 2, -found, found)


def cos(x: Tensor) -> Tensor:
    s, c, quarter = _turned(x)
    found = torch.where((quarter & 1) == 1, s, c)
    return torch.where((quarter == 1) | (quarter == 2), -found, found)


def power(x: Tensor, y: Tensor) -> Tensor:
    """x**y: exp(y log|x|), with the sign of an odd whole y; NaN for a negative x and a y that is not whole."""
    whole = y.round() == y
    odd = whole & (y * 0.5 != (y * 0.5).round())
    size = log(x.abs()).mul_(y)
    found = exp(size)
    found = torch.where(size == -math.inf, torch.zeros_like(found), torch.where(size == math.inf, size, found))
    found = torch.where((x < 0) & odd, -found, found)
    found = torch.where((x < 0) & whole.logical_not(), torch.full_like(found, math.nan), found)
    return torch.where((y == 0) | (x == 1), torch.ones_like(found), found)


@building_block("functions.square_root")
def square_root(x: Tensor) -> Tensor:
    """The square root of float32, rounded right: one that is wrong by up to three units of float64 cannot change that."""
    return torch.sqrt(x.to(f64)).to(torch.float32)
