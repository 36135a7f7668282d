"""What recording costs: training with it over a plain PyTorch loop, and over one that saves model and optimizer as often.

All three take the same steps of the Fashion-MNIST example in alternating blocks; recording and saving write to the same disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import Benchmark, Cost, alternate, benchmark, fashion, middle_half, ratio, timed, walls
from plain import Loop

from proof_of_learning import Recorder, load_task
from proof_of_learning.recorder import make_header
from proof_of_learning.training import environment, randomness
from proof_of_learning.training.steps import Session, derived_feed

STEPS = {1: (30, 10), 10: (40, 10), 50: (50, 10), 469: (469, 3)}  # by interval: steps of one block, and blocks
QUICK = {1: (20, 4), 10: (40, 4), 50: (50, 4)}


class Recording:
    """A recording that goes on from block to block; what it costs once (header, first state) lies before the first."""

    def __init__(self, folder: Path, interval: int, steps: int) -> None:
        task = load_task(fashion(steps=steps))
        data = task.data()
        self.session = Session(task, randomness.key_from_seed(task.seed))
        header = make_header(task, self.session, data, interval=interval)
        self.feed, self.order = derived_feed(task, data, self.session.key, "cpu")
        self.recorder = Recorder(folder / "proof", header, self.session.parts, environment.current())

    def run(self, steps: int) -> None:
        with environment.recording("cpu"):
            for result in self.session.run(self.session.progress.step + steps, self.feed, self.order):
                self.recorder.step(result.loss, result.rates)


def measure(run: Benchmark, interval: int, steps: int, blocks: int) -> None:
    with tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        folder = Path(scratch)
        task = load_task(fashion())
        plain, saving = Loop(task), Loop(task)

        def save(step: int) -> None:
            if step % interval == 0:
                content = {"model": saving.model.state_dict(), "optimizer": saving.optimizer.state_dict(), "step": step}
                torch.save(content, folder / f"step-{step}.pt")

        warm, recording = max(2, interval if interval < 50 else 2), None
        recording = Recording(folder, interval, warm + steps * blocks)
        modes: dict[str, Callable[[int], object]] = {
            "plain": plain.run,
            "saving": lambda count: saving.run(count, save),
            "recording": recording.run,
        }
        for mode in modes.values():
            mode(warm)
        saving.done = 0
        costs: dict[str, list[Cost]] = alternate(
            {name: lambda mode=mode: timed(lambda: mode(steps)) for name, mode in modes.items()}, blocks
        )
        with recording.recorder as recorder:
            sealed = timed(recorder.close).wall
    for base, label in (("plain", "a plain loop"), ("saving", "a loop with torch.save")):
        for of, suffix in (("wall", ""), ("cpu", ", CPU time")):
            value, spread = ratio(costs["recording"], costs[base], of)
            run.add(f"recording over {label}, k={interval}{suffix}", value, "ratio", spread=spread)
    value, spread = ratio(costs["saving"], costs["plain"])
    run.add(f"a loop with torch.save over a plain loop, k={interval}", value, "ratio", spread=spread)
    step = [seconds / steps * 1e3 for seconds in walls(costs["plain"])]
    run.add(f"step of the plain loop beside k={interval}", min(step), "ms", spread=middle_half(step))
    run.add(f"sealing, k={interval}", sealed * 1e3, "ms")


def main() -> None:
    with benchmark(__doc__) as run:
        for interval, (steps, blocks) in (QUICK if run.quick else STEPS).items():
            measure(run, interval, steps, blocks)
        run.note(
            "the plain loop keeps PyTorch's default settings; recording includes what deterministic algorithms cost"
        )


if __name__ == "__main__":
    main()
