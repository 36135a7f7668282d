"""The options that `pol prove` and `pol register` share: what decides a run's numbers, and what a claim therefore fixes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Interval = Annotated[
    int | None,
    typer.Option("-k", "--interval", help="Steps between checkpoints.  [default: about 1,000 segments a run]"),
]
Device = Annotated[str, typer.Option(help="`cpu` or `cuda`; deterministic switches are set and recorded.")]
Portable = Annotated[
    bool,
    typer.Option("--portable", help="Pin one thread and AVX2 code paths, which more machines of the same make share."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Number of threads.  [default: PyTorch's own, or 1 if portable]")
]
StartFrom = Annotated[
    Path | None, typer.Option("--start-from", help="Another proof, whose final weights training starts from.")
]
Codec = Annotated[
    str | None,
    typer.Option(
        help="How states are stored: `raw`, `lossless`; `float16`, `quantised` round them in the loop.  [default: raw]"
    ),
]
Arithmetic = Annotated[
    str | None,
    typer.Option(
        help="`native`, or `portable`: the same bits on any machine; slower, and not every operation has a portable form.  "
        "[default: native]"
    ),
]
Salt = Annotated[
    Path | None,
    typer.Option(
        "--salt", help="Secret (`pol keygen --salt`) that salts the data's digest, for data that stay private."
    ),
]
SealProgram = Annotated[
    bool | None,
    typer.Option(
        "--seal-program",
        help="Record the step as data, so that it can be replayed without the task's code; not every task can be sealed.",
    ),
]
