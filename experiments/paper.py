"""The evidence of the Proof-of-Learning paper, measured again: CIFAR-10 with ResNet-20, each result beside the paper's figure.

    python experiments/paper.py [--quick | --tiny | --full] [--data DIR] [--output DIR] --json FILE

Reproduction error by k, metric and numeric environment (the layout of its Table I); spoofs by inverted gradients (Table III) and
the KS test of their initial weights; the discontinuity of concatenated proofs (Figure 5); float16 checkpoints; the cost of
verification by Q and k. Writes numbers to FILE, and a page with pictures to the output folder.

Without options the run is **reduced** for a CPU: fewer images, smaller batches and 300 steps instead of 78,000. ``--full`` is the
paper's own setting and needs a GPU. ``--data`` names the folder with ``cifar10.npz``; without it noisy patterns stand in.
Finished parts are kept beside FILE (FILE.part, FILE.work), so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from cells import HERE, Cell, Result, compute, parser, part_of, ticker, write
from cifar import FILE, stand_in
from paper_measures import (
    Replays,
    challenged_share,
    distance,
    final_weights,
    inverse_gradient,
    load,
    plain,
    replay_noise,
    rounded_starts,
    save,
    tracked_run,
    variants,
)
from paper_page import Findings, write_page

from proof_of_learning import Proof, Task, TaskReference, load_task, prove
from proof_of_learning.numeric import environment as environments

EPOCHS, PER_EPOCH = 200, 390  # the paper's
COST_INTERVALS, COST_Q = (1, 10, 39, 78, 390), (1, 2, 4)


@dataclass(frozen=True)
class Scale:
    """How much is computed. ``ks``: intervals; ``segments``: starts to replay from; ``rates``: learning rates of inverted steps;
    ``budget``: gradients that the root finder may take for each."""

    name: str
    images: int
    batch_size: int
    steps: int
    runs: int
    ks: tuple[int, ...]
    segments: int
    environments: tuple[str, ...]
    inverted: int
    rates: tuple[float, ...]
    seeds: int
    budget: int

    @property
    def per_epoch(self) -> int:
        return self.images // self.batch_size


CPU = ("2 threads", "ATen AVX2", "ATen default", "oneDNN AVX2", "MKL AVX2")
TINY = Scale("tiny", 64, 8, 2, 2, (1, 2), 1, CPU[:1], 2, (0.01,), 1, 2)
QUICK = Scale("quick", 1000, 8, 24, 2, (1, 4), 1, CPU[:2], 6, (0.01,), 1, 6)
REDUCED = Scale("reduced", 5000, 32, 300, 3, (1, 5, 20, 50), 3, CPU, 50, (0.1, 0.01), 2, 10)
FULL = Scale("full", 50_000, 128, EPOCHS * PER_EPOCH, 3, (1, 10, 39, 78, 390), 5, CPU, 50, (0.1, 0.01), 5, 50)


class Paper:
    """The cells of one run. ``work`` holds the recorded run and the final weights of the others."""

    def __init__(self, scale: Scale, data: str, work: Path, seed: int, opened: ExitStack) -> None:
        self.scale, self.work, self.seed, self._opened = scale, work, seed, opened
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        settings: dict[str, str | int] = {
            "data": str(Path(data).resolve()), "images": scale.images, "steps": scale.steps,
            "batch_size": scale.batch_size, "epochs": EPOCHS, "seed": seed,
        }  # fmt: skip
        self.reference = TaskReference(f"{HERE / 'cifar.py'}:task", settings)
        self.task: Task = load_task(self.reference)

    @cached_property
    def proof(self) -> Proof:
        """The recorded run; `prove` goes on where it was stopped."""
        report = ticker("recorded run")

        def progress(doing: str, done: int, total: int) -> None:
            if doing == "training":
                report(done, total)

        threads = 1 if self.device == "cpu" else None
        made = prove(
            self.reference, self.work / "run.pol", interval=max(self.scale.ks), device=self.device, threads=threads,
            progress=progress,
        )  # fmt: skip
        return Proof.open(made.path)

    @cached_property
    def elsewhere(self) -> Replays:
        return Replays(self.reference, self.proof.path, self._opened)

    def cells(self) -> dict[str, Callable[[], Cell]]:
        scale = self.scale
        found: dict[str, Callable[[], Cell]] = {"recorded run": self.recorded}
        found |= {f"other runs/{i}": partial(self.other_run, i) for i in range(1, scale.runs)}
        found |= {
            f"inverse gradient, rate {rate}/{seed}": partial(self.inverse, rate, seed)
            for rate in scale.rates
            for seed in range(scale.seeds)
        }
        found |= {
            f"replays, k = {k}/{place}": partial(self.replays, k, place)
            for k in scale.ks
            for place in range(scale.segments)
        }
        found |= {f"float16/{place}": partial(self.float16, place) for place in range(scale.segments)}
        return found | {"cost": self.cost}

    def recorded(self) -> Cell:
        return {"evaluation": self.proof.end.evaluation, "root": self.proof.root}

    def other_run(self, number: int) -> Cell:
        """A run from another seed, and the distances of its final weights to those of all runs before it."""
        ends = [final_weights(self.proof), *(load(self.work / f"run{i}.npy") for i in range(1, number))]
        report = ticker(f"other run {number}")
        end, found = tracked_run(self.task, self.seed + number, ends[0], self.device, report)
        save(self.work / f"run{number}.npy", end)
        return {**found, "apart": [plain(distance(end, other)) for other in ends]}

    def inverse(self, rate: float, number: int) -> Cell:
        name = f"inverse gradient {number}, rate {rate}"
        scale = self.scale
        return inverse_gradient(
            self.task, self.seed + 100 + number, rate, scale.inverted, scale.budget, self.device, ticker(name)
        )

    def place(self, number: int) -> int:
        """The index of the segment that replays start from: evenly spread, the first one included."""
        whole = self.scale.steps // max(self.scale.ks)
        return round(number * (whole - 1) / max(1, self.scale.segments - 1))

    def replays(self, k: int, place: int) -> Cell:
        here = next(iter(self.proof.environments.values()))
        index = self.place(place)
        start = self.proof.state(self.proof.state_digests()[index])
        return replay_noise(self.elsewhere, start, index, k, here, variants(here, self.scale.environments))

    def float16(self, place: int) -> Cell:
        with environments.recording(self.device, threads=1 if self.device == "cpu" else None):
            return rounded_starts(self.task, self.proof, self.place(place), self.scale.ks, self.device)

    def cost(self) -> Cell:
        return {
            f"{k}/{q}": challenged_share(EPOCHS * PER_EPOCH, k, q, self.seed) for k in COST_INTERVALS for q in COST_Q
        }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--full", action="store_true", help="the paper's own setting; needs a GPU")
    made.add_argument("--output", help="folder for the page and its pictures (default: docs/evidence)")
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    if options.full and not options.size.full:
        made.error("--full is neither --quick nor --tiny")
    if options.full and not torch.cuda.is_available():
        made.error("--full trains 78,000 steps three times and needs a GPU, and this PyTorch sees none")
    scale = options.size.of(FULL if options.full else REDUCED, QUICK, TINY)
    # A quick run's page would say nothing: it is written only where it is asked for.
    output = options.output or (str(HERE.parent / "docs" / "evidence") if options.size.full else None)
    work = Path("paper.work" if options.json == "-" else f"{options.json}.work") / scale.name
    work.mkdir(parents=True, exist_ok=True)
    real = bool(options.data) and (Path(options.data) / FILE).is_file()
    data = options.data if real else stand_in(work / "data", options.seed, scale.images)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not options.full)
    with ExitStack() as opened:
        paper = Paper(scale, data, work, options.seed, opened)
        label = {"scale": asdict(scale), "seed": options.seed, "real": real}
        done = compute(paper.cells(), part_of(options.json), _as_json(label))
    found = Findings(scale.name, asdict(scale), real, options.seed, done)
    results: list[Result] = found.results()
    if output is not None:
        write_page(found, Path(output))
    cells_ = {name: {key: value for key, value in cell.items() if key != "shown"} for name, cell in done.items()}
    write(options.json, results, size=options.size, seed=options.seed, notes=found.notes, scale=asdict(scale),
          real_data=real, cells=cells_)  # fmt: skip
    shutil.rmtree(work.parent, ignore_errors=True)


def _as_json(label: dict[str, object]) -> dict[str, object]:
    import json

    return dict(json.loads(json.dumps(label)))


if __name__ == "__main__":
    main()
