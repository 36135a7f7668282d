"""``pol attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common, options


@common.command("interrupted; the target was only read, and the forgery is not complete")
def attack(
    name: Annotated[str | None, typer.Argument(help="Which attack; see --list.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the attacks and end.")] = False,
    target: Annotated[Path | None, typer.Option(help="The honest proof whose final model the forgery claims.")] = None,
    task: Annotated[str | None, typer.Option(help="The target's task.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Directory for the forged proof.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the attack, NAME=VALUE; may be repeated.")
    ] = None,
    set_: options.Settings = None,
    data: options.DataFolder = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write a summary as JSON to this file (`-`: standard output).")
    ] = None,
) -> None:
    """Forge a proof for a target's final model, to see what the verifier makes of it.

    **Examples**

    `pol attack --list`

    `pol attack concatenation --target run.pol --task examples/digits.py:task -o forged.pol`
    """
    import msgspec

    from proof_of_learning.errors import UsageError

    common.use_data(data)
    from proof_of_learning.attacks import ATTACKS

    if list_:
        _list()
        return
    if name not in ATTACKS:
        raise UsageError(
            f"{'name an attack' if name is None else f'there is no attack {name!r}'}; known: {', '.join(sorted(ATTACKS))}"
        )
    if target is None or task is None or out is None:
        raise UsageError("an attack needs --target DIR, --task TASK and -o DIR2")

    import proof_of_learning as pol

    with common.progress_bar(quiet=json == "-") as progress:
        forgery = ATTACKS[name](**common.settings(param)).forge(
            pol.Proof.open(target), pol.load_task(task, common.settings(set_)), out, progress=progress
        )
    summary = {
        "attack": name, "path": str(forgery.path), "root": forgery.root, "samples_processed": forgery.samples_processed,
        "honest_samples": forgery.honest_samples, "cost": forgery.cost, "distance": forgery.distance,
        "forged": forgery.forged,
    }  # fmt: skip
    common.write_json(msgspec.json.format(msgspec.json.encode(summary), indent=2), json)
    if json != "-":
        common.say(f"{out}: forged by {name} for {forgery.cost:.1%} of the samples that honest training takes")
        if forgery.distance:
            common.say(f"it ends at a distance of {forgery.distance:.3g} from the target's weights")
        common.say(f"root {forgery.root}")


def _list() -> None:
    from rich.table import Table

    from proof_of_learning.attacks import ATTACKS

    table = Table(box=None, pad_edge=False)
    for column in ("attack", "what it does", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "attack")
    for name, kind in sorted(ATTACKS.items()):
        table.add_row(name, kind.summary, kind.source)
    common.results().print(table)
