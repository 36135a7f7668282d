"""Signatures: keys in PEM, and DSSE envelopes (https://github.com/secure-systems-lab/dsse, version 1).

ECDSA over P-256 with SHA-256 is what is made; Ed25519 is read, too. Any DSSE library, and ``openssl dgst -verify`` over
:func:`pae`, verifies what is made here.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from proof_of_learning import canonical, keeping
from proof_of_learning.errors import FormatError, RecordingError, UsageError
from proof_of_learning.limits import MAX_ATTESTATION, MAX_KEY, MAX_SIGNATURES

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_P = 2**255 - 19
_ORDER_8 = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826  # y of points of order 8; the other is its negative
_SMALL = frozenset({0, 1, _P - 1, _ORDER_8, _P - _ORDER_8})
_MAX_PASSPHRASE = 1000

_Public = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with. ``encoded``: its one DER form (SubjectPublicKeyInfo); ``digest`` names it."""

    encoded: bytes

    @property
    def digest(self) -> str:
        return canonical.sha256(self.encoded)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        key = _loaded(self.encoded)
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            else:
                assert isinstance(key, ed25519.Ed25519PublicKey)
                key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


# Of an envelope with many signatures each key is tried with each of them, and to read a key takes longer than that.
@functools.lru_cache(maxsize=256)
def _loaded(encoded: bytes) -> Any:
    return serialization.load_der_public_key(encoded)


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """A key that signs."""

    _key: _Private

    @property
    def public(self) -> PublicKey:
        return _public(self._key.public_key(), "the key")

    @property
    def elliptic(self) -> bool:
        """Whether it is a P-256 key, and not an Ed25519 one."""
        return isinstance(self._key, ec.EllipticCurvePrivateKey)

    def sign(self, message: bytes) -> bytes:
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, ec.ECDSA(hashes.SHA256()))
        return self._key.sign(message)


# ---- keys in files ----------------------------------------------------------------------------------------------


def generate(path: str | os.PathLike[str], passphrase: bytes | None = None) -> PublicKey:
    """Write a new P-256 key to ``path`` (for its owner's eyes only) and its public half beside it, ``key.pem`` → ``key.pub.pem``.

    passphrase: what the file is encrypted with. Raises UsageError where a file is there already: no key is ever overwritten.
    """
    place, public_place = Path(path), public_path(path)
    _usable(passphrase)
    for file in (place, public_place):
        if file.exists() or file.is_symlink():
            raise UsageError(f"{file} exists; a key is never overwritten, choose another name")
    if not place.parent.is_dir():
        raise UsageError(f"there is no folder {place.parent} to write the key into")
    key = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    made = _public(key.public_key(), "the key")
    try:
        keeping.write_new(place, secret)
        keeping.write_new(public_place, to_pem(made), 0o644)
    except OSError as error:
        raise RecordingError(f"the key {place} cannot be written: {error.strerror or error}") from None
    return made


def public_path(path: str | os.PathLike[str]) -> Path:
    place = Path(path)
    return place.with_name(f"{place.name.removesuffix('.pem')}.pub.pem")


