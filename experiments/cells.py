"""What all experiments share: options, results that survive an interruption, other numeric environments, and the JSON.

An experiment is a set of named cells, each computed alone. A finished cell is a line in ``FILE.part``, so that an interrupted run
goes on where it stopped; the file goes when the results are written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
sys.path.insert(0, str(HERE.parent / "benchmarks"))
from common import SCHEMA, Result, Size, machine, size_options, versions  # noqa: E402

Cell = dict[str, Any]

# Numeric environments that one machine has, as variables read when PyTorch starts; none of them sets another of these.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "ATen AVX2": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
    "ATen default": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "oneDNN AVX2": {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL AVX2": {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AVX2"},
}
BY_HAND = "<!-- below: written by hand -->"
PINNED = {"OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_NUM_THREADS"}


def parser(description: str | None, quick: str = "under two minutes on two cores") -> argparse.ArgumentParser:
    """The options that every experiment has."""
    made = argparse.ArgumentParser(description=(description or "").strip().split("\n")[0])
    size_options(made, quick)
    made.add_argument("--data", default=os.environ.get("POL_DATA"), help="folder with the data of the larger examples")
    made.add_argument("--json", required=True, help="file for the results")
    made.add_argument("--finished", action="store_true", help="compute nothing: write what the finished cells say")
    return made


def compute(
    todo: Mapping[str, Callable[[], Cell]],
    part: Path,
    label: Mapping[str, Any],
    *,
    jobs: int = 1,
    finished: bool = False,
) -> dict[str, Cell]:
    """The values of all cells by name, computing those that ``part`` does not hold yet.

    label: options on which values depend; what was kept under others is not used. jobs: cells at a time, in threads, for
    cells that work in processes of their own. finished: only those that ``part`` holds. A value with an ``error`` is kept for this run
    only.
    The time left is estimated from the cells done so far, those of the same kind (the name up to its last slash) counting first.
    """
    done = {name: value for name, value in kept(part, label).items() if name in todo}
    if finished:
        return {name: done[name] for name in todo if name in done}
    spent: dict[str, list[float]] = {}

    def left() -> float:
        typical = _mean(t for times in spent.values() for t in times)
        return sum(_mean(spent[_kind(n)]) if _kind(n) in spent else typical for n in todo if n not in done) / jobs

    def timed(work: Callable[[], Cell]) -> tuple[Cell, float]:
        begun = time.monotonic()
        return work(), time.monotonic() - begun

    def finish(name: str, value: Cell, seconds: float) -> None:
        done[name] = value
        spent.setdefault(_kind(name), []).append(seconds)
        if "error" not in value:
            with part.open("a") as file:
                file.write(json.dumps({"cell": name, **label, "value": value}) + "\n")
        shown = value.get("shown") or (f"ERROR {value['error'][-200:]}" if "error" in value else "")
        tail = f": {shown}" if shown else ""
        print(f"[{len(done)}/{len(todo)}, {left() / 60:.1f} min left] {name}{tail}", file=sys.stderr, flush=True)

    waiting = [name for name in todo if name not in done]
    if waiting and len(waiting) < len(todo):
        print(f"{len(todo) - len(waiting)} of {len(todo)} parts were there already", file=sys.stderr, flush=True)
    if jobs == 1:
        for name in waiting:
            finish(name, *timed(todo[name]))
    else:
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(timed, todo[name]): name for name in waiting}
            for future in as_completed(futures):
                finish(futures[future], *future.result())
    return {name: done[name] for name in todo}


def ticker(name: str, every: float = 20.0) -> Callable[[int, int], None]:
    """A callback that says now and then, on standard error, how far a long cell is."""
    begun = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every and done:
            last = now
            left = (now - begun) / done * (total - done)
            print(f"    {name}: {done:,} of {total:,}, {left:.0f} s left of it", file=sys.stderr, flush=True)

    return report


def kept(part: Path, label: Mapping[str, Any]) -> dict[str, Cell]:
    """Finished cells by name, those that were computed under ``label``."""
    found: dict[str, Cell] = {}
    for line in part.read_text().splitlines() if part.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that was being written when the run was stopped
        if all(entry.get(key) == value for key, value in label.items()):
            found[entry["cell"]] = entry["value"]
    return found


def _kind(name: str) -> str:
    return name.rsplit("/", 1)[0]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else 0.0


def write(
    path: str, results: Sequence[Result], *, size: Size, seed: int = 0, keep: bool = False, **details: Any
) -> None:
    """Write the results (schema ``pol/benchmark/v1``), with further ``details``; unless ``keep``, remove what was kept for resuming.

    Numbers that are not finite become null.
    """
    document = {
        "schema": SCHEMA, "results": [asdict(result) for result in results], **details, "quick": not size.full, "size": size.name,
        "machine": machine(), "versions": versions(), "seed": seed,
    }  # fmt: skip
    text = as_text(_finite(document))
    if path == "-":
        print(text, end="")
    else:
        Path(path).write_text(text)
    if not keep:
        part_of(path).unlink(missing_ok=True)


def as_text(document: Mapping[str, Any]) -> str:
    """Results as they are kept."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def ranges(numbers: Iterable[int]) -> list[Any]:
    """Rising integers with each run of at least three as ``[first, last]``: ``[3, 4, 5, 9]`` is ``[[3, 5], 9]``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [part for a, b in found for part in ([[a, b]] if b - a > 1 else [a] if a == b else [a, b])]


def indices(told: Iterable[Any]) -> list[int]:
    """The inverse of :func:`ranges`, which also takes plain integers."""
    return [n for part in told for n in (range(part[0], part[1] + 1) if isinstance(part, list) else (part,))]


def part_of(path: str) -> Path:
    """Where finished cells are kept while the results for ``path`` are not complete."""
    return Path("results.part" if path == "-" else f"{path}.part")


def write_page(path: Path, text: str) -> None:
    """Write a page of results; what somebody wrote below the line ``BY_HAND`` of the page before stays."""
    _, line, notes = path.read_text().partition(BY_HAND) if path.is_file() else ("", "", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n" + (f"\n{line}{notes}" if line else ""))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def pol(environment: str, *arguments: str, data: str | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a ``pol`` command in one of the ENVIRONMENTS."""
    clean = {name: value for name, value in os.environ.items() if name not in PINNED}
    variables = {**clean, **ENVIRONMENTS[environment], **({"POL_DATA": data} if data else {})}
    command = [sys.executable, "-c", "from proof_of_learning.cli.main import run; run()", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, check=False)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


_MEASURED: ContextVar[tuple[dict[str, Any], dict[str, str]] | None] = ContextVar("measured", default=None)


@contextmanager
def measured_on(where: dict[str, Any], used: dict[str, str]) -> Iterator[None]:
    """Pages that are written meanwhile tell of results of another machine, or of earlier versions."""
    token = _MEASURED.set((where, used))
    try:
        yield
    finally:
        _MEASURED.reset(token)


def provenance() -> str:
    """One line of Markdown on what a page was measured on."""
    here, used = _MEASURED.get() or (machine(), versions())
    return (
        f"{here['cores']} cores ({here['processor']}, {here['capability']}), {here['memory_gib']} GiB; "
        + ", ".join(f"{name} {version}" for name, version in used.items())
    )  # fmt: skip
