"""What the tests of signatures and timestamps share: two authorities, keys, and a proof with everything beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import support_authority as authorities
from proof_of_learning import (
    Proof,
    TaskReference,
    Verdict,
    prove,
    register,
    sign,
    timestamp,
    verify,
)
from proof_of_learning.attestation import gathering, heads, signatures, statements, timestamps
from proof_of_learning.attestation.attested import Attested
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.proof.attach import attach
from proof_of_learning.proof.format import ATTESTATIONS
from proof_of_learning.proof.reader import attestation_name
from support_authority import Authority


@dataclass(frozen=True)
class Keys:
    """An owner's and a stranger's key in a folder."""

    folder: Path

    @property
    def key(self) -> PrivateKey:
        return signatures.load_private(self.folder / "key.pem")

    @property
    def stranger(self) -> PrivateKey:
        return signatures.load_private(self.folder / "stranger.pem")


@dataclass(frozen=True)
class World(Keys):
    """Two authorities, an owner's and a stranger's key, and a proof that was registered, signed and stamped by both. Read only."""

    first: Authority
    second: Authority
    claim: Path
    proof: Path

    @property
    def trusted(self) -> Path:
        return self.folder / "key.pub.pem"


def build(tiny: TaskReference, folder: Path) -> World:
    """The world, in an empty ``folder``."""
    first, second = authorities.make(folder / "first", "First"), authorities.make(folder / "second", "Second")
    signatures.generate(folder / "key.pem")
    signatures.generate(folder / "stranger.pem")
    claim, run = folder / "claim.json", folder / "run.pol"
    with authorities.serving(first.reply) as one, authorities.serving(second.reply) as two:
        register(tiny, claim, interval=5, owners=[folder / "key.pub.pem"])
        sign(claim, folder / "key.pem")
        timestamp(claim, [one, two])
        prove(tiny, run, registration=claim)
        sign(run, folder / "key.pem")
        timestamp(run, [one, two])
    return World(folder, first, second, claim, run)


def gathered(run: Path, *trusted: Authority) -> Attested:
    return gathering.gather(Proof.open(run), timestamps.load_authorities([item.roots for item in trusted]))


def named(run: Path, pattern: str) -> list[Path]:
    return sorted((run / ATTESTATIONS).glob(pattern))


def only(run: Path, pattern: str) -> Path:
    (found,) = named(run, pattern)
    return found


def put(run: Path, like: str, raw: bytes) -> Path:
    return run / ATTESTATIONS / attach(run, like, raw)


def judged(run: Path | str, **options: Any) -> Verdict:
    """Without a task: nothing is replayed, but claim, signatures and times are judged."""
    return verify(run, **options)


def resigned(run: Path, key: PrivateKey, change: Callable[[dict[str, Any]], None], kind: str = "seal") -> Path:
    """A statement of the proof's, changed, with good signatures; in the place of the true one."""
    true = only(run, f"{kind}-*.dsse.json")
    value = json.loads(base64.b64decode(json.loads(true.read_bytes())["payload"]))
    change(value)
    payload = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    true.unlink()
    return put(run, f"{kind}-.dsse.json", signatures.seal(payload, [key]))


def chained(
    run: Path, dates: Sequence[tuple[int, Authority, datetime]], before: bytes | None = None
) -> list[tuple[Path, Path]]:
    """Heads of the finished proof in ``run``, each after so many steps, dated so by an authority, and containing the token before (the
    first one ``before``); pairs (statement, token).
    """
    known = {steps: line for line, steps in heads.of_log(run).items()}
    header, made = hashlib.sha256((run / "header.json").read_bytes()).hexdigest(), list[tuple[Path, Path]]()
    for steps, authority, date in dates:
        link = None if before is None else f"sha256:{hashlib.sha256(before).hexdigest()}"
        raw = statements.head(header, known[steps], steps, [], link)
        before = authority.crafted(raw, date)
        made.append((put(run, "head-.json", raw), put(run, "head-.tsr", before)))
    return made


def stamped_name(token: bytes) -> dict[str, bytes]:
    """A token on a claim under its name."""
    return {attestation_name("claim-.tsr", token): token}
