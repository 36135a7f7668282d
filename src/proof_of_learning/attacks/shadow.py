"""Shadow: a false jump into a dead network, thousands of honest steps that cost nothing, and a false jump to the target.

A layer of ReLUs that passes nothing on makes the outputs a constant. Its steps are honest, replay bit for bit, and take the labels
alone. What surrounds them is to hide the jumps:

``carrier=decay``
    one bias of a dead unit is some millions below zero. Weight decay brings it down, honestly, in every segment: by one norm of all
    weights, nearly all movement and all progress are its own. The final model is the target's with this unit (the least active of its
    layer) silent.
``carrier=none``
    the dead network is a fresh one with a small shift, and all progress lies in the last jump.
``decoy``
    a false change of the weights at the end of segment 1 makes the next honest steps explode: they are the largest of their
    window, and the jump into the dead network stands beside them.

The last jump is one false segment, or ``parts`` of them; its weights are false, or only its gradient or momentum (see ``jumps``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import Gate, gates, shifted
from proof_of_learning.attacks.jumps import (
    HOW,
    MEMORY,
    Jump,
    Weights,
    all_rates,
    falsified_run,
    model_of,
    put,
    slots,
    way,
)
from proof_of_learning.attacks.victim import Victim, run
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session

FIRST = 1  # the segment at whose end the explosion is prepared
FACTORS = (256.0, 512.0, 128.0, 1024.0, 96.0, 64.0, 48.0, 32.0)  # by which the weights grow for it
SHARES = (0.6, 0.5, 0.4, 0.35, 0.3, 0.25)  # of the largest honest step that the carrier begins with
NEARER = 0.85  # of the carrier's size, that an explosion may lead away: the jump then leads farther still
SIZE = 3e6  # of a carrier, at least: at the end, its decay is still to outshine the last jump


@dataclass(init=False, frozen=True)
class Shadow(Attack):
    name = "shadow"
    summary = (
        "thousands of honest steps of a dead network between two false jumps, of which the last leads to the target"
    )
    source = "this project, found by an attack from outside on its own verifier"
    knowledge = "the target's final weights, the data and the task; a network of ReLUs, for the carrier weight decay"
    ends_in_target = False  # but for one unit, which is the least active

    carrier: str = parameter("none", "what supplies movement and progress meanwhile", choices=("none", "decay"))
    how: str = parameter("weights", "what is false in the last jump", choices=HOW)
    parts: int = parameter(1, "false segments of the last jump (gradient: at least two)", low=1)
    tail: float = parameter(
        0.0, "share of the segments after it (at least one, with momentum sixty)", low=0.0, high=0.9
    )
    decoy: bool = parameter(True, "let honest steps explode before the first jump (with a carrier)")
    entry: int = parameter(8, "last segment at whose end the network may die", low=5)
    size: float | None = parameter(
        None, "how far below zero the decaying bias begins (default: as the decoy allows)", low=1.0
    )
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    variants = (
        {"carrier": "decay"}, {}, {"carrier": "decay", "how": "momentum"}, {"carrier": "decay", "how": "gradient", "parts": 16},
        {"carrier": "decay", "parts": 16}, {"carrier": "decay", "parts": 64}, {"carrier": "decay", "tail": 0.05},
        {"carrier": "decay", "decoy": False}, {"how": "momentum"}, {"how": "gradient", "parts": 16}, {"parts": 16, "tail": 0.05},
    )  # fmt: skip

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        seed, count = victim.own_seed(self.seed), len(victim.proof.segments)
        session, rates = victim.own_session(seed), all_rates(victim, seed)
        parts = max(self.parts, 2) if self.how == "gradient" else 1 if self.how == "momentum" else self.parts
        tail = max(1, round(self.tail * count), min(60, count // 3) if self.how == "momentum" else 1)
        leave, entry = count - tail - parts, min(self.entry, count // 4)
        if leave <= entry + 1:
            raise AttackError(f"{count} segments are too few for this attack")
        dead = _Dead.of(victim, seed, self.carrier)
        size, spent, jumps = self.size or SIZE, 0, dict[int, Jump]()
        if self.decoy and dead.unit:
            factor, entry, size, spent = _explosion(victim, seed, entry, dead, self.size)
            jumps[FIRST] = lambda before, live: _grow(live, factor)
        jumps[entry] = lambda before, live: put(live, *dead.at(size))
        target = model_of(victim.final)
        exits = way(self.how, lambda live: target, leave, parts, rates, victim.interval)
        jumps |= {index: _sparing(jump, dead.unit) for index, jump in exits.items()}
        free = range(entry + 1, leave + parts)
        return falsified_run(victim, session, path, jumps, free, progress, spent=spent)


@dataclass(frozen=True)
class _Dead:
    """A dead network; ``unit``: the bias that decays (parameter and element), if one does, and ``pull``: its momentum by its size."""

    weights: Weights
    unit: tuple[str, int] | None = None
    pull: float = 0.0

    @classmethod
    def of(cls, victim: Victim, seed: int, carrier: str) -> _Dead:
        session = victim.own_session(seed)
        if carrier == "none":
            weights = model_of(session.capture())
            return cls(shifted(weights, min(gates(session, victim), key=Gate.size)))
        put(session, model_of(victim.final))
        gate = gates(session, victim)[-1]
        bias = f"{gate.layer}.bias"
        (group,) = (group for name, _, group, _, _ in slots(session) if name == bias)
        if not group.get("weight_decay"):
            raise AttackError("carrier=decay needs a task with weight decay; there is carrier=none")
        pull = group["weight_decay"] / (1.0 - group["momentum"]) if group.get("momentum") else 0.0
        return cls(shifted(model_of(session.capture()), gate), (bias, int(gate.mean.argmin())), pull)

    def at(self, size: float) -> tuple[Weights, Weights]:
        """Weights and momenta, with the bias that decays ``size`` below zero and its momentum as large as the decay makes it."""
        if self.unit is None:
            return self.weights, {}
        name, element = self.unit
        far, memory = self.weights[name].clone(), torch.zeros_like(self.weights[name])
        far[element], memory[element] = -size, -size * self.pull
        return {**self.weights, name: far}, {name: memory}


def _grow(session: Session, factor: float) -> None:
    """All weights larger, and nothing that moves them."""
    put(session, {name: factor * weight for name, weight in model_of(session.capture()).items()})


def _sparing(jump: Jump, unit: tuple[str, int] | None) -> Jump:
    """``jump``, with the bias that decays and its momentum left as honest steps have made them."""
    if unit is None:
        return jump
    bias, element = unit

    def spared(before: State, session: Session) -> None:
        own = [(weight.detach(), entry) for name, weight, _, entry, _ in slots(session) if name == bias]
        kept = [t for weight, entry in own for t in (weight, *map(entry.get, MEMORY)) if isinstance(t, torch.Tensor)]
        values = [float(tensor[element]) for tensor in kept]
        jump(before, session)
        for tensor, value in zip(kept, values, strict=True):
            tensor[element] = value

    return spared


def _explosion(
    victim: Victim, seed: int, latest: int, dead: _Dead, size: float | None
) -> tuple[float, int, float, int]:
    """How much the weights have to grow for an honest step to outshine the jump into the dead network, at most ``latest`` segments in.

    The jump is to be smaller than the largest step before it, which is not the one after the growth (whose predecessor is looked at),
    and to lead no nearer to the end than where the explosion had led. Returns the growth, the segment of the jump, the size of the
    carrier (by default as large as that allows), and the samples that it took to find them. Raises AttackError if there is no such.
    """
    stop, spent = min((latest + 1) * victim.interval, victim.steps), 0
    target = model_of(victim.final)
    for factor in FACTORS:
        session = victim.own_session(seed)
        seen, moved = [session.capture()], list[float]()
        spent += victim.samples(0, stop)
        for index, state in enumerate(run(victim, session, stop, [])):
            if index == FIRST:
                _grow(session, factor)
                state = session.capture()
            moved.append(displacement(seen[-1], state).state)
            seen.append(state)
        for entry in range(FIRST + 4, latest + 1):
            top = max(range(entry), key=moved.__getitem__)
            if not FIRST + 1 < top < entry - 1 or not moved[top] < math.inf:
                continue
            sizes = [size] if size is not None else [share * moved[top] for share in SHARES]
            for chosen in (tried for tried in sizes if size is not None or tried >= SIZE):
                put(session, *dead.at(chosen))
                jump = displacement(seen[entry], session.capture()).state
                if jump < moved[top] and _apart(model_of(seen[entry]), target) <= NEARER * chosen:
                    return factor, entry, chosen, spent
    raise AttackError(
        "no growth of the weights makes honest steps of this task explode as they should; there is decoy=false"
    )


def _apart(a: Weights, b: Weights) -> float:
    return float(torch.stack([(a[name].double() - b[name].double()).square().sum() for name in b]).sum().sqrt())
