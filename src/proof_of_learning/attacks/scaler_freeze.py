"""Scaler freeze: one false segment, right in every tensor, after which no step changes anything.

The attacker trains for a part of the run. Then a number beside the weights is falsified, once, and every later step replays exactly
and does nothing:

``scaler``
    the scale of the gradient scaler becomes infinite or not a number; it takes every gradient for an overflow and skips the step.
``part``
    every number in the task's further parts (a threshold, a temperature, a weight of a loss) becomes that value.

With ``goal=stolen`` the false segment brings the target's weights, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.jumps import falsified_run, model_of, put
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session


@dataclass(init=False, frozen=True)
class ScalerFreeze(Attack):
    name = "scaler-freeze"
    summary = "a falsified scale, after which every step is skipped and replays exactly"
    source = "this project, found by an attack from outside on its own verifier"
    knowledge = "the data and the task, which has a gradient scaler or parts with numbers in them"
    ends_in_target = False

    where: str = parameter("scaler", "which number is falsified", choices=("scaler", "part"))
    value: str = parameter("nan", "what it becomes", choices=("nan", "0", "inf"))
    work: float = parameter(0.1, "share of the segments that are trained honestly", low=0.0, high=1.0)
    goal: str = parameter("own", "whose weights are frozen", choices=("own", "stolen"))
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {}, {"value": "inf"}, {"goal": "stolen"}, {"work": 0.3}, {"where": "part", "value": "0"}, {"where": "part"},
    )  # fmt: skip

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        session, count = victim.own_session(victim.own_seed(self.seed)), len(victim.proof.segments)
        if self.where == "scaler" and session.scaler is None:
            raise AttackError("where=scaler needs a task with a gradient scaler")
        if self.where == "scaler" and self.value == "0":
            raise AttackError("a scale of 0 leads to steps that are not numbers; there are value=nan and value=inf")
        if self.where == "part" and not any(_numbers(part.state_dict()) for part in session.extra.values()):
            raise AttackError("where=part needs a task with further parts that hold numbers")
        at, value = min(max(1, round(self.work * count)), count - 2), float(self.value)

        def falsify(before: State, live: Session) -> None:
            if self.goal == "stolen":
                put(live, model_of(victim.final))
            if self.where == "scaler":
                assert live.scaler is not None
                live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": value})
            else:
                for part in live.extra.values():
                    part.load_state_dict(_with(part.state_dict(), value))

        return falsified_run(victim, session, path, {at: falsify}, range(at + 1, count), progress)


def _numbers(values: Any) -> bool:
    return (
        any(_numbers(value) for value in values.values()) if isinstance(values, Mapping) else isinstance(values, float)
    )


def _with(values: Any, number: float) -> Any:
    """``values`` with every float in its (nested) mappings replaced."""
    if isinstance(values, Mapping):
        return {key: _with(value, number) for key, value in values.items()}
    return number if isinstance(values, float) else values
