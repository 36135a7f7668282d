"""The verdict, as a value. Terminal, JSON and HTML only render it."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from proof_of_learning._version import __version__
from proof_of_learning.replay.measure import Distance

SCHEMA = "pol/verdict/v1"

Status = Literal["pass", "fail", "inconclusive", "skipped"]
Assurance = Literal["registered", "seed-derived", "observed"]
Decision = Literal["valid", "invalid", "inconclusive"]
EXIT_STATUS: dict[Decision, int] = {"valid": 0, "invalid": 1, "inconclusive": 3}


NOT_RUN = "not run: "


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    pass


class CheckResult(_Value, frozen=True):
    """One check: what it found, the evidence, and a sentence each on what a pass means and what it cannot say.

    ``mandatory`` checks must pass for a proof to be valid. ``mistaken``: it is inconclusive since the verifier named something else
    than the proof was recorded with.
    """

    name: str
    status: Status
    summary: str
    evidence: dict[str, Any] = {}
    mandatory: bool = True
    meaning: str = ""
    limits: str = ""
    mistaken: bool = False


class SegmentResult(_Value, frozen=True):
    """One challenged segment (steps ``start`` up to ``stop``).

    ``why``: ``first``, ``last``; drawn: ``uniform``, ``progress``, ``trivial``; what sticks out: ``top-q``, ``inertia``,
    ``predecessor``, ``identity``, ``counter``, ``layout``, ``loss``, ``missing``; or ``all``.
    ``error`` is the distance of the replayed from the recorded full state; ``kinds`` the same by kind of state;
    ``normalised`` is it over d_ref, ``relative`` over ``displacement``, metric by metric (x/0 and other non-finite values
    are null in JSON). ``exact``: the same bits. ``limit_share``: in calibrated comparison, the largest error over its limit.
    """

    index: int
    start: int
    stop: int
    why: list[str]
    status: Status
    exact: bool = False
    error: Distance | None = None
    normalised: Distance | None = None
    relative: Distance | None = None
    displacement: Distance | None = None
    kinds: dict[str, Distance] = {}
    limit_share: float | None = None
    note: str = ""


class ProofSummary(_Value, frozen=True):
    """``planned``: how many steps were to be taken, None where nobody knew. ``program``, ``arguments`` and ``settings`` are what the
    prover says was run: part of the conditions, for a verifier replays with their own. ``arithmetic``: what steps are computed in,
    None where the proof was not read that far. ``ranks``: in how many processes that train together."""

    root: str
    steps: int
    segments: int
    interval: int
    final_weights: str
    task: str = ""
    parameters: int = 0
    bytes: int = 0
    planned: int | None = None
    program: str | None = None
    arguments: list[str] = []
    settings: dict[str, str | int | float | bool | None] = {}
    arithmetic: str | None = None
    ranks: int = 1


class Conditions(_Value, frozen=True):
    """The task and the data root that the verifier named; the verdict holds for these. None where not named.

    ``task``: digest of the description; ``sources``: of description and sources, None where those are not available in full.
    ``sources_pinned``: whether a policy named these sources beforehand.
    """

    task: str | None = None
    data: str | None = None
    sources: str | None = None
    sources_pinned: bool = False


class Thresholds(_Value, frozen=True):
    delta: float = 0.01
    rho: float = 0.01
    d_ref: Distance | None = None


class Guarantee(_Value, frozen=True):
    """What a forgery may be and still escape the draws with more than the given probability; each by itself, None if not computed.

    forged_fraction: of the non-trivial segments. progress_fraction: of the weights' progress, the mean over groups of tensors.
    function_fraction: of the function's. group_fraction: of a single group of tensors. excursion_fraction: of going away and of
    coming back, in function and in weights.
    """

    forged_fraction: float | None = None
    miss_probability: float = 0.01
    progress_fraction: float | None = None
    progress_miss_probability: float = 0.01
    function_fraction: float | None = None
    function_miss_probability: float = 0.01
    group_fraction: float | None = None
    excursion_fraction: float | None = None
    uniform_draws: int = 0
    progress_draws: int = 0

    @property
    def missing(self) -> list[str]:
        """The guarantees that could not be computed."""
        kinds = {
            "segments": self.forged_fraction,
            "weights": self.progress_fraction,
            "function": self.function_fraction,
        }
        return [name for name, fraction in kinds.items() if fraction is None]


class Round(_Value, frozen=True):
    """A round of public randomness: of which network (its hash), and when it was out."""

    chain: str
    round: int
    moment: str


class Nonce(_Value, frozen=True, omit_defaults=True):
    """What the draws follow from: ``drawn`` by the verifier, public (``beacon``) after the root was stamped, or handed in.

    ``round``: that of the beacon. ``why``: why a round counts for no more than a nonce that was handed in.
    """

    value: str
    origin: Literal["drawn", "self-chosen", "beacon"]
    round: Round | None = None
    why: str = ""


class WorkerShare(_Value, frozen=True):
    """What one worker did: the segments whose steps it took, how many, and the seconds that they took it.

    Of a segment that several had a part in, each is named; the steps are the last one's. ``lied``: segments that it answered otherwise
    than the verifier's own machine; nothing that it says counts.
    """

    name: str
    segments: list[int]
    steps: int
    seconds: float
    lied: list[int] = []


class Cost(_Value, frozen=True):
    """``seconds`` of wall time: all of it, and by phase. ``workers``: which of them took which steps.

    Where nobody vouches for the workers, ``own_share`` of the challenged segments were replayed on the verifier's own machine; if
    the others hold the proof and collude with the prover, what the guarantees speak of is missed with ``colluding_miss``.
    """

    steps_replayed: int
    steps_total: int
    share: float
    seconds: float
    phases: dict[str, float] = {}
    workers: list[WorkerShare] = []
    own_share: float | None = None
    colluding_miss: float | None = None


class Signer(_Value, frozen=True):
    """A key that signed statements of the kinds ``signed`` about this proof. ``owner``: the claim names it, or one that it replaces;
    ``trusted``: the verifier does. Who is neither is a witness. ``replaces``: keys in whose place the claim's recovery key put it."""

    key: str
    owner: bool
    trusted: bool
    signed: list[str]
    replaces: list[str] = []


