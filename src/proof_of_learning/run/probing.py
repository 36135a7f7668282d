"""What a script's networks put out on the verifier's samples: one of its own steps from each of some states, watched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from proof_of_learning.errors import TaskError, WorkerError
from proof_of_learning.replay import protocol
from proof_of_learning.replay.probe import HEADS, NO_OUTPUT, head, integers, watched
from proof_of_learning.replay.protocol import Glimpse
from proof_of_learning.run import counting
from proof_of_learning.run.clock import Walk
from proof_of_learning.run.facts import facts
from proof_of_learning.run.replay import Answer, Replaying, Tools
from proof_of_learning.run.watch import Seen, watching
from proof_of_learning.training import randomness
from proof_of_learning.training.state import State, restore

# The place in its walk that the loop believes each step to have: not the first, where loops look at themselves.
PLACE = 1
PATIENCE = 64  # times that all samples are given to a loop that makes no update


class Probing:
    """Gives, for each state, the samples in batches of the size that the script trains with."""

    place = None

    def __init__(
        self, clock: Replaying, request: protocol.Probe, states: Sequence[State], answer: Answer, tools: Tools
    ) -> None:
        self._clock, self._request, self._states, self._answer, self._tools = clock, request, states, answer, tools
        self._key = randomness.key_from_seed(request.seed)
        self._glimpses: list[Glimpse] = []
        self._losses: list[float] = []
        self._labelled = False  # whether a batch of the state under way holds labels or tokens
        self._chunks: list[list[int]] = []
        self._given = 0  # batches, of the state under way
        self._parts: dict[str, Any] = {}
        self._exit, self._watch = ExitStack(), ExitStack()

    @property
    def _seen(self) -> Seen:
        if self._clock.seen is None:
            self._clock.seen = Seen(self._parts)
        return self._clock.seen

    def clocked(self, walk: Walk) -> Any:
        if not self._clock.begun:
            self._begin(walk)
            self._state()
        elif self._seen.updated or self._given > PATIENCE * len(self._chunks):
            self._losses.append(float(self._seen.loss))
            if self._given >= len(self._chunks):
                self._glimpse()
                self._state()
            self._restore()
        chosen = self._chunks[self._given % len(self._chunks)]
        self._given += 1
        batch = walk.source.again(chosen, min(PLACE, len(walk.source) - 1))
        self._labelled |= integers(batch)
        return batch

    def beside(self, walk: Walk) -> Any:
        chosen = self._chunks[(self._given - 1) % len(self._chunks)]
        samples = len(walk.source.data)  # type: ignore[attr-defined]
        return walk.source.again([index % samples for index in chosen], 0)

    def closed(self) -> None:
        raise WorkerError("the script's loop ended before it took a step on the verifier's samples")

    def _begin(self, walk: Walk) -> None:
        found = facts(self._clock.given, walk.source)
        self._parts = found.parts
        samples = np.frombuffer(self._request.samples, dtype="<i8").tolist()
        size = found.batch or len(samples)
        whole = max(1, len(samples) // size)  # a short batch is one that some networks cannot take
        self._chunks = [[]] if found.counted else [samples[i * size : (i + 1) * size] for i in range(whole)]
        self._clock.begun, self._clock.seen = True, self._seen
        self._exit.enter_context(watching(lambda: self._clock.seen))
        walk.position = min(PLACE, len(walk.source) - 1)
        counting.advance(walk, walk.position)

    def _state(self) -> None:
        """The next state."""
        self._given, self._losses, self._labelled = 0, [], False
        self._shown = self._watch.enter_context(watched(self._parts, self._request.gradients))
        self._restore()

    def _restore(self) -> None:
        restore(self._parts, self._states[len(self._glimpses)])
        randomness.seed_everything(randomness.derive(self._key, randomness.STEP))
        self._seen.begin()

    def _glimpse(self) -> None:
        """All batches were given; what was seen is the state's glimpse."""
        outputs = list(self._shown.outputs.items())[-HEADS:]
        heads = [head(name, values, self._labelled, self._request.seed) for name, values in outputs]
        if not heads:
            raise TaskError(NO_OUTPUT)
        loss = sum(self._losses) / len(self._losses)
        self._glimpses.append(Glimpse(heads, loss if math.isfinite(loss) else math.inf, self._shown.living()))
        self._watch.close()
        self._tools.pulse(len(self._glimpses), len(self._states))
        if len(self._glimpses) == len(self._states):
            self._answer(protocol.Probed(self._glimpses), ())
