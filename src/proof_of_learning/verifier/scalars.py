"""The numbers in a state that no distance measures: scalars, and tensors of one element, of the scaler and of custom parts.

A replay takes them from the state that it starts from. One falsified in one segment (a loss scale that is not a number, a
counter that switches a loss off) would hold from there on, and every later segment would replay bit for bit. What they should
be does not follow from the task; but a value that breaks, or changes in a way that is rare in its own history, points to the
segment that changed it, and that one is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.state.names import escaped, family_of
from proof_of_learning.state.state import DTYPE_NAMES, State

Value = int | float | str
_Leaf = tuple[str, Value | None, str]  # of a tree: its path, and its value or the tensor that holds it
MAX_PATHS, MAX_RATES, MAX_KEPT = 4096, 8, 32
LONGEST = 300  # characters of a name
RARE_SHARE = 0.01  # a change is rare if it is seen in no more than this share of the segments, or in one
SCALER = {"scaler/scale", "scaler/_growth_tracker"}
# What is compared with the task's own settings, says where in the run the state stands, or is trained.
_ELSEWHERE: dict[str, tuple[str, ...] | None] = {
    "model": ("s:frozen", "s:parameters"), "optimizer": ("s:groups", "s:added"), "scheduler": None, "progress": None,
}  # fmt: skip


@dataclass
class _Path:
    """What is known of one number: its last value, and by kind of change in how many segments it was seen, and the first of them."""

    last: Value | None = None
    counts: dict[Any, int] = field(default_factory=dict)
    where: dict[Any, list[int]] = field(default_factory=dict)

    def see(self, kind: Any, segment: int) -> None:
        if kind not in self.counts and len(self.counts) >= MAX_RATES:
            kind = "changed"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.where.setdefault(kind, [])
        if len(kept) < MAX_KEPT:
            kept.append(segment)


def _short(path: str) -> str:
    """A name that may be kept: a hostile tree has thousands of names as long as itself."""
    return (
        path if len(path) <= LONGEST else f"{path[:LONGEST]}… {canonical.sha256(path.encode(errors='surrogatepass'))}"
    )


@dataclass
class Scalars:
    """Filled by one pass over all states in order; its size is bounded, whatever the states hold.

    broken: segments at whose end a number is not finite that was finite before, with the number's name.
    unsound: the first state (by position) whose scaler cannot scale anything, and why.
    """

    broken: dict[int, str] = field(default_factory=dict)
    unsound: tuple[int, str] | None = None
    _paths: dict[str, _Path] = field(default_factory=dict)
    _held: int = -1
    _known: dict[str, tuple[Any, list[_Leaf]]] = field(
        default_factory=dict, repr=False, compare=False
    )  # of the last state

    def add(self, position: int, state: State | None, steps: int) -> None:
        """The state after ``position`` segments, the last of them of so many steps; None where its bytes are missing."""
        if state is None:
            return
        follows, self._held = self._held == position - 1 and position > 0, position
        for path, value in self._numbers(state):
            if self.unsound is None and position > 0 and path in SCALER:
                self.unsound = None if _sound(path, value) else (position, f"{path} is {value!r}")
            known = self._paths.get(path)
            if known is None:
                if len(self._paths) < MAX_PATHS:
                    self._paths[path] = _Path(value)
                elif not _finite(value) and len(self.broken) < MAX_KEPT and follows:
                    self.broken.setdefault(position - 1, path)
                continue
            before, known.last = known.last, value
            if not follows or before is None:
                continue
            if not _finite(value) and _finite(before) and len(self.broken) < MAX_KEPT:
                self.broken.setdefault(position - 1, path)
            if path not in SCALER:
                known.see(_change(before, value, steps), position - 1)

    def _numbers(self, state: State) -> Iterator[tuple[str, Value]]:
        """Every number by its path; texts and truth values by digest, for they can change as well. Weights are not among them.

        So are the names that a custom part has (one that comes or goes is no change of a number), and which modules are evaluating.
        """
        before, self._known = self._known, {}
        for key, node in state.tree["d"]:
            name = key[2:]
            left_out = _ELSEWHERE.get(family_of(name), ())
            if name == "progress" and isinstance(node, dict):
                evaluating = [item for item in node.get("d", []) if item[0] == "s:evaluating"]
                yield "progress/evaluating", _digest(evaluating)
            if left_out is None:
                continue
            if not left_out:
                yield _short(f"{escaped(name)}/(names)"), _digest(_names(node))
            if left_out and isinstance(node, dict):
                items = [item for item in node.get("d", []) if item[0] not in left_out]
            elif isinstance(node, dict) and set(node) == {"d"}:
                items = node["d"]
            else:
                yield from _values(self._leaves(node, escaped(name), before), state.tensors)
                continue
            for entry, below in items:
                yield from _values(self._leaves(below, f"{escaped(name)}/{escaped(entry[2:])}", before), state.tensors)

    def _leaves(self, node: Any, path: str, before: Mapping[str, tuple[Any, list[_Leaf]]]) -> list[_Leaf]:
        """What :func:`_walk` finds; where the state before had the very same node, what was found there."""
        known = before.get(path)
        self._known[path] = known if known is not None and known[0] is node else (node, list(_walk(node, path)))
        return self._known[path][1]

    def rare(self, most: int) -> dict[int, str]:
        """Up to ``most`` segments in which a number changed (or did not) in a way that its history hardly knows, rarest first."""
        found: list[tuple[int, int, str]] = []
        for path, known in self._paths.items():
            total = sum(known.counts.values())
            usual = max(known.counts.values(), default=0)
            for kind, count in known.counts.items():
                if count <= max(1, RARE_SHARE * total) and count < usual:
                    found += [(count, segment, path) for segment in known.where[kind]]
        return first(found, most)


def first(found: Iterable[tuple[float, int, str]], most: int) -> dict[int, str]:
    """Of (order, segment, name) up to ``most`` segments, those of the lowest order, each with its first name."""
    chosen: dict[int, str] = {}
    for _, segment, path in sorted(found):
        if len(chosen) < most:
            chosen.setdefault(segment, path)
    return dict(sorted(chosen.items()))


def _change(before: Value, after: Value, steps: int) -> Any:
    """The kind of a change: none, a whole number's rate per step, or any other."""
    if before == after or (before != before and after != after):
        return "same"
    if steps > 0 and _whole(before) and _whole(after):
        return Fraction(int(after) - int(before), steps)
    return "changed"


