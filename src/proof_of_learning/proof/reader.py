"""Reading a proof that nobody trusts: every size is bounded first, every byte checked, nothing executed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from proof_of_learning import canonical, limits
from proof_of_learning.errors import FormatError, IntegrityError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof import files, format, parse
from proof_of_learning.proof.codecs import RAW, get_codec, is_exact
from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.proof.format import End, EnvironmentLine, Event, Header, Line, Seal, Segment, Start, Stored

if TYPE_CHECKING:  # what needs torch; header, log and index are read without it
    from proof_of_learning.proof.blocks import Columns
    from proof_of_learning.proof.codecs.base import Codec
    from proof_of_learning.state.state import State


@dataclass
class Memory:
    """What reading one state leaves for the next: the state that this thread decoded last, from which the next is often one difference
    away, and how much room there is for states that were not decoded yet."""

    room: Room
    taken: dict[str, int] = field(default_factory=dict)  # of the room, by state
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _own: threading.local = field(default_factory=threading.local)

    @classmethod
    def of(cls, index: Mapping[str, Stored]) -> Memory:
        """Nothing yet. One object may stand for several states, but its bytes make room once."""
        return cls(Room.of(_objects(index)))

    @property
    def last(self) -> dict[str, State]:
        last: dict[str, State] = self._own.__dict__.setdefault("last", {})
        return last

    def given(self, digest: str) -> Room:
        """The room for a state: what it took before, or all that is left."""
        with self._lock:
            return Room(self.taken.get(digest, self.room.left))

    def took(self, digest: str, weight: int) -> None:
        """Take note of what a state weighs; FormatError where others took so much since :meth:`given` that it no longer fits."""
        with self._lock:
            if digest not in self.taken:
                self.room.take(weight)
                self.taken[digest] = weight


@dataclass(frozen=True)
class Proof:
    """An opened proof: header, log and index are checked and in memory; states and blocks are read when asked for."""

    path: Path
    header: Header
    root: str
    initial_state: str
    segments: list[Segment]
    environments: dict[str, Environment]
    events: list[Event]
    end: End
    index: dict[str, Stored]
    attestations: dict[str, bytes] = field(repr=False)
    _offsets: list[int] = field(repr=False)
    _memory: Memory = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Proof:
        """Open and check header, log, root, index and the list of files. Raises FormatError or IntegrityError."""
        folder = Path(path)
        if not (folder.is_dir() and os.path.lexists(folder / format.HEADER_FILE)):
            what = f"holds no {format.HEADER_FILE}" if folder.is_dir() else "is not a directory"
            what = what if folder.exists() else "does not exist"
            raise FormatError(f"{folder} {what}; a proof is the directory that `pol prove -o` wrote")
        raw = bytes(files.read_bounded(folder / format.HEADER_FILE, limits.MAX_HEADER))
        header = parse.parse_header(raw)
        first = format.header_digest(raw, header.version)
        exact = is_exact(header.codec.name, header.codec.version)
        if header.codec.in_loop is exact or header.codec.options:
            raise FormatError(
                f"{format.HEADER_FILE}: the codec {header.codec.name!r} is claimed with options it does not have"
            )
        if not (folder / format.SEAL_FILE).exists():
            raise FormatError(f"{folder} is not finished (it has no {format.SEAL_FILE}); "
                              "resume it with the command that started it, `pol prove … -o` the same path; "
                              "a script's goes on only under a key (--seed, --registration), and in one process")  # fmt: skip
        raw = bytes(files.read_bounded(folder / format.SEAL_FILE, limits.MAX_SEAL))
        seal = canonical.decode(raw, Seal, format.SEAL_FILE)
        if seal.schema != (schema := format.seal_schema(header.version)):
            raise FormatError(f"{format.SEAL_FILE} has schema {seal.schema[:64]!r}; with this header it is {schema!r}")
        log, last = list[Line](), b""
        for line, last in read_log(folder, header, first):  # noqa: B007 (the log's head is the digest of its last line)
            log.append(line)
        head = format.line_digest(last, header.version) if log else first
        segments = [line for line in log if isinstance(line, Segment)]
        if not log or not isinstance(log[-1], End):
            raise IntegrityError(f"the log is incomplete: it ends after {len(segments)} segments")
        if format.root(first, head, header.version) != seal.root or seal.segments != len(segments):
            raise IntegrityError(f"{format.SEAL_FILE} does not fit header and log: the root is another one")
        start = log[0]
        assert isinstance(start, Start)
        used = {line.digest: line.environment for line in log if isinstance(line, EnvironmentLine)}
        states = [start.state, *(segment.state for segment in segments)]
        if len(set(states)) != len(states):
            raise IntegrityError(
                "the log names one state after different steps, but a state says how many steps were taken"
            )
        index = _read_index(folder, header, seal, format.index_start(first, header.version), states)
        if not header.rounded(segments[-1].stop) and segments[-1].arrived != segments[-1].state:
            raise IntegrityError("the last segment ends in another state than training arrived at")
        offsets = [0]
        for segment in segments:
            offsets.append(offsets[-1] + segment.block.bytes)
        _check_files(folder, index, offsets[-1])
        events = [line for line in log if isinstance(line, Event)]
        return cls(
            folder, header, seal.root, start.state, segments, used, events, log[-1], index, read_attestations(folder),
            offsets, Memory.of(index),
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """T: how many steps were taken."""
        return self.segments[-1].stop

    def events_in(self, index: int) -> list[Event]:
        """What happened beside the steps of one segment."""
        segment = self.segments[index]
        return [event for event in self.events if segment.start <= event.step < segment.stop]

    def state_digests(self) -> list[str]:
        """Digests of the states that segments start from and end in: one more than there are segments."""
        return [self.initial_state, *(segment.state for segment in self.segments)]

    def has_state(self, digest: str) -> bool:
        """Whether the proof still holds the bytes of that state (it may have been thinned)."""
        return digest in self.index

    def state(self, digest: str, *, surveyed: bool = False) -> State:
        """Load one state, checking the object's bytes and the state's own digest.

        ``surveyed``: the object has been read once before, so that its state's digest, which the root covers, is enough.
        """
        if digest not in self.index:
            raise FormatError(f"the proof no longer holds the state {digest[:23]}…; it was thinned")
        state = load_state(self.path, self.index, digest, whole=not surveyed, memory=self._memory)
        if self.header.parts and set(state.parts()) != set(self.header.parts):
            raise IntegrityError(f"the state {digest[:23]}… has other parts than {format.HEADER_FILE} says")
        if self.header.ranks > 1:
            from proof_of_learning.state.ranks import check_own

            nodes = dict(state.tree["d"])
            for key, node in nodes.items():
                if (base := key.rpartition("@")[0]) in nodes:
                    check_own(key[2:], node, nodes[base])
        return state

    def weight(self, digest: str) -> int:
        """What a state that was read took of the room that there is for what is decoded."""
        return self._memory.taken.get(digest, 0)

    def weighed(self, digest: str, weight: int) -> bool:
        """Take note of what a state took that another process read; False, and nothing changed, where there is no room for it."""
        if weight > self._memory.given(digest).left:
            return False
        self._memory.took(digest, weight)
        return True

    def room(self) -> Room:
        """What its compressed states may weigh together."""
        return Room.of(_objects(self.index))

    @property
    def stored_bytes(self) -> int:
        """How many bytes all objects have together."""
        return sum(size for _, size in _objects(self.index))

    @property
    def codec(self) -> Codec:
        """The codec that the header names."""
        return get_codec(self.header.codec.name, self.header.codec.version)

    def continued(self, index: int, arrived: State, before: State) -> State:
        """The state that training goes on from after segment ``index``, begun in ``before``: what a codec in the loop makes of it."""
        rounded = self.header.rounded(self.segments[index].stop)
        return self.codec.encode(arrived, before).state if rounded else arrived

    def columns(self, index: int) -> Columns:
        """The per-step columns of one segment."""
        return next(self.all_columns(index, index + 1))

    def all_columns(self, start: int = 0, stop: int | None = None) -> Iterator[Columns]:
        """The columns of segments ``start`` up to ``stop``, in order."""
        from proof_of_learning.proof.blocks import Columns

        descriptor = files.open_regular(self.path / format.BLOCKS_FILE)
        recorded = self.header.randomness.mode == "recorded"
        try:
            for segment in self.segments[start:stop]:
                what = f"the block of segment {segment.index}"
                raw = files.read_at(descriptor, segment.block.bytes, self._offsets[segment.index], what)
                if canonical.sha256(raw) != segment.block.digest:
                    raise IntegrityError(f"{what} is not the one in the log")
                columns = Columns.decode(raw, segment.stop - segment.start, what, self.header.ranks)
                if (columns.indices is not None) != recorded or (columns.rng is not None) != recorded:
                    raise IntegrityError(f"{what} does not fit {self.header.randomness.mode} randomness")
                if any(share.indices is None or share.rng is None or share.loop is None for share in columns.ranks):
                    raise IntegrityError(f"{what} lacks what a further process drew")
                if (columns.loop is not None) != (self.header.program.kind == "script"):
                    raise IntegrityError(f"{what} does not fit a {self.header.program.kind}'s steps")
                if columns.metrics and self.header.version < 2:
                    raise FormatError(f"{what} has columns that its version of the format does not have")
                yield columns
        finally:
            os.close(descriptor)


def _objects(index: Mapping[str, Stored]) -> Collection[tuple[str, int]]:
    """Codec and bytes of each object, once however many lines name it."""
    return {stored.object: (stored.codec, stored.bytes) for stored in index.values()}.values()


def object_path(folder: Path, name: str) -> Path:
    """Where the object ``sha256:<hex>`` lies; the name is checked, so no path ever comes out of a proof."""
    digest = format.check_digest(name, "an object's name")[7:]
    return folder / format.OBJECTS / digest[:2] / digest


def load_state(
    folder: Path,
    index: Mapping[str, Stored],
    digest: str,
    *,
    whole: bool = True,
    memory: Memory | None = None,
) -> State:
    """Read, check and decode a state with the states it is a difference to. ``whole``: check the objects' bytes beside its digest.

    FormatError where it holds more than ``memory`` has room for.
    """
    from proof_of_learning.state.joining import joined

    memory = memory or Memory.of(index)
    chain = [index[digest]]
    while chain[-1].base is not None and chain[-1].state not in memory.last:
        if len(chain) > limits.MAX_CHAIN:
            raise FormatError(
                f"the state {digest[:23]}… is more than {limits.MAX_CHAIN} differences away from a whole one"
            )
        chain.append(index[chain[-1].base])
    state = memory.last.get(chain[-1].state)
    if state is not None:
        chain.pop()
    for stored in reversed(chain):
        name = f"object {stored.object[7:19]}…"
        raw = files.read_bounded(object_path(folder, stored.object), stored.bytes, name)
        if whole and canonical.sha256(raw) != stored.object:
            raise IntegrityError(f"{name} does not have the bytes its name says")
        room = memory.given(stored.state)
        left = room.left
        state = get_codec(stored.codec).decode(raw, state if stored.base is not None else None, room)
        memory.took(stored.state, left - room.left)
    assert state is not None
    state = joined(state)
    if state.digest() != digest:
        raise IntegrityError(f"object {index[digest].object[7:19]}… holds another state than {digest[:23]}…")
    if index[digest].codec != RAW:  # which takes no differences
        memory.last.clear()
        memory.last[digest] = state
    return state


def read_log(folder: Path, header: Header, first: str | None = None) -> Iterator[tuple[Line, bytes]]:
    """The log's lines with their raw bytes, each checked against the chain and the header (its digest is ``first``) as it is read."""
    path = folder / format.LOG_FILE
    head, number, count, environments_seen, ended = first or header.digest(), 0, 0, set[str](), False

    def broken(kind: type[FormatError] | type[IntegrityError], message: str) -> FormatError | IntegrityError:
        return kind(f"{format.LOG_FILE}, line {number}: {message}")

    training, reached, at = header.training, 0, 0
    end = training.at_most
    for number, raw in enumerate(files.iterate_lines(path, limits.MAX_LOG, limits.MAX_LINE), 1):
        if not raw.endswith(b"\n"):
            raise broken(FormatError, "it is cut short")
        text = raw[:-1]
        try:
            line = parse.parse_line(text, header)
        except FormatError as error:
            raise broken(FormatError, str(error)) from None
        if line.prev != head:
            raise broken(IntegrityError, "the hash chain is broken: it does not follow the line before")
        if ended or isinstance(line, Start) != (number == 1):
            raise broken(IntegrityError, f"a line of kind {type(line).__name__.lower()} cannot stand here")
        if isinstance(line, Segment):
            start, stop = count * training.interval, min((count + 1) * training.interval, end)
            if (line.index, line.start) != (count, start) or reached != start or not start < line.stop <= stop:
                raise broken(IntegrityError, f"expected segment {count} over steps {start} to {stop}")
            if at >= line.stop:
                raise broken(IntegrityError, "what happened before it belongs to a step that was not taken")
            reached = line.stop
            if line.environment not in environments_seen:
                raise broken(IntegrityError, "it names an environment that was not written before it")
            if (
                not 0 < line.block.bytes <= limits.MAX_BLOCK
                or min(line.displacement.state, line.displacement.weights) < 0
            ):
                raise broken(FormatError, "a size or displacement is out of range")
            for digest in (line.arrived, line.state, line.block.digest):
                format.check_digest(digest, "a digest in the log")
            if line.arrived != line.state and not header.codec.in_loop:
                raise broken(IntegrityError, "training goes on from another state than it arrived at")
            count += 1
        elif isinstance(line, EnvironmentLine):
            environments.validate(line.environment)
            if line.environment.digest() != line.digest or line.digest in environments_seen:
                raise broken(IntegrityError, "the environment's digest is not its own, or it stands here twice")
            environments_seen.add(line.digest)
        elif isinstance(line, Start):
            format.check_digest(line.state, "a digest in the log")
        elif isinstance(line, Event):
            if not max(at, reached) <= line.step < min(end, reached + training.interval):
                raise broken(IntegrityError, f"step {line.step} does not belong to segment {count}, or is out of order")
            at = line.step
        else:
            format.check_digest(line.final_weights, "a digest in the log")
            if line.steps != reached or not reached or at >= reached:
                raise broken(IntegrityError, f"the log is incomplete: {reached} of {line.steps} steps are in it")
            if training.planned is not None and (line.ended == "completed") != (reached == training.planned):
                raise broken(
                    IntegrityError, f"it says that the run {line.ended}, after {reached} of {training.planned} steps"
                )
            ended = True
        head = format.line_digest(text, header.version)
        yield line, text


