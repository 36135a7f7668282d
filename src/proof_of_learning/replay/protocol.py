"""What travels between the verifier's process and a replay worker: typed, bounded messages, and states behind them.

A worker is *blind*: it is given where a segment starts, the batches where they were recorded, and what the task needs; it returns
where it arrives. It never sees the proof, a digest or a later state. A message is MessagePack behind a length (JSON has no
infinities, which a hostile state produces); states follow it as the raw codec writes them, each behind a length of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np

from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.errors import FormatError, WorkerError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.portable import NATIVE
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.proof.format import Input
from proof_of_learning.state.state import State
from proof_of_learning.task import Setting
from proof_of_learning.training.steps import Metric

MAX_MESSAGE = 256 << 20
MAX_STATES = 64  # behind one message
MAX_STATE = 1 << 40  # bytes; memory is taken only as they arrive
RATES_AT_ONCE = 20_000

T = TypeVar("T")


class Request(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """Base of all requests. Frozen, so that a request names its own answer."""


class Answer(msgspec.Struct, frozen=True, tag_field="answer", forbid_unknown_fields=True):
    """Base of all answers."""


class Open(Request, frozen=True, tag="open"):
    """Build the task and take on the numeric environment. First of all requests. ``arguments``: of a script.
    ``derived``: of a script, whether its randomness follows from the key. ``arithmetic``: what the task computes in.
    ``sealed``: the task is replayed as a sealed program, which is made of it; or is ``program`` itself, where this is the document of
    one, over the samples in a folder (``settings``: ``data``). ``ranks``: of a script, how many processes train together.

    Behind it, where the run starts from another proof's final weights: these (a state with the part ``model``). Last, where
    ``samples`` is a number: those that were opened of so many (:mod:`data.opened`), which stand for the task's own data set.
    """

    task: str
    settings: dict[str, Setting]
    key: str
    seed: int | None
    environment: Environment | None
    arguments: list[str] = []
    derived: bool = False
    arithmetic: str = NATIVE
    samples: int | None = None
    sealed: bool = False
    program: bytes = b""
    ranks: int = 1


class Opened(Answer, frozen=True, tag="opened"):
    """``forks``: whether each of the requests that follow is answered by a child of its own, as it was after opening."""

    environment: Environment
    forks: bool


class Describe(Request, frozen=True, tag="describe"):
    """The task's description and its number of steps for the data set at hand."""


class Described(Answer, frozen=True, tag="described"):
    """``members``: of each entry of an optimizer's state (``optimizer/state/0``) the weights that it belongs to, by name.

    ``optimizers``: the parts that are optimizers with their numbers of parameter groups, in the order in which rates are told.
    ``modules``: the parts that are modules. ``script``: a script with a loop of its own; then ``steps`` are what was expected when
    it began, ``steps_per_epoch`` the batches of the first loader, ``batch`` its samples (0: not known),
    ``arguments`` those it was called with, ``place`` where its loop begins: phase, epoch and walk (:mod:`run.events`); ``inputs``
    the files that it read before, ``pretrained`` the name of the one that it says its weights are from.
    ``taken``: the task is the sealed program that the proof brought along, and none that the verifier has.
    ``metric``: what schedulers are given that are driven by one (``training.steps.Metric``).
    """

    digest: str
    description: bytes
    sources: dict[str, str]
    steps: int
    steps_per_epoch: int
    samples: int
    batch: int
    loop_schedule: bool
    evaluates: bool
    members: dict[str, str]
    optimizers: dict[str, int]
    modules: list[str]
    script: bool = False
    metric: Metric = ""
    arguments: list[str] = []
    place: list[int] = []
    inputs: list[Input] = []
    pretrained: str = ""
    taken: bool = False


class CommitData(Request, frozen=True, tag="commit-data"):
    """The commitment to the verifier's own data."""


class Committed(Answer, frozen=True, tag="committed"):
    commitment: DataCommitment


class Start(Request, frozen=True, tag="start"):
    """The initial state under the run's key, and each tensor's dependence on the key, by a second run under ``other`` (hex)."""

    other: str


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


class Started(Answer, frozen=True, tag="started"):
    """Behind it: the initial state under the run's key, and the one under the other."""

    tensors: list[TensorOrigin]


