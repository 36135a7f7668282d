"""Dishonest workers: what is left of the accuracy, and what it costs to check, against aggregation that is robust without checking.

Ten workers train a network on Fashion-MNIST (16 samples a slice, ten slices a round), 0 to 90 % of them dishonest, with the behaviours
of the registry. Defences: none, four robust rules that are told how many are dishonest (as far as they can be), and replaying
1, 3, 10 and 30 % of trusted workers' slices.

    python experiments/byzantine.py [--quick | --tiny] --data DIR [--output FOLDER] --json FILE

Writes ``byzantine.md`` and a picture too. Finished cells are kept in FILE.part. Without data, random images take their place.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import figures
import numpy as np
import torch
import torch.nn.functional as F
from cells import Cell, Result, compute, parser, part_of, provenance, table, write, write_page
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.distributed import core, events
from proof_of_learning.distributed.behaviours import BEHAVIOURS, Dishonest, Ring, triggered
from proof_of_learning.distributed.coordinator import Coordinator
from proof_of_learning.distributed.events import Rules
from proof_of_learning.distributed.rounds import Rounds, Slices, collective
from proof_of_learning.distributed.workers import Here, Honest, Worker
from proof_of_learning.errors import PolError
from proof_of_learning.numeric import randomness

WORKERS, SLOTS, BATCH, TRAIN, CLIP = 10, 10, 16, 8000, 2.0
LEVELS = (9, 3, 5, 7, 1)
ELSEWHERE = ("sign-flip", "a-little", "until-trusted")  # behaviours at levels other than the highest
CHECKED = {"replay 1 %": 0.01, "replay 3 %": 0.03, "replay 10 %": 0.1, "replay 30 %": 0.3}
ROBUST = {
    "none": "mean",
    "Krum": "krum",
    "trimmed mean": "trimmed-mean",
    "median": "median",
    "centred clipping": "centred-clipping",
}
DEFENCES = (
    "replay 3 %",
    "none",
    "Krum",
    "trimmed mean",
    "median",
    "centred clipping",
    "replay 10 %",
    "replay 1 %",
    "replay 30 %",
)
SKIPPED = (
    "fewer-steps",
    "nan",
    "oversized",
    "crash",
    "vanish",
    "tiny",
)  # of no use to an attacker here, or covered by the tests
PROBATION, FINALITY = 3, 20


@functools.cache
def images(folder: str | None, part: str, count: int) -> tuple[Tensor, Tensor]:
    if folder and (Path(folder) / "fashion_mnist.npz").is_file():
        with np.load(Path(folder) / "fashion_mnist.npz") as found:
            x, y = found[f"{part}_x"][:count], found[f"{part}_y"][:count]
        return torch.from_numpy(x).reshape(len(x), -1).float() / 255, torch.from_numpy(y).long()
    generator = torch.Generator().manual_seed(len(part))
    y = torch.randint(10, (count,), generator=generator)
    centres = torch.rand(10, 784, generator=torch.Generator().manual_seed(1))
    return (centres[y] + torch.rand(count, 784, generator=generator)) / 2, y


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(data: str | None, rounds: int, seed: int, rule: str, dishonest: int) -> Task:
    base = Task(
        name="byzantine", batch_size=BATCH, steps=rounds, seed=seed, loss=loss,
        model=lambda: nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)),
        data=lambda: TensorDataset(*images(data, "train", TRAIN)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds),
    )  # fmt: skip
    return collective(base, Rounds(SLOTS, aggregation=rule, clip=CLIP, dishonest=dishonest))


class Watched(Coordinator):
    """Keeps which slices made it into the model."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kept: dict[int, tuple[core.Work, ...]] = {}

    def _note(self, event: events.AnyEvent) -> None:
        if isinstance(event, events.Applied):
            self.kept[event.round] = core.want(self.book).works
        super()._note(event)


def key(number: int) -> PrivateKey:
    return PrivateKey(ec.derive_private_key(1000 + number, ec.SECP256R1()))


class Noted(set[str]):
    """Digests of the assignments that were answered with a lie."""


def noting(kind: type[Dishonest], lies: Noted) -> type[Dishonest]:
    def lie(self: Any, slices: Slices, asked: events.Assignment, start: Any) -> Any:
        lies.add(asked.digest())
        return kind.lie(self, slices, asked, start)

    return type(kind.__name__, (kind,), {"lie": lie})


