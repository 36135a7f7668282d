"""``pol plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common, options

if TYPE_CHECKING:
    from proof_of_learning.verifier.forecast import Forecast


@common.command("interrupted; the proof was only read")
def plan(
    proof: Annotated[str, typer.Argument(help="The proof's directory, or its address (`s3://…`).")],
    task: Annotated[
        str | None,
        typer.Option(help="The task; a few of its steps are taken, for the time. Without it nothing of it is run."),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="With what probability a forgery is to be hit (0.99 is 99 %).")
    ] = 0.99,
    forged: Annotated[
        float,
        typer.Option(
            help="How large a forgery is to be hit: its share of the segments that do work, or of the progress (0.1 is 10 %)."
        ),
    ] = 0.1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that would replay at once.")] = 1,
    sandbox: Annotated[str, typer.Option(help="Confine the task's code: `auto`, `require` or `off`.")] = "auto",
    set_: options.Settings = None,
    data: options.DataFolder = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write it as JSON to this file (`-`: standard output).")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Of a script, behind `--`: other arguments than the recorded ones.")
    ] = None,
) -> None:
    """What a verification will cost, before it runs: draws, steps, bytes, memory, and with `--task` the time. Judges nothing.

    **Examples**

    `pol plan run.pol --confidence 0.999 --forged 0.05`

    `pol plan run.pol --task examples/digits.py:task --workers 2`
    """
    common.use_data(data)
    common.writable("--json", json)

    import msgspec

    from proof_of_learning.verifier.forecast import forecast
    from proof_of_learning.verifier.options import Options

    reference = None if task is None else common.reference(task, common.settings(set_), arguments)
    options = Options.of({"workers": workers, "sandbox": sandbox})
    with common.progress_bar(quiet=json == "-") as progress:
        told = forecast(
            proof, reference, confidence=confidence, forged=forged, options=options, progress=progress, named=task
        )
    common.write_json(msgspec.json.format(msgspec.json.encode(told), indent=2), json)
    if json != "-":
        _show(told)


def _show(told: Forecast) -> None:
    from proof_of_learning.report.text import percent, plural, seconds, size

    times = told.times
    rows = {
        "to hit": f"with a probability of {percent(told.confidence)}, any forgery that makes more than {percent(told.forged)} of the "
        "segments that do work, or of the progress of what the model computes, or of its weights",
        "draws": ", ".join(f"{name} {number:,}" for name, number in told.draws.items()),
        "segments": f"{told.replayed_segments:,} of {told.segments:,} are replayed" + ("" if told.known else ", about"),
        "steps": f"{told.replayed_steps:,} of {told.steps:,} ({told.share:.1%})",
        "to read": f"{size(told.read)} of the proof",
        "to move": f"{size(told.moved)} to and from workers; a state has {size(told.state)}",
        "memory": f"{size(told.memory['verifier'])} of states in the verifier's process, {size(told.memory['each worker'])} in each "
        "worker, beside Python, PyTorch, the data and what a step takes",
    }
    if times is not None:
        rows["time"] = (
            f"about {seconds(times.total)} with {plural(told.workers, 'worker')}: start {seconds(times.start)}, "
            f"survey {seconds(times.survey)}, replay {seconds(times.replay)} (a step {times.step * 1e3:.3g} ms, "
            f"beside the steps {times.segment * 1e3:.3g} ms a segment); the task's data and evaluation come on top, once"
        )
    for number, note in enumerate(told.notes, 1):
        rows[f"note {number}"] = note
    common.print_rows(rows)
    common.say(told.command)
