"""What recording costs: training with it over a plain PyTorch loop, and over one that saves model and optimizer as often.

All modes take the same steps in alternating blocks, and write to the same disk: the Fashion-MNIST example with every codec,
in the loop and beside it, and a network of the size of ResNet-18 (11 million parameters). ``--interval K`` measures the first
of these at one interval alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from common import Benchmark, Cost, alternate, benchmark, fashion, middle_half, ratio, timed, walls
from plain import Loop

from proof_of_learning import Recorder, TaskReference, load_task
from proof_of_learning.numeric import environment, randomness
from proof_of_learning.recording.header import make_header
from proof_of_learning.training.steps import Session, derived_feed

TARGETS = {10: 1.03, 469: 1.01}  # by interval


@dataclass(frozen=True)
class Plan:
    """Steps of one block, blocks, and the ways of recording: codec, and whether beside the loop."""

    interval: int
    steps: int
    blocks: int
    ways: tuple[tuple[str, bool], ...] = (("raw", False),)


EVERY_WAY = (("raw", False), ("raw", True), ("lossless", False), ("quantised", False), ("quantised", True))
FULL = (
    Plan(1, 30, 10),
    Plan(10, 20, 60, EVERY_WAY),  # many short blocks, for what is to be seen is smaller than the machine's noise
    Plan(50, 50, 10),
    Plan(469, 469, 3, (("raw", False), ("quantised", False))),
)
QUICK = (Plan(1, 20, 3), Plan(10, 20, 4, EVERY_WAY))
TINY = (Plan(2, 2, 1, EVERY_WAY),)
LARGE = Plan(10, 10, 2, (("raw", False), ("quantised", False)))


class Recording:
    """A recording that goes on from block to block; what it costs once (header, first state) lies before the first."""

    def __init__(self, folder: Path, target: TaskReference, interval: int, codec: str, beside: bool) -> None:
        task = load_task(target)
        data = task.data()
        self.session = Session(task, randomness.key_from_seed(task.seed))
        header = make_header(task, self.session, data, interval=interval, codec=codec)
        self.feed, self.order = derived_feed(task, data, self.session.key, "cpu")
        path = folder / f"{codec}-{beside}"
        self.recorder = Recorder(path, header, self.session.parts, environment.current(), asynchronous=beside)

    def run(self, steps: int) -> None:
        with environment.recording("cpu"):
            for result in self.session.run(self.session.progress.step + steps, self.feed, self.order):
                self.recorder.step(result.loss, result.rates)


def measure(run: Benchmark, plan: Plan, network: str, target: Callable[[int], TaskReference]) -> None:
    interval, steps, blocks = plan.interval, plan.steps, plan.blocks
    with tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        folder, warm = Path(scratch), max(2, interval if interval < 50 else 2)
        total = warm + steps * blocks
        plain, saving = Loop(load_task(target(total))), Loop(load_task(target(total)))

        def save(step: int) -> None:
            if step % interval == 0:
                content = {"model": saving.model.state_dict(), "optimizer": saving.optimizer.state_dict(), "step": step}
                torch.save(content, folder / f"step-{step}.pt")

        recordings = {
            f"recording ({codec}{', beside the loop' if beside else ''})": Recording(
                folder, target(total), interval, codec, beside
            )
            for codec, beside in plan.ways
        }
        modes: dict[str, Callable[[int], object]] = {
            "plain": plain.run,
            "saving": lambda count: saving.run(count, save),
        }
        modes |= {name: recording.run for name, recording in recordings.items()}
        for mode in modes.values():
            mode(warm)
        saving.done = 0
        costs: dict[str, list[Cost]] = alternate(
            {name: partial(timed, partial(mode, steps)) for name, mode in modes.items()}, blocks
        )
        for recording in recordings.values():
            with recording.recorder as recorder:
                recorder.close()
    where = f"{network}, k={interval}"
    for name in recordings:
        for of, suffix in (("wall", ""), ("cpu", ", CPU time")):
            value, spread = ratio(costs[name], costs["plain"], of)
            aim = TARGETS.get(interval) if of == "wall" else None
            run.add(f"{where}: {name} over a plain loop{suffix}", value, "ratio", target=aim, spread=spread)
        value, spread = ratio(costs[name], costs["saving"])
        run.add(f"{where}: {name} over a loop with torch.save", value, "ratio", spread=spread)
    value, spread = ratio(costs["saving"], costs["plain"])
    run.add(f"{where}: a loop with torch.save over a plain loop", value, "ratio", spread=spread)
    step = [seconds / steps * 1e3 for seconds in walls(costs["plain"])]
    run.add(f"{where}: step of the plain loop", min(step), "ms", spread=middle_half(step))


def main() -> None:
    with benchmark(__doc__, interval=0) as run:
        only = run.numbers["interval"]
        for plan in run.size.of(FULL, QUICK, TINY):
            if only in (0, plan.interval):
                measure(run, plan, "Fashion-MNIST CNN", lambda steps: fashion(steps=steps))
        if run.size.full and not only:
            large = f"{Path(__file__).with_name('resnet18.py')}:task"
            measure(run, LARGE, "ResNet-18", lambda steps: TaskReference(large, {"steps": steps}))
        run.note(
            "the plain loop keeps PyTorch's default settings; recording includes what deterministic algorithms cost"
        )


if __name__ == "__main__":
    main()
