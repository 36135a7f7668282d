"""``pol doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from proof_of_learning.cli import common, options
from proof_of_learning.errors import UsageError


@common.command("interrupted; nothing was written")
def doctor(
    task: Annotated[
        str, typer.Argument(help="The task: `path.py:function`, `module:function`, or a script (`path.py`).")
    ],
    interval: Annotated[
        int | None,
        typer.Option("-k", "--interval", min=1, help="Steps between checkpoints, as for `pol prove`."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Steps to take.  [default: into the second epoch, at most 200, at most 20 seconds]"),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`, as for `pol prove`.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads, as for `pol prove`.")] = None,
    arithmetic: Annotated[
        str,
        typer.Option(
            help="`native`, or `portable`: the same bits on any machine; slower, and not every operation has a portable form."
        ),
    ] = "native",
    set_: options.Settings = None,
    data: options.DataFolder = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write what was found as JSON to this file (`-`: standard output).")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Of a script: its own arguments, behind `--`.")] = None,
) -> None:
    """Train a task for a while, replay it in two fresh processes, and list everything that a replay would trip over. Records nothing;
    what a script writes, it writes. A script of several processes is looked at as one process; `pol prove --ranks N` replays
    stretches of all of them while it records.

    Exit status: 0 nothing was found, 1 something was, 2 the task cannot be used.

    **Examples**

    `pol doctor examples/digits.py:task`

    `pol doctor examples/fashion_mnist.py:task --data DATA --set epochs=3 -k 10 --json findings.json`

    `pol doctor train.py -- --lr 0.1`
    """
    from proof_of_learning.task import is_script

    if is_script(task):
        given = {"--set": set_ or None, "--arithmetic": None if arithmetic == "native" else arithmetic}
        if unused := [name for name, value in given.items() if value is not None]:
            raise UsageError(common.not_for_scripts(unused))
    elif arguments:
        raise UsageError(f"a task takes no arguments ({arguments[0]!r}); hand settings over with --set NAME=VALUE")
    common.use_data(data)
    common.writable("--json", json)
    common.pinned(device=device, threads=threads)

    from proof_of_learning.doctor import diagnose
    from proof_of_learning.task import TaskReference

    with common.progress_bar(quiet=json == "-") as progress:
        found = diagnose(
            TaskReference(task, common.settings(set_), tuple(arguments or ())), interval=interval, steps=steps, device=device,
            threads=threads,
            arithmetic=arithmetic, progress=progress,
        )  # fmt: skip
    common.write_json(found.to_json(), json)
    if json != "-":
        for number, finding in enumerate(found.findings, 1):
            common.say(f"{number}. {finding.what}" + (f" ({finding.where})" if finding.where else ""))
            for name in ("cause", "cure"):
                if text := getattr(finding, name):
                    common.say(f"- {name}: {text}")
        for text in found.skipped:
            common.say(f"not looked at: {text}")
        for text in found.notices:
            common.say(f"notice: {text}")
        count = len(found.findings)
        told = "nothing was found" if not count else "1 finding" if count == 1 else f"{count} findings"
        common.say(f"{task}: {told} in {found.steps:,} steps and {found.replays:,} replays")
    if found.findings:
        raise typer.Exit(1)
    if found.skipped:
        raise typer.Exit(2)
