"""Hyperparameters: the learning rates in the proof are, step by step, those of the task's own schedule, and so is what every
recorded state holds beside trained values (momentum, weight decay, what is frozen …).

A replay takes these from the state that it starts from. If they were not compared, one forged segment could change them, and
every later one would still replay bit for bit under rules that are not the task's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from proof_of_learning.replay.measure import near
from proof_of_learning.replay.protocol import RATES_AT_ONCE, Describe, Described, Rates, RatesGiven
from proof_of_learning.replay.requests import Replay, Replayed
from proof_of_learning.state.names import family_of
from proof_of_learning.state.schedules import epoch_means
from proof_of_learning.state.state import decode_settings
from proof_of_learning.task import compare
from proof_of_learning.verifier.changes import unusual
from proof_of_learning.verifier.evidence import REJECTED, Answers, Evidence, Plan, result
from proof_of_learning.verifier.verdict import CheckResult, Status

TURNS = 8  # times that training itself may add parameter groups before only a replay of everything will do
FEW = 8  # segments that are replayed, besides 2 % of the run, because a scalar changes in a rare way


class HyperparametersCheck:
    name = "hyperparameters"
    meaning = (
        "Every step's learning rate, and the other hyperparameters in every recorded state, are what the task and its "
        "schedule give."
    )
    limits = (
        "A custom step can set rates of its own; for those only the replayed segments show them. Rates that follow the losses are "
        "what the recorded losses lead to. Scalars of custom parts do not "
        "follow from the task: those that break or change in a rare way are replayed, the others only where a segment is drawn."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        yield [Describe()]
        described = answers.get(Describe(), Described)
        if _own_schedule(described):
            yield [_replay(evidence, index) for index in _suspicious(evidence, own_schedule=True)]
            return
        yield self._rates(evidence, described)
        for _ in range(TURNS):
            course, digests = self._course(evidence, answers), evidence.proof.state_digests()
            if course.stray is None or not evidence.proof.has_state(digests[course.stray - 1]):
                break
            stray = course.stray
            yield [_replay(evidence, stray - 1)]
            if not (
                _grows(course.settings[stray - 1], evidence.survey.settings[stray])
                and _arrives(evidence, answers, stray - 1)
                and evidence.proof.has_state(digests[stray])
            ):
                break
            yield self._rates(evidence, described, evidence.proof.segments[stray - 1].stop)
        yield [_replay(evidence, index) for index in _suspicious(evidence)]

    def _rates(self, evidence: Evidence, described: Described, origin: int = 0) -> list[Rates]:
        """What the task's schedule leads to from the recorded state after ``origin`` steps, which were verified."""
        steps, interval = evidence.proof.steps, evidence.proof.header.training.interval
        metrics: tuple[float, ...] = ()
        if described.metric:
            losses = (loss for columns in evidence.proof.all_columns() for loss in columns.loss.tolist())
            metrics = epoch_means(losses, described.steps_per_epoch)
        return [
            Rates(start, min(start + RATES_AT_ONCE, steps), interval, steps, metrics, origin)
            for start in range(origin, steps, RATES_AT_ONCE)
        ]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        described = answers.get(Describe(), Described)
        if _own_schedule(described):
            return self._own_schedule(evidence, answers, "script" if described.script else "task's custom step")
        course = self._course(evidence, answers)
        expected = course.rates
        trivial = float(evidence.survey.trivial.mean())
        exact = not any(evidence.differences.values())
        for segment, columns in zip(evidence.proof.segments, evidence.proof.all_columns(), strict=True):
            task = np.array(expected[segment.start : segment.stop], dtype=np.float64).reshape(len(columns), -1)
            if task.shape == columns.rates.shape and _equal(task, columns.rates, exact):
                continue
            if task.shape != columns.rates.shape:
                return result(
                    self, "fail", f"segment {segment.index} has another number of parameter groups than the task"
                )
            row = int(np.flatnonzero((task != columns.rates).any(axis=1))[0])
            found, wanted = columns.rates[row].tolist(), task[row].tolist()
            where = (
                f"step {segment.start + row}: the proof says learning rate {found}, the task's schedule gives {wanted}"
            )
            if not described.loop_schedule:
                return result(
                    self, "inconclusive", f"{where}; the task's custom step may set it, which only a replay can show"
                )
            return result(self, "fail", where, step=segment.start + row, proof=found, task=wanted)
        judged = None if course.stray is None else self._judge_stray(evidence, answers, course)
        if judged is not None:
            return judged
        suspicious = _suspicious(evidence)
        for index, why in suspicious.items():
            judged = self._judge_suspicious(evidence, answers, index, why)
            if judged is not None:
                return judged
        turned = (
            f"; training itself adds parameter groups in {course.turns}, which were replayed" if course.turns else ""
        )
        idle = f"; {trivial:.0%} of the segments are trivial (rate 0) and do not count" if trivial else ""
        flat = np.array(expected)
        return result(
            self, "pass", f"learning rates of all {len(expected):,} steps and the settings in all states are the task's{turned}{idle}",
            rate_lowest=float(flat.min()) if flat.size else math.nan, rate_highest=float(flat.max()) if flat.size else math.nan,
            trivial_share=trivial, scalars_replayed=list(suspicious.values()),
        )  # fmt: skip

    def _own_schedule(self, evidence: Evidence, answers: Answers, whose: str) -> CheckResult:
        """The loop alone knows its schedule: the start is its own, replays show rates, and odd changes were all replayed."""
        suspicious = _suspicious(evidence, own_schedule=True)
        for index, why in suspicious.items():
            judged = self._judge_suspicious(evidence, answers, index, why)
            if judged is not None:
                return judged
        rates = [columns.rates for columns in evidence.proof.all_columns() if columns.rates.size]
        replayed = "the one segment was" if len(suspicious) == 1 else f"all {len(suspicious)} segments were"
        return result(
            self, "pass",
            f"the {whose} sets them; {replayed} replayed, in which a setting changes in a rare way"
            if suspicious else f"the {whose} sets them, and none changes in a rare way",
            rate_lowest=min((float(r.min()) for r in rates), default=math.nan),
            rate_highest=max((float(r.max()) for r in rates), default=math.nan),
            trivial_share=float(evidence.survey.trivial.mean()), scalars_replayed=list(suspicious.values()),
        )  # fmt: skip

    def _course(self, evidence: Evidence, answers: Answers) -> _Course:
        """What the task's schedule leads to. Where training itself gives an optimizer a further parameter group, as a replay of that
        segment shows, it goes on from the state that this leads to.
        """
        rates, settings = _given(answers, 0)
        exact = not any(evidence.differences.values())
        position, turns = 1, 0
        for proof in evidence.survey.settings[1:]:
            task = settings[position - 1] if position <= len(settings) else None
            if (
                proof is not None
                and task is not None
                and task != proof
                and (exact or not near(decode_settings(task), decode_settings(proof)))
            ):
                stop = evidence.proof.segments[position - 1].stop
                after, beyond = _given(answers, stop)
                replayed = _grows(task, proof) and _arrives(evidence, answers, position - 1)
                if len(after) != evidence.proof.steps - stop or not replayed:
                    return _Course(rates, settings, position, turns)
                rates, settings, turns = [*rates[:stop], *after], [*settings[: position - 1], proof, *beyond], turns + 1
            position += 1
        return _Course(rates, settings, None, turns)

    def _judge_stray(self, evidence: Evidence, answers: Answers, course: _Course) -> CheckResult | None:
        """A state with settings of its own is forged, unless the task's training makes them: None if all of that was replayed."""
        stray = course.stray
        assert stray is not None
        index, request, proof = stray - 1, _replay(evidence, stray - 1), evidence.survey.settings[stray]
        assert proof is not None
        lines = compare(decode_settings(course.settings[index]), decode_settings(proof))
        where = f"the settings in the state at step {evidence.proof.segments[index].stop:,} are not the task's: {'; '.join(lines[:3])}"
        failure = answers.failure(request)
        status: Status = "inconclusive"
        if request not in answers:
            where += " (and its segment cannot be replayed)"
        elif failure is not None:
            status = "fail" if failure.error in REJECTED else "inconclusive"
        elif answers.get(request, Replayed).arrived == evidence.proof.segments[index].arrived:
            if len(evidence.challenge.segments) == len(evidence.proof.segments):
                return None
            where += "; training itself makes them, so only a replay of every segment covers them (--all)"
        elif not evidence.unreproduced(index):
            status = "fail"
        return result(self, status, where, segment=index, differences=lines[:100])

    def _judge_suspicious(self, evidence: Evidence, answers: Answers, index: int, why: str) -> CheckResult | None:
        """None if the replay of the segment leads to the very scalars that its recorded end holds."""
        request = _replay(evidence, index)
        status: Status = "inconclusive"
        where = f"{why} in the state at step {evidence.proof.segments[index].stop:,}"
        failure = answers.failure(request)
        if request not in answers:
            where += ", and its segment cannot be replayed"
        elif failure is not None:
            status = "fail" if failure.error in REJECTED else "inconclusive"
            where += f", and its segment was not replayed: {failure.message}"
        else:
            replayed = answers.get(request, Replayed)
            same = replayed.arrived == evidence.proof.segments[index].arrived
            if same and (
                not _unsound(evidence, index) or len(evidence.challenge.segments) == len(evidence.proof.segments)
            ):
                return None
            if same:
                where += "; training itself makes it, but every later step is skipped, which only --all covers"
            elif evidence.unreproduced(index):
                if (
                    replayed.comparison is not None
                    and not replayed.comparison.unequal
                    and not _unsound(evidence, index)
                ):
                    return None
                where += ", which a replay here does not give"
            else:
                status = "fail"
                where += ", which the replay of its segment does not give"
        return result(self, status, where, segment=index)


