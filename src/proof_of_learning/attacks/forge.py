"""``forge_proof``: a structurally perfect proof of any sequence of training states.

Digests, hash chain, root and displacements are all consistent and nothing marks the result as forged, so that an idea is
judged by what the verifier makes of its training alone.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from proof_of_learning.data.commitment import DataCommitment
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.codecs.base import Encoded
from proof_of_learning.proof.format import CodecClaim, Header, Initialization, Randomness, TaskClaim, Training
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.recording.header import make_header
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.names import WEIGHTS, kind_of, short_name
from proof_of_learning.state.state import State
from proof_of_learning.task import Task, TaskReference, default_interval, load_task, task_code
from proof_of_learning.training.steps import Session

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Any]


@dataclass(frozen=True)
class Claims:
    """What a forged proof says about itself; whatever is left out is what an honest recorder would have written.

    interval, steps: k and T. planned: how many steps were to be taken, if not T.
    seed: instead of the task's. environment: the numeric environment, or one for each segment.
    evaluation: what the final model is said to achieve. data: the data commitment. initialization: ``derived``, ``recorded`` or the
    header's field. rng: generator states at the start of each step (or one for all), where batches are recorded.
    keep_progress: leave in each state the step at which it says it stands.
    arrived: the digest that training is said to have arrived at, one for each segment, under a codec in the loop.
    stored: states that a codec in the loop made already, by digest, and what each of them arrived at.
    sessions: those that go on, where they stand at a checkpoint, from what a codec in the loop makes of it.
    format, task_claim, training, randomness, codec, claim: the header's fields as they are to be written.
    """

    interval: int | None = None
    steps: int | None = None
    planned: int | None = None
    seed: int | None = None
    environment: Environment | Iterable[Environment] | None = None
    evaluation: Mapping[str, float] | None = None
    data: DataCommitment | None = None
    initialization: Initialization | str | None = None
    rng: RngSnapshot | Iterable[RngSnapshot] | None = None
    keep_progress: bool = False
    arrived: Iterable[str] | None = None
    stored: Mapping[str, str] = field(default_factory=dict)
    sessions: Sequence[Session] = ()
    format: str | None = None
    task_claim: TaskClaim | None = None
    training: Training | None = None
    randomness: Randomness | None = None
    codec: CodecClaim | None = None
    claim: dict[str, Any] | None = None


def forge_proof(
    path: str | os.PathLike[str],
    task: Task | TaskReference | str,
    states: Iterable[State | Weights],
    batches: Iterable[Any] | None,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Write a proof of ``states`` to ``path``, consistent in every digest; returns its root.

    states: the checkpoints in order, one more than there are segments; an iterator is read one at a time. Each is a ``State``, or
        a mapping from weight names to tensors, laid over a fresh session's state (empty optimizer memory, the schedule where it
        stands at that step). The step in its ``progress`` part is set right.
    batches: for each step the indices of its samples, claimed as ``recorded`` randomness; None claims ``derived`` randomness
        that follows from the task's seed.
    hyperparameters: ``rates`` (one value, one a step, or a row of groups a step; default: the task's schedule) and ``loss`` (one
        value or one a step; default: a plausible curve). Iterators are read segment by segment, each after its final state.
    claims: see :class:`Claims`.
    Raises AttackError where these do not make a proof.
    """
    unknown = sorted(set(claims) - set(Claims.__dataclass_fields__))
    if unknown:
        raise AttackError(f"there is no claim {unknown[0]!r}; known: {', '.join(Claims.__dataclass_fields__)}")
    wanted = Claims(**claims)
    task = load_task(task)
    if wanted.seed is not None:
        task = replace(task, seed=wanted.seed)
    folder = Path(path)
    existed = folder.exists()
    with randomness.preserved(), environments.recording("cpu") as here:
        key = randomness.key_from_seed(task.seed)
        if wanted.randomness is not None:
            key = bytes.fromhex(wanted.randomness.key)
        session = Session(task, key)
        with task_code("loading the data"):
            data = task.data()
        header, steps = _header(task, session, data, wanted, states, batches)
        segments = _Segments(header, steps, session, task.steps_per_epoch(len(data)), wanted, hyperparameters, here)
        source, samples = iter(states), None if batches is None else iter(batches)
        with ProofWriter.create(folder, header) as writer:
            try:
                writer.start(segments.state(source, 0))
                for environment in islice(segments.environments, segments.count):
                    segments.write(writer, source, samples, environment)
                if writer.segments != segments.count:
                    raise AttackError(f"there are environments for {writer.segments} of {segments.count} segments")
                if next(source, None) is not None:
                    raise AttackError(f"there are more than the {segments.count + 1} states that this run has")
                claimed = None if wanted.evaluation is None else dict(wanted.evaluation)
                return writer.seal(claimed, stopped=segments.stopped)
            except BaseException:
                if not existed:
                    shutil.rmtree(folder, ignore_errors=True)
                raise


