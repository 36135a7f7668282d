"""Reads what lies beside a root, and holds every statement against the proof that it is said to be about.

Nothing here can make a verdict worse: what is about something else, or signed by nobody, counts for nothing. So there is nothing to
gain by taking evidence away. What cannot be read as an attestation at all is refused, like any other file that no proof has.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proof_of_learning import canonical, sources
from proof_of_learning.attestation import signatures, statements, timestamps
from proof_of_learning.attestation.attested import Attested, Signed, Stamp
from proof_of_learning.attestation.statements import Sealed
from proof_of_learning.attestation.timestamps import SKEW, Authorities, Token
from proof_of_learning.errors import FormatError
from proof_of_learning.proof import files, format
from proof_of_learning.proof.reader import Proof

ENVELOPE, STATEMENT, TOKEN = "dsse.json", "json", "tsr"
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


def gather(proof: Proof, authorities: Authorities) -> Attested:
    """What the attestations of ``proof`` come to. Raises FormatError for a file that is no attestation of its kind."""
    facts = sealed(proof)
    signed: dict[str, Signed] = {}
    tokens: dict[str, tuple[File, Token]] = {}
    ignored: list[str] = []
    found = files_of(proof.attestations)
    heads = _heads(proof, found)
    for file in found:
        if file.form == TOKEN:
            tokens[file.name] = (file, timestamps.parse(file.raw, file.name))
            continue
        statement, keys = read_statement(file)
        if not _fits(statement, proof, facts, heads):
            ignored.append(f"{file.name} is about {_about(statement)}")
        elif file.form == ENVELOPE and not keys:
            ignored.append(f"{file.name} has no signature that is good for a key which it names")
        else:
            signed[file.name] = Signed(file.name, file.kind, tuple(keys))
    names = {file.stamped_as: file.name for file in found}
    stamps: list[Stamp] = []
    for file, token in tokens.values():
        about = _root_of(token, names, tokens)
        if about in signed and signed[about].kind == file.kind:
            refused = timestamps.trusted(token, authorities)
            stamps.append(
                Stamp(file.name, file.kind, about, token.earliest, token.latest, token.authority, token.anchor, refused)
            )
        else:
            ignored.append(f"{file.name} stamps something else than a statement about this proof that is here")
    attested = Attested(tuple(signed.values()), tuple(stamps), tuple(ignored))
    chain, reason = _anchored(proof, attested, names, tokens)
    return _ordered(replace(attested, registered=not reason, unregistered=reason, anchored=chain))


def read_statement(file: File) -> tuple[statements.Statement, list[str]]:
    """The statement in a file, and the digests of the keys that signed it. Raises FormatError."""
    if file.form == STATEMENT:
        statement, keys = statements.read(file.raw, file.name), list[str]()
    else:
        envelope = signatures.open_envelope(file.raw, file.name)
        statement = statements.read(envelope.payload, f"the payload of {file.name}")
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
    line = statement.predicate.get("head")
    if statement.kind != "head" or not isinstance(line, str) or line not in heads:
        return False
    return statement.payload == statements.head(facts.header, line, heads[line], statement.signers)


def _about(statement: statements.Statement) -> str:
    """What a statement is about, by its own word."""
    told: Any = {"claim": "claimDigest", "head": "head"}.get(statement.kind, "root")
    what = {"claim": "claim", "head": "log"}.get(statement.kind, "root")
    return f"another {what} ({canonical.brief(statement.predicate.get(told))[:19]}…), or says something else of it"


def _heads(proof: Proof, found: list[File]) -> dict[str, int]:
    """Digests of the log's segment lines with the steps that were taken by then; read only where a file is about one."""
    if not any(file.kind == "head" for file in found):
        return {}
    heads: dict[str, int] = {}
    steps = iter(segment.stop for segment in proof.segments)
    for raw in files.iterate_lines(proof.path / format.LOG_FILE, 4 << 30, 1 << 20):
        if b'"kind":"segment"' in raw:
            heads[format.line_digest(raw.removesuffix(b"\n"), proof.header.version)] = next(steps)
    return heads


def _root_of(token: Token, names: dict[str, str], tokens: dict[str, tuple[File, Token]]) -> str:
    """The statement at the bottom of a chain of tokens, each of which stamps the one before; empty where it is not here."""
    return chain_of(token, names, tokens)[-1]


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
    if not any(len({*item.keys} & {*owners}) >= max(1, threshold) for item in attested.signed if item.kind == "claim"):
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
