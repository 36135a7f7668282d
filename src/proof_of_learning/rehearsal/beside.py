"""The rehearsal of a run while it is recorded: hops are collected at its start and at later points, and replayed beside it.

A task with a reference is replayed in a fresh process with another hash seed. A task that is an object, in this process, with fresh
objects: what it keeps in globals and closures, and what differs from process to process, is then not found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proof_of_learning import canonical
from proof_of_learning.behind import Behind
from proof_of_learning.data.commit import Dataset, encode_sample
from proof_of_learning.errors import PolError, RecordingWarning, RehearsalWarning, TaskError, WorkerError
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.proof.format import Header
from proof_of_learning.rehearsal import holdings
from proof_of_learning.rehearsal.causes import Finding, explain, in_place
from proof_of_learning.rehearsal.hops import (
    HASH_SEED,
    Evidence,
    Hop,
    LocalPlayer,
    Player,
    ProcessPlayer,
    examine,
    investigate,
)
from proof_of_learning.rehearsal.loading import check_described, check_start
from proof_of_learning.rehearsal.structure import altered, grown, structure, unrepeated
from proof_of_learning.replay.pool import Job
from proof_of_learning.state.modules import tensors_in
from proof_of_learning.state.state import State, capture, tensor_bytes
from proof_of_learning.task import Task, is_script, load_task
from proof_of_learning.training.batches import Feed, Indices, Order
from proof_of_learning.training.steps import Session

VARIABLE = "POL_REHEARSAL"  # `0` in it turns rehearsals off where nobody asks for one
SAMPLES = 32  # of the data set are looked at before and after the first step
TIMEOUT = 300.0  # seconds without a sign of life from a worker


@dataclass(frozen=True)
class Pace:
    """How much is rehearsed.

    hops: at most so many stretches in a round; the first is one step, others reach to the end of their segment.
    hop_seconds, seconds: of training, after which a hop and a round end. room: bytes of states that a round may keep.
    share: later rounds take no more than this share of the time of training. rounds: at most so many in a run.
    """

    hops: int = 12
    hop_seconds: float = 0.5
    seconds: float = 1.0
    room: int = 256 << 20
    share: float = 0.01
    rounds: int = 8


def wanted(rehearse: bool | None) -> bool:
    """Whether to rehearse: what was asked for, else what the environment variable says, else yes."""
    return os.environ.get(VARIABLE) != "0" if rehearse is None else rehearse


@dataclass(frozen=True)
class Live:
    """What of a managed run may be looked at more closely: its session, its data, its feed and order."""

    session: Session
    data: Dataset
    feed: Feed
    order: Order


class Rehearsal:
    """Watches one recording. The recorder calls :meth:`begin`, then :meth:`before` and :meth:`after` around each step, :meth:`finish`
    before it seals, and :meth:`close` in any case.
    """

    def __init__(
        self,
        job: Job,
        environment: Environment,
        header: Header,
        parts: Mapping[str, Any],
        live: Live | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._job, self._environment, self._header, self._parts = job, environment, header, parts
        self._live, self._pace = live, pace or Pace()
        self._task: Task | None = None  # a script is none
        if isinstance(job.task, Task):
            self._task = job.task
        elif not is_script(job.task.target):
            self._task = load_task(job.task)
        self._player: Player | None = None
        self._behind = Behind()
        self._hops: list[Hop] = []
        self._hop: Hop | None = None
        self._collecting = False
        self._outcome: Finding | Evidence | WorkerError | None = None
        self._notice: Finding | None = None  # to be said, while training goes on
        self._rounds, self._spent = 0, 0.0
        self._begun = self._hop_begun = self._round_begun = time.monotonic()
        self._initial: State | None = None

    def begin(self, step: int) -> None:
        """The run stands before ``step``, and goes on from there."""
        self._first = step
        self._held = self._look()
        self._samples = self._read(range(0))
        if self._live is not None:
            self._samples = self._read(self._live.order.indices(step)[:SAMPLES])
        now = capture(self._parts, live=True)
        self._built = structure(now)
        if step == 0 and self._header.randomness.mode == "derived":
            self._initial = now.settled() if now.nbytes <= self._pace.room else None
        self._launch()
        self.before(step)

    # ---- around steps --------------------------------------------------------------------------------

    def before(self, step: int) -> None:
        """The state is complete, also after a codec in the loop; ``step`` is the next one."""
        steps = self._header.training.at_most
        if step >= steps or (not self._collecting and not self._due(step)):
            return
        if not self._collecting:
            self._collecting, self._hops, self._round_begun = True, [], time.monotonic()
            if self._rounds:
                self._launch()
        if self._hop is None:
            last = self._hops[-1] if self._hops else None
            whole = last is not None and last.stop == step and not self._header.codec.in_loop
            before = last.after if whole and last is not None else None
            self._hop = Hop(step, before or capture(self._parts))
            self._hop_begun = time.monotonic()

    def after(
        self,
        step: int,
        loss: Tensor,
        indices: Indices | None = None,
        rng: RngSnapshot | None = None,
        loop: Indices | None = None,
    ) -> None:
        """``step`` was taken; a codec in the loop has not touched its state yet. Raises TaskError for what was found."""
        self.check()
        if step == self._first:
            self._look_at_samples()
        hop = self._hop
        if hop is None:
            return
        hop.add(loss, indices, rng, loop)
        training, now = self._header.training, time.monotonic()
        last = step + 1 == training.at_most
        single = not self._hops
        if not (
            single or last or (step + 1) % training.interval == 0 or now - self._hop_begun > self._pace.hop_seconds
        ):
            return
        hop.stop, hop.after, self._hop = step + 1, capture(self._parts), None
        self._hops.append(hop)
        kept = (len(self._hops) + 1) * hop.after.nbytes
        slow = now - self._round_begun > self._pace.seconds
        if last or len(self._hops) >= self._pace.hops or slow or kept > self._pace.room:
            self._submit()

    def checkpoint(self, segment: Hop) -> None:
        """A segment is about to be recorded. Raises TaskError where no task that is built anew fits its end, or where an optimizer was
        given a further group by what a replay does not do.
        """
        step, state = segment.stop, segment.after
        assert state is not None
        if step < self._header.training.at_most and (found := altered(self._built, structure(state), step)) is not None:
            self._stop(found)
        part = grown(segment.before, state)
        if part is not None:
            state.wait()
            if (found := self._regrouped(part, segment)) is not None:
                self._stop(found)

    def _regrouped(self, part: str, segment: Hop) -> Finding | None:
        """What is wrong with a segment in which an optimizer was given a group: a replay of it, waited for, tells."""
        self._settle()
        if self._player is None:
            self._launch()
        assert self._player is not None
        try:
            found = examine(self._player, segment)
        except WorkerError as error:
            found, self._outcome = None, error
        finally:
            if not self._collecting:
                self._end()
        self._settle()
        return None if found is None else unrepeated(part, found.start, found.stop)

    def check(self) -> None:
        """Raise TaskError for what was found so far; wait for nothing."""
        if self._behind.idle:
            self._settle()

    def finish(self) -> None:
        """Wait for what is under way, and raise TaskError for what was found."""
        if self._hops and self._collecting:
            self._submit()
        self._settle()

    def close(self) -> None:
        """End what is under way."""
        self._end()
        self._behind.close()

    # ---- rounds --------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        """Whether a round may begin: after the first step, then where it costs but a small share of the time since the last one."""
        if self._rounds == 0:
            return step > self._first or step + 1 == self._header.training.at_most
        if self._rounds >= self._pace.rounds or not self._behind.idle:
            return False
        return self._since() > max(self._spent / self._pace.share, self._round_begun - self._begun)

    def _since(self) -> float:
        """Seconds since the last round began."""
        return time.monotonic() - self._round_begun

    def _launch(self) -> None:
        if self._job.reference is not None:
            seed = (
                3 if os.environ.get(HASH_SEED) == "1" else 1
            )  # another than ours, which is drawn unless it was chosen
            self._player = self._process(seed)
        else:
            self._player = LocalPlayer(self._job, self._environment)

    def _process(self, hash_seed: int) -> Player:
        return ProcessPlayer(self._job, self._environment, hash_seed, TIMEOUT)

    def _submit(self) -> None:
        hops, self._hops, self._collecting = self._hops, [], False
        first = self._rounds == 0
        self._rounds += 1
        short = self._short_of_memory(hops[0].before.nbytes)
        if short:
            self._outcome = WorkerError(short)
            self._end()
        elif self._job.reference is None:
            self._round(hops, first)
            self._settle()
        else:
            self._behind.submit(lambda: self._round(hops, first))

    def _round(self, hops: list[Hop], first: bool) -> None:
        begun = time.monotonic()
        player = self._player
        assert player is not None
        try:
            self._outcome = self._rehearsed(player, hops, first)
        except WorkerError as error:
            self._outcome = error
        except PolError as error:
            self._outcome = Finding(
                "the task cannot be built in a fresh process"
                if self._task
                else "the script cannot be run in a fresh process",
                str(error),
                "",
                "a verifier's process has to be able to do that",
            )
        except Exception as error:  # ended under way, or what nobody thought of: no reason to end training
            self._outcome = WorkerError(canonical.brief(f"{type(error).__name__}: {error}"))
        finally:
            player.close()
            self._player = None
            self._spent = time.monotonic() - begun

    def _rehearsed(self, player: Player, hops: list[Hop], first: bool) -> Finding | Evidence | None:
        if first:
            found = None if self._task is None else check_described(player, self._header)
            if found is None and self._initial is not None:
                found, self._notice = check_start(player, self._initial, self._task is None)
            self._initial = None
            if found is not None:
                return found
        for hop in hops:
            difference = examine(player, hop)
            if difference is not None:
                if hop.after is not None and (part := grown(hop.before, hop.after)) is not None:
                    return unrepeated(part, hop.start, hop.stop)
                if self._job.reference is None:
                    return investigate(player, hop, difference, None, None)
                return investigate(
                    player, hop, difference, self._header.data.root,
                    lambda: self._process(2),
                )  # fmt: skip
        return None

    def _settle(self) -> None:
        self._behind.join()
        outcome, self._outcome = self._outcome, None
        notice, self._notice = self._notice, None
        if notice is not None:
            warnings.warn(notice.line(), RecordingWarning, stacklevel=4)
        if isinstance(outcome, WorkerError):
            warnings.warn(f"the rehearsal could not be carried out: {outcome}", RehearsalWarning, stacklevel=4)
        elif isinstance(outcome, Finding):
            self._stop(outcome)
        elif outcome is not None:
            self._stop(self._named(outcome))

    def _stop(self, finding: Finding) -> None:
        raise TaskError(
            f"{finding.line()} (training was stopped, as no proof of it would be valid; what is recorded stays, and --no-rehearsal, "
            "rehearse=False in Python, goes on all the same)"
        )

    def _end(self) -> None:
        player, self._player = self._player, None
        if player is not None:
            player.close()

    # ---- naming --------------------------------------------------------------------------------------

    def _named(self, evidence: Evidence) -> Finding:
        changes = holdings.changed(self._held, self._look())
        module = None
        if self._live is not None and evidence.difference.forward and not evidence.data_differ:
            with contextlib.suppress(Exception):  # it is only a name
                assert self._task is not None
                live = self._live.session
                fresh = Session(self._task, live.key, live.device, self._job.base, live.arithmetic)
                module = first_module(self._live.session, fresh, self._live.feed, self._live.order)
        apart = self._job.reference is not None
        loop = self._header.randomness.mode == "recorded"
        return explain(evidence, changes, self._rewritten(), module, apart=apart, loop=loop)[0]

    def _look(self) -> dict[str, holdings.Held]:
        """What is held beside the recorded state now."""
        return holdings.look(self._parts, self._task, None if self._live is None else self._live.data)

    def _read(self, indices: Any) -> dict[int, bytes]:
        if self._live is None:
            return {}
        return marks(self._live.data, indices)

    def _rewritten(self) -> int | None:
        return rewritten(self._samples, self._read(self._samples))

    def _look_at_samples(self) -> None:
        """A step that writes into its samples shows in no state before they are read again."""
        training = self._header.training
        if training.at_most <= training.steps_per_epoch or (sample := self._rewritten()) is None:
            return
        self._stop(Finding("a replay finds other data than training", f"after step {self._first}", *in_place(sample)))

    def _short_of_memory(self, size: int) -> str:
        """Why there is no room for a second copy of the run, or nothing. Training must not be what ends for want of it."""
        needed = 6 * size
        if needed > 1 << 30 and (free := _free_memory()) is not None and free < needed:
            return f"it needs about {needed >> 20:,} MiB of memory, of which {free >> 20:,} are free"
        if self._environment.device.type == "cuda":
            spare, used = torch.cuda.mem_get_info()[0], torch.cuda.max_memory_reserved()
            if spare < used + (1 << 30):
                return f"it needs about {used + (1 << 30) >> 20:,} MiB on the accelerator, of which {spare >> 20:,} are free"
        return ""


def marks(data: Dataset, indices: Iterable[Any]) -> dict[int, bytes]:
    """A digest of each of some samples, as the data set gives them now."""
    return {int(i): hashlib.sha256(encode_sample(data[int(i)])).digest() for i in indices}


def rewritten(before: Mapping[int, bytes], now: Mapping[int, bytes]) -> int | None:
    """The first sample that is not what it was."""
    return next((index for index, mark in before.items() if now[index] != mark), None)


def first_module(one: Session, two: Session, feed: Feed, order: Order) -> str | None:
    """The first module whose output differs where two sessions take the same step from the state that ``one`` has now."""
    two.restore(one.capture())
    left, right = _outputs(one, feed, order), _outputs(two, feed, order)
    for (name, a), (other, b) in zip(left, right, strict=False):
        if name != other:
            return None
        if a != b:
            return f"module {canonical.brief(name)!r}" if name else "the model"
    return None


def _outputs(session: Session, feed: Feed, order: Order) -> list[tuple[str, bytes]]:
    """A mark of each module's output in one step, in the order in which they end."""
    found: list[tuple[str, bytes]] = []

    def hook(name: str) -> Any:
        def seen(module: Any, given: Any, output: Any) -> None:
            hasher = hashlib.sha256()
            for tensor in tensors_in(output):
                hasher.update(tensor_bytes(tensor.detach().cpu().contiguous()))
            found.append((name, hasher.digest()))

        return seen

    handles = [module.register_forward_hook(hook(name)) for name, module in session.model.named_modules()]
    try:
        list(session.run(session.progress.step + 1, feed, order))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _free_memory() -> int | None:
    """Bytes that processes may still take, as Linux estimates them."""
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None
