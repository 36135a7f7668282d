"""Keys, certificates, timestamps and envelopes for tests, the same bytes wherever they are made.

THE KEYS ARE FOR TESTS: all of them follow from their names. Signatures are deterministic (RFC 6979, PKCS #1 version 1.5, Ed25519).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from proof_of_learning import canonical
from proof_of_learning.attestation import signatures
from proof_of_learning.attestation.signatures import PAYLOAD_TYPE, PublicKey, pae

BEGUN = datetime(2020, 1, 1, tzinfo=UTC)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
TIME_STAMPING = ExtendedKeyUsageOID.TIME_STAMPING
CODE_SIGNING = ExtendedKeyUsageOID.CODE_SIGNING
SIGNED_DATA, TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
CONTENT_TYPE, MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
CERTIFICATE_1, CERTIFICATE_2 = "1.2.840.113549.1.9.16.2.12", "1.2.840.113549.1.9.16.2.47"
HASHES = {"sha1": "1.3.14.3.2.26", "sha256": "2.16.840.1.101.3.4.2.1", "sha512": "2.16.840.1.101.3.4.2.3"}
SIGNED_WITH = {"ec": "1.2.840.10045.4.3.2", "rsa": "1.2.840.113549.1.1.1"}


# ---- keys -----------------------------------------------------------------------------------------------------------


def _number(name: str, bits: int) -> int:
    raw = b"".join(hashlib.sha256(f"test key {name} {i}".encode()).digest() for i in range(-(-bits // 256)))
    return int.from_bytes(raw, "big") >> (-bits % 256)


def ec_key(name: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    curve = curve or ec.SECP256R1()
    return ec.derive_private_key(_number(name, curve.key_size - 1), curve)


def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(_number(name, 256).to_bytes(32, "big"))


@functools.cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    p, q = (_prime(f"{name} {part}", bits // 2) for part in "pq")
    e, phi = 65537, (p - 1) * (q - 1)
    d = pow(e, -1, phi)
    public = rsa.RSAPublicNumbers(e, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def _prime(name: str, bits: int) -> int:
    found = _number(name, bits) | 3 << (bits - 2) | 1
    while any(found % small == 0 for small in (3, 5, 7, 11, 13, 17, 19, 23)) or any(
        pow(base, found - 1, found) != 1 for base in (2, 3, 5, 7)
    ):
        found += 2
    return found


Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def encoded(key: Private) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public(key: Private) -> PublicKey:
    return PublicKey(encoded(key))


def pem(key: Private | PublicKey) -> bytes:
    return signatures.to_pem(key if isinstance(key, PublicKey) else public(key))


def sign(key: Private, message: bytes, name: str = "sha256") -> bytes:
    algorithm = {"sha256": hashes.SHA256, "sha512": hashes.SHA512}[name]()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(algorithm, deterministic_signing=True))
    return (
        key.sign(message)
        if isinstance(key, ed25519.Ed25519PrivateKey)
        else key.sign(message, padding.PKCS1v15(), algorithm)
    )


# ---- envelopes ------------------------------------------------------------------------------------------------------


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def envelope(payload: bytes, keys: Iterable[Private], /, **more: Any) -> bytes:
    """A DSSE envelope. ``more``: fields in the place of those, or beside them."""
    made = [{"keyid": public(key).digest, "sig": text(sign(key, pae(payload)))} for key in keys]
    return canonical.encode({"payloadType": PAYLOAD_TYPE, "payload": text(payload), "signatures": made, **more})


# ---- DER ------------------------------------------------------------------------------------------------------------


def node(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    coded = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag]) + (bytes([size]) if size < 0x80 else bytes([0x80 | len(coded)]) + coded) + body


def sequence(*parts: bytes) -> bytes:
    return node(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    return node(0x31, *sorted(parts))


def integer(value: int) -> bytes:
    return node(2, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def octets(raw: bytes) -> bytes:
    return node(4, raw)


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    coded = bytearray([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        coded += bytes(reversed(digits))
    return node(6, bytes(coded))


def algorithm(dotted: str, *, null: bool = False) -> bytes:
    return sequence(oid(dotted), b"\x05\x00") if null else sequence(oid(dotted))


# ---- authorities ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A root, a certificate between it and the leaf where there is one, and the leaf that signs tokens."""

    root: x509.Certificate
    between: x509.Certificate | None
    leaf: x509.Certificate
    key: Private = field(repr=False)

    def roots(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)


