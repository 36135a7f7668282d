"""Registration: the claim that is fixed before training, from which all randomness follows.

The claim names task, sources, settings, data, planned steps, k, codec, numeric environment, owners, a link in a chain of trust, and
a nonce; the key of the run is its hash, so nothing is left for a cheat to choose afterwards. Where its owners signed it and an
authority stamped that, the key follows from the timestamp, too: it cannot have been known before. What lies beside the claim in
``claim.json`` (when it was made, by its own word; the runs that used it; signatures and timestamps) is not under the claim's hash.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import os
import re
import secrets
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from proof_of_learning import canonical, sources
from proof_of_learning.attestation.attested import rfc3339
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.limits import MAX_ATTESTATIONS, MAX_CLAIM, MAX_OWNERS, MAX_SIGNATURES
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof import files
from proof_of_learning.proof.format import (
    ARITHMETIC,
    ATTESTATION,
    VERSION,
    VERSIONS,
    CodecClaim,
    Header,
    Input,
    Plain,
    check_digest,
)

SCHEMA = "pol/claim/v2"
SCHEMA_1 = "pol/claim/v1"
CLOCK_SKEW = datetime.timedelta(minutes=5)
TWO_SOURCES = (
    "under a claim all randomness follows from the claim (--registration), and a seed has no meaning; leave --seed out"
)
_NAMES = {
    "arguments": "the script's arguments",
    "settings": "the settings (--set)",
    "task": "the task (its code, or a number in it)",
    "sources": "the sources (the text of the task's files)",
}
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

    def key(self, anchor: str | None = None) -> bytes:
        """The 32-byte key of the run: the claim's digest itself, or what follows from it and from the timestamp ``anchor`` on it."""
        digest = self.digest()
        if anchor is not None:
            digest = canonical.sha256(b"pol/v2/anchored\0", digest.encode(), b"\0", anchor.encode())
        return bytes.fromhex(digest[7:])

    def fixed(self) -> tuple[str, ...]:
        """The names of what is fixed, as :func:`_fixed_by` has them."""
        added = ("format", "steps_per_epoch", "arithmetic", "arguments", "settings", "sealed", "inputs")
        return (*_FIXED_1, *added, *(() if self.sources is None else ("sources",)))


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


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed statement of the claim, or a timestamp on one: the file that will lie in the proof, its bytes in base64."""

    name: str
    content: str


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``claim.json``. ``created`` is what its maker says (RFC 3339, UTC); ``seals`` has signatures and timestamps."""

    schema: str
    claim: Claim
    created: str
    runs: list[Run] = []
    seals: list[Kept] = []

    def encoded(self) -> bytes:
        return canonical.encode(self)

    def attestations(self) -> dict[str, bytes]:
        """The files in ``seals`` by name. Raises FormatError."""
        if len(self.seals) > MAX_ATTESTATIONS:
            raise FormatError(f"a claim has at most {MAX_ATTESTATIONS} signatures and timestamps")
        found = {}
        for item in self.seals:
            if not ATTESTATION.fullmatch(item.name):
                raise FormatError(f"the claim holds {canonical.brief(item.name)}, which is no attestation's name")
            try:
                found[item.name] = base64.b64decode(item.content, validate=True)
            except (binascii.Error, ValueError):
                raise FormatError(f"the claim holds {item.name}, which is not base64") from None
        return found

    def keeping(self, attestations: Mapping[str, bytes]) -> Registration:
        """The same with these files in ``seals``."""
        kept = [Kept(name, base64.b64encode(raw).decode()) for name, raw in sorted(attestations.items())]
        return msgspec.structs.replace(self, seals=kept)

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


def new_claim(
    header: Header,
    environment: Environment,
    owners: Iterable[str] = (),
    threshold: int | None = None,
    recovery: str | None = None,
) -> Registration:
    """A fresh claim for the run that ``header`` (made from the task's seed) describes.

    owners: digests of public keys. threshold: how many of them have to sign (default: all). recovery: of one more, which may put
    another key in an owner's place.
    """
    fixed, named = _fixed_by(header, environment), sorted(set(owners))
    if named and fixed["sources"] is None:
        raise UsageError(
            "the task's sources are not available in full, and a claim that owners sign has to fix them; keep the task in a file of "
            "its own, with its functions defined there (`pol doctor` says which are missing)"
        )
    needed = len(named) if threshold is None else threshold
    if len(named) > MAX_OWNERS or not bool(named) <= needed <= min(len(named), MAX_SIGNATURES):
        raise UsageError(
            f"a claim has at most {MAX_OWNERS} owners, of whom at most {MAX_SIGNATURES} sign, and {needed} of {len(named)} cannot "
            "have to; say how many do (--threshold)"
        )
    if recovery is not None and (not named or recovery in named):
        raise UsageError(
            "a recovery key stands beside owners, and is none of theirs; name an owner, and another key for recovery"
        )
    claim = Claim(nonce=secrets.token_hex(32), owners=named, threshold=needed, recovery=recovery, **fixed)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return Registration(SCHEMA, claim, rfc3339(now))


