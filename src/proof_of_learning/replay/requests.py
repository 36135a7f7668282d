"""What a check asks about a proof, and what it is told: by segment, measured and compared with what was recorded.

A check plans requests and judges answers; it does not matter to either where the steps are taken. The replayer turns each into
what a blind worker is told (:mod:`replay.protocol`), and what comes back into the answer.
"""

from __future__ import annotations

import msgspec

from proof_of_learning.replay import protocol
from proof_of_learning.replay.measure import Comparison, Detail, Distance
from proof_of_learning.replay.protocol import Answer, Request, TensorOrigin


class Initialize(Request, frozen=True, tag="initialize"):
    """The initial state under the proof's key, and each tensor's dependence on the key, by a second run under ``other`` (hex)."""

    other: str


class Initialized(Answer, frozen=True, tag="initialized"):
    """Where the digests differ, ``comparison`` is with the recorded initial state, ``relative`` each tensor's error over its norm.

    ``rest_fresh``: whether the recorded parts that are no modules (optimizers, schedulers, …) are as in a fresh session. ``twins``:
    generators that the program itself seeds alike in several processes.
    """

    state: str
    comparison: Comparison | None
    relative: dict[str, float]
    rest_fresh: bool
    tensors: list[TensorOrigin]
    twins: tuple[str, ...] = ()


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


class Replayed(Answer, frozen=True, tag="replayed"):
    """``arrived``: digest of the state the replay arrived at, ``ended``: of what a codec in the loop makes of it (else the same);
    ``comparison`` with the recorded end where the digests differ.

    ``displacement``: distance between the segment's two recorded ends; None if the proof no longer holds the second, and for
    :class:`Noise`. ``losses`` are the replay's own, ``rates`` the learning rates it used. ``seconds`` covers loading, steps and
    digest; ``step_seconds`` the steps alone, ``steps`` how many they were: more than the segment's where its start was thinned.
    ``closed``: whether a script closed its run there; ``asked``: where else it asked for the next batch. ``workers``: who took the
    steps, by name, each once.
    ``twins``, ``stuck``: generators at the end (:mod:`replay.twins`), where the proof no longer holds both ends.
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
    closed: bool | None = None
    asked: list[int] = msgspec.field(default_factory=list)
    workers: list[str] = msgspec.field(default_factory=list)
    twins: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


class Evaluate(Request, frozen=True, tag="evaluate-segment"):
    """Evaluate the model in the recorded state at the end of segment ``index``."""

    index: int


PER_SEGMENT = (Replay, Noise, Evaluate)
AnyCheckRequest = protocol.Describe | protocol.CommitData | protocol.Rates | Initialize | Replay | Noise | Evaluate
AnyCheckAnswer = (
    protocol.Described
    | protocol.Committed
    | protocol.RatesGiven
    | protocol.Evaluated
    | protocol.Failed
    | Initialized
    | Replayed
)  # fmt: skip