def _read_index(folder: Path, header: Header, seal: Seal, head: str, states: list[str]) -> dict[str, Stored]:
    """The index by state; ``states`` are the log's. A difference is to the state before, so that one pass decodes each object once."""
    index, before = dict[str, Stored](), dict(zip(states, [None, *states], strict=False))
    for raw in files.iterate_lines(folder / format.INDEX_FILE, limits.MAX_LOG, limits.MAX_LINE):
        text = raw.removesuffix(b"\n")
        line = canonical.decode(text, Stored, f"{format.INDEX_FILE}, line {len(index) + 1}")
        if not raw.endswith(b"\n") or line.prev != head:
            raise IntegrityError(f"{format.INDEX_FILE}, line {len(index) + 1}: the hash chain is broken")
        if line.state not in before or line.state in index or line.bytes < 1:
            raise IntegrityError(
                f"{format.INDEX_FILE}, line {len(index) + 1}: it stores a state that does not belong here"
            )
        format.check_digest(line.object, f"{format.INDEX_FILE}: an object's name")
        if line.codec != header.codec.name and not is_exact(line.codec):
            raise FormatError(f"{format.INDEX_FILE}, line {len(index) + 1}: it names another codec than the header")
        if line.base is not None and line.base not in index:
            raise FormatError(
                f"{format.INDEX_FILE}, line {len(index) + 1}: the base of its difference is not stored before it"
            )
        if line.base is not None and (line.base != before[line.state] or line.codec == RAW):
            raise FormatError(
                f"{format.INDEX_FILE}, line {len(index) + 1}: the base of its difference is not the state one segment before"
            )
        index[line.state] = line
        head = format.line_digest(text, header.version)
    if head != seal.index:
        raise IntegrityError(f"{format.INDEX_FILE} is not the one that {format.SEAL_FILE} names")
    return index


