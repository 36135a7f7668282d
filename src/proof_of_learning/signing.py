"""``sign`` and ``timestamp``: who stands for a claim, a proof or a verdict, and by when it was there.

What is made lies in ``attestations/`` of a proof, in ``claim.json``, or beside a verdict; every file verifies with openssl alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from proof_of_learning import canonical
from proof_of_learning import registration as registrations
from proof_of_learning.attestation import authority, gathering, signatures, statements, timestamps
from proof_of_learning.attestation.gathering import ENVELOPE, STATEMENT, TOKEN, File
from proof_of_learning.attestation.signatures import PrivateKey, PublicKey
from proof_of_learning.attestation.timestamps import Authorities, Token
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.limits import MAX_ATTESTATION, MAX_SIGNATURES, MAX_VERDICT
from proof_of_learning.proof import files, format
from proof_of_learning.proof.attach import attach
from proof_of_learning.proof.reader import Proof, attestation_name
from proof_of_learning.registration import Registration

VERDICT = "pol/verdict/v1"
_CLAIM, _SEAL, _RECOVERY = "claim", "seal", "recovery"
AnyPath = str | os.PathLike[str]


def sign(
    path: AnyPath, key: AnyPath | PrivateKey, passphrase: bytes | None = None, *, out: AnyPath | None = None
) -> Path:
    """Sign the proof in the directory ``path``, a claim (``claim.json``) or a verdict (``verdict.json``); returns what was written.

    key: a PEM file, which ``passphrase`` opens. out: where the envelope of a verdict goes (default: ``verdict.json.dsse.json``).
    Raises UsageError, FormatError or IntegrityError.
    """
    signer = key if isinstance(key, PrivateKey) else signatures.load_private(key, passphrase)
    place = Path(path)
    if place.is_dir():
        proof = Proof.open(place)
        payload = statements.seal(gathering.sealed(proof), [signer.public])
        with files.exclusive(place):
            for file in _files(proof):
                if file.form == ENVELOPE and signatures.open_envelope(file.raw, file.name).payload == payload:
                    return place / format.ATTESTATIONS / file.name  # signed with this key already
            name = attach(place, f"{_SEAL}-.{ENVELOPE}", signatures.seal(payload, [signer]))
        return place / format.ATTESTATIONS / name
    schema = _schema(place)
    if schema == registrations.SCHEMA:
        registration = registrations.load(place)
        registrations.rewrite(place, signed_claim(registration, signer))
        return place
    if schema == VERDICT:
        return _sign_verdict(place, signer, out)
    raise UsageError(f"{place} is nothing that can be signed; name a proof's directory, a claim or a verdict in JSON")


def timestamp(
    path: AnyPath, urls: Sequence[str], authorities: Authorities | None = None, *, timeout: float = authority.TIMEOUT
) -> list[tuple[Path, Path]]:
    """Have the proof in the directory ``path``, or a claim, dated by the authorities at ``urls``, in turn.

    Each stamps what the one before made, so that the last token dates all of it. Of a proof every signed seal is stamped, or, where
    nobody signed, the statement alone; and what a recovery key signed. Returns pairs (token, what it stamps); of a claim these lie in
    it, and there are none.
    Raises AuthorityError where one does not answer; the tokens of those before it are kept.
    """
    if not urls:
        raise UsageError("name a timestamp authority (--tsa URL)")
    for url in urls:
        authority.checked(url)
    place = Path(path)
    if not place.is_dir():
        if _schema(place) != registrations.SCHEMA:
            raise UsageError(f"{place} is nothing that can be stamped; name a proof's directory or a claim in JSON")
        _stamp_claim(place, urls, authorities, timeout)
        return []
    proof = Proof.open(place)
    made: list[tuple[Path, Path]] = []
    with files.exclusive(place):
        facts = gathering.sealed(proof)
        found = _files(proof)
        wanted = [file for file in found if file.kind == _SEAL and file.form != TOKEN and _is_seal(file, facts)]
        if not wanted:
            raw = statements.seal(facts, [])
            wanted = [File(attach(place, f"{_SEAL}-.{STATEMENT}", raw), _SEAL, STATEMENT, raw)]
        wanted += [file for file in found if file.kind == _RECOVERY and file.form == ENVELOPE]
        for statement in wanted:
            below = _newest(statement, _files(Proof.open(place)))
            for url in urls:
                token = authority.stamp(below.raw, url, authorities, timeout)
                name = attach(place, f"{statement.kind}-.{TOKEN}", token.raw)
                made.append((place / format.ATTESTATIONS / name, place / format.ATTESTATIONS / below.name))
                below = File(name, statement.kind, TOKEN, token.raw)
    return made


def recover(
    path: AnyPath,
    key: AnyPath | PrivateKey,
    owner: AnyPath | PublicKey,
    successor: AnyPath | PublicKey,
    passphrase: bytes | None = None,
) -> Path:
    """Put the key ``successor`` in the place of ``owner``, whose key was lost or stolen, for the proof in the directory ``path``.

    key: the recovery key that the proof's claim names, a PEM file, which ``passphrase`` opens. Returns what was written. Raises
    UsageError where the claim names another one, or none.
    """
    signer = key if isinstance(key, PrivateKey) else signatures.load_private(key, passphrase)
    old, new = (item if isinstance(item, PublicKey) else signatures.load_public(item) for item in (owner, successor))
    proof, place = Proof.open(path), Path(path)
    claim, digest = proof.header.claim or {}, proof.header.randomness.claim
    if digest is None or claim.get("recovery") is None:
        raise UsageError(
            f"the claim of {place} names no recovery key; it is named when a run is registered (--recovery)"
        )
    if claim["recovery"] != signer.public.digest:
        raise UsageError(
            f"the claim of {place} names another recovery key ({canonical.brief(claim['recovery'])[:19]}…)"
        )
    if new.digest in (old.digest, signer.public.digest):
        raise UsageError("the successor has to be a new key, neither the one that it replaces nor the recovery key")
    payload = statements.recovery(digest, old.digest, new, [signer.public])
    with files.exclusive(place):
        name = attach(place, f"{_RECOVERY}-.{ENVELOPE}", signatures.seal(payload, [signer]))
    return place / format.ATTESTATIONS / name


def unsigned_claim(registration: Registration, owners: Iterable[PublicKey]) -> Registration:
    """A claim with the statement that its ``owners`` are to sign."""
    claim = registration.claim
    payload = statements.claim(msgspec.to_builtins(claim), claim.digest(), list(owners))
    return registration.keeping(_named(_CLAIM, ENVELOPE, signatures.encoded(payload, [])))


def signed_claim(registration: Registration, signer: PrivateKey) -> Registration:
    """A claim with the signature of one of its owners. Raises UsageError for anybody else, and once it was stamped."""
    claim, found = registration.claim, gathering.files_of(registration.attestations())
    if signer.public.digest not in claim.owners:
        raise UsageError(
            f"the claim does not name the key {signer.public.digest} as an owner's (`pol register --owner`)"
        )
    if any(file.form == TOKEN for file in found) or registration.runs:
        raise UsageError("the claim has been stamped or used already; a signature that comes later dates nothing")
    envelope = _claim_envelope(registration)
    owners = statements.read(envelope.payload, "the claim's statement").signers
    message = signatures.pae(envelope.payload)
    made = [
        (owner.digest, one)
        for owner in owners
        for one in envelope.signatures
        if owner.digest != signer.public.digest and owner.verifies(one, message)
    ]
    if len(made) == MAX_SIGNATURES:
        raise UsageError(f"the claim has {MAX_SIGNATURES} signatures already, and no more are read")
    made.append((signer.public.digest, signer.sign(message)))
    return registration.keeping(_named(_CLAIM, ENVELOPE, signatures.encoded(envelope.payload, made)))


def verdict_signers(verdict: bytes, envelope: bytes) -> list[str]:
    """Digests of the keys that signed this very verdict (the bytes of its file). Raises FormatError."""
    opened = signatures.open_envelope(envelope, "the envelope")
    statement = statements.read(opened.payload, "the envelope's payload")
    if statement.payload != statements.verdict(verdict, _told(verdict), statement.signers):
        return []
    return opened.signed_by(statement.signers)


def _stamp_claim(place: Path, urls: Sequence[str], authorities: Authorities | None, timeout: float) -> None:
    registration = registrations.load(place)
    if registration.runs:
        raise UsageError(
            f"the claim {place} has been used by a run already; a timestamp that comes later shows nothing"
        )
    claim, envelope = registration.claim, _claim_envelope(registration)
    keys = envelope.signed_by(statements.read(envelope.payload, "the claim's statement").signers)
    if len(set(keys) & set(claim.owners)) < max(1, claim.threshold):
        raise UsageError(
            f"{len(keys)} of the {claim.threshold} owners that have to have signed the claim {place}; sign it first (`pol sign`)"
        )
    found = registration.attestations()
    (statement,) = (file for file in gathering.files_of(found) if file.form == ENVELOPE)
    below = _newest(statement, gathering.files_of(found))
    for url in urls:
        token = authority.stamp(below.raw, url, authorities, timeout)
        found |= _named(_CLAIM, TOKEN, token.raw)
        registrations.rewrite(place, registration.keeping(found))
        below = File("", _CLAIM, TOKEN, token.raw)


def _claim_envelope(registration: Registration) -> signatures.Envelope:
    """The one envelope in a claim, which holds what is to be signed."""
    claim = registration.claim
    found = [file for file in gathering.files_of(registration.attestations()) if file.form == ENVELOPE]
    if not claim.owners or len(found) != 1:
        raise UsageError("the claim names no owner who could sign it; register with --key, or --owner")
    envelope = signatures.open_envelope(found[0].raw, found[0].name)
    signers = statements.read(envelope.payload, "the claim's statement").signers
    same = envelope.payload == statements.claim(msgspec.to_builtins(claim), claim.digest(), signers)
    if not same or sorted(key.digest for key in signers) != sorted(claim.owners):
        raise FormatError("what is signed in the claim is another claim")
    return envelope


def _newest(statement: File, found: Sequence[File]) -> File:
    """The last of the tokens that stamp a statement, or one another; the statement itself where there is none."""
    tokens: dict[str, File] = {}
    for file in found:
        if file.form == TOKEN:
            parsed: Token = timestamps.parse(file.raw, file.name)
            tokens.setdefault(parsed.stamped, file)
    while statement.stamped_as in tokens:
        statement = tokens[statement.stamped_as]
    return statement


def _is_seal(file: File, facts: statements.Sealed) -> bool:
    statement, keys = gathering.read_statement(file)
    return statement.payload == statements.seal(facts, statement.signers) and (file.form == STATEMENT or bool(keys))


def _files(proof: Proof) -> list[File]:
    return gathering.files_of(proof.attestations)


def _named(kind: str, form: str, raw: bytes) -> dict[str, bytes]:
    return {attestation_name(f"{kind}-.{form}", raw): raw}


# ---- verdicts ---------------------------------------------------------------------------------------------------


def _sign_verdict(place: Path, signer: PrivateKey, out: AnyPath | None) -> Path:
    raw = bytes(files.read_bounded(place, MAX_VERDICT, f"the verdict {place}"))
    target = place.with_name(f"{place.name}.dsse.json") if out is None else Path(out)
    if target.exists():
        raise UsageError(f"{target} exists; choose another name for the signature (--out)")
    payload = statements.verdict(raw, _told(raw), [signer.public])
    files.write_atomic(target, [signatures.seal(payload, [signer])])
    return target


def _told(raw: bytes) -> dict[str, Any]:
    """What the statement on a verdict repeats of it. All of the file is bound by its digest."""
    value: Any = canonical.lenient(raw, Any, "the verdict")
    if not isinstance(value, dict) or value.get("schema") != VERDICT:
        raise FormatError(f"the verdict does not have the schema {VERDICT!r}")

    def part(name: str, *fields: str) -> dict[str, Any]:
        inner = value.get(name)
        return {field: inner.get(field) for field in fields} if isinstance(inner, Mapping) else {}

    return {
        "verdict": value.get("verdict"),
        "assurance": value.get("assurance"),
        "proof": part("proof", "root", "final_weights"),
        "conditions": part("conditions", "task", "sources", "data"),
        "nonce": part("nonce", "value", "origin"),
        "guarantee": value.get("guarantee"),
        "rules": value.get("rules"),
        "policy": value.get("policy"),
    }


def _schema(place: Path) -> str:
    raw = bytes(files.read_bounded(place, max(MAX_VERDICT, MAX_ATTESTATION), str(place)))
    try:
        value: Any = canonical.lenient(raw, Any, "it")
    except FormatError:
        return ""
    found = value.get("schema") if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
