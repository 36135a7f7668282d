"""``pol export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common
from proof_of_learning.cli.sign import PASSPHRASE_HELP, passphrase


@common.command("interrupted; no model was written")
def export(
    proof: Annotated[str, typer.Argument(help="The proof's directory, or its address (`s3://…`).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The safetensors file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Sign the file with this P-256 key (OpenSSF Model Signing); the signature goes to `FILE.sig`."
        ),
    ] = None,
    passphrase_env: Annotated[str | None, typer.Option("--passphrase-env", help=PASSPHRASE_HELP)] = None,
) -> None:
    """Write the model that a proof ends in to a safetensors file, under the names that the model has.

    **Examples**

    `pol export run.pol -o model.safetensors`

    `pol export run.pol -o model.safetensors --key key.pem`

    `model_signing verify key model.safetensors --signature model.safetensors.sig --public_key key.pub.pem`
    """
    from proof_of_learning.exporting import export as write

    made = write(
        proof,
        out,
        overwrite=overwrite,
        key=key,
        passphrase=None if key is None else passphrase(key, passphrase_env),
    )
    common.say(f"{out}: {made.tensors:,} tensors, {made.bytes:,} bytes; the final weights of {made.root}")
    common.say(f"sha256 {made.digest[7:]}")
    if made.signature is not None:
        common.say(f"signature {made.signature}")
