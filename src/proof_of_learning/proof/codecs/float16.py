"""The ``float16`` codec, in the loop: two bytes a value (Jia et al., IEEE S&P 2021, store checkpoints so), and less once compressed.

Weights, momenta and second moments of type float32 are rounded to the nearest half-precision number, after a power of two that
brings the largest of a tensor just below 2^15; a second moment that is not zero does not become zero. Stored is the
difference of bit patterns to the checkpoint before. All else is kept to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.prediction import Foretold
from proof_of_learning.proof.codecs.rounding import Given, RoundingCodec, Rule, Scales, extremes, unsigned
from proof_of_learning.state.names import role
from proof_of_learning.state.state import State

TOP = 15  # the largest value lies in [2^14, 2^15)


class Float16Codec(RoundingCodec):
    name = "float16"

    def __init__(self) -> None:
        self.rules: dict[str, Rule] = {rule.how: rule for rule in (_Half(positive=False), _Half(positive=True))}

    def rule(self, name: str, tensors: Mapping[str, Tensor], base: State, foretold: Foretold | None) -> Rule | None:
        tensor = tensors[name]
        match role(name):
            case "weights" | "momentum":
                return self.rules["half"]
            case "second" if unsigned(tensor):
                return self.rules["positive-half"]
        return None


class _Half:
    parts = 1

    def __init__(self, positive: bool) -> None:
        self.how = "positive-half" if positive else "half"
        self._positive = positive

    def scales(self, x: Tensor, sizes: Sequence[int], given: Given) -> Scales:
        found = (max(-low, high) for low, high in zip(*(ends.tolist() for ends in extremes(x, sizes)), strict=True))
        return Scales([0 if x == 0.0 else min(max(math.frexp(x)[1] - TOP, -126), 126) for x in found], sizes)

    def items(self, x: Tensor, scales: Scales, given: Given) -> Tensor | None:
        return self._bits(x, scales) - self._before(len(x), scales, given)

    recognised = items

    def value(self, items: Tensor, scales: Scales, given: Given) -> Tensor:
        bits = (items + self._before(len(items), scales, given)).to(torch.int16)
        return scales.times(packed.unmap_bits(bits, torch.float16, [len(items)]).to(torch.float32))

    def inside(self, x: Tensor, items: Tensor, scales: Scales, given: Given) -> Tensor:
        bits = items + self._before(len(items), scales, given)

        def half(pattern: Tensor) -> Tensor:
            return packed.unmap_bits(pattern.to(torch.int16), torch.float16, [len(items)]).to(torch.float32)

        low, middle, high = half(bits - 1), half(bits), half(bits + 1)
        if self._positive:
            low = torch.where(bits == 1, -middle, low)  # whatever is small rounds up to the smallest
        scaled = scales.times(x, -1)
        within = torch.minimum(torch.maximum(scaled, (low + middle) / 2), (middle + high) / 2)
        return torch.where(within == scaled, x, scales.times(within))

    def _bits(self, x: Tensor, scales: Scales) -> Tensor:
        half = scales.times(x, -1).to(torch.float16)
        bits = packed.map_bits(half).to(torch.int32)
        return torch.where((x > 0) & (bits == 0), torch.ones_like(bits), bits) if self._positive else bits

    def _before(self, length: int, scales: Scales, given: Given) -> Tensor:
        if given.before is None or len(given.before) != length:
            return torch.zeros(length, dtype=torch.int32)
        return self._bits(given.before, scales)