class Moment(_Value, frozen=True):
    """A timestamp on a statement about ``what`` (``claim``, ``head``, ``seal``), between ``earliest`` and ``latest`` (RFC 3339, UTC).

    file: the token; stamps: the statement. trusted: whether an authority that the verifier named vouches for it; what is not counts
    for nothing. shows, limits: what follows from it, and what does not, or why it counts for nothing.
    """

    what: str
    file: str
    stamps: str
    authority: str
    trusted: bool
    earliest: str
    latest: str
    shows: str
    limits: str


class Stretch(_Value, frozen=True):
    """Steps ``start`` to ``stop`` had been taken by a moment between ``earliest`` and ``latest`` (RFC 3339, UTC; null: nothing dates
    them), as log heads and the seal show. ``stamps``: how many timestamps fall into it; bunched ones count as one, the last.

    segments: how many it has that do work. drawn: how many of them were drawn uniformly. forged_fraction: the largest share of them
    whose forgery the draws miss with a probability of more than 1 %; null where nothing was replayed.
    """

    start: int
    stop: int
    earliest: str | None
    latest: str | None
    stamps: int
    segments: int
    drawn: int
    forged_fraction: float | None


class ChainLink(_Value, frozen=True):
    """One proof of a chain of trust. ``signer``: who signed it (none yet). ``probability``: that its verdict is right, as drawn."""

    root: str
    verdict: Decision
    reason: str
    assurance: Assurance = "observed"
    task: str | None = None
    signer: str | None = None
    trusted: bool = False
    probability: float = 1.0


class Chain(_Value, frozen=True):
    """The proofs behind this one, nearest first."""

    links: list[ChainLink]

    @property
    def product(self) -> float:
        """The paper's figure: the links' probabilities multiplied (section VIII)."""
        return math.prod(link.probability for link in self.links)


class PerformancePoint(_Value, frozen=True):
    """Evaluation after ``step`` steps: as ``claimed`` in the proof, and as ``found`` here."""

    step: int
    claimed: dict[str, float]
    found: dict[str, float] | None = None


