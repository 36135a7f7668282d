"""Gaps: stretches of a recording in which no timestamp authority answered, as the recorder notes them beside the proof.

They are the prover's word, explain what was not stamped, and count for nothing: what is not stamped shows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_GAPS, MAX_QUOTED

SCHEMA = "pol/gaps/v1"


class Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """after: the steps up to which the log was stamped when it began; until: up to which it was when it ended, None where it did not.

    since: when (RFC 3339, UTC), by the recorder's clock. tries: how many in vain. why: of the last one, without an address's query.
    """

    after: int
    since: str
    tries: int
    why: str
    until: int | None = None


class _Gaps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    gaps: list[Gap]


def line(gap: Gap) -> str:
    """A gap in words."""
    until = "" if gap.until is None else f" until step {gap.until:,}"
    return f"after step {gap.after:,}{until}, from {canonical.brief(gap.since)}: {canonical.brief(gap.why)}"


def encode(gaps: Sequence[Gap]) -> bytes:
    return canonical.encode(_Gaps(SCHEMA, list(gaps)[-MAX_GAPS:]))


def read(raw: bytes, what: str) -> list[Gap]:
    """Raises FormatError for anything else than a list of gaps."""
    found = canonical.decode(raw, _Gaps, what)
    if found.schema != SCHEMA or len(found.gaps) > MAX_GAPS:
        raise FormatError(f"{what} is no list of at most {MAX_GAPS:,} gaps ({SCHEMA})")
    if any(
        len(gap.why) > MAX_QUOTED + 1 or len(gap.since) > MAX_QUOTED or min(gap.after, gap.tries) < 0
        for gap in found.gaps
    ):
        raise FormatError(f"{what} has a gap whose words are too long, or whose numbers are out of range")
    return found.gaps
