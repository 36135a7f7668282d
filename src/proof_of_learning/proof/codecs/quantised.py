"""The ``quantised`` codec, in the loop: a fraction of a byte for a weight, a momentum, a second moment.

- *Weights*: the difference to the checkpoint before, in multiples of a step.
- *Momenta*: the values themselves, in multiples of a step. Beside second moments (Adam) the step of each element is in proportion
  to the power of two below their square root, so that a small momentum with a small denominator survives.
- *Second moments*: the difference to the checkpoint before in the order of bit patterns, which is about that of logarithms,
  in multiples of a step: they stay positive and keep their relative precision.

A step is the power of two just above the root mean square of what is rounded, times 2 to the fixed exponents below. Everything
else - integers, buffers, scalars, tensors that the base lacks, values that are not finite - is kept to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import first_places
from proof_of_learning.proof.codecs.prediction import Foretold
from proof_of_learning.proof.codecs.rounding import (
    Given,
    RoundingCodec,
    Rule,
    Scales,
    extremes,
    power,
    unsigned,
)
from proof_of_learning.state.names import role
from proof_of_learning.state.state import State

SAMPLE = 1 << 16  # evenly spaced elements from which a root mean square is taken
# Exponents of the step over the power of two above the root mean square.
WEIGHTS, MOMENTUM, SECOND = 0, 0, 0
SECOND_LARGEST = 20  # an eighth of an octave
LARGEST = 2**22  # multiples: half a step on each side is still exact


class QuantisedCodec(RoundingCodec):
    name = "quantised"

    def __init__(self) -> None:
        self.rules: dict[str, Rule] = {rule.how: rule for rule in (_Move(), _Value(), _Logarithm())}

    def rule(self, name: str, tensors: Mapping[str, Tensor], base: State, foretold: Foretold | None) -> Rule | None:
        tensor, known = tensors[name], name in base.tensors
        match role(name):
            case "weights" if known:
                return self.rules["move"]
            case "momentum":
                return self.rules["value"]
            case "second" if known and unsigned(tensor) and unsigned(base.tensors[name]):
                return self.rules["logarithm"]
        return None


class _Linear:
    """Multiples of a step of what :meth:`measure` gives."""

    how: str
    parts = 1
    exponent: int

    def measure(self, x: Tensor, given: Given) -> Tensor:
        raise NotImplementedError

    def rebuild(self, measured: Tensor, given: Given) -> Tensor:
        raise NotImplementedError

    def scales(self, x: Tensor, sizes: Sequence[int], given: Given) -> Scales:
        found = magnitudes(self.measure(x, given), sizes)
        return Scales([min(max(exponent + self.exponent, -126), 126) for exponent in found], sizes)

    def items(self, x: Tensor, scales: Scales, given: Given) -> Tensor | None:
        multiples = scales.times(self.measure(x, given), -1).round_()
        return (
            multiples.to(torch.int32) if all(abs(float(end)) <= LARGEST for end in torch.aminmax(multiples)) else None
        )

    recognised = items

    def value(self, items: Tensor, scales: Scales, given: Given) -> Tensor:
        return self.rebuild(scales.times(items.to(torch.float32)), given)

    def inside(self, x: Tensor, items: Tensor, scales: Scales, given: Given) -> Tensor:
        middle, measured = items.to(torch.float32), scales.times(self.measure(x, given), -1)
        within = torch.minimum(torch.maximum(measured, middle - 0.5), middle + 0.5)
        return torch.where(within == measured, x, self.rebuild(scales.times(within), given))


class _Move(_Linear):
    how, exponent = "move", WEIGHTS

    def measure(self, x: Tensor, given: Given) -> Tensor:
        return x - given.base

    def rebuild(self, measured: Tensor, given: Given) -> Tensor:
        return given.base + measured


class _Value(_Linear):
    how, exponent = "value", MOMENTUM

    def measure(self, x: Tensor, given: Given) -> Tensor:
        return x if given.second is None else x * power(-half_exponent(given.second))

    def rebuild(self, measured: Tensor, given: Given) -> Tensor:
        return measured if given.second is None else measured * power(half_exponent(given.second))


class _Logarithm:
    how, parts = "logarithm", 1

    def scales(self, x: Tensor, sizes: Sequence[int], given: Given) -> Scales:
        moved = packed.map_bits(x) - packed.map_bits(given.base)
        return Scales([min(max(exponent + SECOND, 0), SECOND_LARGEST) for exponent in magnitudes(moved, sizes)], sizes)

    def items(self, x: Tensor, scales: Scales, given: Given) -> Tensor | None:
        if not all(0 <= exponent <= SECOND_LARGEST for exponent in scales.exponents):
            return None
        shift = scales.each(0, SECOND_LARGEST)
        moved = packed.map_bits(x) - packed.map_bits(given.base)
        return (moved + ((1 << shift) >> 1)) >> shift

    recognised = items

    def value(self, items: Tensor, scales: Scales, given: Given) -> Tensor:
        before = packed.map_bits(given.base)
        after = (before + (items << scales.each(0, SECOND_LARGEST))).clamp(1, 0x7F7FFFFF)  # positive and finite
        return packed.unmap_bits(torch.where(items == 0, before, after), torch.float32, [len(before)])

    def inside(self, x: Tensor, items: Tensor, scales: Scales, given: Given) -> Tensor:
        shift = scales.each(0, SECOND_LARGEST)
        before, here, half = packed.map_bits(given.base), packed.map_bits(x), (1 << shift) >> 1
        middle = before + (items << shift)
        top = middle + (half - 1).clamp(min=0)
        within = torch.minimum(torch.maximum(here, middle - half), top).clamp(0, 0x7F7FFFFF)
        return packed.unmap_bits(within, torch.float32, [len(before)])


def half_exponent(second: Tensor) -> Tensor:
    """The exponent of the power of two below the square root of each element."""
    return (((second.view(torch.int32) & 0x7FFFFFFF) >> 23) - 127) >> 1


def magnitudes(values: Tensor, sizes: Sequence[int], parts: int = 1, nothing: int = 0) -> list[int]:
    """For each tensor that ``values`` is made of, the smallest e with a root mean square of at most 2^(e / parts).

    From integers alone. ``nothing``: for one that is all zeros or not finite.
    """
    lows, highs = (ends.astype(np.float64) for ends in extremes(values, sizes))
    largest = np.maximum(-lows, highs)
    sound = (largest > 0) & np.isfinite(largest)  # what is not finite is kept to the bit in the end
    tops = np.frexp(np.where(sound, largest, 1.0))[1]  # largest < 2^top
    flat, counts = values.numpy(), list(sizes)
    if max(counts) > SAMPLE:
        parts_of = [part[:: -(-len(part) // SAMPLE)] for part in np.split(flat, first_places(sizes)[1:])]
        flat, counts = np.concatenate(parts_of), [len(part) for part in parts_of]
    factors = np.ldexp(1.0, 15 - tops)
    units = np.multiply(flat, factors[0] if len(counts) == 1 else np.repeat(factors, counts), dtype=np.float64)
    np.square(np.rint(units, out=units), out=units)
    totals = np.add.reduceat(units, first_places(counts))  # of integers, and small enough to be exact
    return [
        _exponent(max(int(total), 1), count, parts) + (top - 15) * parts if fits else nothing
        for total, count, top, fits in zip(totals.tolist(), counts, tops.tolist(), sound.tolist(), strict=True)
    ]


def _exponent(total: int, count: int, parts: int) -> int:
    """The smallest e from -16 to 16 octaves with total <= count * 4^(e / parts); parts: 1 or 4."""
    e = min(max((total.bit_length() - count.bit_length()) // 2 + 1, -16), 16)  # at least that
    while e > -16 and count * 4 ** (e - 1 + 16) >= total * 4**16:
        e -= 1
    e *= parts
    for _ in range(parts - 1):  # of 4^(e / 4), which is 2^(e / 2), the square
        if count**2 * 2 ** (e - 1 + 128) >= total**2 * 2**128:
            e -= 1
    return e
