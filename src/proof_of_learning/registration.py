"""Registration: the claim that is fixed before training, from which all randomness follows.

The claim names task, settings, data, planned steps, k, codec, numeric environment, owners, a link in a chain of trust, and a
nonce; the key
of the run is its hash, so nothing is left for a cheat to choose afterwards. What lies beside the claim in ``claim.json``
(when it was made, by its own word; the runs that used it; timestamps and signatures) is not under that hash.
"""

from __future__ import annotations

import datetime
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from proof_of_learning import canonical
from proof_of_learning.data.commit import DataCommitment
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.limits import MAX_CLAIM, MAX_OWNERS
from proof_of_learning.proof import files
from proof_of_learning.proof.format import ARITHMETIC, VERSION, VERSIONS, CodecClaim, Header, Input, Plain, check_digest
from proof_of_learning.training.environment import Environment

SCHEMA = "pol/claim/v2"
SCHEMA_1 = "pol/claim/v1"
CLOCK_SKEW = datetime.timedelta(minutes=5)
_FIXED_1 = ("task", "name", "data", "steps", "interval", "codec", "environment", "start")


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is fixed before training, in the words of the header.

    steps: the planned ones. sources: digest of the task's description and sources, None where it is not fixed. start: root of the
    proof that training starts from. owners: digests of public keys, of which ``threshold`` have to sign; recovery: one more, which
    may replace them.
    """

    format: str
    task: str
    name: str
    data: DataCommitment
    steps: int | None
    interval: int
    steps_per_epoch: int
    codec: CodecClaim
    environment: Environment
    nonce: str
    arithmetic: str
    sources: str | None = None
    arguments: list[str] = []
    settings: dict[str, Plain] = {}
    sealed: str | None = None
    inputs: list[Input] = []
    start: str | None = None
    owners: list[str] = []
    threshold: int = 0
    recovery: str | None = None

    def encoded(self) -> bytes:
        return canonical.encode(self)

    def digest(self) -> str:
        version = VERSIONS.get(self.format, VERSION)
        return canonical.sha256(f"pol/v{version}/claim\0".encode(), self.encoded())

    def key(self) -> bytes:
        """The 32-byte key of the run: the claim's digest itself."""
        return bytes.fromhex(self.digest()[7:])

    def fixed(self) -> tuple[str, ...]:
        """The names of what is fixed, as :func:`_fixed_by` has them."""
        return (*_FIXED_1, "format", "steps_per_epoch", "arithmetic", "arguments", "settings", "sealed", "inputs")


