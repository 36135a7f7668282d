"""``pol pack`` and ``pol unpack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common


@common.command("interrupted; no file was written")
def pack(
    proof: Annotated[Path, typer.Argument(help="The proof's directory.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write, `run.pol.tar`.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file where it exists already.")] = False,
) -> None:
    """Make one file of a proof. Equal proofs give equal files, to the byte.

    **Example**

    `pol pack run.pol -o run.pol.tar`
    """
    from proof_of_learning.proof.pack import pack as packed
    from proof_of_learning.report.text import size

    with common.progress_bar() as progress:
        written = packed(proof, out, lambda done, total: progress("packing", done, total), overwrite=overwrite)
    common.say(f"{out}: {size(written)}")


@common.command("interrupted; nothing was unpacked")
def unpack(
    file: Annotated[Path, typer.Argument(help="A file that `pol pack` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new directory for the proof.")],
) -> None:
    """Make a proof's directory of one file again. Whether it is intact, `pol check` says.

    **Example**

    `pol unpack run.pol.tar -o run.pol`
    """
    from proof_of_learning.proof.pack import unpack as unpacked

    with common.progress_bar() as progress:
        folder = unpacked(file, out, lambda done, total: progress("unpacking", done, total))
    common.say(f"{folder}: unpacked; `pol check {folder}` says whether it is intact")
