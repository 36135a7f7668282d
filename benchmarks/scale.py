"""Several workers: two against one, what handing out costs, and what a thousand would do.

One proof, recorded with one thread, is verified whole by one worker and by two in alternating blocks. On a busy machine wall time
says little, so CPU time stands beside it: what the verifier's process and what the workers used, from which follows what two idle
cores would give. Handing out is measured with workers that answer at once. The simulation hands 100,000 segments to 1,000 workers as
the pool does, with the measured times, some slow workers, deaths, and one link over which all states go.
"""

from __future__ import annotations

import heapq
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Benchmark,
    Cost,
    alternate,
    benchmark,
    cpu_seconds,
    fashion,
    middle_half,
    phases_apart,
    process_tree,
    ratio,
)

import proof_of_learning as pol
from proof_of_learning import Proof, TaskReference, Verdict
from proof_of_learning.numeric import environment as environments
from proof_of_learning.replay import protocol
from proof_of_learning.replay.lanes import Stream
from proof_of_learning.replay.pool import Job, WorkerPool
from proof_of_learning.replay.process import idle
from proof_of_learning.replay.protocol import Reply
from proof_of_learning.state.state import State

NONCE = "00" * 32
SLOW, HOW_SLOW = 0.05, 2.0  # share of the workers that take so many times as long
SPREAD = 0.1  # of the time of one segment, from one to the next
DEATH = 1e-4  # probability that a worker ends over a segment, which is then begun anew elsewhere
RESTART = 20.0  # seconds until another is there
LINK = 1.25e9  # bytes a second: ten gigabits, shared by all


class Verification:
    """Complete verifications of one proof; the cost of their trajectory phase: wall, CPU of all processes, and of our own."""

    def __init__(self, proof: Path, task: TaskReference, workers: int) -> None:
        self.proof, self.task, self.workers = proof, task, workers
        self.verdicts: list[Verdict] = []
        self.own: list[float] = []

    def __call__(self) -> Cost:
        readings: list[tuple[float, float]] = []

        def progress(doing: str, done: int, total: int) -> None:
            if doing == "checking trajectory" and done in (0, total):
                readings.append((cpu_seconds(process_tree(os.getpid())), time.process_time()))

        verdict = pol.verify(
            self.proof,
            self.task,
            everything=True,
            nonce=NONCE,
            accept_nonce=True,
            workers=self.workers,
            progress=progress,
        )
        assert verdict.verdict == "valid", verdict.reason
        self.verdicts.append(verdict)
        self.own.append(readings[-1][1] - readings[0][1])
        return Cost(verdict.cost.phases["trajectory"], readings[-1][0] - readings[0][0])


class Instant:
    """A worker that has arrived before it was asked."""

    died = spent = silent = False

    def __init__(self, place: int, here: environments.Environment) -> None:
        self.name, self._here = f"worker {place + 1}", here

    def expect(self, request: protocol.AnyRequest) -> None: ...

    def ask(self, request: protocol.AnyRequest, states: Sequence[State] = (), on_work: Any = idle) -> Reply:
        if isinstance(request, protocol.Open):
            return protocol.Opened(self._here, True), ()
        return protocol.Taken([0.0], [[0.0]], 0.0), states

    def kill(self) -> None: ...
    def close(self) -> None: ...


def handing_out(requests: int, workers: int) -> float:
    """Seconds a request, from the plan through lanes and pool to an answer, with nothing to compute."""
    from concurrent.futures import ThreadPoolExecutor

    here = environments.current("cpu")
    pool = WorkerPool(
        Job(TaskReference("nowhere.py:task", {}), "00" * 32),
        lambda environment, role, place: Instant(place, here),
        workers,
    )

    def carry(positions: Any) -> Any:
        for position in positions:
            yield position, pool.ask(here, protocol.Take(position, position + 1))

    with ThreadPoolExecutor(workers) as threads:
        begun = time.perf_counter()
        count = sum(1 for _ in Stream([[position] for position in range(requests)], carry, threads, workers))
        seconds = time.perf_counter() - begun
    pool.close()
    assert count == requests
    return seconds / requests


@dataclass(frozen=True)
class Setting:
    """What is simulated. ``own``: seconds that the verifier's process spends on a segment; ``moved``: bytes, there and back."""

    workers: int
    segments: int
    seconds: float
    own: float
    moved: float


