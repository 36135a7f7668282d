"""A dispute as a value: who shows what about a model. A table, and no ranking. Terminal, JSON and HTML only render it."""

from __future__ import annotations

import datetime
from typing import Literal

import msgspec

from proof_of_learning._version import __version__
from proof_of_learning.disputes.likeness import UNDECIDED, Likeness
from proof_of_learning.disputes.starts import Rank
from proof_of_learning.verifier.verdict import Moment, Nonce, Verdict

SCHEMA = "pol/dispute/v1"

Outcome = Literal["shown", "none", "undecided"]
EXIT_STATUS: dict[Outcome, int] = {"shown": 0, "none": 1, "undecided": 3}
Starts = Literal["equal", "alike", "different", "unknown"]


class Row(msgspec.Struct, frozen=True):
    """What one proof shows.

    label: a letter, by which the table names it. proof, task: as the verifier named them. verdict: of the same verification as
    ``pol verify``'s. owners: digests of the keys that its claim names. unregistered: why its claim does not count as made before
    training; empty where it does. end: what the disputed model is to the proof's final one. finished: the earliest trusted timestamp
    on the final state, null where there is none or the proof is not valid. rank: of the disputed model against the run's own start.
    """

    label: str
    proof: str
    task: str | None
    verdict: Verdict
    owners: list[str]
    unregistered: str
    end: Likeness
    finished: Moment | None
    rank: Rank

    @property
    def holds(self) -> bool:
        """Whether it shows the disputed model: a valid proof that ends in it, bit for bit."""
        return self.verdict.verdict == "valid" and self.end.kind == "exact"

    @property
    def out(self) -> bool:
        """Whether it is known not to show the disputed model."""
        return self.verdict.verdict == "invalid" or not (self.end.kind == "exact" or self.end.kind in UNDECIDED)


class Dependence(msgspec.Struct, frozen=True):
    """What two models have in common: the ends of two proofs, or one and the disputed model (``model``).

    starts: where both runs began. same_bits: whether their ends are equal. score: the mean cosine of matched hidden units, from 0
    (as for independent draws, ``reference``) to 1 (the same units); null, with why, where it does not apply. order_p: probability of
    as much in common, unit by unit, between independent models. correlation: of the weights as they stand. summary: in words.
    """

    first: str
    second: str
    starts: Starts
    same_bits: bool
    summary: str
    score: float | None = None
    reference: float | None = None
    order_p: float | None = None
    correlation: float | None = None
    why: str = ""


class Named(msgspec.Struct, frozen=True):
    """The disputed model: where it was read, its files' SHA-256 by name, its tensors and the elements of those of floating point."""

    path: str
    files: dict[str, str]
    tensors: int
    parameters: int


class Dispute(msgspec.Struct, frozen=True):
    """Who shows what about a model (JSON schema ``pol/dispute/v1``).

    outcome: ``shown`` (exactly one proof is valid and ends in the model, bit for bit, and no other may), ``none`` (each is invalid
    or ends elsewhere), ``undecided``. exit_status: 0, 1, 3. nonce: drawn when all roots were known, and the same for all. reason:
    why that outcome. findings: what else the table comes to, in words.
    """

    model: Named
    nonce: Nonce
    proofs: list[Row]
    dependence: list[Dependence]
    outcome: Outcome
    reason: str
    findings: list[str]
    rules: str = __version__
    schema: str = SCHEMA

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.outcome]

    def to_json(self) -> bytes:
        """Indented JSON; non-finite numbers are null."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def decide(rows: list[Row]) -> tuple[Outcome, str]:
    """The outcome, and why. Only bits decide: near is never equal."""
    holding = [row for row in rows if row.holds]
    open_ = [row for row in rows if not row.out and not row.holds]
    if len(holding) == 1 and not open_:
        others = "" if len(rows) == 1 else "; each of the others is invalid or ends elsewhere"
        return "shown", f"proof {holding[0].label} is valid and ends in the model, bit for bit{others}"
    if not holding and not open_:
        return "none", "no proof shows the model: each is invalid or ends in another one"
    if len(holding) > 1:
        return "undecided", f"proofs {listed(holding)} are valid, and each ends in the model, bit for bit"
    said = "; ".join(_open(row) for row in open_)
    return "undecided", f"proof {holding[0].label} is valid and ends in the model, but {said}" if holding else said


def _open(row: Row) -> str:
    if row.verdict.verdict == "inconclusive" and row.end.kind == "exact":
        return f"proof {row.label} ends in the model, and whether it is valid could not be found out"
    if row.end.kind == "missing":
        return f"what proof {row.label} ends in could not be compared ({row.end.summary})"
    near = "has something in common with" if row.end.kind in ("start", "related") else "is near"
    whether = "" if row.verdict.verdict == "valid" else ", and it is inconclusive"
    return f"the end of proof {row.label} {near} the model, and near is not equal{whether}"


def listed(rows: list[Row]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    labels = [row.label for row in rows]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def span(moment: Moment) -> tuple[datetime.datetime, datetime.datetime]:
    """The interval that a timestamp stands for."""
    first, last = (
        datetime.datetime.fromisoformat(when.replace("Z", "+00:00")) for when in (moment.earliest, moment.latest)
    )
    return first, last
