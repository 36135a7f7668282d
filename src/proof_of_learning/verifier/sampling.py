"""What every state holds at some coordinates that follow from the nonce, so that nobody could know them while training.

Small tensors are taken whole. Weights and what the optimizer keeps for them are looked at in the same places. Everything is looked
at that the next step may start from: what no rule explains (the memory of an unknown optimizer, averages, buffers) could carry a
jump into weights that only honest steps seem to move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric import randomness
from proof_of_learning.replay.protocol import Described
from proof_of_learning.state.joining import layout_of
from proof_of_learning.state.layout import Layout
from proof_of_learning.state.names import CARRYING, family_of, kind_of, split_entry
from proof_of_learning.state.state import State, decode_tree
from proof_of_learning.verifier.dynamics import CLASSES, Course, Family, Rule, read_rule

COORDINATES = 512  # of each tensor at most
FEWEST = 16
EXPLAINED = CARRYING  # by where the weights come to rest
MAX_VALUES = 1 << 26  # in memory, all states and tensors together
SPARE = 8  # tensors that may be there in the end for each of the first state

Array = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Trained:
    """One tensor of weights that an optimizer trains: what it went through, how many elements it has, and which part trains it."""

    course: Course
    elements: int
    dimensions: int
    part: str


@dataclass(frozen=True)
class Memory:
    """What a state holds beside trained weights and what their optimizer's rule explains: [T+1, m] values of one tensor."""

    kind: str
    values: Values
    elements: int
    dimensions: int = 2


class Picked(NamedTuple):
    """What a state holds where is looked, tensor after tensor: of those in float32, and of those of any other floating-point dtype."""

    narrow: npt.NDArray[np.float32]
    wide: Array


_Part = tuple[str, int, int]  # a tensor's name, and its values in what was picked: from, and up to


class _Looked(NamedTuple):
    """Which tensors of a layout are looked at, as in :class:`Picked`, and ``places`` of the first ones in their block."""

    narrow: tuple[_Part, ...]
    wide: tuple[_Part, ...]
    places: Tensor