def with_step(state: State, step: int) -> State:
    """``state`` saying that it stands at ``step``."""
    progress = ["s:progress", {"d": [["s:step", {"i": str(step)}]]}]
    items = sorted([*(item for item in state.tree["d"] if item[0] != "s:progress"), progress], key=lambda item: item[0])
    if items == state.tree["d"]:
        return state
    return State({"d": items}, state.tensors, {name: digest for name, digest in state._digests.items() if name})


def laid_over(base: State, weights: Weights) -> State:
    """``base`` with some of its model's parameters and buffers replaced, named as in the model or as in the state."""
    full = {name: name for name in base.tensors if kind_of(name) in (WEIGHTS, "model/buffers")}
    full |= {short_name(name): name for name in full}
    tensors = dict(base.tensors)
    for name, value in weights.items():
        if name not in full:
            raise AttackError(f"the task's model has no weights named {str(name)[:80]!r}")
        own = base.tensors[full[name]]
        given = torch.as_tensor(value).detach()
        if given.shape != own.shape:
            raise AttackError(
                f"{name}: the task's model has the shape {tuple(own.shape)}, the state {tuple(given.shape)}"
            )
        tensors[full[name]] = given.to("cpu", own.dtype, copy=True).contiguous()
    return State(base.tree, tensors)


def plausible_loss(steps: int) -> Array:
    """A loss curve that nobody computed: a power of the step, with noise."""
    noise = randomness.uniforms(0, steps) - 0.5
    return 2.5 / np.sqrt(1.0 + np.arange(steps) / 25.0) * (1.0 + 0.2 * noise)


