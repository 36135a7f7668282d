"""``export``: the model that a proof ends in, as a file that other programs read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from proof_of_learning.errors import FormatError, IntegrityError, UsageError
from proof_of_learning.proof import files, remote
from proof_of_learning.proof.codecs.raw import encode_tensors
from proof_of_learning.proof.reader import Proof
from proof_of_learning.state.names import short_name, split

if TYPE_CHECKING:
    from proof_of_learning.attestation.signatures import PrivateKey


@dataclass(frozen=True)
class Exported:
    """A written model: the root that it belongs to, how many tensors and bytes it has, its SHA-256, and where its signature lies."""

    path: Path
    root: str
    tensors: int
    bytes: int
    digest: str
    signature: Path | None = None


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    key: str | os.PathLike[str] | PrivateKey | None = None,
    passphrase: bytes | None = None,
) -> Exported:
    """Write the final weights and buffers of the proof at ``path`` to the safetensors file ``out``.

    The names are the model's own; tied weights stand once. Equal models give equal files, to the byte.
    key: a P-256 key (a PEM file, which ``passphrase`` opens) that signs the file, as OpenSSF Model Signing does it: ``out`` with
    ``.sig`` behind its name.
    Raises UsageError, and FormatError or IntegrityError for what is no proof.
    """
    target = Path(out)
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent} to write the model into")
    if target.is_dir() or (target.exists() and not overwrite):
        raise UsageError(f"{target} exists already; choose another name, or allow it to be overwritten (--overwrite)")
    signer = None if key is None else _signer(key, passphrase)
    beside = target.with_name(f"{target.name}.sig")
    if signer is not None and (beside.is_dir() or (beside.exists() and not overwrite)):
        raise UsageError(f"{beside} exists already; choose another name, or allow it to be overwritten (--overwrite)")
    with remote.local(path) as here:
        proof = Proof.open(here)
        last = proof.segments[-1].state
        if not proof.has_state(last):
            raise FormatError("the proof does not hold its final state any more")
        state = proof.state(last).part("model")
        if state.digest() != proof.end.final_weights:
            raise IntegrityError("the final weights that the proof names are not those of its last state")
    tensors = {short_name(n): t for n, t in state.tensors.items() if split(n)[1] in ("parameters", "buffers")}
    hasher, size = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes | memoryview]:
        nonlocal size
        for piece in encode_tensors(tensors, {"format": "pt"}):
            hasher.update(piece)
            size += len(piece)
            yield piece

    files.write_atomic(target, pieces(), durable=True)
    made = Exported(target, proof.root, len(tensors), size, f"sha256:{hasher.hexdigest()}")
    if signer is None:
        return made
    from proof_of_learning.attestation import modelsigning

    raw = modelsigning.bundle(target.name, hasher.hexdigest(), proof.root, signer)
    files.write_atomic(beside, [raw], durable=True)
    return replace(made, signature=beside)


def _signer(key: str | os.PathLike[str] | PrivateKey, passphrase: bytes | None) -> PrivateKey:
    from proof_of_learning.attestation import modelsigning, signatures

    signer = key if isinstance(key, signatures.PrivateKey) else signatures.load_private(key, passphrase)
    modelsigning.check(signer)
    return signer