class Rates(Request, frozen=True, tag="rates"):
    """The learning rates that the task's own schedule gives for steps ``start`` up to ``stop``, without training.

    ``interval``: how many steps a segment has. ``metrics``: of each whole epoch, what schedulers that are driven by one were given.
    ``origin``: the step from which the schedule goes on. Behind the request, unless it is 0: the state there.
    """

    start: int
    stop: int
    interval: int
    steps: int
    metrics: tuple[float, ...] = ()
    origin: int = 0


class RatesGiven(Answer, frozen=True, tag="rates"):
    """``settings``: what the states at the ends of segments hold beside trained values (see ``state.state.settings``)."""

    rates: list[list[float]]
    settings: list[bytes]


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a further one of several processes drew in each step; see :class:`Take`."""

    indices: list[bytes]
    generators: list[dict[str, bytes]]
    loop: list[bytes]


class Take(Request, frozen=True, tag="take"):
    """Take the steps from ``start`` up to ``stop``. Behind it: the state that they start from.

    ``indices``, ``generators``: of each step, where they do not follow from the key: the samples (int64, little-endian) and the
    recorded states of the generators by name. ``loop``: what else happened in a script's steps (:mod:`run.events`).
    ``ranks``: the same of further processes, from 1 on.
    """

    start: int
    stop: int
    indices: list[bytes] | None = None
    generators: list[dict[str, bytes]] | None = None
    loop: list[bytes] | None = None
    ranks: list[Share] = []


class Taken(Answer, frozen=True, tag="taken"):
    """Behind it: the state arrived at. ``losses`` and ``rates`` by step; ``seconds``: of the steps alone.

    ``closed``: of a script, whether it closed its run at the end of these steps, rather than ask for the next batch;
    ``asked``: where that one was asked for (phase, epoch, walk, position in the walk).
    ``alike``: of one of several processes, a digest of what all of them must hold alike; it does not leave the worker.
    """

    losses: list[float]
    rates: list[list[float]]
    seconds: float
    closed: bool | None = None
    asked: list[int] = []
    alike: str = ""


class Evaluate(Request, frozen=True, tag="evaluate"):
    """The task's own evaluation of the state behind it."""


class Evaluated(Answer, frozen=True, tag="evaluated"):
    values: dict[str, float] | None


class Coasting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps of the task's own optimizers and schedule with gradients of zero, which show where weights come to rest.

    ``steps``: at most so many from each of the states; ``until``: the step of the run at which they end at the latest.
    ``places``: of each tensor of weights that is looked at, by name, which elements (int64, little-endian; empty for all).
    """

    steps: list[int]
    until: int
    places: dict[str, bytes]


class Probe(Request, frozen=True, tag="probe"):
    """One step of the task's own on some samples, from each of the states behind it: what the networks put out on the way.

    ``samples``: which of the data set (int64, little-endian; none: outputs are not looked at). ``seed``: what the step draws, and
    what is looked at of large outputs, follows from it. ``gradients``: how much of the networks the gradient reaches is asked for
    too. ``coasting``: the states are looked at again where their optimizers carry them by themselves.
    """

    samples: bytes
    seed: int
    gradients: bool = False
    coasting: Coasting | None = None


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output of a network that is not part of another: ``values`` (float32, little-endian), [``rows``, the rest].

    ``scores``: the rows are distributions (softmax); else the outputs themselves.
    """

    name: str
    rows: int
    values: bytes
    scores: bool


class Rest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a state came to rest: of each tensor the elements that were asked for (float64, little-endian), and the outputs there.

    ``why``: that it could not be found out.
    """

    weights: dict[str, bytes] = {}
    heads: list[Head] = []
    why: str = ""


class Glimpse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``living``: of each layer that has parameters to train, the share of its outputs that some gradient reaches.

    ``loose``: those of them whose parameters no optimizer holds, as of a teacher or an average; ``waiting``: those whose optimizers
    took no step where others did, as of a network that is trained every so many steps.
    """

    heads: list[Head]
    loss: float
    living: dict[str, float] = {}
    loose: list[str] = []
    waiting: list[str] = []
    rest: Rest | None = None


class Probed(Answer, frozen=True, tag="probed"):
    """One for each of the states."""

    glimpses: list[Glimpse]


