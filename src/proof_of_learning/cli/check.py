"""``pol check``."""

from __future__ import annotations

from typing import Annotated

import typer

from proof_of_learning.cli import common


@common.command("interrupted; the proof was only read")
def check(
    proof: Annotated[str, typer.Argument(help="The proof's directory, or its address (`s3://…`).")],
    json: Annotated[
        str | None, typer.Option("--json", help="Write the result as JSON to this file (`-`: standard output).")
    ] = None,
) -> None:
    """Check structure and digests only: no task, no replay, fast. Says whether a proof is intact, not whether it is true.

    Exit status: 0 intact, 1 it contradicts itself, 2 it cannot be read.

    **Example**

    `pol check run.pol`
    """
    import msgspec

    import proof_of_learning as pol

    with common.progress_bar(quiet=json == "-") as progress:
        found = pol.check(proof, progress=progress)
    common.write_json(msgspec.json.format(msgspec.json.encode(found), indent=2), json)
    if found.status != "pass":
        common.fail(found.summary)
        raise typer.Exit(1)
    if json != "-":
        common.say(f"{proof} is intact: {found.summary}")