class Sampler:
    """Collects, state by state. ``states``: how many there will be; ``seed``: what the coordinates follow from."""

    def __init__(self, states: int, seed: int) -> None:
        self._states, self._seed = states, seed
        self._places: dict[int, Tensor | None] = {}
        self._values: dict[str, Values] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._groups: dict[str, list[Any]] = {}
        self._most = COORDINATES
        self._explained: set[str] = set()
        self._room = MAX_VALUES
        self._last: tuple[Layout, _Looked] | None = None
        self._placed: Layout | None = None  # the layout whose tensors all have room
        self._begun = False
        self.seen = 0

    def add(self, position: int, state: State) -> None:
        """Take note of the state at ``position``. Raises FormatError where later states hold far more tensors than the first."""
        self.begin(state)
        self.put(position, layout_of(state), self.pick(state), state)

    def begin(self, first: State) -> None:
        """How many coordinates are looked at follows from the first state; of every other this says nothing."""
        if self._begun:
            return
        kept = sum(tensor.is_floating_point() for tensor in first.tensors.values())
        # What the optimizer keeps appears with the first step.
        self._most = max(FEWEST, min(COORDINATES, MAX_VALUES // (self._states * max(1, SPARE * kept))))
        self._room = max(MAX_VALUES, SPARE * kept * self._most * self._states)
        self._begun = True

    def pick(self, state: State) -> Picked:
        """What a state holds at the coordinates; nothing here changes."""
        layout = layout_of(state)
        looked = self._looked(layout)
        narrow, wide = np.zeros(0, np.float32), np.zeros(0, np.float64)
        if looked.narrow and state.flat is not None:
            narrow = state.flat.blocks[torch.float32].index_select(0, looked.places).numpy()
        elif looked.narrow:
            narrow = np.concatenate([self._chosen(state.tensors[name]).numpy() for name, *_ in looked.narrow])
        if looked.wide:
            values = [self._chosen(state.tensors[name]).to(torch.float64).numpy() for name, *_ in looked.wide]
            wide = np.concatenate(values)
        return Picked(narrow, wide)

    def _chosen(self, tensor: Tensor) -> Tensor:
        flat, places = tensor.reshape(-1), self._at(tensor.numel())
        return flat if places is None else flat.index_select(0, places)

    def put(self, position: int, layout: Layout, picked: Picked, state: State) -> None:
        """Keep what was picked from the state at ``position``, which is laid out so. ``state`` may lack all tensors but those in
        parameter groups."""
        self.seen += 1
        looked = self._looked(layout)
        if layout is not self._placed:
            for name in layout.shapes:
                if layout.places[name].dtype.is_floating_point:
                    self._place(position, name, layout)
            self._placed = layout
        for found, items in ((picked.narrow, looked.narrow), (picked.wide, looked.wide)):
            for name, start, stop in items:
                there = self._shapes[name] == layout.shapes[name]
                # One of another shape is as far from all others as can be.
                self._values[name][position] = found[start:stop] if there else np.inf
        for part, groups in _groups(state).items():
            self._groups.setdefault(part, [None] * self._states)[position] = groups

    def _place(self, position: int, name: str, layout: Layout) -> None:
        """Room for a tensor that no state had before."""
        if name in self._values:
            return
        shape, dtype = layout.shapes[name], layout.places[name].dtype
        columns = 1 if not shape else min(shape.numel(), self._most)
        wide = dtype == torch.float64
        # A tensor that appears anywhere takes room for every state: zeros that compress to nothing would fill the memory.
        self._room -= columns * self._states * (2 if wide else 1)
        if self._room < 0:
            raise FormatError(
                f"the state after segment {position - 1} holds more tensors than can be followed; the first state has fewer"
            )
        self._values[name] = np.full((self._states, columns), np.nan, dtype=np.float64 if wide else np.float32)
        self._shapes[name], self._dtypes[name] = shape, dtype

    def _looked(self, layout: Layout) -> _Looked:
        """Where is looked in states of a layout; made once for those that follow one another."""
        if self._last is None or self._last[0] is not layout:
            self._last = layout, self._look(layout)
        return self._last[1]

    def _look(self, layout: Layout) -> _Looked:
        narrow, wide, at = list[_Part](), list[_Part](), list[Tensor]()
        ends = {True: 0, False: 0}
        for name, shape in layout.shapes.items():
            place = layout.places[name]
            if not place.dtype.is_floating_point:
                continue
            within = self._at(shape.numel())
            few = place.dtype == torch.float32
            begin = ends[few]
            ends[few] += shape.numel() if within is None else len(within)
            (narrow if few else wide).append((name, begin, ends[few]))
            if few:
                at.append(torch.arange(place.start, place.stop) if within is None else within + place.start)
        return _Looked(tuple(narrow), tuple(wide), torch.cat(at) if at else torch.empty(0, dtype=torch.int64))

    def _at(self, elements: int) -> Tensor | None:
        """The coordinates of a tensor of so many elements; None for all of them."""
        if elements not in self._places:
            self._places[elements] = coordinates(self._seed, elements, self._most)
        return self._places[elements]

    def memory(self) -> list[Memory]:
        """What :meth:`trained` left unexplained; empty where states are missing."""
        if self.seen < self._states:
            return []
        return [
            Memory(kind_of(name), _settled(values), self._shapes[name].numel(), len(self._shapes[name]))
            for name, values in self._values.items()
            if name not in self._explained and not name.endswith("/step")
        ]

    def places(self, names: Iterable[str]) -> dict[str, bytes]:
        """Where the named tensors are looked at, as a worker is told: int64, little-endian; empty for all elements."""
        found = {}
        for name in names:
            if name in self._shapes:
                at = self._at(self._shapes[name].numel())
                found[name] = b"" if at is None else at.numpy().astype("<i8").tobytes()
        return found

    def columns(self, name: str) -> int:
        """How many elements of a tensor are looked at."""
        return int(self._values[name].shape[1])

    def odd(self, rates: Mapping[str, Array] | None, bounds: npt.NDArray[np.int64]) -> list[int]:
        """Segments whose recorded learning rate is not the one that their start holds, which no honest step brings about."""
        found = set[int]()
        for part, own in (rates or {}).items():
            for index, groups in enumerate(self._groups.get(part, [])[:-1]):
                if groups is not None:
                    held = [_rate(_nth(groups, number)) for number in range(own.shape[1])]
                    if not np.array_equal(held, own[bounds[index]]):
                        found.add(index)
        return sorted(found)

    def trained(
        self,
        members: Mapping[str, str],
        families: Mapping[str, Family | None],
        rates: Mapping[str, Array] | None,
        bounds: npt.NDArray[np.int64],
    ) -> dict[str, Trained]:
        """By the weights' name, in the order in which optimizers hold them; empty where states are missing.

        members: of each entry of an optimizer's state the weights that it belongs to.
        families, rates: of each optimizer's part, by whose rule it steps (:func:`families`), and at which rates [steps, groups].
        bounds: [T+1] steps at which states stand.
        """
        if self.seen < self._states:
            return {}
        found: dict[str, Trained] = {}
        rules: dict[tuple[str, int], Rule | None] = {}
        for entry, weight in members.items():
            part, number = split_entry(entry)
            if weight not in self._values or part not in self._groups or not number.isdecimal():
                continue
            group = _group_of(self._groups[part][0], int(number))
            prefix = f"{entry}/"
            entries = {name[len(prefix) :]: values for name, values in self._values.items() if name.startswith(prefix)}
            entries = {
                name: v[:, 0] if name == "step" else v
                for name, v in entries.items()
                if "/" not in name and v.shape[1]  # a counter without elements counts nothing
            }
            entries = {n: v for n, v in entries.items() if n == "step" or v.shape == self._values[weight].shape}
            own = None if rates is None else rates.get(part)
            if group is None or own is None or not group < own.shape[1]:
                rule, used = None, np.full(int(bounds[-1]), np.nan)
            else:
                if (part, group) not in rules:
                    held = [_nth(groups, group) for groups in self._groups[part]]
                    rules[part, group] = read_rule(held, families.get(part))
                rule, used = rules[part, group], own[:, group]
            course = Course(self._values[weight], entries, rule, used, bounds, _name(self._dtypes[weight]))
            if rule is not None:
                self._explained |= {f"{prefix}{name}" for name in EXPLAINED if name in entries}
            self._explained.add(weight)
            shape = self._shapes[weight]
            found[weight] = Trained(course, shape.numel(), len(shape), part)
        return found


def coordinates(looking: int, elements: int, most: int) -> Tensor | None:
    """Which of a tensor's ``elements`` are looked at, in order: ``most`` that follow from the seed ``looking``; None for all."""
    seed = randomness.derive(looking.to_bytes(randomness.KEY_BYTES, "little"), "places", elements)
    if elements <= most:
        return None
    # Of very many, twice as many are drawn with replacement, for a permutation of all would take longer than the rest.
    few = elements <= 8 * most
    among = (
        randomness.permutation(seed, elements)
        if few
        else np.unique((randomness.uniforms(seed, 2 * most) * elements).astype(np.int64))
    )
    picked = among if few else among[randomness.permutation(seed, len(among))]
    return torch.from_numpy(np.sort(picked[:most]))


def families(described: Described) -> dict[str, Family | None]:
    """By whose rule each optimizer of the verifier's task steps, by its part; None for a class that no rule is known of.

    By the class alone: what a proof's states hold beside what the class needs does not make it another one.
    """
    found: dict[str, Family | None] = dict.fromkeys(described.optimizers)
    content = canonical.decode(described.description, dict[str, Any], "the task's description")
    told = content.get("optimizers")
    for name, optimizer in told.items() if isinstance(told, dict) else ():
        part = name if name == "optimizer" else f"optimizer.{name}"
        if part in found and isinstance(optimizer, dict):
            found[part] = CLASSES.get(str(optimizer.get("class")))
    return found


def _settled(values: Values) -> Values:
    """What is not there yet counts as nothing."""
    absent = np.isnan(values).all(axis=1)
    if not absent.any():
        return values
    filled = values.copy()
    filled[absent] = 0.0
    return filled


def _groups(state: State) -> dict[str, Any]:
    """The parameter groups of each optimizer, by its part; none of what is not laid out as ours are."""
    found: dict[str, Any] = {}
    for key, node in state.tree["d"]:
        part = key[2:]
        if family_of(part) == "optimizer" and isinstance(node, dict) and set(node) == {"d"}:
            for name, body in node["d"]:
                if name == "s:groups":
                    try:
                        groups = decode_tree(body, state.tensors)
                    except FormatError:
                        continue
                    if isinstance(groups, list) and all(isinstance(group, dict) for group in groups):
                        found[part] = groups
    return found


def _nth(groups: Any, number: int) -> dict[str, Any]:
    """The settings of one group; for a state that has no such group, some that are no numbers."""
    return groups[number] if groups is not None and number < len(groups) else {"momentum": None, "betas": None}


def _rate(group: dict[str, Any]) -> float:
    try:
        return float(group["lr"])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        return float("nan")


def _group_of(groups: Any, number: int) -> int | None:
    for position, group in enumerate(groups or ()):
        members = group.get("params")
        if isinstance(members, list) and number in members:
            return position
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
