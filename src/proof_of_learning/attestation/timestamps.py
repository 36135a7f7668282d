"""Timestamps: RFC 3161 tokens, as ``openssl ts -verify`` accepts them.

A token says that some bytes existed at a time. The times are intervals; the authorities are those that a verifier names. The chain of
certificates is OpenSSL's affair (by way of rfc3161-client), at the time that the token says; what is signed is looked at here, byte by
byte, because the key of a run may follow from it.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import rfc3161_client as rfc3161
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from proof_of_learning import canonical, keeping
from proof_of_learning.attestation import der
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.limits import MAX_ROOTS, MAX_TOKEN

UNSAID = datetime.timedelta(seconds=1)  # the accuracy where a token says none: its times are whole seconds
_SHA256 = "2.16.840.1.101.3.4.2.1"
_HASHES: dict[str, tuple[str, type[hashes.HashAlgorithm]]] = {
    _SHA256: ("sha256", hashes.SHA256),
    "2.16.840.1.101.3.4.2.2": ("sha384", hashes.SHA384),
    "2.16.840.1.101.3.4.2.3": ("sha512", hashes.SHA512),
}
_CONTENT_TYPE, _MESSAGE_DIGEST, _SIGNING_TIME = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.5"
_SIGNING_CERTIFICATE, _SIGNING_CERTIFICATE_2 = "1.2.840.113549.1.9.16.2.12", "1.2.840.113549.1.9.16.2.47"
_SIGNED_DATA, _TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
_CERTIFICATES = 0xA0  # the tag of their list
_REMEMBERED = 512  # tokens, and what was found out about them
_GRANTED = 0
# So that what is added to a time, or taken from it, is a time.
_TIMES = tuple(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (1970, 9999))


@dataclass(frozen=True)
class Authorities:
    """Certificates that a verifier trusts to date things; empty: nobody."""

    certificates: tuple[x509.Certificate, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.certificates)


class Certificate:
    """A certificate, of which what is asked again and again is found out once. ``encoded``: its DER."""

    def __init__(self, encoded: bytes) -> None:
        """Raises ValueError for what is none."""
        self.encoded, self._x509 = encoded, x509.load_der_x509_certificate(encoded)

    def era(self, moment: datetime.datetime) -> tuple[int, int]:
        """Whether a time is before (-1), at (0) or after (1) the one from which it holds, and the one until which it does."""
        since, until = self._times
        return (moment > since) - (moment < since), (moment > until) - (moment < until)

    @cached_property
    def _times(self) -> tuple[datetime.datetime, datetime.datetime]:
        return self._x509.not_valid_before_utc, self._x509.not_valid_after_utc

    @cached_property
    def named(self) -> tuple[bytes, int]:
        """Its issuer's name in DER, and the number that it has of it."""
        return self._x509.issuer.public_bytes(), self._x509.serial_number

    @cached_property
    def public(self) -> Any:
        """Its public key."""
        return self._x509.public_key()

    @cached_property
    def owner(self) -> tuple[str, str]:
        """Whose it is, and the digest of its key."""
        key = self.public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return canonical.brief(self._x509.subject.rfc4514_string()), canonical.sha256(key)

    @cached_property
    def misused(self) -> str:
        """Why a token with it counts for nothing; empty where it is for timestamps alone."""
        try:
            usage = self._x509.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        except x509.ExtensionNotFound:
            return "the authority's certificate is not for timestamps"
        if not usage.critical or list(usage.value) != [ExtendedKeyUsageOID.TIME_STAMPING]:
            return "the authority's certificate is not for timestamps alone (critical extended key usage)"
        return ""


@dataclass(frozen=True)
class Token:
    """A token whose own signature holds, by whoever it is. ``stamped``: SHA-256 of what was stamped, in hex.

    earliest, latest: when. anchor: digest of what was signed and of the signature in its normal form. authority: its name, by its
    own certificate; key: digest of its public key (SubjectPublicKeyInfo).
    certificates: those in it. like: SHA-256 of all of it but what it says and signs of this one time; tokens that are alike differ
    in nothing that a chain of certificates is judged by, except in when.
    """

    stamped: str
    earliest: datetime.datetime
    latest: datetime.datetime
    anchor: str
    authority: str
    key: str
    nonce: int | None
    raw: bytes
    certificates: tuple[Certificate, ...]
    like: bytes


