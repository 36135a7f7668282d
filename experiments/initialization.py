"""The test of a recorded initialization: how often it rejects honest draws, and what it notices.

    python experiments/initialization.py [--quick | --tiny] [--data DIR] [--seed N] --json FILE

Prints its tables as Markdown and writes the numbers to FILE. Every finished cell is kept in ``FILE.part``, so that an
interrupted run goes on where it stopped. ``--data`` names a folder with ``cifar10.npz`` (``train_x``, ``train_y``) for
the ResNet-20 row of the power table; it is left out without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scipy
import torch
from cells import Cell, Result, Size, compute, parser, part_of, write
from initial_weights import (
    accuracy,
    build,
    cifar,
    cosine,
    digits,
    inverted,
    optimizer,
    original_rule,
    pruned,
    rank_matched,
    sparsified,
    state,
    train,
    true_laws,
    weights,
)
from scipy import stats

from proof_of_learning.verifier.initialization.judge import judge_initialization
from proof_of_learning.verifier.initialization.sample import spectrum_p_value

ALPHA = 0.01

# ---- honest draws -----------------------------------------------------------------------------------

HONEST = [
    ("mlp", "default", "float32"), ("mlp", "kaiming_normal", "float32"), ("mlp", "orthogonal", "float32"),
    ("mlp", "default", "bfloat16"), ("mlp", "kaiming_normal", "float16"),
    ("resnet20", "default", "float32"), ("resnet20", "kaiming_normal", "float32"),
    ("transformer", "default", "float32"), ("transformer", "normal", "float32"), ("lstm", "default", "float32"),
]  # fmt: skip


def honest(model: str, scheme: str, dtype: str, seeds: range) -> Cell:
    p_values, original = [], 0
    for seed in seeds:
        net = build(model, scheme, seed)
        tensors = {name: t.to(getattr(torch, dtype)) for name, t in state(net).items()}
        p_values.append(judge_initialization(tensors, alpha=ALPHA).p_value)
        if model in ("mlp", "resnet20") and scheme != "orthogonal" and dtype == "float32":
            original += original_rule(tensors, true_laws(net, scheme))
    return {"p_values": p_values, "original": original}


# ---- power --------------------------------------------------------------------------------------------


def noticed(model: str, scheme: str, opt: str, marks: list[int], seeds: range, folder: str | None) -> Cell:
    """At which steps each rule rejects: ours, ours on the weights alone, the original's."""
    x, y, _, _ = cifar(folder) if model == "resnet20" and folder else digits()
    counts = {rule: dict.fromkeys(map(str, marks), 0) for rule in ("all", "weights", "original")}
    for seed in seeds:
        net = build(model, scheme, 10_000 + seed)
        laws = true_laws(net, scheme)
        for step in train(net, optimizer(opt, net), x, y, seed):
            if step in marks:
                tensors, key = state(net), str(step)
                counts["all"][key] += not judge_initialization(tensors, alpha=ALPHA).accepted
                counts["weights"][key] += not judge_initialization(weights(tensors), alpha=ALPHA).accepted
                counts["original"][key] += original_rule(tensors, laws)
            if step == marks[-1]:
                break
    return counts


ATTACKS = [
    "trained", "fine-tuned", "pruned 50 %", "pruned 90 %", "sparsified 2:4", "inverted 50 steps",
    "rank-matched", "rank-matched, whitened",
]  # fmt: skip


def forged(model: str, scheme: str, seeds: range, steps: int) -> Cell:
    """All attacks on victims trained for ``steps`` steps: how often each rule rejects, accuracy and nearness."""
    x, y, test_x, test_y = digits()
    rows: dict[str, dict[str, list[float]]] = {a: {} for a in ("honest", *ATTACKS)}
    for seed in seeds:
        net = build(model, scheme, 20_000 + seed)
        laws, start = true_laws(net, scheme), state(build(model, scheme, 30_000 + seed))
        first = state(net)
        for step in train(net, optimizer("sgd", net), x[:1000], y[:1000], seed):
            if step == steps:
                break
        victim = state(net)
        variants = {
            "honest": first, "trained": victim, "pruned 50 %": pruned(victim, 0.5), "pruned 90 %": pruned(victim, 0.9),
            "sparsified 2:4": sparsified(victim), "rank-matched": rank_matched(victim, start, laws),
            "rank-matched, whitened": rank_matched(victim, start, laws, whiten=30),
        }  # fmt: skip
        for step in train(net, optimizer("sgd", net), x[1000:], y[1000:], seed):
            if step == 20:
                break
        variants["fine-tuned"] = state(net)
        net.load_state_dict(victim, strict=False)
        residual = inverted(net, x, y, seed + 1, 50)
        variants["inverted 50 steps"] = state(net)
        rows["inverted 50 steps"].setdefault("residual", []).append(residual)
        for attack, tensors in variants.items():
            net.load_state_dict(tensors, strict=False)
            measured = {
                "ours": float(not judge_initialization(tensors, alpha=ALPHA).accepted),
                "weights": float(not judge_initialization(weights(tensors), alpha=ALPHA).accepted),
                "original": float(original_rule(tensors, laws)),
                "accuracy": accuracy(net, test_x, test_y),
                "nearness": cosine(weights(tensors), weights(victim)),
            }
            for key, value in measured.items():
                rows[attack].setdefault(key, []).append(value)
    return rows


