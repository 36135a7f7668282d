"""What a coordinator of untrusted workers decides: a fold of events into a book, and what the book wants next.

Pure and deterministic: no clock, no network, no keys, no tensors. The journal is the list of events, so that a restart, and an
examination by a third party, are the same fold. Who drives it is :mod:`coordinator`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from proof_of_learning import canonical
from proof_of_learning.distributed.events import (
    AnyEvent,
    Applied,
    Assignment,
    Committed,
    Drawn,
    Failed,
    Finished,
    Joined,
    Opened,
    Replayed,
    Resumed,
    Revealed,
    Rules,
)
from proof_of_learning.errors import FormatError

LONGEST = 6  # doublings of the waves that a worker is set aside for


# ---- the book -------------------------------------------------------------------------------------------------------

Status = Literal["asked", "failed", "committed", "revealed", "accepted", "dropped"]


@dataclass(frozen=True)
class Work:
    """A slice in somebody's hands."""

    assignment: Assignment
    name: str  # digest of the assignment
    status: Status = "asked"
    result: str = ""
    steps: tuple[str, ...] = ()
    drawn: bool = False
    checked: bool = False
    known: bool = False  # whether the update is with the coordinator


@dataclass(frozen=True)
class Member:
    """A worker's standing. ``passed``: replays since they were a newcomer. ``until``: the wave before which they are not asked."""

    worker: str
    passed: int = 0
    accepted: int = 0
    strikes: int = 0
    faults: int = 0
    row: int = 0  # faults and strikes since the last accepted slice
    until: int = 0
    banned: bool = False


@dataclass(frozen=True)
class Ban:
    """A proven lie: what was committed to, and what the replay gave."""

    work: Work
    result: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """What it cost, in slices."""

    replays: int = 0
    audits: int = 0  # of the replays
    caught: int = 0
    computed: int = 0  # by workers, whatever became of it
    undone: int = 0  # rounds that were rolled back
    late: int = 0  # answers to what nobody asked any more


@dataclass(frozen=True)
class Book:
    """All that a coordinator knows. ``retained``: the accepted slices of the rounds that may still be undone."""

    run: str
    rules: Rules
    anchor: str
    round: int = 0
    wave: int = 0
    start: str = ""
    samples: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    works: tuple[Work, ...] = ()
    slots: tuple[Work | None, ...] = ()
    drawn: bool = False
    retained: tuple[tuple[int, str, tuple[Work, ...]], ...] = ()  # round, start, slices
    audit: tuple[Work, ...] = ()
    bans: tuple[Ban, ...] = ()
    barren: int = 0
    counts: Counts = field(default_factory=Counts)
    root: str | None = None

    def member(self, worker: str) -> Member | None:
        return next((m for m in self.members if m.worker == worker), None)

    @property
    def final(self) -> int:
        """Rounds that nothing can undo."""
        return self.round if self.round >= self.rules.rounds else self.round - len(self.retained)


@dataclass(frozen=True)
class Want:
    """What a book wants next, and of which works."""

    what: Literal["open", "ask", "draw", "reveal", "replay", "apply", "workers", "finish", "nothing"]
    works: tuple[Work, ...] = ()


def want(book: Book) -> Want:
    """What has to happen next."""
    if book.audit:
        return Want("replay", book.audit[:1])
    if book.round >= book.rules.rounds:
        return Want("nothing" if book.root is not None else "finish")
    if not book.start:
        return Want("open")
    if all(book.slots):
        return Want("apply", tuple(w for w in book.slots if w is not None))
    if not book.works or book.barren >= book.rules.patience:
        return Want("workers")
    if asked := _of(book, "asked"):
        return Want("ask", asked)
    if not book.drawn:
        return Want("draw")
    if missing := _of(book, "committed"):
        return Want("reveal", missing)
    return Want("replay", tuple(w for w in book.works if w.status == "revealed" and w.drawn)[:1])


def _of(book: Book, status: Status) -> tuple[Work, ...]:
    return tuple(work for work in book.works if work.status == status)


