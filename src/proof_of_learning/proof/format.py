"""Proof format, version 1: the documents under the root, the limits of reading, and the root itself.

A proof is a directory (``docs/spec/format.md`` has the whole specification)::

    header.json     what is claimed before the first step
    log.jsonl       one line per segment, hash-chained from the header's digest
    blocks.bin      per-step columns, one block per segment, in log order
    index.jsonl     which object stores which state; chained, outside the root
    objects/ab/…    content-addressed files
    seal.json       the root

No time, host, path or process id lies under the root.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from proof_of_learning import canonical
from proof_of_learning.data.commit import DataCommitment
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.limits import MAX_INTERVAL, MAX_STEPS
from proof_of_learning.training.environment import Environment

FORMAT = "pol/proof/v1"
SEAL = "pol/seal/v1"

HEADER_FILE, LOG_FILE, BLOCKS_FILE, INDEX_FILE, SEAL_FILE = (
    "header.json", "log.jsonl", "blocks.bin", "index.jsonl", "seal.json"
)  # fmt: skip
OBJECTS = "objects"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ROOT = b"pol/v1/root\0"
_LINE = b"pol/v1/line\0"
_HEADER = b"pol/v1/header\0"


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class TaskClaim(_Document, frozen=True):
    """The task as the prover describes it; ``digest`` must be the description's."""

    digest: str
    name: str
    description: dict[str, Any]
    sources: dict[str, str]


class Training(_Document, frozen=True):
    """T, k and S."""

    steps: int
    interval: int
    steps_per_epoch: int


class Randomness(_Document, frozen=True):
    """``derived``: all choices follow from ``key`` (hex). ``recorded``: order and generator states are in the blocks.

    ``seed`` (decimal) or ``claim`` (the digest of a registered claim) says where the key comes from.
    """

    mode: Literal["derived", "recorded"]
    key: str
    seed: str | None = None
    claim: str | None = None


class Initialization(_Document, frozen=True):
    """``derived`` from the key, ``recorded`` (as it was found), or ``linked``: the final state of another proof."""

    kind: Literal["derived", "recorded", "linked"]
    proof: str | None = None


class CodecClaim(_Document, frozen=True):
    """How states are stored; with ``in_loop``, training continues from what the codec decodes."""

    name: str
    version: int
    in_loop: bool = False
    options: dict[str, int | str | bool] = {}