def load_authorities(paths: Sequence[str | os.PathLike[str]]) -> Authorities:
    """The certificates in PEM files. Raises UsageError."""
    found: list[x509.Certificate] = []
    for path in paths:
        raw = keeping.read(path, f"--trusted-tsa {path}", MAX_ROOTS)
        try:
            loaded = x509.load_pem_x509_certificates(raw) if len(raw) <= MAX_ROOTS else []
        except ValueError:
            loaded = []
        if not loaded:
            raise UsageError(f"--trusted-tsa {path}: expected certificates in PEM, at most {MAX_ROOTS:,} bytes")
        found += loaded
    return Authorities(tuple(dict.fromkeys(found)))


def request(data: bytes) -> tuple[bytes, int]:
    """A request for a token on ``data``, and the nonce in it."""
    made = (
        rfc3161.TimestampRequestBuilder()
        .data(data)
        .hash_algorithm(rfc3161.base.HashAlgorithm.SHA256)
        .nonce(nonce=True)
        .cert_request(cert_request=True)
        .build()
    )
    assert made.nonce is not None
    return made.as_bytes(), made.nonce


@functools.lru_cache(maxsize=_REMEMBERED)
def parse(raw: bytes, what: str) -> Token:
    """Read a token, and see that the one who signed it is the one whose certificate is in it. Nobody is trusted by that.

    Raises FormatError where it is no granted, SHA-256, single-signed token with the attributes that RFC 3161 and RFC 5816 ask for.
    """
    if len(raw) > MAX_TOKEN:
        raise FormatError(f"{what} has {len(raw):,} bytes; at most {MAX_TOKEN:,} are accepted")
    try:
        return _parse(raw, what)
    except FormatError as error:
        raise FormatError(f"{what} is no timestamp token that can be used: {error}") from None
    except Exception as error:  # what the libraries for certificates raise at nonsense is not documented in full
        raise FormatError(f"{what} is no timestamp token that can be used: {canonical.brief(error)}") from None


def _parse(raw: bytes, what: str) -> Token:
    top = der.parse(raw, what).expect(der.SEQUENCE, what).children()
    if _status(top[0]) != _GRANTED or len(top) != 2:
        raise FormatError(f"the authority refused (status {_status(top[0])})")
    kind, wrapped = top[1].children()
    if kind.body != _oid(_SIGNED_DATA):
        raise FormatError("it is not signed data")
    parts = wrapped.children()[0].children()
    content, signers = parts[2].children(), parts[-1].expect(der.SET, "the list of signers").children()
    if content[0].body != _oid(_TST_INFO) or len(content) != 2 or len(signers) != 1:
        raise FormatError("it is not the statement of one authority about a time")
    info = content[1].children()[0].expect(der.OCTETS, "the time")
    signer = _Signer.of(signers[0])
    held = [item.whole for part in parts[3:-1] if part.tag == _CERTIFICATES for item in part.children()]
    certificates = tuple(map(_certificate, dict.fromkeys(held)))
    said = _decoded(raw).tst_info  # which sees to it that the rest is as it has to be, too
    leaf = next((item for item in certificates if item.named == (signer.issuer, signer.serial)), None)
    if leaf is None:
        raise FormatError("the authority's certificate is not in it; ask the authority for tokens with certificates")
    signer.check(info.body, leaf)
    imprint = said.message_imprint
    if imprint.hash_algorithm.dotted_string != _SHA256 or len(imprint.message) != 32:
        raise FormatError("what it stamps is not named by SHA-256")
    if leaf.misused:
        raise FormatError(leaf.misused)
    time = said.gen_time
    time = time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC)
    about, (owner, key) = _accuracy(said), leaf.owner
    if not _TIMES[0] <= time - about <= time + about <= _TIMES[1]:
        raise FormatError("its time is none that a clock may have")
    return Token(
        stamped=bytes(imprint.message).hex(),
        earliest=time - about,
        latest=time + about,
        anchor=canonical.sha256(
            b"pol/v2/anchor\0", len(signer.signed).to_bytes(8, "little"), signer.signed, signer.normal(leaf)
        ),
        authority=owner,
        key=key,
        nonce=said.nonce,
        raw=raw,
        certificates=certificates,
        like=_without(raw, [info, *signer.of_one_time]),
    )


