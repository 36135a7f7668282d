"""Parsing and validating the documents of a proof, of whichever version: nobody else asks which one it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.limits import (
    MAX_ARGUMENTS,
    MAX_EVENT,
    MAX_INPUTS,
    MAX_INTERVAL,
    MAX_NAME,
    MAX_PARTS,
    MAX_RANKS,
    MAX_STEPS,
    MAX_TEXT,
)
from proof_of_learning.numeric.portable import ARITHMETICS
from proof_of_learning.proof import format, version1
from proof_of_learning.proof.format import HEADER_FILE, Event, Group, Header, Line, Program, Reload, check_digest

_RANK = re.compile(r"(.*)@([0-9]+)", re.DOTALL)
_OWN = ("module", "stateful")  # kinds of parts of which each process may have its own


class _Which(msgspec.Struct, frozen=True):
    format: str


def parse_header(raw: bytes) -> Header:
    """Decode and validate ``header.json``. Raises FormatError or IntegrityError."""
    which = canonical.lenient(raw, _Which, HEADER_FILE).format
    if which not in format.VERSIONS:
        known = " and ".join(map(repr, format.VERSIONS))
        raise FormatError(f"{HEADER_FILE} has format {which[:64]!r}; this version reads {known}")
    header = version1.header(raw) if format.VERSIONS[which] == 1 else canonical.decode(raw, Header, HEADER_FILE)
    check(header)
    return header


def parse_line(raw: bytes, header: Header) -> Line:
    """One line of the log, without its newline. Raises FormatError."""
    if header.version == 1:
        return version1.line(raw, header)
    line: Line = canonical.decode(raw, Line, "it")  # type: ignore[arg-type]
    if isinstance(line, Event):
        if len(raw) > MAX_EVENT:
            raise FormatError(f"an event has at most {MAX_EVENT:,} bytes")
        _check_event(line, header)
    return line


def check(header: Header) -> None:
    """Whether a header says what one can. Raises FormatError or IntegrityError."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise FormatError(f"{HEADER_FILE}: {message}")

    training, randomness = header.training, header.randomness
    planned = 1 if training.planned is None else training.planned
    need(
        1 <= planned <= MAX_STEPS and 1 <= training.steps_per_epoch <= MAX_STEPS, "the number of steps is out of range"
    )
    need(
        1 <= training.interval <= MAX_INTERVAL,
        f"an interval of {training.interval} is out of range; expected at least 1",
    )
    need(re.fullmatch(r"[0-9a-f]{64}", randomness.key) is not None, "the key is not 64 hex digits")
    need(
        (randomness.claim is None) == (header.claim is None)
        and (randomness.claim is None) != (randomness.seed is None),
        "the key comes from either a seed or a claim, which the header then holds",
    )
    need(randomness.anchor is None or randomness.claim is not None, "it names a timestamp of a claim, and no claim")
    need(
        (header.initialization.kind == "linked") == (header.initialization.proof is not None),
        "a linked initialization, and no other, names the proof that it starts from",
    )
    if randomness.seed is not None:
        need(
            re.fullmatch(r"0|[1-9][0-9]{0,19}", randomness.seed) is not None,
            "the seed is not a decimal integer below 2^64",
        )
        need(int(randomness.seed) < 2**64, "the seed is not below 2^64")
    digests = {
        "task digest": header.task.digest,
        "data root": header.data.root,
        "claim": randomness.claim,
        "timestamp of its claim": randomness.anchor,
        "proof to start from": header.initialization.proof,
    }
    for what, value in digests.items():
        if value is not None:
            check_digest(value, f"{HEADER_FILE}: the {what}")
    need(header.data.samples >= 1, f"the data set has {header.data.samples} samples")
    _check_program(header.program)
    need(
        header.program.kind == "task" or randomness.mode == header.initialization.kind,
        "the first state of a script's run is recorded or derived, as its order is",
    )
    need(len(header.inputs) <= MAX_INPUTS, f"it names more than {MAX_INPUTS:,} inputs")
    need(
        header.inputs == sorted(header.inputs, key=lambda item: (item.name, item.digest)), "its inputs are not in order"
    )
    for item in header.inputs:
        need(named(item.name) and item.bytes >= 0, "an input has no name of a file, or no size")
        check_digest(item.digest, f"{HEADER_FILE}: an input's digest")
    need(len(header.parts) <= MAX_PARTS and all(map(_short, header.parts)), "the parts of its states have no names")
    if header.version > 1:
        kinds = (header.parts.get("model"), header.parts.get("progress"))
        need(kinds == ("module", "progress"), "its states have no model, or do not say at which step they stand")
    _check_ranks(header, need)
    need(
        header.arithmetic in ARITHMETICS,
        f"its arithmetic is {canonical.brief(header.arithmetic)!r}; this version knows {' and '.join(map(repr, ARITHMETICS))}",
    )
    need(
        header.arithmetic == format.ARITHMETIC or (header.program.kind == "task" and randomness.mode == "derived"),
        "a script, or a loop of its own, is recorded in native arithmetic",
    )
    if header.version > 1:
        held = header.task.description.get("program")
        sealed = None if held is None else format.program_digest(canonical.encode(held))
        need(
            header.program.sealed == sealed,
            "the digest of the sealed program is not that of the one in the task's description",
        )
    if canonical.sha256(b"pol/v1/task\0", canonical.encode(header.task.description)) != header.task.digest:
        raise IntegrityError(f"{HEADER_FILE}: the task's digest is not that of its description")


