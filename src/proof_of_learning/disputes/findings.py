"""What a table of proofs comes to, in sentences: copies, dates, and what follows from neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import combinations, pairwise

from proof_of_learning.attestation.attested import SKEW
from proof_of_learning.disputes.table import Dependence, Row, listed, span
from proof_of_learning.proof.reader import Proof
from proof_of_learning.registration import owners
from proof_of_learning.verifier.verdict import Moment, Verdict


def finished(verdict: Verdict, proof: Proof) -> Moment | None:
    """The earliest trusted timestamp on the final state of a valid proof: on the seal, or on the log's line of the last segment."""
    if verdict.verdict != "valid":
        return None
    good = [moment for moment in verdict.timeline if moment.trusted and _is_final(moment, proof)]
    return min(good, key=lambda moment: span(moment)[1], default=None)


def findings(rows: Sequence[Row], proofs: Mapping[str, Proof], common: Sequence[Dependence]) -> list[str]:
    """``proofs``: those that can be read, by label. ``common``: what their models have in common."""
    found = [*_copies(rows, proofs), *_starts(proofs, common), *_dates(rows)]
    for row in rows:
        if row.verdict.verdict != "valid" and any(moment.trusted for moment in row.verdict.timeline):
            found.append(f"{row.label} is {row.verdict.verdict}: its timestamps rank nothing.")
        if row.holds and row.unregistered:
            found.append(
                f"{row.label} is not registered ({row.unregistered}). That makes nobody a thief: owners need not register."
            )
        if row.holds and not row.verdict.signers:
            found.append(f"Nobody signed {row.label}: whoever has a copy of it could have handed it in.")
    return found


def _is_final(moment: Moment, proof: Proof) -> bool:
    if moment.what != "head":
        return moment.what == "seal"
    from proof_of_learning.attestation import gathering

    raw = proof.attestations.get(moment.stamps)
    if raw is None:
        return False
    (file,) = gathering.files_of({moment.stamps: raw})
    return bool(gathering.read_statement(file)[0].predicate.get("steps") == proof.steps)


def _by_claim(proof: Proof) -> str:
    """Whose a proof is, by its own word."""
    if owners(proof.header):
        return "The owners that its claim names are its owners, by its own word."
    if proof.header.claim is not None:
        return "Its claim names no owner."
    return "It was made under no claim, so that nothing in it names an owner."


def _copies(rows: Sequence[Row], proofs: Mapping[str, Proof]) -> Iterator[str]:
    for one, other in combinations([row for row in rows if row.label in proofs], 2):
        a, b = proofs[one.label], proofs[other.label]
        both = f"{one.label} and {other.label}"
        if a.root == b.root:
            yield (
                f"{both} are the same proof (equal roots), handed in twice. A signature does not tell who made it first: "
                f"whoever has a copy can sign it. {_by_claim(a)}"
            )
            continue
        if a.header.initialization.proof == b.root or b.header.initialization.proof == a.root:
            later, earlier = (one, other) if a.header.initialization.proof == b.root else (other, one)
            yield f"The training of {later.label} starts from where {earlier.label} ends (a chain of trust)."
        same = set(a.state_digests()[1:]) & set(b.state_digests()[1:])
        if a.end.final_weights != b.end.final_weights and not same:
            continue
        what = (
            "end in equal bits"
            if a.end.final_weights == b.end.final_weights
            else f"have {len(same):,} states in common"
        )
        first, second = a.header.randomness, b.header.randomness
        if first.key == second.key and first.claim is not None and first.claim == second.claim:
            yield f"{both} {what}, under one and the same claim: the owners that it names are the same for both, by its own word."
            continue
        if first.key == second.key:
            yield (
                f"{both} {what}, under the same key: whoever runs this task under that key gets these bits, so that this shows no "
                "copying, and does not exclude it."
            )
            continue
        under = "claims" if first.claim and second.claim else "keys"
        yield f"{both} {what} under different {under}, to which no two trainings lead: one was copied from the other."
        derived = [
            row for row in (one, other) if row.verdict.verdict == "valid" and row.verdict.randomness == "derived"
        ]
        if len(derived) == 1:
            row = derived[0]
            rest = other if row is one else one
            yield (
                f"All randomness of {row.label} follows from its key, and it is valid: nobody could have made a key lead to bits "
                f"that were there before. {rest.label} is not of that kind, and can be a copy of {row.label}."
            )


def _starts(proofs: Mapping[str, Proof], common: Sequence[Dependence]) -> Iterator[str]:
    """Starts that have something in common, although each should have been drawn under a key of its own."""
    for pair in common:
        if (
            pair.first not in proofs
            or pair.second not in proofs
            or pair.starts not in ("equal", "alike")
            or pair.same_bits
        ):
            continue
        headers = [proofs[label].header for label in (pair.first, pair.second)]
        if headers[0].randomness.key == headers[1].randomness.key or any(
            h.initialization.kind == "linked" for h in headers
        ):
            continue
        how = (
            "are the same bits"
            if pair.starts == "equal"
            else "are not independent (their hidden units are the same ones)"
        )
        yield (
            f"The starts of {pair.first} and {pair.second} {how}, although their keys differ: one was made from the other, or both "
            "from a third."
        )


def _dates(rows: Sequence[Row]) -> Iterator[str]:
    """The order of finished work, among valid proofs that end in the model; and what does not rank."""
    holding = [row for row in rows if row.holds]
    dated = sorted((row for row in holding if row.finished), key=lambda row: _finished(row)[1])
    for one, other in pairwise(dated):
        if one.verdict.proof.root == other.verdict.proof.root:
            yield f"Dates on {one.label} and {other.label} are dates of one and the same proof: they do not rank who hands it in."
        elif _finished(one)[1] + SKEW < _finished(other)[0]:
            yield (
                f"The final state of {one.label} is shown to have been there by {_when(one)}, that of {other.label} only by "
                f"{_when(other)}. Of proofs that hold, the earliest date on finished work counts; it does not exclude that the "
                "other was there before, unstamped."
            )
        else:
            yield f"The dates of the final states of {one.label} and {other.label} are too near to each other to be told apart."
    undated = [row for row in holding if not row.finished]
    if len(holding) > 1 and undated:
        yield f"No timestamp that you trust is on the final state of {listed(undated)}: nothing shows when it was there."
    for row in rows:
        early = [m for m in row.verdict.timeline if m.trusted and m.what in ("claim", "head") and m is not row.finished]
        others = [other for other in dated if other is not row]
        before = [m for m in early if any(span(m)[1] < _finished(other)[0] for other in others)]
        after = row.finished is None or any(_finished(other)[1] < span(row.finished)[0] for other in others)
        if before and after:
            first = min(before, key=lambda m: span(m)[1])
            what = "claim" if first.what == "claim" else "unfinished run"
            yield (
                f"{row.label} has an earlier timestamp on its {what} (by {_said(first)}). It does not rank: a claim costs a "
                "stamp, and an early state a few steps, for work that need never have been finished."
            )


def _finished(row: Row) -> tuple[datetime, datetime]:
    assert row.finished is not None
    return span(row.finished)


def _when(row: Row) -> str:
    assert row.finished is not None
    return _said(row.finished)


def _said(moment: Moment) -> str:
    return moment.latest.replace("T", " ").replace("Z", " UTC")
