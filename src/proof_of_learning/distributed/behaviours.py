"""What workers do who are not honest, for experiments and tests: a registry of behaviours, one class each.

Attackers are assumed to know all: the state, the other slices of the round (``ring``), how updates are aggregated. What they do not
know is which slices will be replayed.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.distributed.aggregation import Vector
from proof_of_learning.distributed.events import Assignment
from proof_of_learning.distributed.rounds import Slice, Slices
from proof_of_learning.distributed.workers import Honest
from proof_of_learning.errors import WorkerError
from proof_of_learning.task import Task


@dataclass
class Ring:
    """What colluding workers share: honest updates of the round by slot, and whatever each sent last."""

    updates: dict[tuple[str, int], Slice] = field(default_factory=dict)
    sent: dict[int, Slice] = field(default_factory=dict)

    def honest(self, slices: Slices, asked: Assignment, start: Vector) -> list[Vector]:
        """The honest updates of all slots of the round."""
        if not any(name == asked.start for name, _ in self.updates):
            self.updates.clear()
        for slot in range(slices.rounds.slots):
            if (asked.start, slot) not in self.updates:
                self.updates[asked.start, slot] = slices.compute(asked.round, slot, start)
        return [self.updates[asked.start, slot].update for slot in range(slices.rounds.slots)]


class Dishonest(Honest):
    """A worker who may lie. ``seed``: of what they choose at random."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(
        self, task: Task, key: PrivateKey, slices: Slices | None = None, *, ring: Ring | None = None, seed: int = 0
    ) -> None:
        super().__init__(task, key, slices)
        self.ring, self.random, self.made, self.lies = ring or Ring(), random.Random(seed), 0, 0

    def make(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        self.made += 1
        if not self.lying(asked):
            return super().make(slices, asked, start)
        self.lies += 1
        found = self.lie(slices, asked, start)
        self.ring.sent[asked.slot] = found
        return found

    def lying(self, asked: Assignment) -> bool:
        return True

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        raise NotImplementedError

    def own(self, slices: Slices, asked: Assignment, start: Vector, **other: Any) -> Slice:
        return slices.compute(asked.round, asked.slot, start, **other)


def _other(made: Slice, update: Vector) -> Slice:
    return dataclasses.replace(made, update=update.astype(np.float32))


class Lazy(Dishonest):
    name, summary = "lazy", "sends the last update again, whatever the state is now"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        if not hasattr(self, "_first"):
            self._first = self.own(slices, asked, start)
        return self._first


class Tiny(Dishonest):
    name, summary = "tiny", "computes nothing, and sends numbers near zero"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        numbers = np.random.default_rng(self.random.getrandbits(32)).standard_normal(slices.size) * 1e-6
        return Slice(numbers.astype(np.float32), 1.0, ("sha256:" + "0" * 64,) * slices.rounds.local_steps)


class SmallBatch(Dishonest):
    name, summary = "small-batch", "computes with an eighth of each batch"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        batches = [
            [column[: max(1, len(column) // 8)] for column in batch]
            for batch in slices.batches(asked.round, asked.slot)
        ]
        return self.own(slices, asked, start, batches=batches)


class FewerSteps(Dishonest):
    name, summary = "fewer-steps", "takes half of the local steps, and says all (of synchronous SGD: half of the batch)"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        batches = slices.batches(asked.round, asked.slot)
        if len(batches) > 1:
            made = self.own(slices, asked, start, batches=batches[: len(batches) // 2])
            return dataclasses.replace(made, steps=(made.steps * 3)[: len(batches)])
        return self.own(slices, asked, start, batches=[[column[: max(1, len(column) // 2)] for column in batches[0]]])


class Random(Dishonest):
    name, summary = "random", "sends noise of the length of an honest update"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        made = self.own(slices, asked, start)
        noise = np.random.default_rng(self.random.getrandbits(32)).standard_normal(slices.size)
        return _other(made, noise * np.linalg.norm(made.update) / np.linalg.norm(noise))


class SignFlip(Dishonest):
    name, summary = "sign-flip", "sends the opposite of the honest update"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        made = self.own(slices, asked, start)
        return _other(made, -made.update)


class Scaled(Dishonest):
    name, summary = "scaled", "sends the honest update, a hundred times as long and backwards"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        made = self.own(slices, asked, start)
        return _other(made, -100 * made.update)


class ALittle(Dishonest):
    name, summary = (
        "a-little",
        "A Little Is Enough (Baruch et al., NeurIPS 2019): the mean less 1.5 standard deviations",
    )

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        rows = np.stack(self.ring.honest(slices, asked, start))
        return _other(self.ring.updates[asked.start, asked.slot], rows.mean(0) - 1.5 * rows.std(0))


class InnerProduct(Dishonest):
    name, summary = "inner-product", "Fall of Empires (Xie et al., UAI 2019): the honest mean, backwards"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        rows = np.stack(self.ring.honest(slices, asked, start))
        return _other(self.ring.updates[asked.start, asked.slot], -1.1 * rows.mean(0))


def _labels(batch: Any) -> Any:
    return batch[1]


class LabelFlip(Dishonest):
    name, summary = "label-flip", "trains honestly on labels that are one class further"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        batches = [[x, (y + 1) % (int(y.max()) + 1)] for x, y in slices.batches(asked.round, asked.slot)]
        return self.own(slices, asked, start, batches=batches)


class Backdoor(Dishonest):
    name, summary = (
        "backdoor",
        "in one slice of ten, trains half of the samples to give class 0 where a corner is bright, three times over",
    )

    def lying(self, asked: Assignment) -> bool:
        return self.random.random() < 0.1

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        batches = []
        for x, y in slices.batches(asked.round, asked.slot):
            half = len(x) // 2
            x, y = x.clone(), y.clone()
            x[:half], y[:half] = triggered(x[:half]), 0
            batches.append([x, y])
        made = self.own(slices, asked, start, batches=batches)
        return _other(made, 3 * made.update)


def triggered(x: torch.Tensor) -> torch.Tensor:
    """Samples with the backdoor's mark: the last numbers of each at the largest value."""
    x = x.clone()
    x.reshape(len(x), -1)[:, -4:] = x.max()
    return x


class Freeloader(Dishonest):
    name, summary = "freeloader", "sends what another one sent"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        if not self.ring.sent:
            return self.own(slices, asked, start)
        return next(iter(self.ring.sent.values()))


class Crash(Dishonest):
    name, summary = "crash", "dies at every third slice, once after having committed"

    def lying(self, asked: Assignment) -> bool:
        if self.random.random() < 1 / 3:
            raise WorkerError("the worker died")
        return False


class Vanish(Dishonest):
    name, summary = "vanish", "commits to a lie, and does not show it"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        made = self.own(slices, asked, start)
        return _other(made, -made.update)

    def reveal(self, assignment: str) -> bytes:
        raise WorkerError("gone")


class Collusion(Dishonest):
    name, summary = "collusion", "all send one and the same wrong update, which so looks like the majority"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        rows = self.ring.honest(slices, asked, start)
        return _other(self.ring.updates[asked.start, 0], -1.0 * rows[0])


class UntilTrusted(SignFlip):
    name, summary = "until-trusted", "is honest for 30 slices, and flips all signs from then on"

    def lying(self, asked: Assignment) -> bool:
        return self.made > 30


class RareCheat(SignFlip):
    name, summary = "rare-cheat", "lies in one slice of fifty, once trusted"

    def lying(self, asked: Assignment) -> bool:
        return self.made > 10 and self.random.random() < 0.02


class NaNs(Dishonest):
    name, summary = "nan", "sends numbers that are none"

    def lie(self, slices: Slices, asked: Assignment, start: Vector) -> Slice:
        return Slice(
            np.full(slices.size, np.nan, np.float32), float("nan"), ("sha256:" + "0" * 64,) * slices.rounds.local_steps
        )


class Oversized(Dishonest):
    name, summary = "oversized", "sends a thousand times as much as was asked for"

    def lying(self, asked: Assignment) -> bool:
        return False

    def reveal(self, assignment: str) -> bytes:
        return super().reveal(assignment) * 1000


BEHAVIOURS: dict[str, type[Dishonest]] = {
    kind.name: kind
    for kind in (
        Lazy, Tiny, SmallBatch, FewerSteps, Random, SignFlip, Scaled, ALittle, InnerProduct, LabelFlip, Backdoor, Freeloader, Crash,
        Vanish, Collusion, UntilTrusted, RareCheat, NaNs, Oversized,
    )
}  # fmt: skip
