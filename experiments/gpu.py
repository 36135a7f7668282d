"""On a GPU: are recorded runs replayed bit for bit, what does recording cost, and has portable arithmetic the CPU's bits there?

    python experiments/gpu.py [--quick | --tiny] [--data DIR] [--device cuda] [--output FOLDER] --json FILE

- *Replay*: the examples, mixed precision and a compiled model are recorded by one process and verified by another on the same GPU,
  every segment of them.
- *Portable*: five tasks are trained in portable arithmetic on the CPU (another machine's: ``--cpu-alone``) and on the GPU; the digests
  of the whole state are compared after every step. A proof recorded on the GPU is verified by a process that sees none.
- *Cost*: recording over the same steps without it, and a portable step over a native one (float32, no TF32), in alternating blocks;
  with the engine that runs there, and with the plain one.

Writes ``gpu.md`` too. ``--device cpu`` goes through the same parts where there is no GPU: it shows that the program works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import EXAMPLES, HERE, Cell, Result, compute, parser, part_of, provenance, table, write, write_page
from common import Cost, alternate, ratio
from gpu_tasks import cnn, transformer, wide

from proof_of_learning import Recorder, Task
from proof_of_learning.numeric import environment, randomness
from proof_of_learning.numeric.portable import engine, selftest
from proof_of_learning.numeric.portable.table import plainly
from proof_of_learning.recording.header import make_header
from proof_of_learning.training.steps import Session, derived_feed

REPLAYED = ("cnn", "resnet20", "transformer", "bf16", "fp16", "compiled")
PORTABLE = ("MLP", "LSTM", "Fashion-MNIST CNN", "character Transformer", "CIFAR-10 ResNet-20")
THREADS = {"CIFAR-10 ResNet-20": 4}  # of a training on the CPU; of the others 2


def command(*arguments: object, hide: bool = False) -> subprocess.CompletedProcess[str]:
    """A ``pol`` command; ``hide``: in a process that sees no GPU."""
    variables = {**os.environ, "POL_REHEARSAL": "0", **({"CUDA_VISIBLE_DEVICES": ""} if hide else {})}
    return subprocess.run(
        [sys.executable, "-m", "proof_of_learning", *map(str, arguments)], env=variables, capture_output=True, text=True, check=False
    )  # fmt: skip


def replayed(name: str, steps: int, device: str, *, portable: bool = False, hide: bool = False) -> Cell:
    """Record by one process, verify all segments by another."""
    with tempfile.TemporaryDirectory(prefix="pol-gpu-") as folder:
        path, begun = Path(folder) / "run.pol", time.perf_counter()
        target = f"{EXAMPLES / 'digits.py'}:task" if name == "digits" else f"{HERE / 'gpu_tasks.py'}:{name}"
        settings = ("--set", f"steps={steps}")
        more = ("--arithmetic", "portable") if portable else ()
        made = command(
            "prove", target, "-o", path, "-k", 10 if steps < 100 else 50, "--device", device, *settings, *more
        )
        if made.returncode:
            return {"error": f"prove: {(made.stderr or made.stdout)[-1500:]}"}
        recorded = time.perf_counter()
        done = command(
            "verify", path, "--task", target, "--all", "--sandbox", "off", "--json", "-", *settings, hide=hide
        )
        try:
            verdict = json.loads(done.stdout)
        except ValueError:
            return {"error": f"verify: {done.stderr[-1500:]}"}
    exact = sum(bool(segment["exact"]) for segment in verdict["segments"])
    return {
        "verdict": verdict["verdict"], "exactness": verdict["exactness"], "exact": exact, "segments": verdict["proof"]["segments"],
        "checks": {check["name"]: [check["status"], check["summary"]] for check in verdict["checks"]},
        "recorded_in": recorded - begun, "verified_in": time.perf_counter() - recorded,
        "shown": f"{verdict['verdict']}, {exact} of {verdict['proof']['segments']} exact: {verdict.get('reason', '')[:300]}",
    }  # fmt: skip


def trained(name: str, device: str, steps: int, text: str) -> Cell:
    """A training in portable arithmetic in a process of its own, with the digests of its states."""
    variables = {
        **os.environ,
        "POL_TEXT": text,
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": str(THREADS.get(name, 2) if device == "cpu" else 1),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "portable_run.py"), name, "portable", str(steps), "0", device], env=variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"error": done.stderr[-2500:]}
    found: Cell = json.loads(done.stdout.splitlines()[-1])
    found.pop("weights")
    where = provenance() if device == "cpu" else torch.cuda.get_device_name()
    return {**found, "where": where, "shown": f"{found['typical_step'] * 1e3:.1f} ms a step, {found['achieved']:.4f}"}


# ---- costs ------------------------------------------------------------------------------------------------


def waited(device: str, work: Callable[[], object]) -> Cost:
    """What it takes until the device is done."""
    synchronize = torch.cuda.synchronize if device != "cpu" else lambda: None
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronize()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def steps_of(task: Task, device: str, arithmetic: str = "native") -> Callable[[int], None]:
    session = Session(task, randomness.key_from_seed(0), device, arithmetic=arithmetic)
    feed, order = derived_feed(task, task.data(), session.key, device)

    def take(count: int) -> None:
        with environment.recording(device):
            for _ in session.run(session.progress.step + count, feed, order):
                pass

    return take


def recording_cost(make: Callable[[int], Task], device: str, steps: int, blocks: int, interval: int) -> Cell:
    """Recording over the same loop without it."""
    task = make(steps * (blocks + 1))
    with tempfile.TemporaryDirectory(prefix="pol-gpu-") as folder:
        bare, data = steps_of(task, device), task.data()
        session = Session(task, randomness.key_from_seed(0), device)
        feed, order = derived_feed(task, data, session.key, device)
        with environment.recording(device) as here:
            header = make_header(task, session, data, interval=interval, codec="raw")
            recorder = Recorder(Path(folder) / "run", header, session.parts, here, asynchronous=device != "cpu")

        def record(count: int) -> None:
            with environment.recording(device):
                for result in session.run(session.progress.step + count, feed, order):
                    recorder.step(result.loss, result.rates)

        bare(steps)
        record(steps)
        costs = alternate(
            {
                "bare": partial(waited, device, partial(bare, steps)),
                "recorded": partial(waited, device, partial(record, steps)),
            },
            blocks,
        )
        with recorder:
            recorder.close()
    value, spread = ratio(costs["recorded"], costs["bare"])
    step = min(cost.wall for cost in costs["bare"]) / steps
    size = sum(p.numel() for p in session.model.parameters())
    return {
        "ratio": value,
        "spread": spread,
        "step": step,
        "parameters": size,
        "shown": f"{value:.3f} of {step * 1e3:.2f} ms",
    }


def portable_cost(make: Callable[[int], Task], device: str, steps: int, blocks: int) -> Cell:
    """A portable step over a native one, on the engine that runs here and on the plain one."""
    takes = {arithmetic: steps_of(make(10_000), device, arithmetic) for arithmetic in ("native", "portable")}
    with plainly():
        takes["plain"] = steps_of(make(10_000), device, "portable")

    def take(name: str, count: int) -> None:
        with plainly() if name == "plain" else nullcontext():
            takes[name](count)

    for name in takes:
        take(name, 2 if name != "plain" else 1)
    runs = engine.prepare_for_cuda() if device != "cpu" else engine.prepare()
    names = ("native", "portable")
    costs = alternate({name: partial(waited, device, partial(take, name, steps)) for name in names}, blocks)
    value, spread = ratio(costs["portable"], costs["native"])
    least = {name: min(cost.wall for cost in found) / steps for name, found in costs.items()}
    plain = min(waited(device, partial(take, "plain", 1)).wall for _ in range(min(3, blocks)))
    return {
        "ratio": value,
        "spread": spread,
        **least,
        "plain": plain,
        "engine": runs.name,
        "why": runs.reason,
        "shown": f"{value:.2f}, {runs.name} engine: {least['portable'] * 1e3:.1f} ms a step; plain {plain / least['native']:.2f}",
    }


# ---- the run ------------------------------------------------------------------------------------------------


def main() -> None:
    options = parser(__doc__, "short runs")
    options.add_argument("--output", default="docs/evidence", help="folder for the page")
    options.add_argument("--device", default="cuda", help="`cuda`; `cpu` shows that the program works")
    options.add_argument(
        "--cpu-alone",
        action="store_true",
        help="train the tasks of the second part on this CPU, keep that in FILE.part for a run with a GPU, and end",
    )
    given = options.parse_args()
    if given.size.name == "tiny" and not torch.cuda.is_available():
        given.device = "cpu"
    size, device = given.size, given.device
    try:
        environment.require("cpu" if given.cpu_alone else device)
    except Exception as error:
        raise SystemExit(f"{error}; there is nothing to measure (--device cpu goes through the program)") from None
    if given.data:
        os.environ["POL_DATA"] = str(Path(given.data).resolve())
    has_data = bool(os.environ.get("POL_DATA"))
    source = Path(os.environ.get("POL_DATA", "")) / "tiny_shakespeare.txt"
    text = (source if source.is_file() else HERE.parent / "LICENSE").read_text()[:60_000]
    steps, portable_steps = size.of(200, 40, 10), size.of(500, 50, 3)
    tasks = PORTABLE if has_data else PORTABLE[:2]
    todo: dict[str, Callable[[], Cell]] = {}
    label = {"size": size.name, "device": device}
    for name in tasks[::-1]:
        for where in dict.fromkeys(("cpu", device)):
            todo[f"portable/{name}/{where}"] = partial(trained, name, where, portable_steps, text)
    if given.cpu_alone:
        compute({name: work for name, work in todo.items() if name.endswith("/cpu")}, part_of(given.json), label)
        return
    todo["elsewhere/digits"] = partial(replayed, "digits", steps, device, portable=True, hide=True)
    for name in REPLAYED if has_data and not (device == "cpu" and size.name == "tiny") else ():
        todo[f"replay/{name}"] = partial(replayed, name, steps, device)
    alone: dict[str, Callable[[], Cell]] = {}
    if has_data:
        each, blocks = size.of(60, 10, 2), size.of(12, 3, 1)
        for name, make, interval in (
            ("CNN", cnn, 10),
            ("Transformer", transformer, 10),
            ("Transformer, 25 M", wide, 10),
        ):
            if device != "cpu" or name == "CNN":
                few = size.of((20, 4), (10, 2), (2, 1)) if make is wide else (each, blocks)  # a state of 300 MB
                alone[f"recording/{name}"] = partial(recording_cost, make, device, few[0], few[1], interval)
                alone[f"cost/{name}"] = partial(portable_cost, make, device, size.of(5, 2, 1), size.of(10, 2, 1))
    alone["self-test"] = partial(tested, device)
    found = compute(alone, part_of(given.json), label)  # first, while nothing else runs
    jobs = 1 if device == "cpu" else max(1, min(12, (os.cpu_count() or 1) * 3 // 4))
    found |= compute(todo, part_of(given.json), label, jobs=jobs)
    report(found, given, tasks, portable_steps)


def tested(device: str) -> Cell:
    here = selftest.digests(device)
    differ = selftest.unlike(here)
    return {
        "differ": {name: here.get(name) for name in differ},
        "cases": len(selftest.published()),
        "shown": f"{differ}",
    }


def report(found: dict[str, Cell], given: Any, tasks: tuple[str, ...], steps: int) -> None:
    device, results = given.device, list[Result]()
    bits, replays, costs = [], [], []
    cpus = "; ".join(dict.fromkeys(found[f"portable/{name}/cpu"].get("where", "unknown") for name in tasks))
    for name in tasks:
        one, other = (found[f"portable/{name}/{where}"] for where in ("cpu", device))
        if "error" in one or "error" in other:
            bits.append([name, "–", one.get("error", "")[-200:] or other.get("error", "")[-200:], "–", "–"])
            continue
        apart = [i for i, (a, b) in enumerate(zip(one["digests"], other["digests"], strict=True)) if a != b]
        results.append(
            Result(f"portable {name}: states that differ from the CPU's", len(apart), "states", "lower", 0.0)
        )
        first = "all equal" if not apart else f"from state {apart[0]}"
        times = [f"{cell['typical_step'] * 1e3:.1f} ms" for cell in (one, other)]
        bits.append([name, len(one["digests"]), first, *times, one["digests"][-1][7:23]])
    for name, cell in found.items():
        kind, _, what = name.partition("/")
        if kind in ("replay", "elsewhere"):
            where = "another process" if kind == "replay" else "portable, by a process without a GPU"
            if "error" in cell:
                replays.append([what, where, "–", f"failed: {cell['error'][-200:]}"])
                continue
            results.append(
                Result(
                    f"{name}: segments that are not exact", cell["segments"] - cell["exact"], "segments", "lower", 0.0
                )
            )
            replays.append([what, where, f"{cell['exact']} of {cell['segments']}", cell["verdict"]])
        elif kind in ("recording", "cost") and "error" not in cell:
            ours = kind == "recording"
            target = 1.03 if ours else 2.0
            label = "recording every 10 steps over bare steps" if ours else "a portable step over a native one"
            results.append(Result(f"{what}: {label}", cell["ratio"], "ratio", "lower", target, tuple(cell["spread"])))
            bare = cell["step"] if ours else cell["native"]
            costs.append([what, label, f"{cell['ratio']:.3f}", f"{target}", f"{bare * 1e3:.2f} ms"])
            if not ours:
                costs[-1][1] += f" ({cell['engine']} engine)"
                label = "the same on the plain engine"
                costs.append([what, label, f"{cell['plain'] / bare:.3f}", "–", f"{bare * 1e3:.2f} ms"])
    test = found["self-test"]
    results.append(Result("self-test: cases that differ", len(test["differ"]), "cases", "lower", 0.0))
    gpu = torch.cuda.get_device_name() if device != "cpu" else "no GPU"
    page = [
        "# On a GPU\n",
        f"Measured by `python experiments/gpu.py` ({given.size.name}): {gpu}, {provenance()}.\n",
        "## Native arithmetic: replayed bit for bit on the same GPU\n",
        "Recorded by one process (k = 50, 200 steps), verified by another, every segment.\n",
        table(["task", "verified by", "exact segments", "verdict"], replays),
        "## Portable arithmetic: the CPU's bits\n",
        f"The self-test on the GPU: {test['cases']} cases, {len(test['differ'])} differ. {steps} steps of each task; digests of the "
        "whole state after every step, the initial one included. Times are those of processes that ran side by side. "
        f"The CPU: {cpus}.\n",
        table(["task", "states", "GPU against CPU", "step, CPU", "step, GPU", "last digest"], bits),
        "## Cost\n",
        "In alternating blocks, before anything else of this program; wall time.\n",
        table(["task", "what", "ratio", "target", "a bare step"], costs),
    ]
    Path(given.output).mkdir(parents=True, exist_ok=True)
    write_page(Path(given.output) / "gpu.md", "\n".join(page))
    for cell in found.values():
        cell.pop("shown", None)
        if "digests" in cell:
            cell["digests"] = [digest[7:23] for digest in cell["digests"]]
    write(given.json, results, size=given.size, cells=found, device=gpu, bits=bits, replays=replays, costs=costs)


if __name__ == "__main__":
    main()
