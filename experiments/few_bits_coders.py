"""Ways to store a state in a bit or two a number, in the loop, for ``few_bits.py``: what training goes on from, and the integers kept.

Each keeps, of momenta, what the last one does not predict; of weights, what momenta at both ends do not predict; of second
moments, moves in the order of logarithms. They differ in how coarse a step is, and in what becomes of the part that is rounded off:

- *nearest*: it is dropped. The next gradients see it.
- *drawn*: rounded up or down at random, right in the mean (QSGD, Alistarh et al. 2017; TernGrad, Wen et al. 2017).
- *mixed*: momenta drawn, weights to the nearest.
- *carried*: added to the next difference (error feedback, Seide et al. 2014; Karimireddy et al. 2019). What is carried is as large
  as the state and part of it, so a replay from a stored state does not know it: a ceiling of quality, not a codec.
- *sparse*: of what is carried and new, the few largest (Deep Gradient Compression, Lin et al. 2018); the same caution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proof_of_learning.proof.codecs import packed
from proof_of_learning.state.names import role, second_of
from proof_of_learning.state.state import State

OCTAVE = 1 << 23  # in the order of bit patterns
LARGEST_BITS = 0x7F7FFFFF  # of what is finite
EPSILON = 1e-20


@dataclass
class Coder:
    """momentum, weights: steps over the root mean square of what is rounded. rounding: *nearest*, *drawn*, *carried* or *sparse*.

    share: of numbers that *sparse* keeps. octaves: a second moment's step. predict: whether momenta are predicted, and weights
        from momenta.
    """

    momentum: float
    weights: float
    rounding: str
    share: float = 0.01
    octaves: float = 0.25
    predict: bool = True
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))
    left: dict[str, Tensor] = field(default_factory=dict)  # what was rounded off, by name
    pairs: dict[str, str] = field(default_factory=dict)

    def encode(self, state: State, base: State) -> tuple[State, dict[str, Tensor]]:
        """What training goes on from, and the integers of the tensors that are rounded, by name."""
        tensors, kept = dict(state.tensors), dict[str, Tensor]()
        for name in sorted(name for name in tensors if role(name) == "second" and known(name, state, base)):
            tensors[name], kept[name] = self.second(name, state.tensors[name], base.tensors[name])
        for name in sorted(name for name in tensors if role(name) == "momentum" and known(name, state, base)):
            scale = root(tensors.get(second_of(name)))
            tensors[name], kept[name] = self.moment(name, state.tensors[name], base.tensors[name], scale)
        pairs = self.owners(state, base) if self.predict else {}
        for name in sorted(name for name in tensors if role(name) == "weights" and known(name, state, base)):
            by = pairs.get(name)
            along = [] if by is None else [s / root(v) for s, v in self.sides(by, tensors, base)]
            tensors[name], kept[name] = self.weight(name, state.tensors[name], base.tensors[name], along)
        return State(state.tree, tensors), kept

    def owners(self, state: State, base: State) -> dict[str, str]:
        if not self.pairs:
            self.pairs = owners(state, base)
        return self.pairs

    def sides(self, by: str, tensors: Mapping[str, Tensor], base: State) -> list[tuple[Tensor, Tensor | None]]:
        second = second_of(by)
        return [(tensors[by], tensors.get(second)), (base.tensors[by], base.tensors.get(second))]

    def second(self, name: str, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
        before, step = packed.map_bits(then).long(), int(self.octaves * OCTAVE)
        # They move by less than a step, so the nearest would be to stand still: drawn, where nothing is carried.
        how = (
            "drawn"
            if self.rounding in ("nearest", "mixed")
            else "carried"
            if self.rounding == "sparse"
            else self.rounding
        )
        moved = (packed.map_bits(now).long() - before).float()
        _, items = self.rounded(name, moved, float(step), how)
        bits = (before + items.long() * step).clamp(1, LARGEST_BITS).int()
        return packed.unmap_bits(bits, torch.float32, list(now.shape)), items

    def moment(self, name: str, now: Tensor, then: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        here, before = now / scale, then / scale
        expected = fitted(here, [before] if self.predict else [])
        value, items = self.rounded(
            name,
            here - expected,
            self.momentum * rms(here - expected),
            "drawn" if self.rounding == "mixed" else self.rounding,
        )
        return (expected + value) * scale, items

    def weight(self, name: str, now: Tensor, then: Tensor, along: list[Tensor]) -> tuple[Tensor, Tensor]:
        move = now - then
        expected = fitted(move, along)
        value, items = self.rounded(name, move - expected, self.weights * rms(move), self.rounding)
        return then + expected + value, items

    def rounded(self, name: str, x: Tensor, step: float, how: str) -> tuple[Tensor, Tensor]:
        """What ``x`` becomes, and the integers that say so."""
        if how in ("carried", "sparse"):
            x = x + self.left.get(name, 0.0)
        if how == "sparse":
            size = x.abs()
            least = size.reshape(-1).kthvalue(max(1, round(size.numel() * (1 - self.share)))).values
            chosen = size > least
            step = float(size[chosen].mean()) if chosen.any() else 0.0
            items = torch.where(chosen, x.sign(), 0.0)
        elif how == "drawn":
            items = torch.floor(x / step + torch.rand(x.shape, generator=self.generator))
        else:
            items = torch.round(x / step)
        value = items * step
        if how in ("carried", "sparse"):
            self.left[name] = x - value
        return value, items


def known(name: str, state: State, base: State) -> bool:
    """Whether a tensor is rounded: float32, with dimensions, and like that of the checkpoint before."""
    tensor, before = state.tensors[name], base.tensors.get(name)
    return before is not None and tensor.dtype == before.dtype == torch.float32 and tensor.shape == before.shape != ()


def root(second: Tensor | None) -> Tensor | float:
    return 1.0 if second is None else second.sqrt() + EPSILON


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) + EPSILON


def fitted(x: Tensor, along: list[Tensor]) -> Tensor:
    """What is nearest to ``x`` of all combinations of ``along``."""
    if not along:
        return torch.zeros_like(x)
    columns = torch.stack([a.reshape(-1) for a in along], 1).double()
    gram = columns.T @ columns
    gram += torch.eye(len(along), dtype=torch.float64) * (1e-9 * gram.diagonal().mean() + 1e-30)
    return (columns @ torch.linalg.solve(gram, columns.T @ x.reshape(-1).double())).float().reshape(x.shape)


def owners(state: State, base: State) -> dict[str, str]:
    """By weight: the momentum that belongs to it."""
    momenta = [name for name in state.tensors if role(name) == "momentum" and known(name, state, base)]
    found = {}
    for name, tensor in state.tensors.items():
        if role(name) == "weights" and known(name, state, base):
            move = (tensor - base.tensors[name]).reshape(-1)
            alike = {
                by: abs(likeness(move, state.tensors[by], state.tensors.get(second_of(by))))
                for by in momenta
                if state.tensors[by].shape == tensor.shape
            }
            if alike:
                found[name] = max(alike, key=alike.__getitem__)
    return found


def likeness(move: Tensor, momentum: Tensor, second: Tensor | None) -> float:
    along = (momentum / root(second)).reshape(-1)
    return float(move @ along / (move.norm() * along.norm() + EPSILON))


def entropy(items: Tensor) -> float:
    """Bits that an ideal code of the items, each alone, takes (its table left out)."""
    counts = torch.unique(items, return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def entropy_in_context(items: Tensor, context: Tensor, buckets: int = 8) -> float:
    """The same, with a table of 48 bits for each of ``buckets`` equal shares of the numbers by a size that the reader knows."""
    octave = (context.reshape(-1).abs() + 1e-30).log2()
    edges = torch.quantile(octave[:: max(1, octave.numel() // 4096)], torch.linspace(0, 1, buckets + 1)[1:-1])
    place = torch.bucketize(octave, edges)
    flat = items.reshape(-1)
    return sum(entropy(flat[place == b]) + 16.0 * 3 for b in range(buckets) if (place == b).any())


def bits(items: Mapping[str, Tensor], after: State, base: State, pairs: Mapping[str, str]) -> tuple[float, float]:
    """Bits of an ideal code of all items, each alone, and in the context of a size that the reader knows."""
    alone = together = 0.0
    for name, found in items.items():
        known_size = after.tensors.get(second_of(name)) if role(name) == "momentum" else None
        if known_size is None:
            known_size = after.tensors[pairs[name]] if name in pairs else base.tensors[name]
        least = entropy(found)
        alone, together = alone + least, together + min(least, entropy_in_context(found, known_size))
    return alone, together


def parameters(state: State) -> int:
    return sum(tensor.numel() for name, tensor in state.tensors.items() if role(name) == "weights")
