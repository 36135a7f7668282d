"""Learning: what the start could not do, the steps taught, in most of the run.

The trajectory shows that steps were taken; here is looked at whether they did anything. A start that computes the final function,
or a network through which no gradient passes, makes honest steps that cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from proof_of_learning.replay.protocol import Describe
from proof_of_learning.replay.requests import Initialized
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.function import KNOWN, Function
from proof_of_learning.verifier.initialization.start import second_start, suspicious
from proof_of_learning.verifier.verdict import CheckResult

IDLE = 0.05  # of the run, in which a network may learn nothing
WHOLE = 0.25  # of the trained parameters that decay and momentum alone moved, from which on a segment is idle
STARTED = 0.5  # the same of a recorded start, which shares its draw with the final state
FEWEST = 10  # functions, by which unrest can be told from learning


class LearningCheck:
    name = "learning"
    meaning = (
        "The first function is not the final one, a start under a fresh key knows nothing of it, and gradients reached the "
        "network in nearly all of the run."
    )
    limits = (
        "It looks at outputs on a few samples: honest steps in a worthless place, rare skills and a training that was "
        "shorter than it need be look like learning."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return [[Describe(), second_start(evidence.challenge.nonce)]]

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        found, claims = evidence.survey, evidence.options.claims
        idle = idle_segments(evidence)
        details: dict[str, Any] = {"idle_segments": idle}
        rules = claims.policy.training if claims.policy is not None else None
        most = IDLE if rules is None or rules.max_idle_share is None else rules.max_idle_share
        if idle is not None and idle > most:
            return result(
                self, "inconclusive",
                f"the network learned nothing in {idle:.0%} of the segments: decay and momentum alone moved its weights (at most "
                f"{most:.0%}; a policy may allow more, training.max_idle_share)",
                **details,
            )  # fmt: skip
        function = found.function
        if function is None:
            return result(
                self, "skipped", f"the networks' outputs could not be looked at: {found.blind}",
                mandatory=not claims.accept_uniform, **details,
            )  # fmt: skip
        details |= told(function, evidence)
        if function.idle > most:
            return result(
                self, "inconclusive",
                f"the network learned nothing in {function.idle:.0%} of {function.looked} states drawn at random: a layer passes no "
                f"gradient (at most {most:.0%}; a policy may allow more, training.max_idle_share)",
                **details,
            )  # fmt: skip
        excepted = _declared(evidence, answers)
        why = "" if excepted else _nothing_learned(evidence, function)
        if why:
            return result(self, "inconclusive", why, **details)
        where = evidence.proof.segments[max(function.settled - 1, 0)].stop
        start = f"{excepted}; " if excepted else ""
        return result(
            self, "pass",
            f"{start}{_moved(function)}, 95 % of it within the first {where:,} steps; gradients reached the network in "
            f"{1 - function.idle:.0%} of {function.looked} states",
            **details,
        )  # fmt: skip


def idle_segments(evidence: Evidence) -> float | None:
    """Of the segments that are not trivial, the share in which decay and momentum alone moved most of the weights."""
    real = ~evidence.survey.trivial & ~np.isnan(evidence.survey.idle)
    if not real.any():
        return None
    return float((evidence.survey.idle[real] > WHOLE).mean())


def told(function: Function, evidence: Evidence) -> dict[str, Any]:
    """What the report shows of the function."""
    return {
        "first_to_final": function.moved, "final_unrest": function.unrest, "known_at_start": function.known,
        "known_under_a_fresh_key": function.fresh_known, "idle_states": function.idle, "states_looked_at": function.looked,
        "settled_step": evidence.proof.segments[max(function.settled - 1, 0)].stop,
        "outputs": function.heads, "compared": "distributions" if function.scored else "values",
        "evaluated_states": len(function.positions),
    }  # fmt: skip


def _moved(function: Function) -> str:
    """How far the function moved. Where outputs have no scale of their own, as a multiple of what still moves at the end."""
    if function.scored:
        return f"the function moved by {function.moved:.2g} (0 to 1)"
    if function.moved == 0.0:
        return "the function did not move"
    if function.moved > 1000 * function.unrest:
        return "the function moved, and came to rest"
    return f"the function moved {function.moved / function.unrest:.2g} times as far as it still does at the end"


def _declared(evidence: Evidence, answers: Answers) -> str:
    """Why the start may know something: the verifier knows that it does."""
    if evidence.proof.header.initialization.kind == "linked":
        return "the run starts from another proof's model"
    started = answers.get(second_start(evidence.challenge.nonce), Initialized)
    trained = [tensor for tensor in started.tensors if tensor.trainable]
    open_, _ = suspicious(trained, ())
    if open_ and not suspicious(trained, evidence.options.claims.approve_fixed)[0]:
        return f"the verifier approved {len(open_)} pretrained tensors"
    return ""


def _nothing_learned(evidence: Evidence, function: Function) -> str:
    if not function.moved > _far(function) * function.unrest or function.moved == 0.0:
        return (
            f"nothing was learned: the first function is {function.moved:.2g} from the final one, which moves by "
            f"{function.unrest:.2g} just before the end"
        )
    if not function.fresh_known <= KNOWN:
        return (
            f"a start under a fresh key knows {function.fresh_known:.0%} of the final function already: the task brings along "
            "what training should teach"
        )
    recorded = evidence.proof.header.initialization.kind == "recorded" and len(function.positions) >= FEWEST
    if recorded and not function.known <= STARTED:
        return (
            f"the recorded start knows {function.known:.0%} of the final function already; if that is meant, have the run start "
            "from a proof of its own (--chain)"
        )
    return ""


def _far(function: Function) -> float:
    """How many times the unrest at the end the first function has to be away from the final one: more than once.

    Of fewer than ``FEWEST`` functions nothing is said: in a run of few segments the last of them is a part of the learning itself.
    """
    return 0.0 if len(function.positions) < FEWEST else 1.0
