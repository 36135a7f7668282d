"""Verification of an opening: what was opened fits what was answered, and then the checks of any verification.

An opening holds a proof with the same root and fewer states, so that everything from here on is the one verifier's: its replay, its
checks, its verdict.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.data.opened import Samples
from proof_of_learning.disputes import OPENING_FILE, documents, ledger
from proof_of_learning.disputes import answers as answering
from proof_of_learning.disputes.answers import Answers as Given
from proof_of_learning.disputes.answers import shapes
from proof_of_learning.disputes.challenging import AnyTask, lowered, opened_proof, redraw, reference
from proof_of_learning.disputes.documents import AnyPath, First, OpeningHead, Second
from proof_of_learning.disputes.ledger import Asked, Docket
from proof_of_learning.disputes.looking import Looked, look
from proof_of_learning.disputes.opening import SAMPLES_FILE, positions
from proof_of_learning.disputes.owners import Owners
from proof_of_learning.errors import FormatError, IntegrityError, PolError, UsageError
from proof_of_learning.limits import MAX_SAMPLES
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import files, format
from proof_of_learning.proof.codecs.raw import decode_tensors
from proof_of_learning.proof.format import check_digest
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.pool import MakePool
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.verifier import replaying
from proof_of_learning.verifier.chain import open_links, parent_of
from proof_of_learning.verifier.conclude import Clock, broken, refused
from proof_of_learning.verifier.evidence import Answers, Disclosed
from proof_of_learning.verifier.initialization.start import second_start
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.plan import Challenge
from proof_of_learning.verifier.survey import survey
from proof_of_learning.verifier.verdict import CheckResult, Nonce, Status, Verdict
from proof_of_learning.verifier.verify import Case, attest, judged
from proof_of_learning.verifier.walks import refuse_other_kind

NEAR = 1e-3  # of what outputs can be apart, in an environment that is not the recorded one
_FILES = {OPENING_FILE, "opening.dsse.json", "first.json", "second.json", "answers", "proof", SAMPLES_FILE}
_ANSWERS = {"answers.json", "answers.dsse.json", answering.STATES_FILE, answering.OUTPUTS_FILE}
MEANING = (
    "The owner answered for every state before the verifier's draw; all that was then drawn was opened, and is what was answered for, "
    "bit for bit."
)
LIMITS = (
    "Of states that were not opened nothing is guaranteed but what the draw gives: nothing by rank, by an optimizer's equations, by "
    "idle share or by settings, for those were looked at in opened states alone."
)


@dataclass(frozen=True)
class Terms:
    """What a verifier brings to an opening.

    challenge: their own copy of the second challenge, without which nobody knows that the nonce was drawn. data_root: the root of
    the data that they expect. docket: what they asked so far, and what was not answered in time. accept_budget: the proof may be
    valid although fewer segments were drawn than all guarantees need.
    """

    challenge: AnyPath | None = None
    data_root: str | None = None
    docket: AnyPath | None = None
    accept_budget: bool = False


def verify_opening(
    path: AnyPath,
    task: AnyTask,
    options: Options | None = None,
    terms: Terms | None = None,
    *,
    chain: Iterable[tuple[AnyPath, AnyTask | None]] = (),
    trust: Iterable[str] = (),
    progress: ProgressCallback = silent,
    pool: MakePool | None = None,
) -> Verdict:
    """Verify the opening in the folder ``path`` against the task that the caller names; arguments as of :func:`verify`.

    Returns the verdict on the proof. Raises FormatError or UsageError for what cannot be read, TaskError where the task's code fails.
    """
    options, terms, named = options or Options(), terms or Terms(), reference(task)
    if terms.data_root is not None:
        try:
            check_digest(terms.data_root, "--data-root")
        except FormatError as error:
            raise UsageError(str(error)) from None
    mine = None if terms.challenge is None else documents.load(Path(terms.challenge), Second)
    links, clock = open_links(chain), Clock()
    isolation = replaying.isolated(named, options.runtime, pool)
    nonce = Nonce(value="", origin="self-chosen")
    with ExitStack() as stack:
        try:
            opening = read(Path(path), mine, options)
            nonce = opening.second.drawn(own=mine is not None)
            clock.lap("open")
            attested, refusal = attest(opening.proof, options, nonce, clock)
            if refusal is not None:
                return refusal
            clock.lap("attestations")
            refuse_other_kind(opening.proof, named)
            answers = Answers()
            parent = parent_of(opening.proof, links)
            replayer = stack.enter_context(
                replaying.replayer(
                    opening.proof,
                    named,
                    options,
                    isolation,
                    None if parent is None else parent.path,
                    pool,
                    opening.samples,
                )
            )
            replayer.begin()
            answers.add(Describe(), replayer.ask(Describe()))
            clock.lap("start of the worker")
            looked, picked, states = _looked(opening, replayer, answers, nonce, own=mine is not None)
            clock.lap("survey")
        except IntegrityError as error:
            return refused(broken(str(error)), nonce, clock)
        found = _closer(looked, opening, replayer, answers, picked, states)
        check = _check(opening, looked, replayer, states, terms, picked)
        clock.lap("opening")
        disclosed = None
        if opening.samples is not None:
            disclosed = Disclosed(len(opening.samples.indices), terms.data_root)
        case = Case(
            opening.proof,
            named,
            options,
            found,
            picked,
            attested,
            isolation,
            links,
            tuple(trust),
            (check,),
            disclosed,
            pool,
        )
        verdict = judged(case, replayer, answers, clock, progress)
        if terms.docket is not None and verdict.verdict == "valid":
            ledger.save(terms.docket, ledger.load(terms.docket, Docket).settled(opening.second.digest()))
        return verdict


@dataclass(frozen=True)
class Opening:
    """An opening that was read, and whose parts belong together. ``keys``: who signed it; ``whose``: it may be."""

    proof: Proof
    first: First
    second: Second
    answers: Given
    samples: Samples | None
    keys: list[str]
    whose: Owners
    seconds: float


def read(folder: Path, mine: Second | None, options: Options) -> Opening:
    """Read an opening. Raises FormatError for what is malformed, IntegrityError where its parts do not belong together."""
    begun = time.perf_counter()
    _only(folder, _FILES)
    _only(folder / "answers", _ANSWERS)
    head = documents.load(folder / OPENING_FILE, OpeningHead)
    first, second = documents.load(folder / "first.json", First), documents.load(folder / "second.json", Second)
    proof = opened_proof(folder / "proof")
    if mine is not None and mine.digest() != second.digest():
        raise IntegrityError("the opening answers another challenge than yours")
    if head.challenge != second.digest() or head.root != proof.root:
        raise IntegrityError("the opening was made for another challenge, or of another proof")
    if second.claim != proof.header.randomness.claim:
        raise IntegrityError("the challenge names another claim than the proof was made under")
    index = folder / "proof" / format.INDEX_FILE
    if answering.file_digest(index, index.stat().st_size) != head.index:
        raise IntegrityError("the opening was signed with other states than it holds")
    whose = Owners.of(proof, options.claims.authorities, options.claims.revoked)
    given = answering.read(folder / "answers", proof, first, whose)
    if second.first != first.digest() or second.answers != given.digest:
        raise IntegrityError("the second challenge is on other answers, or follows another first challenge")
    keys = documents.signers(head, documents.envelope(folder, "opening"), whose)
    if not whose.standing(keys) & whose.standing(given.keys):
        raise IntegrityError("answers and opening are signed with different keys, none of which stands for another")
    trusted = options.claims.trusted_keys
    if trusted and not whose.standing(keys) & set(trusted):
        raise IntegrityError("the opening is signed with no trusted key")
    samples = _samples(folder / SAMPLES_FILE, proof, head.samples)
    return Opening(proof, first, second, given, samples, keys, whose, time.perf_counter() - begun)


def _samples(path: Path, proof: Proof, digest: str | None) -> Samples | None:
    salted = proof.header.data.salted
    if digest is None:
        if path.exists() or path.is_symlink():
            raise FormatError(f"unexpected file in the opening: {path.name}; it says that it opens no samples")
        if salted:
            raise IntegrityError("the opening holds no samples, and nobody else has those of a salted data root")
        return None
    raw = files.read_bounded(path, MAX_SAMPLES)
    if canonical.sha256(raw) != digest:
        raise IntegrityError(f"{path.name} is not the file that {OPENING_FILE} names")
    tensors, metadata = decode_tensors(raw)
    if metadata:
        raise FormatError(f"{path.name} carries metadata")
    samples = Samples.read(tensors, salted)
    samples.check(proof.header.data)
    return samples


def _only(folder: Path, names: set[str]) -> None:
    """Exactly known files. Raises FormatError."""
    if not folder.is_dir() or folder.is_symlink():
        raise FormatError(f"{folder.name} is no folder, and an opening has one there")
    for entry in os.scandir(folder):
        if entry.name not in names or entry.is_symlink():
            raise FormatError(f"unexpected file in the opening: {canonical.brief(entry.name)!r}; get a clean copy")


class _States(Mapping[int, State]):
    """Opened states by position, each read when it is asked for."""

    def __init__(self, proof: Proof, places: list[int]) -> None:
        self._proof, self._places, self._digests = proof, places, proof.state_digests()

    def __getitem__(self, position: int) -> State:
        if position not in self._places:
            raise KeyError(position)
        return self._proof.state(self._digests[position], surveyed=True)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def fitting(opening: Opening, segments: Iterable[int]) -> _States:
    """The states that were opened: both ends of all ``segments``, and what was answered for. Raises IntegrityError or FormatError."""
    proof = opening.proof
    wanted, digests = positions(proof, segments), proof.state_digests()
    held = [position for position, digest in enumerate(digests) if proof.has_state(digest)]
    if missing := sorted(set(wanted) - set(held)):
        raise IntegrityError(
            f"{len(missing)} states that were drawn were not opened, the one at position {missing[0]} among them"
        )
    states, cutter = _States(proof, held), opening.answers.cutter
    for position, told in enumerate(opening.answers.states()):
        if position in states:
            state = states[position]
            same = shapes(state) == dict(opening.answers.layout(position))
            if not same or cutter.cut(state).digest() != told.digest():
                raise IntegrityError(f"the state at position {position} is not the one that was answered for")
    return states


def _looked(
    opening: Opening, replayer: Replayer, answers: Answers, nonce: Nonce, *, own: bool
) -> tuple[Looked, Challenge, _States]:
    """What the answers show, what is drawn from them, and the states that were opened, which must be all of those and fit."""
    proof = opening.proof
    looked = look(proof, survey(proof), opening.answers, replayer, answers.get(Describe(), Described))
    picked = redraw(proof, looked.found, opening.second, opening.answers, own=own)
    states = fitting(opening, picked.segments)
    return looked, picked, states


def _closer(
    looked: Looked, opening: Opening, replayer: Replayer, answers: Answers, picked: Challenge, states: _States
) -> Any:
    """The survey with what is asked in opened states: how far gradients reach, and what starts under fresh keys know."""
    if looked.shown is None:
        return looked.found

    def other(number: int) -> State | None:
        request = second_start(picked.nonce, number)
        try:
            answers.add(request, replayer.ask(request))
        except PolError:
            return None
        return replayer.other_start

    try:
        return replace(looked.found, function=looked.shown.closer(states, other))
    except PolError as error:
        return replace(looked.found, function=None, blind=str(error))


def _check(
    opening: Opening, looked: Looked, replayer: Replayer, states: _States, terms: Terms, picked: Challenge
) -> CheckResult:
    """The check of its own that an opening has; what contradicts itself has been refused before."""
    status: Status = "pass"
    late, unsettled = _late(opening, terms)
    summary = f"{len(states)} of {len(opening.answers.head.sizes):,} states were opened, and are those of the answers"
    differing: list[int] = []
    if looked.shown is not None:
        unlike = replayer.differences(opening.proof.segments[0].environment)
        try:
            differing = looked.shown.differing(states, NEAR if unlike else 0.0)
        except PolError as error:
            status, summary = "inconclusive", f"the opened states' outputs could not be looked at: {error}"
        if differing:
            status = "inconclusive" if unlike else "fail"
            summary = f"{len(differing)} opened states put out something else than was answered, at position {differing[0]} first"
    segments = opening.answers.head.segments
    few = lowered(opening.proof, looked.found, picked.nonce, opening.answers, picked)
    budget = "" if segments is None else f"; the owner set a budget of {segments:,} segments before the draw"
    if few and not terms.accept_budget and status == "pass":
        status = "inconclusive"
        summary += (
            f", but fewer segments were drawn than all guarantees need ({few[0]:,} of {few[1]:,}); accept that with "
            "--accept-budget"
        )
    named = {*opening.keys, *opening.whose.everybody()}
    if late and status != "fail":
        first = min(late, key=lambda entry: not entry.falls_to(named))
        term = "" if first.due is None else f" in time (by {first.due})"
        summary = f"the challenge {first.challenge[:19]}… to this root or claim was not answered{term}"
        status = "fail"
        if not first.falls_to(named):
            status = "inconclusive"
            summary += ", and nobody who signed this opening bound themselves to it; if it was not theirs, take it out of the docket"
    elif unsettled and status == "pass":
        status = "inconclusive"
        summary = (
            f"another draw for this root or claim was opened, and did not come out valid ({unsettled[0].challenge[:19]}…): verify "
            "that opening to the end, or take it out of the docket; a second draw is a second chance"
        )
    return CheckResult(
        name="opening", status=status, summary=f"{summary}{budget}", meaning=MEANING, limits=LIMITS,
        evidence={
            "challenge": opening.second.digest(), "answers": opening.answers.digest, "signers": opening.keys,
            "states": sorted(states), "budget": segments, "differing": differing, "seconds": opening.seconds,
            "samples": 0 if opening.samples is None else len(opening.samples.indices),
            "unanswered": [entry.challenge for entry in late],
        },
    )  # fmt: skip


def _late(opening: Opening, terms: Terms) -> tuple[list[Asked], list[Asked]]:
    """By the verifier's own docket: challenges to root or claim not answered in time, and draws that were opened without success."""
    if terms.docket is None:
        return [], []
    docket = ledger.load(terms.docket, Docket).answered(opening.second.digest())
    ledger.save(terms.docket, docket)
    whose = opening.proof.root, opening.proof.header.randomness.claim, opening.second.digest()
    return docket.failures(*whose), docket.unsettled(*whose)