_FOLDERS = {format.OBJECTS, format.ATTESTATIONS}
_FILES = {format.HEADER_FILE, format.LOG_FILE, format.BLOCKS_FILE, format.INDEX_FILE, format.SEAL_FILE, *_FOLDERS}


def read_attestations(folder: Path) -> dict[str, bytes]:
    """The files beside the root, by name. Raises FormatError for one that is none of them, or not what its name says."""
    found, total, place = dict[str, bytes](), 0, folder / format.ATTESTATIONS
    if not place.is_dir():
        return found
    for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
        name = f"{format.ATTESTATIONS}/{canonical.brief(entry.name)}"
        if not format.ATTESTATION.fullmatch(entry.name):
            raise FormatError(f"unexpected file in the proof: {name}; remove it or get a clean copy")
        raw = bytes(files.read_bounded(place / entry.name, limits.MAX_ATTESTATION, name))
        total += len(raw)
        if len(found) >= limits.MAX_ATTESTATIONS or total > limits.MAX_ATTESTED:
            raise FormatError(
                f"{format.ATTESTATIONS}/ holds more than {limits.MAX_ATTESTATIONS} files or {limits.MAX_ATTESTED:,} bytes"
            )
        if entry.name != attestation_name(entry.name, raw):
            raise FormatError(f"{name} does not have the bytes that its name says; remove it or get a clean copy")
        found[entry.name] = raw
    return found


