"""How few bits a checkpoint may have: accuracy, loss and size for several ways to store states in a bit or two a number, in the loop.

    python experiments/few_bits.py [--quick | --tiny] [--data DIR] [--jobs N] [--output FOLDER] --json FILE

Three tasks (Fashion-MNIST with momentum and with AdamW, a character Transformer with AdamW), five seeds, a checkpoint every step or
every ten. Each run is held against the run without a codec from the same seed. The codecs of this package are measured by the bytes
that they write; ways that are no codec (``few_bits_coders.py``) by the entropy of their integers, alone and in context.
Writes ``few-bits.md`` too.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import few_bits_coders
import torch
import variants
from cells import EXAMPLES, Cell, compute, parser, part_of, provenance, table, write, write_page
from common import Result
from few_bits_coders import Coder
from lossy_codecs import Encode, fashion, through, train

from proof_of_learning import Task, load_task
from proof_of_learning.state.state import State

SEEDS = 5
STEPS = dict.fromkeys(("Fashion-MNIST CNN, momentum", "Fashion-MNIST CNN, AdamW", "character Transformer, AdamW"), 300)
# By name: steps of momenta and of weights over a root mean square, how they are rounded, and octaves of second moments.
WAYS: dict[str, tuple[float, float, str, float]] = {
    "drawn, 2": (2.0, 2.0, "drawn", 0.25),
    "drawn, 2.5, half octaves": (2.5, 2.5, "drawn", 0.5),
    "drawn, 3, half octaves": (3.0, 3.0, "drawn", 0.5),
    "drawn, 4, half octaves": (4.0, 4.0, "drawn", 0.5),
    "nearest, 2": (2.0, 2.0, "nearest", 0.25),
    "mixed, 2": (2.0, 2.0, "mixed", 0.25),
    "mixed, 3 and 2": (3.0, 2.0, "mixed", 0.25),
    "carried, 2.5, half octaves": (2.5, 2.5, "carried", 0.5),
    "carried, 4, half octaves": (4.0, 4.0, "carried", 0.5),
    "sparse, 5 %": (1.0, 0.05, "sparse", 0.25),
    "sparse, 1 %": (1.0, 0.01, "sparse", 0.25),
}
PACKAGED = ("quantised", "compact")


def task_of(name: str, steps: int, data: str | None) -> Task:
    model, _, optimizer = name.partition(", ")
    if model == "digits":
        return variants.task("adamw" if optimizer == "AdamW" else "momentum", steps=steps)
    if model == "Fashion-MNIST CNN":
        return fashion("adamw" if optimizer == "AdamW" else "momentum", steps, str(data))
    settings: dict[str, Any] = {
        "width": 64,
        "layers": 2,
        "window": 64,
        "batch_size": 16,
        "accumulate": 1,
        "steps": steps,
        "data": data,
    }
    return replace(load_task(f"{EXAMPLES / 'char_transformer.py'}:task", settings), reference=None)


def measured(name: str, way: str, interval: int, seed: int, steps: int, data: str | None) -> Cell:
    """One run, in a process that computes with one thread."""
    torch.set_num_threads(1)
    if way == "none":
        return train(task_of(name, steps, data), seed, None)
    if way in PACKAGED:
        return train(task_of(name, steps, data), seed, through(way, 10, 5), interval)
    momentum, weights, rounding, octaves = WAYS[way]
    found: dict[str, list[float]] = {}
    coder = Coder(momentum, weights, rounding, weights, octaves)
    cell = train(task_of(name, steps, data), seed, entropies(coder, found), interval)
    return {**cell, "in_context": statistics.fmean(found["in context"]) / 8 / found["parameters"][0]} if found else cell


def entropies(coder: Coder, found: dict[str, list[float]]) -> Encode:
    """As a codec whose objects are as long as an ideal code of their integers; of each tenth object."""
    calls = 0

    def encode(state: State, base: State) -> tuple[State, float | None]:
        nonlocal calls
        after, items = coder.encode(state, base)
        calls += 1
        if calls % 10 != 5:
            return after, None
        bits = few_bits_coders.bits(items, after, base, coder.pairs)
        found.setdefault("in context", []).append(bits[1])
        found.setdefault("parameters", []).append(few_bits_coders.parameters(after))
        return after, bits[0] / 8

    return encode


def main() -> None:
    options = parser(__doc__, "digits, two seeds, a few ways")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of one thread")
    options.add_argument("--output", default="docs/evidence", help="folder for the page")
    options.add_argument("--only", help="runs whose name contains this")
    given = options.parse_args()
    size = given.size
    steps = STEPS if size.full else {"digits, momentum": size.of(400, 100, 12), "digits, AdamW": size.of(400, 100, 12)}
    if size.full and not given.data:
        raise SystemExit("--data (or POL_DATA) must name the folder with fashion_mnist.npz and tiny_shakespeare.txt")
    ways = ("none", *PACKAGED, *(WAYS if size.full else list(WAYS)[: size.of(1, 3, 1)]))
    data = None if given.data is None else str(Path(given.data).resolve())
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:

        def work(name: str, way: str, interval: int, seed: int) -> Callable[[], Cell]:
            return lambda: pool.submit(measured, name, way, interval, seed, steps[name], data).result()

        todo = {
            f"{name}; {way}; k = {interval}; seed {seed}": work(name, way, interval, seed)
            for way in ways
            for name in steps
            for interval in ((10,) if way == "none" else (10, 1) if size.name != "tiny" else (1,))
            for seed in range(size.of(SEEDS, 2, 2))
        }
        if given.only:
            todo = {name: run for name, run in todo.items() if given.only in name or "; none;" in name}
        done = compute(todo, part_of(given.json), {"size": size.name}, jobs=given.jobs, finished=given.finished)
    report(done, given)


@dataclass(frozen=True)
class Row:
    """A way of storing on a task, held against the runs without one: differences seed by seed."""

    task: str
    way: str
    interval: str
    metric: str
    plain: float  # the metric without a codec, in the mean
    gained: list[float]
    lost: list[float]  # of the training loss
    bytes: float
    in_context: float | None


def rows_of(done: Mapping[str, Cell]) -> list[Row]:
    found = []
    for name, way, interval in dict.fromkeys(tuple(key.split("; ")[:3]) for key in done):
        pairs = [
            (done[bare], done[key])
            for seed in range(SEEDS)
            if (key := f"{name}; {way}; {interval}; seed {seed}") in done
            and (bare := f"{name}; none; k = 10; seed {seed}") in done
        ]
        if way == "none" or len(pairs) < 2:
            continue
        metric = "test_accuracy" if "test_accuracy" in pairs[0][0] else "test_loss"
        gained, lost = ([after[key] - before[key] for before, after in pairs] for key in (metric, "train_loss"))
        contexts = [after["in_context"] for _, after in pairs if "in_context" in after]
        found.append(
            Row(name, way, interval, metric, statistics.fmean(before[metric] for before, _ in pairs), gained, lost,
                statistics.fmean(after["bytes"] for _, after in pairs), statistics.fmean(contexts) if contexts else None)
        )  # fmt: skip
    return found


def report(done: Mapping[str, Cell], given: Any) -> None:
    results = list[Result]()
    for row in rows_of(done):
        label = f"{row.task}, {row.way}, {row.interval}"
        mean, half = statistics.fmean(row.gained), two_errors(row.gained)
        better = "higher" if row.metric == "test_accuracy" else "lower"
        results.append(Result(f"{label}: {row.metric} gained", mean, "", better, None, (mean - half, mean + half)))
        results.append(Result(f"{label}: bytes a parameter and checkpoint", row.bytes, "B", "lower"))
    runs = {name: {key: value for key, value in cell.items() if key != "shown"} for name, cell in done.items()}
    Path(given.output).mkdir(parents=True, exist_ok=True)
    write_page(Path(given.output) / "few-bits.md", page(runs))
    write(given.json, results, size=given.size, runs=runs, keep=given.only is not None)


def page(runs: Mapping[str, Cell]) -> str:
    """The page, from the finished runs by name."""
    rows = [
        [row.task, row.interval, row.way, f"{row.bytes:.3f}", "written" if row.in_context is None else f"{row.in_context:.3f}",
         f"{row.plain:.4f}", interval_of(row.gained), interval_of(row.lost)]
        for row in rows_of(runs)
    ]  # fmt: skip
    return "\n".join([
        "# How few bits a checkpoint may have\n",
        f"From `python experiments/few_bits.py --data DIR --json FILE`; {provenance()}; one thread a run, {SEEDS} seeds, 300 steps.\n",
        "Each row: the mean over seeds of the difference to the run without a codec from the same seed, with two standard errors. "
        "Bytes are those of a difference, a parameter and checkpoint: as written or, of what is no codec, the entropy of the "
        "integers (alone, and with eight contexts by the size of what the reader knows). The test is accuracy, of the Transformer the "
        "loss, where less is better. A name such as *drawn, 3* says how it is rounded, and the step over the root mean square of what "
        "is rounded ([the ways](../../experiments/few_bits_coders.py)).\n",
        table(["task", "interval", "way", "bytes", "in context", "test without", "test gained", "training loss gained"], rows),
    ])  # fmt: skip


def interval_of(values: list[float]) -> str:
    mean, half = statistics.fmean(values), two_errors(values)
    return f"{mean:+.4f} ± {half:.4f}"


def two_errors(values: list[float]) -> float:
    return 2.0 * statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
