"""``Run``, the object that a training script asks for its epochs and batches, and the clock behind it.

A step is one optimizer update: it begins with the batch that it receives first, and ends when the next one is received or at
``close()``. Off, which it is unless a command or ``out=`` turns it on, ``Run`` hands out the script's own objects.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from proof_of_learning.errors import FormatError
from proof_of_learning.run.mode import ACTIVE, Given

if TYPE_CHECKING:
    from proof_of_learning.recording.stamping import Stamping
    from proof_of_learning.run.loaders import Planned, Source

NO_EPOCH = -1  # where the loop is outside of `run.epochs`


class Run:
    """Watches a training loop: records its proof, or replays it.

    data: the data set that is committed to (default: that of the first loader); with ``steps``, the tensor or array drawn from.
    interval: steps between checkpoints (default: about a thousand checkpoints; 10 where the length is not known).
    out: directory for the proof; records without ``pol prove``.
    strict: whether what cannot be recorded (a full disk, say) ends the training, rather than the recording (default: it does under
        ``pol prove``, until the loop is over, and does not where the script records by itself).
    pretrained: file with the weights that the run starts from.
    stamping: ``pol.Stamping(every=50, tsa="https://…")``: have the log's head stamped while recording (default: as the command says).
    parts: whatever holds state, by any name: modules, optimizers, schedulers, scalers, averages, objects with ``state_dict()``.
    """

    def __init__(
        self,
        *,
        data: Any = None,
        interval: int | None = None,
        out: Any = None,
        strict: bool | None = None,
        pretrained: Any = None,
        stamping: Stamping | None = None,
        **parts: Any,
    ) -> None:
        self._turn_on(Given(data, interval, out, strict, pretrained, stamping, parts))

    def _turn_on(self, given: Given) -> None:
        """Where a command executes the script, or a directory is given."""
        self._clock: Clock | None = None
        self._named: Walk | None = None  # of batches that the script names itself
        if ACTIVE.start is not None:
            self._clock = ACTIVE.start(given)
        elif given.out is not None:
            # By name: who only replays needs no recorder.
            self._clock = importlib.import_module("proof_of_learning.run.record").alone(given)

    def epochs(self, first: int, last: int | None = None) -> Iterable[int]:
        """Like ``range``: the numbers of the epochs."""
        numbers = range(first) if last is None else range(first, last)
        return numbers if self._clock is None else self._clock.epochs(numbers)

    def batches(self, loader: Any) -> Any:
        """The loader, watched: iterate over it as over the loader itself."""
        if self._clock is None:
            return loader
        from proof_of_learning.run.loaders import Loaded

        return Batches(self._clock, Loaded(loader))

    def steps(self, first: int, last: int | None = None) -> Iterable[int]:
        """Like ``range``: the numbers of steps that draw their own samples."""
        numbers = range(first) if last is None else range(first, last)
        if self._clock is None:
            return numbers
        from proof_of_learning.run.loaders import Counted

        return Batches(self._clock, Counted(numbers))

    def begin(self, indices: Sequence[int]) -> list[int]:
        """A batch that no loader gives: of these samples of ``data``. Returns those to take, in a replay the recorded ones."""
        if self._clock is None:
            return [int(index) for index in indices]
        from proof_of_learning.run.loaders import Named

        if self._named is None or self._named.done or self._clock.active != id(self._named):
            self._named = self._clock.walk_through(Named())
        self._named.source.name(indices)  # type: ignore[attr-defined]
        return list(next(self._named))

    def end(self) -> None:
        """The walk of batches begun by :meth:`begin` is over, as a loader's is at the end of an epoch; the last step stays open."""
        if self._clock is not None and self._named is not None:
            self._clock.end(self._named)

    def loss(self, value: Any) -> None:
        """The step's loss, in place of the sum of what ``backward`` was called on."""
        if self._clock is not None:
            self._clock.told(value)

    def log(self, **values: Any) -> None:
        """Numbers that belong to this step. Not recorded, which is said once: a proof holds what a replay gives again."""
        if self._clock is not None:
            self._clock.log(values)

    def close(self) -> None:
        """Training is over: the last step ends, and the proof is sealed."""
        if self._clock is not None:
            self._clock.close()


