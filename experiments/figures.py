"""How the experiments' pictures look: Okabe and Ito's colours, told apart by marker and line as well, legible at page width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_STYLE: dict[Any, Any] = {
    "font.size": 11, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dde2e8", "axes.axisbelow": True, "lines.linewidth": 1.8,
    "lines.markersize": 6, "legend.frameon": False, "figure.facecolor": "white",
}  # fmt: skip


@contextmanager
def figure(path: Path, width: float = 7.5, height: float = 4.2) -> Iterator[Axes]:
    """Axes to draw on; the picture is written to ``path`` (PNG) at the end. Sizes in inches."""
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn.add_subplot()
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=144, metadata={"Software": None})


def line(index: int) -> dict[str, Any]:
    """Colour, marker and line of the curve number ``index``."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
    }
