"""What the codecs in the loop share: rules that round tensors, chosen by a tensor's name and type alone.

At a checkpoint training goes on from what the codec decodes, so a replay starts from exactly the prover's state and a rule may be as
coarse as training tolerates. Nothing is left for a prover to choose: scales follow from the values, and rounding is to the
nearest. All arithmetic is exact, on integers, or one correctly rounded operation of IEEE 754, so every platform finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proof_of_learning.errors import FormatError
from proof_of_learning.proof.codecs import packed
from proof_of_learning.proof.codecs.base import Encoded, same_kind
from proof_of_learning.proof.codecs.lossless import base_tensor, bits_entry, bits_items, bits_value
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.training.state import State

SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # of Adam, RMSprop, Adagrad
MOMENTA = ("exp_avg", "momentum_buffer", "grad_avg")
PIECE = 1 << 18  # elements that are rounded at a time
LARGEST_SCALE = 200  # of the exponents that an object may name


@dataclass(frozen=True)
class Given:
    """What a rule may look at beside the tensor: itself at the last checkpoint, and a momentum's decoded ``second`` moment."""

    before: Tensor | None = None
    second: Tensor | None = None

    def part(self, part: slice) -> Given:
        """What belongs to a part of the tensor."""
        return Given(*(None if tensor is None else tensor[part] for tensor in (self.before, self.second)))

    @property
    def base(self) -> Tensor:
        """``before``, for rules that need it."""
        if self.before is None:
            raise FormatError("a tensor is a difference to one that its base does not have")
        return self.before


class Rule(Protocol):
    """Rounds float32 tensors, flat. ``items`` are the integers that are stored, ``scale`` an exponent of two."""

    how: str

    def scale(self, x: Tensor, given: Given) -> int:
        """The exponent that follows from the values."""
        ...

    def items(self, x: Tensor, scale: int, given: Given) -> Tensor | None:
        """None where ``x`` cannot be rounded so, and is kept to the bit."""
        ...

    def value(self, items: Tensor, scale: int, given: Given) -> Tensor: ...

    def inside(self, x: Tensor, items: Tensor, scale: int, given: Given) -> Tensor:
        """``x``, each element moved as little as possible to where it rounds to ``items``."""
        ...


class RoundingCodec:
    """A codec in the loop, made of rules."""

    name: str
    version = 1
    exact = False
    rules: dict[str, Rule]  # by what they call themselves in an object

    def rule(self, name: str, tensor: Tensor, base: State) -> Rule | None:
        """The rule for a float32 tensor with dimensions; None to keep it to the bit."""
        raise NotImplementedError

    def encode(self, state: State, base: State | None) -> Encoded:
        if base is None:
            raise FormatError(f"the codec {self.name} needs the checkpoint before")
        tensors, entries, items = dict(state.tensors), dict[str, Entry](), dict[str, Tensor]()
        for name in _second_moments_first(state.tensors):
            tensor = state.tensors[name]
            rule = self.rule_for(name, tensor, base)
            if rule is not None:
                given, flat = given_of(name, base, tensors), tensor.reshape(-1)
                scale = rule.scale(flat, given)
                rounded = _rounded(rule, flat, scale, given)
                if rounded is not None:
                    items[name], tensors[name] = _narrow(rounded[0]), rounded[1].reshape(tensor.shape)
                    entries[name] = packed.entry(tensor, items[name].element_size(), rule.how, scale)
        for name, tensor in state.tensors.items():
            if name not in entries:
                entries[name] = bits_entry(tensor, base, name)
                tensors[name] = tensor.clone() if state.live else tensor

        def chunks() -> Iterator[bytes]:
            def stored(name: str) -> Tensor:
                if name in items:
                    return packed.zigzag(items[name])
                return bits_items(tensors[name], entries[name], base, name)

            return packed.pack(state.tree, {name: entries[name] for name in tensors}, stored)

        return Encoded(State(state.tree, tensors), chunks)

    def decode(self, raw: bytearray, base: State | None) -> State:
        tree, entries, stored = packed.unpack(raw, base)
        tensors: dict[str, Tensor] = {}
        for name in _second_moments_first(entries):
            entry, items = entries[name], stored.pop(name)
            rule = self.rules.get(entry.how)
            if rule is None:
                tensors[name] = bits_value(entry, items, base, name)
                continue
            if entry.dtype != "float32" or abs(entry.scale) > LARGEST_SCALE or base is None:
                raise FormatError(f"an object's header describes the tensor {name[:80]!r} wrongly")
            given = given_of(name, base, tensors)
            if given.before is not None:
                base_tensor(base, entry, name)
            wide = packed.unzigzag(items).to(torch.int32)
            try:
                tensors[name] = rule.value(wide, entry.scale, given).reshape(entry.shape)
            except (RuntimeError, TypeError, AttributeError):
                raise FormatError(f"the tensor {name[:80]!r} cannot be decoded as {entry.how!r}") from None
        return State(tree, {name: tensors[name] for name in entries})

    def nearest(self, arrived: State, recorded: State, base: State) -> State:
        """Each value of ``arrived``, moved into the interval that rounds to the recorded one (as recorded where there is none)."""
        tensors = dict(recorded.tensors)
        for name, wanted in recorded.tensors.items():
            here = arrived.tensors.get(name)
            rule = self.rule_for(name, wanted, base) if here is not None and same_kind(wanted, arrived, name) else None
            if rule is None or here is None:
                continue
            given, flat, goal = given_of(name, base, recorded.tensors), here.reshape(-1), wanted.reshape(-1)
            least = math.inf
            # Noise may have led to the next scale; all of this choice is one of three roundings a tensor.
            scale = rule.scale(flat, given_of(name, base, arrived.tensors))
            for tried in (scale, scale - 1, scale + 1):
                items = rule.items(goal, tried, given)
                if items is not None and torch.equal(rule.value(items, tried, given), goal):
                    inside = rule.inside(flat, items, tried, given)
                    error = float(torch.linalg.vector_norm(inside - flat, dtype=torch.float64))
                    if error < least:
                        least, tensors[name] = error, inside.reshape(wanted.shape)
        return State(recorded.tree, tensors)

    def rule_for(self, name: str, tensor: Tensor, base: State) -> Rule | None:
        """The rule by which a tensor is rounded; None if it is kept to the bit."""
        fits = tensor.dtype == torch.float32 and tensor.ndim > 0 and tensor.numel() > 0
        return self.rule(name, tensor, base) if fits and _finite(tensor) else None


