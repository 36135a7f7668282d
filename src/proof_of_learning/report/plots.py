"""The report's figures as inline SVG, each drawn twice: wide for a desk, narrow for a phone.

Only numbers of the verdict enter a figure, never a string of it. Text stays text (small, selectable, in the page's font) and
colours become CSS variables, so that the page decides how figures look in the dark.
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

from proof_of_learning.report.text import number, plural, power_of_ten
from proof_of_learning.verifier.verdict import SegmentResult, Status, Verdict

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


MAX_MEASURES = 3
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ -]{0,39}")


class Plot(NamedTuple):
    """A figure of the report. ``description`` says in words what it shows; ``marks`` are the statuses that occur in it."""

    name: str
    title: str
    description: str
    wide: str
    narrow: str
    marks: list[Status]


def draw(verdict: Verdict) -> list[Plot]:
    """The figures that this verdict has numbers for; none for a verdict without trajectory and segments."""
    return [
        plot
        for plot in (_segments(verdict), _loss(verdict), _journey(verdict), _performance(verdict))
        if plot is not None
    ]


# --- The challenged segments -------------------------------------------------------------------------------------------


def _segments(verdict: Verdict) -> Plot | None:
    line = _array(verdict.trajectory.displacement)
    where = _positions(len(line), verdict.proof.segments)
    heights = [_displacement(segment, line, verdict.proof.segments) for segment in verdict.segments]
    if not np.isfinite(line).any() and not any(map(math.isfinite, heights)):
        return None
    known = _array([*line[np.isfinite(line)], *(h for h in heights if math.isfinite(h))])
    relative = [_Error(segment) for segment in verdict.segments]
    compact = all(error.exact for error in relative)
    rho = verdict.thresholds.rho
    limit = rho if verdict.exactness == "calibrated" and relative and 0 < rho < math.inf else None

    def paint(figure: Figure, margins: _Margins) -> None:
        rows = [170.0] if not relative else [170.0, 34.0] if compact else [170.0, 150.0]
        axes = margins.panels(figure, rows)
        upper = axes[0]
        upper.set_title("Displacement of each segment (l2)")
        upper.plot(*_thinned(where, line), color=CURVE, linewidth=1.1)
        _value_axis(upper, known)
        bottom, top = upper.get_ylim()
        drawn = [
            (s.index, h if math.isfinite(h) else top, s.status) for s, h in zip(verdict.segments, heights, strict=True)
        ]
        _scatter(upper, drawn, margins)
        upper.set_ylim(bottom, top)
        if relative:
            _error_panel(axes[1], verdict.segments, relative, limit, margins)
        _segment_axis(axes[-1], where, verdict.segments)

    marks: list[Status] = [status for status in MARKS if any(s.status == status for s in verdict.segments)]
    title = "Challenged segments" if verdict.segments else "Segments"
    return _plot("segments", title, _describe(verdict.segments, relative, limit), paint, marks)


class _Error:
    """A segment's relative error and the row of the lower panel it belongs to."""

    def __init__(self, segment: SegmentResult) -> None:
        self.value = math.nan if segment.relative is None else segment.relative.l2
        self.exact = segment.exact
        self.measured = not self.exact and math.isfinite(self.value) and self.value > 0
        self.unplaced = not self.exact and not self.measured


