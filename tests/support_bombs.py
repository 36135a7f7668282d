"""Small proofs that are intact in every digest and cost a reader as much as possible: nothing in them was ever trained."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.numeric import environment
from proof_of_learning.proof import format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs import is_exact, packed
from proof_of_learning.proof.codecs.packed import Entry
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.proof.format import CodecClaim, Header, Initialization, Randomness, Stored, TaskClaim, Training
from proof_of_learning.state.state import State

DIGEST = "sha256:" + "0" * 64


class Made(NamedTuple):
    """An object: its bytes, the codec that reads them, the digest of the state it holds, and that of its base."""

    raw: bytes
    codec: str
    state: str
    base: str | None = None


def header(steps: int, codec: str = "lossless", description: dict[str, Any] | None = None) -> Header:
    described = description or {}
    digest = canonical.sha256(b"pol/v1/task\0", canonical.encode(described))
    return Header(
        format.FORMAT, TaskClaim(digest, "bomb", described, {}), DataCommitment(DIGEST, 1), Training(steps, 1, steps),
        Randomness("derived", "0" * 64, "0"), Initialization("derived"), CodecClaim(codec, 1, not is_exact(codec)),
        parts={"model": "module", "progress": "progress"},
    )  # fmt: skip


def columns() -> Columns:
    """One step in no parameter group."""
    return Columns(np.zeros(1), np.zeros((1, 0)))


def named(tree: Any, tensors: dict[str, Tensor] | None = None) -> str:
    """The digest of a state."""
    return State(tree, tensors or {}).digest()


def tightly(
    tree: Any, entries: dict[str, Entry], items: dict[str, Tensor], zeros: Mapping[str, int] | None = None
) -> bytes:
    """An object of the compressing codecs, compressed as well as anyone can. ``zeros``: how many, of numbers that are kept apart."""
    apart = {how: functools.partial(_zeros, count) for how, count in (zeros or {}).items()}
    packed._zstd.compressor = zstandard.ZstdCompressor(level=19, write_content_size=True)
    try:
        return b"".join(packed.pack(tree, entries, lambda name: items[name], apart))
    finally:
        del packed._zstd.compressor


def _zeros(count: int) -> Iterator[npt.NDArray[np.int32]]:
    return (np.zeros(min(packed.CHUNK, count - at), np.int32) for at in range(0, count, packed.CHUNK))


def whole(tree: Any, tensors: dict[str, Tensor] | None = None, codec: str = "lossless") -> Made:
    """A state, whole."""
    tensors = tensors or {}
    if codec == "raw":
        raw = b"".join(bytes(piece) for piece in RawCodec().encode(State(tree, tensors), None).chunks())
    else:
        entries = {name: packed.entry(tensor, tensor.element_size(), "plain") for name, tensor in tensors.items()}
        raw = tightly(tree, entries, {name: packed.map_bits(tensor) for name, tensor in tensors.items()})
    return Made(raw, codec, named(tree, tensors))


def write(
    path: Path,
    states: Sequence[str],
    objects: Iterable[Made],
    *,
    codec: str = "lossless",
    description: dict[str, Any] | None = None,
    environments: int = 1,
    moved: float = 0.0,
    evaluation: dict[str, float] | None = None,
) -> Path:
    """A proof whose log names ``states`` and whose index stores ``objects``, with every digest in order."""
    claimed = header(len(states) - 1, codec, description)
    (path / format.OBJECTS).mkdir(parents=True)
    (path / format.HEADER_FILE).write_bytes(claimed.encoded())
    here = environment.current()
    head, log = claimed.digest(), list[bytes]()

    def line(**content: Any) -> None:
        nonlocal head
        raw = canonical.encode({**content, "prev": head})
        head = format.line_digest(raw)
        log.append(raw + b"\n")

    block = columns().encode()
    line(kind="start", state=states[0])
    for number in range(environments):
        told = canonical.encode(here).replace(here.python.encode(), f"3.{number}".encode(), 1)
        digest = canonical.sha256(b"pol/v1/environment\0", told)
        line(kind="environment", digest=digest, environment=json.loads(told))
    for index, state in enumerate(states[1:]):
        line(
            kind="segment", index=index, start=index, stop=index + 1, arrived=state, state=state,
            displacement={"state": moved, "weights": 0}, environment=digest, evaluation=evaluation,
            block={"digest": canonical.sha256(block), "bytes": len(block)},
        )  # fmt: skip
    line(kind="end", steps=len(states) - 1, ended="completed", final_weights=DIGEST, evaluation=None)
    (path / format.LOG_FILE).write_bytes(b"".join(log))
    (path / format.BLOCKS_FILE).write_bytes(block * (len(states) - 1))
    link, lines = format.index_start(claimed.digest()), list[bytes]()
    for made in objects:
        name = hashlib.sha256(made.raw).hexdigest()
        (path / format.OBJECTS / name[:2]).mkdir(exist_ok=True)
        (path / format.OBJECTS / name[:2] / name).write_bytes(made.raw)
        raw = canonical.encode(Stored(link, made.state, f"sha256:{name}", len(made.raw), made.codec, made.base))
        link = format.line_digest(raw)
        lines.append(raw + b"\n")
    (path / format.INDEX_FILE).write_bytes(b"".join(lines))
    seal = format.Seal(format.SEAL, format.root(claimed.digest(), head), len(states) - 1, link)
    (path / format.SEAL_FILE).write_bytes(canonical.encode(seal))
    return path
