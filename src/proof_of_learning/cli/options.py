"""Options that several commands have, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the task, NAME=VALUE, handed to its function; may be repeated."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        help=f"Folder with the task's data sets (the environment variable {common.DATA_VARIABLE} does the same)."
    ),
]

# What decides a run's numbers, and what a claim therefore fixes.
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
        help="How states are stored: `raw`, `lossless`; `float16`, `quantised`, `compact` round them in the loop, "
        "so training goes on from rounded states. Not of a script.  [default: raw]"
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

# What a verification is told.
Random = Annotated[
    int | None,
    typer.Option(min=0, help="Random segments to replay.  [default: enough for all guarantees, 10 % / 1 %]"),
]
Everything = Annotated[bool, typer.Option("--all", help="Replay every segment.")]
AcceptOrder = Annotated[
    bool,
    typer.Option(
        "--accept-order",
        help="A recorded order need not be a permutation of the data in every epoch (weighted sampling, say).",
    ),
]
AcceptUniform = Annotated[
    bool,
    typer.Option(
        "--accept-uniform",
        help="A proof may be valid with the guarantee of uniform draws alone (thinned; a task that shows no outputs).",
    ),
]
AcceptStopped = Annotated[
    bool, typer.Option("--accept-stopped", help="The run may have stopped before the task's number of steps.")
]
AllowCalibrated = Annotated[
    bool,
    typer.Option("--allow-calibrated", help="Accept replays within calibrated noise where bits cannot be reproduced."),
]
Require = Annotated[str | None, typer.Option(help="`exact`: nothing but bit-exact replay is enough.")]
ApproveFixed = Annotated[
    list[str] | None,
    typer.Option(
        "--approve-fixed", help="Pattern of tensors that may be the same under every key (tables); may be repeated."
    ),
]
InitialLaw = Annotated[
    list[str] | None,
    typer.Option(
        "--initial-law",
        help="PATTERN=LAW of recorded initial weights that fit no usual law: `first.*=normal:0.03`; may be repeated.",
    ),
]
Chain = Annotated[
    list[str] | None,
    typer.Option(
        "--chain",
        help="A proof this one starts from, DIR=TASK (settings as DIR=TASK?NAME=VALUE&…); repeat it for a longer chain.",
    ),
]
Trust = Annotated[
    list[str] | None, typer.Option("--trust", help="Root of a proof that is trusted as a start; may be repeated.")
]
TrustedTsa = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-tsa", help="Certificates (PEM) of a timestamp authority that you believe; may be repeated."
    ),
]
Revoked = Annotated[
    list[Path] | None,
    typer.Option(
        "--revoked",
        help="Keys that count only for what was stamped before (TOML: [[revoked]] with `key` and `since`); may be repeated.",
    ),
]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds without a sign of life after which a task is given up.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes that replay at once; the verdict is the same with any number.")
]
Policy = Annotated[
    Path | None, typer.Option(help="Rules that the proof must satisfy, in a TOML file; `pol policy` prints one.")
]
Sandbox = Annotated[
    str,
    typer.Option(help="Confine the task's code: `auto` (where bubblewrap works), `require` (nowhere else) or `off`."),
]
AllowRead = Annotated[
    list[Path] | None,
    typer.Option("--allow-read", help="A further file or folder that the confined task may read; may be repeated."),
]
Report = Annotated[Path | None, typer.Option(help="Write the report to this HTML file.")]
