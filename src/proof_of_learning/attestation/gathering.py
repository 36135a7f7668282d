"""Reads what lies beside a root, and holds every statement against the proof that it is said to be about.

What is about something else, or signed by nobody, counts for nothing and does no harm. What is said of this very run and is false (a
head of another log under the same header, a broken or contradictory chain of heads) is found out. There is nothing to gain by taking
true evidence away. What cannot be read as an attestation at all is refused, like any other file that no proof has.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proof_of_learning import canonical, sources
from proof_of_learning.attestation import gaps, signatures, statements, timestamps
from proof_of_learning.attestation.attested import SKEW, Attested, Signed, Stamp
from proof_of_learning.attestation.heads import Head, broken, contained, of_log, stretches
from proof_of_learning.attestation.revocation import Revoked
from proof_of_learning.attestation.statements import Sealed
from proof_of_learning.attestation.timestamps import Authorities, Token
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_TRIED
from proof_of_learning.proof import files, format
from proof_of_learning.proof.reader import Proof

ENVELOPE, STATEMENT, TOKEN = "dsse.json", "json", "tsr"
GAPS = "gaps"
_PIECE = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of ``attestations/``. form: ``dsse.json``, ``json`` or ``tsr``."""

    name: str
    kind: str
    form: str
    raw: bytes

    @property
    def stamped_as(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()


def files_of(attestations: dict[str, bytes]) -> list[File]:
    """The files by their names. Raises FormatError for a name that no attestation has."""
    found = []
    for name, raw in sorted(attestations.items()):
        match = format.ATTESTATION.fullmatch(name)
        if match is None:
            raise FormatError(f"{canonical.brief(name)} is no attestation's name")
        found.append(File(name, match[1], match[3], raw))
    return found


def sealed(proof: Proof) -> Sealed:
    """What a seal statement says of ``proof``."""
    header = proof.header
    return Sealed(
        header=hashlib.sha256(header.encoded()).hexdigest(),
        log=_hash(proof.path / format.LOG_FILE),
        root=proof.root,
        format=header.format,
        claim=header.randomness.claim,
        anchor=header.randomness.anchor,
        task=header.task.digest,
        name=header.task.name,
        sources=sources.digest(header.task.digest, header.task.sources),
        data=header.data.root,
        samples=header.data.samples,
        parent=header.initialization.proof,
        steps=proof.steps,
        segments=len(proof.segments),
        interval=header.training.interval,
        final_weights=proof.end.final_weights,
    )


def gather(proof: Proof, authorities: Authorities | None, revoked: Revoked = Revoked()) -> Attested:
    """What the attestations of ``proof`` come to. Raises FormatError for a file that is no attestation of its kind.

    authorities: whose timestamps count; None takes every token at its word, to show what is there and never to judge by.
    revoked: keys that the verifier does not believe any more, or only for what was stamped before.
    """
    found = files_of(proof.attestations)
    facts, known = sealed(proof), _heads(proof, found)
    signed: dict[str, Signed] = {}
    tokens: dict[str, tuple[File, Token]] = {}
    heads: dict[str, Head] = {}
    recoveries: dict[str, statements.Statement] = {}
    ignored, false, noted, room = list[str](), list[str](), list[str](), Room()
    for file in found:
        if file.kind == GAPS:
            noted += _gaps(file)
            continue
        if file.form == TOKEN:
            tokens[file.name] = (file, timestamps.parse(file.raw, file.name))
            continue
        statement, keys = read_statement(file, room)
        if not _fits(statement, proof, facts, known):
            said = f"{file.name} is about {_about(statement)}"
            own = statement.kind == "head" and _is_of(statement, facts.header)
            (false if own else ignored).append(f"{said}: this log has no such beginning" if own else said)
        elif file.form == ENVELOPE and not keys:
            ignored.append(f"{file.name} has no signature that is good for a key which it names")
        else:
            signed[file.name] = Signed(file.name, file.kind, tuple(keys))
            if statement.kind == "head":
                heads[file.name] = Head(file.name, known[statement.predicate["head"]], _previous(statement))
            elif statement.kind == "recovery":
                recoveries[file.name] = statement
    links = Links.of(found, tokens, heads)
    stamps: list[Stamp] = []
    for file, token in tokens.values():
        about = links.about[file.name]
        if about in signed and signed[about].kind == file.kind:
            refused = "" if authorities is None else timestamps.trusted(token, authorities)
            stamps.append(
                Stamp(file.name, file.kind, about, token.earliest, token.latest, token.authority, token.anchor, refused)
            )
        else:
            ignored.append(f"{file.name} stamps something else than a statement about this proof that is here")
    stamps = _unrevoked(stamps, tokens, links, revoked)
    believed = _believed(signed.values(), stamps, revoked)
    doubted = [item.left_out(key) for item in believed for key in item.revoked]
    false += broken(heads, stamps, links.below, links.about)
    attested = Attested(believed, tuple(stamps), (*ignored, *doubted), false=tuple(false), gaps=tuple(noted))
    attested = replace(attested, replaced=_replaced(proof, attested, recoveries))
    chain, reason = _anchored(proof, attested, links.names, tokens)
    attested = _ordered(replace(attested, registered=not reason, unregistered=reason, anchored=chain))
    return replace(attested, stretches=tuple(stretches(heads, attested.stamps, proof.steps)) if heads else ())


@dataclass(frozen=True)
class Links:
    """What contains what. names: by SHA-256 (hex), the file. below: by file, the one that it contains. about: by token, the statement
    that it dates, by way of other tokens; empty where that is not here.
    """

    names: dict[str, str]
    below: dict[str, str]
    about: dict[str, str]

    @classmethod
    def of(cls, found: Iterable[File], tokens: dict[str, tuple[File, Token]], heads: Mapping[str, Head]) -> Links:
        names = {file.stamped_as: file.name for file in found}
        contains = {name: token.stamped for name, (_, token) in tokens.items()}
        contains |= {name: head.previous for name, head in heads.items() if head.previous is not None}
        below = {name: names[digest] for name, digest in contains.items() if digest in names}
        return cls(names, below, {name: chain_of(token, names, tokens)[-1] for name, (_, token) in tokens.items()})


def _unrevoked(
    stamps: Sequence[Stamp], tokens: Mapping[str, tuple[File, Token]], links: Links, revoked: Revoked
) -> list[Stamp]:
    """Of an authority whose key was revoked, what it dates counts only where another one stamped that before."""
    if not revoked.since:
        return list(stamps)
    good = [stamp for stamp in stamps if not stamp.refused and tokens[stamp.file][1].key not in revoked]
    later: dict[str, list[datetime.datetime]] = {}
    for stamp in good:
        for name in contained(stamp.file, links.below):
            later.setdefault(name, []).append(stamp.latest)
    why = "the authority's key was revoked, and no other authority stamped this token before"
    return [
        stamp
        if stamp.refused or revoked.counts(tokens[stamp.file][1].key, later.get(stamp.file, ()))
        else replace(stamp, refused=why)
        for stamp in stamps
    ]


def _believed(signed: Iterable[Signed], stamps: Iterable[Stamp], revoked: Revoked) -> tuple[Signed, ...]:
    """The same, where signatures by keys that were revoked do not count, unless an authority stamped them before."""
    by: dict[str, list[datetime.datetime]] = {}
    for stamp in stamps:
        if not stamp.refused:
            by.setdefault(stamp.about, []).append(stamp.latest)
    found = []
    for item in signed:
        keys = tuple(key for key in item.keys if revoked.counts(key, by.get(item.file, ())))
        found.append(replace(item, keys=keys, revoked=tuple(key for key in item.keys if key not in keys)))
    return tuple(found)


def _replaced(
    proof: Proof, attested: Attested, recoveries: Mapping[str, statements.Statement]
) -> dict[str, frozenset[str]]:
    """By key, the owners that it was put in the place of, by the recovery key of a claim that its owners signed.

    Owners who did not sign the claim themselves never named that key: anybody can write their digests into a claim.
    """
    claim = proof.header.claim or {}
    recovery, owners = claim.get("recovery"), claim.get("owners")
    if recovery is None or not isinstance(owners, list) or not _owned(attested, owners, claim.get("threshold")):
        return {}
    direct: dict[str, set[str]] = {}
    for item in attested.signed:
        statement = recoveries.get(item.file)
        if statement is not None and recovery in item.keys and (made := statements.successor(statement)) is not None:
            direct.setdefault(made.digest, set()).add(statement.predicate["owner"])
    named = {key for item in attested.signed if item.kind == "claim" for key in item.keys} & set(owners)
    found: dict[str, frozenset[str]] = {}
    for key in direct:
        reached, waiting = set[str](), [key]
        while waiting:
            waiting += (more := direct.get(waiting.pop(), set()) - reached)
            reached |= more
        if stands_for := (reached & named) - {key}:
            found[key] = frozenset(stands_for)
    return found


def _owned(attested: Attested, owners: Sequence[str], threshold: Any) -> bool:
    """Whether as many owners signed the claim as it asks for."""
    return isinstance(threshold, int) and any(
        len({*item.keys} & {*owners}) >= max(1, threshold) for item in attested.signed if item.kind == "claim"
    )


def _gaps(file: File) -> list[str]:
    """What a recorder noted of stretches that nobody stamped, a line each."""
    if file.form != STATEMENT:
        raise FormatError(f"{file.name} is no list of gaps")
    return [gaps.line(gap) for gap in gaps.read(file.raw, file.name)]


@dataclass
class Room:
    """For signatures that are yet to be tried, of all envelopes of a proof."""

    left: int = MAX_TRIED

    def take(self, tries: int, what: str) -> None:
        """Raises FormatError where there is not as much."""
        self.left -= tries
        if self.left < 0:
            raise FormatError(
                f"{what} and the envelopes before it name more keys and signatures than are tried ({MAX_TRIED:,} pairs)"
            )


def read_statement(file: File, room: Room | None = None) -> tuple[statements.Statement, list[str]]:
    """The statement in a file, and the digests of the keys that signed it. ``room``: for this file and others. Raises FormatError."""
    if file.form == STATEMENT:
        statement, keys = statements.read(file.raw, file.name), list[str]()
    else:
        envelope = signatures.open_envelope(file.raw, file.name)
        statement = statements.read(envelope.payload, f"the payload of {file.name}")
        (room or Room()).take(envelope.tries(statement.signers), file.name)
        keys = envelope.signed_by(statement.signers)
    if statement.kind != file.kind:
        raise FormatError(f"{file.name} holds a statement of the kind {statement.kind!r}")
    return statement, keys


def _fits(statement: statements.Statement, proof: Proof, facts: Sealed, heads: dict[str, int]) -> bool:
    """Whether a statement is, to the byte, the one that is made of this proof."""
    if statement.kind == "seal":
        return statement.payload == statements.seal(facts, statement.signers)
    if statement.kind == "claim":
        header = proof.header
        if header.claim is None or header.randomness.claim is None:
            return False
        return statement.payload == statements.claim(header.claim, header.randomness.claim, statement.signers)
    if statement.kind == "recovery":
        return _is_recovery(statement, proof)
    line = statement.predicate.get("head")
    if statement.kind != "head" or not isinstance(line, str) or line not in heads:
        return False
    previous = _previous(statement)
    link = None if previous is None else f"sha256:{previous}"
    return statement.payload == statements.head(facts.header, line, heads[line], statement.signers, link)


def _previous(statement: statements.Statement) -> str | None:
    """SHA-256 (hex) of the token that a head says it contains."""
    told = statement.predicate.get("previous")
    return told[7:] if isinstance(told, str) and format.is_digest(told) else None


def _is_of(statement: statements.Statement, header: str) -> bool:
    """Whether a head says that it is about the run with this very header (SHA-256 of the file, in hex)."""
    return bool(statement.subject == [{"name": "header.json", "digest": {"sha256": header}}])


def _is_recovery(statement: statements.Statement, proof: Proof) -> bool:
    claim, digest = proof.header.claim, proof.header.randomness.claim
    made, owner = statements.successor(statement), statement.predicate.get("owner")
    if claim is None or digest is None or made is None or not isinstance(owner, str):
        return False
    by = [key.digest for key in statement.signers]
    same = statement.payload == statements.recovery(digest, owner, made, statement.signers)
    return same and by == [claim.get("recovery")] and format.is_digest(owner)


def _about(statement: statements.Statement) -> str:
    """What a statement is about, by its own word."""
    told: Any = {"claim": "claimDigest", "head": "head", "recovery": "claimDigest"}.get(statement.kind, "root")
    what = {"claim": "claim", "head": "log", "recovery": "claim"}.get(statement.kind, "root")
    return f"another {what} ({canonical.brief(statement.predicate.get(told))[:19]}…), or says something else of it"


def _heads(proof: Proof, found: list[File]) -> dict[str, int]:
    """Digests of the log's segment lines with the steps that were taken by then; read only where a file is about one."""
    if not any(file.kind == "head" for file in found):
        return {}
    return of_log(proof.path, proof.header.version)


def chain_of(token: Token, names: dict[str, str], tokens: dict[str, tuple[File, Token]]) -> list[str]:
    """Names of the files below a token: tokens, then a statement; ends with an empty name where one is missing."""
    below: list[str] = []
    while True:
        name = names.get(token.stamped, "")
        below.append(name)
        if name not in tokens:
            return below
        token = tokens[name][1]  # hashes make no circles


def _anchored(
    proof: Proof, attested: Attested, names: dict[str, str], tokens: dict[str, tuple[File, Token]]
) -> tuple[frozenset[str], str]:
    """The trusted tokens that the run's key follows from; and why the proof is not registered, empty where it is.

    Trusted has to be the last token: whoever makes that one chooses the key. The claim has to be well-formed (:mod:`registration`).
    """
    header, none = proof.header, frozenset[str]()
    if header.claim is None or header.version < 2:
        return none, "it was not made under a claim" if header.claim is None else "its claim is of version 1"
    owners, threshold = header.claim.get("owners"), header.claim.get("threshold")
    if (
        not isinstance(owners, list)
        or not isinstance(threshold, int)
        or not all(isinstance(key, str) for key in owners)
    ):
        return none, "its claim is malformed"
    if not owners or header.claim.get("sources") is None:
        return none, "its claim names no owner" if not owners else "its claim does not fix the task's sources"
    if header.randomness.anchor is None:
        return (
            none,
            "its key does not follow from a timestamp on the claim: nothing shows that the claim was made before",
        )
    anchored = [
        stamp for stamp in attested.stamps if stamp.kind == "claim" and stamp.anchor == header.randomness.anchor
    ]
    if not anchored:
        return none, "the timestamp that its key follows from is not here"
    trusted = {stamp.file for stamp in attested.stamps if not stamp.refused}
    for stamp in anchored:
        keys = next(item.keys for item in attested.signed if item.file == stamp.about)
        if len(set(keys) & set(owners)) < max(1, threshold):
            continue
        # The last one decides: its maker could make any number, each with another key, and give away the most convenient.
        if stamp.file in trusted:
            return frozenset(trusted & {stamp.file, *chain_of(tokens[stamp.file][1], names, tokens)}), ""
    if not _owned(attested, owners, threshold):
        return none, "its claim is not signed by as many of its owners as it asks for"
    return (
        none,
        f"the last timestamp on its claim counts for nothing: {anchored[0].refused or 'it is on another statement'}",
    )


def _ordered(attested: Attested) -> Attested:
    """Times that contradict the order of things count for nothing: nothing of a run can be there before what its key follows from."""
    if not attested.anchored:
        return attested
    begun = max(stamp.earliest for stamp in attested.stamps if stamp.file in attested.anchored)
    why = "it says a time before the claim was stamped, from which the run follows: one of the two authorities is wrong"
    stamps = tuple(
        replace(stamp, refused=why)
        if stamp.kind != "claim" and not stamp.refused and stamp.latest + SKEW < begun
        else stamp
        for stamp in attested.stamps
    )
    return replace(attested, stamps=stamps)


def _hash(path: Path) -> str:
    hasher = hashlib.sha256()
    with os.fdopen(files.open_regular(path), "rb") as stream, files.reading(path.name):
        while piece := stream.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()
