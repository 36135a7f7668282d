"""The attack matrix as results, a Markdown page and a picture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, Result, provenance, table
from cells import write_page as keep_page
from figures import figure
from matplotlib.colors import LinearSegmentedColormap

from proof_of_learning.verifier.checks import CHECKS
from proof_of_learning.verifier.guarantee import MISS_PROBABILITY

HONEST = "honest"
NEAR = 0.5  # of d_ref
MARGIN = 3.0  # wanted between honest errors and limits, and between limits and attacks
Row = dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """What the cells say. ``nonces``: how many the draw was tried with; ``checks``: those that there were, in their order.

    ``missing``: names of cells that were planned and not computed.
    """

    cells: Mapping[str, Cell]
    nonces: int
    quick: bool
    checks: Sequence[str] = tuple(check.name for check in CHECKS)
    missing: Sequence[str] = ()

    @cached_property
    def rows(self) -> list[Row]:
        return [row for cell in self.cells.values() for row in cell["rows"]]

    @cached_property
    def attacks(self) -> list[Row]:
        return [row for row in self.rows if row["attack"] != HONEST]

    @cached_property
    def honest(self) -> list[Row]:
        return [row for row in self.rows if row["attack"] == HONEST]

    @property
    def not_applicable(self) -> dict[str, str]:
        return {name: cell["not_applicable"] for name, cell in self.cells.items() if "not_applicable" in cell}

    @property
    def errors(self) -> dict[str, str]:
        return {name: cell["error"] for name, cell in self.cells.items() if "error" in cell}

    def accepted(self, mode: str, comparison: str) -> list[Row]:
        """What is valid and gained something."""
        return [r for r in _where(self.attacks, mode, comparison) if r["verdict"] == "valid" and _gains(r)]

    def gambles(self) -> list[Row]:
        """Forgeries whose forged segments the draw may miss while no other check rejects them."""
        return [r for r in self.attacks if r.get("odds") and _by_chance(r)]

    def unique(self) -> dict[str, dict[str, list[str]]]:
        """For each check the attacks that it rejected, and those that it alone rejected in some run."""
        found: dict[str, dict[str, list[str]]] = {}
        for check in self.checks:
            rejected = {_name(r) for r in self.attacks if check in r["failed"]}
            alone = {_name(r) for r in self.attacks if r["failed"] == [check]}
            found[check] = {"rejected": sorted(rejected), "alone": sorted(alone)}
        return found

    def worst_honest(self) -> tuple[float, str]:
        """The largest honest error over its limit in calibrated comparison, and where; (0, "") where all was exact."""
        shares = [(r["limit_share"], _where_of(r)) for r in self.honest if r["limit_share"] is not None]
        return max(shares, default=(0.0, ""))

    def nearest_attack(self) -> tuple[float, str]:
        """Of the forgeries that only replays reject, the smallest clearest error over its limit: what decides is each one's worst
        segment. Infinite where there is none."""
        shares = [
            (r["limit_share"], f"{_name(r)}, {_where_of(r)}")
            for r in self.attacks
            if r["comparison"] == "calibrated" and r["limit_share"] is not None and r["failed"]
            if set(r["failed"]) <= {"trajectory", "drift"}
        ]  # fmt: skip
        return min(shares, default=(math.inf, ""))

    def closest(self) -> str:
        """Honest worst case and nearest attack, in two lines."""
        worst, where = self.worst_honest()
        nearest, what = self.nearest_attack()
        honest = f"{1 / worst:.3g} times below its limit ({where})" if worst else "bit for bit: no error"
        attack = f"{nearest:.3g} times its limit ({what})" if what else "none was measured within tolerances"
        return (
            f"Honest worst case, calibrated: {honest}.\nNearest attack that only replays reject, calibrated: {attack}."
        )

    def results(self) -> list[Result]:
        found = []
        for mode in ("derived", "observed"):
            for comparison in ("exact", "calibrated"):
                rows = _where(self.attacks, mode, comparison)
                if rows:
                    target = 0.0 if mode == "derived" else None
                    count = len(self.accepted(mode, comparison))
                    found.append(Result(f"attacks accepted, {mode}, {comparison}", count, "runs", "lower", target))
                    found.append(Result(f"attacks judged, {mode}, {comparison}", len(rows), "runs", "higher"))
        rejected = sum(r["verdict"] == "invalid" for r in self.honest)
        found.append(Result("honest proofs rejected", rejected, "runs", "lower", 0.0))
        found.append(
            Result("honest proofs not valid", sum(r["verdict"] != "valid" for r in self.honest), "runs", "lower", 0.0)
        )
        excess = [r["odds"]["miss"] - max(r["odds"]["bound"], MISS_PROBABILITY) for r in self.gambles()]
        sampling = 3 * math.sqrt(0.25 / self.nonces)
        found.append(
            Result("largest miss rate above its bound", max([0.0, *excess]), "share of nonces", "lower", sampling)
        )
        worst, nearest = self.worst_honest()[0], self.nearest_attack()[0]
        found.append(
            Result("limit over worst honest error", _finite(1 / worst if worst else math.inf), "x", "higher", MARGIN)
        )
        found.append(Result("nearest attack's error over its limit", _finite(nearest), "x", "higher", MARGIN))
        shares = [r["verifier_cost"] for r in self.honest if r["comparison"] == "exact"]
        if shares:
            found.append(Result("verifier's steps over training's, exact", max(shares), "share", "lower"))
        found.append(Result("runs that failed to run", len(self.errors), "runs", "lower", 0.0))
        return found


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 1e308


def _where(rows: Iterable[Row], mode: str, comparison: str) -> list[Row]:
    return [r for r in rows if (r["mode"], r["comparison"]) == (mode, comparison)]


def _where_of(row: Row) -> str:
    return f"{row['target']}, {row['mode']}, seed {row['seed']}"


def _gains(row: Row) -> bool:
    """Whether a forgery saved work, or ends nearer to the target than half of d_ref, where another honest run would end."""
    return bool(row["attacker_cost"] < 1.0 or row["distance"] <= NEAR * (row["d_ref"] or 0.0))


def _name(row: Row) -> str:
    return f"{row['attack']} ({row['variant']})" if row["variant"] else row["attack"]


def _by_chance(row: Row) -> bool:
    return set(row["failed"]) <= {"trajectory", "drift"} and not (set(row["inconclusive"]) - {"trajectory", "drift"})


# ---- the page ---------------------------------------------------------------------------------------


def write_page(matrix: Matrix, output: Path, pictures: bool = True) -> None:
    """``attack-matrix.md`` and ``attack-matrix.png`` in ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    if matrix.attacks and pictures:
        _picture(matrix, output / "attack-matrix.png")
    keep_page(output / "attack-matrix.md", "\n".join([_head(matrix), *_tables(matrix), _checks(matrix), _rest(matrix)]))


