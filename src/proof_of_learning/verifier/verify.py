"""``verify``: the order of checks is fixed here, and nowhere else.

Structure first, without a line of the task's code; then the challenge is drawn; then each check asks the replay worker what
it needs and judges the answers, cheapest first, stopping at the first failure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from proof_of_learning import memory, sources
from proof_of_learning import registration as registrations
from proof_of_learning.errors import IntegrityError, PolError, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import remote
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import sandbox as sandboxes
from proof_of_learning.replay.process import DEFAULT_TIMEOUT
from proof_of_learning.replay.protocol import CommitData, Committed, Describe, Described, Failed
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import AnyCheckRequest, Evaluate, Noise, Replay, Replayed
from proof_of_learning.task import Setting, Task, TaskReference
from proof_of_learning.verifier.calibrated import CAP
from proof_of_learning.verifier.chain import Link, assurance, follow, open_links, parent_of
from proof_of_learning.verifier.checks import CHECKS, STRUCTURE
from proof_of_learning.verifier.checks.performance import chosen, performance
from proof_of_learning.verifier.checks.trajectory import segment_results
from proof_of_learning.verifier.evidence import Answers, Evidence, Options, result
from proof_of_learning.verifier.initialization.named import named_laws
from proof_of_learning.verifier.plan import Challenge, challenge, make_nonce, planned_steps
from proof_of_learning.verifier.policy import Policy, load_policy
from proof_of_learning.verifier.strays import Strays
from proof_of_learning.verifier.survey import Survey, survey
from proof_of_learning.verifier.verdict import (
    CheckResult,
    Conditions,
    Cost,
    Guarantee,
    Nonce,
    PerformancePoint,
    ProofSummary,
    Thresholds,
    Trajectory,
    Verdict,
    decide,
)

SKIPPED = "not run: an earlier check failed"
NO_TASK = "not run: no task was named, so nothing of the proof's was executed"


def verify(
    path: str | os.PathLike[str],
    task: Task | TaskReference | str | None = None,
    *,
    settings: Mapping[str, Setting] | None = None,
    top_q: int = 1,
    random: int | None = None,
    everything: bool = False,
    nonce: str | None = None,
    accept_nonce: bool = False,
    accept_order: bool = False,
    allow_calibrated: bool = False,
    require: str | None = None,
    registration: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    approve_fixed: Iterable[str] = (),
    laws: Iterable[str] = (),
    chain: Iterable[tuple[str | os.PathLike[str], Task | TaskReference | str | None]] = (),
    trust: Iterable[str] = (),
    reproduce: bool = True,
    keep_going: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    policy: Policy | str | os.PathLike[str] | None = None,
    sandbox: str = "auto",
    allow_read: Iterable[str | os.PathLike[str]] = (),
    progress: ProgressCallback = silent,
) -> Verdict:
    """Verify the proof at ``path`` (a directory, or an address such as ``s3://…``) against the task that the caller names.

    task: a reference (``path.py:function``), which is loaded in a replay worker only, or a Task, replayed in this process.
    top_q: segments replayed per epoch (or 5 % of the run) for the largest displacement, and as many for the largest inertia.
    random: number of random segments, half uniform, half by progress; by default as many as give both guarantees 10 % / 1 %.
    everything: replay every segment. nonce: hex; by default 32 bytes drawn now. model: a safetensors file the proof must end in.
    accept_nonce: a proof may be valid although the nonce was handed in. accept_order: although a recorded order is no permutation
    of the data in every epoch (weighted sampling, say).
    registration: the ``claim.json`` under which the proof must have been made.
    chain: the proofs behind a run that starts from another one, each with its task, verified with the same segments to choose
    (top_q, random, everything) and bit for bit; the policy is about this proof alone. trust: roots that need no verification.
    reproduce: replay in the recorded numeric environment; False replays in this process's own, as another machine would.
    require: ``"exact"`` accepts nothing but bit-exact replay. keep_going: run all checks even after a failure.
    timeout: seconds without a sign of life after which a hanging task is given up.
    policy: rules that proof and verification must satisfy, or the file that holds them (see :mod:`verifier.policy`).
    sandbox: ``"auto"`` confines the task's code where bubblewrap works and warns elsewhere, ``"require"`` raises UsageError
    there, ``"off"`` confines nothing. allow_read: further files and folders that confined code may read.

    Returns a Verdict. Raises FormatError or UsageError for what cannot be read, TaskError where the task's code fails.
    """
    if require not in (None, "exact"):
        raise UsageError(f"--require takes 'exact', not {require!r}")
    if top_q < 0 or (random is not None and random < 0):
        raise UsageError("the numbers of segments to replay cannot be negative")
    if isinstance(task, str):
        task = TaskReference(task, dict(settings or {}))
    in_process = isinstance(task, Task) and task.reference is None
    isolation = sandboxes.isolation(sandbox, allow_read := tuple(allow_read), in_process=in_process)
    rules = policy if policy is None or isinstance(policy, Policy) else load_policy(policy)
    options = Options(
        model=None if model is None else Path(model),
        registration=None if registration is None else registrations.load(registration),
        accept_nonce=accept_nonce or (rules is not None and rules.trust.chosen_nonce),
        accept_order=accept_order or (rules is not None and rules.training.free_order),
        allow_calibrated=allow_calibrated,
        require_exact=require == "exact" or (rules is not None and rules.trust.exact),
        approve_fixed=(*approve_fixed, *(rules.initialization.approved_fixed if rules else ())),
        laws=_named(laws, rules),
        policy=rules,
    )
    clock, drawn, links, trusted = _Clock(), make_nonce(nonce), open_links(chain), tuple(trust)
    with ExitStack() as opened:
        try:
            here = remote.local(path, lambda done, total: progress("copying the proof", done, total))
            proof = Proof.open(opened.enter_context(here))
            clock.lap("open")
            start = parent_of(proof, links)
            replayer = None
            if task is not None:
                folder = None if start is None else start.path
                replayer = opened.enter_context(Replayer(proof, task, timeout, folder, isolation.sandbox, reproduce))
                replayer.begin()
            found = survey(proof, lambda done, total: progress("reading the proof", done, total))
        except IntegrityError as error:
            return _broken(str(error), drawn, clock)
        memory.trim()
        clock.lap("survey")
        drawn = drawn if nonce is not None else make_nonce(None)  # drawn when the root is known
        picked = challenge(proof.header, proof.root, found, drawn, top_q=top_q, random=random, everything=everything)
        if replayer is None:
            evidence = Evidence(proof, found, picked, options)
            checks = [STRUCTURE.judge(evidence, Answers())]
            checks += [result(check, "skipped", NO_TASK) for check in CHECKS[1:]]
            return _verdict(evidence, checks, Answers(), clock)
        if rules is not None:
            rules.afford(planned_steps(proof, picked.segments), proof.header.training.steps)

        def verify_link(link: Link, rest: Sequence[Link]) -> Verdict:
            remaining = [(other.path, other.task) for other in rest]
            return verify(
                link.path, link.task, top_q=top_q, random=random, everything=everything, chain=remaining, trust=trusted,
                timeout=timeout, sandbox=sandbox, allow_read=allow_read, progress=progress,
            )  # fmt: skip

        behind = follow(proof, links, trusted, verify_link)
        differences: dict[str, list[str]] = {}
        evidence = Evidence(proof, found, picked, options, behind, differences, isolation)
        needed = {proof.segments[index].environment for index in (*picked.segments, *chosen(evidence))}
        for environment in {segment.environment: None for segment in proof.segments}:
            progress("starting the replay worker", 0, 0)
            differences[environment] = replayer.differences(environment, start=environment in needed)
        clock.lap("start of replayer")
        answers, checks = Answers(), list[CheckResult]()
        for check in CHECKS:
            if not keep_going and any(done.status == "fail" for done in checks):
                checks.append(result(check, "skipped", SKIPPED))
                continue
            for requests in check.plan(evidence, answers):
                _ask(replayer, requests, answers, check.name, progress)
                for environment in differences.keys() - needed:  # what had to be started after all is known better now
                    differences[environment] = replayer.differences(environment, start=False)
            checks.append(check.judge(evidence, answers))
            clock.lap(check.name)
        return _verdict(evidence, checks, answers, clock)


def check(path: str | os.PathLike[str], progress: ProgressCallback = silent) -> CheckResult:
    """Structure and digests only: no task, no replay. Raises FormatError where the proof cannot be read."""
    try:
        with remote.local(path, lambda done, total: progress("copying the proof", done, total)) as here:
            proof = Proof.open(here)
            found = survey(proof, lambda done, total: progress("reading the proof", done, total))
    except IntegrityError as error:
        return result(STRUCTURE, "fail", str(error))
    empty = Challenge({}, Guarantee(), Nonce(value="", origin="drawn"))
    return STRUCTURE.judge(Evidence(proof, found, empty, Options()), Answers())


def _named(laws: Iterable[str], rules: Policy | None) -> tuple[str, ...]:
    """The laws that the caller and a policy name; UsageError for what is none."""
    given = (*([laws] if isinstance(laws, str) else laws), *(rules.initialization.laws if rules else ()))
    named_laws(given)
    return given


def _ask(
    replayer: Replayer, requests: Sequence[AnyCheckRequest], answers: Answers, name: str, progress: ProgressCallback
) -> None:
    """Get the answers that are not known yet; what a replay could not carry out is an answer too, so that there is a verdict."""
    new = replayer.grouped([request for request in requests if request not in answers])
    for position, request in enumerate(new):
        progress(f"checking {name}", position, len(new))

        def on_work(done: int, total: int, position: int = position) -> None:
            if total and len(new) == 1:
                progress(f"checking {name}", done, total)
            else:
                progress(f"checking {name}", position, len(new))

        try:
            answers.add(request, replayer.ask(request, on_work))
        except PolError as error:
            if not isinstance(request, (Replay, Noise, Evaluate)):
                raise
            answers.add(request, Failed(type(error).__name__, str(error)))
    if new:
        progress(f"checking {name}", len(new), len(new))


class _Clock:
    def __init__(self) -> None:
        self.begun = self._last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[name] = self.phases.get(name, 0.0) + now - self._last
        self._last = now


def _verdict(evidence: Evidence, checks: list[CheckResult], answers: Answers, clock: _Clock) -> Verdict:
    proof, found = evidence.proof, evidence.survey
    training, mode = proof.header.training, proof.header.randomness.mode
    strays = Strays(evidence, answers)
    segments = (
        segment_results(evidence, answers, strays)
        if any(c.name == "trajectory" and c.status != "skipped" for c in checks)
        else []
    )
    asked: list[Replay | Noise] = [*answers.requests(Replay), *answers.requests(Noise)]
    told = [answers.get(r, Replayed) for r in asked if answers.failure(r) is None]
    replayed, steps = sum(answer.steps for answer in told), sum(answer.step_seconds for answer in told)
    described = answers.get(Describe(), Described) if Describe() in answers else None
    named = None if described is None else described.digest
    made_of = None if described is None else sources.digest(described.digest, described.sources)
    accepted = () if evidence.options.policy is None else evidence.options.policy.accept.sources or ()
    data = answers.get(CommitData(), Committed).commitment.root if CommitData() in answers else None
    decision = decide(checks)
    # The largest that anything was held to: a segment may have limits of its own.
    rho = max((limits.rho for limits in (*strays.tolerances.values(), *strays.limits.values())), default=CAP)
    unreproduced = sorted({line for lines in evidence.differences.values() for line in lines})
    return Verdict(
        verdict=decision,
        assurance=assurance(proof, evidence.chain),
        randomness=mode,
        exactness="exact" if all(s.exact or s.status != "pass" for s in segments) else "calibrated",
        thresholds=Thresholds(rho=rho, d_ref=found.d_ref),
        conditions=Conditions(task=named, data=data, sources=made_of, sources_pinned=made_of in accepted),
        proof=ProofSummary(
            root=proof.root,
            steps=training.steps,
            segments=len(proof.segments),
            interval=training.interval,
            final_weights=proof.end.final_weights,
            task=proof.header.task.name,
            parameters=found.parameters,
            bytes=found.bytes,
        ),
        checks=checks,
        segments=segments,
        guarantee=evidence.challenge.guarantee if segments else Guarantee(),
        nonce=evidence.challenge.nonce,
        cost=Cost(
            steps_replayed=replayed,
            steps_total=training.steps,
            share=replayed / training.steps,
            seconds=time.perf_counter() - clock.begun,
            phases={**clock.phases, "replayed steps": steps},
        ),
        trajectory=_trajectory(found, performance(evidence, answers) if named else []),
        unreproduced=unreproduced,
        warnings=[] if evidence.isolation is None else evidence.isolation.warnings,
        chain=evidence.chain,
    )


def _trajectory(found: Survey, points: list[PerformancePoint]) -> Trajectory:
    return Trajectory(
        displacement=found.displacement.tolist(),
        weights=found.weights.tolist(),
        distance=found.distance[1:].tolist(),
        progress=found.progress_share(),
        loss=found.loss,
        performance=points,
    )


def _broken(message: str, nonce: Nonce, clock: _Clock) -> Verdict:
    """The verdict on a proof that contradicts itself."""
    checks = [result(STRUCTURE, "fail", message), *(result(check, "skipped", SKIPPED) for check in CHECKS[1:])]
    return Verdict(
        verdict="invalid",
        assurance="observed",
        randomness="recorded",
        exactness="exact",
        conditions=Conditions(),
        proof=ProofSummary(root="", steps=0, segments=0, interval=0, final_weights=""),
        checks=checks,
        segments=[],
        guarantee=Guarantee(),
        nonce=nonce,
        cost=Cost(steps_replayed=0, steps_total=0, share=0.0, seconds=time.perf_counter() - clock.begun),
    )