class _Claim1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A claim of version 1 as it is on disk."""

    task: str
    name: str
    data: DataCommitment
    steps: int
    interval: int
    codec: CodecClaim
    environment: Environment
    nonce: str
    owner_key: str | None = None
    start: str | None = None


class Claim1(Claim, frozen=True):
    """A claim that was read from version 1, and encodes as one."""

    def encoded(self) -> bytes:
        own = {name: getattr(self, name) for name in (*_FIXED_1, "nonce")}
        return canonical.encode(_Claim1(**own, owner_key=self.owners[0] if self.owners else None))

    def fixed(self) -> tuple[str, ...]:
        return _FIXED_1


def _upgraded(claim: _Claim1) -> Claim1:
    own = {name: getattr(claim, name) for name in (*_FIXED_1, "nonce")}
    owners = [] if claim.owner_key is None else [claim.owner_key]
    return Claim1(format="pol/proof/v1", steps_per_epoch=0, arithmetic=ARITHMETIC, owners=owners, **own)


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run under the claim: its header's digest, and its root once it is finished."""

    header: str
    root: str | None = None


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``claim.json``. ``created`` is what its maker says (RFC 3339, UTC); ``seals`` will hold timestamps and signatures."""

    schema: str
    claim: Claim
    created: str
    runs: list[Run] = []
    seals: list[dict[str, Any]] = []

    def encoded(self) -> bytes:
        return canonical.encode(self)

    @property
    def unfinished(self) -> list[Run]:
        """Runs that were started under the claim and not finished."""
        return [run for run in self.runs if run.root is None]


class _Schema(msgspec.Struct, frozen=True):
    schema: str


class _Registration1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    claim: _Claim1
    created: str
    runs: list[Run] = []
    seals: list[dict[str, Any]] = []


def new_claim(header: Header, environment: Environment, owner_key: str | None = None) -> Registration:
    """A fresh claim for the run that ``header`` (made from the task's seed) describes. ``owner_key``: a public key, in hex."""
    try:
        owners = [] if owner_key is None else [canonical.sha256(bytes.fromhex(owner_key))]
    except ValueError:
        raise UsageError("the owner's public key is not an even number of hex digits") from None
    fixed = _fixed_by(header, environment)
    claim = Claim(nonce=secrets.token_hex(32), owners=owners, threshold=len(owners), **fixed)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return Registration(SCHEMA, claim, now.isoformat().replace("+00:00", "Z"))


def load(path: str | os.PathLike[str]) -> Registration:
    """Read ``claim.json``. Raises FormatError for a malformed one, UsageError for one from the future."""
    raw, what = bytes(files.read_bounded(Path(path), MAX_CLAIM, f"the claim {path}")), f"the claim {path}"
    try:
        schema = msgspec.json.decode(raw, type=_Schema, strict=True).schema
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} is not valid: {canonical.brief(error)}") from error
    if schema == SCHEMA_1:
        old = canonical.decode(raw, _Registration1, what)
        registration = Registration(schema, _upgraded(old.claim), old.created, old.runs, old.seals)
    elif schema == SCHEMA:
        registration = canonical.decode(raw, Registration, what)
        _check(registration.claim, what)
    else:
        raise FormatError(f"{what} has schema {schema[:64]!r}; this version reads {SCHEMA_1!r} and {SCHEMA!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", registration.claim.nonce):
        raise FormatError(f"{what} has no nonce of 64 hex digits")
    try:
        created = datetime.datetime.fromisoformat(registration.created.replace("Z", "+00:00"))
        ahead = created - datetime.datetime.now(datetime.UTC)
    except (ValueError, TypeError):
        raise FormatError(f"the claim {path} does not say when it was created (RFC 3339, UTC)") from None
    if ahead > CLOCK_SKEW:
        raise UsageError(f"the claim {path} is from the future ({registration.created}); check both clocks")
    return registration


def apply(registration: Registration, header: Header, environment: Environment) -> Header:
    """``header`` as it stands under the claim; UsageError naming the first thing the claim does not allow."""
    claim = registration.claim
    if registration.schema != SCHEMA:
        raise UsageError(
            "the claim was registered in version 1 of the format, which is not recorded any more; register anew"
        )
    for name, found in _fixed_by(header, environment).items():
        wanted = getattr(claim, name)
        if wanted != found:
            raise UsageError(
                f"the claim fixes {_difference(name, wanted, found)}; register a new claim for another run"
            )
    randomness = msgspec.structs.replace(header.randomness, key=claim.key().hex(), seed=None, claim=claim.digest())
    return msgspec.structs.replace(header, randomness=randomness, claim=msgspec.to_builtins(claim))


def violations(header: Header, environments: Mapping[str, Environment]) -> list[str]:
    """Where a sealed proof's header or environments differ from its own claim; empty if nowhere.

    Raises FormatError if the claim in the header is malformed.
    """
    claim = claim_of(header)
    found = (
        [] if claim.digest() == header.randomness.claim else ["the claim's digest is not the one that the key names"]
    )
    found += [] if claim.key().hex() == header.randomness.key else ["the key is not the hash of the claim"]
    # What is on record need not follow from the claim: anybody's observed run would fit under anybody's claim.
    if header.randomness.mode == "recorded":
        found.append("under a claim batches and generator states follow from its hash, but here they were recorded")
    if header.initialization.kind == "recorded":
        found.append("under a claim the initial state follows from its hash, but here it was recorded")
    for environment in environments.values():
        for name, value in _fixed_by(header, environment).items():
            if name in claim.fixed() and value != getattr(claim, name):
                found.append(f"the claim fixes {_difference(name, getattr(claim, name), value)}")
    return found


