"""Honest proofs judged in another numeric environment than they were made in, and two attacks judged the same way.

For every task, interval (1, 5, 20, and what `pol calibrate` recommends) and pair of environments: `pol prove` in one,
`pol verify --own-environment --allow-calibrated` in the other. What has to hold: no honest proof is rejected;
`inconclusive` only where the interval is too long; the worst honest error stays three times below its limit, and the
attacks' errors three times above. In portable arithmetic the same tasks have to be valid and exact at every interval up to the whole
run's length.

    python experiments/other_environments.py [--quick | --tiny] [--data DIR] [--jobs N] [--only TASKS] [--so-far] --json FILE

Resumes: finished runs are kept beside FILE (FILE.part) until all are there. Also writes `other-environments.md`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cells import (
    ENVIRONMENTS,
    EXAMPLES,
    HERE,
    Result,
    Size,
    compute,
    kept,
    parser,
    part_of,
    pol,
    provenance,
    table,
    write,
    write_page,
)

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad")
ATTACKS = ("concatenation", "infinitesimal-update")
VERDICTS = ("valid", "inconclusive", "invalid")
PORTABLE_PAIRS = (("ATen default", "2 threads"), ("1 thread", "MKL AVX2"))
NONE = "none recommended"  # in place of a verdict, where `pol calibrate` knows no interval that is short enough
MARGIN = 3.0  # wanted between the worst honest error and its limit, and between the limit and the nearest attack
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One proof and its judgement: ``prover`` and ``verifier`` name environments; ``attack`` forges it first.

    ``k``: None for the interval that `pol calibrate` recommends. ``portable``: recorded in portable arithmetic, so judged to the bit.
    """

    task: str
    target: str
    settings: tuple[str, ...]
    k: int | None
    prover: str
    verifier: str
    attack: str | None = None
    portable: bool = False

    @property
    def name(self) -> str:
        what = f" {self.attack}" if self.attack else " portable" if self.portable else ""
        return f"{self.task} k={self.k or 'recommended'} {self.prover} -> {self.verifier}{what}"


def cases(size: Size, data: str | None) -> Iterator[Case]:
    quick, short = not size.full, f"steps={size.of(200, 200, 6)}"
    tasks: list[tuple[str, str, tuple[str, ...]]] = [
        (f"digits-{name}", f"{HERE / 'variants.py'}:task", (f"optimizer={name}", short)) for name in OPTIMIZERS
    ]
    tasks += [
        ("digits", f"{EXAMPLES / 'digits.py'}:task", (short,)),
        ("custom-step", f"{EXAMPLES / 'custom_step.py'}:task", (short,)),
    ]
    for name, file, steps in (
        ("fashion", "fashion_mnist", 100), ("cifar10-resnet20", "cifar10_resnet20", 60), ("char-transformer", "char_transformer", 60)
    ):  # fmt: skip
        needed = {"fashion": "fashion_mnist.npz", "cifar10-resnet20": "cifar10.npz"}.get(name, "tiny_shakespeare.txt")
        if data and (Path(data) / needed).is_file() and not quick:
            tasks.append((name, f"{EXAMPLES / (file + '.py')}:task", (f"steps={steps}",)))
    pairs = [("1 thread", "2 threads"), *((other, "1 thread") for other in ENVIRONMENTS if other != "1 thread")]
    for task, target, settings in tasks[1:2] if quick else tasks:
        for k in (2,) if quick else (1, 5, 20):
            small = task.startswith("digits") or task == "custom-step"
            few = size.of(len(pairs), 2, 1)
            chosen = pairs[:few] if quick else pairs if k == 5 or not small else pairs[:: 2 if k == 1 else 3]
            for prover, verifier in chosen if small else chosen[1:4]:
                yield Case(task, target, settings, k, prover, verifier)
        for prover, verifier in [] if quick else pairs[1:3]:
            yield Case(task, target, settings, None, prover, verifier)
        for attack in ATTACKS[: size.of(2, 2, 0)]:
            if task != "custom-step":
                yield Case(task, target, settings, 2 if quick else 5, "ATen AVX2", "1 thread", attack)
        steps = int(settings[-1].partition("=")[2])
        long = 500 if small and not quick else steps
        for k in (1, 5, 20, long) if size.full else (steps,):
            its = (*settings[:-1], f"steps={max(k, steps)}")
            for prover, verifier in PORTABLE_PAIRS[: size.of(2, 1, 1)]:
                yield Case(task, target, its, k, prover, verifier, portable=True)


