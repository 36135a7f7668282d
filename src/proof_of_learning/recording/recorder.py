"""Recording: what turns steps into a proof.

The recorder knows named parts and steps, nothing of the loop that drives it. :func:`proof_of_learning.prove` is one of
its users; any other loop is the other (:meth:`Recorder.observe`).
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from proof_of_learning import limits
from proof_of_learning.behind import Behind
from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import (
    EvaluationWarning,
    RecordingError,
    RecordingWarning,
    TaskError,
    TrainingError,
    UsageError,
)
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof import codecs, files, format
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.recording.checkpoint import Checkpoint, Rows, finite
from proof_of_learning.recording.header import make_header
from proof_of_learning.recording.stamping import Stamped, Stamping
from proof_of_learning.rehearsal import beside, following
from proof_of_learning.rehearsal.beside import Rehearsal
from proof_of_learning.rehearsal.following import Following
from proof_of_learning.rehearsal.hops import Hop
from proof_of_learning.rehearsal.structure import regrouped
from proof_of_learning.replay.pool import Job
from proof_of_learning.state.optimizers import settle_groups
from proof_of_learning.state.parts import Progress, of_kind, optimizers, rates
from proof_of_learning.state.state import State, capture, restore
from proof_of_learning.task import Task, task_code
from proof_of_learning.training.batches import Indices
from proof_of_learning.training.steps import Session

if TYPE_CHECKING:
    from proof_of_learning.proof.codecs.base import Encoded
    from proof_of_learning.recording.stamper import Stamper


@dataclass
class _Pending:
    """A step of a foreign loop that has begun: its samples, the generators' states and rates at its start, its losses so far."""

    indices: Indices
    rng: RngSnapshot
    rates: list[float]
    batches: int
    losses: list[torch.Tensor] = field(default_factory=list)


class Peers(Protocol):
    """Further processes that train together with this one, which writes the proof of all.

    ``join``: the state of all of them, and their steps since the last checkpoint, at the one after ``stop`` steps; ``seal``: whether
    all have ended after so many. Both raise PolError where the processes part.
    """

    def join(self, state: State, rows: Rows, stop: int) -> tuple[State, Rows]: ...
    def seal(self, steps: int) -> None: ...


