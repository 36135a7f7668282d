"""What a script's networks put out on the verifier's samples: one of its own steps from each of some states, watched."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
import numpy as np
from torch import nn

from proof_of_learning.errors import TaskError, WorkerError
from proof_of_learning.numeric import randomness
from proof_of_learning.replay import protocol
from proof_of_learning.replay.coast import Driven, at_places, coast
from proof_of_learning.replay.probe import HEADS, NO_OUTPUT, Usual, head, integers, watched
from proof_of_learning.replay.protocol import Glimpse, Rest
from proof_of_learning.run import counting
from proof_of_learning.run.clock import Walk
from proof_of_learning.run.facts import facts
from proof_of_learning.run.loaders import Named
from proof_of_learning.run.replay import Answer, Replaying, Tools
from proof_of_learning.run.watch import Seen, watching
from proof_of_learning.state.parts import of_kind
from proof_of_learning.state.state import State, capture, restore

# The place in its walk that the loop believes each step to have: not the first, where loops look at themselves.
PLACE = 1
PATIENCE = 64  # times that all samples are given to a loop that makes no update
ENDED = "the script's loop ended before it took a step on the verifier's samples"


@dataclass
class Left:
    """What a look had seen when its loop ended; another process goes on from there.

    glimpses: of the states that were seen. rest: of the last of them where it comes to rest, if that place was looked at.
    aligned: whether the loop needs no update to stand between two. told: of the state under way; empty where none was.
    """

    glimpses: list[Glimpse]
    rest: Rest | None
    aligned: bool
    told: dict[str, Any]
    start: State | None

    def message(self) -> tuple[protocol.Probed, list[State]]:
        """As a message with states behind it."""
        told = capture({"told": _Told({"aligned": self.aligned, "look": self.told})})
        rest = [] if self.rest is None else [Glimpse([], 0.0, rest=self.rest)]
        return protocol.Probed([*self.glimpses, *rest]), [told] if self.start is None else [told, self.start]

    @classmethod
    def read(cls, message: protocol.Probed, states: Sequence[State]) -> Left:
        """The inverse."""
        kept = _Told({})
        restore({"told": kept}, states[0])
        rest = message.glimpses[-1].rest if len(states) > 1 else None
        glimpses = message.glimpses if rest is None else message.glimpses[:-1]
        return cls(glimpses, rest, kept.values["aligned"], kept.values["look"], states[1] if rest is not None else None)


class _Told:
    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.values = values


class Probing:
    """Gives, for each state, the samples in batches of the size that the script trains with."""

    place = None

    def __init__(
        self,
        clock: Replaying,
        request: protocol.Probe,
        states: Sequence[State],
        answer: Answer,
        tools: Tools,
        left: Left | None = None,
    ) -> None:
        self._clock, self._request, self._states, self._answer, self._tools = clock, request, states, answer, tools
        self._key = randomness.key_from_seed(request.seed)
        self._left = left
        self._glimpses: list[Glimpse] = [] if left is None else list(left.glimpses)
        self._losses: list[float] = []
        self._labelled = False  # whether a batch of the state under way holds labels or tokens
        self._chunks: list[list[int]] = []
        self._tokens = False  # whether the data of a loop that makes its own batches are labels or tokens
        self._given = 0  # batches, of the state under way
        self._begun, self._tries = 0, 0  # of them, before the update under way; how often that was taken again
        self._phase = 0  # in which the loop began
        self._walk: Any = lambda: None  # that was asked last, weakly: the loop may drop it
        self._shown_calls = 0  # of networks, when it was
        self._moved = False  # whether an update was looked at in this process
        self._usual = Usual()
        self._alone = True  # whether one process trains
        self._modes: list[tuple[nn.Module, bool]] = []  # of modules, where the loop asks for its first batch
        # Until the first update: a loop with several batches to an update stands somewhere between two, and all states have to be
        # shown as many batches.
        self._aligning = False
        self._parts: dict[str, Any] = {}
        self._exit, self._watch = ExitStack(), ExitStack()
        self._from = states[0]  # the state that steps are taken from
        self._rest: Rest | None = None  # where it came to rest

    @property
    def _seen(self) -> Seen:
        if self._clock.seen is None:
            self._clock.seen = Seen(self._parts)
        return self._clock.seen

    def clocked(self, walk: Walk) -> Any:
        if not self._clock.begun:
            self._begin(walk)
            if not self._request.samples:
                self._coast_only()
            if self._left is not None and self._left.aligned:
                self._state()
            else:
                self._from, self._aligning = self._states[0], True
                self._restore()
        elif self._clock.phase != self._phase and self._tools.resumes:
            self.closed()  # what another loop of the script's does shows something else
        elif self._aligning and not self._seen.updated and self._given <= PATIENCE * len(self._chunks):
            pass
        elif self._aligning:
            self._aligning = False
            self._state()
        elif self._seen.updated or self._given > PATIENCE * len(self._chunks):
            self._update()
        elif walk is not self._walk() and self._shown.calls == self._shown_calls:
            self._given -= 1  # the loop left its walk without a look at the batch
        self._walk, self._shown_calls = weakref.ref(walk), 0 if self._aligning else self._shown.calls
        chosen = self._chunks[self._given % len(self._chunks)]
        self._given += 1
        batch = walk.source.again(chosen, min(PLACE, len(walk.source) - 1))
        self._labelled |= integers(batch) or self._tokens
        return batch

    def beside(self, walk: Walk) -> Any:
        chosen = self._chunks[(self._given - 1) % len(self._chunks)]
        samples = len(walk.source.data)  # type: ignore[attr-defined]
        return walk.source.again([index % samples for index in chosen], 0)

    def closed(self) -> NoReturn:
        """The loop ended, by a count of its own: in another process it begins again, and sees the rest."""
        aligned = self._left is not None and self._left.aligned
        if self._aligning:
            aligned = self._seen.updated and self._given == 1
        elif self._clock.begun and self._seen.updated:
            self._update()
        elif self._moved:
            self._shown.drop()
            self._given = self._begun
        if not (self._tools.resumes and (self._moved or (self._aligning and aligned))):
            raise WorkerError(ENDED)
        told: dict[str, Any] = {}
        if not self._aligning:
            told = {
                "given": self._given, "tries": self._tries, "losses": self._losses, "labelled": self._labelled,
                "calls": self._usual.calls, "seen": self._shown.told(),
            }  # fmt: skip
        start = None if self._rest is None else self._from
        self._tools.leave(*Left(self._glimpses, self._rest, aligned, told, start).message())

    def _begin(self, walk: Walk) -> None:
        found = facts(self._clock.given, walk.source)
        self._parts, self._alone = found.parts, found.ranks == 1
        if found.counted or isinstance(walk.source, Named):  # what is handed to the loop are numbers
            self._tokens = found.labelled()
        samples = np.frombuffer(self._request.samples, dtype="<i8").tolist()
        size = found.batch or len(samples) or 1
        whole = max(1, len(samples) // size)  # a short batch is one that some networks cannot take
        self._chunks = [[]] if found.counted else [samples[i * size : (i + 1) * size] for i in range(whole)]
        self._clock.begun, self._clock.seen, self._phase = True, self._seen, self._clock.phase
        self._modes = [
            (module, module.training) for root in of_kind(found.parts, "module").values() for module in root.modules()
        ]
        self._exit.enter_context(watching(lambda: self._clock.seen))
        walk.position = min(PLACE, len(walk.source) - 1)
        counting.advance(walk, walk.position)

    def _state(self) -> None:
        """The next state, or where another process left off."""
        left = self._left.told if self._left is not None else {}
        if self._left is not None and self._left.start is not None:
            self._from, self._rest = self._left.start, self._left.rest
        else:
            self._from, self._rest = self._states[len(self._glimpses)], None
        self._look(self._request.gradients and self._rest is None)
        if left:
            self._shown.go_on(left["seen"])
            self._given = self._begun = left["given"]
            self._tries, self._losses, self._labelled, self._usual.calls = (
                left[name] for name in ("tries", "losses", "labelled", "calls")
            )
        if self._left is not None:
            self._left.told, self._left.start = {}, None

    def _update(self) -> None:
        """The update under way is over; the loop comes to stand before the next one that is looked at."""
        self._moved = True
        # Several processes would have to agree.
        if self._alone and self._seen.updated and self._usual.passed_by(self._shown, self._tries):
            self._again()
            return
        self._shown.keep()
        self._losses.append(float(self._seen.loss))
        self._tries, self._begun = 0, self._given
        if self._given >= len(self._chunks):
            self._seen_all()
        else:
            self._restore()

    def _look(self, gradients: bool) -> None:
        self._given, self._losses, self._labelled = 0, [], False
        self._tries, self._begun = 0, 0
        self._shown = self._watch.enter_context(watched(self._parts, gradients, amid=True))
        self._restore()

    def _again(self) -> None:
        self._tries += 1
        self._shown.drop()
        self._given = self._begun
        self._restore()

    def _restore(self) -> None:
        restore(self._parts, self._from)
        for module, training in self._modes:
            module.training = training
        randomness.seed_everything(randomness.derive(self._key, randomness.STEP))
        self._seen.begin()

    def _seen_all(self) -> None:
        """All batches were given; what was seen is the state's glimpse, or the one of where it came to rest."""
        outputs = list(self._shown.outputs.items())[-HEADS:]
        heads = [head(name, values, self._labelled, self._request.seed) for name, values in outputs]
        if not heads:
            raise TaskError(NO_OUTPUT)
        living, loose, waiting = self._shown.living(), self._shown.loose(), self._shown.waiting()
        self._watch.close()
        if self._rest is None:
            loss = sum(self._losses) / len(self._losses)
            glimpse = Glimpse(heads, loss if math.isfinite(loss) else math.inf, living, loose, waiting)
            self._glimpses.append(glimpse)
            if self._request.coasting is not None and self._coasts(self._request.coasting):
                return
        else:
            self._glimpses[-1] = msgspec.structs.replace(
                self._glimpses[-1], rest=msgspec.structs.replace(self._rest, heads=heads)
            )
        self._tools.pulse(len(self._glimpses), len(self._states))
        if len(self._glimpses) == len(self._states):
            self._answer(protocol.Probed(self._glimpses), ())
        self._state()

    def _coast_only(self) -> NoReturn:
        """Outputs are not asked for."""
        for state in self._states:
            self._from = state
            self._glimpses.append(Glimpse([], 0.0))
            if self._request.coasting is not None:
                self._glimpses[-1] = Glimpse([], 0.0, rest=self._rested(self._request.coasting))
            self._tools.pulse(len(self._glimpses), len(self._states))
        self._answer(protocol.Probed(self._glimpses), ())

    def _coasts(self, coasting: protocol.Coasting) -> bool:
        """Take the state to where its optimizers alone carry it; whether it can be looked at there."""
        self._rest = self._rested(coasting)
        if self._rest.why:
            self._glimpses[-1] = msgspec.structs.replace(self._glimpses[-1], rest=self._rest)
            return False
        self._from = capture(self._parts)
        self._look(False)
        return True

    def _rested(self, coasting: protocol.Coasting) -> Rest:
        """Where the state comes to rest, at the rates that it holds."""
        self._restore()
        try:
            coast(Driven(self._parts), coasting.steps[len(self._glimpses) - 1], coasting.until)
        except TaskError as error:
            return Rest(why=str(error))
        return Rest(at_places(self._parts["model"], coasting))
