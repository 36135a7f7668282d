"""``pol register``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common


@common.command("interrupted; no claim was written")
def register(
    task: Annotated[str, typer.Argument(help="The task: `path.py:function` or `module:function`.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The claim to write, `claim.json`; never over an existing file.")
    ],
    interval: Annotated[
        int | None,
        typer.Option("-k", "--interval", help="Steps between checkpoints.  [default: about 1,000 segments a run]"),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="Pin one thread and AVX2 code paths, which more machines of the same make share."
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads.")] = None,
    owner_key: Annotated[str | None, typer.Option("--owner-key", help="The owner's public key, in hex.")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="Another proof, whose final weights training starts from.")
    ] = None,
    codec: Annotated[
        str,
        typer.Option(help="How states are stored: `raw`, `lossless`; `float16`, `quantised` round them in the loop."),
    ] = "raw",
    arithmetic: Annotated[
        str,
        typer.Option(
            help="`native`, or `portable`: the same bits on any machine; slower, and not every operation has a portable form."
        ),
    ] = "native",
    set_: Annotated[list[str] | None, typer.Option("--set", help=common.SET_HELP)] = None,
    data: Annotated[Path | None, typer.Option(help=common.DATA_HELP)] = None,
) -> None:
    """Fix a run before it begins: task, data, length, interval, environment. All its randomness will follow from the claim.

    **Examples**

    `pol register examples/digits.py:task -o claim.json`

    `pol prove examples/digits.py:task -o run.pol --registration claim.json`
    """
    from proof_of_learning.training import environment

    common.use_data(data)
    environment.pin_process(portable=portable, device=device, threads=threads)

    import proof_of_learning as pol
    from proof_of_learning.prover import describe

    loaded = pol.load_task(task, common.settings(set_))
    with common.progress_bar() as progress:
        made = pol.register(
            loaded, out, interval=interval, device=device, portable=portable,
            threads=threads, owner_key=owner_key, start_from=start_from, codec=codec, arithmetic=arithmetic,
            progress=progress,
        )  # fmt: skip
    claim = made.claim
    common.say(
        f"{out}: {claim.name}, {claim.steps:,} steps in segments of {claim.interval}, {claim.data.samples:,} samples"
    )
    common.say(f"claim {claim.digest()}")
    common.say(f"task {claim.task}")
    common.say(f"sources {describe(loaded).sources_digest() or 'not available in full'}")
    common.say("Publish or timestamp this digest before you train: a claim nobody has seen proves no date.")