def to_pem(key: PublicKey) -> bytes:
    body = base64.encodebytes(key.encoded).replace(b"\n", b"")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""])


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether the key in ``path`` needs a passphrase."""
    raw = _read(path)
    return b"ENCRYPTED" in raw


def load_private(path: str | os.PathLike[str], passphrase: bytes | None = None) -> PrivateKey:
    """A key that signs, from PEM. Raises UsageError, which quotes nothing of the file."""
    raw = _read(path)
    locked = b"ENCRYPTED" in raw
    if locked and passphrase is None:
        raise UsageError(f"the key {path} is locked with a passphrase, and none was given")
    _usable(passphrase)
    try:
        key = serialization.load_pem_private_key(raw, passphrase if locked else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if locked:
            raise UsageError(f"the key {path} does not open with this passphrase, or is damaged") from None
        advice = "it holds a public key" if b"PUBLIC KEY" in raw else "expected a PEM file with a private key"
        raise UsageError(f"the key {path} cannot be read: {advice}") from None
    if not isinstance(key, (ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
        raise UsageError(_kind(f"the key {path}"))
    _public(key.public_key(), f"the key {path}")
    return PrivateKey(key)


def load_public(path: str | os.PathLike[str]) -> PublicKey:
    """A key that verifies, from PEM. Raises UsageError."""
    raw = _read(path)
    if b"PRIVATE KEY" in raw:
        raise UsageError(f"{path} holds a private key; hand over its public half (`key.pub.pem`) alone")
    try:
        key = serialization.load_pem_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(
            f"the public key {path} cannot be read: expected a PEM file that begins with BEGIN PUBLIC KEY"
        ) from None
    return _public(key, f"the public key {path}")


def decode_public(encoded: bytes, what: str) -> PublicKey:
    """A public key from DER that nobody vouches for. Raises FormatError."""
    try:
        found = _public(serialization.load_der_public_key(encoded), what)
    except (ValueError, TypeError, UnsupportedAlgorithm, UsageError) as error:
        message = str(error) if isinstance(error, UsageError) else f"{what} cannot be read"
        raise FormatError(message) from None
    if found.encoded != encoded:
        raise FormatError(f"{what} is not in its one form")
    return found


def _public(key: Any, what: str) -> PublicKey:
    """The key, if it is of a kind that we use, and means something: UsageError for others."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise UsageError(_kind(what))
    elif isinstance(key, ed25519.Ed25519PublicKey):
        y = int.from_bytes(key.public_bytes_raw(), "little") & ((1 << 255) - 1)
        if y >= _P or y in _SMALL:
            raise UsageError(f"{what} is an Ed25519 key of small order, for which anybody can make signatures")
    else:
        raise UsageError(_kind(what))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return PublicKey(key.public_bytes(serialization.Encoding.DER, form))


def _kind(what: str) -> str:
    return f"{what} is of another kind than P-256 or Ed25519; `pol keygen` makes one that every tool reads"


def _usable(passphrase: bytes | None) -> None:
    if passphrase is not None and not 0 < len(passphrase) <= _MAX_PASSPHRASE:
        raise UsageError(f"a passphrase has 1 to {_MAX_PASSPHRASE:,} bytes")


def _read(path: str | os.PathLike[str]) -> bytes:
    raw = keeping.read(path, f"the key {path} cannot be read")
    if len(raw) > MAX_KEY:
        raise UsageError(f"the key {path} has more than {MAX_KEY:,} bytes, which no key has")
    return raw


# ---- envelopes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Envelope:
    """A payload with signatures that may or may not be good."""

    payload: bytes
    signatures: tuple[bytes, ...]

    def tries(self, keys: Sequence[PublicKey]) -> int:
        """How many signatures :meth:`signed_by` may have to look at."""
        return len(set(keys)) * len(self.signatures)

    def signed_by(self, keys: Sequence[PublicKey]) -> list[str]:
        """Digests of those ``keys`` that a signature is good for. Keys are counted, whatever number of signatures each has."""
        message = pae(self.payload)
        return [
            key.digest
            for key in dict.fromkeys(keys)
            if any(key.verifies(signature, message) for signature in self.signatures)
        ]


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """An envelope with one signature of each key."""
    return encoded(payload, [(key.public.digest, key.sign(pae(payload))) for key in keys])


def encoded(payload: bytes, signatures: Sequence[tuple[str, bytes]]) -> bytes:
    """An envelope as JSON; ``signatures`` with the digest of the key that each is of."""
    return canonical.encode(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": name, "sig": base64.b64encode(made).decode()} for name, made in signatures],
        }
    )


def open_envelope(raw: bytes, what: str) -> Envelope:
    """Read an envelope that anybody may have made: fields that are not known, key ids and repetitions do no harm.

    Raises FormatError where it holds no in-toto statement, or too much.
    """
    if len(raw) > MAX_ATTESTATION:
        raise FormatError(f"{what} has {len(raw):,} bytes; at most {MAX_ATTESTATION:,} are accepted")
    value: Any = canonical.lenient(raw, Any, what)
    if not isinstance(value, dict) or value.get("payloadType") != PAYLOAD_TYPE:
        raise FormatError(f"{what} is no DSSE envelope with a payload of type {PAYLOAD_TYPE}")
    given = value.get("signatures")
    if not isinstance(given, list) or len(given) > MAX_SIGNATURES:
        raise FormatError(f"{what} has no list of at most {MAX_SIGNATURES} signatures")
    signatures = [_bytes(item.get("sig")) for item in given if isinstance(item, dict)]
    payload = _bytes(value.get("payload"))
    if payload is None:
        raise FormatError(f"{what} has no payload in base64")
    return Envelope(payload, tuple(dict.fromkeys(made for made in signatures if made)))


def _bytes(text: object) -> bytes | None:
    """Base64, of either alphabet."""
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None
