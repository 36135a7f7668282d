"""Log heads: statements that a run had come as far as some line of its log, stamped while it trains (docs/adr/0040).

The log is a hash chain, so one line stands for all before it; whether a head is a beginning of the log that is here, whoever has the
log computes from it alone. Each head contains the token before it, so their order does not rest on clocks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proof_of_learning.attestation.attested import SKEW, Stamp, Stretch
from proof_of_learning.limits import MAX_LINE, MAX_LOG
from proof_of_learning.proof import files, format


@dataclass(frozen=True)
class Head:
    """A head that is a beginning of the log: its file, the steps that were taken by then, and SHA-256 (hex) of the token before."""

    file: str
    steps: int
    previous: str | None


class _Line(msgspec.Struct):
    stop: int


def of_log(folder: Path, version: int = format.VERSION) -> dict[str, int]:
    """Digests of the log's segment lines, with the steps that were taken by then. The log was checked, or is one's own."""
    found: dict[str, int] = {}
    decoder = msgspec.json.Decoder(_Line)
    for raw in files.iterate_lines(folder / format.LOG_FILE, MAX_LOG, MAX_LINE):
        if b'"kind":"segment"' in raw and raw.endswith(b"\n"):
            found[format.line_digest(raw[:-1], version)] = decoder.decode(raw).stop
    return found


def contained(name: str, below: Mapping[str, str]) -> Iterator[str]:
    """The files that ``name`` contains, nearest first: what a token stamps, and the token that a head names. ``below``: by file, the
    one that it contains; hashes make no circles.
    """
    while (found := below.get(name)) is not None:
        yield found
        name = found


def broken(
    heads: Mapping[str, Head], stamps: Sequence[Stamp], below: Mapping[str, str], tokens: Mapping[str, str]
) -> list[str]:
    """What is false of the heads' chain, a line each. tokens: by file, the statement that a token dates; empty: not here."""
    found: list[str] = []
    claims = {stamp.about for stamp in stamps if stamp.kind == "claim"}
    for head in heads.values():
        if head.previous is None:
            continue
        before = below.get(head.file)
        if before is None or before not in tokens:
            found.append(
                f"{head.file} contains a timestamp that is not here ({head.previous[:16]}…): the chain of heads is broken"
            )
            continue
        about = tokens[before]
        if about not in claims and not (about in heads and heads[about].steps < head.steps):
            found.append(
                f"{head.file} follows {before}, which is neither on an earlier head of this log nor on its claim: heads were reordered"
            )
    dated = {stamp.file: stamp for stamp in stamps if not stamp.refused}
    for stamp in dated.values():
        if stamp.about not in heads:
            continue
        earlier = next(
            (
                dated[name]
                for name in contained(stamp.file, below)
                if name in dated and stamp.latest + SKEW < dated[name].earliest
            ),
            None,
        )
        if earlier is not None:
            found.append(
                f"{stamp.file} says a time before that of {earlier.file}, which it contains: one of the two authorities is wrong"
            )
    return found


def stretches(heads: Mapping[str, Head], stamps: Sequence[Stamp], steps: int) -> list[Stretch]:
    """By when which steps of a run of ``steps`` had been taken, in order; the last without a date where none follows.

    What has no stamp of its own has the date of the next one, for that contains it. Stamps that nobody can tell apart by their times
    count as one: the last of them.
    """
    dated: dict[int, Stamp] = {}
    for stamp in stamps:
        at = heads[stamp.about].steps if stamp.about in heads else steps if stamp.kind == "seal" else 0
        if at and not stamp.refused and (at not in dated or stamp.latest < dated[at].latest):
            dated[at] = stamp
    kept: list[int] = []
    for at in sorted(dated, reverse=True):
        if not kept or _apart(dated[at], dated[kept[-1]]):
            kept.append(at)
    found, start = list[Stretch](), 0
    for stop in reversed(kept):
        stamp, count = dated[stop], sum(start < at <= stop for at in dated)
        found.append(Stretch(start, stop, stamp.earliest, stamp.latest, count))
        start = stop
    if found and start < steps:
        found.append(Stretch(start, steps, None, None, 0))
    return found


def _apart(one: Stamp, other: Stamp) -> bool:
    """Whether ``one`` was before ``other`` beyond the accuracies, and beyond what two clocks may differ by."""
    skew = datetime.timedelta() if one.authority == other.authority else SKEW
    return one.latest + skew < other.earliest
