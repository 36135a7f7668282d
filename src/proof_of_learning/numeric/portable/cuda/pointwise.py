"""Entry by entry: functions, operations of several roundings on a tensor or on lists, what is behind a product, and random bits."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from proof_of_learning.numeric.portable.cuda.device import magnitude, power

BLOCK = 1024  # numbers of a program


@triton.jit(do_not_specialize=["n"])
def function_kernel(x, y, out, n, FUNCTION: tl.constexpr, TWO: tl.constexpr, SIZE: tl.constexpr):
    """out = ``functions.apply`` of one or two float32."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    v = tl.load(x + i, mask=i < n, other=1.0).to(tl.float64)
    if TWO:
        found = FUNCTION(v, tl.load(y + i, mask=i < n, other=1.0).to(tl.float64))
    else:
        found = FUNCTION(v)
    tl.store(out + i, found.to(tl.float32), mask=i < n)


@triton.jit
def computed(x, a, b, number, WHICH: tl.constexpr):
    """Operations of float32, each rounded by itself; ``number`` of the same shape."""
    if WHICH == 0:
        return x + a * number
    elif WHICH == 1:
        return x + (a * b) * number
    elif WHICH == 2:
        return x + tl.div_rn(a, b) * number
    elif WHICH == 3:
        return x + (a - x) * number
    elif WHICH == 4:
        return x * number
    elif WHICH == 5:
        return tl.div_rn(x, number)
    elif WHICH == 6:
        return tl.sqrt_rn(x)
    elif WHICH == 7:
        return x + number
    elif WHICH == 8:
        return x + a
    elif WHICH == 9:
        return x * a
    else:
        return tl.div_rn(x, a)


@triton.jit(do_not_specialize=["n", "number"])
def one_kernel(x, a, b, out, n, number, WHICH: tl.constexpr, OTHERS: tl.constexpr, SIZE: tl.constexpr):
    """``computed`` of one tensor, with 0, 1 or 2 others."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    v = tl.load(x + i, mask=i < n, other=1.0)
    av, bv = v, v
    if OTHERS > 0:
        av = tl.load(a + i, mask=i < n, other=1.0)
    if OTHERS > 1:
        bv = tl.load(b + i, mask=i < n, other=1.0)
    numbers = tl.zeros([SIZE], tl.float32) + number
    tl.store(out + i, computed(v, av, bv, numbers, WHICH), mask=i < n)


@triton.jit
def _at(places, which):
    """The tensor whose address stands in a list."""
    return tl.load(places + which).to(tl.pointer_type(tl.float32))


@triton.jit(do_not_specialize=["T", "number"])
def lists_kernel(
    blocks, places, sizes, numbers, T, number, WHICH: tl.constexpr, OTHERS: tl.constexpr, EACH: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """``computed`` of T tensors at once.

    blocks [programs, 2]: which tensor, and from where. places [2 + OTHERS, T]: addresses of results, first ones, others.
    sizes [T]. EACH: 0 ``number`` for all, 1 numbers[tensor], 2 numbers[0].
    """
    which = tl.load(blocks + 2 * tl.program_id(0))
    i = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, SIZE)
    mask = i < tl.load(sizes + which)
    v = tl.load(_at(places + T, which) + i, mask=mask, other=1.0)
    av, bv = v, v
    if OTHERS > 0:
        av = tl.load(_at(places + 2 * T, which) + i, mask=mask, other=1.0)
    if OTHERS > 1:
        bv = tl.load(_at(places + 3 * T, which) + i, mask=mask, other=1.0)
    each = tl.zeros([SIZE], tl.float32)
    if EACH == 0:
        each += number
    elif EACH == 1:
        each += tl.load(numbers + which)
    else:
        each += tl.load(numbers)
    tl.store(_at(places, which) + i, computed(v, av, bv, each, WHICH), mask=mask)


@triton.jit
def norm_largest_kernel(blocks, places, sizes, largest, SIZE: tl.constexpr):
    """largest[tensor] (0 before) = the bits of its largest magnitude."""
    which = tl.load(blocks + 2 * tl.program_id(0))
    i = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, SIZE)
    v = tl.load(_at(places, which) + i, mask=i < tl.load(sizes + which), other=0.0)
    tl.atomic_max(largest + which, tl.max(magnitude(v), 0))


@triton.jit
def norm_sum_kernel(blocks, places, sizes, largest, factors, sums, SIZE: tl.constexpr):
    """sums[tensor] (0 before) = the sum of its squares on their grid: exact, so that programs may come in any order."""
    which = tl.load(blocks + 2 * tl.program_id(0))
    i = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, SIZE)
    mask = i < tl.load(sizes + which)
    v = tl.load(_at(places, which) + i, mask=mask, other=0.0).to(tl.float64)
    highest = power(tl.load(largest + which)).to(tl.float64)
    constant = (highest * highest) * tl.load(factors + which).to(tl.float64)
    tl.atomic_add(sums + which, tl.sum((v * v + constant) - constant, 0))


@triton.jit(do_not_specialize=["T"])
def norm_finish_kernel(sums, out, T, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    found = tl.sqrt_rn(tl.load(sums + i, mask=i < T, other=0.0).to(tl.float32))
    tl.store(out + i, found, mask=i < T)


@triton.jit(do_not_specialize=["n", "P", "F"])
def finish_product_kernel(y, bias, out, n, P, F, SIZE: tl.constexpr):
    """out = y (float64, [.., F, P]) rounded to float32, plus the bias [F]."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    added = tl.load(bias + (i // P) % F, mask=i < n, other=0.0)
    tl.store(out + i, tl.load(y + i, mask=i < n, other=0.0).to(tl.float32) + added, mask=i < n)


