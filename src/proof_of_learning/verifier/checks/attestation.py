"""Attestation: who signed the proof, by when it was there, and whether that is what the verifier asked for."""

from __future__ import annotations

import datetime
from typing import Any

from proof_of_learning.attestation.attested import Attested, Stamp, rfc3339
from proof_of_learning.attestation.attested import Stretch as Dated
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.verdict import CheckResult, Moment, Signer, Stretch

_SHOWN = 100  # of what counts for nothing
_SHOWS = {
    "claim": "The claim, signed by its owners, existed by then.",
    "anchor": "The claim, signed by its owners, existed by then, and training began later: its randomness follows from this token.",
    "head": "The training had come as far as this statement says by then.",
    "seal": "The finished proof existed by then, the final state with it.",
    "recovery": "A new key had been put in an owner's place by then.",
}
_REVOKED = "The claim existed by then. Not all of its signatures count: the key of an owner was revoked before."
_LIMITS = {
    "claim": "It does not show that this run was trained after it, nor that there are no other claims.",
    "anchor": "It does not show that no other claims were stamped, nor who did the training.",
    "head": "It does not show since when (a finished run's heads can be stamped one by one), nor that the rest was trained soon. "
    "It ranks nothing: an early state is cheap.",
    "recovery": "It does not show who holds either key.",
    "seal": "It does not show when the training took place, nor whose the model is: whoever has a proof can have it stamped.",
}


