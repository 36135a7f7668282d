"""Calibration: how far apart independent runs of a task end, and how far honest replays of it stray, by k and environment."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from proof_of_learning.errors import FormatError, RecordingError, UsageError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import files
from proof_of_learning.proof.reader import Proof
from proof_of_learning.prover import prove
from proof_of_learning.replay.measure import METRICS, Distance, compare, estimate_d_ref, weights
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import Noise, Replay
from proof_of_learning.state.names import WEIGHTS
from proof_of_learning.task import Task, TaskReference, load_task, task_code
from proof_of_learning.training.steps import Session, derived_feed
from proof_of_learning.verifier.calibrated import CAP, DELTA, DELTA_INTERVAL, NUDGES, Measured, Tolerance, tolerance

SCHEMA = "pol/calibration/v1"
INTERVALS = (1, 2, 5, 10, 20, 50)
MAX_STEPS = 1000
NUDGED = "nudged starts"  # no environment, but this machine's own with random rounding: it brings out rare events
MAX_CACHED = 16 << 20


class NoiseRow(msgspec.Struct, frozen=True):
    """Honest noise after ``k`` steps in one other environment: the largest over the segments, relative to displacement."""

    k: int
    environment: str
    overall: float
    kinds: dict[str, float]
    metrics: Distance
    judged_share: float
    noise_driven: dict[str, float]


class Calibration(msgspec.Struct, frozen=True):
    """The outcome. ``d_ref``: mean distance of independent runs after ``steps``; ``d_ref_estimate``: from the weights of one.

    ``rho``: the limit at each k; ``recommended_interval``: the largest k up to ``DELTA_INTERVAL`` at which the largest noise,
    times the margin, is within ``CAP`` (None if none is).
    """

    task: str
    name: str
    steps: int
    runs: int
    segments: int
    d_ref: Distance
    d_ref_estimate: Distance
    noise: list[NoiseRow]
    rho: dict[str, float]
    recommended_interval: int | None
    environment: Environment
    delta: float = DELTA
    cap: float = CAP
    schema: str = SCHEMA

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def calibrate(
    task: Task | TaskReference | str,
    *,
    intervals: Sequence[int] = INTERVALS,
    steps: int | None = None,
    runs: int = 3,
    segments: int = 8,
    cache: bool = True,
    progress: ProgressCallback = silent,
) -> Calibration:
    """Measure d_ref from ``runs`` independent seeds and honest noise on ``segments`` segments in every environment to be had here.

    steps: length of the runs (default: the task's own, at most 1,000). A result for the same task, steps and options is taken
    from the cache. Raises UsageError for a task without a reference: its replays need processes of their own.
    """
    task = load_task(task)
    if task.reference is None:
        raise UsageError(
            "calibration replays in other environments, so it needs a task given by reference (path.py:function)"
        )
    if runs < 2 or segments < 1 or not intervals or min(intervals) < 1:
        raise UsageError("calibration needs at least two runs, one segment and intervals of at least 1")
    with randomness.preserved(), environments.recording("cpu") as here, task_code("loading the data"):
        data = task.data()
        length = min(task.total_steps(len(data)), MAX_STEPS) if steps is None else steps
        intervals = sorted({k for k in intervals if k <= length})
        probe = Session(task, randomness.key_from_seed(task.seed))
        digest = probe.describe().digest()
        wanted = (
            f"{digest[7:]}-{length}-{runs}-{segments}-{'_'.join(map(str, intervals))}-{NUDGES}-{here.digest()[7:19]}"
        )
        found = _cached(wanted) if cache else None
        if found is not None:
            return found
        ends = []
        for run in range(runs):
            session = Session(task, randomness.key_from_seed(task.seed + run))
            start = weights(session.capture())
            feed, order = derived_feed(task, data, session.key, "cpu")
            for result in session.run(length, feed, order):
                progress("training independent runs", run * length + result.step + 1, runs * length)
            ends.append((start, session.capture().part("model")))
    pairs = [compare(a, b).kinds[WEIGHTS] for (_, a), (_, b) in itertools.combinations(ends, 2)]
    estimates = [estimate_d_ref(start, weights(end)) for start, end in ends]
    rows, limits = _noise(task, here, length, intervals, segments, progress)
    made = Calibration(
        task=digest, name=task.name, steps=length, runs=runs, segments=segments, d_ref=_mean(pairs), d_ref_estimate=_mean(estimates),
        noise=rows, rho={str(k): limit.rho for k, limit in limits.items()}, recommended_interval=_recommended(limits),
        environment=here,
    )  # fmt: skip
    if cache:
        _keep(wanted, made)
    return made


def _noise(
    task: Task, here: Environment, length: int, intervals: Sequence[int], segments: int, progress: ProgressCallback
) -> tuple[list[NoiseRow], dict[int, Tolerance]]:
    assert task.reference is not None
    with tempfile.TemporaryDirectory(prefix="pol-calibrate-") as folder:
        longest = max(intervals)
        recording = prove(
            replace(task, steps=length, epochs=None), Path(folder) / "run.pol", interval=longest, rehearse=False,
            progress=lambda doing, done, total: progress("recording a run", done, total) if doing == "training" else None,
        )  # fmt: skip
        proof = Proof.open(recording.path)
        whole = [s.index for s in proof.segments if s.stop - s.start == longest]
        chosen = sorted({whole[round(i * (len(whole) - 1) / max(1, segments - 1))] for i in range(segments)})
        variants = dict(_variants(here))
        places = list(itertools.product(intervals, chosen))
        found = {k: {name: list[Measured]() for name in (*variants, NUDGED)} for k in intervals}
        total, done = len(places) * (1 + len(variants) + NUDGES), 0
        with Replayer(proof, task.reference) as replayer:

            def replay(name: str, request: Noise, environment: Environment | None = None) -> None:
                nonlocal done
                answer = Measured.of(replayer.ask(request, environment=environment))
                assert answer is not None and request.steps is not None
                found[request.steps][name].append(answer)
                done += 1
                progress("replaying in other environments", done, total)

            for k, index in places:
                replayer.ask(Replay(index, k, calibrate=True))
                done += 1
                for nudge in range(1, NUDGES + 1):
                    replay(NUDGED, Noise(index, k, keep=True, nudge=nudge))
            for name, environment in variants.items():  # one after the other: each needs a process of its own
                for k, index in places:
                    replay(name, Noise(index, k, keep=True), environment)
        limits = {k: tolerance([m for group in found[k].values() for m in group]) for k in intervals}
        rows = [_row(k, name, tolerance(group), group) for k in intervals for name, group in found[k].items()]
    return rows, limits


def _row(k: int, name: str, limits: Tolerance, found: list[Measured]) -> NoiseRow:
    metrics = [m.comparison.overall.over(m.detail.moved) for m in found]
    return NoiseRow(
        k=k,
        environment=name,
        overall=limits.noise,
        kinds=dict(limits.kind_noise),
        metrics=Distance(*(max(getattr(m, metric) for m in metrics) for metric in METRICS)),
        judged_share=limits.judged,
        noise_driven=dict(limits.noisy),
    )


def _recommended(limits: dict[int, Tolerance]) -> int | None:
    sharp = [k for k, limit in limits.items() if limit.comfortable and k <= DELTA_INTERVAL]
    return max(sharp, default=None)


def _variants(here: Environment) -> Iterator[tuple[str, Environment]]:
    """The environments that this machine has besides its own, each changed in one respect, and one in all."""

    def pinned(**variables: str) -> Environment:
        return msgspec.structs.replace(here, variables={**here.variables, **variables})

    yield (
        f"threads {here.threads} → {1 if here.threads > 1 else 2}",
        msgspec.structs.replace(here, threads=1 if here.threads > 1 else 2),
    )
    if here.machine in ("x86_64", "AMD64"):
        if "512" in here.capability:
            yield "ATen AVX2", pinned(ATEN_CPU_CAPABILITY="avx2")
        yield "ATen default", pinned(ATEN_CPU_CAPABILITY="default")
        yield "oneDNN AVX2", pinned(ONEDNN_MAX_CPU_ISA="AVX2")
        yield "MKL AVX2", pinned(MKL_CBWR="AVX2")
        yield (
            "portable",
            msgspec.structs.replace(pinned(**environments.PORTABLE), threads=environments.PORTABLE_THREADS),
        )
    yield "without oneDNN", msgspec.structs.replace(here, flags=msgspec.structs.replace(here.flags, mkldnn=False))
    yield "the verifier's second", environments.another(here)


def _mean(distances: Sequence[Distance]) -> Distance:
    return Distance(*(sum(getattr(d, name) for d in distances) / len(distances) for name in METRICS))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "proof-of-learning" / "calibration"


def _cached(name: str) -> Calibration | None:
    path = _cache_folder() / f"{name}.json"
    try:
        return msgspec.json.decode(files.read_bounded(path, MAX_CACHED), type=Calibration)
    except (FormatError, msgspec.DecodeError, OSError):
        return None  # a cache that cannot be read is no cache


def _keep(name: str, made: Calibration) -> None:
    folder = _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / f"{name}.json", [made.to_json()])
    except (OSError, RecordingError) as error:
        raise UsageError(f"the calibration cannot be cached in {folder} ({error}); use --no-cache") from None
