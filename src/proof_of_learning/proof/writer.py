"""Writing a proof: objects first, then the index, the block, and the log line that makes a segment count.

Whatever kills the process, the files are a valid beginning of the same run: :meth:`ProofWriter.resume` cuts them back to
the last segment whose state is intact and goes on from there to the root of an undisturbed run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from proof_of_learning import canonical, limits
from proof_of_learning.errors import FormatError, IntegrityError, RecordingError, UnreadableError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof import files, format, parse
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs import KEYFRAMES, for_whole, get_codec
from proof_of_learning.proof.codecs.base import Codec, Encoded
from proof_of_learning.proof.codecs.room import Balance
from proof_of_learning.proof.format import (
    Displacement,
    EnvironmentLine,
    Event,
    Group,
    Header,
    Reload,
    Segment,
    Start,
    Stored,
)
from proof_of_learning.proof.objects import chained, remove, weigh, write_state
from proof_of_learning.proof.reader import load_state, object_path, read_log
from proof_of_learning.state.state import State

# What decides an unfinished run's numbers; not part of the proof, and gone with the seal.
_IDENTITY = files.TEMPORARY + "identity"
PLACES = files.TEMPORARY + "places"  # of a script's loop at its checkpoints


class ProofWriter:
    """Appends to one proof. A context manager; holds the directory against a second writer.

    ``segments``: complete ones; ``steps``: how many they hold; ``state``: the last stored; ``head``: digest of the log's last line.
    ``keep_every``: of the states between the first and the last, only every so many-th is kept; the newest stays until the next is.
    """

    def __init__(self, path: Path, header: Header, keep_every: int | None = None) -> None:
        if header.version != format.VERSION:
            raise RecordingError(f"a recording is written in {format.FORMAT}, not in {header.format[:64]!r}")
        self.path, self.header, self._keep_every = path, header, keep_every
        self.codec: Codec = get_codec(header.codec.name, header.codec.version)
        self._whole = for_whole(header.codec.name, header.codec.version)  # for keyframes
        self.segments = self.steps = 0
        self.state: State | None = None
        self.head = header.digest()
        self._index_head = format.index_start(self.head)
        self._environments: set[str] = set()
        self._in: tuple[Environment, str] | None = None  # the environment of the last segment, and its digest
        self._happened: list[tuple[int, Reload | Group]] = []
        self._stored: set[str] = set()
        self._balance = Balance()
        self._passing: list[Stored] = []  # of a thinned recording: the newest states, which will not stay in the index
        self._settled, self._settled_head = 0, self._index_head  # bytes of the index that stay; the link behind them
        self._exit = ExitStack()

    # ---- opening -----------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, header: Header, keep_every: int | None = None) -> ProofWriter:
        """A new proof in ``path``, which must not exist or be empty (but for what a killed beginning left there)."""
        writer = cls(path, header, keep_every)
        try:
            with files.writing(str(path)):
                path.mkdir(parents=True, exist_ok=True)
                writer._exit.enter_context(files.exclusive(path))
                if any(_unknown(entry) for entry in path.iterdir()):
                    raise RecordingError(f"{path} is not empty and holds no recording of this run; choose another path")
                _remove_temporaries(path)
                (path / format.OBJECTS).mkdir(exist_ok=True)
                files.write_atomic(path / format.HEADER_FILE, [header.encoded()], durable=True)
                writer._open_files()
        except BaseException:
            writer._exit.close()
            raise
        return writer

    @classmethod
    def resume(cls, path: Path, header: Header, keep_every: int | None = None) -> ProofWriter:
        """Go on with a recording that was interrupted. RecordingError, and nothing changed, if ``path`` holds another run, cannot
        be read just now, or has states but not the initial one.
        """
        writer = cls(path, header, keep_every)
        writer._exit.enter_context(files.exclusive(path))
        try:
            writer._cut_back()
            writer._open_files()
        except BaseException as error:
            writer._exit.close()
            if isinstance(error, UnreadableError):
                raise RecordingError(f"{path} cannot be resumed: {error}; nothing was changed, try again") from error
            raise
        return writer

    def __enter__(self) -> ProofWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._exit.close()

    # ---- appending ---------------------------------------------------------------------------------

    def start(self, state: State) -> None:
        """Store the initial state and write the log's first line."""
        self._store(state, None)
        self._append(Start(prev=self.head, state=state.digest()))

    def encode(self, arrived: State, stop: int) -> Encoded | None:
        """The end of the next segment, at step ``stop``, as a codec in the loop stores it; training goes on from ``Encoded.state``.

        None where training goes on from ``arrived`` itself: the codec is exact, or the run ends there.
        """
        return self.codec.encode(arrived, self.state) if self.header.rounded(stop) else None

    def event(self, step: int, event: Reload | Group) -> None:
        """Record what happened during ``step``, which belongs to the next segment; events come in the order of their steps."""
        last = self._happened[-1][0] if self._happened else self.steps
        if not last <= step < self.steps + self.header.training.interval:
            where = f"the segment that begins at step {self.steps}"
            raise RecordingError(f"an event during step {step} does not belong to {where}")
        self._happened.append((step, event))

    def segment(
        self,
        *,
        arrived: str,
        state: State,
        displacement: Displacement,
        environment: Environment,
        columns: Columns,
        stop: int | None = None,
        encoded: Encoded | None = None,
        evaluation: dict[str, float] | None = None,
    ) -> None:
        """Append one segment that ends in ``state`` at step ``stop`` (default: as late as it may); ``encoded`` is what
        :meth:`encode` gave for it. One that is shorter than the interval is the last.
        """
        training, start = self.header.training, self.segments * self.header.training.interval
        full = min(start + training.interval, training.at_most)
        stop = full if stop is None else stop
        if self.steps != start or not start < stop <= full:
            raise RecordingError(f"steps {self.steps} to {stop} make no segment of this run")
        self._store(state, self.state, encoded, stop)
        if self._in is None or self._in[0] is not environment:
            self._in = environment, environment.digest()
        environment_digest = self._in[1]
        if environment_digest not in self._environments:
            self._append(EnvironmentLine(prev=self.head, digest=environment_digest, environment=environment))
            self._environments.add(environment_digest)
        for step, event in self._happened:
            self._append(Event(prev=self.head, step=step, event=event))
        self._happened.clear()
        block = columns.encode()
        self._write(self._blocks, block)
        self._append(
            Segment(
                prev=self.head,
                index=self.segments,
                start=start,
                stop=stop,
                arrived=arrived,
                state=state.digest(),
                displacement=displacement,
                environment=environment_digest,
                block=format.Block(canonical.sha256(block), len(block)),
                evaluation=evaluation,
            )
        )
        self.segments += 1
        self.steps = stop

    def seal(self, evaluation: dict[str, float] | None = None, *, stopped: bool = False) -> str:
        """Write the last line and the root; returns the root. ``stopped``: the run ends before the planned number of steps."""
        planned = self.header.training.planned
        if self.state is None or self._happened or not self.steps:
            raise RecordingError("a run has at least one step, and no event after the last one")
        if planned is not None and stopped != (self.steps < planned):
            raise RecordingError(f"the run has {planned} steps, of which {self.steps} were recorded")
        final = self.state.digest()
        if passed := [item for item in self._passing if item.state != final]:
            self._passing = [item for item in self._passing if item.state == final]
            self._write_index([], durable=True)
            self._drop(passed)
        weights = self.state.part("model").digest()
        ended: format.How = "stopped" if stopped else "completed"
        self._append(format.End(self.head, self.steps, ended, weights, evaluation))
        root = format.root(self.header.digest(), self.head)
        seal = format.Seal(schema=format.SEAL, root=root, segments=self.segments, index=self._index_head)
        with files.writing(str(self.path)):
            for descriptor in (self._log, self._blocks, self._index):
                os.fsync(descriptor)
            for name in (_IDENTITY, PLACES):
                (self.path / name).unlink(missing_ok=True)
        files.write_atomic(self.path / format.SEAL_FILE, [canonical.encode(seal)], durable=True)
        return root

    # ---- inside ------------------------------------------------------------------------------------

    def _open_files(self) -> None:
        def append_to(name: str, append: int = os.O_APPEND) -> int:
            descriptor = os.open(self.path / name, os.O_WRONLY | append | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._exit.callback(os.close, descriptor)
            return descriptor

        self._log = append_to(format.LOG_FILE)
        self._blocks = append_to(format.BLOCKS_FILE)
        # The end of a thinned recording's index is written again.
        self._index = append_to(format.INDEX_FILE, os.O_APPEND if self._keep_every is None else 0)

    def _append(self, line: format.Line) -> None:
        raw = canonical.encode(line)
        self._write(self._log, raw + b"\n")
        self.head = format.line_digest(raw)

    def _store(self, state: State, base: State | None, encoded: Encoded | None = None, stop: int = 0) -> None:
        if self._keep_every is not None:
            self._store_thinned(state, stop)
            return
        if (digest := state.digest()) not in self._stored:
            # A keyframe now and then, so that any state opens in bounded time.
            keyframe = base is None or len(self._stored) % KEYFRAMES.get(self.codec.name, 1) == 0
            codec = self.codec
            if keyframe or not (codec.exact or encoded):
                codec, base, encoded = self._whole, None, None
            chunks = (encoded or codec.encode(state, base)).chunks()
            name, size, used = write_state(self.path, state, codec.name, chunks, self._balance)
            before = None if base is None or used != codec.name else base.digest()
            stored = Stored(prev=self._index_head, state=digest, object=name, bytes=size, codec=used, base=before)
            line = canonical.encode(stored)
            self._write(self._index, line + b"\n")
            self._index_head = format.line_digest(line)
            self._stored.add(digest)
        self.state = state.settled(spare=self.state)

    def _store_thinned(self, state: State, stop: int) -> None:
        """Store a whole state; of those not to be kept only the newest two stay, for the log may end with either of them."""
        assert self._keep_every is not None
        position = 0 if self.state is None else self.segments + 1
        keep = position % self._keep_every == 0 or stop == self.header.training.planned
        chunks = self._whole.encode(state, None).chunks()
        name, size, used = write_state(
            self.path, state, self._whole.name, chunks, self._balance, durable=keep, stays=keep
        )
        stored = Stored("", state.digest(), name, size, used)
        gone = [] if keep else self._passing[:-1]
        self._passing = [item for item in self._passing if item not in gone] + ([] if keep else [stored])
        self._write_index([stored] if keep else [], durable=keep)
        self._drop(gone)
        self.state = state.settled(spare=self.state)

    def _drop(self, gone: list[Stored]) -> None:
        for item in gone:
            remove(self.path, item.object)

    def _write_index(self, kept: list[Stored], *, durable: bool) -> None:
        """Append to a thinned recording's index what is kept, and behind it what passes, in the place of what passed before.

        A process that is killed leaves the old end or the new one, or a line cut short, which counts for nothing.
        """
        staying, self._settled_head = chained(kept, self._settled_head)
        passing, self._index_head = chained(self._passing, self._settled_head)
        end, written = staying + passing, 0
        with files.writing(str(self.path)):
            while written < len(end):
                written += os.pwrite(self._index, end[written:], self._settled + written)
            os.ftruncate(self._index, self._settled + written)
            if durable:
                os.fsync(self._index)
        self._settled += len(staying)

    def _write(self, descriptor: int, raw: bytes) -> None:
        view = memoryview(raw)
        with files.writing(str(self.path)):
            while view:
                view = view[os.write(descriptor, view) :]

    def _cut_back(self) -> None:
        """Bring every file back to the last segment that is complete, and drop what nothing refers to."""
        try:
            found = bytes(files.read_bounded(self.path / format.HEADER_FILE, limits.MAX_HEADER))
        except UnreadableError:
            raise
        except FormatError as error:
            raise RecordingError(f"{self.path} holds no recording to resume: {error}") from error
        if found != self.header.encoded():
            raise RecordingError(
                f"{self.path} holds another run ({_difference(found, self.header)}); choose another path"
            )
        index = {stored.state: stored for stored, _ in self._read_chain(format.INDEX_FILE, Stored, self._index_head)}
        kept = self._complete_lines(index)
        states = [line.state for line, _ in kept if isinstance(line, (Start, Segment))]
        places = {state: position for position, state in enumerate(states)}
        log_bytes = sum(len(raw) + 1 for _, raw in kept)
        block_bytes = sum(line.block.bytes for line, _ in kept if isinstance(line, Segment))
        held = sorted((item for item in index.values() if item.state in places), key=lambda item: places[item.state])
        bases, staying = {item.base for item in held}, list[Stored]()
        for item in held:  # a recording may go on with another keep_every, or have begun without
            position = places[item.state]
            last = position == self.header.planned_segments()
            stays = self._keep_every is None or position % self._keep_every == 0 or last
            difference = item.base is not None or item.state in bases
            (staying if stays or difference else self._passing).append(item)
            if stays or difference:
                self._balance.add(weigh(self.path, item.object, item.codec), item.codec, item.bytes)
        with files.writing(str(self.path)):
            for name, size in ((format.LOG_FILE, log_bytes), (format.BLOCKS_FILE, block_bytes)):
                if (self.path / name).exists():
                    os.truncate(self.path / name, size)
            lines, self._settled_head = chained(staying, self._index_head)
            passing, self._index_head = chained(self._passing, self._settled_head)
            files.write_atomic(self.path / format.INDEX_FILE, [lines, passing], durable=True)
            self._settled = len(lines)
            self._sweep({item.object for item in held})
        if self._keep_every is None:
            self._stored = {item.state for item in held}
        for line, raw in kept:
            self.head = format.line_digest(raw)
            if isinstance(line, EnvironmentLine):
                self._environments.add(line.digest)
            if isinstance(line, Segment):
                self.segments, self.steps = line.index + 1, line.stop

    def _complete_lines(self, index: dict[str, Stored]) -> list[tuple[format.Line, bytes]]:
        """The longest beginning of the log whose blocks and objects are there and whose last state is intact; loads that state."""
        lines: list[tuple[format.Line, bytes]] = []
        with _up_to_the_damage():
            for pair in read_log(self.path, self.header):
                lines.append(pair)  # one by one: what was read before the damage counts
        segments = sum(isinstance(line, Segment) for line, _ in lines)
        training = self.header.training
        short = [
            number for number, (line, _) in enumerate(lines)
            if isinstance(line, Segment) and line.stop % training.interval and line.stop != training.planned
        ]  # fmt: skip
        # At a short segment the run was about to end, for a reason that is not known any more.
        del lines[min(short, default=len(lines)) :]
        del lines[self._accounted(lines, index) :]
        while lines:
            line = lines[-1][0]
            if isinstance(line, (Start, Segment)) and line.state in index:
                with _up_to_the_damage():
                    self.state = load_state(self.path, index, line.state)
                    return lines
            lines.pop()
        if segments and any((self.path / format.OBJECTS).glob("*/*")):  # which would be removed
            raise RecordingError(
                f"{self.path} has {segments} segments in its log, but not even the initial state can be found or read; "
                f"restore {format.INDEX_FILE} and {format.OBJECTS}/, or remove the directory to record anew"
            )
        return []

    def _accounted(self, lines: list[tuple[format.Line, bytes]], index: dict[str, Stored]) -> int:
        """How many lines there are before the first whose block or object is missing."""
        offset = count = 0
        with _up_to_the_damage(), ExitStack() as opened:
            blocks: int | None = None
            for line, _ in lines:
                if isinstance(line, Segment):
                    if blocks is None:
                        blocks = files.open_regular(self.path / format.BLOCKS_FILE)
                        opened.callback(os.close, blocks)
                    block = files.read_at(blocks, line.block.bytes, offset, format.BLOCKS_FILE)
                    if canonical.sha256(block) != line.block.digest:
                        break
                    offset += len(block)
                if (
                    isinstance(line, (Start, Segment))
                    and line.state in index
                    and not self._is_stored(index[line.state])
                ):
                    break
                count += 1
        return count

    def _is_stored(self, stored: Stored) -> bool:
        size = None
        with _up_to_the_damage(), os.fdopen(files.open_regular(object_path(self.path, stored.object)), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
        return size == stored.bytes

    def _read_chain(self, name: str, type_: type[Stored], head: str) -> Iterator[tuple[Stored, bytes]]:
        path = self.path / name
        if not path.exists():
            return
        for raw in files.iterate_lines(path, limits.MAX_LOG, limits.MAX_LINE):
            try:
                line = canonical.decode(raw.removesuffix(b"\n"), type_, name)
            except FormatError:
                return
            if not raw.endswith(b"\n") or line.prev != head:
                return
            head = format.line_digest(raw[:-1])
            yield line, raw[:-1]

    def _sweep(self, objects: set[str]) -> None:
        keep = {object_path(self.path, name) for name in objects}
        root = self.path / format.OBJECTS
        root.mkdir(exist_ok=True)
        (self.path / format.SEAL_FILE).unlink(missing_ok=True)
        _remove_temporaries(self.path)
        for folder in root.iterdir():
            if not folder.is_dir() or folder.is_symlink():
                folder.unlink()
                continue
            for item in folder.iterdir():
                if item not in keep:
                    shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()


def _unknown(entry: Path) -> bool:
    """Whether a directory entry is none that :meth:`ProofWriter.create` makes before the header."""
    if entry.name == format.OBJECTS:
        return not entry.is_dir() or any(entry.iterdir())
    return not entry.name.startswith(files.TEMPORARY) or entry.is_dir()


def _remove_temporaries(path: Path) -> None:
    """Remove the files that a killed process was writing."""
    for stray in path.glob(files.TEMPORARY + "*"):
        if stray.name not in (_IDENTITY, PLACES):
            stray.unlink()


def begun(path: Path, header: Header, identity: str) -> Header:
    """The header of the unfinished recording in ``path`` if that is the same run as ``header``: all but its sources is equal, and
    so is the ``identity`` of what decides its numbers. ``header`` itself otherwise, and where nothing was recorded.
    """
    try:
        if bytes(files.read_bounded(path / _IDENTITY, limits.MAX_LINE)).decode() != identity:
            return header
        found = parse.parse_header(bytes(files.read_bounded(path / format.HEADER_FILE, limits.MAX_HEADER)))
    except (FormatError, IntegrityError, UnicodeDecodeError):
        return header
    task = msgspec.structs.replace(header.task, sources=found.task.sources)
    return found if msgspec.structs.replace(header, task=task) == found else header


def remember(path: Path, identity: str) -> None:
    """Write beside an unfinished recording what :func:`begun` compares."""
    with files.writing(str(path)):
        files.write_atomic(path / _IDENTITY, [identity.encode()])


@contextmanager
def _up_to_the_damage() -> Iterator[None]:
    """End here where something is damaged. What cannot be read just now may be intact: that is not swallowed."""
    try:
        yield
    except UnreadableError:
        raise
    except (FormatError, IntegrityError):
        pass


def _difference(found: bytes, wanted: Header) -> str:
    """Which part of the header differs, in a few words."""
    try:
        other = parse.parse_header(found)
    except (FormatError, IntegrityError):
        return "its header cannot be read"
    for name in ("program", *Header.__struct_fields__):  # what was typed first
        theirs, ours = getattr(other, name), getattr(wanted, name)
        if name == "task" and theirs != ours and theirs.digest == ours.digest and theirs.name == ours.name:
            edited = sorted(k for k in {*theirs.sources, *ours.sources} if theirs.sources.get(k) != ours.sources.get(k))
            return f"the source text of the task's {', '.join(edited)} has changed since"
        if theirs != ours:
            return f"{name}: there {_brief(theirs, ours)}, now {_brief(ours, theirs)}"
    return "its header differs"


def _brief(value: Any, other: Any) -> str:
    plain, beside = msgspec.to_builtins(value), msgspec.to_builtins(other)
    if isinstance(plain, dict) and isinstance(beside, dict):
        kept = {k: plain[k] for k in plain if k not in ("description", "sources") and plain[k] != beside.get(k)}
        told = {k: " ".join(map(str, v)) or "none" if isinstance(v, list) else v for k, v in kept.items()}
        plain = ", ".join(f"{k} {v}" for k, v in told.items())
    return text if len(text := str(plain)) <= 160 else text[:157] + "..."
