"""Selection: how many segments a verifier draws, what they guarantee, and how often forgeries with few false segments are missed.

    python experiments/selection.py [--quick | --tiny] [--work DIR] --json FILE

Honest runs of several optimizers and lengths, and every attack of the registry that hides a few false segments among honest steps that
cost next to nothing, in several variants, on a ReLU network for handwritten digits. Nothing is replayed: for each proof the survey
is made once, and 200 nonces are drawn on it. Writes JSON, and a page beside it. Finished cells are kept in FILE.part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, compute, parser, part_of, provenance, table, write, write_page
from common import Result
from selection_task import task

from proof_of_learning import Proof, load_task, prove
from proof_of_learning.attacks import ATTACKS
from proof_of_learning.attacks.gamble import fixed_nonces, missed, surveyed
from proof_of_learning.verifier.checks.learning import WHOLE
from proof_of_learning.verifier.dynamics import IDENTITY_LIMIT
from proof_of_learning.verifier.expected import planned_steps
from proof_of_learning.verifier.options import Draw
from proof_of_learning.verifier.plan import challenge, make_nonce

NONCES = 200
SEED = 12345  # of the surveys


@dataclass(frozen=True)
class Run:
    """An honest run: settings of the task, and k."""

    settings: Mapping[str, Any]
    interval: int = 1


@dataclass(frozen=True)
class Forged:
    """A forgery of one of the runs."""

    attack: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)


RUNS = {
    "sgd, 2,000 segments": Run({"steps": 2000, "seed": 15}),
    "sgd with decay, 2,000": Run({"steps": 2000, "decay": 5e-4, "seed": 14}),
    "sgd, 3,000": Run({"steps": 3000, "seed": 1}),
    "sgd with decay, 3,000": Run({"steps": 3000, "decay": 5e-4}),
    "sgd, 10,000": Run({"steps": 10_000, "seed": 3}),
    "adam, 2,000": Run({"steps": 2000, "optimizer": "adam", "seed": 8}),
    "adamw, 3,000": Run({"steps": 3000, "optimizer": "adamw", "decay": 0.01, "seed": 2}),
    "cnn, k = 5, 3,000": Run({"steps": 15_000, "model": "cnn", "lr": 0.02, "seed": 3}, 5),
    "sgd with scaler, 2,000": Run({"steps": 2000, "scaler": True, "seed": 7}),
    "sgd of an unknown class, 2,000": Run({"steps": 2000, "optimizer": "own", "seed": 15}),
    "nadam, 2,000": Run({"steps": 2000, "optimizer": "nadam", "seed": 8}),
}
PLAIN, DECAY, ADAM, SCALER = "sgd, 2,000 segments", "sgd with decay, 2,000", "adam, 2,000", "sgd with scaler, 2,000"
OWN, NADAM = "sgd of an unknown class, 2,000", "nadam, 2,000"
FORGERIES = (
    Forged("shadow", DECAY, {"carrier": "decay"}),
    Forged("shadow", DECAY, {"carrier": "decay", "how": "momentum"}),
    Forged("shadow", DECAY, {"carrier": "decay", "how": "gradient", "parts": 16}),
    Forged("shadow", DECAY, {"carrier": "decay", "parts": 16}),
    Forged("shadow", DECAY, {"carrier": "decay", "tail": 0.05}),
    Forged("shadow", PLAIN, {"carrier": "none"}),
    Forged("shadow", PLAIN, {"carrier": "none", "how": "gradient", "parts": 16}),
    Forged("shadow", PLAIN, {"carrier": "none", "how": "momentum"}),
    Forged("dropped-state", PLAIN),
    Forged("dropped-state", PLAIN, {"which": "both", "how": "gradient"}),
    Forged("idle-excursion", PLAIN),
    Forged("idle-excursion", PLAIN, {"living": 1}),
    Forged("idle-excursion", DECAY),
    Forged("idle-excursion", PLAIN, {"tail": 0.4}),
    Forged("late-jump", PLAIN),
    Forged("late-jump", PLAIN, {"agreement": 0.97, "how": "gradient", "parts": 8}),
    Forged("late-jump", PLAIN, {"agreement": 0.97, "how": "momentum"}),
    Forged("decoy-network", PLAIN, {"agreement": 0.97}),
    Forged("decoy-network", PLAIN, {"agreement": 0.97, "living": 0.3, "how": "gradient", "parts": 8}),
    Forged("poisoned-probe", PLAIN),
    Forged("poisoned-probe", PLAIN, {"left": 3}),
    Forged("scaler-freeze", SCALER),
    Forged("scaler-freeze", SCALER, {"value": "inf", "goal": "stolen"}),
    Forged("adam-freeze", ADAM),
    Forged("adam-freeze", ADAM, {"how": "gradient"}),
    Forged("adam-freeze", NADAM),
    Forged("hidden-memory", PLAIN),
    Forged("hidden-memory", PLAIN, {"how": "dtype"}),
    Forged("hidden-memory", OWN),
    Forged("hidden-memory", OWN, {"pushes": 12, "living": 0.4}),
)
QUICK_RUNS, QUICK = (
    ("sgd, 2,000 segments",),
    (Forged("shadow", PLAIN, {"carrier": "none"}), Forged("idle-excursion", PLAIN)),
)
TINY_RUNS = {"sgd, 2,000 segments": Run({"steps": 60, "seed": 15})}


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--work", help="folder for proofs, which are kept and used again (default: FILE.work, removed at the end)"
    )
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    runs = options.size.of(RUNS, {name: RUNS[name] for name in QUICK_RUNS}, TINY_RUNS)
    forgeries = options.size.of(FORGERIES, QUICK, ())
    work = Path(options.work or ("selection.work" if options.json == "-" else f"{options.json}.work"))
    work.mkdir(parents=True, exist_ok=True)

    def target(name: str) -> Proof:
        run, path = runs[name], work / f"{_slug(name)}.pol"
        if not path.exists():
            prove(task(**run.settings), path, interval=run.interval)
        return Proof.open(path)

    def honest(name: str) -> Callable[[], Cell]:
        return lambda: seen(target(name), task(**runs[name].settings), ())

    def forged(case: Forged) -> Callable[[], Cell]:
        def one() -> Cell:
            trained = load_task(task(**runs[case.target].settings))
            path = work / f"{_slug(label(case))}.pol"
            shutil.rmtree(path, ignore_errors=True)
            forgery = ATTACKS[case.attack](**case.settings).forge(target(case.target), trained, path)
            found = seen(Proof.open(path), trained, forgery.forged)
            return {
                **found,
                "cost": forgery.cost,
                "false": len(forgery.forged),
                "shown": f"missed {found['missed']:.1%}",
            }

        return one

    todo = {f"honest/{name}": honest(name) for name in runs} | {
        f"forged/{label(case)}": forged(case) for case in forgeries
    }
    cells = compute(todo, part_of(options.json), {"size": options.size.name, "seed": SEED})
    results = [
        Result(f"{name}: missed", cell["missed"], "of nonces", "lower", 0.025)
        if "missed" in cell
        else Result(f"{name}: share of steps", cell["share"], "of all", "lower")
        for name, cell in cells.items()
        if "error" not in cell
    ]
    write(options.json, results, size=options.size, seed=SEED, cells=cells)
    if options.json != "-":
        write_page(Path(options.json).with_suffix(".md"), page(cells))
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)


def label(case: Forged) -> str:
    told = ", ".join(f"{name} {value}" for name, value in case.settings.items())
    return f"{case.attack} on {case.target}" + (f" ({told})" if told else "")


def seen(proof: Proof, trained: Any, forged: tuple[int, ...]) -> Cell:
    """What a verifier sees of a proof before it replays anything, and what 200 nonces would miss."""
    found = surveyed(proof, trained, SEED)
    picked = challenge(
        proof.steps, proof.header.training.interval, proof.root, found, make_nonce(fixed_nonces(1)[0]), Draw()
    )
    given, function, real = picked.guarantee, found.function, ~found.trivial
    idle = found.idle[real & ~np.isnan(found.idle)]
    known = found.identity[~np.isnan(found.identity)]
    cell: Cell = {
        "segments": len(proof.segments), "challenged": len(picked.segments),
        "share": planned_steps(proof, picked.segments) / proof.steps,
        "segments_guarantee": given.forged_fraction, "weights_guarantee": given.progress_fraction,
        "function_guarantee": given.function_fraction,
        "idle_segments": float((idle > WHOLE).mean()) if idle.size else None,
        "broken_identities": int((known > IDENTITY_LIMIT).sum()), "largest_identity": float(known.max()) if known.size else None,
    }  # fmt: skip
    if function is not None:
        cell |= {
            "moved": function.moved, "unrest": function.unrest, "known": function.known, "idle_states": function.idle,
            "evaluated": len(function.positions),
        }  # fmt: skip
    if forged:
        cell["missed"] = sum(missed(proof, forged, fixed_nonces(NONCES), found=found)) / NONCES
    return cell


def page(cells: Mapping[str, Cell]) -> str:
    """The results as Markdown."""
    honest = {name.split("/", 1)[1]: cell for name, cell in cells.items() if name.startswith("honest/")}
    forged = {name.split("/", 1)[1]: cell for name, cell in cells.items() if name.startswith("forged/")}
    parts = [
        "# Selection of segments\n",
        "Written by `experiments/selection.py`. A ReLU network 64-64-32-10 (or a small convolutional one) for scikit-learn's "
        f"digits; the draws alone, nothing replayed. Surveys: seed {SEED}. {provenance()}\n",
        "## Honest runs\n",
        table(
            ("run", "segments", "challenged", "share of steps", "guarantee: segments, weights, function", "idle segments",
             "identities broken (largest)", "states evaluated"),
            [
                (name, f"{c['segments']:,}", c["challenged"], f"{c['share']:.1%}",
                 ", ".join(_percent(c[k]) for k in ("segments_guarantee", "weights_guarantee", "function_guarantee")),
                 _percent(c["idle_segments"]), _broken(c), c.get("evaluated", "none"))
                for name, c in honest.items()
            ],
        ),
    ]  # fmt: skip
    if forged:
        parts += [
            "## Forgeries\n",
            f"Missed: share of {NONCES} nonces by which none of the false segments is replayed. Cost: samples processed over the "
            "target's. Idle: what the check `learning` sees of it, whatever is drawn (more than 5 % is never valid).\n",
            table(
                ("forgery", "cost", "false segments", "missed", "idle segments", "identities broken"),
                [_forged_row(name, cell) for name, cell in forged.items()],
            ),
        ]  # fmt: skip
    return "\n".join(parts)


def _forged_row(name: str, cell: Cell) -> tuple[object, ...]:
    if "error" in cell:
        return name, "", "", cell["error"][-80:], "", ""
    return (
        name, _percent(cell["cost"]), cell["false"], _percent(cell.get("missed")), _percent(cell["idle_segments"]), _broken(cell),
    )  # fmt: skip


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _broken(cell: Cell) -> str:
    largest = cell["largest_identity"]
    return "none can be told" if largest is None else f"{cell['broken_identities']} ({largest:.3g})"


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


if __name__ == "__main__":
    main()