def named(name: str) -> bool:
    """Whether this is the name of a file, or of a module and a function: short, printable, and no path."""
    return _short(name) and not set(name) & set("/\\") and name not in (".", "..")


def _short(name: str) -> bool:
    return 1 <= len(name) <= MAX_NAME and name.isprintable()


def _check_ranks(header: Header, need: Callable[[bool, str], None]) -> None:
    """Each process from 1 on has the same parts of its own, and only a script's run has several processes."""
    own = {name: match for name in header.parts if (match := _RANK.fullmatch(name))}
    need(
        1 <= header.ranks <= MAX_RANKS,
        f"{header.ranks} processes took part, and this version knows proofs of 1 to {MAX_RANKS}",
    )
    need(header.ranks > 1 or not own, "a part is named as another process's, but there is one")
    need(
        header.ranks == 1 or (header.program.kind == "script" and header.randomness.mode == "recorded"),
        "several processes took part, which only a script's run has whose randomness is recorded",
    )
    for name, match in own.items():
        kind = header.parts[name]
        need(
            header.parts.get(match[1]) == kind and kind in _OWN,
            f"no process has a part {canonical.brief(name)!r} of its own",
        )
    bases = {match[1] for match in own.values()}
    wanted = {f"{base}@{rank}" for base in bases for rank in range(1, header.ranks)}
    need(set(own) == wanted, "its processes have other parts of their own than each other")


def _check_program(program: Program) -> None:
    def need(condition: bool, message: str) -> None:
        if not condition:
            raise FormatError(f"{HEADER_FILE}: the program {message}")

    need(program.sealed is None or program.kind == "task", "is a script, and sealed")
    need(
        program.reference is None or named(program.reference), "has a reference that names no file, module or function"
    )
    need(
        len(program.arguments) <= MAX_ARGUMENTS and len(program.settings) <= MAX_ARGUMENTS,
        f"has more than {MAX_ARGUMENTS:,} arguments or settings",
    )
    texts: list[Any] = [*program.arguments, *program.settings, *program.settings.values()]
    need(
        all(len(text) <= MAX_TEXT for text in texts if isinstance(text, str)),
        f"has an argument or setting of more than {MAX_TEXT:,} characters",
    )


def _check_event(line: Event, header: Header) -> None:
    event = line.event
    if isinstance(event, Reload):
        if not event.parts or event.parts != sorted(set(event.parts)) or not set(event.parts) <= set(header.parts):
            raise FormatError("it sets back parts that no state has, or names them out of order")
        if (event.step is None) == (event.input is None):
            raise FormatError("a reload is from an earlier step or from an input, and says which")
        if event.step is not None and not 0 <= event.step <= line.step:
            raise FormatError("it sets parts back to a step that was not taken")
        for digest in (event.state, event.input):
            if digest is not None:
                check_digest(digest, "a digest in the log")
    elif isinstance(event, Group):
        if header.parts.get(event.part) != "optimizer":
            raise FormatError("it adds a parameter group to what is no optimizer")
        if not (1 <= event.group <= MAX_STEPS and 1 <= event.parameters <= MAX_STEPS):
            raise FormatError("a parameter group has a number from 1 on, and parameters")
