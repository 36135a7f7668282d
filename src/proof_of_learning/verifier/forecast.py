"""What a verification will cost, before it runs: draws, steps, bytes, memory, and with a task the time.

From the proof's own sizes; with a task everything is done that comes before the first check (states are read and looked at, which
says how many draws the weights and the function need), and a few steps are taken, whose time is measured.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from proof_of_learning.errors import UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import remote
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay import fork
from proof_of_learning.replay import sandbox as sandboxes
from proof_of_learning.replay.pool import LocalPool
from proof_of_learning.replay.requests import Replay, Replayed
from proof_of_learning.task import Setting, TaskReference
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.conclude import Clock
from proof_of_learning.verifier.expected import planned_steps
from proof_of_learning.verifier.options import Draw, Options
from proof_of_learning.verifier.plan import challenge, make_nonce
from proof_of_learning.verifier.progress import MAIN, importance
from proof_of_learning.verifier.survey import Survey
from proof_of_learning.verifier.verify import surveyed

SCHEMA = "pol/plan/v1"
MEASURED = 3  # segments that are replayed to measure a step; the first of them warms up
ASSUMED = (
    3  # times as many draws by weight as uniform ones, where the weights are not known; networks need about so many
)
BESIDE = 3  # states that the verifier's process holds beside those on their way to and from workers


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. ``step``: one step in a worker; ``segment``: what else a segment takes; ``start``, ``survey``: as measured.

    ``replay``: of all drawn segments with so many workers; ``total``: all of these, but not reading and hashing the task's data and
    evaluating its model, which come once. ``at_once``: how many workers this machine's cores serve at full speed.
    """

    step: float
    segment: float
    start: float
    survey: float
    replay: float
    total: float
    at_once: int


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """``draws``: segments by reason, of which one may have several; ``random``: what to hand to ``--random``, None for its default.

    ``known``: whether the draws by weight are known; without a task nobody knows the weights, and a usual number is assumed.
    ``read``: bytes of the proof; ``moved``: between the verifier's process and workers, with ``state`` bytes for one state.
    ``memory``: bytes of states in the verifier's process, and in each worker (beside Python, PyTorch, the data and one step's own).
    """

    root: str
    steps: int
    segments: int
    interval: int
    confidence: float
    forged: float
    draws: dict[str, int]
    random: int | None
    known: bool
    replayed_segments: int
    replayed_steps: int
    share: float
    state: int
    read: int
    moved: int
    memory: dict[str, int]
    workers: int
    command: str
    times: Times | None = None
    notes: list[str] = []
    schema: str = SCHEMA


@dataclass(frozen=True)
class _Drawn:
    """What is drawn for a guarantee: as in :class:`Forecast`, and the segments that are ``picked``."""

    confidence: float
    forged: float
    draws: dict[str, int]
    random: int | None
    known: bool
    picked: set[int]


