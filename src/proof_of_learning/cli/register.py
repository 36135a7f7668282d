"""``pol register``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common, options
from proof_of_learning.errors import AuthorityError, UsageError

if TYPE_CHECKING:
    from proof_of_learning.attestation.signatures import PrivateKey


@common.command("interrupted; no claim was written")
def register(
    task: Annotated[
        str, typer.Argument(help="The task: `path.py:function`, `module:function`, or a script (`path.py`).")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The claim to write, `claim.json`; never over an existing file.")
    ],
    interval: options.Interval = None,
    device: options.Device = "cpu",
    portable: options.Portable = False,
    threads: options.Threads = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="An owner's key, which signs the claim; may be repeated.")
    ] = None,
    owner: Annotated[
        list[Path] | None,
        typer.Option(
            "--owner", help="The public key of a further owner, who signs elsewhere (`pol sign`); may be repeated."
        ),
    ] = None,
    threshold: Annotated[int | None, typer.Option(min=1, help="How many owners have to sign.  [default: all]")] = None,
    recovery: Annotated[
        Path | None,
        typer.Option(
            help="A public key that may later put another key in an owner's place (`pol recover`); keep its private half elsewhere."
        ),
    ] = None,
    passphrase_env: Annotated[
        str | None,
        typer.Option(
            "--passphrase-env", help="Environment variable with the keys' passphrase, in place of asking for it."
        ),
    ] = None,
    tsa: Annotated[
        list[str] | None,
        typer.Option(
            "--tsa", help="Address of a timestamp authority (RFC 3161) that dates the signed claim; may be repeated."
        ),
    ] = None,
    start_from: options.StartFrom = None,
    codec: options.Codec = None,
    seal_program: options.SealProgram = None,
    arithmetic: options.Arithmetic = None,
    salt: options.Salt = None,
    set_: options.Settings = None,
    data: options.DataFolder = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Of a script: its own arguments, behind `--`.")] = None,
) -> None:
    """Fix a run before it begins: task, data, length, interval, environment. All its randomness will follow from the claim.

    **Examples**

    `pol register examples/digits.py:task -o claim.json`

    `pol register examples/digits.py:task -o claim.json --key key.pem --tsa https://freetsa.org/tsr`

    `pol register examples/digits.py:task -o claim.json --key key.pem --recovery spare.pub.pem --tsa https://freetsa.org/tsr`

    `pol prove examples/digits.py:task -o run.pol --registration claim.json`

    `pol register train.py -o claim.json -- --lr 0.1`
    """
    if tsa and not key:
        raise UsageError(
            "--tsa dates a claim that its owner signed; name the key (--key), or sign and stamp it afterwards"
        )
    common.use_data(data)
    common.pinned(portable=portable, device=device, threads=threads)

    import proof_of_learning as pol
    from proof_of_learning.task import TaskReference, is_script

    signers = _signers(key or [], passphrase_env)
    if tsa:
        from proof_of_learning.attestation import authority

        for url in tsa:
            authority.checked(url)

    named: pol.Task | TaskReference
    if is_script(task):
        given = {
            "--start-from": start_from, "--codec": codec, "--set": set_ or None, "--arithmetic": arithmetic, "--salt": salt,
            "--seal-program": seal_program,
        }  # fmt: skip
        if unused := [name for name, value in given.items() if value is not None]:
            raise UsageError(common.not_for_scripts(unused))
        named = TaskReference(task, arguments=tuple(arguments or ()))
    elif arguments:
        raise UsageError(f"a task takes no arguments ({arguments[0]!r}); hand settings over with --set NAME=VALUE")
    else:
        named = pol.load_task(task, common.settings(set_))
    with common.progress_bar() as progress:
        made = pol.register(
            named, out, interval=interval, device=device, portable=portable, threads=threads,
            owners=[*(signer.public for signer in signers), *(owner or [])], threshold=threshold, recovery=recovery,
            start_from=start_from, codec=codec, arithmetic=arithmetic, salt=salt, seal_program=seal_program, progress=progress,
        )  # fmt: skip
    claim = made.claim
    common.say(
        f"{out}: {claim.name}, {_length(claim.steps)} in segments of {claim.interval}, {claim.data.samples:,} samples"
    )
    common.say(f"claim {claim.digest()}")
    common.say(f"task {claim.task}")
    common.say(f"sources {claim.sources or 'not available in full'}")
    if signers:
        from proof_of_learning import signing

        for signer in signers:
            signing.sign(out, signer)
        common.say(f"signed with {', '.join(signer.public.digest for signer in signers)}")
        if tsa:
            try:
                signing.timestamp(out, tsa)
            except AuthorityError as error:
                raise AuthorityError(
                    f"{error}: `pol timestamp {shlex.quote(str(out))} --tsa URL` stamps the claim, which is made and signed"
                ) from None
            common.say(f"stamped by {', '.join(tsa)}: nothing of the run can be known before this moment")
    if not tsa:
        common.say("Publish or timestamp this digest before you train: a claim nobody has seen proves no date.")


def _length(steps: int | None) -> str:
    return "as many steps as the script takes" if steps is None else f"{steps:,} steps"


def _signers(paths: list[Path], variable: str | None) -> list[PrivateKey]:
    if not paths:
        return []
    from proof_of_learning.attestation.signatures import load_private
    from proof_of_learning.cli.sign import passphrase

    return [load_private(path, passphrase(path, variable)) for path in paths]
