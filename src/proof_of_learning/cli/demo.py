"""``pol demo``: the whole story on a small real data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from proof_of_learning.cli import common

STEPS = 3000
FORGERIES = ("concatenation", "infinitesimal-update")


@common.command("interrupted; run it again, and the recording goes on from its last checkpoint")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for proofs, verdicts and reports.")] = Path(
        "demo-output"
    ),
    steps: Annotated[int, typer.Option(min=50, help="Training steps.")] = STEPS,
) -> None:
    """Train and record, verify, attack, see the attacks rejected, and write reports: about a minute.

    **Example**

    `pol demo -o demo-output`
    """
    console = common.results()
    console.print(
        "[bold]1. Train[/bold] a small network on 1,437 handwritten digits, and record a proof while training.",
        markup=True,
    )

    import proof_of_learning as pol
    from proof_of_learning.report.terminal import summary_table

    task = pol.load_task(pol.TaskReference(f"{example('digits.py')}:task", {"steps": steps}))
    out.mkdir(parents=True, exist_ok=True)
    honest = out / "honest.pol"
    with common.progress_bar() as progress:
        recording = pol.prove(
            task, honest, interval=1, threads=1, progress=progress
        )  # threads cost more than such a network
    accuracy = (recording.evaluation or {}).get("test_accuracy", float("nan"))
    before = "complete already, nothing was trained: " if recording.complete_before else ""
    console.print(
        f"   {before}{recording.steps:,} steps, a checkpoint after each; test accuracy {accuracy:.1%}; proof in {honest}"
    )

    console.print(
        "[bold]2. Verify[/bold] it: a few segments, chosen after the proof was sealed, are trained again.", markup=True
    )
    rows = [("honest", _judge(pol, task, honest, out, ""))]

    console.print(
        "[bold]3. Attack[/bold]: forge proofs that end in the same final model, without the training.", markup=True
    )
    from proof_of_learning.attacks import ATTACKS

    for name in FORGERIES:
        forged = out / f"{name}.pol"
        _clear(forged)
        with common.progress_bar() as progress:
            forgery = ATTACKS[name]().forge(pol.Proof.open(honest), task, forged, progress=progress)
        console.print(f"   {name}: {forgery.cost:.1%} of the honest samples; {ATTACKS[name].summary}")

    console.print("[bold]4. Verify the forgeries.[/bold]", markup=True)
    rows += [(name, _judge(pol, task, out / f"{name}.pol", out, f"-{name}")) for name in FORGERIES]
    console.print()
    console.print(summary_table(rows))
    console.print(f"Reports to open: {out}/report.html" + "".join(f", {out}/report-{name}.html" for name in FORGERIES))
    if [verdict.verdict for _, verdict in rows] != ["valid", "invalid", "invalid"]:
        common.fail("the demo did not end as it should; please report this with the verdicts in the output folder")
        raise typer.Exit(1)


def example(name: str) -> Path:
    """An example task: beside the package in a wheel, in the repository for an editable installation."""
    here = Path(__file__).resolve().parent.parent
    found = [place for place in (here / "examples" / name, here.parent.parent / "examples" / name) if place.is_file()]
    if not found:
        from proof_of_learning.errors import UsageError

        raise UsageError(f"the example {name} is not part of this installation")
    return found[0]


def _judge(pol: Any, task: Any, proof: Path, out: Path, suffix: str) -> Any:
    from proof_of_learning.report.html import write_html

    with common.progress_bar() as progress:
        verdict = pol.verify(proof, task, progress=progress)
    common.write_json(verdict.to_json(), str(out / f"verdict{suffix}.json"))
    write_html(verdict, out / f"report{suffix}.html")
    common.results().print(f"   {escape(proof.name)}: [bold]{verdict.verdict}[/bold]", highlight=False, markup=True)
    return verdict


def _clear(forged: Path) -> None:
    """Remove what an earlier demo forged; only ever a folder that is a proof."""
    import shutil

    if (forged / "header.json").is_file():
        shutil.rmtree(forged)
