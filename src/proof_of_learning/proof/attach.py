"""Writing what lies beside a root: statements, signatures, timestamps."""

from __future__ import annotations

from pathlib import Path

from proof_of_learning import limits
from proof_of_learning.errors import RecordingError
from proof_of_learning.proof import files, format
from proof_of_learning.proof.reader import attestation_name, read_attestations


def attach(path: Path, like: str, raw: bytes) -> str:
    """Put an attestation beside the root of the proof (or recording) in ``path``; returns its name.

    like: what it is, as its name says: ``seal-.tsr``, and what :data:`format.ATTESTATION` has. RecordingError where there would be
    more than a proof may have.
    """
    name, folder = attestation_name(like, raw), path / format.ATTESTATIONS
    if not format.ATTESTATION.fullmatch(name):
        raise RecordingError(f"there is no attestation like {like}")
    with files.writing(str(folder)):
        folder.mkdir(exist_ok=True)
        for stray in folder.glob(f"{files.TEMPORARY}*"):  # what a killed process was writing
            stray.unlink()
    there = read_attestations(path)
    if name in there:
        return name
    total = sum(map(len, there.values())) + len(raw)
    if len(there) >= limits.MAX_ATTESTATIONS or total > limits.MAX_ATTESTED or len(raw) > limits.MAX_ATTESTATION:
        raise RecordingError(f"{folder} cannot hold more than it does; remove what nobody needs")
    files.write_atomic(folder / name, [raw], durable=True)
    return name
