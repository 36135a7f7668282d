"""Are honest proofs rejected? Many honest runs that differ in all that users vary, each judged at the verifier's defaults.

    python experiments/honest.py [--quick | --tiny] [--output DIR] [--runs N] --json FILE

Task, optimizer, schedule, seed, batch size, length, interval, codec, threads and CPU capability are drawn at random from a fixed
seed. A run is judged in one of three ways: ``same`` (the environment it was recorded in), ``reproduced`` (by a verifier in
another one, whose worker takes on the recorded environment) and ``calibrated`` (in the verifier's own, other environment, within
its noise). No honest proof may be invalid; ``same`` and ``reproduced`` must be valid; a calibrated one may be inconclusive where
its interval is too long.

All randomness is derived from a seed or, in every fourth run, from a registered claim. (That a *recorded* initialization is rejected
with a probability of up to 1 % is a matter of its test, and measured by ``initialization.py``.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import (
    ENVIRONMENTS,
    EXAMPLES,
    HERE,
    PINNED,
    Cell,
    Result,
    compute,
    parser,
    part_of,
    provenance,
    table,
    write,
    write_page,
)
from scipy import stats

CODECS = ("raw", "lossless", "float16", "quantised")
WAYS = {"same": 0.7, "reproduced": 0.12, "calibrated": 0.18}
RUNS, QUICK_RUNS, TINY_RUNS = 220, 8, 2
STEPS = (20, 33, 50, 64)
INTERVALS = {"same": (1, 2, 3, 5, 7, 10, 20), "reproduced": (1, 3, 10), "calibrated": (1, 2, 5)}
VARIANTS = f"{HERE / 'variants.py'}:task"


@dataclass(frozen=True)
class Case:
    """An honest run. ``environment``: the prover's; ``verifier``: the verifier's process."""

    number: int
    way: str
    task: str
    settings: dict[str, Any]
    interval: int
    codec: str
    threads: int | None
    registered: bool
    environment: str
    verifier: str

    @property
    def name(self) -> str:
        return f"{self.way}/{self.number}"

    @property
    def target(self) -> str:
        return VARIANTS if self.task.startswith("digits-") else f"{EXAMPLES / self.task}.py:task"


def cases(runs: int, seed: int, steps: Sequence[int] = STEPS) -> list[Case]:
    from variants import MODELS, OPTIMIZERS, SCHEDULES

    rng = np.random.default_rng(seed)

    def one(values: Sequence[Any]) -> Any:
        return values[int(rng.integers(len(values)))]

    found = []
    for number in range(runs):
        # Spread evenly, so that a shorter run has all ways too.
        way = list(WAYS)[int(np.searchsorted(np.cumsum(list(WAYS.values())), (number * 0.618) % 1.0, side="right"))]
        task = one(["digits", "custom_step", *[f"digits-{model}" for model in MODELS] * 3])
        settings: dict[str, Any] = {"steps": one(steps), "seed": int(rng.integers(2**63))}
        if task.startswith("digits-"):
            settings |= {"model": task.removeprefix("digits-"), "optimizer": one(list(OPTIMIZERS))}
            settings |= {"schedule": one(["none", *SCHEDULES]), "batch_size": one((8, 16, 32, 64))}
        environment = one(list(ENVIRONMENTS))
        others = [name for name in ENVIRONMENTS if name != environment]
        found.append(
            Case(number, way, task, settings, one(INTERVALS[way]), one(CODECS), one((None, None, 1, 2)) if way == "same" else None,
                 number % 4 == 3, environment, environment if way == "same" else one(others))
        )  # fmt: skip
    return found


# ---- in a process of each environment ---------------------------------------------------------------


class Server:
    """A process in one numeric environment, which proves and verifies on request."""

    def __init__(self, environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in PINNED}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        self._process = subprocess.Popen(
            command, env={**clean, **ENVIRONMENTS[environment]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the process ended"}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """Answer requests, one JSON line each, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a task prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"prove": _prove, "verify": _verify}[request["do"]](request)
        except Exception as error:  # a failure of one run is a result
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _prove(request: dict[str, Any]) -> dict[str, Any]:
    import proof_of_learning as pol

    reference, claim = pol.TaskReference(request["target"], request["settings"]), request["claim"]
    common = {"interval": request["interval"], "threads": request["threads"]}
    chosen = {} if request["codec"] == "raw" else {"codec": request["codec"]}
    if claim:
        pol.register(reference, claim, **common, **chosen)
    pol.prove(reference, request["proof"], registration=claim, **common, **chosen)
    return {}


def _verify(request: dict[str, Any]) -> dict[str, Any]:
    import proof_of_learning as pol

    reference = pol.TaskReference(request["target"], request["settings"])
    task = replace(pol.load_task(reference), reference=None) if request["in_process"] else reference
    calibrated = request["calibrated"]
    verdict = pol.verify(
        request["proof"], task, registration=request["claim"], reproduce=not calibrated, allow_calibrated=calibrated,
        sandbox="off",
    )  # fmt: skip
    shares = [s.limit_share for s in verdict.segments if s.limit_share is not None and not s.exact]
    return {
        "verdict": verdict.verdict, "reason": verdict.reason[:400], "exactness": verdict.exactness,
        "limit_share": max(shares, default=None), "segments": len(verdict.segments), "shown": verdict.verdict,
        "exact_segments": sum(s.exact for s in verdict.segments), "seconds": verdict.cost.seconds,
    }  # fmt: skip


# ---- the run ----------------------------------------------------------------------------------------


