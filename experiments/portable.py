"""Portable arithmetic: are the bits the same in every setting, does it learn as float32 does, and what does it cost?

Each task (an MLP, a CNN with BatchNorm and dropout, an LSTM, a Transformer with dropout and AdamW) is trained in processes of several
settings, natively and portably; digests of the whole state are compared after every step.

    python experiments/portable.py [--quick | --tiny] [--data DIR] [--output FOLDER] --json FILE

Writes ``portable.md`` too. Where another machine's page shows other digests, one of the two is not portable.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cells import HERE, PINNED, Result, compute, parser, part_of, provenance, table, write, write_page

from proof_of_learning.numeric.portable import selftest

TASKS = ("MLP", "CNN", "LSTM", "Transformer")
BASE = "as it is, 1 thread"
SETTINGS: dict[str, dict[str, str]] = {
    BASE: {},
    "2 threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "AVX2 pinned": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "no vector units": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
Cell = dict[str, Any]


def run(task: str, arithmetic: str, setting: str, steps: int, seed: int, text: str) -> Cell:
    clean = {name: value for name, value in os.environ.items() if name not in PINNED}
    variables = {**clean, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", **SETTINGS[setting], "POL_TEXT": text}
    command = [sys.executable, str(HERE / "portable_run.py"), task, arithmetic, str(steps), str(seed)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr[-400:]}
    found: Cell = json.loads(done.stdout.splitlines()[-1])
    return {**found, "shown": f"{found['typical_step'] * 1e3:.1f} ms a step, {found['achieved']:.4f}"}


def differing(one: Cell, other: Cell) -> float:
    """The share of the final weights that differ in any bit."""
    pairs = [(a, b) for x, y in zip(one["weights"], other["weights"], strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a != b for a, b in pairs) / max(1, len(pairs))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--output", default="docs/evidence", help="folder for the page")
    options.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    given = options.parse_args()
    size = given.size
    steps, seeds = size.of(120, 20, 2), size.of(5, 2, 1)
    tasks, settings = TASKS[: size.of(4, 4, 1)], list(SETTINGS)[: size.of(4, 4, 2)]
    source = Path(given.data or "") / "tiny_shakespeare.txt"
    text = (source if given.data and source.is_file() else HERE.parent / "LICENSE").read_text()[:60_000]
    todo: dict[str, Callable[[], Cell]] = {}
    for task in tasks:
        for arithmetic in ("native", "portable"):
            for setting in settings:
                todo[f"{task}/{arithmetic}/{setting}/0"] = partial(run, task, arithmetic, setting, steps, 0, text)
            for seed in range(1, seeds):
                todo[f"{task}/{arithmetic}/{BASE}/{seed}"] = partial(run, task, arithmetic, BASE, steps, seed, text)
    found = compute(todo, part_of(given.json), {"size": size.name, "steps": steps}, jobs=given.jobs)
    results, bits, learnt, digests = list[Result](), [], [], []
    for task in tasks:
        for arithmetic in ("native", "portable"):
            base = found[f"{task}/{arithmetic}/{BASE}/0"]
            row = [task, arithmetic]
            for setting in settings[1:]:
                other = found[f"{task}/{arithmetic}/{setting}/0"]
                apart = [i for i, (a, b) in enumerate(zip(base["digests"], other["digests"], strict=True)) if a != b]
                share = differing(base, other)
                row.append("equal" if not apart else f"from state {apart[0]}; {share:.0%} of the last weights")
                target = 0.0 if arithmetic == "portable" else None
                results.append(
                    Result(
                        f"{task}, {arithmetic}, {setting}: states that differ", len(apart), "states", "lower", target
                    )
                )
            bits.append(row)
        native, ours = (
            [found[f"{task}/{a}/{BASE}/{n}"]["achieved"] for n in range(seeds)] for a in ("native", "portable")
        )
        times = [
            min(found[f"{task}/{a}/{BASE}/{n}"]["typical_step"] for n in range(seeds)) for a in ("native", "portable")
        ]
        results.append(Result(f"{task}: CPU time of a step over native", times[1] / times[0], "times", "lower", 8.0))
        learnt.append([
            task, *(f"{statistics.fmean(v):.4f} ± {statistics.stdev(v) if len(v) > 1 else 0:.4f}" for v in (native, ours)),
            f"{times[0] * 1e3:.2f} ms", f"{times[1] * 1e3:.2f} ms", f"{times[1] / times[0]:.1f}",
        ])  # fmt: skip
        marks = [0, 1, 2, min(10, steps), steps]
        digests.append([task, *(found[f"{task}/portable/{BASE}/0"]["digests"][i][7:23] for i in marks)])
    tested = selftest.differing()
    results.append(Result("self-test: cases that differ", len(tested), "cases", "lower", 0.0))
    page = [
        "# Portable arithmetic\n",
        f"Measured by `python experiments/portable.py` ({size.name}): {steps} steps, {provenance()}; {seeds} seeds.\n",
        f"The self-test: {len(selftest.published())} cases, {len(tested)} differ.\n",
        f"## Bits, against the setting `{BASE}`\n",
        "Digests of the whole state (weights, buffers, optimizer) after every step, the initial state included.\n",
        table(["task", "arithmetic", *settings[1:]], bits),
        "## Accuracy and cost\n",
        "Accuracy on 360 digits that were held back; of the Transformer the loss on text. Mean and standard deviation over the seeds. "
        "The times are those of steps as they fell on a machine with other work; `benchmarks/portable_cost.py` measures.\n",
        table(["task", "native", "portable", "step, native", "step, portable", "ratio"], learnt),
        "## Digests\n",
        f"Seed 0, states after 0, 1, 2, {min(10, steps)} and {steps} steps"
        f"{'' if source.is_file() else ', the Transformer on the text of the licence'}: another machine has to print the same.\n",
        table(["task", *(str(i) for i in (0, 1, 2, min(10, steps), steps))], digests),
    ]
    Path(given.output).mkdir(parents=True, exist_ok=True)
    write_page(Path(given.output) / "portable.md", "\n".join(page))
    for cell in found.values():
        cell.pop("weights", None)
        cell.pop("shown", None)
    write(given.json, results, size=size, cells=found, bits=bits, digests=digests)


if __name__ == "__main__":
    main()