def authority(
    name: str,
    *,
    kind: str = "ec",
    since: datetime = BEGUN,
    until: datetime = FAR,
    usage: Sequence[ObjectIdentifier] = (TIME_STAMPING,),
    critical: bool = True,
    between: bool = False,
    is_authority: bool = True,
    issued_by: str | None = None,
) -> Authority:
    """issued_by: whose key really signed the leaf, where that is another's. is_authority: whether what issued the leaf may issue."""
    make = (lambda n: rsa_key(n)) if kind == "rsa" else (lambda n: ec_key(n))
    top, mid, low = (_name(f"{name} {part}") for part in ("root", "intermediate", "TSA"))
    root = _certificate(top, top, make(f"{name} root"), make(f"{name} root"), 1, constraints=True)
    middle = None
    if between:
        middle = _certificate(top, mid, make(f"{name} middle"), make(f"{name} root"), 2, constraints=is_authority)
    issuer_key = make(issued_by or (f"{name} middle" if between else f"{name} root"))
    key = make(f"{name} leaf")
    leaf = _certificate(
        mid if between else top,
        low,
        key,
        issuer_key,
        7,
        constraints=False,
        since=since,
        until=until,
        usage=usage,
        critical=critical,
    )
    return Authority(root, middle, leaf, key)


def _name(text_: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text_)])


def _certificate(
    issuer: x509.Name, subject: x509.Name, key: Private, signer: Private, serial: int, *, constraints: bool,
    since: datetime = BEGUN, until: datetime = FAR, usage: Sequence[ObjectIdentifier] = (), critical: bool = True,
) -> x509.Certificate:  # fmt: skip
    made = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject).public_key(key.public_key())
    made = made.serial_number(serial).not_valid_before(since).not_valid_after(until)
    made = made.add_extension(x509.BasicConstraints(constraints, None), critical=True)
    if usage:
        made = made.add_extension(x509.ExtendedKeyUsage(usage), critical=critical)
    if isinstance(signer, ec.EllipticCurvePrivateKey):
        return made.sign(signer, hashes.SHA256(), ecdsa_deterministic=True)
    assert isinstance(signer, rsa.RSAPrivateKey)
    return made.sign(signer, hashes.SHA256())


def token(
    by: Authority,
    data: bytes,
    time: datetime,
    *,
    imprint: str = "sha256",
    digest: str = "sha256",
    ess: str | None = "sha256",
    ess_of: x509.Certificate | None = None,
    certificates: bool = True,
    status: int = 0,
    signers: int = 1,
    kind: str = TST_INFO,
    attribute_kind: str = TST_INFO,
    signed_info: bytes | None = None,
    accuracy: bool = True,
    twin: bool = False,
    doubled: bool = False,
) -> bytes:
    """A response with a token on ``data``, as authorities send it; what deviates says what deviates.

    ess: by which digest the leaf is named; None: not at all. signed_info: over which content the attributes are, if not over that in
    the token. twin: the other form of an ECDSA signature. doubled: an attribute stands there twice.
    """
    info = sequence(
        integer(1), oid("1.2.3.4.1"), sequence(algorithm(HASHES[imprint]), octets(hashlib.new(imprint, data).digest())), integer(5),
        node(0x18, time.strftime("%Y%m%d%H%M%SZ").encode()), *([sequence(integer(1))] if accuracy else []),
    )  # fmt: skip
    leaf = by.leaf.public_bytes(Encoding.DER)
    named = (ess_of or by.leaf).public_bytes(Encoding.DER)
    attributes = [
        sequence(oid(CONTENT_TYPE), set_of(oid(attribute_kind))),
        sequence(oid(MESSAGE_DIGEST), set_of(octets(hashlib.new(digest, signed_info or info).digest()))),
    ]
    if ess == "sha1":
        identity = sequence(sequence(sequence(octets(hashlib.sha1(named).digest()))))
        attributes.append(sequence(oid(CERTIFICATE_1), set_of(identity)))
    elif ess is not None:
        head = [] if ess == "sha256" else [algorithm(HASHES[ess])]
        identity = sequence(sequence(sequence(*head, octets(hashlib.new(ess, named).digest()))))
        attributes.append(sequence(oid(CERTIFICATE_2), set_of(identity)))
    if doubled:
        attributes.append(attributes[0])
    signed = set_of(*attributes)
    made = sign(by.key, signed, digest)
    if twin:
        made = _twin(made)
    rsa_ = isinstance(by.key, rsa.RSAPrivateKey)
    with_ = algorithm(
        SIGNED_WITH["rsa" if rsa_ else "ec"] if digest == "sha256" or rsa_ else "1.2.840.10045.4.3.4", null=rsa_
    )
    issuer = sequence(by.leaf.issuer.public_bytes(), integer(by.leaf.serial_number))
    signer = sequence(integer(1), issuer, algorithm(HASHES[digest]), b"\xa0" + signed[1:], with_, octets(made))
    chain = [leaf, *([by.between.public_bytes(Encoding.DER)] if by.between is not None else [])]
    content = sequence(
        integer(3), set_of(algorithm(HASHES[digest])), sequence(oid(kind), node(0xA0, octets(info))),
        *([node(0xA0, *sorted(chain))] if certificates else []), node(0x31, *([signer] * signers)),
    )  # fmt: skip
    return sequence(sequence(integer(status)), sequence(oid(SIGNED_DATA), node(0xA0, content)))


def _twin(signature: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, ec.SECP256R1().group_order - s)


def at(year: int, day: int = 0) -> datetime:
    return datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=day)