class Batches:
    """An iterable in the place of a loader; each iteration over it is a walk."""

    def __init__(self, clock: Clock, source: Source) -> None:
        self._clock, self._source = clock, source

    def __iter__(self) -> Walk:
        return self._clock.walk_through(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source.loader, name)


class Walk:
    """One iteration over a source. ``number``: which it is within its epoch, where it is the clock; ``position``: batches given."""

    def __init__(self, clock: Clock, source: Source) -> None:
        self.source, self.number, self.position, self.done = source, NO_EPOCH, 0, False
        self.iterator: Iterator[Any] | None = None
        self._clock = clock

    def __iter__(self) -> Walk:
        return self

    def __len__(self) -> int:
        return len(self.source)

    def __next__(self) -> Any:
        return self._clock.request(self)

    def __del__(self) -> None:
        self._clock.end(self)


class Clock:
    """Where the loop stands: which ``run.epochs`` (``phase``), which epoch, and which walk is the clock of its steps.

    The first walk that is asked is the clock until it is exhausted or dropped; others only add their batches to its steps.
    """

    replays = False
    adapted = False  # whether a framework's loop asks

    def __init__(self) -> None:
        self.phase, self.epoch, self.walks = 0, NO_EPOCH, 0
        self.active: int | None = None  # the walk's id: to hold the walk itself would keep it from being dropped

    def epochs(self, numbers: range) -> Iterator[int]:
        ACTIVE.set_up()
        self.phase += 1
        for number in self.wanted(numbers):
            self._enter(number)
            yield number
        self._enter(NO_EPOCH)

    def _enter(self, epoch: int) -> None:
        self.active, self.epoch, self.walks = None, epoch, 0
        if ACTIVE.seeds is not None:
            ACTIVE.seeds.epoch(self.phase, epoch)

    def walk_through(self, source: Source) -> Walk:
        ACTIVE.set_up()
        return Walk(self, source)

    def place(self, walk: Walk) -> tuple[int, int, int]:
        """Phase, epoch and walk."""
        return self.phase, self.epoch, walk.number

    def plan(self, walk: Walk) -> list[Planned] | None:
        """The batches of a walk, as they follow from the run's key; None where the loop makes its own."""
        seeds, place = ACTIVE.seeds, self.place(walk)
        assert seeds is not None
        seeds.order(place)
        order = walk.source.order()
        if order is None:
            return None
        return [made.at(seeds.fetching(place, position)) for position, made in enumerate(order)]

    def request(self, walk: Walk) -> Any:
        """The next batch of a walk; StopIteration at its end."""
        if walk.done:
            raise StopIteration
        if self.active is None:
            self.active, walk.number = id(walk), self.walks
            self.walks += 1
        try:
            return self.clocked(walk) if self.active == id(walk) else self.beside(walk)
        except StopIteration:
            self.end(walk)
            raise

    def end(self, walk: Walk) -> None:
        """The walk is exhausted, or nobody holds it any more."""
        walk.done = True
        if self.active == id(walk):
            self.active = None
            if ACTIVE.seeds is not None:
                ACTIVE.seeds.behind(self.place(walk))

    def begins(self) -> tuple[int, int] | None:
        """Epoch and place in its walk where a replay goes on from a recorded state; None where the loop begins as it does."""
        return None

    # ---- what the modes do ---------------------------------------------------------------------------

    def wanted(self, numbers: range) -> Iterable[int]:
        """The epochs that are walked through."""
        return numbers

    def clocked(self, walk: Walk) -> Any:
        raise NotImplementedError

    def beside(self, walk: Walk) -> Any:
        raise NotImplementedError

    def told(self, value: Any) -> None:
        raise NotImplementedError

    def log(self, values: dict[str, Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def jumped(numbers: range, phase: int, place: tuple[int, int, int]) -> range:
    """The epochs of a phase that are walked through where a loop is taken up at a place. FormatError where it is in none of them."""
    wanted, epoch, _ = place
    if wanted != phase or epoch == NO_EPOCH:
        return range(0)
    if epoch not in numbers:
        raise FormatError(f"the recorded epoch {epoch} is none of the script's ({numbers.start} to {numbers.stop - 1})")
    return numbers[numbers.index(epoch) :]
