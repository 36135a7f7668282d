"""Slow memory: a false memory beside one bias, of an optimizer that remembers for longer than anyone lets it coast.

AdEMAMix, for one, keeps a mean of gradients over ten thousand steps. After a short honest training such an entry is falsified beside
the bias of one layer, where it is a hundredth of what the optimizer keeps, and hundreds of honest steps carry that bias to where most
units of the layer are silent. No step carries it far, and nothing comes back: what is left of the network is trained to the end, at
its part of the cost, and is presented as a whole one that was trained all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proof_of_learning.attacks.base import Attack, Mounted, parameter
from proof_of_learning.attacks.dead import Gate, answers, gates
from proof_of_learning.attacks.jumps import falsified_run, model_of, slots
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.replay.coast import coast, of_session
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session

TRIED = 1e-3  # what is put into an entry to see how far it carries
BEYOND = 0.5  # below zero, where the most active sample is left: what is trained meanwhile wakes few of the units again


@dataclass(init=False, frozen=True)
class SlowMemory(Attack):
    name = "slow-memory"
    summary = "a false memory beside one bias, which honest steps carry to where most units are silent"
    source = "this project, found by an outside attacker of its selection of segments"
    knowledge = "the data and the task, whose optimizer carries weights on for hundreds of steps; of the target its length; ReLUs"
    ends_in_target = False

    head: float = parameter(0.07, "share of the segments that are trained before", low=0.0, high=0.9)
    fall: int = parameter(160, "steps in which the units fall silent, an eighth of the run at most", low=1)
    living: float = parameter(
        0.16,
        "share of the layer's units that stay alive, or what is found alive, which is counted as work",
        low=0.0,
        high=1.0,
    )
    entry: str = parameter("", "the optimizer's entry that is falsified (default: the one that carries farthest)")
    seed: int | None = parameter(None, "seed of the attacker's run (default: one of his own)", low=0, high=2**64 - 1)

    def mount(self, victim: Victim, path: Path, progress: ProgressCallback) -> Mounted:
        session = victim.own_session(victim.own_seed(self.seed))
        count, k = len(victim.proof.segments), victim.interval
        head = max(2, round(self.head * count))
        fall = min(self.fall, victim.steps // 8)
        settled = head + 1 + -(-13 * fall // (10 * k))
        if settled >= count:
            raise AttackError(f"{count} segments are too few: the units are not silent before segment {settled}")

        def jump(before: State, live: Session) -> None:
            self._push(live, victim, fall)

        mounted = falsified_run(victim, session, path, {head: jump}, range(settled, count), progress)
        gate = _widest(session, victim)
        alive = float((gate.mean > 0).double().mean())
        return Mounted(mounted.samples + round(alive * victim.samples(settled * k, victim.steps)), mounted.forged)

    def _push(self, live: Session, victim: Victim, fall: int) -> None:
        """Put into the bias's memory what carries each unit that is to fall silent as far as it has to go."""
        gate = _widest(live, victim)
        silent = torch.ones(len(gate.mean), dtype=torch.bool)
        silent[gate.mean.topk(max(1, round(self.living * len(gate.mean)))).indices] = False
        name = f"{gate.layer}.bias"
        needed = _depth(live, victim, gate) + BEYOND
        held = _entries(live, name)
        names = [self.entry] if self.entry else sorted(held)
        carried = {n: _carried(live, victim, name, n, fall) for n in names if _fits(held.get(n), silent)}
        best = max(carried, key=lambda entry: float(carried[entry].abs().median()), default="")
        if not best or not bool((carried[best][silent] != 0).all()):
            raise AttackError("this attack needs an optimizer whose memory carries weights on")
        with torch.no_grad():
            value = _entries(live, name)[best]
            value[silent] -= (needed / carried[best] * TRIED).to(value.dtype)[silent]


def _entries(session: Session, name: str) -> dict[str, Any]:
    return next(entries for found, _, _, entries, _ in slots(session) if found == name)


def _fits(value: object, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == like.shape


def _widest(session: Session, victim: Victim) -> Gate:
    return max(gates(session, victim), key=lambda gate: len(gate.mean))


@torch.no_grad()
def _depth(session: Session, victim: Victim, gate: Gate) -> Tensor:
    """[units] the largest input of each unit's ReLU, over all samples."""
    layer, found = session.model.get_submodule(gate.layer), list[Tensor]()

    def look(module: nn.Module, given: Any, output: Tensor) -> None:
        rows = output if isinstance(module, nn.Linear) else output.movedim(1, -1)
        found.append(rows.double().reshape(-1, rows.shape[-1]).amax(0))

    handle = layer.register_forward_hook(look)
    try:
        answers(session, victim)
    finally:
        handle.remove()
    return torch.stack(found).amax(0)


def _carried(live: Session, victim: Victim, name: str, entry: str, fall: int) -> Tensor:
    """How far ``TRIED`` more in an entry carries the bias in ``fall`` steps without gradients."""
    state = live.capture()
    reached = []
    for value in (0.0, TRIED):
        with torch.no_grad():
            _entries(live, name)[entry].add_(value)
        coast(of_session(live, victim.steps_per_epoch), fall, victim.steps)
        reached.append(model_of(live.capture())[name].double())
        live.restore(state)
    return reached[1] - reached[0]
