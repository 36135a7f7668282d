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

import torch
from torch import Tensor

from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import same_kind
from proof_of_learning.proof.codecs.rounding import Given, RoundingCodec, Rule, power, role, unsigned
from proof_of_learning.training.state import State

SAMPLE = 1 << 16  # evenly spaced elements from which a root mean square is taken
# Exponents of the step over the power of two above the root mean square.
WEIGHTS, MOMENTUM, SECOND = 0, 0, 0
SECOND_LARGEST = 20  # an eighth of an octave
LARGEST = 2**22  # multiples: half a step on each side is still exact


class QuantisedCodec(RoundingCodec):
    name = "quantised"

    def __init__(self) -> None:
        self.rules: dict[str, Rule] = {rule.how: rule for rule in (_Move(), _Value(), _Logarithm())}

    def rule(self, name: str, tensor: Tensor, base: State) -> Rule | None:
        known = same_kind(tensor, base, name)
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
    exponent: int

    def measure(self, x: Tensor, given: Given) -> Tensor:
        raise NotImplementedError

    def rebuild(self, measured: Tensor, given: Given) -> Tensor:
        raise NotImplementedError

    def scale(self, x: Tensor, given: Given) -> int:
        return min(max(magnitude(self.measure(x, given)) + self.exponent, -126), 126)

    def items(self, x: Tensor, scale: int, given: Given) -> Tensor | None:
        multiples = (self.measure(x, given) * power(-scale)).round_()
        return multiples.to(torch.int32) if not multiples.numel() or bool(multiples.abs().max() <= LARGEST) else None

    def value(self, items: Tensor, scale: int, given: Given) -> Tensor:
        return self.rebuild(items.to(torch.float32) * power(scale), given)

    def inside(self, x: Tensor, items: Tensor, scale: int, given: Given) -> Tensor:
        middle, measured = items.to(torch.float32), self.measure(x, given) * power(-scale)
        within = torch.minimum(torch.maximum(measured, middle - 0.5), middle + 0.5)
        return torch.where(within == measured, x, self.rebuild(within * power(scale), given))


class _Move(_Linear):
    how, exponent = "move", WEIGHTS

    def measure(self, x: Tensor, given: Given) -> Tensor:
        return x - given.base

    def rebuild(self, measured: Tensor, given: Given) -> Tensor:
        return given.base + measured


class _Value(_Linear):
    how, exponent = "value", MOMENTUM

    def measure(self, x: Tensor, given: Given) -> Tensor:
        return x if given.second is None else x * power(-_half_exponent(given.second))

    def rebuild(self, measured: Tensor, given: Given) -> Tensor:
        return measured if given.second is None else measured * power(_half_exponent(given.second))


class _Logarithm:
    how = "logarithm"

    def scale(self, x: Tensor, given: Given) -> int:
        moved = packed.map_bits(x) - packed.map_bits(given.base)
        return min(max(magnitude(moved) + SECOND, 0), SECOND_LARGEST)

    def items(self, x: Tensor, scale: int, given: Given) -> Tensor | None:
        if not 0 <= scale <= SECOND_LARGEST:
            return None
        moved = packed.map_bits(x) - packed.map_bits(given.base)
        return (moved + ((1 << scale) >> 1)) >> scale

    def value(self, items: Tensor, scale: int, given: Given) -> Tensor:
        before = packed.map_bits(given.base)
        after = (before + (items << min(max(scale, 0), SECOND_LARGEST))).clamp(1, 0x7F7FFFFF)  # positive and finite
        return packed.unmap_bits(torch.where(items == 0, before, after), torch.float32, [len(before)])

    def inside(self, x: Tensor, items: Tensor, scale: int, given: Given) -> Tensor:
        before, here, half = packed.map_bits(given.base), packed.map_bits(x), (1 << scale) >> 1
        middle = before + (items << scale)
        top = middle + max(half - 1, 0)
        within = torch.minimum(torch.maximum(here, middle - half), top).clamp(0, 0x7F7FFFFF)
        return packed.unmap_bits(within, torch.float32, [len(before)])


def _half_exponent(second: Tensor) -> Tensor:
    """The exponent of the power of two below the square root of each element."""
    return (((second.view(torch.int32) & 0x7FFFFFFF) >> 23) - 127) >> 1


def magnitude(values: Tensor) -> int:
    """The smallest e with a root mean square of at most 2^e, from integers alone."""
    flat = values.reshape(-1)
    low, high = (float(v) for v in torch.aminmax(flat)) if flat.numel() else (0.0, 0.0)
    largest = max(-low, high)
    if largest == 0.0:
        return 0
    top = torch.frexp(torch.tensor(largest, dtype=torch.float64))[1].item()  # largest < 2^top
    sample = flat[:: -(-len(flat) // SAMPLE)].double()
    counts = (sample * 2.0 ** (15 - top)).round().to(torch.int64)
    total, count, e = max(int((counts * counts).sum()), 1), len(sample), 16
    while e > -16 and count * 4 ** (e - 1 + 16) >= total * 4**16:
        e -= 1
    return e + int(top) - 15