def simulate(setting: Setting, seed: int) -> float:
    """Share of the ideal: all work, spread over all workers at their speeds without a gap, over the time that it takes."""
    rng = np.random.default_rng(seed)
    speed = np.where(rng.random(setting.workers) < SLOW, 1 / HOW_SLOW, 1.0)
    work = np.sort(setting.seconds * np.clip(1 + SPREAD * rng.standard_normal(setting.segments), 0.5, 2.0))[::-1]
    serial = max(setting.own, setting.moved / LINK)  # one process serves and judges, over one link
    free = [(0.0, number) for number in range(setting.workers)]
    heapq.heapify(free)
    served = end = 0.0
    waiting = work.tolist()[::-1]  # the costly ones first
    while waiting:
        seconds = waiting.pop()
        now, number = heapq.heappop(free)
        served = max(served, now) + serial
        taken = seconds / speed[number]
        if rng.random() < DEATH:
            waiting.append(seconds)
            heapq.heappush(free, (served + taken * rng.random() + RESTART, number))
            continue
        heapq.heappush(free, (served + taken, number))
        end = max(end, served + taken)
    return float(work.sum() / speed.sum()) / end


def shortest(setting: Setting, share: float, seed: int) -> float:
    """The shortest segments, in seconds, with which so many workers reach that share of the ideal (to a twentieth)."""
    low, high = 0.01, 1000.0
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        reached = (
            simulate(Setting(setting.workers, setting.segments, middle, setting.own, setting.moved), seed) >= share
        )
        low, high = (low, middle) if reached else (middle, high)
    return high


def two_against_one(run: Benchmark, folder: Path) -> tuple[float, float, float]:
    """Returns seconds of steps and of the verifier's process for a segment, and the bytes of a state."""
    steps, interval, blocks = run.size.of((600, 10, 6), (200, 10, 2), (6, 3, 1))
    task, path = fashion(steps=steps), folder / "run.pol"
    pol.prove(task, path, interval=interval)
    modes = {f"{count}": Verification(path, task, count) for count in (1, 2)}
    costs = alternate(modes, blocks)
    count = len(modes["1"].verdicts[0].segments)
    speedup, spread = ratio(costs["1"], costs["2"])
    run.add(
        f"trajectory, {count} segments of {interval}: 1 worker over 2",
        speedup,
        "times",
        better="higher",
        target=1.8,
        spread=spread,
    )
    whole = [[v.cost.seconds for v in modes[name].verdicts] for name in ("1", "2")]
    run.add("whole verification: 1 worker over 2", min(whole[0]) / min(whole[1]), "times", better="higher")
    cpu = [min(cost.cpu for cost in costs[name]) for name in ("1", "2")]
    run.add("CPU time: 2 workers over 1", cpu[1] / cpu[0], "ratio")
    own = [min(modes[name].own) for name in ("1", "2")]
    run.add("CPU time of the verifier's own process, 2 workers", own[1] / cpu[1], "share")
    # One after another on idle cores takes their sum; two workers share two cores, but the verifier's process is one.
    idle_cores = cpu[0] / max(cpu[1] / 2, own[1])
    run.add("by CPU time, on two idle cores: 1 worker over 2", idle_cores, "times", better="higher", target=1.8)
    run.note(f"load while this was measured: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    stepped = [v.cost.phases["replayed steps"] / count for v in modes["1"].verdicts]
    run.add("a segment's steps", min(stepped), "s", spread=middle_half(stepped))
    run.add("the verifier's own process, a segment", own[0] / count * 1e3, "ms")
    proof = Proof.open(path)
    return min(stepped), own[0] / count, proof.state(proof.state_digests()[-1]).nbytes


def main() -> None:
    torch.set_num_threads(1)
    phases_apart()
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        seconds, own, state = two_against_one(run, Path(scratch))
        requests = run.size.of(20_000, 5_000, 200)
        for workers in (1, 2, 16):
            each = handing_out(requests, workers)
            run.add(f"handing out a segment, {workers} lanes", each * 1e3, "ms", target=5.0)
        workers, segments = run.size.of((1000, 100_000), (1000, 100_000), (10, 200))
        for name, length in (("as long as measured", seconds), ("of 10 s", 10.0), ("of 60 s", 60.0)):
            share = simulate(Setting(workers, segments, length, own, 2.0 * state), run.seed)
            target = 0.9 if name == "of 60 s" else None
            run.add(
                f"simulated, {workers:,} workers, {segments:,} segments {name}: share of the ideal", share, "share",
                better="higher", target=target,
            )  # fmt: skip
        long = shortest(Setting(workers, segments, 0.0, own, 2.0 * state), 0.9, run.seed)
        run.add(f"shortest segments with which {workers:,} workers reach 90 % of the ideal", long, "s")
        run.note(
            f"simulated: {SLOW:.0%} of the workers {HOW_SLOW:g} times as slow, times spread by {SPREAD:.0%}, one death in "
            f"{1 / DEATH:,.0f} segments and {RESTART:g} s until there is another worker, a link of {LINK * 8 / 1e9:g} Gbit/s for all, "
            f"and one process that reads, hands out and judges, {own * 1e3:.2g} ms a segment of {2 * state / 1e6:.2g} MB"
        )


if __name__ == "__main__":
    main()