# ---- the far tail of the spectrum test --------------------------------------------------------------

SIDES = [(8, 8), (8, 64), (16, 16), (16, 144), (32, 32), (64, 64)]
LEVELS = [1e-2, 1e-3, 1e-4, 1e-5]


def spectrum_tail(rows: int, columns: int, draws: int, seed: int) -> Cell:
    """How often the largest singular value of a standard normal matrix is called as rare as each level.

    The bidiagonal model of Dumitriu and Edelman (2002) has the same singular values; a Sturm sequence counts those
    above a threshold for many draws at once.
    """
    rng = np.random.default_rng(seed)
    thresholds = np.array([_threshold(level, rows, columns) for level in LEVELS])[:, None]
    hits = np.zeros(len(LEVELS), dtype=np.int64)
    for _ in range(0, draws, 200_000):
        above = np.zeros((len(LEVELS), 200_000), dtype=bool)
        last, pivot = np.zeros(200_000), np.ones((len(LEVELS), 200_000))
        for i in range(rows):
            square = rng.chisquare(columns - i, 200_000)
            below = rng.chisquare(rows - i, 200_000) if i else np.zeros(200_000)
            pivot = square + below - thresholds - last * below / pivot
            above |= pivot > 0
            last = square
        hits += above.sum(1)
    total = math.ceil(draws / 200_000) * 200_000
    return {"draws": total, "hits": hits.tolist()}


def _threshold(level: float, rows: int, columns: int) -> float:
    low, high = 0.0, 100.0 * (math.sqrt(rows) + math.sqrt(columns)) ** 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spectrum_p_value(middle, rows, columns) > level else (low, middle)
    return high


# ---- the run ----------------------------------------------------------------------------------------

MARKS = [1, 2, 5, 10, 20, 50, 100, 200, 500]
POWER = [
    (model, scheme, opt) for model in ("mlp", "cnn") for scheme in ("default", "kaiming_normal") for opt in ("sgd", "adam")
]  # fmt: skip
VICTIMS = [(model, scheme) for model in ("mlp", "cnn") for scheme in ("default", "kaiming_normal")]


