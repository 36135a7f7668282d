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
from collections.abc import Sequence
from dataclasses import dataclass

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
_CONTENT_TYPE, _MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE, _SIGNING_CERTIFICATE_2 = "1.2.840.113549.1.9.16.2.12", "1.2.840.113549.1.9.16.2.47"
_SIGNED_DATA, _TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
_GRANTED = 0
# So that what is added to a time, or taken from it, is a time.
_TIMES = tuple(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (1970, 9999))


@dataclass(frozen=True)
class Authorities:
    """Certificates that a verifier trusts to date things; empty: nobody."""

    certificates: tuple[x509.Certificate, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.certificates)


@dataclass(frozen=True)
class Token:
    """A token whose own signature holds, by whoever it is. ``stamped``: SHA-256 of what was stamped, in hex.

    earliest, latest: when. anchor: digest of what was signed and of the signature in its normal form. authority: its name, by its
    own certificate; key: digest of its public key (SubjectPublicKeyInfo).
    """

    stamped: str
    earliest: datetime.datetime
    latest: datetime.datetime
    anchor: str
    authority: str
    key: str
    nonce: int | None
    raw: bytes


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


@functools.lru_cache(maxsize=512)
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
    info = content[1].children()[0].expect(der.OCTETS, "the time").body
    signer = _Signer.of(signers[0])
    response = _decoded(raw)
    certificates = [x509.load_der_x509_certificate(bytes(item)) for item in response.signed_data.certificates]
    leaf = next((item for item in certificates if signer.names(item)), None)
    if leaf is None:
        raise FormatError("the authority's certificate is not in it; ask the authority for tokens with certificates")
    signer.check(info, leaf)
    imprint = response.tst_info.message_imprint
    if imprint.hash_algorithm.dotted_string != _SHA256 or len(imprint.message) != 32:
        raise FormatError("what it stamps is not named by SHA-256")
    _time_stamping_only(leaf)
    time = response.tst_info.gen_time
    time = time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC)
    about, (owner, key) = _accuracy(response.tst_info), _owner(leaf)
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
        nonce=response.tst_info.nonce,
        raw=raw,
    )


def trusted(token: Token, authorities: Authorities) -> str:
    """Why the authorities of a verifier do not vouch for a token; empty where they do.

    Certificates count at the time that the token says: one that expired since dated what it dated.
    """
    if not authorities:
        return "no authority was named (--trusted-tsa)"
    verifier = _verifier(authorities)
    if verifier is None:
        return "none of the certificates that were named (--trusted-tsa) is a root"
    try:
        verifier.verify(_decoded(token.raw), bytes.fromhex(token.stamped))
    except Exception as error:  # as above
        told = str(error).rpartition("reason: ")[2].split('"')[1:2] or [str(error)]
        return f"no authority that was named vouches for it at the time that it says ({canonical.brief(told[0])})"
    return ""


# A proof may have a hundred tokens of the same authority: what is the same for all is made once.
@functools.lru_cache(maxsize=8)
def _verifier(authorities: Authorities) -> rfc3161.Verifier | None:
    roots = [item for item in authorities.certificates if item.issuer == item.subject]
    between = [item for item in authorities.certificates if item not in roots]
    return rfc3161.VerifierBuilder(roots=roots, intermediates=between).build() if roots else None


@functools.lru_cache(maxsize=64)
def _issuer(certificate: x509.Certificate) -> bytes:
    return certificate.issuer.public_bytes()


