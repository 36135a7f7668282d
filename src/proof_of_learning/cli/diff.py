"""``pol diff``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common

if TYPE_CHECKING:
    from proof_of_learning.diff import Apart, Diff

SHOWN = 5  # tensors


@common.command("interrupted; the proofs were only read")
def diff(
    first: Annotated[str, typer.Argument(help="A proof's directory, or its address (`s3://…`).", show_default=False)],
    second: Annotated[str, typer.Argument(help="The other proof's.", show_default=False)],
    everything: Annotated[
        bool, typer.Option("--all", help="Name all that they say differently, not the first ten alone.")
    ] = False,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the result as JSON to this file (`-`: standard output).")
    ] = None,
) -> None:
    """Show where two proofs part, and by how much: what they say differently, the first step and state that differ, and the ends.

    Reads both, replays nothing and judges neither. Exit status: 0 the same proof (equal roots), 1 they differ, 2 one cannot be read.

    **Examples**

    `pol diff mine.pol theirs.pol`

    `pol diff before.pol after.pol --json -`
    """
    import msgspec

    from proof_of_learning.diff import MOST
    from proof_of_learning.diff import diff as compare
    from proof_of_learning.proof.reader import Proof
    from proof_of_learning.proof.remote import local

    with ExitStack() as opened, common.progress_bar(quiet=json == "-") as progress:
        folders = [
            opened.enter_context(local(place, lambda done, total: progress("copying the proof", done, total)))
            for place in (first, second)
        ]
        found = compare(Proof.open(folders[0]), Proof.open(folders[1]), progress, most=None if everything else MOST)
    common.write_json(msgspec.json.format(msgspec.json.encode(found), indent=2), json)
    if json != "-":
        _show(found)
    if not found.same:
        raise typer.Exit(1)


def _show(found: Diff) -> None:
    from proof_of_learning.report.text import plural

    if found.same:
        common.say(f"the same proof: root {found.first}")
        return
    rows = {"roots": f"{found.first}\n{found.second}"}
    rows |= {each.name: f"{each.first}  |  {each.second}" for each in found.said}
    if found.others:
        rows["…"] = f"and {plural(found.others, 'other difference')} (--all names them, in --json too)"
    if found.steps[0] != found.steps[1]:
        rows["steps"] = f"{found.steps[0]:,}  |  {found.steps[1]:,}"
    equal = "the same start" if found.states == 1 else f"the first {found.states:,} are equal"
    rows["states"] = "they differ from the start" if not found.states else equal
    rows["first step that differs"] = (
        "none, as far as both go" if found.parted is None else f"{found.parted:,} ({', '.join(found.columns)})"
    )
    rows["first state that differs"] = _apart(found.state) if found.state else "none that both hold"
    rows["final weights"] = "equal" if found.same_weights else "not equal"
    rows["final state"] = _apart(found.final, found.steps) if found.final else "not held by both"
    common.print_rows({name: value.split("\n") for name, value in rows.items()})


def _apart(found: Apart, ends: tuple[int, int] | None = None) -> str:
    """``ends``: after how many steps each of two last states was reached."""
    from proof_of_learning.report.text import number, percent

    when = f"after {found.step:,}" if ends is None or ends[0] == ends[1] else f"after {ends[0]:,} and {ends[1]:,}"
    if not found.comparable or found.overall is None:
        return f"{when} steps: other tensors, so there is no distance"
    text = f"{when} steps: l2 {number(found.overall.l2)}, largest {number(found.overall.linf)}"
    if found.relative is not None:
        text += f" ({percent(found.relative)} of what the first one's segment moved)"
    if found.tensors:
        text += "\nmost in " + ", ".join(
            f"{name} (apart by {number(error.error)}, moved by {number(error.span)})"
            for name, error in list(found.tensors.items())[:SHOWN]
        )
    if found.unequal:
        text += "\nmust be equal and is not: " + ", ".join(found.unequal[:SHOWN])
    return text