def _own_schedule(described: Described) -> bool:
    """Whether only the loop itself knows the schedule: a script's, or a custom step that gives schedulers metrics of its own."""
    return described.script or described.metric == "custom"


@dataclass(frozen=True)
class _Course:
    """What the schedule gives: ``rates`` of every step, ``settings`` at every segment's end. ``stray``: the first state whose settings
    are others. ``turns``: how often before it training itself added parameter groups, which replays showed.
    """

    rates: list[list[float]]
    settings: list[bytes]
    stray: int | None
    turns: int


def _given(answers: Answers, origin: int) -> tuple[list[list[float]], list[bytes]]:
    """The rates and settings that the task's schedule gives from ``origin`` on, as far as that was answered."""
    asked = sorted((r for r in answers.requests(Rates) if r.origin == origin), key=lambda request: request.start)
    given = [answers.get(r, RatesGiven) for r in asked if not origin or answers.failure(r) is None]
    return [row for one in given for row in one.rates], [raw for one in given for raw in one.settings]


def _grows(task: bytes, proof: bytes | None) -> bool:
    """Whether the settings in a proof differ from the task's by further parameter groups, and by nothing in the groups before them."""
    expected, found = decode_settings(task), {} if proof is None else decode_settings(proof)
    longer = False
    for part, values in expected.items():
        if family_of(part) != "optimizer" or not isinstance(values, dict):
            continue
        given = found.get(part)
        if not isinstance(given, dict):
            return False
        for name in ("groups", "added"):
            known, held = values.get(name, []), given.get(name, [])
            if not (isinstance(known, list) and isinstance(held, list) and held[: len(known)] == known):
                return False
            longer |= name == "added" and len(held) > len(known)
    return longer