class Trajectory(_Value, frozen=True):
    """What the plots show: one value per segment (at most; ``loss`` is sampled), from the proof as recomputed by the verifier.

    displacement: l2 of the full state; weights: l2 of the parameters; distance: of the weights from the start, at each
    segment's end; progress: cumulative share of the way to the final weights (may be negative); loss: [step, loss] pairs as
    recorded; performance: the evaluations that were repeated; function: [step, distance] of the states that were evaluated, the
    distance of their outputs from the final ones (0 to 1).
    """

    displacement: list[float] = []
    weights: list[float] = []
    distance: list[float] = []
    progress: list[float] = []
    loss: list[tuple[int, float]] = []
    performance: list[PerformancePoint] = []
    function: list[tuple[int, float]] = []


class Verdict(_Value, frozen=True):
    """The outcome of a verification (JSON schema ``pol/verdict/v1``). ``exit_status``: 0 valid, 1 invalid, 3 inconclusive.

    ``warnings``: what the verifier should know about the verification itself; they change no verdict. ``claim``: its digest, by the
    header. ``policy``: digest of the verifier's. ``signers``, ``timeline``: who stands for the proof, and by when what was there;
    ``stretches``: by when the run had come how far, where log heads were stamped.
    ``rules``: the version of this package, whose rules were applied.
    """

    verdict: Decision
    assurance: Assurance
    randomness: Literal["derived", "recorded"]
    exactness: Literal["exact", "calibrated"]
    conditions: Conditions
    proof: ProofSummary
    checks: list[CheckResult]
    segments: list[SegmentResult]
    guarantee: Guarantee
    nonce: Nonce
    cost: Cost
    thresholds: Thresholds = Thresholds()
    trajectory: Trajectory = Trajectory()
    unreproduced: list[str] = []
    warnings: list[str] = []
    chain: Chain | None = None
    claim: str | None = None
    policy: str | None = None
    signers: list[Signer] = []
    timeline: list[Moment] = []
    stretches: list[Stretch] = []
    rules: str = __version__
    schema: str = SCHEMA

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.verdict]

    @property
    def reason(self) -> str:
        """The sentence that decided: of the first failure, else of the first mandatory check that did not pass."""
        for check in self.checks:
            if check.status == "fail":
                return f"{check.name}: {check.summary}"
        for check in self.checks:
            if check.mandatory and check.status != "pass":
                # What no check could be run for is no affair of the first one alone.
                told = check.summary.removeprefix(NOT_RUN)
                return told if told != check.summary else f"{check.name}: {check.summary}"
        return "every mandatory check passed"

    def check(self, name: str) -> CheckResult:
        """The check of that name; KeyError if it was not part of the verification."""
        for result in self.checks:
            if result.name == name:
                return result
        raise KeyError(name)

    def to_json(self) -> bytes:
        """Indented JSON; non-finite numbers are null."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    @classmethod
    def from_json(cls, raw: bytes | str) -> Verdict:
        """The inverse of :meth:`to_json`; where a number is null that has to be one, it was none (NaN)."""
        return msgspec.convert(_with_numbers(msgspec.json.decode(raw)), type=cls)


_DISTANCE = frozenset(Distance.__struct_fields__)
_CURVES = frozenset({"displacement", "weights", "distance", "progress", "loss", "function"})


def _with_numbers(value: Any, key: str = "") -> Any:
    """A decoded verdict with NaN in the place of null, in distances and in the curves of the trajectory."""
    if isinstance(value, dict):
        if value.keys() == _DISTANCE:
            return {name: math.nan if item is None else item for name, item in value.items()}
        if key == "trajectory":
            return {name: _curve(item) if name in _CURVES else item for name, item in value.items()}
        return {name: item if name == "evidence" else _with_numbers(item, name) for name, item in value.items()}
    return [_with_numbers(item) for item in value] if isinstance(value, list) else value


def _curve(value: Any) -> Any:
    return [_curve(item) for item in value] if isinstance(value, list) else math.nan if value is None else value


def decide(checks: list[CheckResult]) -> Decision:
    """Any failure is invalid; valid needs every mandatory check to pass."""
    if any(check.status == "fail" for check in checks):
        return "invalid"
    passed = bool(checks) and all(check.status == "pass" for check in checks if check.mandatory)
    return "valid" if passed else "inconclusive"
