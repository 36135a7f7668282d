"""What the report's figures show: the challenged segments, the loss, the way to the final model, performance.

Only numbers of the verdict enter a figure, never a string of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from proof_of_learning.report import svg
from proof_of_learning.report.svg import CURVE, GRID, INK, MARKS, MAX_POINTS, MUTED, Margins, Numbers, Plot
from proof_of_learning.report.text import number, plural
from proof_of_learning.verifier.verdict import SegmentResult, Status, Verdict

MAX_MEASURES = 3
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ -]{0,39}")


def draw(verdict: Verdict) -> list[Plot]:
    """The figures that this verdict has numbers for; none for a verdict without trajectory and segments."""
    return [
        plot
        for plot in (_segments(verdict), _loss(verdict), _journey(verdict), _performance(verdict))
        if plot is not None
    ]


# --- The challenged segments -------------------------------------------------------------------------------------------


def _segments(verdict: Verdict) -> Plot | None:
    line = svg.array(verdict.trajectory.displacement)
    where = svg.positions(len(line), verdict.proof.segments)
    heights = [_displacement(segment, line, verdict.proof.segments) for segment in verdict.segments]
    if not np.isfinite(line).any() and not any(map(math.isfinite, heights)):
        return None
    known = svg.array([*line[np.isfinite(line)], *(h for h in heights if math.isfinite(h))])
    relative = [_Error(segment) for segment in verdict.segments]
    compact = all(error.exact for error in relative)
    rho = verdict.thresholds.rho
    limit = rho if verdict.exactness == "calibrated" and relative and 0 < rho < math.inf else None

    def paint(figure: Figure, margins: Margins) -> None:
        rows = [170.0] if not relative else [170.0, 34.0] if compact else [170.0, 150.0]
        axes = margins.panels(figure, rows)
        upper = axes[0]
        upper.set_title("Displacement of each segment (l2)")
        upper.plot(*svg.thinned(where, line), color=CURVE, linewidth=1.1)
        svg.value_axis(upper, known)
        bottom, top = upper.get_ylim()
        drawn = [
            (s.index, h if math.isfinite(h) else top, s.status) for s, h in zip(verdict.segments, heights, strict=True)
        ]
        svg.scatter(upper, drawn, margins)
        upper.set_ylim(bottom, top)
        if relative:
            _error_panel(axes[1], verdict.segments, relative, limit, margins)
        _segment_axis(axes[-1], where, verdict.segments)

    marks: list[Status] = [status for status in MARKS if any(s.status == status for s in verdict.segments)]
    title = "Challenged segments" if verdict.segments else "Segments"
    return svg.plot("segments", title, _describe(verdict.segments, relative, limit), paint, marks)


class _Error:
    """A segment's relative error and the row of the lower panel it belongs to."""

    def __init__(self, segment: SegmentResult) -> None:
        self.value = math.nan if segment.relative is None else segment.relative.l2
        self.exact = segment.exact
        self.measured = not self.exact and math.isfinite(self.value) and self.value > 0
        self.unplaced = not self.exact and not self.measured


