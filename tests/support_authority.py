"""A timestamp authority of one's own: `openssl ts -reply` behind a small server, with a self-made P-256 certificate authority."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CONFIGURATION = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
ordering = no
tsa_name = no
ess_cert_id_chain = no
"""


BEGUN = datetime(2020, 1, 1, tzinfo=UTC)
TIME_STAMPING = ExtendedKeyUsageOID.TIME_STAMPING
_OIDS = {
    "sha256": b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01",
    "sha512": b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03",
}


def _sequence(*parts: bytes) -> bytes:
    """A DER SEQUENCE; a lone tag among ``parts`` takes the next one as its content."""
    body, pending = b"", b""
    for part in parts:
        if len(part) == 1:
            pending = part
            continue
        body += pending + bytes([len(part)]) + part if pending else part
        pending = b""
    size = len(body)
    length = (
        bytes([size])
        if size < 0x80
        else bytes([0x82]) + size.to_bytes(2, "big")
        if size > 0xFF
        else bytes([0x81, size])
    )
    return b"\x30" + length + body


@dataclass(frozen=True)
class Authority:
    """Files of an authority: ``roots`` is what a verifier is given."""

    folder: Path

    @property
    def roots(self) -> Path:
        return self.folder / "ca.pem"

    def reply(self, request: bytes) -> bytes:
        """The answer to a request, as an authority sends it."""
        query, answer = self.folder / "query", self.folder / "answer"
        query.write_bytes(request)
        openssl("ts", "-reply", "-config", self.folder / "tsa.cnf", "-queryfile", query, "-out", answer)
        return answer.read_bytes()

    def crafted(self, data: bytes, time: datetime, *more: object, hash_: str = "sha256") -> bytes:
        """A token for ``data`` with a ``time`` of one's choice, which `openssl ts` would not make. more: for `openssl cms -sign`."""
        imprint = _sequence(_sequence(_OIDS[hash_]), b"\x04", hashlib.new(hash_, data).digest())
        stamp = time.strftime("%Y%m%d%H%M%SZ").encode()
        accuracy = _sequence(b"\x02\x01\x01")
        info = _sequence(
            b"\x02\x01\x01", b"\x06\x04\x2a\x03\x04\x01", imprint, b"\x02\x01\x05", b"\x18\x0f" + stamp, accuracy
        )
        (self.folder / "info").write_bytes(info)
        openssl(
            "cms", "-sign", "-binary", "-nodetach", "-nosmimecap", "-econtent_type", "1.2.840.113549.1.9.16.1.4", "-md", "sha256",
            "-in", self.folder / "info", "-signer", self.folder / "tsa.pem", "-inkey", self.folder / "tsa.key", "-outform", "DER",
            "-out", self.folder / "cms", *(more or ("-cades",)),
        )  # fmt: skip
        return _sequence(_sequence(b"\x02\x01\x00"), (self.folder / "cms").read_bytes())


def openssl(*arguments: object, good: bool = True) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False)
    assert not good or done.returncode == 0, done.stderr.decode()
    return done


def make(
    folder: Path,
    name: str = "Test",
    *,
    since: datetime = BEGUN,
    until: datetime = BEGUN + timedelta(days=36500),
    usage: tuple[x509.ObjectIdentifier, ...] = (TIME_STAMPING,),
    critical: bool = True,
) -> Authority:
    """Make an authority. since, until: when its certificate holds. usage: of its key, a ``critical`` restriction or not."""
    folder.mkdir(parents=True)
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {part}")]) for part in ("CA", "TSA"))
    keys = {part: ec.generate_private_key(ec.SECP256R1()) for part in ("ca", "tsa")}
    for part, key in keys.items():
        (folder / f"{part}.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def builder(named: x509.Name, part: str) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().issuer_name(issuer).subject_name(named).public_key(keys[part].public_key())
        made = made.serial_number(7 if part == "tsa" else 1)
        return made.add_extension(x509.BasicConstraints(part == "ca", None), critical=True)

    far = BEGUN + timedelta(days=36500)
    root = builder(issuer, "ca").not_valid_before(BEGUN).not_valid_after(far).sign(keys["ca"], hashes.SHA256())
    leaf = builder(subject, "tsa").not_valid_before(since).not_valid_after(until)
    if usage:
        leaf = leaf.add_extension(x509.ExtendedKeyUsage(usage), critical=critical)
    (folder / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "tsa.pem").write_bytes(leaf.sign(keys["ca"], hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(_CONFIGURATION.format(folder=folder))
    return Authority(folder)


@contextmanager
def serving(answer: Callable[[bytes], bytes | None], *, status: int = 200) -> Iterator[str]:
    """An authority's address; what it answers to a request is ``answer``'s affair (None: nothing, it hangs up)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            if body is None:
                return
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
