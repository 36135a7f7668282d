"""``verify``: the phases and the order of checks are fixed here, and nowhere else.

Opened (structure, digests of header and log) → attested (claim, signatures, times: no state read, nothing executed) → surveyed
(states, identities, measures; what is drawn whatever they hold is replayed meanwhile) → challenged → judged: each check asks what it
needs and judges the answers, cheapest first, stopping at the first failure. Only replay workers run the task's code, and none of them
sees the proof.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from proof_of_learning import memory
from proof_of_learning.attestation.attested import Attested
from proof_of_learning.errors import IntegrityError, PolError, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import remote
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.pool import MakePool
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.sandbox import Isolation
from proof_of_learning.state.state import State
from proof_of_learning.task import Setting, Task, TaskReference
from proof_of_learning.verifier import replaying
from proof_of_learning.verifier.asking import ask, excused, renew
from proof_of_learning.verifier.chain import Link, follow, open_links, parent_of
from proof_of_learning.verifier.checks import ATTESTATION, CHECKS, REGISTRATION, STRUCTURE
from proof_of_learning.verifier.checks.performance import chosen
from proof_of_learning.verifier.conclude import NO_TASK, SKIPPED, Clock, broken, conclude, refused
from proof_of_learning.verifier.evidence import Answers, Disclosed, Evidence, result
from proof_of_learning.verifier.expected import planned_steps
from proof_of_learning.verifier.initialization.start import second_start
from proof_of_learning.verifier.options import Choices, Options
from proof_of_learning.verifier.plan import Challenge, challenge, drawn_early, make_nonce, public_nonce, survey_seed
from proof_of_learning.verifier.survey import Looking, Survey, survey
from proof_of_learning.verifier.verdict import CheckResult, Guarantee, Nonce, Verdict
from proof_of_learning.verifier.walks import refuse_other_kind


def verify(
    path: str | os.PathLike[str],
    task: Task | TaskReference | str | None = None,
    options: Options | None = None,
    *,
    settings: Mapping[str, Setting] | None = None,
    chain: Iterable[tuple[str | os.PathLike[str], Task | TaskReference | str | None]] = (),
    trust: Iterable[str] = (),
    progress: ProgressCallback = silent,
    pool: MakePool | None = None,
    **choices: Unpack[Choices],
) -> Verdict:
    """Verify the proof at ``path`` (a directory, or an address such as ``s3://…``) against the task that the caller names.

    task: a reference (``path.py:function``), which is loaded in a replay worker only, or a Task, replayed in this process.
    options: what the verifier decides (:mod:`verifier.options`); its fields may be given one by one as keywords instead.
    settings: the arguments of a task that is named by a string.
    chain: the proofs behind a run that starts from another one, each with its task; they are drawn, compared and run as this one is,
        while claims and policy are about this proof alone.
    trust: roots that need no verification.
    pool: where replay workers come from, if not from this machine (:mod:`proof_of_learning.distributed`).

    Returns a Verdict. Raises FormatError or UsageError for what cannot be read, TaskError where the task's code fails.
    """
    if options is not None and choices:
        raise TypeError("verify() takes options, or its fields as keywords, not both")
    options = Options.of(choices) if options is None else options
    if isinstance(task, str):
        task = TaskReference(task, dict(settings or {}))
    links, trusted = open_links(chain), tuple(trust)
    isolation = replaying.isolated(task, options.runtime, pool)
    nonce, clock = options.draw.drawn or make_nonce(options.draw.nonce), Clock()
    with ExitStack() as opened:
        try:
            here = remote.local(path, lambda done, total: progress("copying the proof", done, total))
            proof = Proof.open(opened.enter_context(here))
            clock.lap("open")
            attested, refusal = attest(proof, options, nonce, clock)
            if refusal is not None:
                return refusal
            clock.lap("attestations")
            refuse_other_kind(proof, task)
            if options.draw.beacon is not None and options.draw.drawn is None:
                nonce = public_nonce(options.draw.beacon, attested)
                if nonce.why and not options.claims.accept_nonce:  # before any replay: no verdict would rest on it
                    raise UsageError(
                        f"--beacon: round {options.draw.beacon.round} would count as handed in: {nonce.why}; name the round that "
                        "counts, or accept one that was handed in (--accept-nonce)"
                    )
            elif options.draw.nonce is None and options.draw.drawn is None:
                nonce = make_nonce(None)  # drawn when the root is known
            parent = None if task is None else parent_of(proof, links)
            found, replayer, answers = surveyed(
                opened, proof, task, None if parent is None else parent.path, options, isolation, nonce, clock, progress, pool
            )  # fmt: skip
        except IntegrityError as error:
            return refused(broken(str(error)), nonce, clock)
        memory.trim()
        picked = challenge(proof.steps, proof.header.training.interval, proof.root, found, nonce, options.draw)
        case = Case(proof, task, options, found, picked, attested, isolation, links, trusted, pool=pool)
        return judged(case, replayer, answers, clock, progress)


@dataclass(frozen=True)
class Case:
    """What is judged: a proof that was opened, attested and surveyed, and what was drawn of it.

    before: checks that were made on the way here, and count like any other. disclosed: of an opening.
    """

    proof: Proof
    task: Task | TaskReference | None
    options: Options
    found: Survey
    picked: Challenge
    attested: Attested
    isolation: Isolation
    links: Sequence[Link] = ()
    trusted: tuple[str, ...] = ()
    before: tuple[CheckResult, ...] = ()
    disclosed: Disclosed | None = None
    pool: MakePool | None = None


def judged(
    case: Case, replayer: Replayer | None, answers: Answers, clock: Clock, progress: ProgressCallback = silent
) -> Verdict:
    """The last phase: every check asks what it needs and judges the answers. ``replayer``: None where no task was named."""
    proof, task, options = case.proof, case.task, case.options
    evidence = Evidence(
        proof,
        case.found,
        case.picked,
        options,
        isolation=case.isolation,
        attested=case.attested,
        disclosed=case.disclosed,
    )
    if replayer is None:
        evidence = replace(evidence, isolation=None)
        checks = [
            check.judge(evidence, Answers()) if check in (STRUCTURE, ATTESTATION) else result(check, "skipped", NO_TASK)
            for check in CHECKS
        ]
        return conclude(evidence, [*case.before, *checks], Answers(), clock)
    rules = options.claims.policy
    if rules is not None:
        rules.afford(planned_steps(proof, case.picked.segments), proof.steps)

    def verify_link(link: Link, rest: Sequence[Link]) -> Verdict:
        remaining = [(other.path, other.task) for other in rest]
        return verify(
            link.path,
            link.task,
            options.for_link(case.picked.nonce),
            chain=remaining,
            trust=case.trusted,
            progress=progress,
            pool=case.pool,
        )

    evidence = replace(evidence, chain=follow(proof, case.links, case.trusted, verify_link))
    needed = {proof.segments[index].environment for index in (*case.picked.segments, *chosen(evidence))}
    evidence = replace(evidence, differences=_differences(proof, replayer, needed))
    clock.lap("start of workers")
    checks, renewed = list(case.before), False
    for check in CHECKS:
        if not options.runtime.keep_going and any(done.status == "fail" or done.mistaken for done in checks):
            checks.append(result(check, "skipped", SKIPPED))
            continue
        for requests in check.plan(evidence, answers):
            started = len(replayer.here)
            proven = ask(replayer, check, evidence, requests, answers, progress)
            renewed |= renew(replayer, answers)
            if len(replayer.here) > started:  # what had to be started after all is known better now
                evidence = replace(evidence, differences=_differences(proof, replayer, needed))
            if proven:
                break
        checks.append(excused(proof, check.judge(evidence, answers), answers, task, checks))
        clock.lap(check.name)
    if renewed:  # earlier checks went by what somebody said who was found out later
        done = {check.name: check for check in CHECKS}
        for place, before in enumerate(checks):
            if before.status != "skipped" and before.name in done:
                again = done[before.name].judge(evidence, answers)
                checks[place] = excused(proof, again, answers, task, checks[:place])
    return conclude(evidence, checks, answers, clock, {} if replayer.doubted is None else replayer.doubted.lies)


def attest(proof: Proof, options: Options, nonce: Nonce, clock: Clock) -> tuple[Attested, Verdict | None]:
    """Claim, signatures and times, before a state is read or anything runs; with the verdict where that is the end of it."""
    claimed = REGISTRATION.attest(proof, options)
    if claimed.status == "fail" and not options.runtime.keep_going:
        return Attested(), refused(claimed, nonce, clock)
    attested = _attested(proof, options, claimed)
    signed = ATTESTATION.attest(attested, options)
    refusal = refused(signed, nonce, clock) if signed.status == "fail" and not options.runtime.keep_going else None
    return attested, refusal


def surveyed(
    opened: ExitStack,
    proof: Proof,
    task: Task | TaskReference | None,
    parent: Path | None,
    options: Options,
    isolation: Isolation,
    nonce: Nonce,
    clock: Clock,
    progress: ProgressCallback,
    pool: MakePool | None = None,
) -> tuple[Survey, Replayer | None, Answers]:
    """Survey an opened proof, with the help of a worker where there is a task; the replayer is closed with ``opened``.

    parent: the proof whose final weights the run starts from. Raises FormatError or IntegrityError at the first fault.
    """
    answers = Answers()
    looking = replayer = None
    if task is not None:
        replayer = opened.enter_context(replaying.replayer(proof, task, options, isolation, parent, pool))
        progress("starting the replay worker", 0, 0)
        replayer.begin()
        answers.add(Describe(), replayer.ask(Describe()))
        clock.lap("start of the worker")
        replayer.ahead(drawn_early(len(proof.segments), proof.root, nonce, options.draw))
        looking = Looking(
            replayer,
            answers.get(Describe(), Described),
            survey_seed(proof.root, nonce),
            _other(replayer, nonce, answers),
        )
    found = survey(
        proof, looking,
        lambda done, total: progress("reading the proof", done, total),
        lambda done, total: progress("looking at what the states compute", done, total),
        processes=options.runtime.workers,
    )  # fmt: skip
    clock.lap("survey")
    return found, replayer, answers


def _attested(proof: Proof, options: Options, claimed: CheckResult) -> Attested:
    """Who signed, and when; a proof without signatures costs no library for them."""
    if not proof.attestations:
        return Attested(unregistered="nobody signed or stamped its claim")
    from proof_of_learning.attestation.gathering import gather
    from proof_of_learning.attestation.timestamps import Authorities

    found = gather(proof, options.claims.authorities or Authorities(), options.claims.revoked)
    if claimed.status == "fail":
        found = replace(found, registered=False, unregistered="its claim does not hold", anchored=frozenset())
    return found


def _differences(proof: Proof, replayer: Replayer, needed: set[str]) -> dict[str, list[str]]:
    """By recorded environment, what is not reproduced here; workers are started for those that are needed."""
    named = dict.fromkeys(segment.environment for segment in proof.segments)
    return {environment: replayer.differences(environment, start=environment in needed) for environment in named}


def _other(replayer: Replayer, nonce: Nonce, answers: Answers) -> Callable[[int], State | None]:
    """Makes the initial state under another key, which follows from the nonce; several, by number."""

    def make(number: int) -> State | None:
        request = second_start(nonce, number)
        try:
            answers.add(request, replayer.ask(request))
        except PolError:
            return None  # the check of the initialization will ask again, and say why
        return replayer.other_start

    return make


def check(path: str | os.PathLike[str], progress: ProgressCallback = silent) -> CheckResult:
    """Structure and digests only: no task, no replay. Raises FormatError where the proof cannot be read."""
    try:
        with remote.local(path, lambda done, total: progress("copying the proof", done, total)) as here:
            proof = Proof.open(here)
            found = survey(proof, None, lambda done, total: progress("reading the proof", done, total))
    except IntegrityError as error:
        return result(STRUCTURE, "fail", str(error))
    empty = Challenge({}, Guarantee(), Nonce(value="", origin="drawn"))
    return STRUCTURE.judge(Evidence(proof, found, empty, Options()), Answers())
