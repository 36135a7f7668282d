"""States read by several processes at once, and told of in their order: what follows from them is the same as where one reads them.

The processes are children of this one, which share its memory as it is when they are made, and run nothing of anybody else's. Where
one cannot go on, whatever the cause, this process reads the rest of what it had to itself; so a fault of the proof is found in the
place, and said in the words, that one process alone finds and says.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import msgspec
import numpy as np
import torch

from proof_of_learning import canonical
from proof_of_learning.proof.codecs.raw import RawCodec, written
from proof_of_learning.proof.format import Displacement
from proof_of_learning.replay import fork
from proof_of_learning.state.layout import Layout
from proof_of_learning.state.recalled import tree_of
from proof_of_learning.state.state import DTYPE_NAMES, DTYPES, State
from proof_of_learning.verifier.readings import Reader, Reading, kept
from proof_of_learning.verifier.sampling import Picked

log = logging.getLogger(__name__)

STRETCH = 32  # states that a process reads in a row, at least
AHEAD = 64 << 20  # bytes that a process may have told beyond what was asked for, and one message
_SIZE = struct.Struct("<Q")


class _Told(msgspec.Struct, array_like=True):
    """A reading as it goes from a child to its parent: of layouts, which have numbers, what they are (``described``) is told once.

    ``weight``: what the state took of the proof's room. ``numbers``: distance, left, inertia, and both of displacement.
    ``tensors``: those that :func:`_few` names; ``whole``: the state as the codec ``raw`` writes it, in their place.
    """

    position: int
    layout: int = -1
    described: list[tuple[str, str, list[int]]] | None = None  # an empty list: a state without tensors
    settings: bytes = b""
    weight: int = 0
    numbers: list[float] = []
    picked: tuple[bytes, bytes] | None = None
    twins: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    tree: bytes = b""
    tensors: bytes = b""
    whole: bytes = b""


def abreast(reader: Reader, before: State | None, processes: int = 1) -> Iterator[Reading]:
    """Readings of every state but the first, which is ``before``, in their order, by so many processes where that pays.

    Raises FormatError or IntegrityError at the first fault.
    """
    rows = stretches(reader)
    processes = min(processes, len(rows), fork.cores())
    if processes < 2 or sys.platform != "linux":
        for position in range(1, len(reader.digests)):
            yield (reading := reader.read(position, before))
            before = reading.state
        return
    children = list[_Child]()
    try:
        for number in range(processes):
            children.append(_Child(functools.partial(_serve, reader, rows[number::processes], before)))
        del before
        for child in children:
            child.begin()
        for number, row in enumerate(rows):
            yield from _received(reader, row, children[number % processes])
    finally:
        for child in children:
            child.end()


def stretches(reader: Reader) -> list[range]:
    """The positions behind the first in rows, each behind a state that stands for itself, or behind a missing one."""
    rows, start, index = list[range](), 1, reader.proof.index
    for position in range(1, len(reader.digests)):
        stored = index.get(reader.digests[position])
        if position + 1 - start >= STRETCH and (stored is None or stored.base is None):
            rows.append(range(start, position + 1))
            start = position + 1
    return [*rows, range(start, len(reader.digests))] if start < len(reader.digests) else rows


def _received(reader: Reader, row: range, child: _Child) -> Iterator[Reading]:
    """The readings of one row, as the child tells them; those that it does not tell are made here."""
    before: State | None = None
    for number, position in enumerate(row):
        reading = child.reading(reader, position)
        if reading is None:
            log.info("a process that reads states stopped before state %d", position)
            if number or before is None:
                before = reader.state(position - 1, surveyed=True)
            for rest in row[number:]:
                yield (reading := reader.read(rest, before))
                before = reading.state
            return
        yield reading


# ---- the child ------------------------------------------------------------------------------------------------------


def _serve(reader: Reader, rows: Sequence[range], first: State | None, stream: BinaryIO) -> None:
    layouts: dict[Layout, int] = {}
    for row in rows:
        before = first if row.start == 1 else reader.state(row.start - 1, surveyed=True)
        for position in row:
            reading = reader.read(position, before)
            told = msgspec.msgpack.encode(_told(reader, reading, layouts))
            stream.write(_SIZE.pack(len(told)) + told)
            before = reading.state
    stream.flush()


def _told(reader: Reader, reading: Reading, layouts: dict[Layout, int]) -> _Told:
    state, layout = reading.state, reading.layout
    if state is None or layout is None or reading.settings is None:
        return _Told(reading.position)
    new = layout not in layouts
    number = layouts.setdefault(layout, len(layouts))
    moved = () if reading.moved is None else (reading.moved.state, reading.moved.weights)
    told = _Told(
        reading.position,
        number,
        [(n, DTYPE_NAMES[layout.places[n].dtype], list(s)) for n, s in layout.shapes.items()] if new else None,
        reading.settings,
        reader.proof.weight(reader.digests[reading.position]),
        [reading.distance, reading.left, reading.inertia, *moved],
        None if reading.picked is None else (reading.picked.narrow.tobytes(), reading.picked.wide.tobytes()),
        reading.twins,
        reading.stuck,
    )
    if reading.position in reader.wanted:
        told.whole = written(state)
    else:
        told.tree = canonical.encode_plain(state.tree)
        told.tensors = b"".join(state.bytes_of(name) for name in _few(layout))
    return told


@functools.lru_cache(8)
def _few(layout: Layout) -> tuple[str, ...]:
    """The tensors that come with every state: those of one element, and settings; the widest first."""
    names = [name for name, shape in layout.shapes.items() if shape.numel() == 1 or kept(name)]
    return tuple(sorted(names, key=lambda name: -layout.places[name].dtype.itemsize))


# ---- the parent -----------------------------------------------------------------------------------------------------


class _Child:
    """A process that runs ``work`` with a stream to tell readings on, and a thread that hears them."""

    def __init__(self, work: functools.partial[None]) -> None:
        heard, told = os.pipe()
        parent = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            _run(work, told, parent)
        os.close(told)
        self._stream = os.fdopen(heard, "rb")
        self._waiting, self._size, self._over = deque[bytes](), 0, False
        self._changed = threading.Condition()
        self._layouts: list[tuple[Layout, tuple[str, ...]]] = []
        self._lost = False
        self._thread = threading.Thread(target=self._hear, name="pol-survey", daemon=True)

    def begin(self) -> None:
        """Hear what it tells; not before all processes are made, for a thread is not in a child."""
        self._thread.start()

    def reading(self, reader: Reader, position: int) -> Reading | None:
        """What it tells of the state at a position; None where it tells no more."""
        if self._lost:
            return None
        try:
            told = self._next()
            reading = None if told is None or told.position != position else self._read(reader, told)
        except Exception as error:  # what nobody foresaw in a state must not part one process from several
            log.info("what a process tells of state %d cannot be read: %r", position, error)
            reading = None
        self._lost = reading is None
        return reading

    def end(self) -> None:
        """End it, whatever it does."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        if self._thread.ident is not None:
            self._thread.join()
        self._stream.close()

    def _read(self, reader: Reader, told: _Told) -> Reading | None:
        """None where the proof has no room for the state."""
        if told.layout < 0:
            return Reading(told.position)
        if told.described is not None:
            names = [name for name, _, _ in told.described]
            layout = Layout.of({n: (DTYPES[d], torch.Size(s)) for n, d, s in told.described}, names)
            self._layouts.append((layout, tuple(sorted(names))))
        layout, names_sorted = self._layouts[told.layout]
        if told.whole:
            state = RawCodec().decode(bytearray(told.whole), None)
        else:
            tree = tree_of(told.tree, names_sorted, "a state's tree")
            state = State(tree, _tensors(layout, bytearray(told.tensors)))
        distance, left, inertia, *moved = told.numbers
        picked = told.picked and Picked(
            np.frombuffer(told.picked[0], np.float32), np.frombuffer(told.picked[1], np.float64)
        )
        if not reader.proof.weighed(reader.digests[told.position], told.weight):
            return None
        return Reading(
            told.position, state, layout, told.settings, distance, left, inertia, Displacement(*moved) if moved else None,
            picked, told.twins, told.stuck,
        )  # fmt: skip

    def _next(self) -> _Told | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            if not self._waiting:
                return None
            raw = self._waiting.popleft()
            self._size -= len(raw)
            self._changed.notify_all()
        return msgspec.msgpack.decode(raw, type=_Told)

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while len(size := self._stream.read(_SIZE.size)) == _SIZE.size:
                raw = self._stream.read(*_SIZE.unpack(size))
                if len(raw) != _SIZE.unpack(size)[0]:
                    break
                with self._changed:
                    self._changed.wait_for(lambda: self._over or self._size < AHEAD)
                    if self._over:
                        return
                    self._waiting.append(raw)
                    self._size += len(raw)
                    self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()


def _run(work: functools.partial[None], told: int, parent: int) -> None:
    """The child's whole life."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when we end
        gc.freeze()  # a collection that looked at what was there before would copy all of it
        if fork.die_with(parent):
            with os.fdopen(told, "wb") as stream:
                work(stream)
            status = 0
    except BaseException as error:  # the parent reads on, and says what is wrong
        log.debug("a process that reads states ends: %r", error)
    finally:
        os._exit(status)


def _tensors(layout: Layout, raw: bytearray) -> dict[str, torch.Tensor]:
    found, start = dict[str, torch.Tensor](), 0
    for name in _few(layout):
        shape, dtype = layout.shapes[name], layout.places[name].dtype
        count = shape.numel()
        found[name] = (
            torch.frombuffer(raw, dtype=dtype, count=count, offset=start).view(shape)
            if count
            else torch.empty(shape, dtype=dtype)
        )
        start += count * dtype.itemsize
    return found