def described(case: Case) -> dict[str, Any]:
    """The case as plain values, without the place of its task on this machine."""
    return {name: value for name, value in asdict(case).items() if name != "target"}


class FailedError(Exception):
    """A command that should have worked did not."""


def run(case: Case, data: str | None) -> dict[str, Any]:
    """Prove, forge where asked, verify; the outcome as plain values."""
    sets = [item for setting in case.settings for item in ("--set", setting)]

    def command(environment: str, *arguments: str) -> bytes:
        done = pol(environment, *arguments, *sets, data=data)
        if done.returncode:
            raise FailedError(done.stderr.decode()[-400:])
        return done.stdout

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pol-experiment-") as folder:
        proof, verdict = f"{folder}/run.pol", Path(f"{folder}/verdict.json")
        try:
            k = case.k
            if k is None:  # it keeps what it measured
                told = json.loads(
                    command(case.verifier, "calibrate", case.target, "--json", "-", "--intervals", "1,2,5,10,20")
                )
                k = told["recommended_interval"]
                if k is None:
                    return {"verdict": NONE, "shown": "no interval is short enough"}
            arithmetic = ("--arithmetic", "portable") if case.portable else ()
            command(case.prover, "prove", case.target, "-o", proof, "-k", str(k), *arithmetic)
            if case.attack:
                target, proof = proof, f"{folder}/forged.pol"
                command(case.prover, "attack", case.attack, "--target", target, "--task", case.target, "-o", proof)
        except FailedError as error:
            return {"error": str(error)}
        options = ["--own-environment", "--keep-going", *([] if case.portable else ["--allow-calibrated"])]
        options += ["--sandbox", "off", "--random", "40", "--json", str(verdict)]
        done = pol(case.verifier, "verify", proof, "--task", case.target, *sets, *options, data=data)
        if not verdict.is_file():
            return {"error": done.stderr.decode()[-400:]}
        taken = {
            "interval": k,
            "seconds": time.perf_counter() - begun,
            **({"where": provenance()} if case.portable else {}),
        }
        return {**summary(json.loads(verdict.read_text())), **taken}


def summary(verdict: dict[str, Any]) -> dict[str, Any]:
    checks = {check["name"]: check for check in verdict["checks"]}
    judged = [s for s in verdict["segments"] if not s["exact"] and s["limit_share"] is not None]
    passed = [s["limit_share"] for s in judged if s["status"] == "pass"]
    failed = [s["limit_share"] for s in judged if s["status"] == "fail"]
    bad = [check for check in verdict["checks"] if check["mandatory"] and check["status"] != "pass"]
    return {
        "verdict": verdict["verdict"],
        "shown": verdict["verdict"],
        "reason": "; ".join(f"{check['name']}: {check['summary']}" for check in bad)[:600],
        "exact_segments": sum(s["exact"] for s in verdict["segments"]),
        "segments": len(verdict["segments"]),
        "worst_pass": max(passed, default=None),
        "nearest_fail": min(failed, default=None),
        "drift_z": checks["drift"]["evidence"].get("z"),
        "tolerances": checks["trajectory"]["evidence"].get("tolerances"),
        "steps_replayed": verdict["cost"]["steps_replayed"],
    }