def _head(matrix: Matrix) -> str:
    seeds: dict[str, set[int]] = {}
    for row in matrix.rows:
        seeds.setdefault(row["target"], set()).add(row["seed"])
    names = [f"{name} (seeds {', '.join(map(str, sorted(used)))})" for name, used in seeds.items()]
    quick = " **A quick run: one small task, one seed, at most two variants of each attack.**" if matrix.quick else ""
    command = f"python experiments/attack_matrix.py {'--quick' if matrix.quick else '--data DIR'} --json FILE"
    return f"""# The attack matrix

From `{command}`; targets: {", ".join(names)}; {provenance()}.{quick}{_gaps(matrix)}

*Derived*: all randomness follows from a key that the attacker chose; a registered claim fixes the key as well, and rejects
whatever was not made under it. *Observed*: the same states with order, generator states and start as recorded. *Exact*:
replay in the recorded environment. *Calibrated*: the verifier has another one and allows its own noise. Costs are in samples:
the attacker's over honest training's, the verifier's over the run's. *Missed* is the share of {matrix.nonces} nonces by which the draw
replays none of the forged segments ("–": the attack does not say which are forged). All checks were run, so several may
reject. *Accepted* counts what is valid and either cost less than training or ends nearer to the target than half of d_ref.
[data/attack-matrix.json](data/attack-matrix.json) has every run.

{matrix.closest()}

{"![Which check rejects which attack](attack-matrix.png)" if matrix.attacks else "No attack was judged."}
"""


def _gaps(matrix: Matrix) -> str:
    if not matrix.missing:
        return ""
    told = ", ".join(f"`{name}`" for name in matrix.missing)
    return f"\n\n**Not complete.** {len(matrix.missing)} of the planned cells were not computed: {told}."


def _tables(matrix: Matrix) -> list[str]:
    found = []
    for mode in ("derived", "observed"):
        for comparison in ("exact", "calibrated"):
            rows = _where(matrix.rows, mode, comparison)
            if rows:
                found.append(f"## {mode.capitalize()}, {comparison}\n\n{_table(rows, comparison)}")
    return found


def _table(rows: Sequence[Row], comparison: str) -> str:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["target"], _name(row)), []).append(row)
    head = ["task", "attack", "verdict", "first check", "missed", "attacker", "verifier"]
    head.append("error over limit" if comparison == "calibrated" else "not replaying")
    return table(head, ([target, name, *_columns(group, comparison)] for (target, name), group in groups.items()))


