"""Functions that kernels call: the grid, and the functions of ``functions.py``, the same operations in the same order.

Numbers in float64 unless said otherwise. Whatever is NaN in the plain engine is NaN here; its bits may be others.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from proof_of_learning.numeric.portable import functions

INF = tl.constexpr(float("inf"))
MAGIC = tl.constexpr(functions._MAGIC)
LOG2E = tl.constexpr(functions._LOG2E)
LN2_HIGH, LN2_LOW = (tl.constexpr(part) for part in functions._LN2)
LN2_WHOLE = tl.constexpr(functions._LN2_WHOLE)
BELOW = tl.constexpr(functions._BELOW)
ROOT_HALF = tl.constexpr(functions._ROOT_HALF)
ERFC_SCALE, ERFC_END = tl.constexpr(functions._ERFC_SCALE), tl.constexpr(functions._ERFC_END)
EXPM1 = tl.constexpr(functions._EXPM1)
LOG = tl.constexpr(functions._LOG)
ERFC = tl.constexpr(functions._ERFC)
ERF = tl.constexpr(functions._ERF)

# ---- the grid ---------------------------------------------------------------------------------------------


@triton.jit
def magnitude(x):
    """The bits of |x| (float32) as an integer: they are ordered as the magnitudes are, NaN above all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def power(largest):
    """2**(e-1) in float32 by the bits of the largest magnitude, at least 2**-126; infinity for infinity and NaN."""
    return (tl.maximum(largest, 0x00800000) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def grid_constant(largest, factor):
    """What ``gridded`` adds and subtracts, by the bits of the largest magnitude."""
    return power(largest).to(tl.float64) * factor


@triton.jit
def on_grid(x, constant):
    """``gridded``: float32 on the grid of sums."""
    return (x.to(tl.float64) + constant) - constant


@triton.jit
def exact_sum(x, factor, AXIS: tl.constexpr):
    """``grid.total`` of a block (float32) along an axis, kept; what is masked has to be 0."""
    constant = grid_constant(tl.max(magnitude(x), AXIS, keep_dims=True), factor)
    return tl.sum(on_grid(x, constant), AXIS, keep_dims=True).to(tl.float32)


@triton.jit
def divided(x, y):
    """A quotient of float32, rounded once (plain division is not)."""
    return tl.div_rn(x, y)


@triton.jit
def inverse_root(x):
    """1 / sqrt(x) of float32: two roundings."""
    root = tl.sqrt_rn(x)
    return tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)


# ---- functions --------------------------------------------------------------------------------------------


@triton.jit
def clamped(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))  # NaN stays


@triton.jit
def polynomial(x, C: tl.constexpr, N: tl.constexpr):
    found = x * C[N - 1]
    for i in tl.static_range(N - 2):
        found = (found + C[N - 2 - i]) * x
    return found + C[0]


@triton.jit
def powers_of_two(x):
    x = clamped(x, -700.0, 700.0)
    shifted = x * LOG2E + MAGIC
    k = shifted - MAGIC
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    return polynomial(r, EXPM1, 7) * r, shifted.to(tl.int64, bitcast=True) << 52


@triton.jit
def exp(x):
    less_one, bits = powers_of_two(x)
    found = ((less_one + 1.0).to(tl.int64, bitcast=True) + bits).to(tl.float64, bitcast=True)
    return tl.where(x != x, x, found)


@triton.jit
def expm1(x):
    found, bits = powers_of_two(x)
    scale = (bits + 0x3FF0000000000000).to(tl.float64, bitcast=True)
    return tl.where(x != x, x, found * scale + (scale - 1.0))


@triton.jit
def log(x):
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits - BELOW) >> 52
    m = (bits - (exponent << 52)).to(tl.float64, bitcast=True)
    t = (m - 1.0) / (m + 1.0)
    found = polynomial(t * t, LOG, 5) * t + exponent.to(tl.float64) * LN2_WHOLE
    found = tl.where(x == 0.0, -INF, tl.where(x == INF, INF, found))
    # Made here: Triton takes a global NaN, which is unequal to itself, for one that was changed meanwhile.
    return tl.where(x >= 0.0, found, float("nan"))


@triton.jit
def log1p(x):
    series = x - (x * x) * 0.5
    return tl.where(tl.abs(x) < 9.5367431640625e-07, series, log(x + 1.0))  # 2**-20


@triton.jit
def log2(x):
    return log(x) * LOG2E


@triton.jit
def log10(x):
    return log(x) * 0.4342944819032518


@triton.jit
def tanh(x):
    grown = expm1(clamped(x * 2.0, -60.0, 60.0))
    return grown / (grown + 2.0)


@triton.jit
def sigmoid(x):
    return 1.0 / (exp(-x) + 1.0)


@triton.jit
def half_erfc(a):
    falling = exp(-(a * a))
    t = 1.0 / (tl.where(a > ERFC_END, ERFC_END, a) * ERFC_SCALE + 1.0)
    return (polynomial(t, ERFC, 12) * falling) * 0.5, falling


@triton.jit
def erf(x):
    a = tl.abs(x)
    near = polynomial(x * x, ERF, 7) * x
    half, _ = half_erfc(a)
    far = half * -2.0 + 1.0
    return tl.where(a < 0.75, near, tl.where(x < 0.0, -far, far))


@triton.jit
def erfc(x):
    half, _ = half_erfc(tl.abs(x))
    tail = half * 2.0
    return tl.where(x < 0.0, 2.0 - tail, tail)


@triton.jit
def normal_cdf(x):
    tail, falling = half_erfc(tl.abs(x) * ROOT_HALF)
    return tl.where(x < 0.0, tail, 1.0 - tail), falling


@triton.jit
def gelu(x):
    share, _ = normal_cdf(x)
    return share * x


@triton.jit
def gelu_backward(g, x):
    share, falling = normal_cdf(x)
    return (share + (falling * x) * 0.3989422804014327) * g


@triton.jit
def tanh_inside(x):
    return ((((x * x) * x) * 0.044715) + x) * 0.7978845608028654


@triton.jit
def gelu_tanh(x):
    return ((tanh(tanh_inside(x)) + 1.0) * 0.5) * x


@triton.jit
def gelu_tanh_backward(g, x):
    t = tanh(tanh_inside(x))
    slope = ((x * x) * 0.134145 + 1.0) * 0.7978845608028654
    inner = ((1.0 - t * t) * slope) * x
    return (((t + 1.0) + inner) * 0.5) * g


@triton.jit
def silu(x):
    return sigmoid(x) * x


@triton.jit
def silu_backward(g, x):
    s = sigmoid(x)
    return (((1.0 - s) * x + 1.0) * s) * g


@triton.jit
def log_sigmoid(x):
    return tl.where(x > 0.0, 0.0, x) - log1p(exp(-tl.abs(x)))


@triton.jit
def log_sigmoid_backward(g, x):
    return sigmoid(-x) * g


ONE = {
    functions.exp: exp, functions.expm1: expm1, functions.log: log, functions.log1p: log1p, functions.log2: log2,
    functions.log10: log10, functions.tanh: tanh, functions.sigmoid: sigmoid, functions.erf: erf, functions.erfc: erfc,
    functions.gelu: gelu, functions.gelu_tanh: gelu_tanh, functions.silu: silu, functions.log_sigmoid: log_sigmoid,
}  # fmt: skip
TWO = {
    functions.gelu_backward: gelu_backward, functions.gelu_tanh_backward: gelu_tanh_backward,
    functions.silu_backward: silu_backward, functions.log_sigmoid_backward: log_sigmoid_backward,
}  # fmt: skip