class AttestationCheck:
    name = "attestation"
    meaning = (
        "The keys that the verifier named, or as many of them as asked for, signed this very proof; no stamped log head says what is "
        "false of it."
    )
    limits = (
        "A signature says who stands for the proof, not that it is true, and not whose the model is. A timestamp says that something "
        "existed by then, by the word of an authority that the verifier named."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return []

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        return self.attest(evidence.attested, evidence.options)

    def attest(self, attested: Attested, options: Options) -> CheckResult:
        """The same before any state is read."""
        wanted, threshold = options.claims.trusted_keys, options.claims.threshold
        signers, trusted = attested.signers(), attested.counted(wanted)
        found: dict[str, Any] = {
            "signers": signers,
            "trusted": [key for key in signers if key in wanted],
            "stamps": sum(not stamp.refused for stamp in attested.stamps),
            "ignored": [*attested.ignored, *(f"{s.file}: {s.refused}" for s in attested.stamps if s.refused)][:_SHOWN],
        }
        if attested.unregistered:
            found["not_registered"] = attested.unregistered
        if attested.gaps:
            found["gaps"] = list(attested.gaps[:_SHOWN])
        if attested.false:
            more = f" (and {len(attested.false) - 1} more)" if len(attested.false) > 1 else ""
            return result(self, "fail", f"{attested.false[0]}{more}", false=list(attested.false[:_SHOWN]), **found)
        if not wanted:
            if not attested.signed:
                aside = f"; {attested.ignored[0]}" if attested.ignored else ""
                return result(
                    self, "skipped", f"nobody signed the proof, and nobody had to{aside}", mandatory=False, **found
                )
            told = f"signed with {_keys(signers)}" if signers else "not signed"
            return result(self, "pass", f"{told}; {_dates(attested)}{_left_out(attested)}", mandatory=False, **found)
        if trusted < threshold:
            asked = (
                f"{threshold} of the {len(wanted)} trusted keys"
                if len(wanted) > 1
                else f"the trusted key {wanted[0][:19]}…"
            )
            odd = sorted(attested.ignored, key=lambda line: not line.startswith("seal"))
            seals = sorted(attested.signed, key=lambda item: item.kind != "seal")
            revoked = [item.left_out(key) for key in wanted for item in seals if key in item.revoked]
            others = f"only {_keys(signers)} did" if signers else "nobody did"
            if why := revoked or ([] if signers else odd):
                others += f"; {why[0]}"
            return result(self, "fail", f"{asked} should have signed the proof, and {others}", **found)
        return result(
            self, "pass", f"signed with {trusted} of the {len(wanted)} trusted keys; {_dates(attested)}{_left_out(attested)}", **found
        )  # fmt: skip


def signers(attested: Attested, trusted: tuple[str, ...], owners: list[str]) -> list[Signer]:
    """Who signed what, for the verdict. Who is neither an owner nor trusted is a witness."""
    kinds: dict[str, set[str]] = {}
    for item in attested.signed:
        for key in item.keys:
            kinds.setdefault(key, set()).add(item.kind)
    return [
        Signer(
            key=key,
            owner=not {key, *attested.replaced.get(key, ())}.isdisjoint(owners),
            trusted=key in trusted,
            signed=sorted(signed),
            replaces=sorted(attested.replaced.get(key, ())),
        )
        for key, signed in sorted(kinds.items())
    ]


def stretches(evidence: Evidence, *, replayed: bool) -> list[Stretch]:
    """By when which part of the run had been trained, and what the uniform draws guarantee of each part by itself."""
    draws, trivial = evidence.challenge.segments, evidence.survey.trivial

    def told(given: Dated) -> Stretch:
        working = [
            s.index for s in evidence.proof.segments if given.start < s.stop <= given.stop and not trivial[s.index]
        ]
        drawn = sum(bool({"uniform", "all"} & set(draws.get(index, ()))) for index in working)
        forged = guarantee.forgeable_segments(len(working), drawn) / len(working) if replayed and working else None
        return Stretch(
            start=given.start, stop=given.stop, earliest=_moment(given.earliest), latest=_moment(given.latest),
            stamps=given.stamps, segments=len(working), drawn=drawn, forged_fraction=forged,
        )  # fmt: skip

    return [told(given) for given in evidence.attested.stretches]


def _moment(time: datetime.datetime | None) -> str | None:
    return None if time is None else rfc3339(time)


def timeline(attested: Attested, anchor: str | None) -> list[Moment]:
    """The timestamps in the order of their times, those that count for nothing last."""

    left_out = {item.file for item in attested.signed if item.kind == "claim" and item.revoked}

    def shows(stamp: Stamp, kind: str) -> str:
        return _REVOKED if stamp.about in left_out else _SHOWS[kind]

    def moment(stamp: Stamp) -> Moment:
        kind = (
            "anchor"
            if attested.registered and stamp.kind == "claim" and _below(stamp, attested, anchor)
            else stamp.kind
        )
        return Moment(
            what=stamp.kind,
            file=stamp.file,
            stamps=stamp.about,
            authority=stamp.authority,
            trusted=not stamp.refused,
            earliest=_moment(stamp.earliest) or "",
            latest=_moment(stamp.latest) or "",
            shows="" if stamp.refused else shows(stamp, kind),
            limits=stamp.refused or _LIMITS[kind],
        )

    ordered = sorted(attested.stamps, key=lambda stamp: (bool(stamp.refused), stamp.latest, stamp.file))
    return [moment(stamp) for stamp in ordered]


def _below(stamp: Stamp, attested: Attested, anchor: str | None) -> bool:
    """Whether the run's key follows from a timestamp: it does from the anchor, and from those that the anchor contains."""
    return stamp.file in attested.anchored or stamp.anchor == anchor


def _left_out(attested: Attested) -> str:
    """How many signatures counted for nothing, since their keys were revoked."""
    count = sum(len(item.revoked) for item in attested.signed)
    what = (
        "1 signature does not count: its key was" if count == 1 else f"{count} signatures do not count: their keys were"
    )
    return f"; {what} revoked before" if count else ""


def _dates(attested: Attested) -> str:
    dated = [stretch for stretch in attested.stretches if stretch.latest is not None]
    return _finished(attested) + (f"; log heads date {len(dated)} stretches of the run" if len(dated) > 1 else "")


def _finished(attested: Attested) -> str:
    good = [stamp for stamp in attested.stamps if not stamp.refused and stamp.kind == "seal"]
    if good:
        first = min(good, key=lambda stamp: stamp.latest)
        return f"there by {first.latest.isoformat(' ', 'seconds').replace('+00:00', ' UTC')}"
    if any(stamp.kind == "seal" for stamp in attested.stamps):
        return "stamped, but by no authority that the verifier named (--trusted-tsa)"
    return "not stamped"


def _keys(digests: list[str]) -> str:
    shown = ", ".join(f"{digest[:19]}…" for digest in digests[:3])
    return f"the key {shown}" if len(digests) == 1 else f"{len(digests)} keys ({shown})"
