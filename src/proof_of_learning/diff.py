"""Where two proofs part, and by how much: read, never replayed, never judged."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import measure
from proof_of_learning.replay.measure import Distance, TensorError

MOST = 10  # differences, and tensors, that are named
_FEW = 71  # characters of a value: a digest is whole
_ABSENT = "–"


class Said(msgspec.Struct, frozen=True):
    """One thing that the two proofs say differently, under its name in the header or the log."""

    name: str
    first: str
    second: str


class Apart(msgspec.Struct, frozen=True):
    """How far two states of the same step are apart.

    step: after how many steps. overall, kinds: distances, of everything and by kind of state. relative: the l2 distance over what
    the first proof's segment moved (null at step 0). tensors: the most distant ones, by their share of their own movement.
    unequal: what must be equal and is not. comparable: False where the states hold other tensors, and nothing can be measured.
    """

    step: int
    comparable: bool
    overall: Distance | None = None
    kinds: dict[str, Distance] = {}
    relative: float | None = None
    tensors: dict[str, TensorError] = {}
    unequal: list[str] = []


class Diff(msgspec.Struct, frozen=True):
    """What :func:`diff` found.

    same: the roots are equal, so that everything is. said: what header and last line say differently (the first ``most``). others:
    how many more there are. steps: taken by each. states: how many of the first states are equal. parted: the first step (from 0)
    whose recorded loss, rates, batch or generators differ, and which of them; null where none does. state: the first state that
    differs, or null where bytes or a common step are missing. final: the two last states.
    """

    first: str
    second: str
    same: bool
    said: list[Said]
    others: int
    steps: tuple[int, int]
    states: int
    parted: int | None
    columns: list[str]
    state: Apart | None
    final: Apart | None
    same_weights: bool
    schema: str = "pol/diff/v1"


def diff(first: Proof, second: Proof, progress: ProgressCallback = silent, *, most: int | None = MOST) -> Diff:
    """Compare two proofs: what they say, the first step at which their columns differ, the first state, and the last.

    most: how many of the things that they say differently are named; None: all.

    Raises IntegrityError or FormatError where a state or a block is not what the log says.
    """
    said = list(_said(first, second))
    same = first.root == second.root
    parted, columns = (None, []) if same else _columns(first, second, progress)
    states = _common(first, second)
    return Diff(
        first=first.root,
        second=second.root,
        same=same,
        said=said[:most],
        others=0 if most is None else max(0, len(said) - most),
        steps=(first.steps, second.steps),
        states=len(states) if same else next((i for i, (a, b) in enumerate(states) if a != b), len(states)),
        parted=parted,
        columns=columns,
        state=None if same else _first_state(first, second, states),
        final=None if same else _final(first, second),
        same_weights=first.end.final_weights == second.end.final_weights,
    )


def _said(first: Proof, second: Proof) -> Iterator[Said]:
    """What the headers and the last lines say differently, leaf by leaf."""
    pairs: deque[tuple[Any, Any, str]] = deque([(_document(first), _document(second), "")])
    while pairs:
        a, b, at = pairs.popleft()
        if isinstance(a, dict) and isinstance(b, dict):
            pairs += [(a.get(k, _ABSENT), b.get(k, _ABSENT), f"{at}.{k}" if at else k) for k in sorted({*a, *b})]
        elif a != b:
            yield Said(at, _brief(a), _brief(b))


def _document(proof: Proof) -> dict[str, Any]:
    header = msgspec.to_builtins(proof.header)
    environments = {name: msgspec.to_builtins(env) for name, env in proof.environments.items()}
    end = msgspec.to_builtins(proof.end)
    end.pop("prev", None)
    return {**header, "environment": next(iter(environments.values()), None), "end": end}


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _FEW else text[: _FEW - 1] + "…"


def _columns(first: Proof, second: Proof, progress: ProgressCallback) -> tuple[int | None, list[str]]:
    """The first step whose columns differ, and the names of those that do."""
    common = min(first.steps, second.steps)
    for step, (a, b) in enumerate(zip(_rows(first), _rows(second), strict=False)):
        if step % 256 == 0:
            progress("comparing steps", step, common)
        names = [name for name in a if name in b and not np.array_equal(a[name], b[name], equal_nan=name == "loss")]
        if names:
            progress("comparing steps", common, common)
            return step, names
    progress("comparing steps", common, common)
    return None, []


def _rows(proof: Proof) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    for columns in proof.all_columns():
        for at in range(len(columns)):
            yield _row(columns, at)


def _row(columns: Columns, at: int) -> dict[str, np.ndarray[Any, Any]]:
    row: dict[str, np.ndarray[Any, Any]] = {"loss": columns.loss[at], "learning rates": columns.rates[at]}
    if columns.indices is not None:
        row["batch"] = np.concatenate(
            [columns.indices[at], *(s.indices[at] for s in columns.ranks if s.indices is not None)]
        )
    if columns.rng is not None:
        snapshots = [columns.rng[at], *(share.rng[at] for share in columns.ranks if share.rng is not None)]
        states = [(s.states[name].tobytes()) for s in snapshots for name in sorted(s.states)]
        row["generators"] = np.concatenate([np.frombuffer(raw, np.uint8) for raw in states])
    return row


def _common(first: Proof, second: Proof) -> list[tuple[str, str]]:
    """Digests of the states after the same number of steps, from the start."""
    ends = [{0: proof.initial_state, **{s.stop: s.state for s in proof.segments}} for proof in (first, second)]
    return [(digest, ends[1][stop]) for stop, digest in ends[0].items() if stop in ends[1]]


def _first_state(first: Proof, second: Proof, states: list[tuple[str, str]]) -> Apart | None:
    at = next(((a, b) for a, b in states if a != b), None)
    return None if at is None else _apart(first, second, *at)


def _final(first: Proof, second: Proof) -> Apart | None:
    return _apart(first, second, first.segments[-1].state, second.segments[-1].state)


def _apart(first: Proof, second: Proof, a: str, b: str) -> Apart | None:
    """None where one of the two no longer holds the state."""
    if not (first.has_state(a) and second.has_state(b)):
        return None
    left, right = first.state(a), second.state(b)
    position = first.state_digests().index(a)
    step = first.segments[position - 1].stop if position else 0
    if {n: t.shape for n, t in left.tensors.items()} != {n: t.shape for n, t in right.tensors.items()}:
        return Apart(step, comparable=False)
    found = measure.compare(left, right)
    relative, tensors = None, dict[str, TensorError]()
    before = first.state_digests()[position - 1] if position else None
    if before is not None and first.has_state(before):
        start = first.state(before)
        relative = measure.ratio(found.overall.l2, measure.compare(start, left).overall.l2)
        errors = measure.detail(left, right, start, None).tensors
        ranked = sorted((name for name in errors if errors[name].error), key=lambda name: -_share(errors[name]))
        tensors = {name: errors[name] for name in ranked[:MOST]}
    return Apart(step, True, found.overall, found.kinds, relative, tensors, found.unequal[:MOST])


def _share(error: TensorError) -> float:
    share = measure.ratio(error.error, error.span)
    return math.inf if math.isnan(share) else share
