"""A public source of randomness: nobody knew its value before its moment, and anybody can check it afterwards, without asking anyone.

Rounds of drand (the League of Entropy's ``quicknet``, scheme ``bls-unchained-g1-rfc9380``): round r is out at
``genesis + (r - 1) * period``, and its value is the network's BLS signature on SHA-256(r), which nobody can choose. The signature
is checked against a pinned key (draft-irtf-cfrg-bls-signature; hashing to the curve is RFC 9380), with py_ecc.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from proof_of_learning import canonical, keeping
from proof_of_learning.attestation.attested import SKEW
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.limits import MAX_ROUND

_TAG = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
_SCHEME = "bls-unchained-g1-rfc9380"
T = TypeVar("T")


class _Named(msgspec.Struct, frozen=True):
    name: str = msgspec.field(default="", name="beaconID")


class Chain(msgspec.Struct, frozen=True):
    """A network, as its ``/info`` tells it: hex key (in G2, 96 bytes), seconds between rounds, the moment of the first one (Unix).

    group: of its founders, hex. hash: names all of it, and is only said here: :meth:`identity` computes it.
    """

    public_key: str
    period: int
    genesis_time: int
    hash: str
    group: str = msgspec.field(name="groupHash")
    scheme: str = msgspec.field(default=_SCHEME, name="schemeID")
    metadata: _Named = _Named()

    def identity(self) -> bytes:
        """The network's hash as drand computes it, so that no other key, period or first round goes by a known one's. Raises
        ValueError and OverflowError for numbers and digits that no network has."""
        name = self.metadata.name if self.metadata.name != "default" else ""
        numbers = self.period.to_bytes(4, "big") + self.genesis_time.to_bytes(8, "big")
        return hashlib.sha256(
            numbers + bytes.fromhex(self.public_key) + bytes.fromhex(self.group) + name.encode()
        ).digest()


class _Round(msgspec.Struct, frozen=True):
    round: int
    signature: str


QUICKNET = Chain(
    public_key="83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d1064510d1fec758c921cc22b0e17e63aaf4bcb"
    "5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a",
    period=3,
    genesis_time=1692803367,
    hash="52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971",
    group="f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e",
    metadata=_Named("quicknet"),
)


@dataclass(frozen=True)
class Beacon:
    """A round whose signature holds. ``nonce``: hex, of its value and its chain; ``moment``: nobody knew it before."""

    chain: Chain
    round: int
    moment: datetime.datetime
    nonce: str

    def due(self, since: datetime.datetime) -> int:
        """The first round of this network that is out more than :data:`SKEW` after ``since``."""
        beyond = (since + SKEW).timestamp() - self.chain.genesis_time
        return max(1, math.floor(beyond / self.chain.period) + 2)


def load_beacon(path: str | os.PathLike[str], chain: str | os.PathLike[str] | None = None) -> Beacon:
    """The round in a JSON file (``round``, ``signature``), as the network hands it out.

    chain: the network's ``/info``, for another one than quicknet. Raises UsageError for what is no round, or not that network's.
    """
    network = QUICKNET if chain is None else _read(chain, "--beacon-chain", Chain)
    given = _read(path, "--beacon", _Round)
    what = f"--beacon {path}"
    if network.scheme != _SCHEME:
        raise UsageError(f"--beacon-chain {chain}: scheme {network.scheme[:40]!r} is not known; only {_SCHEME} is")
    if not (1 <= given.round < 1 << 48 and 1 <= network.period < 1 << 24 and 0 <= network.genesis_time < 1 << 40):
        raise UsageError(f"{what}: there is no round {given.round}")
    key = _bytes(network.public_key, 96, f"--beacon-chain {chain}: its public_key")
    signature = _bytes(given.signature, 48, f"{what}: its signature")
    identity = _bytes(network.hash, 32, f"--beacon-chain {chain}: its hash")
    _bytes(network.group, 32, f"--beacon-chain {chain}: its groupHash")
    if identity != network.identity():
        raise UsageError(
            f"--beacon-chain {chain}: its hash is not that of its key, period, genesis_time, groupHash and beaconID, so it is not the "
            "network that it is called; take /info as the network hands it out"
        )
    if not _holds(key, hashlib.sha256(given.round.to_bytes(8, "big")).digest(), signature):
        raise UsageError(
            f"{what}: the signature is not that of round {given.round} by the network {identity.hex()[:16]}…"
        )
    try:
        moment = datetime.datetime.fromtimestamp(
            network.genesis_time + (given.round - 1) * network.period, datetime.UTC
        )
    except (ValueError, OverflowError):
        raise UsageError(f"{what}: there is no round {given.round}") from None
    nonce = canonical.sha256(b"pol/v1/beacon\0", identity, given.round.to_bytes(8, "big"), signature).removeprefix(
        "sha256:"
    )
    return Beacon(msgspec.structs.replace(network, hash=identity.hex()), given.round, moment, nonce)


def _read(path: str | os.PathLike[str], option: str, kind: type[T]) -> T:
    what = f"{option} {path}"
    raw = keeping.read(path, what, MAX_ROUND)
    if len(raw) > MAX_ROUND:
        raise UsageError(f"{what}: more than {MAX_ROUND:,} bytes")
    try:
        value: T = canonical.lenient(raw, kind, what)
    except FormatError as error:
        raise UsageError(str(error)) from None
    return value


def _bytes(text: str, size: int, what: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != size:
        raise UsageError(f"{what} is not {size} bytes in hex digits")
    return found


@contextmanager
def _depth_kept() -> Iterator[None]:
    """py_ecc lets Python recurse a hundred times deeper once imported, and whatever reads nested input would run out of stack."""
    depth = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(depth)


def _holds(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether e(G2, signature) = e(key, H(message)), both points being on their curves and in the right subgroups."""
    with _depth_kept():
        try:
            from py_ecc.bls.hash_to_curve import hash_to_G1
            from py_ecc.bls.point_compression import decompress_G1, decompress_G2
            from py_ecc.optimized_bls12_381 import (
                FQ12,
                G2,
                curve_order,
                final_exponentiate,
                is_inf,
                multiply,
                neg,
                pairing,
            )
        except ImportError:
            raise UsageError(
                "a beacon is checked with py_ecc; install it: pip install 'proof-of-learning[beacon]'"
            ) from None
    try:
        known = decompress_G2((int.from_bytes(key[:48], "big"), int.from_bytes(key[48:], "big")))
        signed = decompress_G1(int.from_bytes(signature, "big"))
    except ValueError:
        return False
    for each in (known, signed):
        if is_inf(each) or not is_inf(multiply(each, curve_order)):
            return False
    hashed = hash_to_G1(message, _TAG, hashlib.sha256)
    product = pairing(G2, signed, final_exponentiate=False) * pairing(known, neg(hashed), final_exponentiate=False)
    return bool(final_exponentiate(product) == FQ12.one())
