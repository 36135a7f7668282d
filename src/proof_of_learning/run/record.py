"""Record mode: the loop trains as ever, and what a replay needs of each step is written down."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from proof_of_learning.data.commit import check_deterministic, commit
from proof_of_learning.errors import DataError, PolError, RecordingError, UsageError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof import codecs, format, parse
from proof_of_learning.proof.format import CodecClaim, Header, Initialization, Randomness, TaskClaim, Training
from proof_of_learning.recording.header import kinds_of, script_program
from proof_of_learning.recording.recorder import Recorder
from proof_of_learning.recording.stamping import Stamped, Stamping
from proof_of_learning.rehearsal import beside
from proof_of_learning.replay.pool import Job
from proof_of_learning.run import counting, events, inputs, ranks, script
from proof_of_learning.run.clock import Clock, Walk, jumped
from proof_of_learning.run.events import AFTER, BATCH, BEFORE, BESIDE, END, OVER, Event
from proof_of_learning.run.facts import Facts, device_of, facts, script_path
from proof_of_learning.run.gathering import Board, Following, Gathering, OtherGaveUpError
from proof_of_learning.run.loaders import Drawn, Named, Planned, generators, moved
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.run.orders import SAME, Orders
from proof_of_learning.run.origin import Origin
from proof_of_learning.run.parts import PLACE
from proof_of_learning.run.rehearsing import RanksRehearsal, ScriptRehearsal
from proof_of_learning.run.resuming import Stood, find, interrupted, note
from proof_of_learning.run.watch import Seen, watching
from proof_of_learning.task import TaskReference, default_interval

SECOND = "a script can record one pol.Run; the second one is not recorded"
UNKNOWN_LENGTH = 10  # the interval where nobody knows how many steps there will be
GOES_ON = "Training goes on without a proof: nothing is recorded from here on (pol.Run(strict=True, …) ends it instead)"


def say(message: str) -> None:
    """One line for whoever trains."""
    sys.stderr.write(f"pol: {' '.join(message.split())}\n")  # at once: several processes may write there
    sys.stderr.flush()


class Recording(Clock):
    """The clock of a script that is recorded into ``path``.

    ``failed``: why recording ended before the training did. ``root``: of the sealed proof.
    """

    def __init__(
        self,
        given: Given,
        path: str | os.PathLike[str],
        arguments: list[str],
        interval: int | None,
        rehearse: bool | None = None,
        folder: str | None = None,
        origin: Origin | None = None,
        stamping: Stamping | None = None,
        *,
        asked: bool = False,
    ) -> None:
        """``folder``: where the script was started, if not here. ``rehearse``: see :func:`proof_of_learning.prove`. ``origin``: what
        the randomness follows from; None where it is recorded. ``stamping``: how the log's head is stamped meanwhile. ``asked``:
        whether the script runs for the proof's sake, by a command.
        """
        super().__init__()
        self._asked_for = asked
        self._origin, self._stamping = origin, stamping
        self._asked: set[int] = set()  # loaders whose order was looked at
        self._given, self._path, self._arguments = given, Path(path), arguments
        self._interval = interval if interval is not None else given.interval
        self._rehearse, self._folder = beside.wanted(rehearse), folder or os.getcwd()
        self._recorder: Recorder | Following | None = None
        self._board: Board | None = None  # where several processes meet
        self._seen: Seen | None = None
        self._events: list[Event] | None = None  # of the step under way
        self._indices: list[int] = []
        self._orders = Orders()
        self._rng: RngSnapshot | None = None
        self._flowing = self._told = False
        self._length = 1  # epochs that are planned
        self.failed, self.root = "", ""
        self.steps = 0
        self._exit = ExitStack()
        self._resumes, self._taken_up = False, 0
        if not ranks.place().rank:  # who writes
            self._guard(lambda: refuse_used(self._path, origin is not None))
            if stamping is not None:
                self._guard(stamping.authorities)
        # Of an interrupted recording: where the loop is to go on, until it does; and whether the first step there has not begun yet.
        self._stood: Stood | None = None
        self._resumes = origin is not None and interrupted(self._path)
        if origin is not None and self._resumes:
            with ACTIVE.reads.aside() if ACTIVE.reads is not None else nullcontext():
                self._stood = find(self._path, origin.key())

    # ---- the clock -----------------------------------------------------------------------------------

    def wanted(self, numbers: range) -> range:
        self._length = max(self._length, len(numbers)) if self._recorder is None else self._length
        return numbers if self._stood is None else jumped(numbers, self.phase, self._stood.place)

    def walk_through(self, source: Any) -> Walk:
        walk = super().walk_through(source)
        if self.root:
            self._guard(self._refuse_more)
        if self._origin is None:  # else its place decides
            walk.iterator = source.open()
        return walk

    def _jump(self, walk: Walk, stood: Stood) -> None:
        """Take the loop up where it stood; walks before are empty."""
        if self.adapted or isinstance(walk.source, Named):
            raise RecordingError(
                f"an interrupted recording of {'a framework' if self.adapted else 'run.begin'} cannot be gone on with; remove "
                f"{self._path}, or name another directory"
            )
        if stood.place != self.place(walk):
            raise StopIteration
        self._stood = None
        counting.advance(walk, stood.position)
        walk.position = stood.position
        self._taken_up = stood.steps

    def _open(self, walk: Walk) -> None:
        """Begin a walk whose order follows from its place."""
        plans: list[list[Planned] | None] = []

        def planned() -> None:
            plans.append(self.plan(walk))
            if plans[0] is not None and id(walk.source.loader) not in self._asked:
                self._asked.add(id(walk.source.loader))
                if self.plan(walk) != plans[0]:
                    what = walk.source.sampler  # type: ignore[attr-defined]
                    raise UsageError(
                        f"the order of the loader's {what} does not follow from the key: asked twice, it gives two orders; have it "
                        "draw from PyTorch's, NumPy's or Python's generators alone, or record without --seed and --registration"
                    )

        self._guard(planned)
        if plans and plans[0] is not None:
            walk.iterator = walk.source.open(plans[0][walk.position :])
        else:
            walk.iterator = islice(walk.source.open(), walk.position, None)

    def clocked(self, walk: Walk) -> Any:
        if self.failed:
            self._give_up(self.failed)
        if self._stood is not None:
            self._jump(walk, self._stood)
        if walk.iterator is None:
            self._open(walk)
        assert walk.iterator is not None
        # A request that begins a step is followed by a snapshot anyway.
        if self.root:
            self._guard(self._refuse_more)
        amid = self._events is not None and self._seen is not None and not self._seen.updated
        before = generators() if amid and self._origin is None else None
        try:
            handed = next(walk.iterator)
        except StopIteration:
            self._note(Event(END))
            raise
        self._guard(lambda: self._received(walk, handed, before))
        if ACTIVE.seeds is not None:
            ACTIVE.seeds.step(self.place(walk), walk.position)
        walk.position += 1
        return handed.batch

    def beside(self, walk: Walk) -> Any:
        if self._origin is not None:
            self._guard(self._refuse_beside)
        if walk.iterator is None:
            walk.iterator = walk.source.open()
        before = generators()
        try:
            handed = next(walk.iterator)
        except StopIteration:
            self._note(Event(OVER))
            raise
        self._drawn(BEFORE, handed.drawn)
        self._note(Event(BESIDE, indices=tuple(handed.indices), position=walk.position))
        self._after(before)
        walk.position += 1
        return handed.batch

    def _received(self, walk: Walk, handed: Any, before: Any) -> None:
        if self._seen is not None and self._events is not None and self._seen.updated:
            if self._origin is not None and (self.steps + 1) % self.interval == 0:
                note(self._path, Stood(self.steps + 1, self.place(walk), walk.position))
            self._finish()
        if self._recorder is None:
            self._begin(walk)
        assert self._seen is not None
        first = self._events is None
        if first:
            self._events, self._indices = [], []
            # Where generators are a part of the state, what they are at its start is enough.
            if self._origin is None and (not self._flowing or self.steps % self.interval == 0):
                self._rng = RngSnapshot.take()
            self._seen.begin()
        self._drawn(BEFORE, handed.drawn)
        self._note(Event(BATCH, self.place(walk), walk.position, len(handed.indices)))
        self._indices += handed.indices
        if self._orders.add(walk.position, handed.indices) and not ranks.place().rank:
            self._notice(SAME)
        if not first:
            self._after(before)

    def _notice(self, told: str) -> None:
        say(told)

    def told(self, value: Any) -> None:
        if self._seen is not None:
            self._seen.tell(value)

    def log(self, values: dict[str, Any]) -> None:
        """Said once: no column of the proof is one that a replay does not give, and what is logged is often a sum over steps."""
        if not (self._told or self.failed):
            self._told = True
            say(
                f"run.log({', '.join(values)}) records nothing: of each step a proof holds what a replay gives again, loss and "
                "learning rates, and no numbers of yours; give the loss to run.loss(value), and keep the rest in a file"
            )

    def close(self) -> None:
        self.active = None
        if self.failed or self.root:
            return
        if self._stood is not None:
            raise RecordingError(
                f"the script's loop does not come to where the recording in {self._path} was interrupted; remove it, or name another "
                "directory"
            )
        self._guard(self._seal, trained=True)
        self._exit.close()

    def abandon(self) -> None:
        """The script has ended, however: nothing is left running. What was sealed stays sealed."""
        if not (self.root or self.failed):
            self._give_up(unfinished(self))
        self._exit.close()

    @property
    def stamped(self) -> Stamped | None:
        """What came of stamping the log's head, once the proof is sealed."""
        return self._recorder.stamped if isinstance(self._recorder, Recorder) else None

    @property
    def interval(self) -> int:
        return 0 if self._recorder is None else self._recorder.header.training.interval

    # ---- the recording -------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], object], *, trained: bool = False) -> None:
        """What cannot be recorded ends the recording; and the training, unless the script trains for its own sake or says that it is
        not strict. ``trained``: the loop is over, so what stands behind it (saving the model) runs all the same."""
        if self.failed:
            return
        try:
            work()
        except PolError as error:
            self.failed = str(error)
            self._seen = self._events = None
            if self._recorder is not None:
                self._recorder.__exit__(type(error), error, None)
            self._exit.close()
            said = isinstance(error, OtherGaveUpError) or self._give_up(self.failed)
            if self._given.strict or self._resumes:
                raise
            if self._given.strict is None and self._asked_for and not trained:
                if not said:
                    whose = self._whose()
                    say(
                        f"{f'{whose}{error}. ' if whose else ''}Training stops after {self.steps:,} steps: the proof that was asked "
                        "for cannot be finished (pol.Run(strict=False, …) lets it go on without one)"
                    )
                    if self._origin is None and self._path.exists():
                        say(f"without a key a script's recording is not taken up again: remove {self._path} first")
                raise
            if not said:
                say(
                    f"{self._whose()}{error}. "
                    + ("Nothing was sealed; the script goes on behind its loop" if trained else GOES_ON)
                )

    def _give_up(self, why: str) -> bool:
        """Tell the other processes, once there is a group of them; whether one of them had given up before, and said why."""
        with suppress(PolError):
            if self._board is None and ranks.grouped() and ranks.place().size > 1:
                self._board = Board(ranks.place())
            if self._board is not None and not self._board.told:
                before = bool(self._board.failed())
                self._board.give_up(why)
                return before
        return False

    def _whose(self) -> str:
        """Which of several processes speaks."""
        here = ranks.place()
        return f"process {here.rank}: " if here.size > 1 else ""

    def _refuse_more(self) -> None:
        raise RecordingError(
            f"the script asks for more batches after run.close(), so the proof is of its first {self.steps:,} steps alone; call "
            "run.close() behind the loop"
        )

    def _refuse_beside(self) -> None:
        raise UsageError(
            "the script takes batches from a second loader beside the first, whose order follows from no key; leave run.batches(…) "
            "out where nothing is trained, or record without --seed and --registration"
        )

    def _begin(self, walk: Walk) -> None:
        """The first batch is there: write what is claimed before the first step, and the first state."""
        header, found, environment = self.described(walk)
        if self._origin is not None:
            header = self._origin.begin(header, environment, self._resumes)
        self._seen, self._flowing = Seen(found.parts), found.counted
        self._recorder = self._recording(header, found, environment)
        self._exit.enter_context(self._recorder)
        if self._taken_up:  # said once the recording was found to be of this very run
            say(f"the interrupted recording goes on after step {self._taken_up:,}")
        self.steps, self._resumes = self._recorder.steps_done, False
        if self._origin is not None:
            self._origin.attach(self._path)
        self._exit.enter_context(watching(lambda: self._seen))

    def _recording(self, header: Header, found: Facts, environment: Environment) -> Recorder | Following:
        """Who takes down the steps: of several processes one writes, and the others tell it theirs."""
        peers = None
        if found.ranks > 1:
            if self.adapted:
                raise UsageError(
                    "a framework trains in several processes, and one can be recorded; write the loop yourself"
                )
            self._board = Board(ranks.place())
            if self._board.here.rank:
                return Following(self._board, header, found.parts, environment)
            peers = Gathering(self._board, header, found.parts, environment)
        rehearsal = self._rehearsal(header, found, environment)
        beside = device_of(found.parts) != "cpu" and peers is None
        return Recorder(
            self._path, header, found.parts, environment, asynchronous=beside, rehearsal=rehearsal, peers=peers,
            stamping=self._stamping,
        )  # fmt: skip

    def described(self, walk: Walk) -> tuple[Header, Facts, Environment]:
        """What is claimed when the first batch is asked for, with what it is of."""
        found = facts(self._given, walk.source)
        return self._header(found), found, environments.current(device_of(found.parts))

    def _rehearsal(self, header: Header, found: Facts, environment: Environment) -> ScriptRehearsal | None:
        if not self._rehearse or script_path() is None:
            return None
        kind = ScriptRehearsal if found.ranks == 1 else RanksRehearsal
        return kind(self._job(header), environment, header, found.parts, self._folder)

    def _job(self, header: Header) -> Job:
        """What a process that replays this run is told."""
        reference = TaskReference(os.path.join(self._folder, script_path() or ""), arguments=tuple(self._arguments))
        return Job(reference, header.randomness.key, 0, derived=self._origin is not None, ranks=header.ranks)

    def _header(self, found: Facts) -> Header:
        with randomness.preserved():
            try:
                check_deterministic(found.data)
            except DataError as error:
                said = str(error).partition(";")[0]
                raise DataError(f"{said}; hand the data without random changes over: pol.Run(data=plain, …)") from error
            data = commit(found.data)
        expected = self._length * found.walk
        description = found.describe()
        codec = codecs.get_codec(codecs.DEFAULT)
        mode: Literal["recorded", "derived"] = "recorded" if self._origin is None else "derived"
        seed = 0 if self._origin is None else self._origin.seed
        header = Header(
            format=format.FORMAT,
            task=TaskClaim(
                description.digest(),
                script.name_of(script_path() or "script"),
                description.content,
                description.sources,
            ),
            data=data,
            training=Training(
                None,
                self._interval or (default_interval(expected) if expected else UNKNOWN_LENGTH),
                max(1, found.walk),
            ),
            randomness=Randomness(mode, randomness.key_from_seed(seed).hex(), seed=str(seed)),
            initialization=Initialization(mode),
            codec=CodecClaim(codec.name, codec.version, in_loop=False),
            program=script_program(script_path() or "script", self._arguments),
            inputs=inputs.of_script(self._given),
            parts=ranks.parts_of_all(found.parts) if found.ranks > 1 else kinds_of(found.parts),
            ranks=found.ranks,
        )
        parse.check(header)
        return header

    def _finish(self) -> None:
        """The step under way is over."""
        assert self._recorder is not None and self._seen is not None and self._events is not None
        self.steps += 1
        self._recorder.parts[PLACE].step = self.steps
        self._recorder.step(
            self._seen.loss, self._seen.rates,
            indices=np.array(self._indices, dtype=np.int64) if self._origin is None else None, rng=self._rng,
            loop=events.encode(self._events),
        )  # fmt: skip
        self._events = None

    def _seal(self) -> None:
        if self._recorder is None:
            raise UsageError("the script called close() before its first step, so there is nothing to seal")
        if self._events is not None:
            self._finish()
        self.root = self._recorder.close()
        if self._board is not None and not self._board.here.rank:
            self._board.sealed(self.root)
        if self._origin is not None:
            self._origin.finish(self._recorder.header, self.root)

    def _note(self, event: Event) -> None:
        if self._events is not None:
            self._events.append(event)

    def _drawn(self, code: int, drawn: Drawn | None) -> None:
        for name, state in sorted((drawn or {}).items()):
            self._note(Event(code, generator=name, state=state))

    def _after(self, before: Any) -> None:
        """Where the generators were moved by a request amid a step: where they stand behind it."""
        if self._events is not None and before is not None and (drawn := moved(before)) is not None:
            states = RngSnapshot.take().states
            self._drawn(AFTER, {name: states[name].tobytes() for name in drawn})


def alone(given: Given) -> Recording:
    """``Run(out=…)`` in a script that no command of ours runs."""
    if ACTIVE.begun:
        say(SECOND)
    ACTIVE.begun += 1
    recording = Recording(given, given.out, sys.argv[1:], None, stamping=given.stamping)

    def ended() -> None:
        for line in recording.stamped.lines() if recording.stamped is not None else ():
            say(line)
        if not (recording.failed or recording.root) and not ranks.place().rank:
            say(unfinished(recording))
        recording.abandon()

    atexit.register(ended)
    return recording


def refuse_used(path: Path, resumes: bool) -> None:
    """Raises RecordingError where a recording would meet another. ``resumes``: it may go on with an interrupted one."""
    if (path / format.SEAL_FILE).exists():
        raise RecordingError(f"{path} holds a finished proof already; name another directory, or remove it")
    if interrupted(path) and not resumes:
        raise RecordingError(
            f"{path} holds an unfinished recording already, which goes on only under a key (--seed, --registration); name another "
            "directory, or remove it"
        )


def unfinished(recording: Recording) -> str:
    return f"the script ended after {recording.steps:,} steps without run.close(), so nothing was sealed; call it behind the loop"
