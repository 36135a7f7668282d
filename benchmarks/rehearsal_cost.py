"""What rehearsals take of a run that lasts ten minutes or more, part by part, in one recording of the Fashion-MNIST CNN.

The training loop's own part is the time that it spends in calls of the rehearsal (seconds, and CPU seconds of its thread). Beside
it are the CPU seconds of the rehearsal's thread and of its worker processes. All are held against the whole run, its processes
included. They are counted within one run, so other work on the machine stretches both sides alike.
"""

from __future__ import annotations

import functools
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Benchmark, benchmark, fashion

import proof_of_learning as pol
from proof_of_learning.progress import ProgressCallback
from proof_of_learning.rehearsal.beside import Rehearsal

IN_LOOP = ("begin", "before", "after", "checkpoint", "check", "finish", "close")
BEHIND = ("_round",)
SEED_STEPS = 200  # by which the length of a step is found


class Meter:
    """Seconds and CPU seconds of one thread in some methods, calls within calls counted once."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._inside = False

    def counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*given: Any, **named: Any) -> Any:
            if self._inside:
                return method(*given, **named)
            self._inside, wall, cpu = True, time.perf_counter(), time.thread_time()
            try:
                return method(*given, **named)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.thread_time() - cpu
                self._inside = False

        return call


def silent(what: str, done: int, total: int) -> None:
    """Nothing is said of progress."""


def recorded(run: Benchmark, path: Path, steps: int, *, rehearse: bool, progress: ProgressCallback = silent) -> float:
    """Seconds that a recording takes."""
    begun = time.perf_counter()
    task = fashion(steps=steps, seed=run.seed)
    pol.prove(task, path, interval=min(100, steps), rehearse=rehearse, keep_every=100, progress=progress)
    return time.perf_counter() - begun


def main() -> None:
    with benchmark(__doc__, minutes=12) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        folder, trial = Path(scratch), run.size.of(SEED_STEPS, SEED_STEPS, 4)
        each = recorded(run, folder / "trial", trial, rehearse=False) / trial
        steps = run.size.of(int(run.numbers["minutes"] * 60 / each), 600, 12)
        loop, behind, at_ten = Meter(), Meter(), [0.0]

        def progress(what: str, done: int, total: int) -> None:
            if what == "training" and done <= 10:
                at_ten[0] = loop.wall

        kept = {name: getattr(Rehearsal, name) for name in (*IN_LOOP, *BEHIND)}
        for name, method in kept.items():
            setattr(Rehearsal, name, (behind if name in BEHIND else loop).counted(method))
        before, begun = spent(), time.perf_counter()
        try:
            recorded(run, folder / "run", steps, rehearse=True, progress=progress)
        finally:
            for name, method in kept.items():
                setattr(Rehearsal, name, method)
        wall, (own, children) = (
            time.perf_counter() - begun,
            (now - then for now, then in zip(spent(), before, strict=True)),
        )
        whole = own + children
        run.note(f"{steps:,} steps in {wall / 60:.1f} minutes, {whole:.0f} CPU seconds")
        run.add("seconds in the rehearsal's calls, by the loop", loop.wall, "s")
        run.add("… over the run", loop.wall / wall, "share", target=0.02)
        run.add("… of them before the eleventh step", at_ten[0], "s", target=5.0)
        run.add("CPU seconds in these calls", loop.cpu, "s")
        run.add("CPU seconds of the thread beside the loop", behind.cpu, "s")
        run.add("CPU seconds of worker processes", children, "s")
        run.add(
            "CPU seconds of all three over the run's", (loop.cpu + behind.cpu + children) / whole, "share", target=0.02
        )


def spent() -> tuple[float, float]:
    """CPU seconds of this process, and of those that it started and that ended."""
    found = []
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        found.append(usage.ru_utime + usage.ru_stime)
    return found[0], found[1]


if __name__ == "__main__":
    main()
