"""Which variables of a loop count: those that are read behind the place where it stands before they are written there.

Liveness over the bytecode of each of the caller's functions. Which values a called function reads is not looked at here: it is a
variable itself, and what it uses is found by looking into it (:mod:`holdings`).
"""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from proof_of_learning.rehearsal.holdings import LIBRARIES

_READS = ("LOAD_FAST", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE", "LOAD_FROM_DICT")
_WRITES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF", "DELETE_")
_ENDS = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE")
_JUMPS = ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")
_ADDING = ("append", "extend", "write")  # methods by which something is noted down
# What shows, writes down or fetches, and decides nothing.
_BYSTANDERS = ("tqdm", "rich", "logging", "wandb", "torch.utils.tensorboard", "torch.utils.data", "proof_of_learning")


def callers() -> Iterator[types.FrameType]:
    """The frames of the user's own code that called us, the innermost first."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "proof_of_learning.run.script":  # which runs the script: what lies further out is ours
            return
        file = frame.f_code.co_filename
        if name.split(".")[0] != "proof_of_learning" and not file.startswith((*LIBRARIES, "<frozen")):
            yield frame
        frame = frame.f_back


def values(frame: types.FrameType, names: Iterable[str]) -> dict[str, Any]:
    """What names stand for in a frame; without those that are not bound, or bound to something that decides nothing."""
    held = frame.f_locals
    found = {name: held.get(name, frame.f_globals.get(name)) for name in names}
    if isinstance(held, dict) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        held.clear()  # a copy that Python would keep with the frame, and so all that its variables held now
    return {name: thing for name, thing in found.items() if thing is not None and not _bystander(thing)}


def _bystander(thing: Any) -> bool:
    module = str(type(thing).__module__ or "")
    return isinstance(thing, types.ModuleType) or any(module == b or module.startswith(f"{b}.") for b in _BYSTANDERS)


def live(code: types.CodeType, at: int) -> frozenset[str]:
    """The names that are read before they are written from the instruction at offset ``at`` on, which gives a value: of a loop, its
    next round begins.
    """
    instructions = list(dis.get_instructions(code))
    places = {instruction.offset: number for number, instruction in enumerate(instructions)}
    after: list[list[int]] = []
    for number, one in enumerate(instructions):
        following = [number + 1] if one.opname not in (*_ENDS, *_JUMPS) and number + 1 < len(instructions) else []
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            following.append(places[one.argval])
        after.append(following)
    needed: list[frozenset[str]] = [frozenset()] * len(instructions)
    changed = True
    while changed:
        changed = False
        for number in range(len(instructions) - 1, -1, -1):
            one = instructions[number]
            names = frozenset().union(*(needed[n] for n in after[number]))
            written = number + 1 < len(instructions) and instructions[number + 1].argval in _ADDING
            for does, name in [] if written else reversed(_uses(one)):
                names = names - {name} if does == "write" else names | {name}
            if names != needed[number]:
                needed[number], changed = names, True
    here = places[max(offset for offset in places if offset <= at)]
    if instructions[here].opname == "FOR_ITER":  # the loop goes on: what stands behind it counts, but not at once
        return needed[here + 1]
    return frozenset().union(*(needed[n] for n in after[here]))


def _uses(one: dis.Instruction) -> list[tuple[str, str]]:
    """What an instruction does to names, in its order; from Python 3.13 on one may do two things (`STORE_FAST_LOAD_FAST`)."""
    if not one.opname.startswith((*_READS, *_WRITES)):
        return []
    names = [one.argval] if isinstance(one.argval, str) else list(one.argval)
    kinds = ["write" if one.opname.startswith(_WRITES) else "read"] * len(names)
    if one.opname == "STORE_FAST_LOAD_FAST":
        kinds = ["write", "read"]
    return list(zip(kinds, names, strict=True))