def trusted(token: Token, authorities: Authorities) -> str:
    """Why the authorities of a verifier do not vouch for a token; empty where they do.

    Certificates count at the time that the token says: one that expired since dated what it dated.
    """
    if not authorities:
        return "no authority was named (--trusted-tsa)"
    return _vouching(authorities).why_not(token)


class _Vouching:
    """Whom authorities vouch for. A proof may have a hundred tokens of one authority: what is the same for all is found out once."""

    def __init__(self, authorities: Authorities) -> None:
        roots = [item for item in authorities.certificates if item.issuer == item.subject]
        between = [item for item in authorities.certificates if item not in roots]
        self._verifier = rfc3161.VerifierBuilder(roots=roots, intermediates=between).build() if roots else None
        self._own = [_certificate(item.public_bytes(serialization.Encoding.DER)) for item in authorities.certificates]
        self._told: dict[tuple[bytes, tuple[tuple[int, int], ...]], str] = {}

    def why_not(self, token: Token) -> str:
        """See :func:`trusted`. Of a token's own, its signature and what it signs were checked when it was read. What is left is the
        chain of certificates, which time changes only where one of them begins or ceases to hold.
        """
        if self._verifier is None:
            return "none of the certificates that were named (--trusted-tsa) is a root"
        moment = _decoded(token.raw).tst_info.gen_time.replace(microsecond=0, tzinfo=datetime.UTC)
        alike = token.like, tuple(item.era(moment) for item in (*self._own, *token.certificates))
        if alike not in self._told:
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told[alike] = self._judged(self._verifier, token)
        return self._told[alike]

    def _judged(self, verifier: rfc3161.Verifier, token: Token) -> str:
        try:
            verifier.verify(_decoded(token.raw), bytes.fromhex(token.stamped))
        except Exception as error:  # as above
            told = str(error).rpartition("reason: ")[2].split('"')[1:2] or [str(error)]
            return f"no authority that was named vouches for it at the time that it says ({canonical.brief(told[0])})"
        return ""


@functools.lru_cache(maxsize=8)
def _vouching(authorities: Authorities) -> _Vouching:
    return _Vouching(authorities)


@functools.lru_cache(maxsize=64)
def _certificate(encoded: bytes) -> Certificate:
    return Certificate(encoded)


@functools.lru_cache(maxsize=_REMEMBERED)
def _decoded(raw: bytes) -> rfc3161.TimeStampResponse:
    return rfc3161.decode_timestamp_response(raw)


def _without(raw: bytes, nodes: Iterable[der.Node]) -> bytes:
    """SHA-256 of ``raw`` without the content of ``nodes``, none of which lies in another."""
    hasher, at = hashlib.sha256(len(raw).to_bytes(8, "little")), 0
    for node in sorted(nodes, key=lambda node: node.at):
        hasher.update(raw[at : node.start])  # with its length, so that nothing can move from one into another
        at = node.stop
    hasher.update(raw[at:])
    return hasher.digest()


