"""Statements: in-toto Statement v1 with one predicate type each for claim, log head, seal, and so on (docs/spec/predicate.md).

A statement is canonical JSON, and all of it follows from what it is about and from who signs. So whoever verifies one makes it again
from the proof and compares the bytes: nothing in it is believed, and nothing in it can be about something else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PublicKey, decode_public
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_OWNERS

STATEMENT = "https://in-toto.io/Statement/v1"
Kind = Literal["claim", "head", "seal", "recovery", "verdict", "answers", "opening"]
# One name each, by which no statement passes for one of another kind.
TYPES: dict[Kind, str] = {kind: f"urn:proof-of-learning:training:{kind}:v1" for kind in get_args(Kind)}
_KINDS = {name: kind for kind, name in TYPES.items()}


@dataclass(frozen=True)
class Statement:
    """A statement as it was read: what it says it is, and the keys that it says sign it. None of that is believed."""

    kind: Kind
    subject: Any
    predicate: Mapping[str, Any]
    signers: tuple[PublicKey, ...]
    payload: bytes


@dataclass(frozen=True)
class Sealed:
    """What a finished proof comes to. ``header`` and ``log``: SHA-256 of these files, in hex.

    claim: the claim's digest; anchor: of the timestamp that the key follows from; sources: of description and sources; parent: the
    root of the proof that training starts from. None where there is no such thing.
    """

    header: str
    log: str
    root: str
    format: str
    claim: str | None
    anchor: str | None
    task: str
    name: str
    sources: str | None
    data: str
    samples: int
    parent: str | None
    steps: int
    segments: int
    interval: int
    final_weights: str


def claim(fields: Mapping[str, Any], digest: str, signers: Sequence[PublicKey]) -> bytes:
    """That a run is going to be made under the claim with these ``fields``, whose digest is ``digest``."""
    subject = {"claim": hashlib.sha256(canonical.encode(fields)).hexdigest()}
    return _statement("claim", subject, {"claim": dict(fields), "claimDigest": digest}, signers)


def head(header: str, line: str, stop: int, signers: Sequence[PublicKey], previous: str | None = None) -> bytes:
    """That a run under the header file with SHA-256 ``header`` (hex) has a log line with digest ``line`` after ``stop`` steps.

    The line is chained to all before it, so it stands for the whole log up to there. previous: SHA-256 (``sha256:…``) of the timestamp
    token before, on an earlier head or on the claim, so that what is stamped contains it; None for the first of all.
    """
    link = {} if previous is None else {"previous": previous}
    return _statement("head", {"header.json": header}, {"head": line, "steps": stop, **link}, signers)


def recovery(claim: str, owner: str, successor: PublicKey, signers: Sequence[PublicKey]) -> bytes:
    """That who signs, whom the claim with the digest ``claim`` names for it, puts the key ``successor`` in the place of ``owner``, the
    digest of another.
    """
    told = {"digest": successor.digest, "publicKey": base64.b64encode(successor.encoded).decode()}
    subject = {"successor": hashlib.sha256(successor.encoded).hexdigest()}
    return _statement("recovery", subject, {"claimDigest": claim, "owner": owner, "successor": told}, signers)


def successor(statement: Statement) -> PublicKey | None:
    """The key that a statement of recovery puts in the place of another; None where it holds none."""
    try:
        encoded = base64.b64decode(statement.predicate["successor"]["publicKey"], validate=True)
        return decode_public(encoded, "the successor's key")
    except (KeyError, TypeError, ValueError, binascii.Error, FormatError):
        return None


def seal(proof: Sealed, signers: Sequence[PublicKey]) -> bytes:
    """That a proof is finished. The root is no file's SHA-256; the files that it covers are the subjects."""
    predicate = {
        "root": proof.root,
        "format": proof.format,
        "claim": proof.claim,
        "anchor": proof.anchor,
        "task": {"digest": proof.task, "name": proof.name, "sources": proof.sources},
        "data": {"root": proof.data, "samples": proof.samples},
        "parent": proof.parent,
        "steps": proof.steps,
        "segments": proof.segments,
        "interval": proof.interval,
        "finalWeights": proof.final_weights,
    }
    return _statement("seal", {"header.json": proof.header, "log.jsonl": proof.log}, predicate, signers)


def verdict(file: bytes, fields: Mapping[str, Any], signers: Sequence[PublicKey]) -> bytes:
    """That who signs came to the verdict in ``file``; ``fields`` of it are repeated for readers."""
    return _statement("verdict", {"verdict.json": hashlib.sha256(file).hexdigest()}, fields, signers)


def disputed(
    kind: Literal["answers", "opening"], file: bytes, root: str, challenge: str, signers: Sequence[PublicKey]
) -> bytes:
    """That who signs gave the answers, or made the opening, in ``file``, to the challenge with that digest."""
    subject = {f"{kind}.json": hashlib.sha256(file).hexdigest()}
    return _statement(kind, subject, {"root": root, "challenge": challenge}, signers)


def read(payload: bytes, what: str) -> Statement:
    """A statement of ours. Raises FormatError for anything else: another type, another version, another spelling."""
    value = canonical.decode(payload, dict[str, Any], what)
    if value.get("_type") != STATEMENT:
        raise FormatError(f"{what} is no in-toto statement ({STATEMENT})")
    named = value.get("predicateType")
    kind = _KINDS.get(named) if isinstance(named, str) else None
    predicate = value.get("predicate")
    if kind is None or not isinstance(predicate, dict):
        told = canonical.brief(named)
        raise FormatError(f"{what} has a predicate of type {told!r}, which this version does not know")
    return Statement(kind, value.get("subject"), predicate, tuple(_signers(predicate, what)), payload)


def _signers(predicate: Mapping[str, Any], what: str) -> Iterable[PublicKey]:
    given = predicate.get("signers")
    if not isinstance(given, list) or len(given) > MAX_OWNERS:
        raise FormatError(f"{what} has no list of at most {MAX_OWNERS} signers")
    for item in given:
        try:
            encoded = base64.b64decode(item["publicKey"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise FormatError(f"{what} names a signer without a public key") from None
        yield decode_public(encoded, f"{what}: the public key of a signer")


def _statement(
    kind: Kind, subject: Mapping[str, str], fields: Mapping[str, Any], signers: Sequence[PublicKey]
) -> bytes:
    keys = sorted(dict.fromkeys(signers), key=lambda key: key.digest)
    told = [{"digest": key.digest, "publicKey": base64.b64encode(key.encoded).decode()} for key in keys]
    encode = (
        canonical.encode_plain if kind == "head" else canonical.encode
    )  # of these there are many, and none has a fraction
    return encode(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subject.items()],
            "predicateType": TYPES[kind],
            "predicate": {**fields, "signers": told},
        }
    )
