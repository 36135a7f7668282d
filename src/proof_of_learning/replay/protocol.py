"""What a verifier asks of a replay worker, and what comes back: typed, bounded messages, MessagePack behind a length
(JSON has no infinities, which a hostile state produces).

A check plans requests and judges answers; it does not matter to either whether they travel to a child process.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, TypeVar

import msgspec

from proof_of_learning.data.commit import DataCommitment
from proof_of_learning.errors import WorkerError
from proof_of_learning.replay.measure import Comparison, Detail, Distance
from proof_of_learning.task import Setting
from proof_of_learning.training.environment import Environment

MAX_MESSAGE = 256 << 20
RATES_AT_ONCE = 10_000

T = TypeVar("T")


class Request(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """Base of all requests. Frozen, so that a request names its own answer."""


class Open(Request, frozen=True, tag="open"):
    """Build the task and take on the numeric environment. First of all requests.

    ``start``: directory of the proof whose final weights the run starts from. ``scratch``: a folder where replayed ends are kept
    for a worker in another environment.
    """

    proof: str
    task: str
    settings: dict[str, Setting]
    key: str
    seed: int | None
    environment: Environment | None
    start: str | None = None
    scratch: str | None = None


class Describe(Request, frozen=True, tag="describe"):
    """The task's description and its number of steps for the data set at hand."""


class CommitData(Request, frozen=True, tag="commit-data"):
    """The commitment to the verifier's own data."""


class Initialize(Request, frozen=True, tag="initialize"):
    """The initial state under the proof's key, and each tensor's dependence on the key, by a second run under ``other`` (hex)."""

    other: str


class Rates(Request, frozen=True, tag="rates"):
    """The learning rates that the task's own schedule gives for steps ``start`` up to ``stop``, without training."""

    start: int
    stop: int


class Replay(Request, frozen=True, tag="replay"):
    """Replay segment ``index`` from its recorded start and measure where it arrives.

    ``steps``: only the first so many; the end is then compared with nothing. ``calibrate``: keep the end for
    :class:`Noise` and measure in detail.
    """

    index: int
    steps: int | None = None
    calibrate: bool = False


class Noise(Request, frozen=True, tag="noise"):
    """The same replay in another numeric environment, compared with the end that was kept: the verifier's own noise.

    ``keep``: the kept end is needed again, for a further environment. ``nudge``: not in another environment, but from a start
    whose numbers are moved by a few units of their last place; the number says which of many such starts.
    """

    index: int
    steps: int | None = None
    keep: bool = False
    nudge: int | None = None


class Regenerate(Request, frozen=True, tag="regenerate"):
    """Train from the nearest kept state to both ends of segment ``index``, and leave them in the scratch folder."""

    index: int


class Evaluate(Request, frozen=True, tag="evaluate"):
    """Evaluate the model in the recorded state at the end of segment ``index``."""

    index: int


class Answer(msgspec.Struct, frozen=True, tag_field="answer", forbid_unknown_fields=True):
    """Base of all answers."""


class Opened(Answer, frozen=True, tag="opened"):
    environment: Environment
    root: str


class Described(Answer, frozen=True, tag="described"):
    digest: str
    description: bytes
    sources: dict[str, str]
    steps: int
    steps_per_epoch: int
    samples: int
    batch: int
    loop_schedule: bool
    evaluates: bool


class Committed(Answer, frozen=True, tag="committed"):
    commitment: DataCommitment


class TensorOrigin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an initial tensor's values come from.

    ``constant`` (one value throughout), ``drawn`` (depends on the key), ``fixed`` (the same under every key),
    ``linked`` (from the proof it starts from),
    ``partly-fixed`` (differs, but the two runs correlate more than independent draws do) or
    ``rearranged`` (differs, but holds the same values in another order, or rows of them rescaled; see :mod:`origins`).
    """

    name: str
    elements: int
    origin: str
    trainable: bool
    floating: bool
    correlation: float = 0.0


class Initialized(Answer, frozen=True, tag="initialized"):
    """Where the digests differ, ``comparison`` is with the recorded initial state, ``relative`` each tensor's error over its norm.

    ``rest_fresh``: whether the recorded parts that are no modules (optimizers, schedulers, …) are as in a fresh session.
    """

    state: str
    comparison: Comparison | None
    relative: dict[str, float]
    rest_fresh: bool
    tensors: list[TensorOrigin]


class RatesGiven(Answer, frozen=True, tag="rates"):
    """``settings``: what the states at the ends of segments hold beside trained values (see ``training.state.settings``)."""

    rates: list[list[float]]
    settings: list[bytes]


class Replayed(Answer, frozen=True, tag="replayed"):
    """``arrived``: digest of the state the replay arrived at, ``ended``: of what a codec in the loop makes of it (else the same);
    ``comparison`` with the recorded end where the digests differ.

    ``displacement``: distance between the segment's two recorded ends; None if the proof no longer holds the second, and for
    :class:`Noise`. ``losses`` are the replay's own, ``rates`` the learning rates it used. ``seconds`` covers loading, steps and
    digest; ``step_seconds`` the steps alone, ``steps`` how many they were: more than the segment's where its start was thinned.
    """

    arrived: str
    ended: str
    losses: list[float]
    rates: list[list[float]]
    comparison: Comparison | None
    displacement: Distance | None
    detail: Detail | None
    seconds: float
    step_seconds: float
    steps: int


class Regenerated(Answer, frozen=True, tag="regenerated"):
    """The states lie, raw, as ``state-INDEX`` and ``state-INDEX+1``; ``steps``: how many were taken for them."""

    steps: int


class Evaluated(Answer, frozen=True, tag="evaluated"):
    values: dict[str, float] | None


class Failed(Answer, frozen=True, tag="failed"):
    """The request could not be carried out: ``error`` is the class of the error, ``message`` its line."""

    error: str
    message: str


class Working(Answer, frozen=True, tag="working"):
    """A sign of life between request and answer."""

    done: int = 0
    total: int = 0


AnyRequest = Open | Describe | CommitData | Initialize | Rates | Replay | Noise | Regenerate | Evaluate
AnyAnswer = (
    Opened | Described | Committed | Initialized | RatesGiven | Replayed | Regenerated | Evaluated | Failed | Working
)  # fmt: skip

_HEAD = struct.Struct(">I")


def send(stream: BinaryIO, message: Request | Answer) -> None:
    raw = msgspec.msgpack.encode(message)
    if len(raw) > MAX_MESSAGE:
        raise WorkerError(f"a message of {len(raw):,} bytes is too large")
    stream.write(_HEAD.pack(len(raw)) + raw)
    stream.flush()


def receive(stream: BinaryIO, type_: type[T]) -> T:
    """The next message; EOFError at the end of the stream, WorkerError for anything that is not a message."""
    (size,) = _HEAD.unpack(_exactly(stream, _HEAD.size))
    if size > MAX_MESSAGE:
        raise WorkerError(f"a message of {size:,} bytes was announced; at most {MAX_MESSAGE:,} are accepted")
    try:
        return msgspec.msgpack.decode(_exactly(stream, size), type=type_)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WorkerError(f"a message is malformed: {error}") from error


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes of a pipe that may hand them out in parts."""
    raw = bytearray()
    while len(raw) < size:
        piece = stream.read(size - len(raw))
        if not piece:
            raise EOFError
        raw += piece
    return bytes(raw)