def _error_panel(
    axes: Axes, segments: list[SegmentResult], errors: list[_Error], limit: float | None, margins: _Margins
) -> None:
    """Decades by hand: a logarithmic axis has no place for the exact zeros, nor for what is no finite number."""
    axes.set_title("Replay error relative to displacement")
    exponents = [math.log10(error.value) for error in errors if error.measured]
    others = any(error.unplaced for error in errors)
    if not exponents and not others:
        axes.set_yticks([0.0], ["exact"])
        axes.set_ylim(-0.5, 0.5)
        levels = [0.0] * len(errors)
    else:
        reach = [*exponents, *([math.log10(limit)] if limit else [])] or [-6.0, 0.0]
        high = math.ceil(max(reach))
        low = min(math.floor(min(reach)), high - 1)
        stride = max(1, math.ceil((high - low) / 5))
        # The rows outside the scale keep their distance from it however many decades there are.
        row = max(1.0, (high - low) / 4)
        below, above = low - row, high + row
        decades = list(range(low, high + 1, stride))
        labels = [_decade(e) for e in decades]
        extra = [above] if others else []
        axes.set_yticks([below, *decades, *extra], ["exact", *labels, *(["n/a"] if others else [])])
        axes.set_ylim(below - row / 2, (above if others else high) + row / 2)
        axes.axhline(below + row / 2, color=GRID, linewidth=1.2)
        if limit:
            axes.axhline(math.log10(limit), color=MUTED, linewidth=1.2, dashes=(5, 3))
            axes.annotate(
                f"limit {number(limit)}", (1, math.log10(limit)), (0, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="bottom", color=MUTED, fontsize=11,
            )  # fmt: skip
        levels = [below if e.exact else math.log10(e.value) if e.measured else above for e in errors]
    _scatter(axes, [(s.index, y, s.status) for s, y in zip(segments, levels, strict=True)], margins)


def _displacement(segment: SegmentResult, line: Numbers, segments: int) -> float:
    if segment.displacement is not None:
        return float(_array([segment.displacement.l2])[0])
    complete = len(line) == segments and 0 <= segment.index < len(line)
    return float(line[segment.index]) if complete else math.nan


def _describe(segments: list[SegmentResult], errors: list[_Error], limit: float | None) -> str:
    moved = "how far each segment moved the training state"
    if not segments:
        return f"{moved.capitalize()}. No segment was replayed."
    replayed = sum(segment.exact or segment.error is not None for segment in segments)
    exact = sum(error.exact for error in errors)
    text = (
        f"Top: {moved}, the challenged ones marked. Bottom: how far each replay ended from the recorded state, as a "
        "share of that movement. "
    )
    if exact == replayed > 0:
        text += f"All {plural(replayed, 'replayed segment')} gave the recorded bits."
    else:
        text += f"{exact:,} of {plural(replayed, 'replayed segment')} gave the recorded bits (row “exact”)."
    if limit:
        text += " The dashed line is the limit ρ."
    if any(error.unplaced for error in errors):
        text += " Row “n/a”: no replay, or a difference that is no finite distance."
    return text


# --- Loss and journey --------------------------------------------------------------------------------------------------


def _loss(verdict: Verdict) -> Plot | None:
    recorded = verdict.trajectory.loss
    losses = _array(loss for _, loss in recorded)
    finite = np.isfinite(losses)
    if not finite.any():
        return None
    steps, losses = _array(step for step, _ in recorded)[finite], losses[finite]
    smooth = _running_mean(losses, max(1, len(losses) // 40)) if len(losses) >= 80 else None

    def paint(figure: Figure, margins: _Margins) -> None:
        (axes,) = margins.panels(figure, [190.0])
        axes.set_title("Loss per step")
        _value_axis(axes, losses)
        if smooth is None:
            axes.plot(steps, losses, color=MARKS["pass"].colour)
        else:
            axes.plot(*_thinned(steps, losses), color=CURVE, linewidth=0.9, alpha=0.8)
            axes.plot(*_thinned(steps, smooth, MAX_POINTS // 4), color=MARKS["pass"].colour, linewidth=1.8)
        _count_axis(axes, steps, "step")

    left_out = len(recorded) - len(losses)
    text = "The loss as recorded by the prover"
    text += " (thin) and its running mean (thick)." if smooth is not None else "."
    text += f" It goes from {number(losses[0])} to {number(losses[-1])}."
    if left_out:
        text += f" {plural(left_out, 'value')} {'is' if left_out == 1 else 'are'} not finite and not drawn."
    return _plot("loss", "Training loss", text, paint)


def _journey(verdict: Verdict) -> Plot | None:
    distance, progress = _array(verdict.trajectory.distance), _array(verdict.trajectory.progress)
    series = [
        ("Distance of the weights from the start (l2)", "Weights' distance from the start", distance, _plain_tick),
        ("Share of the way to the final weights", "Share of the way covered", 100 * progress, lambda v, _: f"{v:g} %"),
    ]
    drawn = [entry for entry in series if np.isfinite(entry[2]).any()]
    if not drawn:
        return None

    def paint(figure: Figure, margins: _Margins) -> None:
        panels = margins.panels(figure, [130.0] * len(drawn))
        for axes, (title, short, values, tick) in zip(panels, drawn, strict=True):
            axes.set_title(short if margins.narrow else title)
            where = _positions(len(values), verdict.proof.segments)
            axes.plot(*_thinned(where, values), color=MARKS["pass"].colour, linewidth=1.8)
            finite = values[np.isfinite(values)]
            if finite.min() > 0:
                axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(tick))
        _segment_axis(panels[-1], where, [])

    text = "How the weights left their initial values"
    if np.isfinite(distance).any():
        text += f" (they end {number(float(distance[np.isfinite(distance)][-1]))} away from them)"
    text += (
        " and came nearer to the final ones. Training advances in many small steps; a jump is a reason to look closer."
    )
    return _plot("journey", "The way to the final weights", text, paint)


def _performance(verdict: Verdict) -> Plot | None:
    """What the model achieved on the way, claimed and found; the names are the verifier's own task's, never the proof's."""
    points = [point for point in verdict.trajectory.performance if point.found]
    names = sorted({name for point in points for name in point.found or {} if _NAME.fullmatch(name)})[:MAX_MEASURES]
    if len(points) < 2 or not names:
        return None
    steps = _array(point.step for point in points)

    def paint(figure: Figure, margins: _Margins) -> None:
        panels = margins.panels(figure, [110.0] * len(names))
        for axes, name in zip(panels, names, strict=True):
            axes.set_title(name.replace("_", " "))
            claimed = _array(point.claimed.get(name) for point in points)
            found = _array((point.found or {}).get(name) for point in points)
            axes.plot(
                steps,
                claimed,
                color=CURVE,
                linewidth=1.2,
                marker="o",
                markersize=7,
                markerfacecolor="none",
                label="claimed",
            )
            axes.plot(
                steps, found, color=MARKS["pass"].colour, linewidth=0, marker="o", markersize=3.5, label="found here"
            )
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        panels[0].legend(loc="best", frameon=False)
        _count_axis(panels[-1], steps, "step")

    text = f"The task's own evaluation at {len(points)} checkpoints: rings as the proof claims, dots as found here."
    return _plot("performance", "Performance on the way", text, paint)


# --- Drawing -----------------------------------------------------------------------------------------------------------


class _Margins:
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


def _plot(
    name: str,
    title: str,
    description: str,
    paint: Callable[[Figure, _Margins], None],
    marks: Iterable[Status] = (),
) -> Plot:
    wide, narrow = (_svg(f"{name}-{width}", title, width, paint) for width in (WIDE, NARROW))
    return Plot(name, title, description, wide, narrow, list(marks))


def _svg(identifier: str, title: str, width: float, paint: Callable[[Figure, _Margins], None]) -> str:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = identifier
        figure = Figure(dpi=72)
        FigureCanvasSVG(figure)
        paint(figure, _Margins(width))
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


def _scatter(axes: Axes, points: list[tuple[int, float, Status]], margins: _Margins) -> None:
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


def _value_axis(axes: Axes, values: Numbers) -> None:
    """Logarithmic where the values span decades, from zero or just around them otherwise."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > 30:
        decades = math.log10(high / low)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0), numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(_decade_tick))
        axes.set_ylim(low * (low / high) ** 0.06, high * (high / low) ** 0.06)
        return
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    axes.set_ylim(0.0 if 0 <= low < 0.5 * high else low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_tick))


def _segment_axis(axes: Axes, where: Numbers, segments: list[SegmentResult]) -> None:
    _count_axis(axes, _array([*where, *(segment.index for segment in segments)]), "segment")


def _count_axis(axes: Axes, where: Numbers, noun: str) -> None:
    low, high = float(where.min()), float(where.max())
    room = 0.015 * (high - low) or 0.5
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(noun)


def _plain_tick(value: float, _: int) -> str:
    return f"{value:,.6g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"


def _decade_tick(value: float, _: int) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:,g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10.0**exponent)
    return power_of_ten(exponent) if digit == 1 else f"{digit}·{power_of_ten(exponent)}"


def _decade(exponent: int) -> str:
    return "1" if exponent == 0 else power_of_ten(exponent)


# --- Numbers -----------------------------------------------------------------------------------------------------------


def _array(values: Iterable[float | None]) -> Numbers:
    """As floats; what no axis could span (not finite, beyond 10^±100) becomes not-a-number, or zero where it is tiny."""
    array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    size = np.abs(array)
    return np.where(size < 1e100, np.where(size < 1e-100, 0.0, array), np.nan)


def _positions(count: int, segments: int) -> Numbers:
    """The segment each value belongs to; fewer values than segments are spread evenly over the run."""
    if 1 < count < segments:
        return np.linspace(0.0, segments - 1.0, count)
    return np.arange(max(count, 1), dtype=np.float64)[:count] if count else np.array([0.0, max(segments - 1.0, 1.0)])


def _thinned(x: Numbers, y: Numbers, limit: int = MAX_POINTS) -> tuple[Numbers, Numbers]:
    """At most ``limit`` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(y) == 0:
        return _array([]), _array([])
    if len(y) <= limit:
        return x, np.where(np.isfinite(y), y, np.nan)
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(y)), limit // 2):
        finite = stretch[np.isfinite(y[stretch])]
        if len(finite):
            kept.extend(sorted({int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}))
    return x[kept], y[kept]


def _running_mean(values: Numbers, half: int) -> Numbers:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low), dtype=np.float64)