class _Segments:
    """Turns the caller's states, batches and hyperparameters into segments, one at a time."""

    def __init__(
        self,
        header: Header,
        steps: int,
        session: Session,
        steps_per_epoch: int,
        wanted: Claims,
        hyperparameters: Mapping[str, Any] | None,
        here: Environment,
    ) -> None:
        self.header, self.session, self.steps_per_epoch, self.wanted = header, session, steps_per_epoch, wanted
        given = dict(hyperparameters or {})
        self.steps, self.count = steps, -(-steps // header.training.interval)
        self.stopped = header.training.planned is not None and steps < header.training.planned
        self._groups = len(session.rates())
        self._loss = _rows(given.pop("loss", plausible_loss(steps)), steps, "loss")
        self._rates = _rows(given.pop("rates"), steps, "rates") if given.get("rates") is not None else None
        given.pop("rates", None)
        if given:
            raise AttackError(
                f"there is no hyperparameter {sorted(given)[0]!r} in a proof's blocks; known: loss, rates"
            )
        environment = here if wanted.environment is None else wanted.environment
        self.environments = repeat(environment) if isinstance(environment, Environment) else iter(environment)
        self._arrived = None if wanted.arrived is None else iter(wanted.arrived)
        rng = wanted.rng
        if rng is None:
            randomness.seed_everything(randomness.derive(session.key, randomness.STEP, 0))
            rng = RngSnapshot.take()
        self._rng: Iterator[RngSnapshot] = repeat(rng) if isinstance(rng, RngSnapshot) else iter(rng)

    def state(self, source: Iterator[State | Weights], step: int) -> State:
        """The caller's next state, as the one at ``step``."""
        given = next(source, None)
        if given is None:
            raise AttackError(
                f"the states end before step {step} of {self.steps}; a run with the interval "
                f"{self.header.training.interval} has {self.count + 1} of them"
            )
        if not isinstance(given, State):
            if not isinstance(given, Mapping):
                raise AttackError(f"a state is a State or a mapping of weights, not of the type {type(given).__name__}")
            for _ in self._idle(step):
                pass
            given = laid_over(self.session.capture(), given)
        return given if self.wanted.keep_progress else with_step(given, step)

    def write(
        self,
        writer: ProofWriter,
        source: Iterator[State | Weights],
        samples: Iterator[Any] | None,
        environment: Environment,
    ) -> None:
        training, before = self.header.training, writer.state
        assert before is not None
        start = writer.segments * training.interval
        stop = min(start + training.interval, self.steps)
        count = stop - start
        own = None
        if self._rates is None:  # before the state, for which the schedule may have to move on
            own = np.array(list(self._idle(stop)), dtype=np.float64).reshape(count, -1)
        after = self.state(source, stop)
        rates = self._given_rates(count, start) if own is None else own
        arrived, after, encoded = self._arrives(writer, after, stop)
        moved = displacement(before, after)
        if not math.isfinite(moved.state):
            raise AttackError(f"the state at step {stop} is not finite, which no proof can hold")
        columns = Columns(
            np.array(_take(self._loss, count, "losses", start), dtype=np.float64).reshape(count),
            rates,
            None if samples is None else [_indices(row) for row in _take(samples, count, "batches", start)],
            None if samples is None else _take(self._rng, count, "generator states", start),
        )
        if not (np.isfinite(columns.loss).all() and np.isfinite(columns.rates).all()):
            raise AttackError(f"the losses or rates from step {start} on are not finite, which no proof can hold")
        writer.segment(
            arrived=arrived, state=after, displacement=moved, environment=environment, columns=columns, stop=stop, encoded=encoded
        )  # fmt: skip

    def _arrives(self, writer: ProofWriter, given: State, stop: int) -> tuple[str, State, Encoded | None]:
        """The digest that training is said to have arrived at, the state that it goes on from, and that as it is stored."""
        if self._arrived is not None:
            return next(self._arrived), given, None
        digest = given.digest()
        if digest in self.wanted.stored:
            return self.wanted.stored[digest], given, None
        encoded = writer.encode(given, stop)
        if encoded is None:
            return digest, given, None
        for session in self.wanted.sessions:
            if with_step(session.capture(), stop).digest() == digest:
                session.restore(encoded.state)
        return digest, encoded.state, encoded

    def _given_rates(self, count: int, start: int) -> Array:
        assert self._rates is not None
        rows = [np.asarray(row, dtype=np.float64) for row in _take(self._rates, count, "rates", start)]
        try:
            return np.stack([np.broadcast_to(row, (self._groups,)) for row in rows])
        except ValueError:
            raise AttackError(
                f"a step has {self._groups} rates, one for each parameter group, not {rows[0].shape}"
            ) from None

    def _idle(self, stop: int) -> Iterator[list[float]]:
        return self.session.idle(stop, self.steps_per_epoch)


def _header(
    task: Task, session: Session, data: Any, wanted: Claims, states: Iterable[Any], batches: Iterable[Any] | None
) -> tuple[Header, int]:
    """The header, and how many steps the run has."""
    steps, per_epoch = wanted.steps, task.steps_per_epoch(len(data))
    if steps is None:
        steps = len(batches) if isinstance(batches, Sized) else task.total_steps(len(data))
    if wanted.training is None:
        interval = wanted.interval
        if interval is None:
            interval = _fitting_interval(steps, len(states) - 1 if isinstance(states, Sized) else None)
        if steps < 1 or interval < 1:
            raise AttackError(f"a run has at least one step and an interval of at least 1, not {steps} and {interval}")
        training = Training(steps if wanted.planned is None else wanted.planned, interval, per_epoch)
    else:
        training = wanted.training
        steps = training.planned if wanted.steps is None and training.planned is not None else steps
    mode = "derived" if batches is None else "recorded"
    if wanted.randomness is not None and wanted.randomness.mode != mode:
        raise AttackError(f"the claimed randomness is {wanted.randomness.mode}; with these batches it is {mode}")
    header = make_header(
        task, session, data, interval=training.interval, mode=mode, data_commitment=wanted.data
    )  # fmt: skip
    changes: dict[str, Any] = {"training": training}
    for name, value in (
        ("format", wanted.format), ("task", wanted.task_claim), ("randomness", wanted.randomness), ("codec", wanted.codec),
        ("claim", wanted.claim), ("initialization", wanted.initialization),
    ):  # fmt: skip
        if value is not None:
            changes[name] = value
    if isinstance(wanted.initialization, str):
        changes["initialization"] = msgspec.convert({"kind": wanted.initialization}, Initialization)
    return msgspec.structs.replace(header, **changes), steps


def _fitting_interval(steps: int, segments: int | None) -> int:
    """The interval by which ``steps`` make that many segments: the default one if it fits, else the smallest."""
    usual = default_interval(steps)
    if segments is None or -(-steps // usual) == segments:
        return usual
    fitting = -(-steps // segments) if segments > 0 else 0
    if fitting < 1 or -(-steps // fitting) != segments:
        raise AttackError(
            f"{segments + 1} states make no run of {steps} steps; claim the steps and the interval that are meant"
        )
    return fitting


def _rows(given: Any, steps: int, what: str) -> Iterator[Any]:
    """One row a step of a scalar (for all), a sequence or an iterator."""
    if isinstance(given, Iterator):
        return given
    if isinstance(given, (int, float)) or np.ndim(given) == 0:
        return repeat(float(given), steps)
    if len(given) != steps:
        raise AttackError(f"{what}: {len(given)} rows are given for {steps} steps")
    return iter(given)


def _take(rows: Iterator[Any], count: int, what: str, start: int) -> list[Any]:
    taken = list(islice(rows, count))
    if len(taken) != count:
        raise AttackError(f"the {what} end at step {start + len(taken)}, before the run does")
    return taken


def _indices(row: Any) -> npt.NDArray[np.int64]:
    array = np.asarray(row)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise AttackError("a step's batch is given as a row of sample indices")
    return array.astype(np.int64)
