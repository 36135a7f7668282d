"""Signatures of model files as OpenSSF Model Signing 1.0 has them: the command ``model_signing verify key`` accepts them.

A Sigstore bundle around a DSSE envelope around an in-toto statement. That project's command reads P-256 keys.
"""

from __future__ import annotations

import base64
import hashlib

from proof_of_learning import canonical
from proof_of_learning.attestation import signatures
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.errors import UsageError

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "https://model_signing/signature/v1.0"
_ALONE = "."  # the name of a file that is signed by itself and not as part of a folder


def check(key: PrivateKey) -> None:
    """Raises UsageError for a key that the command cannot read."""
    if not key.elliptic:
        raise UsageError(
            "model files are signed with a P-256 key (`pol keygen`); the `model_signing` command reads no Ed25519 keys"
        )


def bundle(name: str, digest: str, root: str, key: PrivateKey) -> bytes:
    """The signature of the one model file ``name`` whose SHA-256 (hex) is ``digest``. root: of the proof that it is from; verifiers
    of version 1.0 pass over it.
    """
    check(key)
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": hashlib.sha256(bytes.fromhex(digest)).hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "proofOfLearning": {"root": root},
            "resources": [{"name": _ALONE, "algorithm": "sha256", "digest": digest}],
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
        },
    }
    payload = canonical.encode(statement)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": signatures.PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(key.sign(signatures.pae(payload))).decode(), "keyid": ""}],
    }
    hint = hashlib.sha256(signatures.to_pem(key.public)).hexdigest()
    return canonical.encode(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": envelope,
        }
    )