def advance(book: Book, event: AnyEvent) -> Book:
    """The book after an event. An answer to what nobody asked (any more) changes nothing but a count; FormatError for an event that no
    driver of this book could have seen."""
    match event:
        case Joined():
            if book.member(event.worker) is None:
                book = replace(book, members=(*book.members, Member(event.worker)), barren=0)
        case Resumed():
            members = tuple(replace(m, until=book.wave, row=0) for m in book.members)
            book = replace(book, members=members, barren=0)
        case Opened():
            _need(event.round == book.round and not book.start and len(event.samples) == book.rules.slots, "opened")
            book = replace(
                book, start=event.start, samples=tuple(event.samples), slots=book.slots or (None,) * book.rules.slots
            )
        case Committed():
            book = _committed(book, event)
        case Failed():
            work = _pending(book, event.worker, event.assignment, "asked")
            if work is None:
                return _counted(book, late=1)
            book = _put(_aside(book, event.worker, strike=False), replace(work, status="failed"))
        case Drawn():
            _need(want(book).what == "draw", "drawn")
            book = _drawn(book, event.link)
        case Revealed():
            book = _revealed(book, event)
        case Replayed():
            book = _replayed(book, event)
        case Applied():
            _need(event.round == book.round and want(book).what == "apply", "applied")
            kept = (book.round, book.start, tuple(w for w in book.slots if w is not None))
            retained = (*book.retained, kept)[-book.rules.finality :]
            book = replace(book, round=book.round + 1, start="", samples=(), slots=(), works=(), retained=retained)
        case Finished():
            _need(want(book).what == "finish", "finished")
            return replace(book, root=event.root)
    return _settled(book)


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise FormatError(f"the journal has an event ({what}) where the book could not have come to it")


def _counted(book: Book, **more: int) -> Book:
    counts = replace(book.counts, **{name: getattr(book.counts, name) + n for name, n in more.items()})
    return replace(book, counts=counts)


def _pending(book: Book, worker: str, name: str, status: Status) -> Work | None:
    return next(
        (w for w in book.works if w.name == name and w.assignment.worker == worker and w.status == status), None
    )


def _put(book: Book, work: Work) -> Book:
    return replace(book, works=tuple(work if w.name == work.name else w for w in book.works))


def _with(book: Book, member: Member) -> Book:
    return replace(book, members=tuple(member if m.worker == member.worker else m for m in book.members))


def _aside(book: Book, worker: str, *, strike: bool) -> Book:
    """Set a worker aside, each time twice as long. A strike makes them a newcomer again. Nobody is banned for it."""
    member = book.member(worker)
    if member is None:
        return book
    row = member.row + 1
    until = book.wave + 2 ** min(row - 1, LONGEST)
    if strike:
        return _with(book, replace(member, row=row, until=until, strikes=member.strikes + 1, passed=0))
    return _with(book, replace(member, row=row, until=until, faults=member.faults + 1))


def _committed(book: Book, event: Committed) -> Book:
    work = _pending(book, event.worker, event.assignment, "asked")
    if work is None or book.drawn:
        return _counted(book, late=1)
    made = replace(work, status="committed", result=event.result, steps=tuple(event.steps))
    return _counted(_put(book, made), computed=1)


def _drawn(book: Book, link: str) -> Book:
    if re.fullmatch("[0-9a-f]{64}", link) is None or hashlib.sha256(bytes.fromhex(link)).hexdigest() != book.anchor:
        raise FormatError("the coordinator's chain does not go on with this link")
    told = sorted((w.name, w.result, *w.steps) for w in _of(book, "committed"))
    seed = hashlib.sha256(b"pol/v1/draw\0" + bytes.fromhex(link) + canonical.encode_plain(told)).digest()
    works = []
    for work in book.works:
        raw = hashlib.sha256(seed + work.assignment.slot.to_bytes(8, "little")).digest()
        member = book.member(work.assignment.worker)
        new = member is None or member.passed < book.rules.probation
        chosen = new or int.from_bytes(raw[:8], "little") < book.rules.share * 2.0**64
        works.append(replace(work, drawn=chosen) if work.status == "committed" else work)
    return replace(book, anchor=link, drawn=True, works=tuple(works))


def _revealed(book: Book, event: Revealed) -> Book:
    work = _pending(book, event.worker, event.assignment, "committed")
    if work is None or not book.drawn:
        return _counted(book, late=1)
    if event.fault:
        return _put(_aside(book, event.worker, strike=True), replace(work, status="dropped"))
    # What is not finite is replayed: no round can use it, and only a lie explains it where training is sound.
    return _put(book, replace(work, status="revealed", known=True, drawn=work.drawn or not event.finite))


def _replayed(book: Book, event: Replayed) -> Book:
    wanted = want(book)
    _need(wanted.what == "replay" and wanted.works[0].name == event.assignment, "replayed")
    work, audit = wanted.works[0], bool(book.audit)
    book = _counted(book, replays=1, audits=int(audit))
    limit = book.rules.limit
    same = event.result == work.result and (limit is not None or tuple(event.steps) == work.steps)
    if same or (limit is not None and event.error is not None and event.error <= limit):
        return replace(book, audit=book.audit[1:]) if audit else _passed(book, work)
    if audit:
        return _rolled_back(_counted(book, caught=1), work)
    book = _counted(book, caught=1)
    if limit is not None:  # may be noise
        return _put(_aside(book, work.assignment.worker, strike=True), replace(work, status="dropped"))
    return _banned(book, Ban(work, event.result, tuple(event.steps)))