def load(path: str | os.PathLike[str]) -> Registration:
    """Read ``claim.json``. Raises FormatError for a malformed one, UsageError for one from the future."""
    raw, what = bytes(files.read_bounded(Path(path), MAX_CLAIM, f"the claim {path}")), f"the claim {path}"
    schema = canonical.lenient(raw, _Schema, what).schema
    if schema == SCHEMA_1:
        old = canonical.decode(raw, _Registration1, what)
        registration = Registration(schema, _upgraded(old.claim), old.created, old.runs)
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
        if wanted != found and name in claim.fixed():
            raise UsageError(
                f"the claim fixes {_difference(name, wanted, found)}; register a new claim for another run"
            )
    anchor = anchor_of(registration)
    randomness = msgspec.structs.replace(
        header.randomness, key=claim.key(anchor).hex(), seed=None, claim=claim.digest(), anchor=anchor
    )
    return msgspec.structs.replace(header, randomness=randomness, claim=msgspec.to_builtins(claim))


def refuse_other(registration: Registration, typed: Mapping[str, Any]) -> None:
    """UsageError where the claim fixes another value of what was ``typed``, by the field's name, than this."""
    for name, found in typed.items():
        if (wanted := getattr(registration.claim, name)) != found:
            raise UsageError(
                f"the claim fixes {_difference(name, wanted, found)}; register a new claim for another run"
            )


def anchor_of(registration: Registration) -> str | None:
    """The digest that the key follows from beside the claim: of the newest timestamp on it; None where there is none."""
    if not any(item.name.endswith(".tsr") for item in registration.seals):
        return None
    from proof_of_learning.attestation import gathering, timestamps

    files_ = gathering.files_of(registration.attestations())
    tokens = [timestamps.parse(file.raw, file.name) for file in files_ if file.form == gathering.TOKEN]
    stamped = {token.stamped for token in tokens}
    newest = [token for token in tokens if canonical.sha256(token.raw)[7:] not in stamped]
    if len(newest) != 1:
        raise UsageError("the claim has timestamps of which none contains all the others; register anew")
    return newest[0].anchor


def violations(header: Header, environments: Mapping[str, Environment]) -> list[str]:
    """Where a sealed proof's header or environments differ from its own claim; empty if nowhere.

    Raises FormatError if the claim in the header is malformed.
    """
    claim = claim_of(header)
    found = (
        [] if claim.digest() == header.randomness.claim else ["the claim's digest is not the one that the key names"]
    )
    of = "the hash of the claim" if header.randomness.anchor is None else "the hash of the claim and its timestamp"
    found += [] if claim.key(header.randomness.anchor).hex() == header.randomness.key else [f"the key is not {of}"]
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


def owners(header: Header) -> list[str]:
    """Digests of the keys that a header's claim names; none where it holds no claim that can be read."""
    try:
        return [] if header.claim is None else claim_of(header).owners
    except FormatError:
        return []


def _check(claim: Claim, what: str) -> None:
    """Whether a claim says what one can, and nothing that this version does not know. Raises FormatError."""
    keys = [*claim.owners, *([] if claim.recovery is None else [claim.recovery])]
    for digest in (*keys, *([] if claim.sources is None else [claim.sources])):
        check_digest(digest, f"{what}: the digest of an owner's key, or of sources,")
    if (
        len(set(keys)) != len(keys)
        or len(keys) > MAX_OWNERS
        or not bool(claim.owners) <= claim.threshold <= len(claim.owners)
        or (claim.recovery is not None and not claim.owners)
    ):
        raise FormatError(
            f"{what} names owners twice, too many, none beside a recovery key, or a threshold that they cannot reach"
        )


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


def rewrite(path: Path, registration: Registration) -> None:
    """Write a claim with further signatures and timestamps over the one that it was read from."""
    _save(path, registration)


def _save(path: Path, registration: Registration) -> None:
    if len(raw := registration.encoded()) > MAX_CLAIM:
        raise UsageError(f"the claim would have {len(raw):,} bytes; at most {MAX_CLAIM:,} are read again")
    files.write_atomic(path, [registration.encoded()], durable=True)


def _fixed_by(header: Header, environment: Environment) -> dict[str, Any]:
    return {  # what was typed comes first: of several differences the first is named
        "name": header.task.name,
        "arguments": header.program.arguments,
        "settings": header.program.settings,
        "interval": header.training.interval,
        "steps": header.training.planned,
        "task": header.task.digest,
        "sources": sources.digest(header.task.digest, header.task.sources),
        "data": header.data,
        "format": header.format,
        "steps_per_epoch": header.training.steps_per_epoch,
        "arithmetic": header.arithmetic,
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
    if name in ("arguments", "settings"):
        typed = [[f"{k}={v}" for k, v in value.items()] if name == "settings" else value for value in (wanted, found)]
        given = [repr(shlex.join(words)) if words else "none" for words in typed]
        return f"{_NAMES[name]} as {given[0][:120]}, not {given[1][:120]}"
    short = [str(msgspec.to_builtins(value)) for value in (wanted, found)]
    return f"{_NAMES.get(name, name)} as {short[0][:120]}, not {short[1][:120]}"