def _arrives(evidence: Evidence, answers: Answers, index: int) -> bool:
    """Whether a replay of a segment was asked for, and arrived at the recorded state."""
    request = _replay(evidence, index)
    if request not in answers or answers.failure(request) is not None:
        return False
    replayed, segment = answers.get(request, Replayed), evidence.proof.segments[index]
    return replayed.arrived == segment.arrived and replayed.ended == segment.state


def _suspicious(evidence: Evidence, own_schedule: bool = False) -> dict[int, str]:
    """Segments whose ends hold scalars that broke or changed as they hardly ever do, with the reason: few, and replayed.

    own_schedule: settings are among these scalars, for no schedule says what they are.
    """
    scalars, count = evidence.survey.scalars, len(evidence.proof.segments)
    most = FEW + count // 50
    odd = unusual(evidence.survey.settings, most) if own_schedule else {}
    found = {index: f"{path} changes as it hardly ever does" for index, path in scalars.rare(most).items()}
    found |= {index: f"the setting {path} changes unlike elsewhere" for index, path in odd.items()}
    found |= {index: f"{path} is not finite any more" for index, path in scalars.broken.items()}
    if scalars.unsound is not None:
        found[scalars.unsound[0] - 1] = scalars.unsound[1]
    return dict(sorted(found.items()))


def _unsound(evidence: Evidence, index: int) -> bool:
    unsound = evidence.survey.scalars.unsound
    return unsound is not None and unsound[0] - 1 == index


def _replay(evidence: Evidence, index: int) -> Replay:
    return Replay(index, calibrate=evidence.calibrates(index))


def _equal(task: np.ndarray, proof: np.ndarray, exact: bool) -> bool:
    """Bit for bit; in another environment (another C library, say) a schedule's cosine may differ in its last digits."""
    return bool((task == proof).all()) if exact else bool(np.allclose(task, proof, rtol=1e-12, atol=0.0))