def forecast(
    path: str | os.PathLike[str],
    task: TaskReference | None = None,
    *,
    confidence: float = 1 - guarantee.MISS_PROBABILITY,
    forged: float = guarantee.FORGED_FRACTION,
    options: Options | None = None,
    progress: ProgressCallback = silent,
    named: str | None = None,
) -> Forecast:
    """What verifying the proof at ``path`` costs, so that a forgery of more than a share ``forged`` is hit with ``confidence``.

    Without a task, nothing of the task's is run and one state is read. ``named``: how the user wrote the task. Raises FormatError,
    IntegrityError or UsageError.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence lies between 0 and 1, not at {confidence:g}")
    if not 0 < forged < 1:
        raise UsageError(f"a forged share lies between 0 and 1, not at {forged:g}")
    options, miss = options or Options(), 1 - confidence
    with ExitStack() as opened:
        here = remote.local(path, lambda done, total: progress("copying the proof", done, total))
        proof = Proof.open(opened.enter_context(here))
        if task is None:
            segments = len(proof.segments)
            uniform = guarantee.uniform_draws_needed(segments, forged, miss)
            weighted = 0 if len(proof.index) <= segments else min(ASSUMED * uniform, segments)
            random = _asked(uniform, weighted, confidence, forged)
            drawn = _Drawn(
                confidence, forged, {"first": 1, "last": 1, "uniform": uniform, "progress": weighted}, random,
                weighted == 0, _uniformly(proof, uniform + weighted),
            )  # fmt: skip
            return _told(path, "TASK", {}, proof, options, drawn, None)
        clock, nonce = Clock(), make_nonce(None)
        isolation = sandboxes.isolation(options.runtime.sandbox, options.runtime.allow_read, in_process=False)
        found, replayer, _ = surveyed(
            opened, proof, task, None, options, isolation, nonce, clock, progress, partial(LocalPool, workers=1)
        )
        assert replayer is not None
        uniform, weighted = _needed(proof, found, forged, miss)
        random = _asked(uniform, weighted, confidence, forged)
        chosen = challenge(
            proof.steps, proof.header.training.interval, proof.root, found, nonce, Draw(options.draw.top_q, random)
        )
        measured: list[Replayed] = []
        for number, index in enumerate([*chosen.segments][:: max(1, len(chosen.segments) // MEASURED)][:MEASURED]):
            progress("measuring a step", number, MEASURED)
            measured.append(replayer.ask(Replay(index)))
        clock.lap("measured")
        times = _times(proof, chosen.segments, clock.phases, measured[1:] or measured, options.runtime.workers)
        draws = dict(Counter(why for reasons in chosen.segments.values() for why in reasons))
        drawn = _Drawn(confidence, forged, draws, random, True, set(chosen.segments))
        return _told(path, named or task.target, task.settings, proof, options, drawn, times)


def _needed(proof: Proof, found: Survey, forged: float, miss: float) -> tuple[int, int]:
    """Draws, uniform and by weight, that leave a forgery of that share a probability of ``miss``."""
    weight = importance(found.measures, len(proof.segments))
    total = float(weight.sum())
    real = int((~found.trivial).sum())
    weighted = guarantee.progress_draws_needed(weight, min(1.0, forged / MAIN / total), miss) if total else 0
    return guarantee.uniform_draws_needed(real, forged, miss), weighted


def _asked(uniform: int, weighted: int, confidence: float, forged: float) -> int | None:
    """What to ask for, of which half is drawn uniformly and half by weight; None where it is what a verification does by itself."""
    usual = abs(confidence - (1 - guarantee.MISS_PROBABILITY)) < 1e-9 and forged == guarantee.FORGED_FRACTION
    return None if usual else 2 * max(uniform, weighted)


def _uniformly(proof: Proof, draws: int) -> set[int]:
    """First, last, and one of many draws of so many, the same each time."""
    count = len(proof.segments)
    return {0, count - 1, *guarantee.draw_uniform(range(count), draws, randomness.uniforms(0, count))}


def _times(
    proof: Proof, picked: Mapping[int, object], phases: Mapping[str, float], measured: list[Replayed], workers: int
) -> Times:
    steps = planned_steps(proof, picked)
    step = float(np.median([answer.step_seconds / answer.steps for answer in measured]))
    beside = float(np.median([answer.seconds - answer.step_seconds for answer in measured]))
    threads = max(environment.threads for environment in proof.environments.values())
    at_once = max(1, min(workers, fork.cores() // max(1, threads * proof.header.ranks)))
    replay = (steps * step + len(picked) * beside) / at_once
    start, survey = phases["start of the worker"], phases["survey"]
    return Times(
        step=step, segment=beside, start=start, survey=survey, replay=replay, total=start + survey + replay, at_once=at_once
    )  # fmt: skip


def _told(
    path: str | os.PathLike[str],
    target: str,
    settings: Mapping[str, Setting],
    proof: Proof,
    options: Options,
    drawn: _Drawn,
    times: Times | None,
) -> Forecast:
    count, workers = len(proof.segments), options.runtime.workers
    digests = proof.state_digests()
    held = next(digest for digest in reversed(digests) if proof.has_state(digest))
    state = proof.state(held).nbytes
    steps = planned_steps(proof, drawn.picked)
    again = sum(proof.index[digests[index]].bytes for index in drawn.picked if proof.has_state(digests[index]))
    notes = []
    if len(proof.index) <= count:
        notes.append(
            f"{count + 1 - len(proof.index):,} states are not in the proof: nothing is drawn by weight, and starts are replayed "
            "from the nearest states that are; it is valid only with --accept-uniform"
        )
    elif not drawn.known:
        notes.append(
            f"without --task nobody knows what segments did: {ASSUMED} times as many draws by weight as uniform ones are assumed"
        )
    if (ranks := proof.header.ranks) > 1:
        notes.append(
            f"{ranks} processes trained together: each worker is a group of {ranks} processes, and takes the memory of {ranks}"
        )
    if times is not None and times.at_once < workers:
        notes.append(f"{workers} workers compute on {fork.cores()} cores here: no faster than {times.at_once}")
    if abs(drawn.confidence - (1 - guarantee.MISS_PROBABILITY)) >= 1e-9:
        notes.append(f"a verdict states what is missed with {guarantee.MISS_PROBABILITY:.0%}, whatever was planned for")
    command = ["pol", "verify", os.fspath(path), "--task", target]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    command += [] if drawn.random is None else ["--random", str(drawn.random)]
    command += [] if workers == 1 else ["--workers", str(workers)]
    return Forecast(
        root=proof.root, steps=proof.steps, segments=count, interval=proof.header.training.interval,
        confidence=drawn.confidence, forged=drawn.forged, draws=drawn.draws, random=drawn.random, known=drawn.known,
        replayed_segments=len(drawn.picked), replayed_steps=steps, share=steps / proof.steps,
        state=state, read=proof.stored_bytes + again, moved=2 * state * len(drawn.picked),
        memory={"verifier": (BESIDE + 2 * workers) * state, "each worker": 2 * state},
        workers=workers, command=shlex.join(command), times=times, notes=notes,
    )  # fmt: skip
