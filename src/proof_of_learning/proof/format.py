"""Proof format, version 2: the documents under the root, and how they are hashed.

A proof is a directory (``docs/spec/format.md`` has the whole specification)::

    header.json     what is claimed before the first step
    log.jsonl       one line per segment, hash-chained from the header's digest
    blocks.bin      per-step columns, one block per segment, in log order
    index.jsonl     which object stores which state; chained, outside the root
    objects/ab/…    content-addressed files
    seal.json       the root
    attestations/…  optional: statements, signatures and timestamps, each named by its content

No time, host, path or process id lies under the root. What is read of version 1 becomes the same documents (:mod:`.parse`).
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any, Literal

import msgspec

from proof_of_learning import canonical
from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.errors import FormatError
from proof_of_learning.limits import MAX_STEPS
from proof_of_learning.numeric.environment import Environment

VERSION = 2  # the one that is written
VERSIONS = {f"pol/proof/v{number}": number for number in (1, 2)}
FORMAT = f"pol/proof/v{VERSION}"
SEAL = f"pol/seal/v{VERSION}"
ARITHMETIC = "native"

HEADER_FILE, LOG_FILE, BLOCKS_FILE, INDEX_FILE, SEAL_FILE = (
    "header.json", "log.jsonl", "blocks.bin", "index.jsonl", "seal.json"
)  # fmt: skip
OBJECTS = "objects"
ATTESTATIONS = "attestations"  # statements about the proof, signed or not, and timestamps on them: outside the root
ATTESTATION = re.compile(r"(claim|head|seal|recovery|gaps)-([0-9a-f]{16})\.(dsse\.json|json|tsr)")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Plain = str | int | float | bool | None
PartKind = Literal["module", "optimizer", "scheduler", "scaler", "stateful", "progress"]
How = Literal["completed", "stopped"]


# Of the documents that there are many of, none is looked at by the garbage collector: they hold no references back.
class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class TaskClaim(_Document, frozen=True):
    """The task as the prover describes it; ``digest`` must be the description's."""

    digest: str
    name: str
    description: dict[str, Any]
    sources: dict[str, str]


class Program(_Document, frozen=True):
    """What was run, by the prover's word: a ``task``, or a ``script`` that holds the loop.

    reference: the file's name without folders, or the module, and the function; None for an object without one.
    arguments: of the command. settings: of the task. sealed: digest of the step as data, which the task's description holds.
    """

    kind: Literal["task", "script"] = "task"
    reference: str | None = None
    arguments: list[str] = []
    settings: dict[str, Plain] = {}
    sealed: str | None = None


class Input(_Document, frozen=True):
    """A file that was read before the first step: its name without folders, digest and size in bytes."""

    name: str
    digest: str
    bytes: int


class Training(_Document, frozen=True):
    """The steps that were planned (None: unknown), k and S. How many were taken says the log's end."""

    planned: int | None
    interval: int
    steps_per_epoch: int

    @property
    def at_most(self) -> int:
        """The planned steps, or as many as any run may have."""
        return MAX_STEPS if self.planned is None else self.planned


