"""What a state has to fit: the parameters of modules and the groups of optimizers, as the task's factories build them.

A state whose structure training has changed fits no freshly built task, so that nothing can be replayed from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proof_of_learning.canonical import brief
from proof_of_learning.rehearsal.causes import Finding
from proof_of_learning.state.state import Node, State

Structure = dict[str, tuple[str, list[str]]]


def structure(state: State) -> Structure:
    """By part, what it is (``parameters``, ``groups``) and the names of its parameters, or the groups that it was built with."""
    found: Structure = {}
    for key, node in state.tree["d"]:
        entries = dict(node["d"]) if isinstance(node, dict) and "d" in node else {}
        if "s:parameters" in entries and "s:frozen" in entries:
            found[key[2:]] = "parameters", [name[2:] for name, _ in entries["s:parameters"]["d"]]
        elif "s:groups" in entries and "s:state" in entries:
            groups = entries["s:groups"]["l"]
            found[key[2:]] = "groups", [_members(group) for group in groups[: len(groups) - _added(entries)]]
    return found


def grown(before: State, after: State) -> str | None:
    """The first optimizer that was given a further group between two states."""
    held, holds = (
        {key[2:]: _added(dict(n["d"])) for key, n in s.tree["d"] if "d" in (n or ())} for s in (before, after)
    )
    return next((name for name, count in holds.items() if count > held.get(name, 0)), None)


def _added(entries: Mapping[str, Node]) -> int:
    return len(entries["s:added"]["l"]) if "s:added" in entries and "s:groups" in entries else 0


def _members(group: Node) -> str:
    return repr(dict(group["d"]).get("s:params"))


def altered(built: Structure, now: Structure, step: int) -> Finding | None:
    """What training has changed of the structure before ``step``."""
    for name, (kind, before) in built.items():
        after = now.get(name, (kind, before))[1]
        if after == before:
            continue
        if kind == "parameters":
            gone, new = _without(before, after), _without(after, before)
            return Finding(
                f"part {name!r} has other parameters than it was built with, so that nothing can be replayed from its state",
                "; ".join([*(f"{brief(n)!r} is gone" for n in gone[:2]), *(f"{brief(n)!r} is new" for n in new[:2])])
                + f"; before step {step}",
                "pruning, a parametrization, or a layer that was exchanged in mid-run",
                "do it in the task's `model` factory (pruning: with a mask of ones, and change the mask, which is a buffer, later)",
            )
        return regrouped(name, len(before), len(after), step)
    return None


def unrepeated(name: str, start: int, stop: int) -> Finding:
    """An optimizer was given a group during steps ``start`` to ``stop`` of which a replay arrives elsewhere."""
    return Finding(
        f"{name!r} was given a further parameter group by something that a replay does not do",
        f"a replay of steps {start} to {stop} from their recorded state alone arrives elsewhere",
        "it is added outside of what a verifier runs (in a callback, an evaluation, a loop that the task only describes), at a moment "
        "that no recorded state decides, or its parameters have gradients left from before, which requires_grad_(False) prevents",
        "add it in the task's own `step` or scheduler, at a step that the state tells (context.step), or give the optimizer all its "
        "groups when it is built and unfreeze with requires_grad_(True), which is recorded",
    )


def regrouped(name: str, before: int, after: int, step: int) -> Finding:
    """An optimizer that has other groups before ``step`` than it was built with; how many then and now."""
    return Finding(
        f"{name!r} has other parameter groups than it was built with, so that nothing can be replayed from its state",
        f"{before} when it was built, {after} before step {step}",
        "a group was added or changed in mid-run, as on unfreezing",
        "give the optimizer all its groups when it is built, and unfreeze with requires_grad_(True), which is recorded; "
        "parameters without a gradient are left alone",
    )


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]
