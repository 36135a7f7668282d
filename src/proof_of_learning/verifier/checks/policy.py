"""Policy: the proof and its verification satisfy the built-in defaults, and the rules that the verifier set beforehand.

The defaults hold with and without a policy. Each has an exception that the verifier must grant by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from proof_of_learning import sources
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.requests import AnyCheckRequest, Initialize, Initialized, Replay, Replayed
from proof_of_learning.state.state import added_rates
from proof_of_learning.verifier.chain import ASSURANCE, assurance
from proof_of_learning.verifier.checks.trajectory import TrajectoryCheck
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.initialization.start import second_start, trained_share
from proof_of_learning.verifier.policy import Policy
from proof_of_learning.verifier.verdict import CheckResult

TIMED = 2  # segments that are replayed to know what the others will cost


@dataclass(frozen=True)
class Rule:
    """One rule: what is expected, what was found. ``of_proof``: the proof breaks it, rather than this verification.

    ``remedy``: what the verifier can do where it is broken.
    """

    name: str
    expected: str
    found: str
    kept: bool
    of_proof: bool = True
    remedy: str = ""


class PolicyCheck:
    name = "policy"
    meaning = (
        "Proof and verification satisfy the built-in defaults, and every rule of the policy that the verifier gave."
    )
    limits = "A policy is the verifier's own choice; a proof that breaks one may still be true."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        policy = evidence.options.claims.policy
        if policy is None:
            return
        if policy.accept.sources is not None:
            yield [Describe()]
        if policy.training.min_trained_share is not None:
            yield [second_start(evidence.challenge.nonce)]
        if policy.cost.max_seconds is not None:
            yield _timed(evidence, answers)

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        policy, rules = evidence.options.claims.policy, list[Rule]()
        if policy is not None:
            if policy.cost.max_seconds is not None:
                _afford(policy, evidence, answers)
            rules = [
                *_accepted(policy, evidence, answers),
                *_training(policy, evidence, answers),
                *_strength(policy, evidence),
            ]
        defaults = list(_defaults(evidence))
        details: dict[str, Any] = {"defaults": _told(defaults)}
        if policy is not None:
            details |= {"policy": policy.name, "digest": policy.digest, "rules": _told(rules)}
        # What the proof breaks comes before what this verification cannot show.
        broken = sorted((rule for rule in (*rules, *defaults) if not rule.kept), key=lambda rule: not rule.of_proof)
        if not broken:
            kept = f"; the {len(rules)} rules of {policy.name} that apply are kept" if policy is not None else ""
            if policy is not None and policy.accept.tasks is not None and policy.accept.sources is None:
                kept += ", but accept.tasks is about descriptions: the task's sources were not pinned (accept.sources)"
            return result(self, "pass", f"the built-in defaults are kept{kept}", **details)
        first, more = broken[0], f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        where = policy.name if policy is not None and first in rules else "built-in default"
        remedy = f"; {first.remedy}" if first.remedy else ""
        return result(
            self, "fail" if first.of_proof else "inconclusive",
            f"{where}: {first.name}: expected {first.expected}, found {first.found}{more}{remedy}",
            broken=[rule.name for rule in broken], **details,
        )  # fmt: skip


def _told(rules: list[Rule]) -> dict[str, str]:
    return {rule.name: f"{rule.expected}; found {rule.found}" for rule in rules}


def _defaults(evidence: Evidence) -> Iterator[Rule]:
    """The rules that hold without a policy too, each unless its exception was granted."""
    if not evidence.options.claims.accept_nonce:
        nonce = evidence.challenge.nonce
        origins = {"drawn": "one that was drawn", "beacon": "one that was public only after the root was stamped"}
        yield Rule(
            "drawn_nonce", "a nonce that the verifier draws once the root is known",
            origins.get(nonce.origin) or (
                f"a public round that counts as handed in: {nonce.why}" if nonce.round is not None
                else "one that was handed in, which a prover who knew it could have sealed for again and again"
            ),
            kept=nonce.origin in origins, of_proof=False,
            remedy="name the round that counts (--beacon)" if nonce.round is not None
            else "leave out --nonce, or accept it (--accept-nonce; in a policy, trust.chosen_nonce = true)",
        )  # fmt: skip

    missing, thinned = evidence.challenge.guarantee.missing, evidence.survey.missing > 0
    if not evidence.options.claims.accept_uniform:
        yield Rule(
            "every_guarantee", "guarantees over segments, weights and function",
            f"none over {' and '.join(missing)} ({_why_missing(evidence)})" if missing else "all of them",
            kept=not missing, of_proof=False,
            remedy=("regenerate the missing states (`pol regenerate`), replay everything (--all), or " if thinned else "")
            + "accept uniform draws alone (--accept-uniform; in a policy, guarantee.uniform_only = true)",
        )  # fmt: skip


def _why_missing(evidence: Evidence) -> str:
    found = evidence.survey
    if found.missing:
        return f"{found.missing:,} states are not in the proof"
    return found.blind or found.restless or "nothing moved"


def _accepted(policy: Policy, evidence: Evidence, answers: Answers) -> Iterator[Rule]:
    header = evidence.proof.header
    for name, digests, found in (
        ("accept.tasks", policy.accept.tasks, header.task.digest),
        ("accept.data", policy.accept.data, header.data.root),
    ):
        if digests is not None:
            yield Rule(name, _one_of(digests), found, found in digests)
    if policy.accept.sources is not None:
        # Those of the task that is replayed here: what a proof says of its own, nobody can check.
        described = answers.get(Describe(), Described)
        own = sources.digest(described.digest, described.sources)
        yield Rule(
            "accept.sources", _one_of(policy.accept.sources), own or "sources that are not available in full",
            kept=own is not None and own in policy.accept.sources,
            of_proof=own is not None and own == sources.digest(header.task.digest, header.task.sources),
        )  # fmt: skip


def _one_of(digests: tuple[str, ...]) -> str:
    return digests[0] if len(digests) == 1 else f"one of {len(digests)} digests"


def _training(policy: Policy, evidence: Evidence, answers: Answers) -> Iterator[Rule]:
    rules, claimed = policy.training, evidence.proof.header.training
    if rules.min_interval is not None:
        yield _least("training.min_interval", rules.min_interval, claimed.interval)
    if rules.max_interval is not None:
        yield _most("training.max_interval", rules.max_interval, claimed.interval)
    if rules.max_steps is not None:
        yield _most("training.max_steps", rules.max_steps, evidence.proof.steps)
    if rules.min_learning_rate is not None or rules.max_learning_rate is not None:
        lowest, highest = _rates(evidence)
        if rules.min_learning_rate is not None:
            yield _least("training.min_learning_rate", rules.min_learning_rate, lowest)
        if rules.max_learning_rate is not None:
            yield _most("training.max_learning_rate", rules.max_learning_rate, highest)
    if rules.max_trivial_share is not None:
        yield _most("training.max_trivial_share", rules.max_trivial_share, float(evidence.survey.trivial.mean()))
    if rules.min_trained_share is not None:
        (request,) = answers.requests(Initialize)
        share = trained_share(answers.get(request, Initialized).tensors)
        yield _least("training.min_trained_share", rules.min_trained_share, share)


def _strength(policy: Policy, evidence: Evidence) -> Iterator[Rule]:
    """How much the verdict is worth. ``trust.exact`` is not here: the trajectory shows it."""
    if policy.trust.assurance is not None:
        found = assurance(evidence.proof, evidence.chain, registered=evidence.attested.registered)
        kept = ASSURANCE.index(found) >= ASSURANCE.index(policy.trust.assurance)
        yield Rule("trust.assurance", f"at least {policy.trust.assurance}", found, kept)
    if policy.trust.keys is not None:
        signed, needed = evidence.attested.counted(policy.trust.keys), policy.trust.threshold
        yield Rule("trust.keys", f"{needed} of {len(policy.trust.keys)} keys", f"{signed}", signed >= needed)
    given = evidence.challenge.guarantee
    for name, most, fraction in (
        ("guarantee.forged_fraction", policy.guarantee.forged_fraction, given.forged_fraction),
        ("guarantee.progress_fraction", policy.guarantee.progress_fraction, given.progress_fraction),
        ("guarantee.function_fraction", policy.guarantee.function_fraction, given.function_fraction),
    ):
        if most is not None:
            yield _most(name, most, fraction, of_proof=False)


def _least(name: str, least: float, found: float | None) -> Rule:
    return Rule(name, f"at least {least:,.6g}", _shown(found), found is not None and found >= least)


def _most(name: str, most: float, found: float | None, of_proof: bool = True) -> Rule:
    return Rule(name, f"at most {most:,.6g}", _shown(found), found is not None and found <= most, of_proof)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:,.6g}"


def _rates(evidence: Evidence) -> tuple[float | None, float | None]:
    """The lowest learning rate that is not 0, and the highest; also of groups that training added, whose rates states alone hold."""
    rates = [columns.rates[columns.rates != 0] for columns in evidence.proof.all_columns()]
    added = np.array([rate for raw in set(evidence.survey.settings) if raw is not None for rate in added_rates(raw)])
    rates.append(added[added != 0])
    lowest = min((float(found.min()) for found in rates if found.size), default=None)
    highest = max((float(np.abs(found).max()) for found in rates if found.size), default=0.0)
    return lowest, highest


def _timed(evidence: Evidence, answers: Answers) -> list[AnyCheckRequest]:
    return [*next(iter(TrajectoryCheck().plan(evidence, answers)), [])][:TIMED]


def _afford(policy: Policy, evidence: Evidence, answers: Answers) -> None:
    """Refuse to go on where the segments timed so far say that the others take too long."""
    lengths = {index: evidence.proof.segments[index] for index in evidence.challenge.segments}
    planned = sum(segment.stop - segment.start for segment in lengths.values())
    paces = [
        answers.get(request, Replayed).seconds / (lengths[request.index].stop - lengths[request.index].start)
        for request in _timed(evidence, answers)
        if isinstance(request, Replay) and answers.failure(request) is None
    ]
    if paces:
        policy.afford(planned, evidence.proof.steps, min(paces) * planned)
