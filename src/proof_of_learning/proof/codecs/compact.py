"""The ``compact`` codec, in the loop: a bit or two a number, for checkpoints that lie close together.

What can be foretold is not stored. A *momentum* is a multiple of the last one and something new; *weights* move along the momenta at
both ends, and by something else; *second moments* hardly change. What is left is rounded up or down by a noise that makes it right in
the mean (as gradients are in QSGD, Alistarh et al., NeurIPS 2017), in multiples of a step of more than twice a root mean square:

- of momenta, that of what is new. Beside second moments (Adam) the step of each element is in proportion to the power of two below
  their square root;
- of weights, that of their movement;
- of second moments the step is half an octave.

The noise follows from a tensor's name and the step, so nothing is left for a prover to choose. Values end on a grid finer than
the step, so that whole states compress as well. All else is kept to the bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace as replace_entry
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.denormals import with_denormals
from proof_of_learning.proof.codecs import gaps, grid, likely, noise, packed, prediction
from proof_of_learning.proof.codecs.base import Encoded, joined
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.proof.codecs.prediction import Foretold
from proof_of_learning.proof.codecs.quantised import LARGEST, half_exponent, magnitudes
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.proof.codecs.rounding import (
    Given,
    RoundingCodec,
    Rule,
    Scales,
    Unpacked,
    power,
    unsigned,
)
from proof_of_learning.state.names import STATE, role, second_of
from proof_of_learning.state.state import State

PARTS = 4  # of an octave, in which steps are chosen
STEP = 5  # such parts above the root mean square: 2.4 to 2.8 times it
GRID = 2  # octaves below the step on whose multiples values end
SMALLEST = (GRID - 126) * PARTS  # of scales: the grid and its inverse are then powers of two that float32 has
OCTAVE = 22  # a second moment's step is 2 to this in the order of bit patterns: half an octave
FACTOR_BITS = 8  # few, so that a replay with noise finds the same factors
# What PyTorch's optimizers keep beside a momentum and divide none by.
BESIDE = frozenset({"step", "mu_product", "eta", "mu", "ax", "acc_delta"})
WHOLE = float(1 << 23)  # from here on every float32 is a whole number


class CompactCodec(RoundingCodec):
    name = "compact"

    def __init__(self) -> None:
        self.rules: dict[str, Rule] = {
            rule.how: rule for rule in (_Steps("moved", whole=True), _Steps("new", whole=False), _Octaves())
        }

    def encode(self, state: State, base: State | None) -> Encoded:
        """Without a base, to the bit."""
        return grid.encode(state) if base is None else super().encode(state, base)

    def decode(self, raw: bytearray, base: State | None, room: Room | None = None) -> State:
        return grid.decode(raw, room) if base is None else super().decode(raw, base, room)

    def rule(self, name: str, tensors: Mapping[str, Tensor], base: State, foretold: Foretold | None) -> Rule | None:
        tensor, new = tensors[name], name not in base.tensors
        match role(name):
            case "weights" if not new:
                return self.rules["moved"]
            case "momentum":
                return self.rules["new"]
            case "second" if unsigned(tensor) and (new or unsigned(base.tensors[name])):
                return self.rules["octaves"]
        return None

    def roundable(self, names: Collection[str]) -> Collection[str]:
        """All but momenta and second moments that lie beside what may divide them.

        RMSprop's variance is a difference to the square of its ``grad_avg``, and no rounding may make less than nothing of it. And a
        tensor of no known role may be what a momentum is divided by, as Adamax's ``exp_inf``: where that is small, a step of the
        others' size explodes.
        """
        entries = (name.rpartition("/") for name in names if STATE in name)
        kept = {before for before, _, key in entries if key == "grad_avg" or not _known(before, key)}
        return [name for name in names if role(name) == "weights" or name.rpartition("/")[0] not in kept]

    def foretell(
        self, names: Sequence[str], tensors: Mapping[str, Tensor], decoded: Mapping[str, Tensor], base: State
    ) -> dict[str, Foretold]:
        momenta = prediction.likened(names, tensors, base, FACTOR_BITS)
        return {**momenta, **prediction.foretell(names, tensors, decoded, base, FACTOR_BITS)}

    def told(self, name: str, entries: Mapping[str, Entry], base: State) -> Foretold | None:
        entry = entries[name]
        if not entry.by:
            return None
        fits = len(entry.factors) == 3 and all(abs(factor) <= 2**FACTOR_BITS for factor in entry.factors[:2])
        if fits:
            found = Foretold(entry.by, (entry.factors[0], entry.factors[1]), entry.factors[2])
            fits = prediction.SMALLEST_SCALE <= found.scale <= prediction.LARGEST_SCALE
            if entry.by == name:
                fits = fits and role(name) == "momentum" and found.factors[0] == 0 and _like(entry, name, base)
            else:
                fits = fits and role(name) == "weights" and _like(entry, name, base)
                fits = fits and prediction.foretells(entry, entries, base)
        if not fits:
            raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
        return found

    def given(self, name: str, base: State, decoded: Mapping[str, Tensor], foretold: Foretold | None) -> Given:
        plain = super().given(name, base, decoded, foretold)
        expected = plain.before
        if role(name) == "momentum" and plain.before is not None:
            expected = plain.before * (0.0 if foretold is None else foretold.values[1])
        elif foretold is not None:
            expected = prediction.moved(foretold, name, decoded, base)
        return replace(plain, expected=expected)

    def beside(
        self, names: Sequence[str], base: State, tensors: Mapping[str, Tensor], foretold: Mapping[str, Foretold]
    ) -> Given:
        given = super().beside(names, base, tensors, foretold)
        return replace(given, noise=noise.fractions(names, [tensors[name].numel() for name in names], base))

    def pack(
        self, state: State, entries: dict[str, Entry], items: Mapping[str, Tensor], base: State
    ) -> Iterator[bytes]:
        entries = {n: replace_entry(entry, items=packed.APART) if n in items else entry for n, entry in entries.items()}
        apart = {how: functools.partial(self._folded, how, items, entries, state.tensors, base) for how in self.rules}
        return packed.pack(state.tree, entries, lambda name: self.kept(name, state, entries, base), apart)

    def _folded(
        self,
        how: str,
        items: Mapping[str, Tensor],
        entries: Mapping[str, Entry],
        tensors: Mapping[str, Tensor],
        base: State,
    ) -> Iterator[gaps.Numbers]:
        """What stands for the items of one kind, chunk by chunk: in the order of how likely it is 0."""
        names = [name for name in sorted(items) if entries[name].how == how]
        if not names:
            return
        places, turned = self._beside(names, entries, tensors, base)
        flat = joined([items[name] for name in names]).numpy()
        for start in range(0, len(flat), packed.CHUNK):
            part = slice(start, start + packed.CHUNK)
            sorted_ = np.argsort(places[part], kind="stable")
            numbers = flat[part][sorted_].astype(np.int32)
            there = np.flatnonzero(numbers != 0)  # few: what follows leaves zeros as they are
            some = numbers[there]
            some = np.where(turned[part][sorted_[there]], -some, some)
            numbers[there] = np.abs((some << 1) - (some > 0))
            yield numbers

    def unpack(self, raw: bytearray, base: State | None, room: Room | None) -> Unpacked:
        return Unpacked(*packed.unpack(raw, base, room, self.rules))

    def opened(
        self, names: Sequence[str], unpacked: Unpacked, decoded: Mapping[str, Tensor], base: State
    ) -> dict[str, Tensor]:
        found = dict[str, Tensor]()
        for how in {unpacked.entries[name].how: None for name in names}:
            here, numbers = sorted(name for name in names if unpacked.entries[name].how == how), unpacked.apart[how]
            if sum(unpacked.entries[name].count for name in here) != len(numbers):
                raise FormatError(f"an object's header describes a tensor like {here[0][:80]!r} wrongly")
            places, turned = self._beside(here, unpacked.entries, decoded, base)
            for start in range(0, len(numbers), packed.CHUNK):
                part = slice(start, start + packed.CHUNK)
                there = np.flatnonzero(numbers[part] != 0)
                some, at = numbers[part][there], np.argsort(places[part], kind="stable")[there]
                numbers[part] = 0
                numbers[part][at] = (some + 1 >> 1) * np.where((some & 1 == 1) ^ turned[part][at], 1, -1)
            flat = torch.from_numpy(numbers)
            found.update(zip(here, torch.split(flat, [unpacked.entries[name].count for name in here]), strict=True))
        return found

    @with_denormals
    def _beside(
        self, names: Sequence[str], entries: Mapping[str, Entry], tensors: Mapping[str, Tensor], base: State
    ) -> tuple[likely.Places, npt.NDArray[np.bool_]]:
        """What a reader knows of the items of these tensors, end to end: their order, and which of them change their sign."""
        tables = []
        for name, salt in zip(names, noise.salts(names, base), strict=True):
            entry = entries[name]
            rows = entry.shape[0] if entry.shape else 1
            columns = entry.count // max(1, rows)
            tables.append(likely.Table(rows, columns, salt, self._size_beside(name, entry, tensors, base)))
        return likely.places(tables)

    def _size_beside(
        self, name: str, entry: Entry, tensors: Mapping[str, Tensor], base: State
    ) -> Callable[[slice], Tensor] | None:
        """By whose rows and columns items are large or small: for a momentum the last one, for weights the one that moves them."""
        by = name if entry.how == "new" else entry.by
        beside, second = (base.tensors if by == name else tensors).get(by), tensors.get(second_of(by))
        if beside is None or list(beside.shape) != entry.shape or beside.dtype != torch.float32:
            return None
        flat = beside.reshape(-1)
        if second is None or (second.dtype, second.shape) != (beside.dtype, beside.shape):
            return flat.__getitem__
        below = second.reshape(-1)
        return lambda part: flat[part] * power(-half_exponent(below[part]))

    def tries(self, rule: Rule, foretold: Foretold | None) -> Iterator[tuple[Rule, Foretold | None]]:
        yield rule, foretold
        if foretold is None:
            return
        (now, then), moves = foretold.factors, (0, -1, 1)
        for by_now, by_then in itertools.product(moves if now else (0,), moves):
            yield rule, replace(foretold, factors=(now + by_now, then + by_then))


class _Steps:
    """What is not expected, in multiples of a step.

    whole: the step follows from the whole movement, so that where it is foretold well hardly anything is kept; else from what is not
        expected.
    """

    parts = PARTS

    def __init__(self, how: str, *, whole: bool) -> None:
        self.how, self._whole = how, whole

    def scales(self, x: Tensor, sizes: Sequence[int], given: Given) -> Scales:
        start = given.before if self._whole else given.expected
        found = magnitudes(_apart(x, start, given), sizes, PARTS, SMALLEST)
        return Scales([min(max(part + STEP, SMALLEST), 126 * PARTS) for part in found], sizes, PARTS)

    def items(self, x: Tensor, scales: Scales, given: Given) -> Tensor | None:
        return _items(self._rounded(scales.times(_apart(x, given.expected, given), -1), given))

    def recognised(self, value: Tensor, scales: Scales, given: Given) -> Tensor | None:
        return _items(scales.times(_apart(value, given.expected, given), -1).round_())

    def value(self, items: Tensor, scales: Scales, given: Given) -> Tensor:
        moved = scales.times(items.to(torch.float32))
        if given.expected is not None:
            moved += _scaled(given.expected, given, -1)
        finer = Scales([exponent // PARTS - GRID for exponent in scales.exponents], scales.sizes)
        steps = finer.times(moved, -1)
        on_grid = finer.times(steps.round().add_(0.0))  # no zero has a sign
        low, high = (float(end) for end in torch.aminmax(steps))
        if not -WHOLE < low <= high < WHOLE:
            on_grid = torch.where(steps.abs() < WHOLE, on_grid, moved)
        return _scaled(on_grid, given, 1)

    def inside(self, x: Tensor, items: Tensor, scales: Scales, given: Given) -> Tensor:
        measured, middle = scales.times(_apart(x, given.expected, given), -1), items.to(torch.float32)
        low = middle - _noise_of(given)
        moved = _scaled(scales.times(torch.minimum(torch.maximum(measured, low), low + 1.0)), given, 1)
        edge = moved if given.expected is None else given.expected + moved
        # Where steps are finer than float32, several multiples are one value.
        own = self._rounded(measured, given).clamp_(-LARGEST, LARGEST).to(torch.int32)
        return torch.where(self.value(own, scales, given) == self.value(items, scales, given), x, edge)

    def _rounded(self, multiples: Tensor, given: Given) -> Tensor:
        return (multiples + _noise_of(given)).floor_()


class _Octaves:
    """Moves of second moments, in the order of bit patterns; such patterns are positive and finite, or 0 as before."""

    how, parts = "octaves", 1

    def scales(self, x: Tensor, sizes: Sequence[int], given: Given) -> Scales:
        return Scales([0] * len(sizes), sizes)

    def items(self, x: Tensor, scales: Scales, given: Given) -> Tensor | None:
        before, here = self._before(given, len(x)), packed.map_bits(x)
        items = (here - before + self._noise(given)) >> OCTAVE
        return torch.where((before == 0) & (here > 0), items.clamp(min=1), items)

    def recognised(self, value: Tensor, scales: Scales, given: Given) -> Tensor | None:
        moved = packed.map_bits(value) - self._before(given, len(value))
        return (moved + (1 << (OCTAVE - 1))) >> OCTAVE

    def value(self, items: Tensor, scales: Scales, given: Given) -> Tensor:
        before = self._before(given, len(items))
        after = (before + (items << OCTAVE)).clamp(1, 0x7F7FFFFF)
        return packed.unmap_bits(torch.where(items == 0, before, after), torch.float32, [len(items)])

    def inside(self, x: Tensor, items: Tensor, scales: Scales, given: Given) -> Tensor:
        low = self._before(given, len(x)) + (items << OCTAVE) - self._noise(given)
        within = torch.minimum(torch.maximum(packed.map_bits(x), low), low + ((1 << OCTAVE) - 1)).clamp(0, 0x7F7FFFFF)
        return packed.unmap_bits(within, torch.float32, [len(x)])

    def _noise(self, given: Given) -> Tensor:
        return (_noise_of(given) * float(1 << OCTAVE)).to(torch.int32)

    def _before(self, given: Given, length: int) -> Tensor:
        return torch.zeros(length, dtype=torch.int32) if given.before is None else packed.map_bits(given.before)


def _known(before: str, key: str) -> bool:
    return role(f"{before}/{key}") != "" or key in BESIDE


def _items(multiples: Tensor) -> Tensor | None:
    fits = all(abs(float(end)) <= LARGEST for end in torch.aminmax(multiples))
    return multiples.to(torch.int32) if fits else None


def _apart(x: Tensor, start: Tensor | None, given: Given) -> Tensor:
    """A new tensor: how far ``x`` is from ``start``, of a momentum in proportion to the root of its second moment."""
    return _scaled(x.clone() if start is None else x - start, given, -1)


def _scaled(x: Tensor, given: Given, sign: int) -> Tensor:
    return x if given.second is None else x * power(half_exponent(given.second) * sign)


def _noise_of(given: Given) -> Tensor:
    if given.noise is None:
        raise FormatError("a tensor is rounded without noise")
    return given.noise


def _like(entry: Entry, name: str, base: State) -> bool:
    before = base.tensors.get(name)
    return before is not None and before.dtype == torch.float32 and list(before.shape) == entry.shape
