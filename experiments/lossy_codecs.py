"""What rounding in the loop costs: final accuracy with and without it, over seeds and tasks, and the bytes it saves.

    python experiments/lossy_codecs.py [--quick | --tiny] [--data DIR] --json FILE

Every run trains the same task from the same seed, once as it is and once with each codec in the loop, every ten steps.
The difference is taken seed by seed. Resumes: finished runs are kept beside FILE (FILE.part) until all are there.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import variants
from cells import EXAMPLES, Cell, Result, Size, compute, parser, part_of, write

from proof_of_learning import Task, load_task
from proof_of_learning.numeric import randomness
from proof_of_learning.proof.codecs import get_codec
from proof_of_learning.state.state import State
from proof_of_learning.training.steps import Session, derived_feed

INTERVAL = 10
CODECS = ("none", "float16", "quantised")
Encode = Callable[
    [State, State], tuple[State, float | None]
]  # state, base: what training goes on from, bytes (None: not looked at)


def fashion(optimizer: str, steps: int, data: str) -> Task:
    task = load_task(f"{EXAMPLES / 'fashion_mnist.py'}:task", {"steps": steps, "data": data})
    if optimizer == "adamw":
        adamw = lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)  # noqa: E731
        task = replace(task, optimizer=adamw, scheduler=None)
    return replace(task, reference=None)


def tasks(size: Size, data: str | None) -> dict[str, tuple[Task, int]]:
    """By name: the task, and over how many seeds."""
    steps = size.of(400, 100, 12)
    found = {
        f"digits, {optimizer}": (variants.task(optimizer, steps=steps), size.of(10, 3, 2))
        for optimizer in ("momentum", "adamw", "rmsprop")[: size.of(3, 3, 1)]
    }
    if data and (Path(data) / "fashion_mnist.npz").is_file() and size.full:
        found |= {f"Fashion-MNIST CNN, {name}": (fashion(name, 300, data), 5) for name in ("momentum", "adamw")}
    return found


def train(task: Task, seed: int, encode: Encode | None, interval: int = INTERVAL) -> Cell:
    """Final metrics, the mean loss of the last 20 steps, and bytes a parameter and checkpoint (differences only)."""
    task = replace(task, seed=seed)
    session = Session(task, randomness.key_from_seed(seed))
    data = task.data()
    feed, order = derived_feed(task, data, session.key, "cpu")
    steps = task.total_steps(len(data))
    base, sizes, losses = session.capture(), list[float](), list[float]()
    for result in session.run(steps, feed, order):
        losses.append(float(result.loss))
        if encode is not None and (result.step + 1) % interval == 0 and result.step + 1 < steps:
            base, size = encode(session.capture(), base)
            session.restore(base)
            if size is not None:
                sizes.append(size)
    parameters = sum(p.numel() for p in session.model.parameters())
    metrics = session.evaluate() or {}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    stored = math.fsum(sizes) / max(1, len(sizes)) / parameters
    return {"shown": shown, **metrics, "train_loss": statistics.mean(losses[-20:]), "bytes": stored}


def through(name: str, every: int = 5, first: int = 0) -> Encode:
    """A codec of this package; each ``every``-th object from the ``first`` is written, to see how large it is."""
    codec, calls = get_codec(name), itertools.count()

    def encode(state: State, base: State) -> tuple[State, float | None]:
        encoded = codec.encode(state, base)
        size = None if next(calls) % every != first else float(sum(len(chunk) for chunk in encoded.chunks()))
        return encoded.state, size

    return encode


def trained(task: Task, seed: int, codec: str) -> Cell:
    return train(task, seed, None if codec == "none" else through(codec))


def main() -> None:
    options = parser(__doc__, "digits only, three seeds, a quarter of the steps").parse_args()
    torch.set_num_threads(1)
    todo: dict[str, Callable[[], Cell]] = {
        f"{name}; seed {seed}; {codec}": partial(trained, task, seed, codec)
        for name, (task, seeds) in tasks(options.size, options.data).items()
        for seed in range(seeds)
        for codec in CODECS
    }
    done = compute(todo, part_of(options.json), {"size": options.size.name})
    write(options.json, results(done), size=options.size, runs=done)


def results(done: Mapping[str, Cell]) -> list[Result]:
    """Mean difference of the accuracy to the run without a codec, with the 95 % interval of the mean over seeds."""
    found = []
    for name in dict.fromkeys(key.split(";")[0] for key in done):
        for codec in CODECS[1:]:
            pairs = [
                (done[f"{name}; seed {seed}; none"], done[f"{name}; seed {seed}; {codec}"])
                for seed in range(100)
                if f"{name}; seed {seed}; {codec}" in done and f"{name}; seed {seed}; none" in done
            ]
            if len(pairs) < 2:
                continue
            gained = [with_["test_accuracy"] - without["test_accuracy"] for without, with_ in pairs]
            mean, half = statistics.mean(gained), 2.0 * statistics.stdev(gained) / math.sqrt(len(gained))
            spread = (mean - half, mean + half)
            found.append(
                Result(f"{name}, {codec}: accuracy gained, {len(pairs)} seeds", mean, "", "higher", None, spread)
            )
            size = statistics.mean(with_["bytes"] for _, with_ in pairs)
            found.append(Result(f"{name}, {codec}: bytes a parameter and checkpoint", size, "B", "lower"))
    return found


if __name__ == "__main__":
    main()