class Servers:
    """One process an environment, started when it is first needed, one request at a time for each."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened, self._servers, self._lock = opened, dict[str, tuple[Server, threading.Lock]](), threading.Lock()

    def ask(self, environment: str, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if environment not in self._servers:
                server = Server(environment)
                self._opened.callback(server.close)
                self._servers[environment] = (server, threading.Lock())
        server, lock = self._servers[environment]
        with lock:
            return server.ask(request)

    def run(self, case: Case) -> Cell:
        with tempfile.TemporaryDirectory(prefix="pol-honest-") as folder:
            request = {
                "target": case.target, "settings": case.settings, "interval": case.interval, "codec": case.codec,
                "threads": case.threads, "proof": f"{folder}/run.pol", "claim": f"{folder}/claim.json" if case.registered else None,
                "in_process": case.way == "same", "calibrated": case.way == "calibrated",
            }  # fmt: skip
            made = self.ask(case.environment, {**request, "do": "prove"})
            if "error" in made:
                return {**asdict(case), **made}
            return {**asdict(case), **self.ask(case.verifier, {**request, "do": "verify"})}


def results(rows: list[Cell]) -> list[Result]:
    judged = [row for row in rows if "verdict" in row]
    found, rejected = [], sum(row["verdict"] == "invalid" for row in judged)
    limit = float(stats.binomtest(rejected, len(judged)).proportion_ci(0.95).high) if judged else 1.0
    found.append(Result("honest proofs judged", len(judged), "runs", "higher", 200.0 if len(rows) >= 200 else None))
    found.append(Result("honest proofs rejected", rejected, "runs", "lower", 0.0))
    found.append(Result("false rejection rate, upper end of the 95 % interval", limit, "share", "lower"))
    for way in WAYS:
        mine = [row for row in judged if row["way"] == way]
        count = sum(row["verdict"] == "inconclusive" for row in mine)
        found.append(Result(f"runs, {way}", len(mine), "runs", "higher"))
        found.append(Result(f"inconclusive, {way}", count, "runs", "lower", None if way == "calibrated" else 0.0))
    worst = max((row["limit_share"] for row in judged if row["limit_share"] and row["verdict"] == "valid"), default=0.0)
    if worst:
        found.append(Result("limit over worst honest error, calibrated", 1.0 / worst, "x", "higher", 3.0))
    found.append(Result("runs that failed to run", len(rows) - len(judged), "runs", "lower", 0.0))
    return found


def page(rows: list[Cell], seed: int) -> str:
    """Markdown: counts by way and by each thing that was varied, and every run that was not valid."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        verdict = row.get("verdict", "failed to run")
        keys = {
            "way": row["way"], "task": row["task"], "optimizer": row["settings"].get("optimizer", "the task's"),
            "schedule": row["settings"].get("schedule", "the task's"), "interval": str(row["interval"]), "codec": row["codec"],
            "prover's environment": row["environment"], "threads": str(row["threads"] or "the environment's"),
            "randomness from": "a registered claim" if row["registered"] else "a seed",
        }  # fmt: skip
        for key, value in keys.items():
            groups.setdefault((key, value), Counter())[verdict] += 1
    order = list(dict.fromkeys(key for key, _ in groups))
    lines = [
        [
            key,
            value,
            counts.total(),
            counts["valid"],
            counts["inconclusive"],
            counts["invalid"],
            counts["failed to run"],
        ]
        for (key, value), counts in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    head = ["varied", "value", "runs", "valid", "inconclusive", "invalid", "failed to run"]
    numbers = "\n".join(f"- {result.name}: {result.value:.3g} {result.unit}" for result in results(rows))
    others = [
        f"- {row['way']} {row['number']}: {row['task']}, {row['settings'].get('optimizer', '')}, k = {row['interval']}, "
        f"{row['environment']} → {row['verifier']}: {row.get('verdict', 'failed')}: {row.get('reason', row.get('error'))}"
        for row in rows
        if row.get("verdict") != "valid"
    ]
    return f"""# Honest proofs

From `python experiments/honest.py --json FILE`, seed {seed}; {provenance()}. Judged at the verifier's defaults: *same* in the recorded
environment, *reproduced* by a verifier elsewhere whose worker takes it on, *calibrated* in another environment within the
verifier's own noise.

{numbers}

{table(head, lines)}
## Not valid

{chr(10).join(others) or "None."}
"""


def main() -> None:
    made = parser(__doc__, f"{QUICK_RUNS} runs")
    made.add_argument("--runs", type=int, help=f"number of runs (default: {RUNS})")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output", help="folder for the page (default: docs/evidence; none if --quick or --tiny)")
    options = made.parse_args()
    runs = options.runs or options.size.of(RUNS, QUICK_RUNS, TINY_RUNS)
    with ExitStack() as opened:
        servers = Servers(opened)
        drawn = cases(runs, options.seed, options.size.of(STEPS, STEPS, (6,)))
        todo = {case.name: lambda case=case: servers.run(case) for case in drawn}
        done = compute(todo, part_of(options.json), {"seed": options.seed}, jobs=options.jobs)
    rows = [{**row, "settings": {**row["settings"], "seed": str(row["settings"]["seed"])}} for row in done.values()]
    output = options.output or (str(HERE.parent / "docs" / "evidence") if options.size.full else None)
    if output is not None:
        write_page(Path(output) / "honest.md", page(rows, options.seed))
    write(options.json, results(rows), size=options.size, seed=options.seed, runs=rows)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