class Randomness(_Document, frozen=True):
    """``derived``: all choices follow from ``key`` (hex). ``recorded``: order and generator states are in the blocks.

    ``seed`` (decimal) or ``claim`` (the digest of a registered claim) says where the key comes from; ``anchor`` is what a
    timestamp adds to a claim.
    """

    mode: Literal["derived", "recorded"]
    key: str
    seed: str | None = None
    claim: str | None = None
    anchor: str | None = None


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
    """``header.json``: everything that is claimed before the first step.

    parts: the parts of a state, each with the kind of its adapter; empty where a proof of version 1 does not say.
    ranks: how many processes trained together; what process r from 1 on has of its own are parts ``NAME@r``.
    """

    format: str
    task: TaskClaim
    data: DataCommitment
    training: Training
    randomness: Randomness
    initialization: Initialization
    codec: CodecClaim
    claim: dict[str, Any] | None = None
    program: Program = Program()
    inputs: list[Input] = []
    parts: dict[str, PartKind] = {}
    ranks: int = 1
    arithmetic: str = ARITHMETIC

    def encoded(self) -> bytes:
        return canonical.encode(self)

    def digest(self) -> str:
        return header_digest(self.encoded(), self.version)

    @property
    def version(self) -> int:
        """The number of the format's version, by which everything else is hashed."""
        return VERSIONS.get(self.format, VERSION)

    def planned_segments(self) -> int | None:
        """How many segments the planned steps make; None where these are unknown."""
        planned = self.training.planned
        return None if planned is None else -(-planned // self.training.interval)

    def rounded(self, stop: int) -> bool:
        """Whether the end at step ``stop`` of a segment is what a codec in the loop makes of it: at every checkpoint that is not
        the planned end. One that a run stops at between two checkpoints stays as it is.
        """
        return self.codec.in_loop and stop % self.training.interval == 0 and stop != self.training.planned

    @property
    def own_code(self) -> bool:
        """Whether code of the task's own, or of a foreign loop, takes part in steps, and may compute with NumPy there."""
        step = self.task.description.get("step") if isinstance(self.task.description, dict) else None
        named = isinstance(step, dict) and any(bool(step.get(name)) for name in ("augment", "collate", "custom"))
        return named or self.own_loop

    @property
    def own_loop(self) -> bool:
        """Whether the loop is not ours, so that a replay needs what is recorded of its steps."""
        return self.randomness.mode == "recorded" or self.program.kind == "script"


class Displacement(_Document, frozen=True, gc=False):
    """l2 distance between a segment's ends: of the ``state`` (all floating-point tensors but scalars) and of the ``weights``."""

    state: float
    weights: float


class Block(_Document, frozen=True, gc=False):
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


class Segment(_Document, frozen=True, gc=False, tag_field="kind", tag="segment"):
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


class Reload(_Document, frozen=True, tag_field="name", tag="reload"):
    """Parts were set to what they had been after ``step`` steps, or to what the file with the digest ``input`` holds.

    ``state`` is the digest of the state that consists of these parts, as they then were.
    """

    parts: list[str]
    state: str
    step: int | None = None
    input: str | None = None


class Group(_Document, frozen=True, tag_field="name", tag="group"):
    """An optimizer was given a further parameter group: its number there, and how many parameters it has."""

    part: str
    group: int
    parameters: int


class Event(_Document, frozen=True, tag_field="kind", tag="event"):
    """What happened during ``step`` beside it; stands before the line of the segment that the step belongs to."""

    prev: str
    step: int
    event: Reload | Group


class End(_Document, frozen=True, tag_field="kind", tag="end"):
    """The log's last line: how many steps were taken, and whether that was the plan; the digest of the final model (parameters and
    buffers) and what it is said to achieve."""

    prev: str
    steps: int
    ended: How
    final_weights: str
    evaluation: dict[str, float] | None = None


Line = Start | EnvironmentLine | Event | Segment | End


class Stored(_Document, frozen=True, gc=False, tag_field="kind", tag="state"):
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


def seal_schema(version: int) -> str:
    return f"pol/seal/v{version}"


def header_digest(raw: bytes, version: int = VERSION) -> str:
    """The first link of the log; ``raw`` is the header's file."""
    return canonical.sha256(_tag("header", version), raw)


def line_digest(raw: bytes, version: int = VERSION) -> str:
    """The link that the next line carries as ``prev``."""
    return "sha256:" + hashlib.sha256(_tag("line", version) + raw).hexdigest()


def root(header_digest: str, head: str, version: int = VERSION) -> str:
    """The one root over header and log."""
    return canonical.sha256(_tag("root", version), header_digest.encode(), b"\0", head.encode())


def index_start(header_digest: str, version: int = VERSION) -> str:
    """The first link of the index, which ties it to its proof."""
    return canonical.sha256(_tag("index", version), header_digest.encode())


@functools.cache
def _tag(name: str, version: int) -> bytes:
    return f"pol/v{version}/{name}\0".encode()


def program_digest(raw: bytes) -> str:
    """The digest of a sealed program; ``raw``: its document in canonical form."""
    return canonical.sha256(b"pol/v1/program\0", raw)


def is_digest(value: str) -> bool:
    return _DIGEST.fullmatch(value) is not None


def check_digest(value: str, what: str) -> str:
    if not is_digest(value):
        raise FormatError(f"{what} is not a digest of the form sha256:<64 hex digits>")
    return value
