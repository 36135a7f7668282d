"""Workers that nobody vouches for: some of their steps are taken again on this machine.

A worker is blind, so that one that does not compute cannot arrive where the record does, unless it holds the proof. What does
not arrive there, or tells of other losses, rates or batches on the way, is always taken again here: no outside worker can make an
honest proof look forged. What agrees is taken again in a share that is drawn after the answer: for a worker that holds the proof
and colludes with its maker, only that share counts.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from proof_of_learning.errors import PolError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import protocol
from proof_of_learning.replay.pool import Carried, Pool
from proof_of_learning.replay.process import OnWork, idle
from proof_of_learning.replay.protocol import AnyRequest
from proof_of_learning.run.events import begins
from proof_of_learning.state.state import State

log = logging.getLogger(__name__)

HERE = "this machine"

Step = tuple[int, int, str]  # first and last step of a segment, digest of the state that it starts from


@dataclass(frozen=True)
class Record:
    """All that a proof says of the steps of one segment. ``asked``: a script's, whose loop asks for its next batch somewhere."""

    proof: Proof
    index: int
    asked: bool

    def agrees(self, told: Carried) -> bool:
        """Whether an answer to these steps says the same, to the bit."""
        taken = told.answer
        if not isinstance(taken, protocol.Taken) or len(told.states) != 1:
            return False
        if told.states[0].digest() != self.proof.segments[self.index].arrived:
            return False
        columns = self.proof.columns(self.index)
        if taken.losses != columns.loss.tolist() or taken.rates != columns.rates.tolist():
            return False
        if not self.asked:
            return taken.closed is None and not taken.asked
        last = self.index + 1 == len(self.proof.segments)
        return (taken.closed, taken.asked) == (last, [] if last else begins(self.proof, self.index + 1))


def recorded(proof: Proof) -> dict[Step, Record]:
    """What is on record of each segment, by its steps and its start."""
    starts, asked = proof.state_digests(), proof.header.program.kind == "script"
    return {(s.start, s.stop, starts[s.index]): Record(proof, s.index, asked) for s in proof.segments}


def drawn(share: float) -> bool:
    """Whether an answer that agrees with the record is taken again: a secret draw, made when the answer is there."""
    return secrets.randbelow(1 << 53) < share * (1 << 53)


@dataclass
class DoubtedPool:
    """A pool whose steps are taken ``outside``, and a ``share`` of them again by ``own`` workers; all else is asked of ``own``.

    expected: what is on record of segments. What an own worker says is what counts. ``lies``: the first steps of what an
    outside worker answered otherwise than this machine does, by the worker's name; whoever is in it is not believed again.
    anywhere: the same bits are expected of any environment.
    """

    outside: Pool
    own: Pool
    share: float
    expected: Mapping[Step, Record]
    anywhere: bool = False
    lies: dict[str, list[int]] = field(default_factory=dict)
    _alike: dict[str, bool] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def workers(self) -> int:
        return self.outside.workers

    def begin(self, environment: Environment) -> None:
        self.own.begin(environment)
        self.outside.begin(environment)

    def have(self, environment: Environment, given: bool = False) -> Environment:
        return self.own.have(environment, given)

    def ask(
        self,
        environment: Environment,
        request: AnyRequest,
        states: Sequence[State] = (),
        on_work: OnWork = idle,
        *,
        given: bool = False,
    ) -> Carried:
        step = (request.start, request.stop, states[0].digest()) if isinstance(request, protocol.Take) else None
        # Steps that no segment has (from moved starts, of a part, elsewhere) measure this machine's noise.
        if given or step is None or step not in self.expected or not self._comparable(environment):
            return self._here(environment, request, states, on_work, given)
        try:
            told = self.outside.ask(environment, request, states, on_work)
        except PolError as error:
            log.info("%s; %s takes its steps", error, HERE)
            return self._here(environment, request, states, on_work, given)
        if told.worker not in self.lies and self.expected[step].agrees(told) and not drawn(self.share):
            return told
        here = self._here(environment, request, states, on_work, given)
        if not _same(told, here):
            log.warning("%s answers something else for step %d than %s does", told.worker, step[0], HERE)
            with self._lock:
                self.lies.setdefault(told.worker, []).append(step[0])
        return here

    def doubts(self, workers: Iterable[str]) -> bool:
        """Whether one of these has been found out, so that what they answered before has to be asked again."""
        return not self.lies.keys().isdisjoint(workers)

    def close(self) -> None:
        self.outside.close()
        self.own.close()

    def _comparable(self, environment: Environment) -> bool:
        """Whether outside workers have the environment of those here, so that another bit is a lie."""
        if self.anywhere:
            return True
        name = environment.digest()
        if name not in self._alike:
            self._alike[name] = self.outside.have(environment) == self.own.have(environment)
            if not self._alike[name]:
                log.warning("outside workers have another numeric environment; %s takes all steps", HERE)
        return self._alike[name]

    def _here(
        self, environment: Environment, request: AnyRequest, states: Sequence[State], on_work: OnWork, given: bool
    ) -> Carried:
        answer, arrived, _ = self.own.ask(environment, request, states, on_work, given=given)
        return Carried(answer, arrived, HERE)


def _same(one: Carried, other: Carried) -> bool:
    """Whether two answers to the same steps are the same to the bit, apart from times."""
    a, b = one.answer, other.answer
    if not (isinstance(a, protocol.Taken) and isinstance(b, protocol.Taken)):
        return False
    told = [msgspec.msgpack.encode(msgspec.structs.replace(taken, seconds=0.0)) for taken in (a, b)]
    return told[0] == told[1] and [s.digest() for s in one.states] == [s.digest() for s in other.states]


__all__ = ["HERE", "DoubtedPool", "Record", "recorded"]