def results(rows: list[Row]) -> list[Result]:
    portable, rows = _portable(rows)
    honest = [row for row in rows if row["attack"] is None]
    forged = [row for row in rows if row["attack"] is not None]
    bad = sum(row.get("verdict") != "valid" or row["exact_segments"] < row["segments"] for row in portable)
    verdicts = Counter(row.get("verdict", "error") for row in honest)
    worst = max((row["worst_pass"] for row in honest if row.get("worst_pass") is not None), default=0.0)
    nearest = min((row["nearest_fail"] for row in forged if row.get("nearest_fail") is not None), default=float("nan"))
    return [
        Result("honest proofs judged", len(honest), "runs", "higher", None if len(honest) < 100 else 100),
        Result("honest proofs rejected", verdicts["invalid"], "runs", "lower", 0),
        Result("honest proofs inconclusive", verdicts["inconclusive"], "runs", "lower"),
        Result(
            "honest proofs inconclusive at the recommended interval",
            sum(row.get("verdict") == "inconclusive" for row in honest if row["k"] is None),
            "runs",
            "lower",
            0,
        ),
        Result("runs that failed to run", verdicts["error"], "runs", "lower", 0),
        Result("limit over worst honest error", 1 / worst if worst else float("inf"), "x", "higher", MARGIN),
        Result("nearest attack's error over limit", nearest, "x", "higher", MARGIN),
        Result("proofs in portable arithmetic that are not valid to the bit", bad, "runs", "lower", 0),
        Result("attacks accepted", sum(row.get("verdict") == "valid" for row in forged), "runs", "lower", 0),
    ]


def page(rows: list[Row], planned: int) -> str:
    """Markdown: the verdicts by task and at recommended intervals, and every honest run that was not valid."""
    everything = len(rows)
    portable, rows = _portable(rows)
    judged = [row for row in rows if row.get("verdict") in VERDICTS]
    honest, forged = ([row for row in judged if (row["attack"] is None) == fair] for fair in (True, False))
    fixed, recommended = ([row for row in honest if (row["k"] is None) == free] for free in (False, True))
    without = Counter(row["task"] for row in rows if row.get("verdict") == NONE)
    lines, margins = [], dict[str, float]()
    for task in dict.fromkeys(row["task"] for row in judged):
        mine, others = ([row for row in side if row["task"] == task] for side in (honest, forged))
        worst = max((row["worst_pass"] or 0.0 for row in mine), default=0.0)
        nearest = min((row["nearest_fail"] for row in others if row["nearest_fail"]), default=None)
        margins[task] = 1 / worst if worst else float("inf")
        at_recommended = [str(row["interval"]) for row in mine if row["k"] is None]
        margin, far = f"{margins[task]:.3g}", f"{nearest:,.0f}" if nearest else ""
        chosen = ", ".join([*at_recommended, *["none"] * without[task]]) or "not run"
        lines.append([task, *_counts(mine), margin, chosen, len(others), far])
    head = ["task", "honest runs", *VERDICTS, "limit over worst honest error", "recommended k of two runs"]
    head += ["attacks", "nearest attack over its limit"]
    short = {task: margin for task, margin in margins.items() if margin < MARGIN}
    reasons = [
        (row["task"], row["interval"], f"{row['prover']} → {row['verifier']}", row["verdict"], row["reason"])
        for row in honest
        if row["verdict"] != "valid"
    ]
    missing = "" if everything == planned else f" **Not complete: {everything} of {planned} runs.**"
    return f"""# Honest proofs and attacks in other numeric environments

From `python experiments/other_environments.py --data DIR --json FILE`, seed 0; {provenance()}.{missing} Every run lies in
[data/other-environments.json](data/other-environments.json).

Each proof was made in one environment (1 or 2 threads, ATen at AVX2 or default, oneDNN or MKL at AVX2) and judged in another by
`pol verify --own-environment --allow-calibrated`, with intervals of 1, 5 and 20 steps and with what `pol calibrate` recommends.

- Honest, fixed intervals: {_sentence(fixed)}.
- Honest, at the recommended interval: {_sentence(recommended)}. Where `pol calibrate` recommends none, nothing was judged: \
{", ".join(f"{task} ({count} runs)" for task, count in without.items()) or "nowhere"}.
- Attacks ({", ".join(ATTACKS)}): {_sentence(forged)}.
- A margin of {MARGIN:g} between the worst honest error and its limit holds on {len(margins) - len(short)} of {len(margins)} tasks\
{"; below it: " + ", ".join(f"{task} {margin:.3g}" for task, margin in short.items()) if short else ""}.

{table(head, lines)}
## Honest runs that are not valid

{table(["task", "k", "environments", "verdict", "why"], reasons) if reasons else "None."}
{_portable_section(portable)}"""


