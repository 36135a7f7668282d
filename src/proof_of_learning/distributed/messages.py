"""What coordinator and workers send each other: signed statements, and updates as raw bytes of a size known beforehand."""

from __future__ import annotations

import base64
import re
from typing import Any, TypeVar

import msgspec
import numpy as np

from proof_of_learning import canonical
from proof_of_learning.attestation import signatures
from proof_of_learning.attestation.signatures import PrivateKey, PublicKey
from proof_of_learning.attestation.statements import STATEMENT
from proof_of_learning.distributed.aggregation import Vector
from proof_of_learning.distributed.events import Assignment, Commitment, Rules, check
from proof_of_learning.distributed.rounds import Slice
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.numeric.portable import NATIVE, PORTABLE

T = TypeVar("T")
MAX_MESSAGE = 1 << 20  # bytes of an envelope


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a coordinator and its workers agree on before the first round; its digest stands in every assignment.

    task, sources: digests. data: root of the data set. key: of all randomness (hex). anchor: what the coordinator's chain of draws
    begins with. coordinator: their public key (base64 of DER). environment: digest of the numeric environment that workers have to
    have, None where arithmetic is portable or limits are calibrated.
    """

    task: str
    sources: str | None
    data: str
    key: str
    arithmetic: str
    environment: str | None
    rules: Rules
    anchor: str
    coordinator: str
    size: int

    @property
    def bits(self) -> bool:
        """Whether everybody who computes a slice of it gets the same bits, so that another result is a lie."""
        return self.rules.limit is None and (self.arithmetic == PORTABLE or self.environment is not None)

    def digest(self) -> str:
        return canonical.sha256(b"pol/v1/run\0", canonical.encode(self))


def read_run(raw: bytes) -> Run:
    """What a coordinator says of a run, of which nothing is known yet. Raises FormatError for what makes no sense."""
    what = "what the coordinator says of the run"
    run = canonical.decode(raw, Run, what)
    public_key(run.coordinator, "the coordinator's key")
    try:
        check(run.rules)
    except UsageError as error:
        raise FormatError(f"{what}: {error}") from None
    if not all(re.fullmatch("[0-9a-f]{64}", text) for text in (run.key, run.anchor)) or run.size < 1:
        raise FormatError(f"{what}: its key, its anchor or its size is none")
    if run.arithmetic not in (NATIVE, PORTABLE):
        raise FormatError(f"{what}: there is no arithmetic {canonical.brief(run.arithmetic)!r}")
    return run


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a coordinator signs at the end: the run, the journal's head and the proof's root."""

    run: str
    head: str
    root: str


_TYPES: dict[type[Any], str] = {
    Assignment: "urn:proof-of-learning:distributed:assignment:v1",
    Commitment: "urn:proof-of-learning:distributed:update:v1",
    Head: "urn:proof-of-learning:distributed:head:v1",
}


def signed(value: Assignment | Commitment | Head, key: PrivateKey) -> bytes:
    """An envelope with one signature."""
    return signatures.seal(_payload(value), [key])


def opened(raw: bytes, type_: type[T], key: PublicKey, what: str) -> T:
    """What an envelope says, if ``key`` signed it. Raises FormatError."""
    if len(raw) > MAX_MESSAGE:
        raise FormatError(f"{what} has {len(raw):,} bytes; at most {MAX_MESSAGE:,} are accepted")
    envelope = signatures.open_envelope(raw, what)
    if not envelope.signed_by([key]):
        raise FormatError(f"{what} is not signed by the key that it has to be signed by")
    told = canonical.decode(envelope.payload, dict[str, Any], what)
    try:
        value = msgspec.convert(told.get("predicate"), type_, strict=True)
    except msgspec.ValidationError as error:
        raise FormatError(f"{what} is not valid: {canonical.brief(error)}") from None
    if _payload(value) != envelope.payload:  # type: ignore[arg-type]
        raise FormatError(f"{what} is a statement about something else")
    return value


def _payload(value: Assignment | Commitment | Head) -> bytes:
    told = msgspec.to_builtins(value)
    about = {Assignment: "start", Commitment: "result", Head: "head"}[type(value)]
    subject = [{"name": about, "digest": {"sha256": str(told[about]).removeprefix("sha256:")}}]
    kind = _TYPES[type(value)]
    raw: bytes = canonical.encode_plain(
        {"_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": told}
    )
    return raw


def pack(made: Slice) -> bytes:
    """An update as bytes: its float32 numbers, then the loss."""
    raw: bytes = made.update.astype("<f4", copy=False).tobytes()
    loss: bytes = np.float32(made.loss).astype("<f4").tobytes()
    return raw + loss


def unpack(raw: bytes, size: int) -> tuple[Vector, float]:
    """Raises FormatError for another number of bytes than ``size`` numbers and a loss have."""
    if len(raw) != 4 * size + 4:
        raise FormatError(f"an update of {len(raw):,} bytes came where one has {4 * size + 4:,}")
    numbers = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    return numbers[:-1], float(numbers[-1])


def result_digest(raw: bytes) -> str:
    return canonical.sha256(b"pol/v1/update\0", raw)


def public_key(text: str, what: str) -> PublicKey:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise FormatError(f"{what} is no public key") from None
    return signatures.decode_public(raw, what)


def key_text(key: PublicKey) -> str:
    return base64.b64encode(key.encoded).decode()
