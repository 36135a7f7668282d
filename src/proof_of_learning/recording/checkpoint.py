"""What a recorder hands to the writer at a segment's end: the rows of its steps, and the checkpoint that closes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from proof_of_learning.errors import TrainingError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.blocks import Columns, Share
from proof_of_learning.proof.codecs.base import Encoded
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.replay import protocol
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State
from proof_of_learning.training.batches import Indices


@dataclass
class Rows:
    """The steps since the last checkpoint: losses and rates; batches and generators where they are recorded; of a script, what
    happened in each step (``loop``). ``ranks``: of further processes, what they drew.
    """

    losses: list[torch.Tensor] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    indices: list[Indices] = field(default_factory=list)
    rng: list[RngSnapshot] = field(default_factory=list)
    loop: list[Indices] = field(default_factory=list)
    ranks: list[Rows] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.losses)

    def add(
        self,
        loss: torch.Tensor,
        rates: list[float],
        indices: Indices | None = None,
        rng: RngSnapshot | None = None,
        loop: Indices | None = None,
    ) -> None:
        """One step more."""
        self.losses.append(loss)
        self.rates.append(rates)
        if indices is not None and rng is not None:
            self.indices.append(np.asarray(indices, dtype=np.int64))
            self.rng.append(rng)
        if loop is not None:
            self.loop.append(loop)

    def share(self) -> protocol.Share:
        """What was drawn, as a worker is told it."""
        return protocol.Share(
            *protocol.recorded_steps(self.indices, self.rng), protocol.recorded_loop(self.loop, len(self)) or []
        )

    def columns(self, losses: npt.NDArray[np.float64], *, observed: bool) -> Columns:
        """As they lie in a proof; ``losses`` are the same losses, read. ``observed``: batches and generators are written down."""
        rates = np.array(self.rates, dtype=np.float64).reshape(len(self), -1)
        return Columns(
            losses,
            rates,
            self.indices if observed else None,
            self.rng if observed else None,
            loop=self.loop or None,
            ranks=tuple(Share(rows.indices, rows.rng, rows.loop) for rows in self.ranks),
        )


@dataclass(frozen=True)
class Checkpoint:
    """What is known where a segment ends.

    stop: the step that it ends before. state: the one that training continues from.
    encoded: as a codec in the loop wrote it; ``arrived`` is then the digest of the state before. None for other codecs.
    losses: those of ``rows``, stacked, not yet synchronised.
    observed: batches and generators are written down. evaluation: what the model is said to achieve here.
    """

    stop: int
    state: State
    encoded: Encoded | None
    arrived: str | None
    rows: Rows
    losses: torch.Tensor
    observed: bool
    evaluation: dict[str, float] | None

    def write(self, writer: ProofWriter, environment: Environment) -> None:
        """Measure, hash, encode and write. TrainingError where something is no longer finite."""
        before = writer.state
        assert before is not None
        self.state.wait()
        moved, losses = displacement(before, self.state), self.losses.double().cpu().numpy()
        if not (math.isfinite(moved.state) and np.isfinite(losses).all()):
            raise TrainingError(
                f"training is no longer finite between steps {self.stop - len(losses)} and {self.stop}; "
                "no proof can cover that. Lower the learning rate or clip gradients, and record into a new directory"
            )
        writer.segment(
            arrived=self.arrived or self.state.digest(),
            state=self.state,
            encoded=self.encoded,
            displacement=moved,
            environment=environment,
            columns=self.rows.columns(losses, observed=self.observed),
            stop=self.stop,
            evaluation=self.evaluation,
        )


def finite(evaluation: Mapping[str, float]) -> dict[str, float]:
    """The same numbers; TrainingError where one is not finite."""
    if not all(math.isfinite(value) for value in evaluation.values()):
        raise TrainingError(f"the evaluation of the model is not finite: {dict(evaluation)}")
    return dict(evaluation)