class Recorder:
    """Takes a checkpoint every ``interval`` steps and writes one log entry for each segment.

    Use as a context manager. After construction, ``steps_done`` says where a resumed recording stands; the parts have then
    been put into that state. ``complete`` is true where the directory already holds the finished proof of this run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        parts: Mapping[str, Any],
        environment: Environment,
        *,
        keep_every: int | None = None,
        asynchronous: bool = False,
        rehearsal: Rehearsal | None = None,
        stamping: Stamping | None = None,
        peers: Peers | None = None,
    ) -> None:
        """``keep_every``: thin while recording; see :class:`ProofWriter`. ``asynchronous``: the loop waits for a copy of the state
        alone; measuring, hashing, encoding and writing happen beside it, one checkpoint at a time. ``rehearsal``: what replays
        short stretches of the run while it goes on. ``stamping``: how the log's head is stamped meanwhile; ``stamped``: what came of
        it, once the recording is closed. ``peers``: the other processes of several that train together.
        """
        if keep_every is not None and keep_every < 1:
            raise UsageError(f"every how many states one is kept must be at least 1, not {keep_every}")
        self.path, self.header, self.parts, self.environment = Path(path), header, dict(parts), environment
        self._rows = Rows()
        self._pending: _Pending | None = None
        self._behind = Behind() if asynchronous else None
        self._groups = {name: settle_groups(optimizer) for name, optimizer in optimizers(self.parts).items()}
        self._spare: State | None = None  # memory for the next copy
        self._rehearsal, self._peers = rehearsal, peers
        self.stamped: Stamped | None = None
        self._following: Following | None = None
        self.complete = (self.path / format.SEAL_FILE).exists()
        if self.complete:
            self._check_same_run()
            proof = Proof.open(self.path)
            self.steps_done = proof.steps
            restore(self.parts, proof.state(proof.segments[-1].state))
            return
        self._stamper = None if stamping is None else _stamper(self.path, header, stamping)
        if (self.path / format.HEADER_FILE).exists():
            self._writer = ProofWriter.resume(self.path, header, keep_every)
        else:
            self._writer = ProofWriter.create(self.path, header, keep_every)
        try:
            if self._writer.state is not None:
                restore(self.parts, self._writer.state)
            else:
                self._writer.start(self._gathered(0))
        except BaseException:
            self._writer.close()
            raise
        self.steps_done = self._writer.steps
        if self._rehearsal is not None:
            self._rehearsal.begin(self.steps_done)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if self._behind is not None and kind is None:
                self._behind.join()  # a loop that ended without close() learns here what went wrong beside it
            if kind is None and self._pending is not None and self.finished:
                self._say(
                    "every step was taken, and the loop ended without close(), so nothing is sealed; call it behind the loop"
                )
        finally:
            if self._rehearsal is not None:
                self._rehearsal.close()
            if self._behind is not None:
                self._behind.close()
            if not self.complete:
                if self._stamper is not None:
                    self._stamper.close()
                self._writer.close()

    def step(
        self,
        loss: torch.Tensor,
        rates: list[float],
        *,
        indices: Indices | None = None,
        rng: RngSnapshot | None = None,
        loop: Indices | None = None,
        evaluation: Mapping[str, float] | None = None,
    ) -> bool:
        """Record one finished step; at a segment's end, its checkpoint. Returns whether one was taken.

        ``loop``: what happened in a script's step (:mod:`run.events`).
        ``evaluation``: what the model achieves at this checkpoint; only where :meth:`closes_segment` says that there is one.
        ``loss`` is a scalar tensor, read only at the checkpoint, so that a step on an accelerator is not held up.
        """
        if self._behind is not None:
            self._behind.check()
        self._check_groups()
        if (indices is None) != (self.header.randomness.mode == "derived"):
            raise UsageError("indices and generator states are recorded exactly where randomness is not derived")
        self._rows.add(loss, rates, indices, rng, loop)
        if self._rehearsal is not None:
            self._rehearsal.after(self.steps_done, loss, indices, rng, loop)
        self.steps_done += 1
        boundary = self._at_boundary(self.steps_done)
        if boundary:
            self._checkpoint(evaluation)
        if self._rehearsal is not None:
            self._rehearsal.before(self.steps_done)
        return boundary

    def closes_segment(self) -> bool:
        """Whether the next step to be recorded is the last of its segment."""
        return self._at_boundary(self.steps_done + 1)

    @property
    def finished(self) -> bool:
        """Whether every step of the run has begun: a foreign loop ends here, and :meth:`close` completes the last step."""
        planned = self.header.training.planned
        return planned is not None and self.steps_done + (self._pending is not None) >= planned

    def _at_boundary(self, steps: int) -> bool:
        training = self.header.training
        return steps % training.interval == 0 or steps == training.planned

    def close(self, evaluation: Mapping[str, float] | None = None, *, early: bool = False) -> str:
        """Seal the proof; returns its root. ``evaluation``: what the final model is said to achieve (finite numbers).

        ``early``: the run ends here although more steps were planned; the proof says so, and a verifier has to accept it.
        """
        if self.complete:
            return Proof.open(self.path).root
        if self._following is not None and self._pending is not None and self.finished:
            self._following.check(self.steps_done + 1, rates(self.parts))
        self._finish_pending()
        planned = self.header.training.planned
        stopped = planned is not None and self.steps_done < planned
        if stopped and not early:
            raise RecordingError(
                f"{self.steps_done} of {planned} steps were taken; close(early=True) seals a run that stops early"
            )
        if len(self._rows):  # a run whose end nobody knew, between two checkpoints
            self._checkpoint(None)
        if self._peers is not None:
            self._peers.seal(self.steps_done)
        if self._rehearsal is not None:
            self._rehearsal.finish()
        if self._behind is not None:
            self._behind.join()
        try:
            claimed = None if evaluation is None else finite(evaluation)
        except TrainingError as error:
            claimed = None
            warnings.warn(
                f"{error}; training is complete and sealed without a claim of what the model achieves",
                EvaluationWarning,
                stacklevel=2,
            )
        self._set_aside()
        root = self._writer.seal(claimed, stopped=stopped)
        if self._stamper is not None:
            self.stamped = self._stamper.finish()
        self._writer.close()
        return root

    def _set_aside(self) -> None:
        """Remove heads that were stamped before an interruption, of steps that came out otherwise when they were taken again: before
        there is a proof, and also where nothing is stamped any more.
        """
        if self._stamper is not None:
            self._stamper.settle()
        elif any((self.path / format.ATTESTATIONS).glob("head-*")):
            from proof_of_learning.recording.stamper import set_aside

            set_aside(self.path)

    # ---- foreign loops -------------------------------------------------------------------------------

    @classmethod
    def observe(
        cls,
        path: str | os.PathLike[str],
        task: Task,
        parts: Mapping[str, Any],
        *,
        interval: int | None = None,
        device: str = "cpu",
        codec: str = codecs.DEFAULT,
        keep_every: int | None = None,
        asynchronous: bool = False,
        rehearse: bool | None = None,
        stamping: Stamping | None = None,
    ) -> Recorder:
        """Record a loop that is not ours (mode ``recorded``): batch indices and generator states are written down.

        ``task`` describes the same training, so that a verifier can replay it; ``parts`` are the loop's own live objects under
        the task's names (``model``, ``optimizer``, ``scheduler`` …). Drive the loop through :meth:`watch`. ``rehearse``: whether
        short stretches are replayed by the task while the loop goes on, so that it raises TaskError where the two part (see
        :func:`proof_of_learning.prove`). ``stamping``: see :class:`Recorder`.
        """
        with randomness.preserved():
            session = Session(task, randomness.key_from_seed(task.seed), device)
            expected = set(session.parts) - {"progress"}
            if set(parts) != expected:
                raise UsageError(f"the task has the parts {sorted(expected)}; the loop gave {sorted(parts)}")
            header = make_header(task, session, task.data(), interval=interval, mode="recorded", codec=codec)
            if beside.wanted(rehearse):
                following.check_settings(session, {**parts, "progress": session.progress})
        # In the task's order, in which rates are told.
        parts = {**{n: parts[n] for n in session.parts if n in parts}, "progress": Progress(session.progress.adding)}
        environment = environments.current(device)
        rehearsal = None
        if beside.wanted(rehearse):
            rehearsal = Rehearsal(Job(task, header.randomness.key, task.seed), environment, header, parts)
        recorder = cls(
            path,
            header,
            parts,
            environment,
            keep_every=keep_every,
            asynchronous=asynchronous,
            rehearsal=rehearsal,
            stamping=stamping,
        )
        if recorder.complete:
            recorder._say("this run is finished; nothing is trained, and the parts are what its training ended with")
        elif rehearsal is not None:
            steps, done = header.training.at_most, recorder.steps_done
            recorder._following = Following.of(session, done, steps, header.training.steps_per_epoch)
        return recorder

    def watch(self, loader: Iterable[tuple[Any, Any]], batches_per_step: int = 1) -> Iterator[Any]:
        """Yield the loader's batches and record the steps taken between: a step ends with the request for the next one's first batch.

        The loader yields ``(indices, batch)``, as one over :class:`Indexed` does: what a sampler yielded is not what was trained
        on (loaders run ahead), so every sample carries its own index. Hand each loss to :meth:`loss`.
        """
        if self.finished and not self.complete:
            self._say(f"all {self.header.training.planned} steps of the task are taken; nothing beyond them is trained")
        iterator = iter(loader)
        while not self.finished:
            items = [item for _, item in zip(range(batches_per_step), iterator, strict=False)]
            if not items:
                return  # the step stays open: a scheduler may be stepped once the epoch's loop has ended
            self._finish_pending()
            indices = np.concatenate([torch.as_tensor(given).reshape(-1).numpy() for given, _ in items])
            used = rates(self.parts)
            if self._following is not None:
                self._following.check(self.steps_done, used)
            pending = self._pending = _Pending(indices, RngSnapshot.take(), used, len(items))
            for position, (_, batch) in enumerate(items, 1):
                yield batch
                if len(pending.losses) != position:
                    raise UsageError("call recorder.loss(loss) once for each batch, before asking for the next")

    def loss(self, value: torch.Tensor) -> None:
        """The loss of the batch that was yielded last (its mean over the batch, before any division for accumulation)."""
        if self._pending is None:
            raise UsageError("recorder.loss(loss) belongs between the batches of recorder.watch(loader)")
        self._pending.losses.append(value.detach().reshape(()))

    def epoch_loss(self) -> float:
        """The mean loss of the epoch, at whose end a task gives it to schedulers that are driven by a metric: a loop that is recorded
        steps them with the same number. UsageError where no step is open, or no scheduler of the task's needs it.
        """
        if self._pending is None or not self._pending.losses or not self.parts["progress"].adding:
            raise UsageError(
                "recorder.epoch_loss() is for the end of an epoch, behind the loop over recorder.watch(loader), where the task has "
                "a scheduler that is driven by a metric"
            )
        mean: float = self.parts["progress"].mean(_mean(self._pending.losses))
        return mean

    def _finish_pending(self) -> None:
        if self._pending is not None:
            done, self._pending = self._pending, None
            if len(done.losses) != done.batches:
                raise UsageError(
                    f"the loop left step {self.steps_done} after {len(done.losses)} losses for {done.batches} batches; "
                    "take a step with all its batches, and call recorder.loss(loss) once for each"
                )
            loss = _mean(done.losses)
            self.parts["progress"].add(loss, (self.steps_done + 1) % self.header.training.steps_per_epoch == 0)
            self.parts["progress"].step = self.steps_done + 1
            self.step(loss, done.rates, indices=done.indices, rng=done.rng)

    # ---- inside --------------------------------------------------------------------------------------

    def _gathered(self, stop: int) -> State:
        """The state after so many steps; of several processes, that of all, whose steps then are the rows."""
        read = self._peers is not None or not stop or self.header.rounded(stop)  # before the loop goes on
        with task_code("capturing the state"):
            state = capture(self.parts, live=True, behind=self._behind is not None and not read)
        if self._peers is not None:
            state, self._rows = self._peers.join(state, self._rows, stop)
        return state

    def _checkpoint(self, evaluation: Mapping[str, float] | None) -> None:
        if self._behind is not None:
            self._behind.join()
        arrived = self._gathered(self.steps_done)
        if self._rehearsal is not None:
            before = self._writer.state
            assert before is not None
            rows = self._rows
            start = self.steps_done - len(rows)
            drawn = rows.losses, rows.indices, rows.rng, rows.loop
            ranks = [its.share() for its in rows.ranks]
            self._rehearsal.checkpoint(Hop(start, before, self.steps_done, arrived, *drawn, ranks=ranks))
        encoded = self._writer.encode(arrived, self.steps_done)
        state, digest = arrived, None
        if encoded is not None:
            state, digest = encoded.state, arrived.digest()
            if not self._writer.segments:
                self._notice_kept(encoded)
            restore(self.parts, state)
        elif self._behind is not None:
            state = arrived.settled(self._spare)
        observed = self.header.randomness.mode == "recorded"
        checkpoint = Checkpoint(
            self.steps_done, state, encoded, digest, self._rows, torch.stack(self._rows.losses), observed,
            None if evaluation is None else finite(evaluation),
        )  # fmt: skip
        self._rows = Rows()
        if self._behind is None:
            self._write(checkpoint)
        else:
            self._behind.submit(functools.partial(self._write, checkpoint))

    def _write(self, checkpoint: Checkpoint) -> None:
        before = self._writer.state
        checkpoint.write(self._writer, self.environment)
        if self._stamper is not None:
            self._stamper.reached(self._writer.segments, self._writer.steps, self._writer.head)
        self._spare = before if before is not self._writer.state else None

    def _check_groups(self) -> None:
        """The groups that an optimizer was built with stay, and only PyTorch's own kind is given further ones. TaskError otherwise."""
        growing = of_kind(self.parts, "optimizer")
        for name, optimizer in optimizers(self.parts).items():
            count = len(optimizer.param_groups)
            if count < self._groups[name] or (count > self._groups[name] and name not in growing):
                raise TaskError(regrouped(name, self._groups[name], count, self.steps_done + 1).line())

    def _notice_kept(self, encoded: Encoded) -> None:
        """Who takes a codec that rounds wants small states: say at the first one where it cannot make them so."""
        sizes = {name: tensor.numel() for name, tensor in encoded.state.tensors.items()}
        kept = sum(sizes[name] for name in encoded.kept)
        if 2 * kept > sum(sizes.values()):
            largest = max(encoded.kept, key=sizes.__getitem__)
            kind = str(encoded.state.tensors[largest].dtype).removeprefix("torch.")
            self._say(
                f"the codec {self.header.codec.name} rounds float32 weights, and momenta of optimizers that it knows; "
                f"{kept / sum(sizes.values()):.0%} of this state are neither and stay as they are ({largest}, {kind}, say), so its "
                "checkpoints are not small"
            )

    def _say(self, what: str) -> None:
        warnings.warn(f"{self.path}: {what}", RecordingWarning, stacklevel=3)

    def _check_same_run(self) -> None:
        if bytes(files.read_bounded(self.path / format.HEADER_FILE, limits.MAX_HEADER)) != self.header.encoded():
            raise RecordingError(f"{self.path} holds the finished proof of another run; choose another path")


def _stamper(path: Path, header: Header, stamping: Stamping) -> Stamper:
    stamping.check(header)
    # Not at the top of the file: who stamps nothing needs no libraries for it.
    from proof_of_learning.recording.stamper import Stamper

    return Stamper(path, header, stamping)


def _mean(losses: list[torch.Tensor]) -> torch.Tensor:
    """Added up as the standard step does, so that the replay's loss has the same bits."""
    return functools.reduce(torch.add, [loss / len(losses) for loss in losses])


class Indexed:
    """A data set whose samples carry their index: ``(index, sample)``, for loaders that :meth:`Recorder.watch` wraps."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.data[index]
