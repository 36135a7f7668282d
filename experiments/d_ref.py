"""Is d_ref known from one run's weights alone? The estimate against the distance of independently seeded runs, task by task.

python experiments/d_ref.py [--quick | --tiny] [--data DIR] --json FILE
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from cells import EXAMPLES, Cell, Result, compute, parser, part_of, write

from proof_of_learning import load_task
from proof_of_learning.numeric import randomness
from proof_of_learning.replay.measure import estimate_d_ref, weight_distance, weights
from proof_of_learning.training.steps import Session, derived_feed

TASKS = {"digits": 400, "fashion_mnist": 150, "cifar10_resnet20": 60, "char_transformer": 60}  # steps
RUNS = 3


def measure(name: str, steps: int, runs: int, data: str | None) -> Cell:
    """l2 of the distances between the final weights of all pairs of runs, and each run's estimate."""
    settings: dict[str, Any] = {"steps": steps} if name == "digits" else {"steps": steps, "data": str(data)}
    task, ends, estimates = load_task(f"{EXAMPLES / name}.py:task", settings), [], []
    samples = task.data()
    for seed in range(runs):
        session = Session(replace(task, seed=seed), randomness.key_from_seed(seed))
        start = {key: tensor.clone() for key, tensor in weights(session.capture()).items()}
        feed, order = derived_feed(session.task, samples, session.key, "cpu")
        for _ in session.run(steps, feed, order):
            pass
        ends.append(weights(session.capture()))
        estimates.append(estimate_d_ref(start, ends[-1]).l2)
    measured = [weight_distance(a, b) for a, b in itertools.combinations(ends, 2)]
    ratio = statistics.mean(estimates) / statistics.mean(measured)
    return {
        "measured": measured,
        "estimated": estimates,
        "ratio": ratio,
        "shown": f"estimate over measured {ratio:.4f}",
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    names = ["digits"] if not (options.size.full and options.data) else list(TASKS)
    steps = {name: options.size.of(TASKS[name], 60, 2) for name in names}
    todo: dict[str, Callable[[], Cell]] = {
        f"d_ref/{name}": partial(measure, name, steps[name], RUNS, options.data) for name in names
    }
    done = compute(todo, part_of(options.json), {"size": options.size.name})
    results = [Result(f"{cell}: estimate over measured", done[cell]["ratio"], "ratio", "lower") for cell in done]
    write(options.json, results, size=options.size, runs=done)


if __name__ == "__main__":
    main()