@functools.lru_cache(maxsize=64)
def _owner(certificate: x509.Certificate) -> tuple[str, str]:
    """Whose a certificate is, and the digest of its key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = certificate.public_key().public_bytes(serialization.Encoding.DER, form)
    return canonical.brief(certificate.subject.rfc4514_string()), canonical.sha256(key)


@functools.lru_cache(maxsize=512)
def _decoded(raw: bytes) -> rfc3161.TimeStampResponse:
    return rfc3161.decode_timestamp_response(raw)


@dataclass(frozen=True)
class _Signer:
    """CMS's SignerInfo (RFC 5652). ``signed``: the bytes that the signature is over."""

    issuer: bytes
    serial: int
    digest: str
    attributes: dict[str, der.Node]
    signed: bytes
    signature: bytes

    @classmethod
    def of(cls, node: der.Node) -> _Signer:
        parts = node.expect(der.SEQUENCE, "the signer").children()
        name, serial = parts[1].expect(der.SEQUENCE, "the signer's name").children()
        signed = parts[3].expect(0xA0, "the signer's attributes")
        attributes: dict[str, der.Node] = {}
        for item in signed.children():
            kind, values = item.children()
            value = values.expect(der.SET, "an attribute").children()
            dotted = _dotted(kind.expect(der.OID, "an attribute").body)
            if len(value) != 1 or dotted in attributes:
                raise FormatError("an attribute stands in it twice")
            attributes[dotted] = value[0]
        digest = _dotted(parts[2].children()[0].body)
        # What is signed has the tag of a SET, in the place of the one that marks where it stands.
        return cls(
            name.whole, int.from_bytes(serial.body, "big", signed=True), digest, attributes,
            bytes([der.SET]) + signed.whole[1:], parts[5].expect(der.OCTETS, "the signature").body,
        )  # fmt: skip

    def names(self, certificate: x509.Certificate) -> bool:
        return _issuer(certificate) == self.issuer and certificate.serial_number == self.serial

    def check(self, info: bytes, leaf: x509.Certificate) -> None:
        """The signature over the attributes, theirs over ``info``, and that they name this very certificate."""
        name, kind = _HASHES.get(self.digest, ("", None))
        if kind is None:
            raise FormatError("it is signed with a hash function other than SHA-256, SHA-384 or SHA-512")
        if self.attributes[_CONTENT_TYPE].body != _oid(_TST_INFO):
            raise FormatError("what is signed is not a time")
        if self.attributes[_MESSAGE_DIGEST].body != hashlib.new(name, info).digest():
            raise FormatError("the time is not the one that was signed")
        self._check_certificate(leaf)
        key = leaf.public_key()
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(self.signature, self.signed, padding.PKCS1v15(), kind())
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self.signature, self.signed, ec.ECDSA(kind()))
            else:
                raise FormatError("the authority's key is neither RSA nor on an elliptic curve")
        except InvalidSignature:
            raise FormatError("the authority's signature does not fit") from None

    def _check_certificate(self, leaf: x509.Certificate) -> None:
        """The signing-certificate attribute (RFC 2634, RFC 5816): without it another certificate of the key could be put in."""
        encoded = leaf.public_bytes(serialization.Encoding.DER)
        if _SIGNING_CERTIFICATE_2 in self.attributes:
            named = self.attributes[_SIGNING_CERTIFICATE_2].children()[0].children()[0].children()
            name = "sha256"
            if named[0].tag == der.SEQUENCE:
                name, found = _HASHES.get(_dotted(named[0].children()[0].body), ("", None))
                if found is None:
                    raise FormatError("it names the authority's certificate by an unknown hash function")
                named = named[1:]
            wanted = hashlib.new(name, encoded).digest()
        elif _SIGNING_CERTIFICATE in self.attributes:
            named = self.attributes[_SIGNING_CERTIFICATE].children()[0].children()[0].children()
            wanted = hashlib.sha1(encoded, usedforsecurity=False).digest()
        else:
            raise FormatError("it does not say which certificate it is signed with (signing-certificate attribute)")
        if named[0].expect(der.OCTETS, "a certificate's digest").body != wanted:
            raise FormatError("it is signed with another certificate than the one in it")

    def normal(self, leaf: x509.Certificate) -> bytes:
        """The signature in the one form that nobody without the key can turn into another good one."""
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return self.signature  # RSA: the number below the modulus, at its full length
        r, s = der.integers(self.signature, "the signature")
        order, width = key.curve.group_order, (key.curve.group_order.bit_length() + 7) // 8
        return r.to_bytes(width, "big") + min(s, order - s).to_bytes(width, "big")


def _time_stamping_only(leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        raise FormatError("the authority's certificate is not for timestamps") from None
    if not usage.critical or list(usage.value) != [ExtendedKeyUsageOID.TIME_STAMPING]:
        raise FormatError("the authority's certificate is not for timestamps alone (critical extended key usage)")


def _status(node: der.Node) -> int:
    return int.from_bytes(node.children()[0].expect(der.INTEGER, "the status").body, "big", signed=True)


def _accuracy(info: rfc3161.tsp.TimeStampTokenInfo) -> datetime.timedelta:
    said: rfc3161.tsp.Accuracy | None = info.accuracy
    if said is None:
        return UNSAID
    seconds, millis, micros = (getattr(said, name) or 0 for name in ("seconds", "millis", "micros"))
    return datetime.timedelta(seconds=seconds, milliseconds=millis, microseconds=micros) or UNSAID


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    coded = bytearray([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        coded += bytes(reversed(digits))
    return bytes(coded)


def _dotted(body: bytes) -> str:
    parts, number = [*divmod(body[0], 40)] if body[0] < 80 else [2, body[0] - 80], 0
    for byte in body[1:]:
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            parts.append(number)
            number = 0
    return ".".join(map(str, parts))