def run(data: str | None, rounds: int, defence: str, behaviour: str, dishonest: int, seed: int) -> Cell:
    """Train once. accuracy: of the final model on test images. lies: slices that were lied about; left: those in the final model."""
    rule, share = ROBUST.get(defence, "mean"), CHECKED.get(defence, 0.0)
    assumed = min(dishonest, {"krum": SLOTS - 3, "trimmed-mean": (SLOTS - 1) // 2}.get(rule, 0))
    made = task(data, rounds, seed, rule, assumed)
    slices, ring, lies = Slices(made, randomness.key_from_seed(seed)), Ring(), Noted()
    kind = noting(BEHAVIOURS[behaviour], lies)
    workers: list[Worker] = [kind(made, key(50 + i), slices, ring=ring, seed=100 * seed + i) for i in range(dishonest)]
    workers += [Honest(made, key(1 + i), slices) for i in range(WORKERS - dishonest)]
    rules = Rules(rounds, SLOTS, share, PROBATION if share else 0, FINALITY)
    coordinator = Watched(made, rules, key(0), Here(workers))
    try:
        found = coordinator.run()
    except PolError as error:  # an undefended run may not stay finite
        return {"accuracy": 0.1, "failed": str(error)[:200], "shown": str(error)[:80]}
    x, y = images(data, "test", 10_000)
    with torch.no_grad():
        accuracy = float((found.model(x).argmax(1) == y).float().mean())
        others = x[y != 0]
        backdoor = float((found.model(triggered(others)).argmax(1) == 0).float().mean())
    honest = {w.public.digest for w in workers[dishonest:]}
    counts, bans = found.book.counts, [b.work.assignment.worker for b in found.book.bans]
    left = sum(w.name in lies for works in coordinator.kept.values() for w in works)
    return {
        "accuracy": accuracy, "backdoor": backdoor, "share": found.share, "replays": counts.replays, "audits": counts.audits,
        "computed": counts.computed / (rounds * SLOTS), "undone": counts.undone, "banned": len(bans),
        "honest_banned": sum(b in honest for b in bans), "lies": len(lies), "left": left,
        "shown": f"accuracy {accuracy:.3f}, {found.share:.1%} replayed, {len(bans)} banned, {left} of {len(lies)} lies left",
    }  # fmt: skip


def name_of(defence: str, behaviour: str, dishonest: int, seed: int) -> str:
    return f"{defence}/{behaviour}/{dishonest}/{seed}"


def results(found: Mapping[str, Cell]) -> list[Result]:
    base = statistics.mean([c["accuracy"] for n, c in found.items() if n.startswith("none/lazy/0/")] or [0.0])
    worst = {
        d: min([c["accuracy"] for n, c in found.items() if n.startswith(f"{d}/") and "/9/" in n] or [float("nan")])
        for d in DEFENCES
    }
    checked = [c for n, c in found.items() if n.startswith("replay")]
    made = [Result("accuracy, all honest", base, "", "higher")]
    made += [Result(f"worst accuracy with 9 of 10 dishonest, {d}", worst[d], "", "higher") for d in DEFENCES]
    three = [c for n, c in found.items() if n.startswith("replay 3 %/") and "/9/" in n and "failed" not in c]
    made.append(
        Result(
            "points lost with 9 of 10 dishonest, replay 3 %", 100 * (base - worst["replay 3 %"]), "points", "lower", 1.0
        )
    )
    made.append(
        Result("largest share replayed with that", max([c["share"] for c in three] or [float("nan")]), "", "lower", 0.1)
    )
    banned = sum(c.get("honest_banned", 0) for c in checked)
    made.append(Result(f"honest workers banned in {len(checked)} runs", banned, "", "lower", 0.0))
    return made


def page(found: Mapping[str, Cell], planned: int) -> str:
    """The page, from the cells that are there."""

    def at(defence: str, behaviour: str, dishonest: int) -> list[Cell]:
        return [c for n, c in found.items() if n.rsplit("/", 1)[0] == f"{defence}/{behaviour}/{dishonest}"]

    def shown(cells: list[Cell], what: str = "accuracy") -> str:
        return f"{100 * statistics.mean([c[what] for c in cells]):.1f}" if cells else "–"

    behaviours = [b for b in BEHAVIOURS if any(n.split("/")[1] == b for n in found)]
    base = at("none", "lazy", 0)
    text = "# Dishonest workers\n\n"
    text += f"`python experiments/byzantine.py --data DIR --json FILE`: {len(found)} of {planned} planned runs. {provenance()}\n\n"
    text += (
        f"Ten workers, ten slices of {BATCH} samples a round, updates clipped at a norm of {CLIP:g}, Fashion-MNIST ({TRAIN:,} "
        f""
        "images), a network of one hidden layer. "
        f"All honest: **{shown(base)} %** on 10,000 test images. "
        f"Newcomers are replayed in full for {PROBATION} slices, and {FINALITY} "
        "rounds can be undone. Krum and the trimmed mean are told how many are dishonest, up to the most that they can be told.\n\n"
    )
    for level in sorted(LEVELS, reverse=True):
        rows = [[b, *(shown(at(d, b, level)) for d in DEFENCES)] for b in behaviours]
        rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
        if rows:
            text += f"## {level} of 10 dishonest: accuracy in %\n\n" + table(["behaviour", *DEFENCES], rows) + "\n"
    costs = []
    for defence in CHECKED:
        for behaviour in behaviours:
            cells = [c for c in at(defence, behaviour, 9) if "share" in c]
            if cells:
                c = cells[0]
                costs.append(
                    [
                        defence,
                        behaviour,
                        f"{100 * c['share']:.1f}",
                        f"{c['computed']:.2f}",
                        c["banned"],
                        c["honest_banned"],
                        c["undone"],
                        f"{c['left']} of {c['lies']}",
                    ]
                )
    head = [
        "defence",
        "behaviour",
        "replayed, %",
        "slices computed for one",
        "banned",
        "of them honest",
        "rounds undone",
        "lies left in the model",
    ]
    text += (
        "## What checking costs and catches, 9 of 10 dishonest\n\nReplayed: of the run's slices, audits included.\n\n"
        + table(head, costs)
        + "\n"
    )
    doors = [
        [d, shown(at(d, "backdoor", 9), "backdoor"), shown(at(d, "backdoor", 3), "backdoor")]
        for d in DEFENCES
        if at(d, "backdoor", 9)
    ]
    if doors:
        text += (
            "## Backdoor\n\nMarked test images of other classes that are taken for class 0, in %.\n\n"
            + table(["defence", "9 of 10", "3 of 10"], doors)
            + "\n"
        )
    bounds = [
        [d, f"{core.unseen_lies(s)[0]:.1f}", core.unseen_lies(s)[1], f"{2 * CLIP / SLOTS:g}"]
        for d, s in CHECKED.items()
    ]
    text += (
        "## What a rare cheat can gain\n\nA trusted worker who lies now and then is banned at the first lie that is drawn. "
        "Before that, (1 - p) / p lies are expected to pass; "
        "each moves the round's aggregate by at most two clipped norms over the slots.\n\n"
        + table(
            [
                "defence",
                "lies expected to pass",
                "at most, with 99 %",
                "l2 norm by which one moves the aggregate, at most",
            ],
            bounds,
        )
    )
    return text


def picture(found: Mapping[str, Cell], place: Path) -> None:
    with figures.figure(place) as axes:
        for index, defence in enumerate(
            ("none", "Krum", "trimmed mean", "median", "centred clipping", "replay 3 %", "replay 10 %")
        ):
            points = {0: [c["accuracy"] for n, c in found.items() if n.startswith("none/lazy/0/")]}
            for level in LEVELS:
                points[level] = [
                    c["accuracy"] for n, c in found.items()
                    if n.startswith(f"{defence}/") and n.split("/")[2] == str(level) and n.split("/")[1] in ELSEWHERE
                ]  # fmt: skip
            there = sorted(level for level, values in points.items() if values)
            axes.plot(
                [10 * n for n in there], [100 * min(points[n]) for n in there], label=defence, **figures.line(index)
            )
        axes.set_xlabel("dishonest workers, %")
        axes.set_ylabel("accuracy under the worst behaviour, %")
        axes.legend(fontsize=9)


def write_pages(found: Mapping[str, Cell], planned: int, output: Path, pictures: bool) -> None:
    if pictures:
        picture(found, output / "byzantine.png")
    text = page(found, planned).replace("## ", "![Accuracy by the share of dishonest workers](byzantine.png)\n\n## ", 1)
    write_page(output / "byzantine.md", text)


def plan(data: str | None, size: Any) -> dict[str, Callable[[], Cell]]:
    rounds = size.of(200, 60, 3)
    first = (*ELSEWHERE, "rare-cheat", "backdoor")
    behaviours = [*first, *(b for b in BEHAVIOURS if b not in (*SKIPPED, *first))][: size.of(99, 99, 2)]
    todo: dict[str, Callable[[], Cell]] = {}

    def add(defence: str, behaviour: str, dishonest: int, seed: int) -> None:
        todo[name_of(defence, behaviour, dishonest, seed)] = partial(
            run, data, rounds, defence, behaviour, dishonest, seed
        )

    for seed in range(size.of(3, 1, 1)):
        add("none", "lazy", 0, seed)
    defences = DEFENCES[: size.of(9, 6, 3)]
    order = [(9, b) for b in behaviours[:5]]  # what matters most comes first
    order += [(level, b) for b in ELSEWHERE for level in LEVELS[1 : size.of(5, 2, 1)]]
    order += [(9, b) for b in behaviours[5 : size.of(99, 5, 5)]]
    for level, behaviour in order:
        for defence in defences:
            add(defence, behaviour, level, 0)
    return todo


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--output", default="docs/evidence", help="folder for the page")
    given = options.parse_args()
    todo = plan(given.data, given.size)
    label = {"size": given.size.name, "data": bool(given.data)}
    part = part_of(given.json)
    found = compute(todo, part, label, finished=given.finished)
    write(given.json, results(found), size=given.size, keep=given.finished, cells=found, planned=len(todo))
    write_pages(found, len(todo), Path(given.output), given.size.full)


if __name__ == "__main__":
    main()