class Header(_Document, frozen=True):
    """``header.json``: everything that is claimed before the first step."""

    format: str
    task: TaskClaim
    data: DataCommitment
    training: Training
    randomness: Randomness
    initialization: Initialization
    codec: CodecClaim
    claim: dict[str, Any] | None = None

    def encoded(self) -> bytes:
        return canonical.encode(self)

    def digest(self) -> str:
        return header_digest(self.encoded())

    def segments(self) -> int:
        return -(-self.training.steps // self.training.interval)

    @property
    def own_code(self) -> bool:
        """Whether code of the task's own, or of a foreign loop, takes part in steps, and may compute with NumPy there."""
        step = self.task.description.get("step") if isinstance(self.task.description, dict) else None
        named = isinstance(step, dict) and any(bool(step.get(name)) for name in ("augment", "collate", "custom"))
        return named or self.randomness.mode == "recorded"


class Displacement(_Document, frozen=True):
    """l2 distance between a segment's ends: of the ``state`` (all floating-point tensors but scalars) and of the ``weights``."""

    state: float
    weights: float


class Block(_Document, frozen=True):
    """One segment's columns in ``blocks.bin``."""

    digest: str
    bytes: int


class Start(_Document, frozen=True, tag_field="kind", tag="start"):
    """The log's first line: the initial state."""

    prev: str
    state: str


class EnvironmentLine(_Document, frozen=True, tag_field="kind", tag="environment"):
    """A numeric environment, written once before the first segment that was trained in it."""

    prev: str
    digest: str
    environment: Environment


class Segment(_Document, frozen=True, tag_field="kind", tag="segment"):
    """One segment: ``arrived`` as training left the state, ``state`` as training continued from it."""

    prev: str
    index: int
    start: int
    stop: int
    arrived: str
    state: str
    displacement: Displacement
    environment: str
    block: Block
    evaluation: dict[str, float] | None = None


class End(_Document, frozen=True, tag_field="kind", tag="end"):
    """The log's last line: the digest of the final model (parameters and buffers) and what it is said to achieve."""

    prev: str
    final_weights: str
    evaluation: dict[str, float] | None = None


Line = Start | EnvironmentLine | Segment | End


class Stored(_Document, frozen=True, tag_field="kind", tag="state"):
    """An index line: the object that holds a state. ``base`` is the state a difference is taken from."""

    prev: str
    state: str
    object: str
    bytes: int
    codec: str
    base: str | None = None


class Seal(_Document, frozen=True):
    """``seal.json``: the root, and how much it covers."""

    schema: str
    root: str
    segments: int
    index: str  # head of the index, which lies outside the root


def header_digest(raw: bytes) -> str:
    """The first link of the log; ``raw`` is the header's file."""
    return canonical.sha256(_HEADER, raw)


def line_digest(raw: bytes) -> str:
    """The link that the next line carries as ``prev``."""
    return canonical.sha256(_LINE, raw)


def root(header_digest: str, head: str) -> str:
    """The one root over header and log."""
    return canonical.sha256(_ROOT, header_digest.encode(), b"\0", head.encode())


def index_start(header_digest: str) -> str:
    """The first link of the index, which ties it to its proof."""
    return canonical.sha256(b"pol/v1/index\0", header_digest.encode())


def check_digest(value: str, what: str) -> str:
    if not _DIGEST.fullmatch(value):
        raise FormatError(f"{what} is not a digest of the form sha256:<64 hex digits>")
    return value


def parse_header(raw: bytes) -> Header:
    """Decode and validate ``header.json``. Raises FormatError or IntegrityError."""
    header = canonical.decode(raw, Header, HEADER_FILE)
    if header.format != FORMAT:
        raise FormatError(f"{HEADER_FILE} has format {header.format[:64]!r}; this version reads {FORMAT!r}")
    training, randomness = header.training, header.randomness
    if not 1 <= training.steps <= MAX_STEPS or not 1 <= training.steps_per_epoch <= MAX_STEPS:
        raise FormatError(f"{HEADER_FILE}: the number of steps is out of range")
    if not 1 <= training.interval <= MAX_INTERVAL:
        raise FormatError(f"{HEADER_FILE}: an interval of {training.interval} is out of range; expected at least 1")
    if not re.fullmatch(r"[0-9a-f]{64}", randomness.key):
        raise FormatError(f"{HEADER_FILE}: the key is not 64 hex digits")
    if (randomness.claim is None) != (header.claim is None) or (randomness.claim is None) == (randomness.seed is None):
        raise FormatError(f"{HEADER_FILE}: the key comes from either a seed or a claim, which the header then holds")
    if (header.initialization.kind == "linked") != (header.initialization.proof is not None):
        raise FormatError(f"{HEADER_FILE}: a linked initialization, and no other, names the proof that it starts from")
    if randomness.seed is not None and not re.fullmatch(r"0|[1-9][0-9]{0,19}", randomness.seed):
        raise FormatError(f"{HEADER_FILE}: the seed is not a decimal integer below 2^64")
    if randomness.seed is not None and int(randomness.seed) >= 2**64:
        raise FormatError(f"{HEADER_FILE}: the seed is not below 2^64")
    digests = {
        "task digest": header.task.digest,
        "data root": header.data.root,
        "claim": randomness.claim,
        "proof to start from": header.initialization.proof,
    }
    for what, value in digests.items():
        if value is not None:
            check_digest(value, f"{HEADER_FILE}: the {what}")
    if header.data.samples < 1:
        raise FormatError(f"{HEADER_FILE}: the data set has {header.data.samples} samples")
    if canonical.sha256(b"pol/v1/task\0", canonical.encode(header.task.description)) != header.task.digest:
        raise IntegrityError(f"{HEADER_FILE}: the task's digest is not that of its description")
    return header
