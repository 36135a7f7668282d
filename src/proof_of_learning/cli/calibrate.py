"""``pol calibrate``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common, options

if TYPE_CHECKING:
    from proof_of_learning.calibration import Calibration


@common.command("interrupted; nothing was written")
def calibrate(
    task: Annotated[str, typer.Argument(help="The task: `path.py:function` or `module:function`.")],
    steps: Annotated[
        int | None, typer.Option(min=2, help="Length of the runs.  [default: the task's own, at most 1,000 steps]")
    ] = None,
    runs: Annotated[int, typer.Option(min=2, help="Independent runs for d_ref.")] = 3,
    segments: Annotated[int, typer.Option(min=1, help="Segments on which noise is measured.")] = 8,
    intervals: Annotated[str, typer.Option(help="Intervals k to measure, separated by commas.")] = "1,2,5,10,20,50",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure again, and keep nothing.")] = False,
    set_: options.Settings = None,
    data: options.DataFolder = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the calibration as JSON to this file (`-`: standard output).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw noise over k into this file (.svg, .png or .pdf).")] = None,
) -> None:
    """Measure d_ref and the honest noise of a task in this machine's environments; recommend an interval.

    **Examples**

    `pol calibrate examples/digits.py:task --plot noise.svg`

    `pol calibrate examples/fashion_mnist.py:task --data DATA --steps 300 --json calibration.json`
    """
    from proof_of_learning.errors import UsageError

    common.use_data(data)
    try:
        chosen = [int(text) for text in intervals.split(",")]
    except ValueError:
        raise UsageError(f"--intervals {intervals!r}: expected numbers separated by commas") from None
    if plot is not None and (plot.suffix not in (".svg", ".png", ".pdf") or not plot.parent.is_dir()):
        raise UsageError(f"--plot {plot}: expected a file ending in .svg, .png or .pdf in an existing folder")
    if plot is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: `pip install 'proof-of-learning[report]'`")

    import proof_of_learning as pol
    from proof_of_learning.task import TaskReference

    reference = TaskReference(task, common.settings(set_)).absolute()
    with common.progress_bar(quiet=json == "-") as progress:
        made = pol.calibrate(
            reference,
            intervals=chosen,
            steps=steps,
            runs=runs,
            segments=segments,
            cache=not no_cache,
            progress=progress,
        )
    common.write_json(made.to_json(), json)
    if plot is not None:
        from proof_of_learning.report.noise import draw_noise

        draw_noise(made, plot)
    if json != "-":
        _show(made)


def _show(made: Calibration) -> None:
    from rich.table import Table

    from proof_of_learning.report.text import line, number

    console = common.results()
    kinds = list(dict.fromkeys(row.environment for row in made.noise))
    table = Table(
        title=f"Honest noise of {line(made.name)}, relative to displacement (largest of {made.segments} segments)"
    )
    table.add_column("environment")
    intervals = sorted({row.k for row in made.noise})
    for k in intervals:
        table.add_column(f"k = {k}", justify="right")
    values = {(row.environment, row.k): row.overall for row in made.noise}
    for kind in kinds:
        table.add_row(line(kind), *(number(values.get((kind, k))) for k in intervals))
    table.add_section()
    table.add_row("limit rho", *(number(made.rho.get(str(k))) for k in intervals))
    console.print(table)
    driven = sorted({name for row in made.noise if row.k == intervals[0] for name in row.noise_driven})
    if driven:
        console.print(
            f"driven by noise already at k = {intervals[0]}: {line(', '.join(driven[:6]))}{' …' if len(driven) > 6 else ''}"
        )
    console.print(
        f"d_ref (l2) {made.d_ref.l2:.4g} over {made.runs} runs of {made.steps:,} steps; "
        f"estimated from weights alone {made.d_ref_estimate.l2:.4g} ({made.d_ref_estimate.l2 / made.d_ref.l2:.2f}×)"
    )
    advice = made.recommended_interval
    console.print(
        f"recommended interval: [bold]{advice}[/bold]"
        if advice
        else "no interval measured is short enough for all segments; "
        + ("even at 1 some may stay without an answer" if "1" in made.rho else "try a shorter one"),
        markup=True,
    )
