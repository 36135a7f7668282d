"""Honest proofs judged in another numeric environment than they were made in, and two attacks judged the same way.

For every task, interval and pair of environments: `pol prove` in one, `pol verify --own-environment --allow-calibrated` in the
other. What has to hold: no honest proof is rejected; `inconclusive` only where the interval is too long; the worst honest error
stays three times below its limit, and the attacks' errors three times above.

    python experiments/other_environments.py [--quick] [--data DIR] [--jobs N] --json FILE

Resumes: results are kept beside FILE (FILE.partial) until all are there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
from common import SCHEMA, Result, machine, versions  # noqa: E402

EXAMPLES = HERE.parent / "examples"
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "ATen AVX2": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
    "ATen default": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "oneDNN AVX2": {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL AVX2": {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AVX2"},
}
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad")
ATTACKS = ("concatenation", "infinitesimal-update")
PINNED = {"OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_NUM_THREADS"}


@dataclass(frozen=True)
class Case:
    """One proof and its judgement: ``prover`` and ``verifier`` name environments; ``attack`` forges it first."""

    task: str
    target: str
    settings: tuple[str, ...]
    k: int
    prover: str
    verifier: str
    attack: str | None = None

    @property
    def name(self) -> str:
        what = f" {self.attack}" if self.attack else ""
        return f"{self.task} k={self.k} {self.prover} -> {self.verifier}{what}"


def cases(quick: bool, data: str | None) -> Iterator[Case]:
    tasks: list[tuple[str, str, tuple[str, ...]]] = [
        (f"digits-{name}", f"{HERE / 'variants.py'}:task", (f"optimizer={name}", "steps=200")) for name in OPTIMIZERS
    ]
    tasks += [
        ("digits", f"{EXAMPLES / 'digits.py'}:task", ("steps=200",)),
        ("custom-step", f"{EXAMPLES / 'custom_step.py'}:task", ("steps=200",)),
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
            chosen = pairs[:2] if quick else pairs if k == 5 or not small else pairs[:: 2 if k == 1 else 3]
            for prover, verifier in chosen if small else chosen[1:4]:
                yield Case(task, target, settings, k, prover, verifier)
        for attack in ATTACKS:
            if task != "custom-step":
                yield Case(task, target, settings, 2 if quick else 5, "ATen AVX2", "1 thread", attack)


def run(case: Case, data: str | None) -> dict[str, Any]:
    """Prove, forge where asked, verify; the outcome as plain values."""

    def pol(environment: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        clean = {name: value for name, value in os.environ.items() if name not in PINNED}
        variables = {**clean, **ENVIRONMENTS[environment], **({"POL_DATA": data} if data else {})}
        command = [sys.executable, "-c", "from proof_of_learning.cli.main import run; run()", *arguments]
        return subprocess.run(command, env=variables, capture_output=True, check=False)

    with tempfile.TemporaryDirectory(prefix="pol-experiment-") as folder:
        sets = [item for setting in case.settings for item in ("--set", setting)]
        proof, verdict = f"{folder}/run.pol", f"{folder}/verdict.json"
        begun = time.perf_counter()
        done = pol(case.prover, "prove", case.target, "-o", proof, "-k", str(case.k), *sets)
        if done.returncode != 0:
            return {"error": done.stderr.decode()[-400:]}
        if case.attack:
            forged = f"{folder}/forged.pol"
            done = pol(
                case.prover, "attack", case.attack, "--target", proof, "--task", case.target, "-o", forged, *sets
            )
            if done.returncode != 0:
                return {"error": done.stderr.decode()[-400:]}
            proof = forged
        options = [
            "--own-environment",
            "--allow-calibrated",
            "--keep-going",
            "--sandbox",
            "off",
            "--random",
            "40",
            "--json",
            verdict,
        ]
        done = pol(case.verifier, "verify", proof, "--task", case.target, *sets, *options)
        if not Path(verdict).is_file():
            return {"error": done.stderr.decode()[-400:]}
        return {**summary(json.loads(Path(verdict).read_text())), "seconds": time.perf_counter() - begun}


def summary(verdict: dict[str, Any]) -> dict[str, Any]:
    checks = {check["name"]: check for check in verdict["checks"]}
    judged = [s for s in verdict["segments"] if not s["exact"] and s["limit_share"] is not None]
    passed = [s["limit_share"] for s in judged if s["status"] == "pass"]
    failed = [s["limit_share"] for s in judged if s["status"] == "fail"]
    bad = [check for check in verdict["checks"] if check["mandatory"] and check["status"] != "pass"]
    return {
        "verdict": verdict["verdict"],
        "reason": "; ".join(f"{check['name']}: {check['summary']}" for check in bad)[:600],
        "exact_segments": sum(s["exact"] for s in verdict["segments"]),
        "segments": len(verdict["segments"]),
        "worst_pass": max(passed, default=None),
        "nearest_fail": min(failed, default=None),
        "drift_z": checks["drift"]["evidence"].get("z"),
        "tolerances": checks["trajectory"]["evidence"].get("tolerances"),
        "steps_replayed": verdict["cost"]["steps_replayed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one task, four runs")
    parser.add_argument(
        "--data", default=os.environ.get("POL_DATA"), help="folder with the data of the larger examples"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    todo = list(cases(options.quick, options.data))
    partial = Path(options.json + ".partial")
    known: dict[str, Any] = json.loads(partial.read_text()) if partial.is_file() else {}
    known = {name: outcome for name, outcome in known.items() if "error" not in outcome}
    begun, fresh = time.perf_counter(), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(run, case, options.data): case for case in todo if case.name not in known}
        for future in as_completed(waiting):
            case, outcome = waiting[future], future.result()
            known[case.name] = {**asdict(case), **outcome}
            partial.write_text(json.dumps(known))
            fresh += 1
            left = (time.perf_counter() - begun) / fresh * (len(waiting) - fresh)
            shown = outcome.get("verdict") or f"ERROR {outcome['error'][-160:]}"
            print(
                f"[{len(known)}/{len(todo)}, {left / 60:.0f} min left] {case.name}: {shown}",
                file=sys.stderr,
                flush=True,
            )
    rows = [known[case.name] for case in todo]
    document = {
        "schema": SCHEMA, "results": [asdict(result) for result in results(rows)], "runs": rows, "quick": options.quick,
        "machine": machine(), "versions": versions(), "seed": 0,
    }  # fmt: skip
    Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    partial.unlink(missing_ok=True)


def results(rows: list[dict[str, Any]]) -> list[Result]:
    honest = [row for row in rows if row["attack"] is None]
    forged = [row for row in rows if row["attack"] is not None]
    verdicts = Counter(row.get("verdict", "error") for row in honest)
    worst = max((row["worst_pass"] for row in honest if row.get("worst_pass") is not None), default=0.0)
    nearest = min((row["nearest_fail"] for row in forged if row.get("nearest_fail") is not None), default=float("nan"))
    return [
        Result("honest proofs judged", len(honest), "runs", "higher", None if len(honest) < 100 else 100),
        Result("honest proofs rejected", verdicts["invalid"], "runs", "lower", 0),
        Result("honest proofs inconclusive", verdicts["inconclusive"], "runs", "lower"),
        Result("runs that failed to run", verdicts["error"], "runs", "lower", 0),
        Result("limit over worst honest error", 1 / worst if worst else float("inf"), "x", "higher", 3),
        Result("nearest attack's error over limit", nearest, "x", "higher", 3),
        Result("attacks accepted", sum(row.get("verdict") == "valid" for row in forged), "runs", "lower", 0),
    ]


if __name__ == "__main__":
    main()