def claim_of(header: Header) -> Claim:
    """The claim inside a header."""
    what = "the claim in the proof's header"
    try:
        if header.version == 1:
            return _upgraded(msgspec.convert(header.claim, _Claim1))
        claim = msgspec.convert(header.claim, Claim)
    except msgspec.ValidationError as error:
        raise FormatError(f"{what} is malformed: {error}") from None
    _check(claim, what)
    return claim


def _check(claim: Claim, what: str) -> None:
    """Whether a claim says what one can, and nothing that this version does not know. Raises FormatError."""
    keys = [*claim.owners, *([] if claim.recovery is None else [claim.recovery])]
    for digest in (*keys, *([] if claim.sources is None else [claim.sources])):
        check_digest(digest, f"{what}: the digest of an owner's key, or of sources,")
    if (
        len(set(keys)) != len(keys)
        or len(keys) > MAX_OWNERS
        or not bool(claim.owners) <= claim.threshold <= len(claim.owners)
    ):
        raise FormatError(f"{what} names owners twice, too many, or a threshold that they cannot reach")
    if claim.sources is not None or claim.recovery is not None:
        raise FormatError(f"{what} fixes sources or a recovery key, which this version cannot check")


def begin(path: Path, header: Header, resuming: bool) -> None:
    """Write into ``claim.json`` that a run has started. UsageError if the claim was used by another run already."""
    registration = load(path)
    digest = header.digest()
    known = [run for run in registration.runs if run.header == digest]
    if registration.runs and not (known and resuming):
        state = "was not finished" if registration.unfinished else "is finished"
        raise UsageError(
            f"the claim {path} was already used by a run that {state}; resume it in its own directory, or register a new claim"
        )
    if not known:
        _save(path, msgspec.structs.replace(registration, runs=[*registration.runs, Run(digest)]))


def finish(path: Path, header: Header, root: str) -> None:
    """Write into ``claim.json`` that the run is finished."""
    registration = load(path)
    runs = [Run(run.header, root) if run.header == header.digest() else run for run in registration.runs]
    _save(path, msgspec.structs.replace(registration, runs=runs))


def save_new(path: Path, registration: Registration) -> None:
    """Write a new ``claim.json``; never over an existing file."""
    if path.exists():
        raise UsageError(f"{path} exists; a claim is never overwritten, choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write the claim into")
    _save(path, registration)


def _save(path: Path, registration: Registration) -> None:
    files.write_atomic(path, [registration.encoded()], durable=True)


def _fixed_by(header: Header, environment: Environment) -> dict[str, Any]:
    return {
        "task": header.task.digest,
        "name": header.task.name,
        "data": header.data,
        "format": header.format,
        "steps": header.training.planned,
        "interval": header.training.interval,
        "steps_per_epoch": header.training.steps_per_epoch,
        "arithmetic": header.arithmetic,
        "arguments": header.program.arguments,
        "settings": header.program.settings,
        "sealed": header.program.sealed,
        "inputs": header.inputs,
        "codec": header.codec,
        "environment": environment,
        "start": header.initialization.proof,
    }


def _difference(name: str, wanted: Any, found: Any) -> str:
    if isinstance(wanted, Environment) and isinstance(found, Environment):
        for field in Environment.__struct_fields__:
            if getattr(wanted, field) != getattr(found, field):
                return f"the environment's {field} as {getattr(wanted, field)}, not {getattr(found, field)}"
    short = [str(msgspec.to_builtins(value)) for value in (wanted, found)]
    return f"{name} as {short[0][:120]}, not {short[1][:120]}"
