"""How much memory recording and verifying take beyond training itself, in units of the training state.

Every mode runs in a process of its own. For one process the peak is the kernel's own account of resident memory; for a
verification, which is two processes, it is the largest sum of both that frequent sampling sees. What a second Python
with PyTorch takes without any work is reported beside it and not counted as state.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import benchmark, process_tree

import proof_of_learning as pol
from proof_of_learning import Proof, TaskReference, load_task

TARGET = 2.0  # training states
SAMPLING = 0.005  # seconds


def peak_of_self() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return _status("self", "VmHWM")


def _status(process: int | str, entry: str) -> int:
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(entry + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


# ---- what runs in the measured process ----------------------------------------------------------------


def child(mode: str, task: TaskReference, path: str) -> None:
    if mode == "idle":
        pol.verify  # noqa: B018  (imports all that a verification imports)
    elif mode == "train":
        train(task)
    elif mode == "record":
        pol.prove(task, path, interval=1)
    else:
        verdict = pol.verify(path, task, everything=mode == "verify all")
        assert verdict.verdict == "valid", verdict.reason
    print(json.dumps(peak_of_self()))


def train(reference: TaskReference) -> None:
    from plain import Loop, deterministic

    deterministic()
    task = load_task(reference)
    assert task.steps is not None
    Loop(task).run(task.steps)


# ---- the measuring process ----------------------------------------------------------------------------


def measure(mode: str, task: TaskReference, path: Path) -> tuple[int, int]:
    """Peak of the mode's own process, and the largest sum over it and its children."""
    settings = json.dumps(dict(task.settings))
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", mode, task.target, settings, str(path)], stdout=subprocess.PIPE
    )
    together = 0
    tree, looked = [process.pid], 0.0
    while process.poll() is None:
        if time.monotonic() - looked > 0.2:
            tree, looked = process_tree(process.pid), time.monotonic()
        together = max(together, sum(_status(pid, "VmRSS") for pid in tree))
        time.sleep(SAMPLING)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{mode} failed")
    return json.loads(process.stdout.read()), together


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        width, lengths = run.size.of((2048, (10, 40)), (1536, (5, 15)), (64, (2,)))
        target = f"{Path(__file__).with_name('mlp.py')}:task"
        paths = {steps: Path(scratch) / f"{steps}.pol" for steps in lengths}
        tasks = {steps: TaskReference(target, {"steps": steps, "width": width}) for steps in lengths}
        longest = tasks[lengths[-1]]
        idle, _ = measure("idle", longest, paths[lengths[-1]])
        trained, _ = measure("train", longest, paths[lengths[-1]])
        peaks = {steps: measure("record", tasks[steps], paths[steps])[0] for steps in lengths}
        proof = Proof.open(paths[lengths[0]])
        state = proof.state(proof.segments[-1].state).nbytes
        run.add("training state", state / 2**20, "MiB")
        run.add("training itself, peak", trained / state, "states")
        run.add("a Python with PyTorch and nothing else", idle / state, "states")
        for steps in lengths:
            run.add(
                f"recording beyond training, {steps} checkpoints",
                (peaks[steps] - trained) / state,
                "states",
                target=TARGET,
            )
        for steps in lengths:
            _, together = measure("verify all", tasks[steps], paths[steps])
            beyond = (together - trained - idle) / state
            run.add(f"verifying beyond training, {steps} checkpoints", beyond, "states", target=TARGET)
        for name in ("recording", "verifying"):
            values = [result.value for result in run.results if result.name.startswith(name)]
            run.add(
                f"{name}: growth from {lengths[0]} to {lengths[-1]} checkpoints",
                values[-1] - values[0],
                "states",
                target=0.1,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--child", nargs=4)
        mode_, target_, settings_, path_ = parser.parse_args().child
        child(mode_, TaskReference(target_, json.loads(settings_)), path_)
    else:
        main()
