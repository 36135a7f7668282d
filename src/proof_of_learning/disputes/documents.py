"""The documents that owner and verifier exchange: canonical JSON, bounded, each with a digest (``docs/spec/opening.md``)."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from proof_of_learning import canonical
from proof_of_learning.attestation import signatures, statements
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.canonical import brief
from proof_of_learning.disputes.owners import Owners
from proof_of_learning.errors import FormatError, IntegrityError, UsageError
from proof_of_learning.limits import MAX_ANSWERS, MAX_ATTESTATION, MAX_CHALLENGE
from proof_of_learning.proof import files
from proof_of_learning.proof.format import check_digest
from proof_of_learning.verifier.verdict import Nonce

CHALLENGE, ANSWERS, OPENING = "pol/challenge/v1", "pol/answers/v1", "pol/opening/v1"
ANSWERS_FILE = "answers.json"
AnyPath = str | os.PathLike[str]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def encoded(self) -> bytes:
        return canonical.encode(self)

    def digest(self) -> str:
        return canonical.sha256(self.encoded())


class First(_Document, frozen=True, kw_only=True, tag_field="round", tag=1):
    """The first challenge: what is looked at in every state follows from ``seed``. ``due``: until when answers are expected."""

    schema: str = CHALLENGE
    root: str
    claim: str | None
    seed: str
    due: str | None

    @property
    def looking(self) -> Nonce:
        """What coordinates and samples follow from, as they follow from the nonce of another verification."""
        return Nonce(value=self.seed, origin="drawn")


class Second(_Document, frozen=True, kw_only=True, tag_field="round", tag=2):
    """The second challenge, on the answers with that digest: which segments are to be opened, each with its reasons."""

    schema: str = CHALLENGE
    root: str
    claim: str | None
    first: str
    answers: str
    nonce: str
    segments: list[tuple[int, list[str]]]
    due: str | None

    def drawn(self, *, own: bool) -> Nonce:
        """What the draw follows from. ``own``: this is the verifier's own copy, so that they know that it was drawn."""
        return challenge_nonce(self.first, self.answers, self.nonce, own=own)


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output that is looked at in every state."""

    name: str
    rows: int
    columns: int
    scores: bool


class AnswersHead(_Document, frozen=True, kw_only=True):
    """``answers.json``: what is where in the files beside it, and what the owner opens at most."""

    schema: str = ANSWERS
    root: str
    challenge: str
    coordinates: int
    layouts: list[dict[str, list[int]]]
    layout: list[int]
    sizes: list[int]
    states: str
    outputs: str
    heads: list[Head]
    segments: int | None


class OpeningHead(_Document, frozen=True, kw_only=True):
    """``opening.json``: which challenge is answered, by what."""

    schema: str = OPENING
    root: str
    challenge: str
    index: str
    samples: str | None


class _Head(msgspec.Struct, frozen=True):
    """What tells one document from another."""

    schema: str
    round: int | None = None


_ROUNDS: dict[type, int] = {First: 1, Second: 2}
_WORDS: dict[type, str] = {
    First: "the first challenge (`pol challenge MANIFEST`)",
    Second: "the second challenge, which draws segments (`pol challenge MANIFEST --first … --answers …`)",
    AnswersHead: "the owner's answers (`pol answer`)",
    OpeningHead: "the head of an opening (`pol open`)",
}

D = TypeVar("D", First, Second, AnswersHead, OpeningHead)


def challenge_nonce(first: str, answers: str, nonce: str, *, own: bool) -> Nonce:
    """The nonce of a draw that follows the answers."""
    raw = [bytes.fromhex(value) for value in (first[7:], answers[7:], nonce)]
    value = hashlib.sha256(b"pol/v1/opening-nonce\0" + raw[0] + b"\0" + raw[1] + b"\0" + raw[2]).hexdigest()
    return Nonce(value=value, origin="drawn" if own else "self-chosen")


def fresh() -> str:
    """32 random bytes in hex."""
    return secrets.token_hex(32)


def load(path: Path, kind: type[D]) -> D:
    """Read one of the documents. Raises FormatError."""
    most = MAX_CHALLENGE if kind in (First, Second) else MAX_ANSWERS
    if not path.is_file():
        raise FormatError(f"{path} does not exist, or is no file; expected a file of the schema {_schema(kind)!r}")
    raw = bytes(files.read_bounded(path, most))
    given = _named(raw)
    if given is not None and given is not kind:
        raise FormatError(f"{path} is {_WORDS[given]}; what is needed here is {_WORDS[kind]}")
    return parse(raw, kind, path.name)


def _named(raw: bytes) -> type | None:
    """Which of the documents a file says that it is; None where it says none."""
    try:
        head = canonical.lenient(raw, _Head, "it")
    except FormatError:
        return None
    return next((kind for kind in _WORDS if (_schema(kind), _ROUNDS.get(kind)) == (head.schema, head.round)), None)


def parse(raw: bytes, kind: type[D], what: str) -> D:
    """Decode one of the documents. Raises FormatError."""
    document = canonical.decode(raw, kind, what)
    if document.schema != _schema(kind):
        raise FormatError(f"{what} has schema {brief(document.schema)!r}; expected {_schema(kind)!r}")
    digests: list[str | None] = [document.root]
    if isinstance(document, First):
        digests.append(document.claim)
        _hex(document.seed, what)
        _time(document.due, what)
    elif isinstance(document, Second):
        digests += [document.claim, document.first, document.answers]
        _hex(document.nonce, what)
        _time(document.due, what)
    elif isinstance(document, AnswersHead):
        digests += [document.challenge, document.states, document.outputs]
    else:
        digests += [document.challenge, document.index, document.samples]
    for digest in digests:
        if digest is not None:
            check_digest(digest, f"{what}: a digest")
    return document


def write_new(path: Path, document: First | Second) -> None:
    """Write a challenge; UsageError where a file is there already, for a verifier may have sent that one."""
    if path.exists():
        raise UsageError(f"{path} exists; a challenge is never overwritten, choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write the challenge into")
    files.write_atomic(path, [document.encoded()], durable=True)


def until(days: float | None) -> str | None:
    """The time so many days from now, as documents have it."""
    if days is None:
        return None
    if not 0 < days <= 36_500:
        raise UsageError(f"{days:g} days make no sense as a term; name more than 0")
    return told(now() + datetime.timedelta(days=days))


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def told(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)


# ---- signatures -------------------------------------------------------------------------------------------------


def sign(document: AnswersHead | OpeningHead, key: PrivateKey) -> bytes:
    """The envelope around the statement on answers, or on an opening."""
    return signatures.seal(_statement(document, [key.public]), [key])


def signers(document: AnswersHead | OpeningHead, envelope: bytes, owners: Owners) -> list[str]:
    """Digests of the keys that signed this very document. IntegrityError where nobody did, or no owner whom the claim names."""
    what = "answers" if isinstance(document, AnswersHead) else "opening"
    opened = signatures.open_envelope(envelope, f"{what}.dsse.json")
    statement = statements.read(opened.payload, f"the payload of {what}.dsse.json")
    keys = opened.signed_by(statement.signers)
    if statement.payload != _statement(document, statement.signers):
        raise IntegrityError(f"what is signed in {what}.dsse.json is something else than these {what}")
    if not keys:
        raise IntegrityError(f"{what}.dsse.json has no signature that is good for a key which it names")
    owners.signed(keys, what)
    return keys


def envelope(folder: Path, what: Literal["answers", "opening"]) -> bytes:
    return bytes(files.read_bounded(folder / f"{what}.dsse.json", MAX_ATTESTATION))


def _statement(document: AnswersHead | OpeningHead, keys: object) -> bytes:
    kind: Literal["answers", "opening"] = "answers" if isinstance(document, AnswersHead) else "opening"
    return statements.disputed(kind, document.encoded(), document.root, document.challenge, keys)  # type: ignore[arg-type]


def _schema(kind: type) -> str:
    if kind is AnswersHead:
        return ANSWERS
    return OPENING if kind is OpeningHead else CHALLENGE


def _hex(value: str, what: str) -> None:
    if re.fullmatch(r"[0-9a-f]{64}", value) is None:
        raise FormatError(f"{what}: its random value is not 64 hex digits")


def _time(value: str | None, what: str) -> None:
    try:
        if value is not None and told(moment(value)) != value:
            raise ValueError
    except ValueError:
        raise FormatError(f"{what}: its term is not a time like 2026-01-31T12:00:00Z") from None