@dataclass(frozen=True)
class _Signer:
    """CMS's SignerInfo (RFC 5652). ``signed``: the bytes that the signature is over; ``attributes``: by the content of their OID."""

    issuer: bytes
    serial: int
    digest: str
    attributes: dict[bytes, der.Node]
    signed: bytes
    signature: der.Node

    @classmethod
    def of(cls, node: der.Node) -> _Signer:
        parts = node.expect(der.SEQUENCE, "the signer").children()
        name, serial = parts[1].expect(der.SEQUENCE, "the signer's name").children()
        signed = parts[3].expect(0xA0, "the signer's attributes")
        attributes: dict[bytes, der.Node] = {}
        for item in signed.children():
            kind, values = item.children()
            value = values.expect(der.SET, "an attribute").children()
            named = kind.expect(der.OID, "an attribute").body
            if len(value) != 1 or named in attributes:
                raise FormatError("an attribute stands in it twice")
            attributes[named] = value[0]
        digest = _dotted(parts[2].children()[0].body)
        # What is signed has the tag of a SET, in the place of the one that marks where it stands.
        return cls(
            name.whole, int.from_bytes(serial.body, "big", signed=True), digest, attributes,
            bytes([der.SET]) + signed.whole[1:], parts[5].expect(der.OCTETS, "the signature"),
        )  # fmt: skip

    @property
    def of_one_time(self) -> list[der.Node]:
        """What is another in every token, and was checked here or says nothing."""
        changing = (self.attributes.get(_oid(kind)) for kind in (_MESSAGE_DIGEST, _SIGNING_TIME))
        return [self.signature, *(node for node in changing if node is not None)]

    def check(self, info: bytes, leaf: Certificate) -> None:
        """The signature over the attributes, theirs over ``info``, and that they name this very certificate."""
        name, kind = _HASHES.get(self.digest, ("", None))
        if kind is None:
            raise FormatError("it is signed with a hash function other than SHA-256, SHA-384 or SHA-512")
        if self.attributes[_oid(_CONTENT_TYPE)].body != _oid(_TST_INFO):
            raise FormatError("what is signed is not a time")
        if self.attributes[_oid(_MESSAGE_DIGEST)].body != hashlib.new(name, info).digest():
            raise FormatError("the time is not the one that was signed")
        self._check_certificate(leaf)
        key = leaf.public
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(self.signature.body, self.signed, padding.PKCS1v15(), kind())
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self.signature.body, self.signed, ec.ECDSA(kind()))
            else:
                raise FormatError("the authority's key is neither RSA nor on an elliptic curve")
        except InvalidSignature:
            raise FormatError("the authority's signature does not fit") from None

    def _check_certificate(self, leaf: Certificate) -> None:
        """The signing-certificate attribute (RFC 2634, RFC 5816): without it another certificate of the key could be put in."""
        if (said := self.attributes.get(_oid(_SIGNING_CERTIFICATE_2))) is not None:
            named = said.children()[0].children()[0].children()
            name = "sha256"
            if named[0].tag == der.SEQUENCE:
                name, found = _HASHES.get(_dotted(named[0].children()[0].body), ("", None))
                if found is None:
                    raise FormatError("it names the authority's certificate by an unknown hash function")
                named = named[1:]
            wanted = hashlib.new(name, leaf.encoded).digest()
        elif (said := self.attributes.get(_oid(_SIGNING_CERTIFICATE))) is not None:
            named = said.children()[0].children()[0].children()
            wanted = hashlib.sha1(leaf.encoded, usedforsecurity=False).digest()
        else:
            raise FormatError("it does not say which certificate it is signed with (signing-certificate attribute)")
        if named[0].expect(der.OCTETS, "a certificate's digest").body != wanted:
            raise FormatError("it is signed with another certificate than the one in it")

    def normal(self, leaf: Certificate) -> bytes:
        """The signature in the one form that nobody without the key can turn into another good one."""
        key = leaf.public
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return self.signature.body  # RSA: the number below the modulus, at its full length
        r, s = der.integers(self.signature.body, "the signature")
        order, width = key.curve.group_order, (key.curve.group_order.bit_length() + 7) // 8
        return r.to_bytes(width, "big") + min(s, order - s).to_bytes(width, "big")


def _status(node: der.Node) -> int:
    return int.from_bytes(node.children()[0].expect(der.INTEGER, "the status").body, "big", signed=True)


def _accuracy(info: rfc3161.tsp.TimeStampTokenInfo) -> datetime.timedelta:
    said: rfc3161.tsp.Accuracy | None = info.accuracy
    if said is None:
        return UNSAID
    seconds, millis, micros = (getattr(said, name) or 0 for name in ("seconds", "millis", "micros"))
    return datetime.timedelta(seconds=seconds, milliseconds=millis, microseconds=micros) or UNSAID


@functools.cache  # of the few above
def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    coded = bytearray([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        coded += bytes(reversed(digits))
    return bytes(coded)


@functools.lru_cache(maxsize=64)
def _dotted(body: bytes) -> str:
    parts, number = [*divmod(body[0], 40)] if body[0] < 80 else [2, body[0] - 80], 0
    for byte in body[1:]:
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            parts.append(number)
            number = 0
    return ".".join(map(str, parts))
