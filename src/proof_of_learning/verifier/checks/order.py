"""Order: the run has the task's length, its key is accounted for, and the samples come in the order that belongs to it.

A derived order follows from the key. A recorded one is what the prover wrote down. A task has no sampler whose draws could be
repeated from a recorded generator (but for ``shuffle=False``, which allows one order alone), so a recorded order is held to
what every such sampler does that takes each sample once an epoch: it is nearly a permutation of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from proof_of_learning import canonical
from proof_of_learning.numeric.randomness import key_from_seed
from proof_of_learning.proof.format import Header
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.requests import Initialized, Replay, Replayed
from proof_of_learning.run.events import begins
from proof_of_learning.verifier.evidence import REJECTED, Answers, Evidence, Plan, result
from proof_of_learning.verifier.initialization.start import second_start
from proof_of_learning.verifier.verdict import CheckResult, Status
from proof_of_learning.verifier.walks import MAX_TURNS, Loop, turning

# Samplers that pad the last batch repeat a few samples, and a loop that was taken up again amid an epoch begins a new
# permutation there: no sample comes more than twice an epoch, and over a whole run such repeats are few.
MAX_REPEATED_SHARE = 0.01
MAX_USES = 2
SIGMAS = 6.0
REMEDY = "if the sampler is meant to do so, accept it (--accept-order; in a policy, training.free_order = true)"
SAME = "; every epoch visits the samples in the same order"
STOPPED = "if it may stop early, accept it (--accept-stopped; in a policy, training.stopped_early = true)"


class OrderCheck:
    name = "order"
    meaning = (
        "The run has as many steps as the task says, and which samples each step takes follows from the key "
        "(or was recorded, and takes each sample once an epoch)."
    )
    limits = "A recorded order was free for the prover to choose; a derived one follows from a seed that the prover may have picked."

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        yield [Describe()]
        if answers.get(Describe(), Described).script:
            turns = turning(evidence.proof)[:MAX_TURNS]
            yield [
                _replay(evidence, index)
                for index in sorted({*evidence.challenge.segments, *turns, _last(evidence).index})
            ]
            if _seen(evidence, answers, "twins"):
                yield [second_start(evidence.challenge.nonce)]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        described = answers.get(Describe(), Described)
        header = evidence.proof.header
        if (source := _source(header)) is None:
            return result(self, "fail", "the key does not follow from the seed, so the order was chosen freely")
        if described.script:
            return self._script(evidence, answers, described, source)
        training, randomness, steps = header.training, header.randomness, evidence.proof.steps
        planned = steps if training.planned is None else training.planned
        fits = steps <= planned == described.steps if training.planned is not None else steps <= described.steps
        if not fits or training.steps_per_epoch != described.steps_per_epoch:
            return result(
                self, "fail",
                f"the proof has {planned:,} steps ({training.steps_per_epoch:,} an epoch); "
                f"the task has {described.steps:,} ({described.steps_per_epoch:,})",
            )  # fmt: skip
        found = (
            result(self, "pass", f"{steps:,} steps, order derived from {source}", source=source)
            if randomness.mode == "derived"
            else self._recorded(evidence, described)
        )
        return self._stopped(evidence, described, found)

    def _stopped(self, evidence: Evidence, described: Described, found: CheckResult) -> CheckResult:
        """What is found where the run is as long as the task says; a shorter one needs the verifier's word."""
        steps, told = (
            evidence.proof.steps,
            {**found.evidence, "steps": evidence.proof.steps, "planned": described.steps},
        )
        if steps == described.steps or found.status != "pass":
            return found
        short = f"it stopped after {steps:,} of the {described.steps:,} steps that the task has"
        if evidence.options.claims.accept_stopped:
            return result(self, "pass", f"{found.summary}; {short}, which the verifier accepts", **told)
        return result(self, "inconclusive", f"{found.summary}, but {short}; {STOPPED}", **told)

    def _script(self, evidence: Evidence, answers: Answers, described: Described, source: str) -> CheckResult:
        """Length and order of a script's loop: it ends where the script closes its run, and every walk takes each sample once, or
        those that follow from the key: no batch of these is recorded, so that replays alone take them.
        """
        derived = evidence.proof.header.randomness.mode == "derived"
        request, steps = _last(evidence), evidence.proof.segments[-1].stop
        failure = answers.failure(request)
        if failure is not None:
            status: Status = "fail" if failure.error in REJECTED else "inconclusive"
            return result(
                self, status, f"whether the script ends after {steps:,} steps could not be seen: {failure.message}"
            )
        if not answers.get(request, Replayed).closed:
            return result(
                self, "inconclusive",
                f"the proof ends after {steps:,} steps, and the script goes on there; what ends it is no part of its state, or it "
                "was stopped early",
            )  # fmt: skip
        options = msgspec.json.decode(described.description)["step"]
        ranks = evidence.proof.header.ranks
        rule = _Rule(described.samples, described.batch * ranks, described.steps_per_epoch, options["drop_last"], ranks)
        if (strays := self._strays(evidence, answers, described)) is not None:
            return strays
        loop, use = Loop(evidence.proof, options["counted"]), _Use(rule)
        odd = None
        for batch in loop.batches():
            if batch.indices.size and not 0 <= batch.indices.min() <= batch.indices.max() < rule.samples:
                odd = odd or f"step {batch.step:,} names samples outside the data set of {rule.samples:,}"
                continue
            if not loop.counted and (
                not batch.samples or (rule.batch and not rule.allows(batch.samples, batch.position))
            ):
                odd = (
                    odd
                    or f"step {batch.step:,} takes a batch of {batch.samples}; the script's first loader gives {rule.batch}"
                )
            if not derived:
                use.add(batch.step, batch.indices, batch.position)
        use.end_epoch()
        if derived and (loop.beside or loop.moved):
            return result(self, "fail", "batches or generators are recorded that do not follow from the key")
        if len(loop.turns) > MAX_TURNS:
            odd = odd or f"its walks follow each other in more than {MAX_TURNS} ways"
        told: dict[str, Any] = {}
        if derived:
            found, told = f"{steps:,} steps in {loop.walks:,} passes, order derived from {source}", {"source": source}
            odd = odd or next(iter(loop.odd), None)
        elif loop.counted:
            found = f"{steps:,} steps; the script draws its samples from generators that are part of every state"
            odd = (
                odd
                or (loop.odd or [""])[0]
                or ("generators are moved amid its steps" if loop.moved or loop.beside else None)
                or _stuck(evidence, answers)
                or _alike(evidence, answers)
            )
        else:
            found = f"{steps:,} steps in {loop.walks:,} passes over loaders, order as recorded; {use.used}"
            unsized = None if rule.batch else "the script's own batch sampler decides how many samples a batch has"
            others = "other loaders give batches beside, whose data are not committed to" if loop.beside else None
            odd = odd or (loop.odd or [""])[0] or unsized or others or use.odd(shuffled=options["shuffle"])
            told = use.told()
        if not odd:
            return result(self, "pass", found, **told)
        if evidence.options.claims.accept_order:
            return result(self, "pass", f"{found}; accepted by the verifier although {odd}", accepted=odd, **told)
        return result(self, "inconclusive", f"{found}, but {odd}; {REMEDY}", **told)

    def _strays(self, evidence: Evidence, answers: Answers, described: Described) -> CheckResult | None:
        """The script begins elsewhere than the proof, or goes on elsewhere after a segment that was replayed."""
        count = len(evidence.proof.segments)
        if begins(evidence.proof, 0) != [*described.place, 0]:
            return result(self, "inconclusive", "the proof does not begin where the script's loop does")
        for request in answers.requests(Replay):
            if request.steps is not None or answers.failure(request) is not None:
                continue
            found, segment = answers.get(request, Replayed), evidence.proof.segments[request.index]
            if found.arrived != segment.arrived:
                continue  # which the trajectory judges
            wanted = begins(evidence.proof, request.index + 1) if request.index + 1 < count else []
            if found.asked != wanted or found.closed != (not wanted):
                return result(
                    self, "inconclusive",
                    f"after step {segment.stop:,} the script's loop goes on elsewhere than the proof: what it decides by is no part "
                    "of its state, or steps were left out",
                    segment=request.index, script=found.asked, proof=wanted,
                )  # fmt: skip
        return None

    def _recorded(self, evidence: Evidence, described: Described) -> CheckResult:
        options = msgspec.json.decode(described.description)["step"]
        rule = _Rule(described.samples, described.batch, described.steps_per_epoch, options["drop_last"])
        use = _Use(rule)
        for step, indices in _steps(evidence):
            if indices.size == 0 or indices.min() < 0 or indices.max() >= rule.samples:
                return result(self, "fail", f"step {step} names samples outside the data set of {rule.samples:,}")
            if len(indices) not in (rule.batch, rule.last):
                return result(
                    self, "fail", f"step {step} takes {len(indices)} samples; the task takes {rule.batch} in a step"
                )
            use.add(step, indices)
        use.end_epoch()
        odd = use.odd(shuffled=options["shuffle"])
        found = f"{evidence.proof.steps:,} steps, order as recorded; {use.used}"
        if odd is None:
            return result(self, "pass", found, **use.told())
        if evidence.options.claims.accept_order:
            return result(self, "pass", f"{found}; accepted by the verifier although {odd}", accepted=odd, **use.told())
        return result(self, "inconclusive", f"{found}, but {odd}; {REMEDY}", **use.told())


