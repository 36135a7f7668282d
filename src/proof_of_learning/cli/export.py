"""``pol export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common


@common.command("interrupted; no model was written")
def export(
    proof: Annotated[str, typer.Argument(help="The proof's directory, or its address (`s3://…`).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The safetensors file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
) -> None:
    """Write the model that a proof ends in to a safetensors file, under the names that the model has.

    **Example**

    `pol export run.pol -o model.safetensors`
    """
    from proof_of_learning.exporting import export as write

    made = write(proof, out, overwrite=overwrite)
    common.say(f"{out}: {made.tensors:,} tensors, {made.bytes:,} bytes; the final weights of {made.root}")
    common.say(f"sha256 {made.digest[7:]}")
