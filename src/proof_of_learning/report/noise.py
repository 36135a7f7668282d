"""The picture of a calibration: honest noise over the interval, one line per environment, with the limit."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from proof_of_learning.calibration import Calibration


def draw_noise(made: Calibration, path: Path) -> None:
    """Draw ``made`` into ``path`` (svg, png or pdf by its ending)."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row.environment for row in made.noise):
        rows = [row for row in made.noise if row.environment == name]
        # A replay that gives the same bits has no place on a logarithmic axis.
        points = [(row.k, row.overall) for row in rows if row.overall > 0]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    intervals = sorted(int(k) for k in made.rho)
    axes.plot(intervals, [made.rho[str(k)] for k in intervals], color="black", linestyle="--", label="limit ρ")
    axes.axhline(made.cap, color="black", linewidth=0.8, linestyle=":")
    if made.recommended_interval is not None:
        axes.axvline(made.recommended_interval, color="gray", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="interval k (steps)", ylabel="error / displacement")
    axes.set_title(f"Honest noise of {made.name}")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
