"""Replay mode: the script waits at its first epoch or batch, and each request is answered by a child in which its loop goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.errors import FormatError, PolError, StrayedError, WorkerError
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.replay import protocol
from proof_of_learning.run import counting, events, ranks
from proof_of_learning.run.clock import Clock, Walk, jumped
from proof_of_learning.run.events import AFTER, BATCH, BEFORE, BESIDE, END, OVER, Event
from proof_of_learning.run.facts import facts
from proof_of_learning.run.loaders import Loaded, Named, Planned
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.run.parts import PLACE
from proof_of_learning.run.watch import Seen, watching
from proof_of_learning.state.state import State, capture, restore
from proof_of_learning.task import task_code

MOST_EMPTY = 100_000  # walks that a loop is sent through before the one that it should begin with
Answer = Callable[[protocol.AnyAnswer, Sequence[State]], NoReturn]


class Job(Protocol):
    """What a child does with the script's loop: it gives batches until it can answer, and ends the process then.

    ``place``: phase, epoch and walk at which it begins; None: wherever the loop does.
    """

    @property
    def place(self) -> tuple[int, int, int] | None: ...
    def clocked(self, walk: Walk) -> Any: ...
    def beside(self, walk: Walk) -> Any: ...
    def closed(self) -> None: ...


class Replaying(Clock):
    """The clock of a script in a replay worker. ``wait``: gives, in a child, what is asked of it; in the parent it never returns."""

    replays = True

    def __init__(self, given: Given, wait: Callable[[Replaying], Job]) -> None:
        super().__init__()
        self.given, self._wait = given, wait
        self.job: Job | None = None
        self.begun = False
        self.seen: Seen | None = None
        self._empty = 0
        self.expected = 1  # epochs of the loop that runs

    def wanted(self, numbers: range) -> Iterable[int]:
        self.expected = len(numbers)
        job = self._asked()
        if self.begun or job.place is None:
            return numbers
        return jumped(numbers, self.phase, job.place)

    def clocked(self, walk: Walk) -> Any:
        job = self._asked()
        if not self.begun and job.place not in (None, (self.phase, self.epoch, walk.number)):
            self._empty += 1
            if self._empty > MOST_EMPTY:
                raise WorkerError("the script's loop does not come to where the recorded step begins")
            raise StopIteration
        return job.clocked(walk)

    def beside(self, walk: Walk) -> Any:
        return self._asked().beside(walk)

    def begins(self) -> tuple[int, int] | None:
        job = self._asked()
        return (job.place[1], job.position) if isinstance(job, Taking) else None

    def told(self, value: Any) -> None:
        if self.seen is not None:
            self.seen.tell(value)

    def log(self, values: dict[str, Any]) -> None:
        """Not asked for."""

    def close(self) -> None:
        self._asked().closed()

    def _asked(self) -> Job:
        if self.job is None:
            ACTIVE.set_up()
            self.job = self._wait(self)
        return self.job


class Tools(Protocol):
    """What a job needs of the worker around it. ``second``: the first state with every seed mapped through a key.

    ``resumes``: whether a job may leave what it has, and go on in another process whose loop is where this one's was at first.
    """

    @property
    def resumes(self) -> bool: ...
    def leave(self, message: protocol.Probed, states: Sequence[State]) -> NoReturn: ...
    def pulse(self, done: int, total: int) -> None: ...
    def second(self, key: str) -> State: ...


class Taking:
    """Takes the recorded steps of a segment."""

    def __init__(self, clock: Replaying, request: protocol.Take, start: State, answer: Answer, tools: Tools) -> None:
        derived = ACTIVE.seeds is not None
        if request.loop is None or {request.indices is None, request.generators is None} != {derived}:
            raise FormatError("the proof does not hold what a script's steps need")
        self._clock, self._request, self._start, self._answer, self._tools = clock, request, start, answer, tools
        self._steps = [events.decode(np.frombuffer(raw, dtype="<i8")) for raw in request.loop]
        if any(next((e.code for e in step if e.code != BEFORE), None) != BATCH for step in self._steps):
            raise FormatError("a recorded step does not begin with a batch")
        if derived and any(event.code not in (BATCH, END) for step in self._steps for event in step):
            raise FormatError("a step whose batches follow from a key records what does not")
        self._first = next(event for event in self._steps[0] if event.code == BATCH)
        self.place, self.position = self._first.place, self._first.position
        self._at, self._next = 0, 0  # the step under way, counted from the segment's start, and its next event
        self._taken = 0  # of its indices
        self._plans: dict[tuple[int, int, int], list[Planned] | None] = {}  # of the walk under way
        self._losses: list[torch.Tensor] = []
        self._rates: list[list[float]] = []
        self._parts: dict[str, Any] = {}
        self._watch: Any = None
        self._ranks = 1
        self._flowing = False  # generators are a part of the state, and set nowhere else

    # ---- requests ------------------------------------------------------------------------------------

    def clocked(self, walk: Walk) -> Any:
        if not self._clock.begun:
            if isinstance(walk.source, Named) and walk.position < self._first.position:
                # Nobody can move the script's own loop on, so it takes the steps up to there, before the state is restored.
                if ACTIVE.seeds is not None:
                    ACTIVE.seeds.step(self._clock.place(walk), walk.position)
                walk.position += 1
                self._tools.pulse(0, len(self._steps))
                return walk.source.named
            self._begin(walk)
        assert self._clock.seen is not None
        if self._peek() is None:
            if not self._clock.seen.updated:
                raise self._strayed()  # the script, not the proof, says where a step ends
            self._end_step()
            if self._at == len(self._steps):
                self._finish([self._clock.phase, self._clock.epoch, walk.number, walk.position])
            self._begin_step()
        self._before()
        event = self._peek()
        here = self._clock.place(walk)
        if event is not None and event.code == END:
            if walk.position != len(walk.source):
                raise self._strayed()  # a walk that is said to end early would make training shorter
            self._next += 1
            raise StopIteration
        if event is None or event.code != BATCH or event.place != here or event.position != walk.position:
            raise self._strayed()
        if self._clock.seen.updated and self._taken_batches():
            raise self._strayed()  # after its update a step takes no batch
        return self._hand(walk, event)

    def beside(self, walk: Walk) -> Any:
        self._before()
        event = self._peek()
        if event is None or event.code not in (BESIDE, OVER):
            raise self._strayed()
        # A walk that began before the segment stands where its first event here says.
        if event.code == BESIDE and walk.position not in (0, event.position):
            raise self._strayed()
        self._next += 1
        if event.code == OVER:
            if walk.position != len(walk.source) and (walk.position or not self._first.position):
                raise self._strayed()
            raise StopIteration
        batch = walk.source.again(event.indices, event.position)
        walk.position = event.position + 1
        self._after()
        return batch

    def closed(self) -> None:
        if not self._clock.begun or self._peek() is not None or self._at + 1 < len(self._steps):
            raise self._strayed()
        self._end_step()
        self._finish(None)

    # ---- steps ---------------------------------------------------------------------------------------

    def _begin(self, walk: Walk) -> None:
        found = facts(self._clock.given, walk.source)
        self._parts, self._flowing, self._ranks = found.parts, found.counted, found.ranks
        restore(self._parts, self._start)
        if self._parts[PLACE].step != self._request.start:
            raise FormatError(
                f"the state before step {self._request.start} says it stands at step {self._parts[PLACE].step}"
            )
        if walk.position < self._first.position:
            if not (isinstance(walk.source, Named) or self._first.position < len(walk.source)):
                raise FormatError(
                    f"a recorded step takes batch {self._first.position} of a walk; the script's loader gives {len(walk.source)}"
                )
            counting.advance(walk, self._first.position)
            walk.position = self._first.position
        self._clock.begun = True
        self._clock.seen = Seen(self._parts)
        self._watch = watching(lambda: self._clock.seen)
        self._watch.__enter__()
        self._begin_step()

    def _begin_step(self) -> None:
        assert self._clock.seen is not None
        self._clock.seen.begin()
        self._next = self._taken = 0

    def _end_step(self) -> None:
        seen = self._clock.seen
        assert seen is not None
        self._losses.append(seen.loss)
        self._rates.append(seen.rates)
        self._at += 1
        self._parts[PLACE].step = self._request.start + self._at
        self._tools.pulse(self._at, len(self._steps))

    def _finish(self, asked: list[int] | None) -> None:
        """``asked``: where the next batch was asked for; None at ``close()``."""
        with task_code("capturing the state"):
            state, alike = capture(self._parts, live=True), ""
            if self._ranks > 1:
                state, common = ranks.told(self._parts, state)
                alike = canonical.sha256(canonical.encode_plain(common))
        losses = torch.stack(self._losses).cpu().tolist()
        self._answer(protocol.Taken(losses, self._rates, 0.0, asked is None, asked or [], alike), (state,))

    def _hand(self, walk: Walk, event: Event) -> Any:
        """The recorded batch, with the generators as they were when it was handed over."""
        first = not self._taken_batches()
        if isinstance(walk.source, Loaded) and not walk.source.gives(event.samples, event.position):
            raise self._strayed()
        self._next += 1
        chosen = self._recorded(event) if ACTIVE.seeds is None else self._planned(walk, event)
        with task_code(f"making the batch of step {self._request.start + self._at}"):
            batch = walk.source.again(chosen, event.position)
        walk.position += 1
        if ACTIVE.seeds is not None:
            ACTIVE.seeds.step(event.place, event.position)
        elif not first:
            self._after()
        elif not self._flowing:
            protocol.snapshot(self._request.generators[self._at]).restore()  # type: ignore[index]
        return batch

    def _recorded(self, event: Event) -> list[int]:
        row = np.frombuffer(self._request.indices[self._at], dtype="<i8")  # type: ignore[index]
        chosen: list[int] = row[self._taken : self._taken + event.samples].tolist()
        if len(chosen) != event.samples:
            raise FormatError("a recorded step has fewer samples than its batches")
        self._taken += event.samples
        return chosen

    def _planned(self, walk: Walk, event: Event) -> list[int]:
        """The samples that follow from the key, with the generators as they are where these are fetched."""
        assert ACTIVE.seeds is not None
        if event.place not in self._plans:
            self._plans = {event.place: self._clock.plan(walk)}
        plan = self._plans[event.place]
        if plan is None:
            chosen = walk.source.named if isinstance(walk.source, Named) else []
        elif event.position < len(plan):
            chosen = list(plan[event.position])
            ACTIVE.seeds.fetch(plan[event.position].seed)
        else:
            raise self._strayed()
        if len(chosen) != event.samples:
            raise self._strayed()
        return chosen

    def _taken_batches(self) -> bool:
        """Whether the step under way has taken one."""
        return any(event.code == BATCH for event in self._steps[self._at][: self._next])

    def _before(self) -> None:
        self._generators(BEFORE)

    def _after(self) -> None:
        self._generators(AFTER)

    def _generators(self, code: int) -> None:
        """Put generators into the states that the next events name."""
        states = {}
        while (event := self._peek()) is not None and event.code == code:
            states[event.generator] = np.frombuffer(event.state, dtype=np.uint8)
            self._next += 1
        if states:
            RngSnapshot(states).restore()

    def _peek(self) -> Event | None:
        step = self._steps[self._at] if self._at < len(self._steps) else []
        return step[self._next] if self._next < len(step) else None

    def _strayed(self) -> PolError:
        step = self._request.start + self._at
        return StrayedError(
            f"in step {step} the script's loop takes another way than was recorded: what it decides by is no recorded state "
            "(a local variable, say); hand it to pol.Run as a part"
        )