def _whole(value: Value) -> bool:
    return not isinstance(value, str) and math.isfinite(value) and value == int(value) and abs(value) < 2**63


def _finite(value: Value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _sound(path: str, value: Value) -> bool:
    if isinstance(value, str):
        return False
    return value >= 0 if path.endswith("_growth_tracker") else math.isfinite(value) and value > 0


def _values(leaves: Iterable[_Leaf], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Value]]:
    """The numbers that are said, and those in tensors of one element."""
    for path, value, name in leaves:
        if value is not None:
            yield path, value
            continue
        tensor = tensors.get(name)
        if tensor is None or tensor.numel() != 1:
            continue
        if tensor.dtype.is_complex or DTYPE_NAMES.get(tensor.dtype, "").startswith("float8"):
            continue
        number = tensor.item()
        yield path, number if isinstance(number, float) else int(number)


def _names(node: Any) -> Any:
    """A tree without its values."""
    if not isinstance(node, dict):
        return type(node).__name__
    ((tag, body),) = node.items()
    if tag in ("l", "u"):
        return [tag, *map(_names, body)]
    return [tag, *([item[0], _names(item[1])] for item in body)] if tag in ("d", "c") else tag


def _digest(value: Any) -> str:
    return canonical.sha256(repr(value).encode(errors="surrogatepass"))[7:23]


def _walk(node: Any, path: str) -> Iterator[_Leaf]:
    if not isinstance(node, dict):
        yield _short(path), _digest(node), ""
        return
    ((tag, body),) = node.items()
    if tag == "t":
        yield _short(path), None, body
    elif tag == "i":
        # Digits cost time that grows with their square: what is longer than any counter is a text.
        yield _short(path), int(body) if len(body) < 24 else canonical.sha256(body.encode())[7:23], ""
    elif tag == "f":
        yield _short(path), float.fromhex(body), ""
    elif tag in ("l", "u"):
        above = _short(path)  # once, and not below each of its nodes
        for position, item in enumerate(body):
            yield from _walk(item, f"{above}/{position}")
    else:
        above = _short(path)
        for key, item in body:
            yield from _walk(item, f"{above}/{escaped(key[2:])}")