def attestation_name(like: str, raw: bytes) -> str:
    """The name of an attestation: that of ``like`` (``seal-….tsr``), with the digest of ``raw`` in it."""
    kind, _, rest = like.partition("-")
    return f"{kind}-{canonical.sha256(raw)[7:23]}.{rest.partition('.')[2]}"


def _check_files(folder: Path, index: dict[str, Stored], block_bytes: int) -> None:
    """Exactly the files that header, log and index account for, with their sizes: nothing missing, nothing else, no links."""

    def regular(entry: os.DirEntry[str], want: Callable[[int], bool]) -> bool:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode) or not want(mode):
            name = canonical.brief(Path(entry.path).relative_to(folder))
            raise FormatError(f"{name} is a link or a special file; a proof has none")
        return True

    for entry in os.scandir(folder):
        if entry.name not in _FILES:
            raise FormatError(f"unexpected file in the proof: {entry.name[:100]!r}; remove it or get a clean copy")
        regular(entry, stat.S_ISDIR if entry.name in _FOLDERS else stat.S_ISREG)
    blocks = folder / format.BLOCKS_FILE
    if not blocks.exists() or blocks.stat().st_size != block_bytes:
        raise FormatError(
            f"{format.BLOCKS_FILE} is missing or has another size than the {block_bytes:,} bytes in the log"
        )
    wanted = {stored.object[7:]: stored.bytes for stored in index.values()}
    prefixes = {name[:2] for name in wanted}
    if not (folder / format.OBJECTS).is_dir():
        raise FormatError(f"{format.OBJECTS}/ is missing from the proof")
    for sub in os.scandir(folder / format.OBJECTS):
        regular(sub, stat.S_ISDIR)
        if sub.name not in prefixes:
            raise FormatError(f"unexpected folder in the proof: {format.OBJECTS}/{canonical.brief(sub.name)}")
        for entry in os.scandir(sub.path):
            regular(entry, stat.S_ISREG)
            size = wanted.pop(entry.name, None)
            if size is None or entry.name[:2] != sub.name:
                raise FormatError(
                    f"unexpected file in the proof: {format.OBJECTS}/{sub.name}/{canonical.brief(entry.name)}"
                )
            if entry.stat(follow_symlinks=False).st_size != size:
                raise FormatError(f"object {entry.name[:12]}… does not have the {size:,} bytes that the index says")
    if wanted:
        raise FormatError(f"{len(wanted)} objects are missing from the proof, {next(iter(wanted))[:12]}… among them")
