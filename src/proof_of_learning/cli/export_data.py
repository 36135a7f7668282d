"""``pol export-data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common, options


@common.command("interrupted; the folder is not complete, remove it")
def export_data(
    task: Annotated[str, typer.Argument(help="The task: `path.py:function` or `module:function`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new folder to write the arrays into.")],
    arithmetic: Annotated[
        str, typer.Option(help="`native` or `portable`: that of the proof, where the task draws its samples.")
    ] = "native",
    set_: options.Settings = None,
    data: options.DataFolder = None,
) -> None:
    """Write a task's samples as plain arrays, which have the task's data root and are read without its code.

    **Example**

    `pol export-data examples/digits.py:task -o digits-data`
    """
    common.use_data(data)
    from proof_of_learning.data.commit import commit
    from proof_of_learning.errors import DataError, UsageError
    from proof_of_learning.numeric.portable import ARITHMETICS, using
    from proof_of_learning.program.folder import export, samples
    from proof_of_learning.task import load_task, task_code

    if arithmetic not in ARITHMETICS:
        raise UsageError(f"there is no arithmetic {arithmetic[:40]!r}; choose one of {', '.join(ARITHMETICS)}")
    loaded = load_task(task, common.settings(set_))
    with common.progress_bar() as progress:
        with using(arithmetic), task_code("loading the data"):
            own = loaded.data()
        with using(arithmetic):
            count = export(own, out, lambda done, total: progress("writing the samples", done, total))
        with using(arithmetic), task_code("reading the data"):
            wanted = commit(own)
    found = commit(samples(out))
    if found.root != wanted.root:
        raise DataError(
            f"the arrays in {out} are not the samples of the task (their roots differ); its data are not deterministic"
        )
    common.say(f"{out}: {count:,} samples, root {found.root}")
