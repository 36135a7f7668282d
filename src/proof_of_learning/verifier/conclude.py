"""The verdict, put together from what the checks found."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from proof_of_learning import sources
from proof_of_learning.registration import owners
from proof_of_learning.replay.doubt import HERE
from proof_of_learning.replay.protocol import CommitData, Committed, Describe, Described
from proof_of_learning.replay.requests import Noise, Replay, Replayed
from proof_of_learning.verifier.calibrated import CAP
from proof_of_learning.verifier.chain import assurance
from proof_of_learning.verifier.checks import CHECKS, STRUCTURE
from proof_of_learning.verifier.checks.attestation import signers, stretches, timeline
from proof_of_learning.verifier.checks.performance import performance
from proof_of_learning.verifier.checks.trajectory import segment_results
from proof_of_learning.verifier.evidence import Answers, Evidence, result
from proof_of_learning.verifier.strays import Strays
from proof_of_learning.verifier.verdict import (
    NOT_RUN,
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
    WorkerShare,
    decide,
)

log = logging.getLogger(__name__)

SKIPPED = f"{NOT_RUN}an earlier check failed"
NO_TASK = f"{NOT_RUN}no task was named, so nothing of the proof's was executed"


class Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.begun = self._last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[name] = self.phases.get(name, 0.0) + now - self._last
        log.debug("%s took %.3f s", name, now - self._last)
        self._last = now


def conclude(
    evidence: Evidence,
    checks: list[CheckResult],
    answers: Answers,
    clock: Clock,
    lies: Mapping[str, Sequence[int]] | None = None,
) -> Verdict:
    """The verdict on a proof that was opened and surveyed. ``lies``: by worker, the first steps of what it answered falsely."""
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
    policy = evidence.options.claims.policy
    accepted = () if policy is None else policy.accept.sources or ()
    data = answers.get(CommitData(), Committed).commitment.root if CommitData() in answers else None
    if evidence.disclosed is not None:
        data = evidence.disclosed.named
    false = {name: [step // training.interval for step in found_out] for name, found_out in (lies or {}).items()}
    workers = _shares({r: answers.get(r, Replayed) for r in asked if not answers.failure(r)}, false)
    own_share, colluding_miss = own_replays(evidence, workers)
    # The largest that anything was held to: a segment may have limits of its own.
    rho = max((limits.rho for limits in (*strays.tolerances.values(), *strays.limits.values())), default=CAP)
    return Verdict(
        verdict=decide(checks),
        assurance=assurance(proof, evidence.chain, registered=evidence.attested.registered),
        randomness=mode,
        exactness="exact" if all(s.exact or s.status != "pass" for s in segments) else "calibrated",
        thresholds=Thresholds(rho=rho, d_ref=found.d_ref),
        conditions=Conditions(task=named, data=data, sources=made_of, sources_pinned=made_of in accepted),
        proof=ProofSummary(
            root=proof.root,
            steps=proof.steps,
            segments=len(proof.segments),
            interval=training.interval,
            final_weights=proof.end.final_weights,
            task=proof.header.task.name,
            parameters=found.parameters,
            bytes=found.bytes,
            planned=training.planned,
            program=proof.header.program.reference,
            arguments=proof.header.program.arguments,
            settings=proof.header.program.settings,
            arithmetic=proof.header.arithmetic,
            ranks=proof.header.ranks,
        ),
        checks=checks,
        segments=segments,
        guarantee=evidence.challenge.guarantee if segments else Guarantee(),
        nonce=evidence.challenge.nonce,
        cost=Cost(
            steps_replayed=replayed,
            steps_total=proof.steps,
            share=replayed / proof.steps,
            seconds=time.perf_counter() - clock.begun,
            phases={**clock.phases, "replayed steps": steps},
            workers=workers,
            own_share=own_share,
            colluding_miss=colluding_miss,
        ),
        trajectory=_trajectory(evidence, performance(evidence, answers) if named else []),
        unreproduced=sorted({line for lines in evidence.differences.values() for line in lines}),
        warnings=[*([] if evidence.isolation is None else evidence.isolation.warnings), *_found_out(false)],
        chain=evidence.chain,
        claim=proof.header.randomness.claim,
        policy=None if policy is None else policy.digest or None,
        signers=signers(evidence.attested, evidence.options.claims.trusted_keys, owners(proof.header)),
        timeline=timeline(evidence.attested, proof.header.randomness.anchor),
        stretches=stretches(evidence, replayed=bool(segments)),
    )


def own_replays(evidence: Evidence, workers: list[WorkerShare]) -> tuple[float | None, float | None]:
    """Where outside workers replayed: the share of the challenge that was replayed here, and what is missed if they all collude.

    A forgery may be one segment, so that it is the share and not the number of segments that counts.
    """
    share, challenged = evidence.options.runtime.double_check, evidence.challenge.segments
    if share is None:
        return None, None
    here = {index for worker in workers if worker.name == HERE for index in worker.segments} & challenged.keys()
    all_of_it = len(challenged) == len(evidence.proof.segments)  # no draw could miss anything
    drawn = 1.0 if all_of_it else 1 - evidence.challenge.guarantee.miss_probability
    own = len(here) / len(challenged) if challenged else 0.0
    return own, 1 - (1.0 if own == 1 else share) * drawn  # to whom nothing was left, they could pass nothing


def _found_out(false: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        f"{name} answered falsely: replayed on {HERE}, segment {segments[0]} is another; nothing that it says was counted"
        for name, segments in false.items()
    ]


def _shares(told: Mapping[Replay | Noise, Replayed], false: Mapping[str, list[int]]) -> list[WorkerShare]:
    """Which worker took which steps, by name, and which answered falsely."""
    segments, steps, seconds = dict[str, dict[int, None]](), Counter[str](), dict[str, float]()
    for request, answer in told.items():
        for name in answer.workers:
            segments.setdefault(name, {})[request.index] = None
        for name in answer.workers[-1:]:
            steps[name] += answer.steps
            seconds[name] = seconds.get(name, 0.0) + answer.step_seconds
    return [
        WorkerShare(
            name=name,
            segments=list(segments.get(name, ())),
            steps=steps[name],
            seconds=seconds.get(name, 0.0),
            lied=sorted(false.get(name, ())),
        )
        for name in sorted({*segments, *false}, key=lambda name: (len(name), name))
    ]


def refused(found: CheckResult, nonce: Nonce, clock: Clock) -> Verdict:
    """The verdict on a proof that was refused before its states were read: it contradicts itself, or its claim."""
    position = next(number for number, check in enumerate(CHECKS) if check.name == found.name)
    passed = [result(check, "skipped", SKIPPED) for check in CHECKS[:position]]
    checks = [*passed, found, *(result(check, "skipped", SKIPPED) for check in CHECKS[position + 1 :])]
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


def broken(message: str) -> CheckResult:
    """What is said of a proof that contradicts itself."""
    return result(STRUCTURE, "fail", message)


def _trajectory(evidence: Evidence, points: list[PerformancePoint]) -> Trajectory:
    found, seen = evidence.survey, evidence.survey.function
    bounds = [0, *(segment.stop for segment in evidence.proof.segments)]
    places = () if seen is None else zip(seen.positions, seen.to_end.tolist(), strict=True)
    function = [(bounds[position], apart) for position, apart in places if math.isfinite(apart)]
    return Trajectory(
        displacement=found.displacement.tolist(),
        weights=found.weights.tolist(),
        distance=found.distance[1:].tolist(),
        progress=found.progress_share(),
        loss=found.loss,
        performance=points,
        function=function,
    )
