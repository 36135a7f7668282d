"""Stamping while training: log heads go to timestamp authorities in the background (docs/adr/0040).

No step waits for an authority, and none can stop a training: what is not stamped is noted as a gap beside the proof, and the next
stamp dates it. No key is needed: heads are stamped, not signed. A thread of its own asks, for one head at a time, always the newest.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from proof_of_learning import canonical
from proof_of_learning.attestation import authority, gaps, gathering, heads, statements, timestamps
from proof_of_learning.attestation.attested import rfc3339
from proof_of_learning.attestation.gaps import Gap
from proof_of_learning.attestation.gathering import File
from proof_of_learning.errors import PolError
from proof_of_learning.limits import MAX_LOG_HEADS
from proof_of_learning.proof import format
from proof_of_learning.proof.attach import attach
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import read_attestations
from proof_of_learning.recording.stamping import NO_ROOM, Stamped, Stamping

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds that the end of a recording waits for the last stamp
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds before an authority that failed is asked again


class Stamper:
    """Has the heads of one recording stamped. :meth:`reached` never waits; :meth:`finish` waits for the last head, a bounded time."""

    def __init__(self, folder: Path, header: Header, stamping: Stamping) -> None:
        self._folder, self._stamping, self._planned = folder, stamping, header.planned_segments()
        self._authorities = stamping.authorities()
        self._interval, self._header = header.training.interval, hashlib.sha256(header.encoded()).hexdigest()
        self._changed, self._writing = threading.Condition(), threading.Lock()
        self._reached: tuple[int, int, str] | None = None  # segments, steps, digest of the log's line
        self._ending = self._given_up = self._loaded = False
        self._heads = self._segments = self._steps = self._turn = 0  # of what is stamped
        self._previous: str | None = None  # the token before
        self._gaps: list[Gap] = []
        self._note: str | None = None  # the file that they are in
        self._pause, self._ask_at = FIRST_PAUSE, 0.0
        self._thread = threading.Thread(target=self._work, name="pol-stamper", daemon=True)

    def reached(self, segments: int, steps: int, line: str) -> None:
        """So many segments lie in the log, which ends in the line with this digest."""
        with self._changed:
            self._reached = segments, steps, line
            self._changed.notify()
        if not self._thread.ident:
            self._thread.start()

    def settle(self) -> None:
        """All steps lie in the log: remove what :func:`set_aside` does, before there is a proof."""
        self._guarded(self._settle)

    def finish(self) -> Stamped:
        """The log is complete: have its last head stamped, which is on the final state, and put everything in order."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread.ident:
            self._thread.join(PATIENCE)
        late = self._thread.is_alive()
        self.close()
        if late:
            self._failed(f"no answer within the {PATIENCE:g} seconds that the end of a recording waits", late=True)
        return Stamped(self._heads, self._steps, tuple(map(gaps.line, self._gaps)))

    def close(self) -> None:
        """Nothing is written any more."""
        with self._writing:
            self._given_up = True
        with self._changed:
            self._ending = True
            self._changed.notify()

    # ---- in the background ---------------------------------------------------------------------------

    def _work(self) -> None:
        if not self._guarded(self._load):
            return
        while (place := self._next()) is not None:
            self._guarded(functools.partial(self._stamp, *place))

    def _guarded(self, work: Callable[[], None], *, late: bool = False) -> bool:
        """Whatever goes wrong here ends no training."""
        try:
            work()
        except Exception as error:
            log.exception("stamping failed")
            self._failed(f"it failed here ({type(error).__name__})", late=late)
            return False
        return True

    def _next(self) -> tuple[int, int, str] | None:
        """The head to stamp next, once it is due; None: there is none any more."""
        with self._changed:
            while True:
                found = self._reached
                ahead = 0 if found is None else found[0] - self._segments
                if self._given_up or (self._ending and ahead <= 0):
                    return None
                if found is not None and self._ending:
                    self._segments = found[0]  # once: nobody waits for a second attempt
                    return found
                waits = self._ask_at - time.monotonic()
                if found is not None and ahead >= self._spacing() and waits <= 0:
                    return found
                self._changed.wait(max(waits, 0.01) if waits > 0 else None)

    def _spacing(self) -> int:
        """Segments between two heads: wider as a run of unknown length grows, so that it has room to its end."""
        every = self._stamping.every
        return every if self._planned is not None else max(every, self._segments // 8)

    def _stamp(self, segments: int, steps: int, line: str) -> None:
        if self._heads >= MAX_LOG_HEADS - (not self._ending):  # one is kept for the end
            self._failed(NO_ROOM)
            return
        raw = statements.head(self._header, line, steps, [], self._previous)
        urls, why = self._stamping.urls, ""
        for number in range(len(urls)):
            url = urls[(self._turn + number) % len(urls)]
            try:
                token = authority.stamp(raw, url, self._authorities, self._stamping.timeout).raw
            except PolError as error:
                why = str(error)
                continue
            with self._writing:
                if self._given_up:
                    return
                try:
                    attach(self._folder, "head-.json", raw)
                    attach(self._folder, "head-.tsr", token)
                except PolError as error:
                    why = str(error)
                    break
                self._previous, self._heads = canonical.sha256(token), self._heads + 1
                self._segments, self._steps, self._turn = segments, steps, self._turn + number + 1
                self._pause, self._ask_at = FIRST_PAUSE, 0.0
                self._succeeded()
            return
        self._failed(why)

    # ---- gaps ----------------------------------------------------------------------------------------

    def _failed(self, why: str, *, late: bool = False) -> None:
        """Note a gap. ``late``: by who closed this; the thread itself writes nothing then."""
        with self._writing:
            if late or not self._given_up:
                self._note_gap(canonical.brief(why))

    def _note_gap(self, said: str) -> None:
        self._ask_at, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if self._gaps and self._gaps[-1].until is None and self._gaps[-1].after == self._steps:
            last = self._gaps[-1]
            self._gaps[-1] = msgspec.structs.replace(last, tries=last.tries + 1, why=said)
            return  # written with its end, for a dead authority is asked often
        now = rfc3339(datetime.datetime.now(datetime.UTC).replace(microsecond=0))
        self._gaps.append(Gap(after=self._steps, since=now, tries=1, why=said))
        log.warning("no timestamp after step %d: %s", self._steps, said)
        self._write_gaps()

    def _succeeded(self) -> None:
        if self._gaps and self._gaps[-1].until is None:
            self._gaps[-1] = msgspec.structs.replace(self._gaps[-1], until=self._steps)
            self._write_gaps()

    def _write_gaps(self) -> None:
        try:
            before, self._note = self._note, attach(self._folder, "gaps-.json", gaps.encode(self._gaps))
            if before is not None and before != self._note:
                (self._folder / format.ATTESTATIONS / before).unlink(missing_ok=True)
        except (PolError, OSError) as error:  # a full disk, say: the recording itself will tell
            log.warning("the gap cannot be noted: %s", error)

    # ---- what lies there already ---------------------------------------------------------------------

    def _settle(self) -> None:
        with self._writing:
            gone = set_aside(self._folder)
            if self._loaded:  # else they are counted without these
                self._heads -= gone
        if gone:
            self._failed(
                f"{gone} stamped heads were removed: their steps were taken again after an interruption, and came out otherwise"
            )

    def _load(self) -> None:
        """Of an interrupted recording: the last head that is still a beginning of the log, and the gaps; else the claim's token."""
        with self._writing:
            self._look()
            self._loaded = True

    def _look(self) -> None:
        found = gathering.files_of(read_attestations(self._folder))
        known = heads.of_log(self._folder) if any(file.kind == "head" for file in found) else {}
        stamped = _stamped(found)
        best = 0
        for file in found:
            if file.kind == gathering.GAPS:
                self._gaps, self._note = gaps.read(file.raw, file.name), file.name
            if file.kind != "head" or file.form == gathering.TOKEN:
                continue
            told = gathering.read_statement(file)[0].predicate
            steps = known.get(told.get("head", ""))
            self._heads += file.stamped_as in stamped
            if steps is not None and steps > best and file.stamped_as in stamped:
                best, self._previous = steps, f"sha256:{_newest(file, stamped).stamped_as}"
        self._segments, self._steps = -(-best // self._interval), best
        if self._previous is None:
            claims = [file for file in stamped.values() if file.kind == "claim" and file.stamped_as not in stamped]
            self._previous = f"sha256:{claims[0].stamped_as}" if claims else None


def set_aside(folder: Path) -> int:
    """Remove heads of steps that were taken again, otherwise, after an interruption, from what lies beside the log of a recording.

    They are no beginning of it, and would make the proof invalid. Returns how many were stamped. Raises FormatError, and OSError.
    """
    known, gone = heads.of_log(folder), 0
    while True:
        found = gathering.files_of(read_attestations(folder))
        stamped, there = _stamped(found), {None, *(f"sha256:{file.stamped_as}" for file in found)}
        own = [
            (f, gathering.read_statement(f)[0].predicate)
            for f in found
            if f.kind == "head" and f.form == gathering.STATEMENT
        ]
        lost = [
            file
            for file, told in own
            if known.get(told.get("head", "")) != told.get("steps") or told.get("previous") not in there
        ]
        if not lost:
            return gone
        for file in lost:
            gone += file.stamped_as in stamped
            for name in [file, *_above(file, stamped)]:
                (folder / format.ATTESTATIONS / name.name).unlink(missing_ok=True)


def _stamped(found: Sequence[File]) -> dict[str, File]:
    """The tokens, by what they stamp (SHA-256 in hex)."""
    tokens = [file for file in found if file.form == gathering.TOKEN]
    return {timestamps.parse(file.raw, file.name).stamped: file for file in tokens}


def _above(file: File, stamped: dict[str, File]) -> list[File]:
    """The tokens on a file, each on the one before."""
    found: list[File] = []
    while (token := stamped.get(file.stamped_as)) is not None:
        found.append(token)
        file = token
    return found


def _newest(file: File, stamped: dict[str, File]) -> File:
    return _above(file, stamped)[-1]