def _rounded(rule: Rule, x: Tensor, scale: int, given: Given) -> tuple[Tensor, Tensor] | None:
    """Items and value of ``x``, made in pieces that stay in the processor's cache; None where it is kept to the bit."""
    items, value = torch.empty_like(x, dtype=torch.int32), torch.empty_like(x)
    for start in range(0, len(x), PIECE):
        part = slice(start, start + PIECE)
        rounded = rule.items(x[part], scale, given.part(part))
        if rounded is None:
            return None
        items[part], value[part] = rounded, rule.value(rounded, scale, given.part(part))
    return items, value


def _finite(tensor: Tensor) -> bool:
    """Whether all values are; far faster than asking each of them."""
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor))


def role(name: str) -> str:
    """``weights`` (parameters of the model or of an average of it), ``momentum``, ``second`` or nothing."""
    path = name.split("/")
    if path[1:2] == ["parameters"]:
        return "weights"
    if len(path) > 3 and path[1] == "state":
        return "second" if path[-1] in SECOND_MOMENTS else "momentum" if path[-1] in MOMENTA else ""
    return ""


def unsigned(tensor: Tensor) -> bool:
    """Whether no value has a sign, -0 included."""
    return bool((tensor.reshape(-1).view(torch.int32) >= 0).all())


def power(exponent: int | Tensor) -> Tensor:
    """2 to integers from -126 to 127 (clamped), exactly."""
    exponents = torch.as_tensor(exponent, dtype=torch.int32).clamp(-126, 127)
    return ((exponents + 127) << 23).view(torch.float32)


def _second_moments_first(names: dict[str, Tensor] | dict[str, Entry]) -> list[str]:
    return sorted(names, key=lambda name: role(name) != "second")


def given_of(name: str, base: State, decoded: dict[str, Tensor]) -> Given:
    """What a rule may look at for the tensor ``name``: ``decoded`` holds the second moments as they were decoded."""
    before = base.tensors.get(name)
    second = decoded.get(f"{name.rpartition('/')[0]}/exp_avg_sq") if role(name) == "momentum" else None
    return Given(None if before is None else before.reshape(-1), None if second is None else second.reshape(-1))


def _narrow(items: Tensor) -> Tensor:
    """``items`` as the narrowest integers that hold them."""
    low, high = (int(v) for v in torch.aminmax(items))
    fits = next(bits for bits in (8, 16, 32) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))
    return items.to(packed.WIDTHS[fits // 8])
