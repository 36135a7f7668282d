"""How the report's figures are drawn: inline SVG, each figure twice, wide for a desk and narrow for a phone.

Text stays text (small, selectable, in the page's font) and colours become CSS variables, so that the page decides how figures
look in the dark. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from proof_of_learning.report.text import power_of_ten
from proof_of_learning.verifier.verdict import Status

Numbers = NDArray[np.float64]

WIDE, NARROW = 880, 340
MAX_POINTS = 2000
INK, MUTED, GRID, CURVE = "#1f2a37", "#5b6774", "#dde2e8", "#93a0ae"


class Mark(NamedTuple):
    """How a status is drawn: by shape as well as by colour (Okabe and Ito's palette)."""

    shape: str
    glyph: str
    colour: str
    filled: bool = True


MARKS: dict[Status, Mark] = {
    "pass": Mark("o", "●", "#0072b2"),
    "skipped": Mark("s", "□", "#7a7f85", filled=False),
    "inconclusive": Mark("^", "▲", "#b07c00"),
    "fail": Mark("X", "✖", "#d55e00"),
}
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", CURVE: "--curve",
    **{mark.colour: f"--plot-{status}" for status, mark in MARKS.items()},
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 12, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "axes.titlesize": 12,
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.8, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "axes.facecolor": "none",
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "ytick.major.size": 0, "xtick.major.size": 4,
    "ytick.minor.size": 0, "ytick.minor.width": 0,
    "figure.facecolor": "none", "savefig.facecolor": "none", "lines.linewidth": 1.4, "path.simplify": True,
}  # fmt: skip


class Plot(NamedTuple):
    """A figure of the report. ``description`` says what it shows; ``marks`` are the statuses that occur in it, with their glyphs."""

    name: str
    title: str
    description: str
    wide: str
    narrow: str
    marks: list[tuple[Status, str]]


class Margins:
    """Fixed distances in points: the same figure comes out every time, and nothing depends on measuring text."""

    left, right, top, bottom, gap = 52.0, 22.0, 28.0, 42.0, 40.0

    def __init__(self, width: float) -> None:
        self.width = width
        self.narrow = width < 500

    def panels(self, figure: Figure, heights: Sequence[float]) -> list[Axes]:
        total = self.top + sum(heights) + self.gap * (len(heights) - 1) + self.bottom
        figure.set_size_inches(self.width / 72, total / 72)
        axes: list[Axes] = []
        y = total - self.top
        for height in heights:
            y -= height
            box = (self.left / self.width, y / total, 1 - (self.left + self.right) / self.width, height / total)
            axes.append(figure.add_axes(box, sharex=axes[0] if axes else None))
            y -= self.gap
        for upper in axes[:-1]:
            upper.tick_params(labelbottom=False)
        return axes


def plot(
    name: str,
    title: str,
    description: str,
    paint: Callable[[Figure, Margins], None],
    marks: Iterable[Status] = (),
) -> Plot:
    wide, narrow = (_svg(f"{name}-{width}", title, width, paint) for width in (WIDE, NARROW))
    return Plot(name, title, description, wide, narrow, [(status, MARKS[status].glyph) for status in marks])


def _svg(identifier: str, title: str, width: float, paint: Callable[[Figure, Margins], None]) -> str:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = identifier
        figure = Figure(dpi=72)
        FigureCanvasSVG(figure)
        paint(figure, Margins(width))
        out = io.StringIO()
        figure.savefig(out, format="svg", dpi=72, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), identifier, title)


def _inline(document: str, identifier: str, title: str) -> str:
    """The ``<svg>`` alone, with ids of its own, short coordinates, a title, and colours that follow the page."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{identifier}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{identifier}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{identifier}-\1"', svg)
    svg = re.sub(r'="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    head = re.compile(r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', re.DOTALL)
    opening = rf'<svg viewBox="\1" role="img" aria-labelledby="{identifier}-title"><title id="{identifier}-title">{title}</title>'
    return head.sub(opening, svg, count=1)


def scatter(axes: Axes, points: list[tuple[int, float, Status]], margins: Margins) -> None:
    """Marks by status, the bad ones on top; very many become one picture instead of one element each."""
    size = (6.5 if len(points) < 40 else 4.2) if margins.narrow else (8.0 if len(points) < 40 else 5.6)
    for order, (status, mark) in enumerate(MARKS.items()):
        chosen = [(x, y) for x, y, s in points if s == status]
        if chosen:
            axes.plot(
                *zip(*chosen, strict=True), linestyle="none", marker=mark.shape, color=mark.colour, zorder=3 + order,
                markersize=size * (1.4 if status == "fail" else 1.0), markeredgewidth=0 if mark.filled else 1,
                markerfacecolor=mark.colour if mark.filled else "none", clip_on=False, rasterized=len(points) > MAX_POINTS,
                alpha=0.8 if status == "pass" else 1.0,
            )  # fmt: skip


def value_axis(axes: Axes, values: Numbers) -> None:
    """Logarithmic where the values span decades, from zero or just around them otherwise."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > 30:
        decades = math.log10(high / low)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0), numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(decade_tick))
        axes.set_ylim(low * (low / high) ** 0.06, high * (high / low) ** 0.06)
        return
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    axes.set_ylim(0.0 if 0 <= low < 0.5 * high else low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(plain_tick))


def count_axis(axes: Axes, where: Numbers, noun: str) -> None:
    low, high = float(where.min()), float(where.max())
    room = 0.015 * (high - low) or 0.5
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(noun)


def plain_tick(value: float, _: int) -> str:
    return f"{value:,.6g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"


def decade_tick(value: float, _: int) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:,g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10.0**exponent)
    return power_of_ten(exponent) if digit == 1 else f"{digit}·{power_of_ten(exponent)}"


def decade(exponent: int) -> str:
    return "1" if exponent == 0 else power_of_ten(exponent)


# --- Numbers -----------------------------------------------------------------------------------------------------------


def array(values: Iterable[float | None]) -> Numbers:
    """As floats; what no axis could span (not finite, beyond 10^±100) becomes not-a-number, or zero where it is tiny."""
    array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    size = np.abs(array)
    return np.where(size < 1e100, np.where(size < 1e-100, 0.0, array), np.nan)


def positions(count: int, segments: int) -> Numbers:
    """The segment each value belongs to; fewer values than segments are spread evenly over the run."""
    if 1 < count < segments:
        return np.linspace(0.0, segments - 1.0, count)
    return np.arange(max(count, 1), dtype=np.float64)[:count] if count else np.array([0.0, max(segments - 1.0, 1.0)])


def thinned(x: Numbers, y: Numbers, limit: int = MAX_POINTS) -> tuple[Numbers, Numbers]:
    """At most ``limit`` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(y) == 0:
        return array([]), array([])
    if len(y) <= limit:
        return x, np.where(np.isfinite(y), y, np.nan)
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(y)), limit // 2):
        finite = stretch[np.isfinite(y[stretch])]
        if len(finite):
            kept.extend(sorted({int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}))
    return x[kept], y[kept]


def running_mean(values: Numbers, half: int) -> Numbers:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low), dtype=np.float64)