def cells(size: Size, data: str | None) -> dict[str, Callable[[], Cell]]:
    """All parts of the run by name; each can be computed alone."""
    draws, chunk, seeds = size.of((1000, 100, 20), (30, 30, 1), (2, 2, 1))
    marks = size.of(MARKS, MARKS[:6], MARKS[:1])
    found: dict[str, Callable[[], Cell]] = {}
    for row in size.of(HONEST, HONEST, HONEST[:2]):
        for first in range(0, min(draws, 600) if row[0] == "resnet20" else draws, chunk):
            found[f"honest/{'/'.join(row)}/{first}"] = partial(honest, *row, range(first, first + chunk))
    for case in size.of(POWER, POWER[::3], POWER[:1]):
        for first in range(0, seeds, 5):
            some = range(first, min(first + 5, seeds))
            found[f"power/{'/'.join(case)}/{first}"] = partial(noticed, *case, marks, some, None)
    if data and (Path(data) / "cifar10.npz").is_file():
        few = [m for m in marks if m <= size.of(200, 10, 1)]
        for seed in range(size.of(5, 1, 1)):
            found[f"power/resnet20/kaiming_normal/sgd/{seed}"] = partial(
                noticed, "resnet20", "kaiming_normal", "sgd", few, range(seed, seed + 1), data
            )
    number = size.of(5_000_000, 200_000, 200_000)
    for victim in size.of(VICTIMS, VICTIMS[::2], VICTIMS[:1]):
        for first in range(0, max(1, seeds // 2), 2):
            some = range(first, min(first + 2, max(1, seeds // 2)))
            found[f"forged/{'/'.join(victim)}/{first}"] = partial(forged, *victim, some, size.of(500, 100, 10))
    for sides in size.of(SIDES, SIDES[:4], SIDES[:1]):
        found[f"tail/{sides[0]}/{sides[1]}"] = partial(spectrum_tail, *sides, number, 0)
    return found


def grouped(done: dict[str, Cell], kind: str) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for name, value in done.items():
        if name.startswith(f"{kind}/"):
            found.setdefault(name.split("/", 1)[1].rsplit("/", 1)[0], []).append(value)
    return found


def interval(hits: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson (1934), 95 %."""
    found = stats.binomtest(hits, of).proportion_ci(0.95)
    return float(found.low), float(found.high)


def report_honest(done: dict[str, Cell]) -> list[Result]:
    print(
        "| model | initialization | dtype | draws | rejected at 1 % | 95 % interval | at 5 % | at 10 % | original rule |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for name, parts in grouped(done, "honest").items():
        model, scheme, dtype = name.split("/")
        p = np.array([value for part in parts for value in part["p_values"]])
        hits, (low, high) = int((p <= ALPHA).sum()), interval(int((p <= ALPHA).sum()), len(p))
        compared = model in ("mlp", "resnet20") and scheme != "orthogonal" and dtype == "float32"
        original = sum(part["original"] for part in parts) / len(p)
        print(
            f"| {model} | {scheme} | {dtype} | {len(p)} | {hits / len(p):.1%} | {low:.1%} – {high:.1%} | {(p <= 0.05).mean():.1%} "
            f"| {(p <= 0.1).mean():.1%} | {f'{original:.1%}' if compared else '–'} |"
        )
        results.append(Result(f"false rejections, {name}", hits / len(p), "share", "lower", ALPHA, (low, high)))
        if compared:
            results.append(
                Result(f"false rejections of the original rule, {name}", original, "share", "lower", None,
                       interval(sum(part["original"] for part in parts), len(p)))
            )  # fmt: skip
    return results


def report_power(done: dict[str, Cell], seeds: dict[str, int]) -> list[Result]:
    results = []
    columns: list[str] = []
    for name, parts in grouped(done, "power").items():
        for rule, label in (("all", "ours"), ("weights", "ours, weights alone"), ("original", "original rule")):
            marks = list(parts[0][rule])
            if not columns:
                columns = marks
                print("\n| model, initialization, optimizer | rule | runs | " + " | ".join(columns) + " |")
                print("|---" * (len(columns) + 3) + "|")
            rates = {m: sum(part[rule][m] for part in parts) / seeds[name] for m in marks}
            shown = [f"{rates[m]:.0%}" if m in rates else "" for m in columns]
            print(f"| {name.replace('/', ', ')} | {label} | {seeds[name]} | {' | '.join(shown)} |")
            results += [
                Result(f"noticed after {m} steps, {name}, {label}", rate, "share", "higher")
                for m, rate in rates.items()
            ]
    return results


def report_forged(done: dict[str, Cell]) -> list[Result]:
    print("\n| victim | initial weights | ours | ours, weights alone | original rule | accuracy | cosine to victim |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for name, parts in grouped(done, "forged").items():
        for attack in parts[0]:
            means = {k: float(np.mean([v for part in parts for v in part[attack][k]])) for k in parts[0][attack]}
            print(
                f"| {name.replace('/', ', ')} | {attack} | {means['ours']:.0%} | {means['weights']:.0%} | {means['original']:.0%} "
                f"| {means['accuracy']:.1%} | {means['nearness']:.2f} |"
            )
            results += [Result(f"{k}, {attack}, {name}", mean, "share", "higher") for k, mean in means.items()]
    return results


def report_tail(done: dict[str, Cell]) -> list[Result]:
    print("\n| matrix | " + " | ".join(f"p = {level:g}" for level in LEVELS) + " |")
    print("|---" * (len(LEVELS) + 1) + "|")
    results = []
    for name, cell in ((n.split("/", 1)[1], value) for n, value in done.items() if n.startswith("tail/")):
        ratios = [hits / cell["draws"] / level for hits, level in zip(cell["hits"], LEVELS, strict=True)]
        print(f"| {name.replace('/', ' × ')} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
        spreads = [interval(hits, cell["draws"]) for hits in cell["hits"]]
        results += [
            Result(f"spectrum, true over stated probability at {level:g}, {name}", ratio, "ratio", "lower", 1.0,
                   (low / level, high / level))
            for level, ratio, (low, high) in zip(LEVELS, ratios, spreads, strict=True)
        ]  # fmt: skip
    return results


def main() -> None:
    options = parser(__doc__, "few draws and runs: under two minutes on two cores").parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    done = compute(cells(options.size, options.data), part_of(options.json), {"size": options.size.name})
    seeds = {
        name: len(parts) if name.startswith("resnet20") else options.size.of(20, 1, 1)
        for name, parts in grouped(done, "power").items()
    }
    results = [*report_honest(done), *report_power(done, seeds), *report_forged(done), *report_tail(done)]
    write(options.json, results, size=options.size, scipy=scipy.__version__)


if __name__ == "__main__":
    main()