class SelfTest(Request, frozen=True, tag="self-test"):
    """Whether portable arithmetic gives the published bits in the worker's environment."""


class SelfTested(Answer, frozen=True, tag="self-tested"):
    """``differing``: the names of the cases that give others."""

    differing: list[str]


class Failed(Answer, frozen=True, tag="failed"):
    """The request could not be carried out: ``error`` is the class of the error, ``message`` its line."""

    error: str
    message: str


class Working(Answer, frozen=True, tag="working"):
    """A sign of life between request and answer."""

    done: int = 0
    total: int = 0


AnyRequest = Open | Describe | CommitData | Start | Rates | Take | Evaluate | Probe | SelfTest
AnyAnswer = (
    Opened | Described | Committed | Started | RatesGiven | Taken | Evaluated | Probed | SelfTested | Failed | Working
)  # fmt: skip
Reply = tuple[AnyAnswer, Sequence[State]]  # an answer and the states behind it

_HEAD = struct.Struct(">IB")  # bytes of the message, number of states behind it
_STATE = struct.Struct(">Q")


def recorded_steps(
    indices: Sequence[np.ndarray], generators: Sequence[RngSnapshot]
) -> tuple[list[bytes], list[dict[str, bytes]]]:
    """What a proof recorded of some steps, as :class:`Take` carries it."""
    return (
        [np.ascontiguousarray(chosen, dtype="<i8").tobytes() for chosen in indices],
        [{name: state.tobytes() for name, state in snapshot.states.items()} for snapshot in generators],
    )


def recorded_loop(loop: Sequence[np.ndarray] | None, steps: int) -> list[bytes] | None:
    """What happened in the first ``steps`` steps of a script's, in the same way; None where there are no such events."""
    return None if loop is None else [np.ascontiguousarray(row, dtype="<i8").tobytes() for row in loop[:steps]]


def snapshot(states: dict[str, bytes]) -> RngSnapshot:
    """The inverse of :func:`recorded_steps` for one step's generators."""
    return RngSnapshot({name: np.frombuffer(raw, dtype=np.uint8).copy() for name, raw in states.items()})


def send(stream: BinaryIO, message: Request | Answer, states: Sequence[State] = ()) -> None:
    """Write a message and the states behind it."""
    raw = msgspec.msgpack.encode(message)
    if len(raw) > MAX_MESSAGE:
        raise WorkerError(f"a message of {len(raw):,} bytes is too large")
    encoded = [RawCodec().encode(state, None).chunks() for state in states]
    write_all(stream, _HEAD.pack(len(raw), len(encoded)) + raw)
    for chunks in encoded:
        pieces = list(chunks)
        write_all(stream, _STATE.pack(sum(memoryview(piece).nbytes for piece in pieces)))
        for piece in pieces:
            write_all(stream, piece)
    stream.flush()


def write_all(stream: BinaryIO, piece: bytes | memoryview) -> None:
    """Write every byte to a stream that may take them in parts."""
    rest = memoryview(piece).cast("B")
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def receive(stream: BinaryIO, type_: type[T], most: int = MAX_STATE) -> tuple[T, list[State]]:
    """The next message with its states, of at most ``most`` bytes each.

    Raises EOFError at the end of the stream, WorkerError for anything that is not a message.
    """
    size, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
    if size > MAX_MESSAGE or count > MAX_STATES:
        raise WorkerError(f"a message of {size:,} bytes with {count} states was announced, which is too large")
    try:
        message = msgspec.msgpack.decode(_exactly(stream, size), type=type_)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WorkerError(f"a message is malformed: {error}") from error
    states = []
    for _ in range(count):
        (length,) = _STATE.unpack(_exactly(stream, _STATE.size))
        if length > most:
            raise WorkerError(f"a state of {length:,} bytes was announced; at most {most:,} are accepted")
        try:
            states.append(RawCodec().decode(_exactly(stream, length), None))
        except FormatError as error:
            raise WorkerError(f"a message carries no state: {error}") from error
    return message, states


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    """``size`` bytes of a pipe that may hand them out in parts."""
    raw = bytearray()
    while len(raw) < size:
        piece = stream.read(min(size - len(raw), 1 << 24))
        if not piece:
            raise EOFError
        raw += piece
    return raw
