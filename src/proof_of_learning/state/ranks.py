"""The state of several processes that train together: what all hold alike once, and of each what is its own.

Alike are parameters, optimizers, schedulers, scalers and the place in the run. A process has its own buffers and extra state of
modules, and its own objects that are known by ``state_dict()`` alone. Those of process r, from 1 on, are parts ``NAME@r``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.state.names import escaped
from proof_of_learning.state.parts import Kind
from proof_of_learning.state.state import Node, State, tree_tensors

_OWN = ("buffers", "extra")  # of a module
_NAMED = re.compile(r"(.*)@([0-9]+)", re.DOTALL)


def kinds(parts: Mapping[str, Kind], ranks: int, alike: Collection[str] = ()) -> dict[str, Kind]:
    """The parts of a state of so many processes. ``alike``: parts that are the same in all of them, whatever their kind."""
    own = {name: kind for name, kind in parts.items() if _has_own(name, kind, alike)}
    return {**parts, **{f"{name}@{rank}": kind for rank in range(1, ranks) for name, kind in own.items()}}


def divided(state: State, parts: Mapping[str, Kind], alike: Collection[str] = ()) -> tuple[State, State]:
    """What all processes hold alike of a state, and what is this one's own."""
    common: list[Node] = []
    own: list[Node] = []
    for key, node in state.tree["d"]:
        kind = parts[key[2:]]
        if not _has_own(key[2:], kind, alike):
            common.append([key, node])
        elif kind == "module":
            common.append([key, {"d": [item for item in node["d"] if item[0][2:] not in _OWN]}])
            own.append([key, {"d": [item for item in node["d"] if item[0][2:] in _OWN]}])
        else:
            own.append([key, node])
    return _part(state, common), _part(state, own)


def of_all(first: State, others: Sequence[State]) -> State:
    """The state of all processes: that of process 0, and what each further one has of its own, in order."""
    items, tensors = list(first.tree["d"]), dict(first.tensors)
    digests = {name: first._digests[name] for name in tensors if name in first._digests}
    for rank, own in enumerate(others, 1):
        for key, node in own.tree["d"]:
            name = key[2:]
            items.append([f"{key}@{rank}", _renamed(node, escaped(name), escaped(f"{name}@{rank}"))])
            for tensor in tree_tensors({"d": [[key, node]]}):
                tensors[_moved(tensor, escaped(name), escaped(f"{name}@{rank}"))] = own.tensors[tensor]
    return State({"d": sorted(items, key=lambda item: str(item[0]))}, tensors, digests, live=True)


def of_rank(state: State, rank: int) -> State:
    """The state of one process, from that of all. FormatError where it is none of several."""
    plain, own = list[Node](), dict[str, tuple[str, Node]]()
    for key, node in state.tree["d"]:
        match = _NAMED.fullmatch(key[2:])
        if match is None:
            plain.append([key, node])
        elif match[2] == str(rank):
            own[match[1]] = (key[2:], node)
    if rank and not own:
        raise FormatError(f"the state holds nothing of process {rank}")
    items, tensors = list[Node](), dict[str, Any]()
    for key, node in plain:
        held = node
        if key[2:] in own:
            name, of_own = own.pop(key[2:])
            old, new = escaped(name), escaped(key[2:])
            tensors |= {_moved(n, old, new): state.tensors[n] for n in tree_tensors({"d": [[f"s:{name}", of_own]]})}
            check_own(name, of_own, node)
            of_own = _renamed(of_own, old, new)
            entries = {item[0] for item in node.get("d", ())} if isinstance(node, dict) else set()
            if "s:parameters" in entries:  # a module: the parameters are process 0's
                kept = [item for item in node["d"] if item[0][2:] not in _OWN]
                held = {"d": sorted([*kept, *of_own.get("d", ())], key=lambda item: str(item[0]))}
            else:
                held = of_own
        items.append([key, held])
    tree = {"d": items}
    for name in tree_tensors(tree):
        tensors.setdefault(name, state.tensors[name])
    return State(tree, tensors, live=state.live)


def check_own(name: str, own: Node, first: Node) -> None:
    """Whether a further process's part is one that it may have of its own beside process 0's. Raises FormatError."""
    entries = {item[0] for item in first.get("d", ())} if isinstance(first, dict) else set()
    held = own.get("d") if isinstance(own, dict) else None
    if "s:parameters" in entries and (held is None or not {item[0][2:] for item in held} <= set(_OWN)):
        raise FormatError(f"a process has parameters of its own in its part {name[:40]!r}")


def manifest(state: State) -> dict[str, str]:
    """Digests of each tensor, and of what else there is under the name ``""``: what two processes compare."""
    return {
        "": canonical.sha256(canonical.encode_plain(state.tree)),
        **{n: state.tensor_digest(n) for n in state.tensors},
    }


def of_process(part: str) -> tuple[str, int]:
    """A part without the number of the process whose own it is, and that number; 0 where it has none."""
    match = _NAMED.fullmatch(part)
    return (part, 0) if match is None else (match[1], int(match[2]))


def mean(losses: Sequence[float]) -> float:
    """The loss of a step of several processes: the mean of theirs, in their order."""
    return sum(losses[1:], losses[0]) / len(losses)


def _has_own(name: str, kind: Kind, alike: Collection[str]) -> bool:
    return kind in ("module", "stateful") and name not in alike


def _part(state: State, items: list[Node]) -> State:
    names = tree_tensors({"d": items})
    digests = {name: state._digests[name] for name in names if name in state._digests}
    return State({"d": items}, {name: state.tensors[name] for name in names}, digests, state.live)


def _moved(name: str, old: str, new: str) -> str:
    return new + name[len(old) :]


def _renamed(node: Node, old: str, new: str) -> Node:
    """A part's tree with its tensors under another part's name."""
    if not isinstance(node, dict):
        return node
    ((tag, body),) = node.items()
    if tag == "t":
        return {"t": _moved(body, old, new)}
    if tag in ("l", "u"):
        return {tag: [_renamed(item, old, new) for item in body]}
    if tag in ("d", "c"):
        return {tag: [[key, _renamed(item, old, new)] for key, item in body]}
    return node
