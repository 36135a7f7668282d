"""What one tensor of weights went through, and by which optimizer's rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]
Family = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"]

_BLOCK = 1 << 15  # elements that are worked on at a time, so that temporaries stay in the cache

# The classes whose steps the rules are about: exactly these, for a subclass may step in another way.
CLASSES: dict[str, Family] = {
    "torch.optim.sgd.SGD": "sgd", "torch.optim.adam.Adam": "adam", "torch.optim.adamw.AdamW": "adamw",
    "torch.optim.rmsprop.RMSprop": "rmsprop", "torch.optim.adagrad.Adagrad": "adagrad",
}  # fmt: skip
# What every group of the family holds, and what its state may hold. Optimizers that share most of this (NAdam, RAdam, Adamax, Muon,
# LARS, Adafactor …) have keys or entries of their own, and then are not known here.
_REQUIRED: dict[str, frozenset[str]] = {
    "sgd": frozenset({"momentum", "dampening", "weight_decay", "nesterov"}),
    "adam": frozenset({"betas", "eps", "weight_decay", "amsgrad"}),
    "rmsprop": frozenset({"momentum", "alpha", "eps", "centered", "weight_decay"}),
    "adagrad": frozenset({"lr_decay", "eps", "weight_decay", "initial_accumulator_value"}),
}
_ENTRIES: dict[str, frozenset[str]] = {
    "sgd": frozenset({"momentum_buffer"}),
    "adam": frozenset({"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    "rmsprop": frozenset({"step", "square_avg", "grad_avg", "momentum_buffer"}),
    "adagrad": frozenset({"step", "sum"}),
}
# Kinds of implementation, and what schedulers leave in a group.
_NEUTRAL = frozenset(
    {"lr", "params", "param_names", "maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay",
     "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
)  # fmt: skip
_PRECISION = {  # unit roundoff; smallest normal number
    "float64": (2.0**-52, 2.0**-1022),  # twice its own, for it is checked in the same precision
    "float32": (2.0**-24, 2.0**-126),
    "float16": (2.0**-11, 2.0**-14),
    "bfloat16": (2.0**-8, 2.0**-126),
}


def family(settings: Mapping[str, Any], entry_names: Collection[str]) -> Family | None:
    """The optimizer by the keys of a parameter group and the names of its state's entries; None for any other than PyTorch's own.

    For states alone, which do not name their optimizer's class, so this is strict: an unknown key (unless it holds a text, as labels
    do) or entry means an unknown optimizer. PyTorch before 2.7 wrote the same keys for Adam and AdamW; with decay that is neither.
    Where a task was named, its class decides (:data:`CLASSES`), whatever else a state holds.
    """
    keys = {str(key) for key, value in settings.items() if not isinstance(value, str)}
    for name, required in _REQUIRED.items():
        if not (required <= keys <= required | _NEUTRAL and set(entry_names) <= _ENTRIES[name]):
            continue
        if name != "adam":
            return "sgd" if name == "sgd" else "rmsprop" if name == "rmsprop" else "adagrad"
        if "decoupled_weight_decay" in settings:
            return "adamw" if _flag(settings["decoupled_weight_decay"]) else "adam"
        return "adam" if _number(settings["weight_decay"]) == 0 else None
    return None


@dataclass(frozen=True)
class Rule:
    """A group's settings at every checkpoint, each an array [T+1]; ``beta2`` is RMSprop's ``alpha`` too.

    ``coarse``: implementations that compute bias corrections in the precision of the weights.
    """

    family: Family
    momentum: Array
    dampening: Array
    decay: Array
    beta1: Array
    beta2: Array
    eps: Array
    lr_decay: Array
    nesterov: Flags
    amsgrad: Flags
    centered: Flags
    coarse: Flags

    @property
    def sound(self) -> Flags:
        """[T+1] where every setting is a number."""
        numbers = (self.momentum, self.dampening, self.decay, self.beta1, self.beta2, self.eps, self.lr_decay)
        return np.asarray(np.isfinite(np.stack(numbers)).all(axis=0), dtype=bool)


def read_rule(settings: Sequence[Mapping[str, Any]], family: Family | None) -> Rule | None:
    """The rule behind a group's settings at every checkpoint, or None where it is unknown or changes on the way.

    family: by the optimizer's class. Keys that the class does not know change nothing.

    What cannot be read as a number is NaN, and then so is all that follows from it. Hand in the same object for equal settings.
    """
    rows: list[tuple[float, ...]] = []
    kinds: set[Family | None] = set()
    last: Mapping[str, Any] | None = None
    for group in settings:
        if group is not last:
            last, row = group, _row(group)
            decoupled = family == "adam" and _flag(group.get("decoupled_weight_decay"))
            kinds.add("adamw" if decoupled else family)
        rows.append(row)
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        return None
    table = np.array(rows, dtype=np.float64).T
    return Rule(kind, *table[:7], *(table[7:] != 0))


def _row(group: Mapping[str, Any]) -> tuple[float, ...]:
    betas = group.get("betas", (0.0, group.get("alpha", 0.0)))
    pair = betas if isinstance(betas, (tuple, list)) and len(betas) == 2 else (math.nan, math.nan)
    numbers = (
        group.get("momentum", 0.0), group.get("dampening", 0.0), group.get("weight_decay", 0.0), *pair,
        group.get("eps", 0.0), group.get("lr_decay", 0.0),
    )  # fmt: skip
    coarse = any(_flag(group.get(name)) for name in ("capturable", "differentiable", "fused"))
    flags = (*(_flag(group.get(name)) for name in ("nesterov", "amsgrad", "centered")), coarse)
    return (*(_number(value) for value in numbers), *(float(flag) for flag in flags))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def _flag(value: Any) -> bool:
    return value is True or (value is not None and _number(value) not in (0.0,) and not isinstance(value, str))


@dataclass(frozen=True)
class Course:
    """One tensor of weights at T+1 checkpoints, seen at m of its coordinates.

    weights: [T+1, m].
    entries: the optimizer's state for it, by name: ``step`` [T+1], all else [T+1, m]; rows of NaN where a state holds none.
    rule: how its group is trained (:func:`read_rule`; one for all tensors of a group), None for an unknown optimizer.
    rates: the learning rate of every step of the run, for its group.
    bounds: [T+1] the step at which each checkpoint was taken, rising.
    dtype: in which weights and state were computed, as PyTorch names it; the arrays may be wider.
    """

    weights: Floats
    entries: Mapping[str, Floats]
    rule: Rule | None
    rates: Array
    bounds: npt.NDArray[np.int64]
    dtype: str = "float32"

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Steps of each segment, [T]."""
        return np.diff(self.bounds)

    @property
    def roundoff(self) -> float:
        return _PRECISION.get(self.dtype, (math.nan, math.nan))[0]

    @property
    def smallest(self) -> float:
        return _PRECISION.get(self.dtype, (math.nan, math.nan))[1]

    @property
    def first_moment(self) -> str | None:
        """The entry that moves the weights on by itself."""
        if self.rule is None or self.rule.family == "adagrad":
            return None
        return "exp_avg" if self.rule.family in ("adam", "adamw") else "momentum_buffer"

    def absent(self, name: str, rows: npt.NDArray[np.int64]) -> Flags:
        """[rows] which of the given states hold no such entry."""
        if name not in self.entries:
            return np.ones(len(rows), dtype=bool)
        values = self.entries[name][rows]
        return _empty(values[:, None] if values.ndim == 1 else values)

    def held(self, name: str, rows: npt.NDArray[np.int64]) -> Array:
        """An entry at the given checkpoints, [rows, m], zero where there is none."""
        if name not in self.entries:
            return np.zeros((len(rows), self.weights.shape[1]))
        values = self.entries[name][rows].astype(np.float64)
        values[_empty(values)] = 0.0
        return values

    def counter(self, rows: npt.NDArray[np.int64]) -> Array:
        """Updates taken, [rows, 1]; zero where nothing was counted yet."""
        if "step" not in self.entries:
            return np.zeros((len(rows), 1))
        return np.nan_to_num(self.entries["step"][rows].astype(np.float64), nan=0.0)[:, None]

    def unchanged(self, rows: npt.NDArray[np.int64]) -> Flags:
        """[rows, m] where neither the weight nor its state differ at the next checkpoint: the update was skipped."""
        same: Flags = self.weights[rows] == self.weights[rows + 1]
        for name, values in self.entries.items():
            before, after = values[rows], values[rows + 1]
            equal = (before == after) | (np.isnan(before) & np.isnan(after))
            same &= equal[:, None] if name == "step" else equal
        return same

    def blocks(self, segments: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """The given segments, some at a time."""
        size = max(1, _BLOCK // max(1, self.weights.shape[1]))
        for start in range(0, len(segments), size):
            yield segments[start : start + size]


def _empty(values: Floats) -> Flags:
    """[rows] which rows are NaN throughout."""
    empty: Flags = np.isnan(values[:, 0]) if values.shape[1] else np.zeros(len(values), dtype=bool)
    empty[empty] = np.isnan(values[empty]).all(axis=1)
    return empty


def half_unit(values: Array, roundoff: float, smallest: float) -> Array:
    """Half a unit in the last place of each value."""
    _, exponent = np.frexp(np.maximum(np.abs(values), smallest))
    unit: Array = np.ldexp(roundoff, exponent - 1)
    return unit
