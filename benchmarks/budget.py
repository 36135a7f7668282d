"""Where the time goes: a budget for every stage of recording, checking and starting, beside what the machine could do at best.

    python benchmarks/profile.py [--quick] --json FILE          # which is this program

The state is a ResNet-20's with momentum (2.2 MB in 175 tensors), the codec ``raw``. Each stage is the product's own function, alone,
in CPU time (least of the repetitions); its limit is what the bytes of that stage take on this machine: a copy, a hash, a write. One
picture, FILE with the ending ``.svg``: three pairs of stacked bars.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import EXAMPLES, Benchmark, alternate, benchmark, middle_half, timed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from proof_of_learning import Task, TaskReference, canonical, prove
from proof_of_learning.numeric import environment, randomness
from proof_of_learning.proof import codecs, format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.files import write_object
from proof_of_learning.proof.format import Block, Displacement, Segment
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.recording.header import make_header
from proof_of_learning.replay.held import Weights
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State, capture, settings
from proof_of_learning.training.steps import Session
from proof_of_learning.verifier.inertia import inertia
from proof_of_learning.verifier.survey import survey

Stages = dict[str, tuple[float, float]]  # seconds, and the limit
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :: self.first.stride[0], :: self.first.stride[0]]
        out = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(out + F.pad(kept, (0, 0, 0, 0, 0, out.shape[1] - kept.shape[1])))


def resnet20() -> nn.Module:
    widths = [16, *(width for width in (16, 32, 64) for _ in range(3))]
    blocks = [Residual(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks, *head)


def task(steps: int) -> Task:
    return Task(
        name="profile", model=resnet20, data=lambda: TensorDataset(torch.zeros(8, 3, 32, 32), torch.zeros(8).long()),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batch_size=2, steps=steps,
    )  # fmt: skip


def least(work: Callable[[], object], repetitions: int) -> float:
    """CPU seconds of the fastest of some repetitions, after one that warms up."""
    work()
    return min(timed(work).cpu for _ in range(repetitions))


def afresh(state: State) -> State:
    """The same tensors in a state that remembers no digest of them."""
    return State(state.tree, state.tensors, live=state.live, _views=dict(state._views), flat=state.flat)


def recording(session: Session, states: list[State], folder: Path, n: int) -> Stages:
    before, state = states[0].settled(), states[1]
    size = state.nbytes
    a, b = (torch.cat([t.flatten().float() for t in given.tensors.values()]) for given in (before, state))
    raw = b"".join(bytes(chunk) for chunk in codecs.get_codec("raw").encode(state, None).chunks())
    room = bytearray(len(raw))

    def copied() -> None:
        room[:] = raw

    digest = state.digest()
    line = Segment(digest, 3, 3, 4, digest, digest, Displacement(0.123456789, 0.1), digest, Block(digest, 160))
    text = canonical.encode(line)
    spare = state.settled()

    def settle() -> None:
        State(state.tree, state.tensors, live=True).settled(spare)

    def write() -> None:
        write_object(folder, [raw], lambda name: folder / name)

    target = folder / "plain"
    copy, hashed = least(copied, n), least(lambda: hashlib.sha256(raw).digest(), n)
    plain = least(lambda: target.write_bytes(raw), n)

    def synced() -> None:
        with target.open("r+b") as stream:
            stream.write(raw[:4096])
            os.fsync(stream.fileno())

    begun = time.perf_counter()
    for _ in range(n):
        synced()
    waited = (time.perf_counter() - begun) / n
    return {
        "flatten": (least(lambda: capture(session.parts, live=True), n), 0.0),
        "displacement": (least(lambda: displacement(before, state), n), least(lambda: (a - b).norm(), n)),
        "hash": (least(lambda: afresh(state).digest(), n), hashed * size / len(raw)),
        "encode": (
            least(lambda: b"".join(codecs.get_codec("raw").encode(afresh(state), None).chunks()), n),
            copy,
        ),
        "write (and hash the object)": (least(write, n), plain + hashed),
        "log": (least(lambda: format.line_digest(canonical.encode(line)), n), least(lambda: format.line_digest(text), n)),
        "copy": (least(settle, n), copy),
        "fsync (where one is asked for; wall)": (waited, waited),
    }  # fmt: skip


def recorded(path: Path, session: Session, states: list[State], count: int) -> list[float]:
    """Record ``count`` segments that end in one of the states in turn; CPU seconds of each."""
    made = task(count)
    header = make_header(made, session, made.data(), interval=1)
    columns, here, costs = Columns(np.ones(1), np.ones((1, 1))), environment.current(), list[float]()
    with ProofWriter.create(path, header) as writer:
        writer.start(states[0])
        for index in range(count):
            moved = dict(states[0].tensors)
            name = next(iter(moved))
            moved[name] = moved[name] + index + 1  # no two states are the same
            state = State(states[0].tree, moved, live=True)
            assert writer.state is not None
            began = time.process_time()
            apart = displacement(writer.state, state)
            writer.segment(
                arrived=state.digest(), state=state, displacement=apart, environment=here, columns=columns,
                stop=index + 1,
            )  # fmt: skip
            costs.append(time.process_time() - began)
        writer.seal()
    return costs


def every_cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def abreast(run: Benchmark, path: Path, blocks: int) -> None:
    """The survey by one process and by two, in turn: wall time, and what CPU time says of two idle cores."""
    walls, costs = dict[int, float](), dict[int, float]()
    for _ in range(blocks):
        for processes in (1, 2):
            proof, used, begun = Proof.open(path), every_cpu(), time.perf_counter()
            survey(proof, processes=processes)
            walls[processes] = min(walls.get(processes, math.inf), time.perf_counter() - begun)
            costs[processes] = min(costs.get(processes, math.inf), every_cpu() - used)
    run.add("survey, one process over two, wall", walls[1] / walls[2], "times", better="higher", target=1.7)
    share = 2 * costs[1] / costs[2]
    run.add(
        "survey, one process over two, CPU time as if on two idle cores", share, "times", better="higher", target=1.7
    )


def checking(path: Path, n: int) -> tuple[Stages, float, int]:
    """The stages of checking a state; the CPU seconds of the whole survey for each of them, and a state's bytes."""
    proof = Proof.open(path)
    count = len(proof.segments) + 1
    digests = proof.state_digests()
    first, state = proof.state(digests[0]), proof.state(digests[1])
    stored = (
        proof.path / "objects" / proof.index[digests[1]].object[7:9] / proof.index[digests[1]].object[7:]
    ).read_bytes()
    log = (path / format.LOG_FILE).read_bytes()
    a, b = (torch.cat([t.flatten().float() for t in given.tensors.values()]) for given in (first, state))
    hashed, copy = least(lambda: hashlib.sha256(stored).digest(), n), least(lambda: bytearray(stored), n)
    codec = proof.codec

    origin = Weights.of(first)

    def measure() -> None:
        displacement(first, state)
        origin.distance(state)
        origin.distance(state)
        inertia(state, [0.01])
        settings(state)

    def whole() -> None:
        survey(Proof.open(path))

    stages: Stages = {
        "open": (least(lambda: Proof.open(path), n) / count, least(lambda: hashlib.sha256(log).digest(), n) / count),
        "hash the object": (least(lambda: canonical.sha256(stored), n), hashed),
        "decode": (least(lambda: codec.decode(bytearray(stored), None), n), copy),
        "hash the state": (least(lambda: afresh(state).digest(), n), hashed),
        "measure": (least(measure, n), 3 * least(lambda: (a - b).norm(), n)),
    }
    return stages, least(whole, max(1, n // 8)) / count, state.nbytes


START = "import resource\n{}\nused = resource.getrusage(resource.RUSAGE_SELF)\nprint(used.ru_utime + used.ru_stime)"


def started(code: str, n: int) -> float:
    """CPU seconds of a fresh Python that runs ``code``."""
    command = [sys.executable, "-c", START.format(code)]
    return min(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) for _ in range(n)
    )


def starting(n: int) -> Stages:
    python, bare = started("", n), started("import torch", n)
    early = started("from proof_of_learning.cli import main\nimport proof_of_learning.replay.early", n)
    verifier = started("import proof_of_learning.verifier.verify", n)
    worker = "from proof_of_learning.replay import worker; worker._warm_up()"
    loaded = (
        f"{worker}\nfrom proof_of_learning.task import TaskReference, load_task\n"
        f"made = load_task(TaskReference({str(EXAMPLES / 'digits.py') + ':task'!r}))"
    )
    alone = started(worker, n)
    return {
        "before the worker is started": (early, python),
        "worker: imports and first step": (alone, bare),
        "worker: task and data": (max(0.0, started(f"{loaded}\nmade.data()", n) - alone), 0.0),
        "verifier: imports": (verifier, bare),
    }


FIRST = """
import sys, time
from proof_of_learning.replay.process import WorkerProcess
begun, ask = float(sys.argv.pop(1)), WorkerProcess.ask
def noted(worker, request, *more):
    answer = ask(worker, request, *more)
    if type(request).__name__ == "Take":
        print("first", time.time() - begun, file=sys.stderr)
    return answer
WorkerProcess.ask = noted
from proof_of_learning.cli.main import run
run()
"""


def first_step(run: Benchmark, folder: Path, steps: int, n: int) -> None:
    """Wall seconds from the start of ``pol verify`` until its first segment was replayed, and those of importing PyTorch alone."""
    path = folder / "digits.pol"
    named = ["--task", f"{EXAMPLES / 'digits.py'}:task", "--set", f"steps={steps}"]
    prove(TaskReference(f"{EXAMPLES / 'digits.py'}:task", {"steps": steps}), path)
    firsts, bare = [], []
    for _ in range(n):
        begun = time.time()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        bare.append(time.time() - begun)
        command = [sys.executable, "-c", FIRST, str(time.time()), "verify", str(path), *named]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        firsts.append(next(float(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("first ")))
    name = f"starting, first replayed segment of {steps} steps of the digits example"
    run.add(name, min(firsts), "s", target=min(bare) + 0.7, spread=middle_half(firsts))
    run.add("starting, import torch, wall", min(bare), "s", spread=middle_half(bare))


def told(run: Benchmark, what: str, stages: Stages, unit: str = "ms") -> None:
    scale = 1e3 if unit == "ms" else 1.0
    for name, (value, limit) in stages.items():
        run.add(f"{what}, {name}", value * scale, unit)
        run.add(f"{what}, {name}: limit", limit * scale, unit)


def picture(bars: dict[str, tuple[Stages, str]]) -> str:
    """Pairs of stacked bars, each pair on its own scale: the stages, and their limits beneath."""
    width, left, parts, y = 1000, 110, list[str](), 20
    for what, (stages, unit) in bars.items():
        scale = 1e3 if unit == "ms" else 1.0
        total = sum(value for value, _ in stages.values()) or 1.0
        for row, label in enumerate((what, "limit")):
            x = float(left)
            parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(label)}</text>')
            for colour, (name, pair) in zip(COLOURS, stages.items(), strict=False):
                length = (width - left - 10) * pair[row] / total
                title = f"{name}: {pair[row] * scale:.3g} {unit}"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{max(length, 0.5):.1f}" height="22" fill="{colour}">'
                    f"<title>{html.escape(title)}</title></rect>"
                )
                x += length
            y += 26
        x = float(left)
        for number, (colour, (name, (value, _))) in enumerate(zip(COLOURS, stages.items(), strict=False)):
            place, down = left + number % 3 * 295, y + number // 3 * 18
            parts.append(f'<rect x="{place}" y="{down}" width="10" height="10" fill="{colour}"/>')
            parts.append(
                f'<text x="{place + 15}" y="{down + 10}">{html.escape(name)} {value * scale:.3g} {unit}</text>'
            )
        y += 18 * (-(-len(stages) // 3)) + 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{y}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    with benchmark(__doc__) as run, tempfile.TemporaryDirectory(prefix="pol-benchmark-") as scratch:
        torch.set_num_threads(1)
        folder, n = Path(scratch), run.size.of(60, 20, 1)
        session = Session(task(1), randomness.key_from_seed(run.seed))
        model, optimizer = session.parts["model"], session.parts["optimizer"]
        states = []
        for _ in range(2):
            F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.zeros(2).long()).backward()
            optimizer.step()
            states.append(capture(session.parts))
        written = recording(session, states, folder, n)
        told(run, "recording", written)
        costs = recorded(folder / "run.pol", session, states, run.size.of(400, 200, 3))
        held = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saved = alternate({"save": lambda: timed(lambda: torch.save(held, folder / "saved.pt"))}, n + 1)["save"]
        run.add(
            "a checkpoint over torch.save, without capturing it, CPU",
            min(costs) / min(c.cpu for c in saved),
            "x",
            target=1.0,
        )
        read, surveyed, size = checking(folder / "run.pol", n)
        told(run, "checking", read)
        run.add(f"survey of one state of {size / 1e6:.1f} MB, without a task, CPU", surveyed * 1e3, "ms", target=3.0)
        abreast(run, folder / "run.pol", run.size.of(7, 3, 1))
        first_step(run, folder, run.size.of(2000, 2000, 20), run.size.of(5, 2, 1))
        begun = starting(run.size.of(5, 2, 1))
        told(run, "starting", begun, "s")
        if run.json != "-":
            drawn = {name: pair for name, pair in written.items() if not name.startswith("fsync")}  # waits for the disk
            shown = {"recording": (drawn, "ms"), "checking": (read, "ms"), "starting": (begun, "s")}
            Path(run.json).with_suffix(".svg").write_text(picture(shown))