def _columns(group: Sequence[Row], comparison: str) -> list[str]:
    verdicts = Counter(row["verdict"] for row in group)
    stopped = Counter((row["failed"] or [f"{name}?" for name in row["inconclusive"]] or ["none"])[0] for row in group)
    missed = [row["odds"]["miss"] for row in group if row.get("odds")]
    if comparison == "calibrated":
        last = _span(
            [s for row in group if (s := row["limit_share"]) is not None and math.isfinite(s)]
        )  # JSON has no infinity
    else:
        last = f"{_span([row['not_replaying'] for row in group])} of {_span([row['challenged'] for row in group])}"
    return [
        _counted(verdicts, len(group)), _counted(stopped, len(group)), f"{max(missed):.1%}" if missed else "–",
        _span([row["attacker_cost"] for row in group]) if group[0]["attack"] != HONEST else "",
        f"{max(row['verifier_cost'] for row in group):.0%}", last,
    ]  # fmt: skip


def _counted(counts: Counter[str], total: int) -> str:
    return ", ".join(name if count == total else f"{name} {count}/{total}" for name, count in counts.most_common())


def _span(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _checks(matrix: Matrix) -> str:
    rows = []
    for name, found in matrix.unique().items():
        rows.append([name, len(found["rejected"]), ", ".join(found["alone"]) or "–"])
    return f"""## What each check adds

Attacks (with variants) that a check rejected in some run, and those that it alone rejected: without it they would have passed there.

{table(["check", "rejected", "alone"], rows)}
A check that rejects nothing here guards against what this matrix does not contain (a broken file, a claim that does not fit), or has
not met the attack it is for; its own tests show it at work."""


def _rest(matrix: Matrix) -> str:
    lines = ["\n## Accepted\n"]
    for mode in ("derived", "observed"):
        for comparison in ("exact", "calibrated"):
            for row in matrix.accepted(mode, comparison):
                lines.append(
                    f"- **{_name(row)}** on {_where_of(row)}, {comparison}: valid ({row['assurance']}), at "
                    f"{row['attacker_cost']:.2g} of the cost of training, {row['distance']:.3g} from the target's weights"
                )  # fmt: skip
    if len(lines) == 1:
        lines.append("No attack was accepted.")
    idle = Counter(
        f"{_name(r)} on {r['target']}, {r['mode']}, {r['comparison']}, {r['distance']:.3g} from the target "
        f"(d_ref {r['d_ref'] or 0:.3g})"
        for r in matrix.attacks
        if r["verdict"] == "valid" and not _gains(r)
    )
    if idle:
        lines.append(
            "\nValid, but with nothing gained: as dear as honest training, and no nearer to the target than half of d_ref, where "
            "another honest run ends.\n"
        )
        lines += [f"- {text}" for text in idle]
    open_ = Counter(
        f"{_name(r)}, {r['mode']}, {r['comparison']}: {r['reason']}"
        for r in matrix.rows
        if r["verdict"] == "inconclusive"
    )
    lines += ["\n## Inconclusive\n", *(f"- {text} ({count})" for text, count in open_.items())]
    if not open_:
        lines.append("None.")
    if matrix.not_applicable:
        reasons = Counter((name.split("/")[0].split(",")[0], name.split("/", 1)[1].split(", seed")[0], why)
                          for name, why in matrix.not_applicable.items())  # fmt: skip
        lines += ["\n## Not usable\n", *(f"- {attack} on {target}: {why}" for target, attack, why in reasons)]
    if matrix.errors:
        lines += ["\n## Failed to run\n", *(f"- {name}: {why}" for name, why in matrix.errors.items())]
    return "\n".join(lines) + "\n"


def _picture(matrix: Matrix, path: Path) -> None:
    """Attacks × checks: the share of runs in which the check rejects; a dot where it alone did so."""
    names = list(dict.fromkeys(_name(row) for row in matrix.attacks))
    checks = [check.name for check in CHECKS]
    shares, alone = np.zeros((len(names), len(checks))), np.zeros((len(names), len(checks)), dtype=bool)
    for place, name in enumerate(names):
        rows = [row for row in matrix.attacks if _name(row) == name]
        for column, check in enumerate(checks):
            shares[place, column] = np.mean([check in row["failed"] for row in rows])
            alone[place, column] = any(row["failed"] == [check] for row in rows)
    colours = LinearSegmentedColormap.from_list("share", ["#ffffff", "#56b4e9", "#00406b"])
    with figure(path, 9.5, 1.9 + 0.3 * max(1, len(names))) as axes:
        axes.grid(False)
        axes.imshow(shares, cmap=colours, vmin=0.0, vmax=1.0, aspect="auto")
        for (place, column), share in np.ndenumerate(shares):
            if share:
                text = f"{share:.0%}" + (" ●" if alone[place, column] else "")
                axes.text(
                    column, place, text, ha="center", va="center", fontsize=8, color="white" if share > 0.6 else "black"
                )
        axes.set_xticks(range(len(checks)), checks, rotation=40, ha="left", rotation_mode="anchor", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.set_xticks(np.arange(-0.5, len(checks)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
        axes.grid(True, which="minor", color="#dde2e8")
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel("share of runs in which the check rejects;  ● it alone did in some run", fontsize=9)