def _passed(book: Book, work: Work) -> Book:
    member = book.member(work.assignment.worker)
    assert member is not None
    return _put(_with(book, replace(member, passed=member.passed + 1)), replace(work, status="accepted", checked=True))


def _banned(book: Book, ban: Ban) -> Book:
    """Ban, drop what they have in this round, and have what is retained of theirs audited, oldest first."""
    worker = ban.work.assignment.worker
    member = book.member(worker)
    assert member is not None
    book = replace(_with(book, replace(member, banned=True)), bans=(*book.bans, ban))
    mine = [replace(w, status="dropped") if w.assignment.worker == worker else w for w in book.works]
    slots = tuple(None if w is not None and w.assignment.worker == worker and not w.checked else w for w in book.slots)
    audit = tuple(w for _, _, kept in book.retained for w in kept if w.assignment.worker == worker and not w.checked)
    return replace(book, works=tuple(mine), slots=slots, audit=audit)


def _rolled_back(book: Book, work: Work) -> Book:
    """Back to the start of the round of ``work``; what others did in that round stays, for its start is the same."""
    number, worker = work.assignment.round, work.assignment.worker
    place = next(i for i, (r, _, _) in enumerate(book.retained) if r == number)
    _, _, kept = book.retained[place]
    slots: list[Work | None] = [None] * book.rules.slots
    for item in kept:
        if item.assignment.worker != worker or item.checked:
            slots[item.assignment.slot] = item
    undone = book.round - number
    book = replace(
        book, round=number, start="", samples=(), slots=tuple(slots), works=(), drawn=False, retained=book.retained[:place], audit=(),
    )  # fmt: skip
    return _counted(book, undone=undone)


def _settled(book: Book) -> Book:
    """Accept what needs no replay; where all of a wave is settled, begin another one."""
    if book.drawn and not book.audit:
        book = replace(
            book,
            works=tuple(
                replace(w, status="accepted") if w.status == "revealed" and not w.drawn else w for w in book.works
            ),
        )
    done = all(w.status in ("failed", "dropped", "accepted") for w in book.works)
    if book.works and done and not book.audit:
        book = _closed(book)
    if not book.works and not book.audit and book.start and not all(book.slots) and book.barren < book.rules.patience:
        book = _next_wave(book)
    return book


def _closed(book: Book) -> Book:
    slots, got = list(book.slots), 0
    for work in book.works:
        if work.status == "accepted":
            slots[work.assignment.slot], got = work, got + 1
            member = book.member(work.assignment.worker)
            assert member is not None
            book = _with(book, replace(member, accepted=member.accepted + 1, row=0))
    barren = 0 if got else book.barren + 1
    return replace(book, works=(), slots=tuple(slots), drawn=False, wave=book.wave + 1, barren=barren)


def _next_wave(book: Book) -> Book:
    members = [m for m in book.members if not m.banned]
    if not members:
        return book
    soonest = min(m.until for m in members)
    if soonest > book.wave:
        book = replace(book, wave=soonest)
    free = [m for m in members if m.until <= book.wave]
    turn = (book.round + book.wave) % len(free)
    free = free[turn:] + free[:turn]
    open_slots = [slot for slot, work in enumerate(book.slots) if work is None]
    trusted = [m.worker for m in free if m.passed >= book.rules.probation]
    # Newcomers get one slice each, for each is replayed.
    hands = [m.worker for m in free]
    while trusted and len(hands) < len(open_slots):
        hands += trusted
    works = []
    for slot, worker in zip(open_slots, hands, strict=False):
        made = Assignment(book.run, book.round, slot, book.wave, worker, book.start, book.samples[slot])
        works.append(Work(made, made.digest()))
    return replace(book, works=tuple(works), drawn=False)


def fold(book: Book, events: Sequence[AnyEvent]) -> Book:
    for event in events:
        book = advance(book, event)
    return book


# ---- the chain ------------------------------------------------------------------------------------------------------


def chain(secret: bytes, length: int) -> list[str]:
    """Links that hash to each other, in the order in which they are opened; the first is what a coordinator commits to."""
    links = [hashlib.sha256(b"pol/v1/chain\0" + secret).digest()]
    for _ in range(length):
        links.append(hashlib.sha256(links[-1]).digest())
    return [link.hex() for link in reversed(links)]


def unseen_lies(share: float, miss: float = 0.01) -> tuple[float, int]:
    """How many lies of a trusted worker are expected to pass before the one that bans them, and how many pass at most with probability
    1 - ``miss``. Those of the last ``finality`` rounds are undone."""
    if share >= 1:
        return 0.0, 0
    if share <= 0:
        return float("inf"), 2**53
    import math

    return (1 - share) / share, math.ceil(math.log(miss) / math.log1p(-share)) - 1
