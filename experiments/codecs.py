"""What rounding in the loop costs: final accuracy with and without it, over seeds and tasks, and the bytes it saves.

    python experiments/codecs.py [--quick] [--data DIR] --json FILE

Every run trains the same task from the same seed, once as it is and once with each codec in the loop, every ten steps.
The difference is taken seed by seed. Writes FILE as it goes and resumes from it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
sys.path.insert(0, str(HERE))
import variants  # noqa: E402
from common import SCHEMA, Result, machine, versions  # noqa: E402

from proof_of_learning import Task, load_task  # noqa: E402
from proof_of_learning.proof.codecs import get_codec  # noqa: E402
from proof_of_learning.training import randomness  # noqa: E402
from proof_of_learning.training.steps import Session, derived_feed  # noqa: E402

INTERVAL = 10
CODECS = ("none", "float16", "quantised")
EXAMPLES = HERE.parent / "examples"


def fashion(optimizer: str, steps: int, data: str) -> Task:
    task = load_task(f"{EXAMPLES / 'fashion_mnist.py'}:task", {"steps": steps, "data": data})
    if optimizer == "adamw":
        adamw = lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)  # noqa: E731
        task = replace(task, optimizer=adamw, scheduler=None)
    return replace(task, reference=None)


def tasks(quick: bool, data: str | None) -> dict[str, tuple[Task, int]]:
    """By name: the task, and over how many seeds."""
    steps = 100 if quick else 400
    found = {
        f"digits, {optimizer}": (variants.task(optimizer, steps=steps), 3 if quick else 10)
        for optimizer in ("momentum", "adamw", "rmsprop")
    }
    if data and (Path(data) / "fashion_mnist.npz").is_file() and not quick:
        found |= {f"Fashion-MNIST CNN, {name}": (fashion(name, 300, data), 5) for name in ("momentum", "adamw")}
    return found


def train(task: Task, seed: int, codec_name: str) -> dict[str, float]:
    """Final metrics, and the bytes a parameter and checkpoint (differences only) that the codec would have stored."""
    task, codec = replace(task, seed=seed), None if codec_name == "none" else get_codec(codec_name)
    session = Session(task, randomness.key_from_seed(seed))
    data = task.data()
    feed, order = derived_feed(task, data, session.key, "cpu")
    steps = task.total_steps(len(data))
    base, stored, taken = session.capture(), 0, 0
    for result in session.run(steps, feed, order):
        if codec is not None and (result.step + 1) % INTERVAL == 0 and result.step + 1 < steps:
            encoded = codec.encode(session.capture(), base)
            if taken % 5 == 0:
                stored += sum(len(chunk) for chunk in encoded.chunks())
            taken, base = taken + 1, encoded.state
            session.restore(base)
    parameters = sum(p.numel() for p in session.model.parameters())
    metrics = session.evaluate() or {}
    return {**metrics, "bytes": stored / max(1, -(-taken // 5)) / parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="digits only, three seeds, a quarter of the steps")
    parser.add_argument("--data", default=os.environ.get("POL_DATA"), help="folder with fashion_mnist.npz")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = Path(options.json)
    done: dict[str, Any] = json.loads(file.read_text()).get("runs", {}) if file.is_file() else {}
    todo = [
        (name, task, seed, codec)
        for name, (task, seeds) in tasks(options.quick, options.data).items()
        for seed in range(seeds)
        for codec in CODECS
    ]
    begun, fresh = time.perf_counter(), 0
    for number, (name, task, seed, codec) in enumerate(todo, 1):
        key = f"{name}; seed {seed}; {codec}"
        if key not in done:
            done[key] = train(task, seed, codec)
            fresh += 1
            left = (time.perf_counter() - begun) / fresh * (len(todo) - number)
            print(f"[{number}/{len(todo)}, {left / 60:.0f} min left] {key}: {done[key]}", file=sys.stderr, flush=True)
            write(file, done, options.quick)
    write(file, done, options.quick)


def write(file: Path, done: dict[str, Any], quick: bool) -> None:
    document = {
        "schema": SCHEMA, "results": [asdict(result) for result in results(done)], "runs": done, "quick": quick,
        "machine": machine(), "versions": versions(), "seed": 0,
    }  # fmt: skip
    beside = file.with_name(file.name + ".new")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(file)


def results(done: dict[str, Any]) -> list[Result]:
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