def _seen(evidence: Evidence, answers: Answers, what: Literal["twins", "stuck"]) -> dict[str, int]:
    """Generators with the position of the first state in which they are so, also of states that were trained again."""
    found: dict[str, int] = dict(getattr(evidence.survey, what))
    for request in answers.requests(Replay):
        if request.steps is None and answers.failure(request) is None:
            for name in getattr(answers.get(request, Replayed), what):
                found[name] = min(request.index + 1, found.get(name, request.index + 1))
    return found


def _stuck(evidence: Evidence, answers: Answers) -> str | None:
    """Samples follow from a generator that draws no random numbers; the proof alone says where it starts."""
    for name, position in _seen(evidence, answers, "stuck").items():
        return (
            f"after {_step(evidence, position):,} steps the generator {canonical.brief(name)!r} is in a state from which it draws "
            "a few numbers over and over, which no seed leads to: the loop may take the same samples again and again"
        )
    return None


def _step(evidence: Evidence, position: int) -> int:
    return evidence.proof.segments[position - 1].stop if position else 0


def _alike(evidence: Evidence, answers: Answers) -> str | None:
    """Several processes draw the same samples, so that the work of one passes for that of all; None where the script has it so."""
    twins = _seen(evidence, answers, "twins")
    if not twins:
        return None
    own = answers.get(second_start(evidence.challenge.nonce), Initialized).twins
    for name, position in twins.items():
        if name not in own:
            return (
                f"after {_step(evidence, position):,} steps two processes draw the same numbers from their generator "
                f"{canonical.brief(name)!r}, which the script does not seed so: they may all take the samples of one"
            )
    return None