def _portable(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Those in portable arithmetic, and the rest."""
    return [row for row in rows if row.get("portable")], [row for row in rows if not row.get("portable")]


def _portable_section(rows: list[Row]) -> str:
    if not rows:
        return ""
    spans = {1: "k = 1", 5: "k = 5", 20: "k = 20"}
    columns = [*spans.values(), "the whole run"]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        cells = []
        for column in columns:
            here = [row for row in mine if spans.get(row["k"], columns[-1]) == column]
            exact = sum(row.get("verdict") == "valid" and row["exact_segments"] == row["segments"] for row in here)
            at = f" (k = {here[0]['k']})" if here and column == columns[-1] else ""
            cells.append(f"{exact} of {len(here)}{at}" if here else "not run")
        lines.append([task, *cells])
    bad = [row for row in rows if row.get("verdict") != "valid"]
    reasons = [(r["task"], r["k"], f"{r['prover']} → {r['verifier']}", r["verdict"], r["reason"]) for r in bad]
    return f"""
## In portable arithmetic

Recorded with `--arithmetic portable`, judged by `pol verify --own-environment` (nothing calibrated): how many runs are
valid with every segment equal to the bit. {"; ".join(dict.fromkeys(row["where"] for row in rows if "where" in row))}.

{table(["task", *columns], lines)}
{table(["task", "k", "environments", "verdict", "why"], reasons) if reasons else ""}"""


def _counts(rows: list[Row]) -> list[int]:
    return [len(rows), *(sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS)]


def _sentence(rows: list[Row]) -> str:
    total, *counts = _counts(rows)
    return f"{total} runs: " + ", ".join(f"{count} {verdict}" for count, verdict in zip(counts, VERDICTS, strict=True))


def main() -> None:
    options_ = parser(__doc__, "one task, four runs")
    options_.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options_.add_argument(
        "--only",
        default="",
        help="names of tasks, separated by commas, or `recommended`, or `portable` (default: everything)",
    )
    options_.add_argument("--so-far", action="store_true", help="run nothing more; write what the runs so far say")
    options_.add_argument("--output", help="folder for the page (default: docs/evidence; none if --quick or --tiny)")
    options = options_.parse_args()
    only = [name for name in options.only.split(",") if name]
    everything = {case.name: case for case in cases(options.size, options.data)}
    part = part_of(options.json)
    if options.so_far:
        there = kept(part, {})
        todo = {name: case for name, case in everything.items() if name in there}
    else:
        todo = {
            name: case
            for name, case in everything.items()
            if not only
            or case.task in only
            or (case.k is None and "recommended" in only)
            or (case.portable and "portable" in only)
        }
    work = {name: lambda case=case: {**described(case), **run(case, options.data)} for name, case in todo.items()}
    rows = list(compute(work, part, {}, jobs=options.jobs).values())
    output = options.output or (str(HERE.parent / "docs" / "evidence") if options.size.full else None)
    if output is not None:
        write_page(Path(output) / "other-environments.md", page(rows, len(everything)))
    write(options.json, results(rows), size=options.size, keep=options.so_far, runs=rows)


if __name__ == "__main__":
    main()
