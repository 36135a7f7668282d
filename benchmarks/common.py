"""What all benchmarks share: options, data, alternating blocks, and the JSON they write (schema ``pol/benchmark/v1``)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import proof_of_learning
from proof_of_learning import TaskReference
from proof_of_learning.replay.replayer import Replayer

os.environ.setdefault("POL_REHEARSAL", "0")  # what is measured is recording alone

SCHEMA = "pol/benchmark/v1"
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FASHION = "fashion_mnist.npz"

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How much a program computes: all of it, ``--quick``, or ``--tiny``, which goes through every part and measures nothing."""

    name: str = "full"

    @property
    def full(self) -> bool:
        return self.name == "full"

    def of(self, full: T, quick: T, tiny: T) -> T:
        return {"full": full, "quick": quick, "tiny": tiny}[self.name]


def size_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add ``--quick`` (its help: ``quick``) and ``--tiny``; what was chosen is the option ``size``."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--quick", dest="size", action="store_const", const=Size("quick"), default=Size(), help=quick)
    chosen.add_argument(
        "--tiny", dest="size", action="store_const", const=Size("tiny"),
        help="seconds: shows that the program works, and no more",
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One measured number. ``spread``: the middle half of the blocks (for a ratio: of the ratios block by block)."""

    name: str
    value: float
    unit: str
    better: str
    target: float | None = None
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


@dataclass
class Benchmark:
    """The run of one benchmark program: its options, and the results as they come in."""

    size: Size
    seed: int
    json: str
    data: str | None
    numbers: dict[str, int] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        better: str = "lower",
        target: float | None = None,
        spread: tuple[float, float] | None = None,
    ) -> None:
        result = Result(name, value, unit, better, target, spread)
        self.results.append(result)
        against = "" if target is None else f"   target {target:g}: {'met' if result.met else 'MISSED'}"
        between = f"   [{spread[0]:.4g}, {spread[1]:.4g}]" if spread else ""
        print(f"{name}: {value:.4g} {unit}{between}{against}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"note: {text}", file=sys.stderr, flush=True)

    def write(self) -> None:
        document = {
            "schema": SCHEMA,
            "results": [asdict(result) for result in self.results],
            "notes": self.notes,
            "quick": not self.size.full,
            "size": self.size.name,
            "machine": machine(),
            "versions": versions(),
            "seed": self.seed,
        }
        text = json.dumps(document, indent=2)
        print(text) if self.json == "-" else Path(self.json).write_text(text + "\n")


@contextmanager
def benchmark(description: str, **numbers: int) -> Iterator[Benchmark]:
    """Parse the options, seed, run the body, write the results. The folder with the data is in ``POL_DATA`` meanwhile.

    ``numbers``: further options of the program and their defaults; what was chosen is in :attr:`Benchmark.numbers`.
    """
    parser = argparse.ArgumentParser(description=description)
    size_options(parser, "fewer and shorter blocks: under two minutes on two cores")
    parser.add_argument("--data", default=os.environ.get("POL_DATA"), help=f"folder that holds {FASHION}")
    parser.add_argument("--json", required=True, help="file for the results, or - for standard output")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    run = Benchmark(
        options.size, options.seed, options.json, options.data, {name: getattr(options, name) for name in numbers}
    )
    with tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        if not options.data or not (Path(options.data) / FASHION).is_file():
            counts = options.size.of((60_000, 10_000), (60_000, 10_000), (512, 64))
            run.data = synthetic(Path(scratch), options.seed, *counts)
            run.note(
                f"no {FASHION} was found (--data DIR or POL_DATA): synthetic images of the same shape take its "
                "place, so that times are comparable and accuracies mean nothing"
            )
        assert run.data is not None
        os.environ["POL_DATA"] = run.data
        yield run
    run.write()


def synthetic(folder: Path, seed: int, train: int = 60_000, test: int = 10_000) -> str:
    """A file with the names, shapes and types of Fashion-MNIST and random content; returns its folder."""
    generator = np.random.default_rng(seed)
    arrays = {
        f"{part}_{name}": generator.integers(0, high, size, dtype=np.uint8)
        for part, count in (("train", train), ("test", test))
        for name, high, size in (("x", 256, (count, 28, 28)), ("y", 10, (count,)))
    }
    np.savez(folder / FASHION, **arrays)  # type: ignore[arg-type]
    return str(folder)


def fashion(**settings: Any) -> TaskReference:
    """The example on Fashion-MNIST (or on what stands in for it)."""
    return TaskReference(f"{EXAMPLES / 'fashion_mnist.py'}:task", settings)


def phases_apart() -> None:
    """Replays begin when they are asked for, not while states are surveyed: so that what a phase costs is seen in that phase."""
    Replayer.ahead = lambda self, indices: None  # type: ignore[method-assign]


# ---- timing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of one block."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Cost:
    """The cost of ``work`` in this process, all threads."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(modes: Mapping[str, Callable[[], Cost]], blocks: int) -> dict[str, list[Cost]]:
    """Every mode once a block, each block beginning with another mode, so that no mode has the quiet moments to itself."""
    names, costs = list(modes), {name: list[Cost]() for name in modes}
    for block in range(blocks):
        for offset in range(len(names)):
            name = names[(block + offset) % len(names)]
            costs[name].append(modes[name]())
    return costs


def ratio(costs: Sequence[Cost], base: Sequence[Cost], of: str = "wall") -> tuple[float, tuple[float, float]]:
    """The ratio of the two modes' minima, and the middle half of the ratios block by block."""
    a, b = ([getattr(cost, of) for cost in side] for side in (costs, base))
    return min(a) / min(b), middle_half([x / y for x, y in zip(a, b, strict=True)])


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def walls(costs: Sequence[Cost]) -> list[float]:
    return [cost.wall for cost in costs]


# ---- machine ----------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What counts for the numbers, and nothing that names the machine or its owner."""
    return {
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    return {
        "proof-of-learning": proof_of_learning.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def process_tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, open_ = [], [root]
    while open_:
        found.append(open_.pop())
        open_ += children.get(found[-1], [])
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time that these processes have used so far, and the children that they waited for."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