def _error_panel(
    axes: Axes, segments: list[SegmentResult], errors: list[_Error], limit: float | None, margins: Margins
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
        labels = [svg.decade(e) for e in decades]
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
    svg.scatter(axes, [(s.index, y, s.status) for s, y in zip(segments, levels, strict=True)], margins)


def _displacement(segment: SegmentResult, line: Numbers, segments: int) -> float:
    if segment.displacement is not None:
        return float(svg.array([segment.displacement.l2])[0])
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
    losses = svg.array(loss for _, loss in recorded)
    finite = np.isfinite(losses)
    if not finite.any():
        return None
    steps, losses = svg.array(step for step, _ in recorded)[finite], losses[finite]
    smooth = svg.running_mean(losses, max(1, len(losses) // 40)) if len(losses) >= 80 else None

    def paint(figure: Figure, margins: Margins) -> None:
        (axes,) = margins.panels(figure, [190.0])
        axes.set_title("Loss per step")
        svg.value_axis(axes, losses)
        if smooth is None:
            axes.plot(steps, losses, color=MARKS["pass"].colour)
        else:
            axes.plot(*svg.thinned(steps, losses), color=CURVE, linewidth=0.9, alpha=0.8)
            axes.plot(*svg.thinned(steps, smooth, MAX_POINTS // 4), color=MARKS["pass"].colour, linewidth=1.8)
        svg.count_axis(axes, steps, "step")

    left_out = len(recorded) - len(losses)
    text = "The loss as recorded by the prover"
    text += " (thin) and its running mean (thick)." if smooth is not None else "."
    text += f" It goes from {number(losses[0])} to {number(losses[-1])}."
    if left_out:
        text += f" {plural(left_out, 'value')} {'is' if left_out == 1 else 'are'} not finite and not drawn."
    return svg.plot("loss", "Training loss", text, paint)


def _journey(verdict: Verdict) -> Plot | None:
    run, segments = verdict.trajectory, verdict.proof.segments
    distance, weights = svg.array(run.distance), 100 * svg.array(run.progress)
    where, function = _function(verdict)
    series = [
        ("of the weights", CURVE, svg.positions(len(weights), segments), weights),
        ("of what the model computes", MARKS["pass"].colour, where, function),
    ]
    covered = [entry for entry in series if np.isfinite(entry[3]).any()]
    far = bool(np.isfinite(distance).any())
    if not (far or covered):
        return None

    def paint(figure: Figure, margins: Margins) -> None:
        panels = margins.panels(figure, [*([150.0] if covered else []), *([110.0] if far else [])])
        if covered:
            axes = panels[0]
            axes.set_title(
                "Share of the way covered" if margins.narrow else "Share of the way to the final model that is covered"
            )
            for label, colour, at, values in covered:
                axes.plot(*svg.thinned(at, values), color=colour, linewidth=1.8, label=label)
            _ticks(axes, np.concatenate([values for _, _, _, values in covered]), lambda value, _: f"{value:g} %")
            axes.legend(loc="lower right", frameon=False, fontsize=11, labelcolor=INK)
        if far:
            axes = panels[-1]
            at = svg.positions(len(distance), segments)
            axes.set_title(
                "Weights' distance from the start" if margins.narrow else "Distance of the weights from the start (l2)"
            )
            axes.plot(*svg.thinned(at, distance), color=CURVE, linewidth=1.8)
            _ticks(axes, distance, svg.plain_tick)
        _segment_axis(panels[-1], svg.array([*where, *svg.positions(len(distance) or len(weights), segments)]), [])

    text = "How the model came nearer to the final one"
    if len(covered) == 2:
        text += ": its weights, and what it computes on the samples that the verifier drew. The two need not go side by side"
    text += "; training advances in many small steps, and a jump in either is a reason to look closer."
    if far:
        text += f" The weights end {number(float(distance[np.isfinite(distance)][-1]))} away from where they began."
    return svg.plot("journey", "The way to the final model", text, paint)


def _function(verdict: Verdict) -> tuple[Numbers, Numbers]:
    """Where the states were evaluated (in segments, counted from the first one's start), and how much of the way was covered, in %."""
    points = verdict.trajectory.function
    apart = svg.array(distance for _, distance in points)
    if len(points) < 2 or not apart[0] > 0 or verdict.proof.interval < 1:
        return svg.array([]), svg.array([])
    # The value of a segment is that of its end; so the state after the first segment belongs to segment 0.
    where = svg.array(step for step, _ in points) / verdict.proof.interval - 1
    return where, 100 * (1 - apart / apart[0])


def _ticks(axes: Axes, values: Numbers, tick: Callable[[float, int], str]) -> None:
    finite = values[np.isfinite(values)]
    if finite.min() > 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))


def _performance(verdict: Verdict) -> Plot | None:
    """What the model achieved on the way, claimed and found; the names are the verifier's own task's, never the proof's."""
    points = [point for point in verdict.trajectory.performance if point.found]
    names = sorted({name for point in points for name in point.found or {} if _NAME.fullmatch(name)})[:MAX_MEASURES]
    if len(points) < 2 or not names:
        return None
    steps = svg.array(point.step for point in points)

    def paint(figure: Figure, margins: Margins) -> None:
        panels = margins.panels(figure, [110.0] * len(names))
        for axes, name in zip(panels, names, strict=True):
            axes.set_title(name.replace("_", " "))
            claimed = svg.array(point.claimed.get(name) for point in points)
            found = svg.array((point.found or {}).get(name) for point in points)
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
        svg.count_axis(panels[-1], steps, "step")

    text = f"The task's own evaluation at {len(points)} checkpoints: rings as the proof claims, dots as found here."
    return svg.plot("performance", "Performance on the way", text, paint)


def _segment_axis(axes: Axes, where: Numbers, segments: list[SegmentResult]) -> None:
    svg.count_axis(axes, svg.array([*where, *(segment.index for segment in segments)]), "segment")