@dataclass(frozen=True)
class _Rule:
    """What the task says of its batches: number of ``samples``, samples of a step, steps of an epoch. ``ranks``: how many processes
    take a step together.
    """

    samples: int
    batch: int
    steps_per_epoch: int
    drop_last: bool
    ranks: int = 1

    def allows(self, samples: int, position: int) -> bool:
        """Whether a step of a script can take so many there; how several processes share a last one out is their sampler's affair,
        and a replay takes it from them.
        """
        if self.ranks == 1:
            return samples in (self.batch, self.last)
        short = position == self.steps_per_epoch - 1 and not self.drop_last
        return samples == self.batch or (short and samples < self.batch)

    @property
    def last(self) -> int:
        """The size of an epoch's last step."""
        return self.batch if self.drop_last else self.samples - (self.steps_per_epoch - 1) * self.batch


class _Use:
    """How the recorded steps, handed over in order, use the data: repeats within each epoch, and uses over the run."""

    def __init__(self, rule: _Rule) -> None:
        self.rule = rule
        self.counts = np.zeros(rule.samples, dtype=np.int64)
        self.repeats: list[int] = []  # of each epoch: samples taken, less distinct ones
        self.distinct: list[int] = []
        self.most_uses = 0
        self.short: int | None = None  # the first step that has an epoch's last one's size elsewhere
        self.moved: int | None = None  # the first step that does not take the data set's own order
        self._epoch: list[npt.NDArray[np.int64]] = []
        self._first: npt.NDArray[np.int64] | None = None  # the first epoch
        self._epochs = 0  # after it
        self._alike = True  # whether each of them went as the first did, as far as it went

    def add(self, step: int, indices: npt.NDArray[np.int64], position: int | None = None) -> None:
        """``position``: of a script's batch in its walk."""
        position = step % self.rule.steps_per_epoch if position is None else position
        if position == 0:
            self.end_epoch()
        if self.short is None and len(indices) != self.rule.batch and position != self.rule.steps_per_epoch - 1:
            self.short = step
        begin = position * self.rule.batch
        if self.moved is None and not np.array_equal(indices, np.arange(begin, begin + len(indices))):
            self.moved = step
        self._epoch.append(indices)

    def end_epoch(self) -> None:
        if self._epoch:
            taken = np.concatenate(self._epoch)
            if self._first is None:
                self._first = taken
            else:
                self._epochs += 1
                self._alike &= np.array_equal(taken, self._first[: len(taken)])
            uses = np.bincount(taken, minlength=self.rule.samples)
            self.counts += uses
            self.distinct.append(int((uses > 0).sum()))
            self.repeats.append(int(uses.sum()) - self.distinct[-1])
            self.most_uses = max(self.most_uses, int(uses.max()))
            self._epoch.clear()

    @property
    def share(self) -> float:
        """The share of the data that was used at all."""
        return float((self.counts > 0).mean())

    @property
    def used(self) -> str:
        """What was used, and whether all epochs go through it in one order, which is not the data set's own."""
        same = self._epochs and self._alike and self.moved is not None
        return f"{self.share:.1%} of the samples used{SAME if same else ''}"

    def odd(self, shuffled: bool) -> str | None:
        """Why this is not nearly a permutation of the data in every epoch; None if it is."""
        if self.short is not None:
            return f"step {self.short:,} has the size of an epoch's last step amid an epoch"
        taken, repeated = int(self.counts.sum()), sum(self.repeats)
        if not shuffled and self.moved is not None:
            return f"the task takes the data in its own order (shuffle=False) and step {self.moved:,} does not"
        if self.most_uses > MAX_USES:
            return f"a sample comes {self.most_uses:,} times in one epoch"
        # So that each process has as many, a sampler repeats at most one sample for each of the others.
        padded = (self.rule.ranks - 1) * len(self.repeats)
        if not repeated <= MAX_REPEATED_SHARE * taken + padded:
            return f"{repeated:,} of {taken:,} samples taken had come before in the same epoch"
        unused = int((self.counts == 0).sum())
        if shuffled and not unused <= self._plausibly_unused() + repeated:
            return f"{unused:,} samples were never used, more than reshuffling in each epoch leaves out"
        return None

    def _plausibly_unused(self) -> float:
        """How many samples an order that is drawn anew in each epoch leaves out of the whole run, and a margin.

        The draws of an epoch are without replacement, so that the number varies less than the binomial one of the margin.
        """
        n = self.rule.samples
        chance = math.prod((n - distinct) / n for distinct in self.distinct)
        return n * chance + SIGMAS * math.sqrt(n * chance * (1 - chance)) + SIGMAS

    def told(self) -> dict[str, Any]:
        return {
            "samples_used": self.share, "uses_fewest": int(self.counts.min()), "uses_most": int(self.counts.max()),
            "most_repeats_in_an_epoch": max(self.repeats, default=0), "fewest_distinct_in_an_epoch": min(self.distinct, default=0),
            "repeated_share": sum(self.repeats) / max(1, int(self.counts.sum())),
        }  # fmt: skip


def _source(header: Header) -> str | None:
    """What the run's key comes from; None where it does not follow from that. Whether a claim is the key's, the registration says."""
    randomness = header.randomness
    if randomness.claim is not None:
        return "the registered claim"
    follows = randomness.seed is not None and key_from_seed(int(randomness.seed)).hex() == randomness.key
    return f"seed {randomness.seed}" if follows else None


def _last(evidence: Evidence) -> Replay:
    return _replay(evidence, len(evidence.proof.segments) - 1)


def _replay(evidence: Evidence, index: int) -> Replay:
    return Replay(index, calibrate=evidence.calibrates(index))


def _steps(evidence: Evidence) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    for segment, columns in zip(evidence.proof.segments, evidence.proof.all_columns(), strict=True):
        for offset, indices in enumerate(columns.indices or []):
            yield segment.start + offset, indices
