"""What the codecs in the loop share: rules that round tensors, chosen by a tensor's name and type alone.

At a checkpoint training goes on from what the codec decodes, so a replay starts from exactly the prover's state and a rule may be as
coarse as training tolerates. Nothing is left for a prover to choose: scales follow from the values, and rounding is to the
nearest. All arithmetic is exact, on integers, or one correctly rounded operation of IEEE 754, so every platform finds the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.numeric.denormals import with_denormals
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import (
    PIECE,
    Encoded,
    batched,
    first_places,
    float_array,
    joined,
    ranges,
    same_kind,
)
from proof_of_learning.proof.codecs.lossless import base_tensor, bits_entry, bits_items, bits_values
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.proof.codecs.prediction import Foretold
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.state.names import role, second_of
from proof_of_learning.state.state import State

LARGEST_SCALE = 200  # octaves that an object may name
ROOTS = (1.0, 1.1875, 1.4140625, 1.6875)  # about the powers of the fourth root of two
PHASES = ("second", "momentum", "")  # roles in the order in which they are decoded; weights and all else come last


@dataclass(frozen=True)
class Given:
    """What a rule may look at beside the tensor, flat like it.

    before: itself at the last checkpoint. second: beside a momentum, the decoded second moment. expected: what a codec that predicts
        expects it to be. noise: from 0 to below 1, where it is rounded up or down by that.
    """

    before: Tensor | None = None
    second: Tensor | None = None
    expected: Tensor | None = None
    noise: Tensor | None = None

    def part(self, part: slice) -> Given:
        """What belongs to a part of the tensor."""
        return Given(*(None if tensor is None else tensor[part] for tensor in self._all()))

    @classmethod
    def joined(cls, parts: Sequence[Given]) -> Given:
        """What belongs to tensors that are laid end to end, each of which has the same beside it."""
        columns = zip(*(given._all() for given in parts), strict=True)
        return cls(*(None if column[0] is None else joined(column) for column in columns))

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.before, self.second, self.expected, self.noise

    @property
    def base(self) -> Tensor:
        """``before``, for rules that need it."""
        if self.before is None:
            raise FormatError("a tensor is a difference to one that its base does not have")
        return self.before


@dataclass(frozen=True)
class Scales:
    """Exponents of two, one for each of the tensors that a flat tensor is made of.

    ``parts``: of an octave, in which exponents count: 1, or 4, whose powers of the fourth root of two are the nearest of eight bits.
    """

    exponents: Sequence[int]
    sizes: Sequence[int]
    parts: int = 1

    def times(self, x: Tensor, sign: int = 1) -> Tensor:
        """``x`` times 2 to its exponent or, with ``sign`` -1, divided by that; a new tensor."""
        powers = [_power(exponent, self.parts, sign) for exponent in self.exponents]
        if len(powers) == 1:
            return x * powers[0]
        return x * torch.from_numpy(np.repeat(np.array(powers, np.float32), self.sizes))

    def each(self, low: int, high: int) -> Tensor:
        """The exponent of each element, brought within bounds."""
        exponents = torch.tensor(self.exponents, dtype=torch.int32).clamp(low, high)
        return exponents if len(exponents) == 1 else torch.repeat_interleave(exponents, torch.tensor(self.sizes))


def _power(exponent: int, parts: int, sign: int) -> float:
    octave, part = divmod(exponent, parts)
    root = ROOTS[part * (4 // parts)]
    return (root if sign > 0 else float(np.float32(1.0 / root))) * 2.0 ** min(max(sign * octave, -126), 127)


class Rule(Protocol):
    """Rounds float32 tensors, flat, one or several end to end. ``items`` are the integers that are stored.

    ``parts``: of an octave, in which its scales count.
    """

    how: str
    parts: int

    def scales(self, x: Tensor, sizes: Sequence[int], given: Given) -> Scales:
        """What follows from the values of the tensors of ``sizes`` elements that ``x`` is made of."""
        ...

    def items(self, x: Tensor, scales: Scales, given: Given) -> Tensor | None:
        """None where ``x`` cannot be rounded so, and is kept to the bit."""
        ...

    def value(self, items: Tensor, scales: Scales, given: Given) -> Tensor: ...

    def recognised(self, value: Tensor, scales: Scales, given: Given) -> Tensor | None:
        """The items of what :meth:`value` gave; anything, or None, for what it gives for none."""
        ...

    def inside(self, x: Tensor, items: Tensor, scales: Scales, given: Given) -> Tensor:
        """``x``, each element moved as little as possible to where it rounds to ``items``."""
        ...


class RoundingCodec:
    """A codec in the loop, made of rules."""

    name: str
    version = 1
    exact = False
    rules: dict[str, Rule]  # by what they call themselves in an object

    def rule(self, name: str, tensors: Mapping[str, Tensor], base: State, foretold: Foretold | None) -> Rule | None:
        """The rule for ``tensors[name]``, float32 with dimensions; None to keep it to the bit."""
        raise NotImplementedError

    def roundable(self, names: Collection[str]) -> Collection[str]:
        """Of the tensors of a state, those that rules are asked for."""
        return names

    def foretell(
        self, names: Sequence[str], tensors: Mapping[str, Tensor], decoded: Mapping[str, Tensor], base: State
    ) -> dict[str, Foretold]:
        """What is expected of ``tensors``, all of one phase: by what of earlier phases was ``decoded``, and by the base."""
        return {}

    def told(self, name: str, entries: Mapping[str, Entry], base: State) -> Foretold | None:
        """What :meth:`foretell` said, from the entry; FormatError for anything that it does not say."""
        if entries[name].by:
            raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
        return None

    def given(self, name: str, base: State, decoded: Mapping[str, Tensor], foretold: Foretold | None) -> Given:
        """What a rule may look at for the tensor ``name``: ``decoded`` holds at least those of earlier phases."""
        before, second = base.tensors.get(name), decoded.get(second_of(name))
        return Given(None if before is None else before.reshape(-1), None if second is None else second.reshape(-1))

    def beside(
        self, names: Sequence[str], base: State, tensors: Mapping[str, Tensor], foretold: Mapping[str, Foretold]
    ) -> Given:
        """What a rule that rounds looks at, for the tensors of one batch end to end."""
        return Given.joined([self.given(name, base, tensors, foretold.get(name)) for name in names])

    def pack(
        self, state: State, entries: dict[str, Entry], items: Mapping[str, Tensor], base: State
    ) -> Iterator[bytes]:
        """The object of a decoded state, of which ``items`` are the integers of the tensors that are rounded, flat, by name."""

        def stored(name: str) -> Tensor:
            return packed.zigzag(items[name]) if name in items else self.kept(name, state, entries, base)

        return packed.pack(state.tree, entries, stored)

    def kept(self, name: str, state: State, entries: Mapping[str, Entry], base: State) -> Tensor:
        """The items of a tensor that is kept to the bit."""
        return bits_items(state.tensors[name], entries[name], base, name)

    def unpack(self, raw: bytearray, base: State | None, room: Room | None) -> Unpacked:
        tree, entries, items, _ = packed.unpack(raw, base, room)
        return Unpacked(tree, entries, items)

    def opened(
        self, names: Sequence[str], unpacked: Unpacked, decoded: Mapping[str, Tensor], base: State
    ) -> dict[str, Tensor]:
        """The integers of the rounded tensors of one phase: ``decoded`` holds those of earlier ones."""
        return {name: packed.unzigzag(unpacked.items.pop(name)) for name in names}

    def tries(self, rule: Rule, foretold: Foretold | None) -> Iterator[tuple[Rule, Foretold | None]]:
        """What noise may have made of a rule and of what was foretold, the likeliest first."""
        yield rule, foretold

    @with_denormals
    def encode(self, state: State, base: State | None) -> Encoded:
        if base is None:
            raise FormatError(f"the codec {self.name} needs the checkpoint before")
        tensors, entries, items = dict(state.tensors), dict[str, Entry](), dict[str, Tensor]()
        for phase in _phases(self.roundable(tensors.keys())):
            foretold = self.foretell(phase, tensors, tensors, base)
            rules = self.rules_for(phase, tensors, base, foretold)
            wanted = {name: (rule.how, tensors[name].numel()) for name, rule in rules.items()}
            for names in _batches(wanted, base, tensors):
                beside = functools.partial(self.beside, base=base, tensors=tensors, foretold=foretold)
                for name, rounded in _rounded(rules[names[0]], names, tensors, beside).items():
                    tensor, told = tensors[name], foretold.get(name)
                    items[name], tensors[name] = rounded.items, rounded.value.reshape(tensor.shape)
                    width, more = rounded.items.element_size(), {} if told is None else told.entry()
                    entries[name] = packed.entry(tensor, width, rules[name].how, rounded.scale, **more)
        for name, tensor in state.tensors.items():
            if name not in entries:
                entries[name] = bits_entry(tensor, base, name)
                tensors[name] = tensor.clone() if state.live else tensor

        after, kept = State(state.tree, tensors), [name for name in tensors if name not in items]
        return Encoded(after, lambda: self.pack(after, {name: entries[name] for name in tensors}, items, base), kept)

    @with_denormals
    def decode(self, raw: bytearray, base: State | None, room: Room | None = None) -> State:
        unpacked = self.unpack(raw, base, room)
        entries = unpacked.entries
        rounded, kept = dict[str, tuple[str, int]](), dict[str, Entry]()
        for name, entry in entries.items():
            if entry.how in self.rules:
                largest = LARGEST_SCALE * self.rules[entry.how].parts
                if entry.dtype != "float32" or abs(entry.scale) > largest or base is None:
                    raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
                rounded[name] = (f"{entry.how} {entry.items}", entry.count)
            else:
                kept[name] = entry
        tensors = bits_values(kept, unpacked.items, base)
        for phase in _phases(rounded):
            assert base is not None
            opened = self.opened(phase, unpacked, tensors, base)
            for names in _batches({name: rounded[name] for name in phase}, base, entries):
                sizes, given = [entries[name].count for name in names], list[Given]()
                for name in names:
                    told = self.told(name, entries, base)
                    if name in base.tensors:
                        base_tensor(base, entries[name], name)
                    second = tensors.get(second_of(name))
                    if second is not None and (second.dtype, list(second.shape)) != (
                        torch.float32,
                        entries[name].shape,
                    ):
                        raise FormatError(f"the tensor {name[:80]!r} has a second moment of another kind beside it")
                    given.append(self.given(name, base, tensors, told))
                items = joined([opened.pop(name) for name in names])
                rule = self.rules[entries[names[0]].how]
                scales = Scales([entries[name].scale for name in names], sizes, rule.parts)
                try:
                    value = _value(rule, items, scales, Given.joined(given))
                except (RuntimeError, TypeError, AttributeError):
                    raise FormatError(f"the tensor {names[0][:80]!r} cannot be decoded") from None
                for name, flat in zip(names, torch.split(value, sizes), strict=True):
                    tensors[name] = flat.reshape(entries[name].shape)
        return State(unpacked.tree, {name: tensors[name] for name in entries})

    @with_denormals
    def nearest(self, arrived: State, recorded: State, base: State) -> State:
        """Each value of ``arrived``, moved into the interval that rounds to the recorded one (as recorded where there is none)."""
        tensors, names = dict(recorded.tensors), self.roundable(recorded.tensors.keys())
        alike = [name for name in names if same_kind(recorded.tensors[name], arrived, name)]
        for phase in _phases(alike):
            foretold = self.foretell(phase, arrived.tensors, recorded.tensors, base)
            for name, rule in self.rules_for(phase, recorded.tensors, base, foretold).items():
                inside = self._inside(rule, name, foretold.get(name), arrived, recorded, base)
                tensors[name] = recorded.tensors[name] if inside is None else inside
        return State(recorded.tree, tensors)

    def _inside(
        self, rule: Rule, name: str, told: Foretold | None, arrived: State, recorded: State, base: State
    ) -> Tensor | None:
        """The tensor of ``arrived``, moved as little as possible to where it rounds to that of ``recorded``; None if nothing does."""
        flat, goal = arrived.tensors[name].reshape(-1), recorded.tensors[name].reshape(-1)
        nearest, least = None, math.inf
        for by, expected in self.tries(rule, told):
            given = self.beside([name], base, recorded.tensors, {} if expected is None else {name: expected})
            # Noise may have led to the next scale; all of this choice is one of a few roundings a tensor.
            (scale,) = by.scales(flat, [len(flat)], given).exponents
            for exponent in (scale, scale - 1, scale + 1):
                tried = Scales([exponent], [len(flat)], by.parts)
                items = by.recognised(goal, tried, given)
                if items is not None and torch.equal(by.value(items, tried, given), goal):
                    inside = by.inside(flat, items, tried, given)
                    error = float(torch.linalg.vector_norm(inside - flat, dtype=torch.float64))
                    if error < least:
                        least, nearest = error, inside.reshape(recorded.tensors[name].shape)
            if nearest is not None:
                break
        return nearest

    def rules_for(
        self, names: Collection[str], tensors: Mapping[str, Tensor], base: State, foretold: Mapping[str, Foretold]
    ) -> dict[str, Rule]:
        """The rules by which tensors of a state are rounded, but for those that are kept to the bit."""
        names = [name for name in names if _fits(name, tensors, base)]
        ends = zip(names, ranges(tensors[name] for name in names), strict=True)
        finite = [name for name, (low, high) in ends if math.isfinite(low) and math.isfinite(high)]
        rules = ((name, self.rule(name, tensors, base, foretold.get(name))) for name in finite)
        return {name: rule for name, rule in rules if rule is not None}


def _fits(name: str, tensors: Mapping[str, Tensor], base: State) -> bool:
    """Whether a tensor may be rounded at all.

    What the base has in another shape may not, nor a momentum whose second moment has another one, say one number for a layer
    (NovoGrad): what divides an element is not known then.
    """
    tensor, second = tensors[name], tensors.get(second_of(name))
    fits = float_array(tensor) and (second is None or (second.dtype, second.shape) == (tensor.dtype, tensor.shape))
    return fits and (name not in base.tensors or same_kind(tensor, base, name))


class Unpacked(NamedTuple):
    """What an object holds. ``apart``: numbers that stand for the items of all tensors of one ``how``."""

    tree: Any
    entries: dict[str, Entry]
    items: dict[str, Tensor]
    apart: Mapping[str, npt.NDArray[np.int32]] = {}


class _Rounded(NamedTuple):
    items: Tensor  # flat, in the narrowest integers that hold them
    value: Tensor  # flat
    scale: int


def _rounded(
    rule: Rule, names: Sequence[str], tensors: Mapping[str, Tensor], beside: Callable[[Sequence[str]], Given]
) -> dict[str, _Rounded]:
    """Tensors of one batch, rounded, without those that are kept to the bit."""
    x = joined([tensors[name].reshape(-1) for name in names])
    given = beside(names)
    sizes = [tensors[name].numel() for name in names]
    scales = rule.scales(x, sizes, given)
    items, value = torch.empty_like(x, dtype=torch.int32), torch.empty_like(x)
    for start in range(0, len(x), PIECE):  # a large tensor in pieces that stay in the processor's cache
        part = slice(start, start + PIECE)
        rounded = rule.items(x[part], scales, given.part(part))
        if rounded is None:
            if len(names) == 1:
                return {}
            return {key: found for name in names for key, found in _rounded(rule, [name], tensors, beside).items()}
        items[part], value[part] = rounded, rule.value(rounded, scales, given.part(part))
    widths = _widths(items, sizes)
    return {
        name: _Rounded(stored.to(width), decoded, exponent)
        for name, stored, width, decoded, exponent in zip(
            names, torch.split(items, sizes), widths, torch.split(value, sizes), scales.exponents, strict=True
        )
    }


def _value(rule: Rule, stored: Tensor, scales: Scales, given: Given) -> Tensor:
    """What a rule makes of the items of one batch, in pieces: a small object may hold a large tensor."""
    value = torch.empty(len(stored), dtype=torch.float32)
    for start in range(0, len(stored), PIECE):
        part = slice(start, start + PIECE)
        value[part] = rule.value(stored[part].to(torch.int32), scales, given.part(part))
    return value


def _phases(names: Iterable[str]) -> Iterator[list[str]]:
    """Names by the order in which their tensors are rounded and decoded: what an earlier phase gave lies beside a later one."""
    phases: dict[str, list[str]] = {phase: [] for phase in PHASES}
    for name in names:
        kind = role(name)
        phases[kind if kind in phases else PHASES[-1]].append(name)
    return (found for found in phases.values() if found)


def _batches(
    wanted: Mapping[str, tuple[str, int]], base: State | None, present: Collection[str]
) -> Iterator[list[str]]:
    """Names of tensors to be rounded together, given by what rule, and the number of elements; ``present``: those of the state.

    A batch is one large tensor or many small ones: an operation on each of these would cost more than the arithmetic.
    """
    alike: dict[tuple[str, bool, bool], list[str]] = {}
    for name, (how, _) in wanted.items():
        known, beside = base is not None and name in base.tensors, second_of(name) in present
        alike.setdefault((how, known, beside), []).append(name)
    for _, names in sorted(alike.items()):
        yield from batched(names, lambda name: wanted[name][1])


def extremes(values: Tensor, sizes: Sequence[int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The smallest and the largest value of each of the tensors, none of them empty, that ``values`` is made of."""
    if len(sizes) == 1:
        low, high = torch.aminmax(values)
        return low.reshape(1).numpy(), high.reshape(1).numpy()
    starts, flat = first_places(sizes), values.numpy()
    return np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)


def unsigned(tensor: Tensor) -> bool:
    """Whether no value has a sign, -0 included."""
    return bool((tensor.reshape(-1).view(torch.int32) >= 0).all())


def power(exponents: Tensor) -> Tensor:
    """2 to integers from -126 to 127 (clamped), exactly."""
    return ((exponents.clamp(-126, 127) + 127) << 23).view(torch.float32)


def _widths(items: Tensor, sizes: Sequence[int]) -> list[torch.dtype]:
    """For each tensor, the narrowest integers that hold its items."""
    lows, highs = extremes(items, sizes)
    fits = (
        next(bits for bits in (8, 16, 32) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True)
    )
    return [packed.WIDTHS[bits // 8] for bits in fits]
