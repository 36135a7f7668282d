"""``pol keygen``, ``pol sign``, ``pol recover`` and ``pol timestamp``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common
from proof_of_learning.errors import UsageError

PASSPHRASE_HELP = "Environment variable that holds the key's passphrase; without it a locked key asks on the terminal."


def passphrase(key: Path, variable: str | None) -> bytes | None:
    """What opens the key in ``key``; None where it is not locked. It is never shown, and taken from no argument."""
    from proof_of_learning.attestation.signatures import is_locked

    return _secret(f"Passphrase of {key}", variable, twice=False) if is_locked(key) else None


def _secret(prompt: str, variable: str | None, *, twice: bool) -> bytes:
    if variable is not None:
        if not (given := os.environ.get(variable)):
            raise UsageError(f"--passphrase-env: the environment variable {variable} is not set, or empty")
        return given.encode()
    if not sys.stdin.isatty():
        raise UsageError(
            "a passphrase is needed, and there is no terminal to ask on; hand it over with --passphrase-env NAME"
        )
    text: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True)
    return text.encode()


@common.command("interrupted; no key was written")
def keygen(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The key to write, `key.pem`; its public half goes to `key.pub.pem`.")
    ],
    lock: Annotated[bool, typer.Option("--passphrase", help="Lock the key with a passphrase, asked for here.")] = False,
    passphrase_env: Annotated[
        str | None, typer.Option("--passphrase-env", help="Lock it with what this environment variable holds.")
    ] = None,
    salt: Annotated[
        bool,
        typer.Option(
            "--salt", help="Make no key but a secret for the salts of one private data set (`pol prove --salt`)."
        ),
    ] = False,
) -> None:
    """Make a key to sign with (P-256, as every tool reads it), readable by its owner alone; never over an existing file.

    **Examples**

    `pol keygen -o key.pem --passphrase`

    `pol keygen --salt -o data.salt`
    """
    if salt:
        from proof_of_learning.data import salts

        if lock or passphrase_env is not None:
            raise UsageError("a secret for salts is not locked with a passphrase; keep it as you keep the data")
        salts.generate(out)
        common.say(f"{out}: keep it to yourself, as you keep the data; make another one for another data set")
        return
    from proof_of_learning.attestation import signatures

    secret = _secret("Passphrase", passphrase_env, twice=True) if lock or passphrase_env is not None else None
    made = signatures.generate(out, secret)
    common.say(f"{out}: {'locked; ' if secret else ''}keep it to yourself")
    common.say(f"{signatures.public_path(out)}: hand this out")
    common.say(f"key {made.digest}")


@common.command("interrupted; nothing was signed")
def sign(
    path: Annotated[
        Path, typer.Argument(help="A proof's directory, a claim (`claim.json`) or a verdict (`verdict.json`).")
    ],
    key: Annotated[Path, typer.Option("--key", help="The key to sign with, a PEM file (`pol keygen`).")],
    passphrase_env: Annotated[str | None, typer.Option("--passphrase-env", help=PASSPHRASE_HELP)] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Of a verdict: where its envelope goes.  [default: beside it]")
    ] = None,
) -> None:
    """Sign a finished proof, a claim that names the key, or a verdict (DSSE, in-toto).

    **Examples**

    `pol sign run.pol --key key.pem`

    `pol sign verdict.json --key key.pem`
    """
    from proof_of_learning import signing

    written = signing.sign(path, key, passphrase(key, passphrase_env), out=out)
    common.say(f"{path} is signed: {written}")


@common.command("interrupted; nothing was signed")
def recover(
    path: Annotated[Path, typer.Argument(help="A proof's directory.")],
    key: Annotated[Path, typer.Option("--key", help="The recovery key that the proof's claim names, a PEM file.")],
    owner: Annotated[Path, typer.Option("--owner", help="The public key of the owner that it replaces.")],
    successor: Annotated[Path, typer.Option("--successor", help="The public key that takes its place.")],
    passphrase_env: Annotated[str | None, typer.Option("--passphrase-env", help=PASSPHRASE_HELP)] = None,
) -> None:
    """Put a new key in the place of an owner's that was lost or stolen, with the recovery key that the claim names.

    What the new key signs then counts as that owner's. Tell verifiers to revoke the old one (`pol verify --revoked`).

    **Example**

    `pol recover run.pol --key spare.pem --owner key.pub.pem --successor new.pub.pem`
    """
    from proof_of_learning import signing

    written = signing.recover(path, key, owner, successor, passphrase(key, passphrase_env))
    common.say(f"{successor} signs in the place of {owner}: {written}")


@common.command("interrupted; the timestamps that were made before are kept")
def timestamp(
    path: Annotated[Path, typer.Argument(help="A proof's directory, or a signed claim (`claim.json`).")],
    tsa: Annotated[
        list[str] | None,
        typer.Option(
            "--tsa",
            help="Address of a timestamp authority (RFC 3161); may be repeated, then each stamps the one before.",
        ),
    ] = None,
    trusted_tsa: Annotated[
        list[Path] | None,
        typer.Option("--trusted-tsa", help="Certificates (PEM) of which the answers have to be; may be repeated."),
    ] = None,
) -> None:
    """Have a signed proof or claim dated by authorities, in turn. `openssl ts -verify` accepts what they answer.

    **Example**

    `pol timestamp run.pol --tsa https://freetsa.org/tsr`
    """
    from proof_of_learning import signing
    from proof_of_learning.attestation.timestamps import load_authorities, parse

    authorities = load_authorities(trusted_tsa) if trusted_tsa else None
    made = signing.timestamp(path, tsa or [], authorities)
    for token, stamped in made:
        read = parse(token.read_bytes(), token.name)
        common.say(f"{token}: by {read.latest.isoformat(' ', 'seconds').replace('+00:00', ' UTC')}, {read.authority}")
        at = int((read.earliest + (read.latest - read.earliest) / 2).timestamp())
        common.say(
            f"  openssl ts -verify -attime {at} -CAfile ROOTS.pem -in {shlex.quote(str(token))} -data {shlex.quote(str(stamped))}"
        )
    if not made:
        common.say(f"{path} is stamped; the timestamps lie in it, and will lie in the proof")
