"""Asking: the requests of one check go to the replayer, their answers come back as they may, and count in the plan's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from proof_of_learning.progress import ProgressCallback
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import AnyCheckAnswer, AnyCheckRequest, Replay, Replayed
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.verifier.checks import ATTESTATION, REGISTRATION, STRUCTURE
from proof_of_learning.verifier.evidence import Answers, Check, Evidence
from proof_of_learning.verifier.verdict import CheckResult
from proof_of_learning.verifier.walks import other_settings, otherwise_called

# Checks that hold the proof against the task as it was named.
SAID = ("task", "data", "initialization", "order", "hyperparameters")


@runtime_checkable
class Decisive(Protocol):
    """A check that a single answer may decide: ``proves`` says that it does, and that the check fails by it."""

    def proves(self, evidence: Evidence, request: AnyCheckRequest, answer: AnyCheckAnswer) -> bool: ...


def ask(
    replayer: Replayer,
    check: Check,
    evidence: Evidence,
    requests: Sequence[AnyCheckRequest],
    answers: Answers,
    progress: ProgressCallback,
) -> bool:
    """Add the answers that are not known yet, up to the first that proves a forgery (all of them, if asked to keep going).

    The first is the first in the plan's order, whichever arrived first; those behind it are dropped, so that a verdict does not depend
    on who was fast. Returns whether there is one, so that nothing more need be asked.
    """
    new = replayer.grouped([request for request in requests if request not in answers])
    decisive = check if isinstance(check, Decisive) and not evidence.options.runtime.keep_going else None
    if decisive is not None and otherwise_called(evidence.proof, answers.get(Describe(), Described)):
        decisive = None  # what fails by that is no forgery
    doing, done, last, complete, proven = f"checking {check.name}", 0, len(new) - 1, 0, False
    arrived: dict[int, AnyCheckAnswer] = {}

    def on_work(steps: int, total: int) -> None:
        if total and len(new) == 1:
            progress(doing, steps, total)
        else:
            progress(doing, done, len(new))

    if new:
        progress(doing, 0, len(new))
    stream = replayer.answers(new, on_work)
    for position, answer in stream:
        arrived[position] = answer
        done += 1
        if position <= last and decisive is not None and decisive.proves(evidence, new[position], answer):
            last, proven = position, True
            stream.until(last)
        while complete in arrived:
            complete += 1
        progress(f"{doing}, 1 forgery" if proven else doing, done, len(new))
        if complete > last:
            break
    for place in range(last + 1):
        answers.add(new[place], arrived[place])
    return proven


def renew(replayer: Replayer, answers: Answers) -> bool:
    """Ask again where a worker had a part that was found out since, for this check or an earlier one; whether there was such."""
    doubted, found = replayer.doubted, False
    if doubted is None:
        return False
    while again := [
        r
        for r in answers.requests(Replay)
        if not answers.failure(r) and doubted.doubts(answers.get(r, Replayed).workers)
    ]:
        for position, answer in replayer.answers(again):
            answers.add(again[position], answer)
        found = True
    return found


def excused(
    proof: Proof, found: CheckResult, answers: Answers, task: Task | TaskReference | None, before: Sequence[CheckResult]
) -> CheckResult:
    """A check's result; where the verifier called the script with other arguments or files, what fails by that is no forgery.

    Nor is what a task of other settings says of itself, or what a replay finds after that (``before``: the checks so far).
    """
    if found.status != "fail" or found.name in (STRUCTURE.name, REGISTRATION.name, ATTESTATION.name):
        return found
    other = otherwise_called(proof, answers.get(Describe(), Described))
    if not other and (found.name in SAID or any(done.mistaken for done in before)):
        other = other_settings(proof, task)
    if not other:
        return found
    return msgspec.structs.replace(found, status="inconclusive", summary=f"{other}; {found.summary}", mistaken=True)