# ---- random bits ------------------------------------------------------------------------------------------


@triton.jit
def _philox(block, key):
    """The four 64-bit words of blocks of Philox4x64-10 keyed by (key, 0)."""
    c0, c1, c2, c3 = block, block * 0, block * 0, block * 0
    k0, k1 = key, key * 0
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0 * 0 + 0xD2E7470EE14C6C93, c0), c0 * 0xD2E7470EE14C6C93
        high1, low1 = tl.umulhi(c2 * 0 + 0xCA5A826395121157, c2), c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B97F4A7C15
        k1 += 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit(do_not_specialize=["n", "key_low", "key_high", "limit", "scale"])
def drawn_kernel(x, out, kept, n, key_low, key_high, limit, scale, DROPOUT: tl.constexpr, SIZE: tl.constexpr):
    """Of each of n numbers, whether its 32-bit word is below ``limit`` + 2**31, as ``drawing._hits`` has it.

    out = x times ``scale`` where it is, and times 0 where not, and ``kept`` (bytes) says which; without DROPOUT out = 1 or 0.
    ``key_low`` is the key's lower half as a signed number; SIZE: blocks of eight words.
    """
    key = (key_high.to(tl.int64) << 32) | (key_low.to(tl.int64) & 0xFFFFFFFF)
    first = tl.program_id(0) * SIZE
    block = (first + tl.arange(0, SIZE) + 1).to(tl.uint64)
    w0, w1, w2, w3 = _philox(block, block * 0 + key.to(tl.uint64))
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    halves = tl.interleave(words & 0xFFFFFFFF, words >> 32).to(tl.int64)
    hit = halves - 0x80000000 < limit.to(tl.int64)
    i = first * 8 + tl.arange(0, 8 * SIZE)
    if DROPOUT:
        v = tl.load(x + i, mask=i < n, other=0.0)
        tl.store(out + i, v * tl.where(hit, scale, 0.0), mask=i < n)
        tl.store(kept + i, hit.to(tl.int8), mask=i < n)
    else:
        tl.store(out + i, tl.where(hit, 1.0, 0.0), mask=i < n)


@triton.jit(do_not_specialize=["n", "scale"])
def kept_kernel(g, kept, out, n, scale, SIZE: tl.constexpr):
    """out = g times ``scale`` where ``kept`` (bytes) says so, and times 0 where not: the gradient of dropout."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    scales = tl.where(tl.load(kept + i, mask=i < n, other=0) != 0, scale, 0.0)
    tl.store(out + i, tl.load(g + i, mask=i < n, other=0.0) * scales, mask=i < n)
