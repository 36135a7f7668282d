"""What checks work with: the proof, what the survey found, the challenge, and the worker's answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from proof_of_learning.attestation.attested import Attested
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Answer, Failed, Request
from proof_of_learning.replay.requests import AnyCheckRequest
from proof_of_learning.replay.sandbox import Isolation
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.plan import Challenge
from proof_of_learning.verifier.survey import Survey
from proof_of_learning.verifier.verdict import Chain, CheckResult, Status

A = TypeVar("A", bound=Answer)
REJECTED = ("FormatError", "IntegrityError")  # failures of a replay or an evaluation that the proof is to blame for
R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Disclosed:
    """What an opening shows of data that stay with their owner: ``samples`` under the data root. ``named``: the root that the verifier
    expects; None where they name none."""

    samples: int
    named: str | None


@dataclass(frozen=True)
class Evidence:
    """Everything a check may look at. ``differences``: by environment digest, what could not be reproduced.

    ``isolation``: how the task's code was kept apart; None where none was run. ``attested``: who signed, and when.
    ``disclosed``: of an opening, whose data the verifier does not have.
    """

    proof: Proof
    survey: Survey
    challenge: Challenge
    options: Options
    chain: Chain | None = None
    differences: Mapping[str, list[str]] = field(default_factory=dict)
    isolation: Isolation | None = None
    attested: Attested = field(default_factory=Attested)
    disclosed: Disclosed | None = None

    def unreproduced(self, index: int) -> list[str]:
        """What of the environment of segment ``index`` is not reproduced here."""
        return self.differences.get(self.proof.segments[index].environment, [])

    def calibrates(self, index: int) -> bool:
        """Whether segment ``index`` may be compared within calibrated noise: allowed, and its environment not reproduced."""
        return self.options.comparison.allow_calibrated and bool(self.unreproduced(index))


class Answers:
    """Answers by request; asking for one of the wrong type is a mistake of the check."""

    def __init__(self) -> None:
        self._given: dict[Request, Answer] = {}

    def __contains__(self, request: Request) -> bool:
        return request in self._given

    def add(self, request: Request, answer: Answer) -> None:
        self._given[request] = answer

    def get(self, request: Request, type_: type[A]) -> A:
        answer = self._given[request]
        assert isinstance(answer, type_), (request, answer)
        return answer

    def requests(self, type_: type[R]) -> list[R]:
        """The requests of one type that were answered."""
        return [request for request in self._given if isinstance(request, type_)]

    def failure(self, request: Request) -> Failed | None:
        answer = self._given.get(request)
        return answer if isinstance(answer, Failed) else None


# Batches of requests; a generator sees the answers to one batch before it makes the next.
Plan = Iterable[Sequence[AnyCheckRequest]]


class Check(Protocol):
    """One check: what it asks of the worker, and what it makes of the answers.

    ``meaning`` and ``limits`` are for people: what a pass shows, and what it cannot show.
    """

    name: str
    meaning: str
    limits: str

    def plan(self, evidence: Evidence, answers: Answers) -> Plan: ...
    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult: ...


def result(check: Check, status: Status, summary: str, /, *, mandatory: bool = True, **evidence: Any) -> CheckResult:
    """A CheckResult in the name of ``check``."""
    return CheckResult(
        name=check.name, status=status, summary=summary, evidence=evidence, mandatory=mandatory,
        meaning=check.meaning, limits=check.limits,
    )  # fmt: skip
