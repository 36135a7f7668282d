"""``pol thin`` and ``pol regenerate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from proof_of_learning.cli import common, options

Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="A new directory for it.  [default: the proof is replaced]")
]
Json = Annotated[
    str | None, typer.Option("--json", help="Write a summary as JSON to this file (`-`: standard output).")
]


@common.command("interrupted; the proof is as it was")
def thin(
    proof: Annotated[Path, typer.Argument(help="The proof's directory.")],
    keep_every: Annotated[int, typer.Option("--keep-every", help="Of so many states, one is kept.")],
    out: Out = None,
    json: Json = None,
) -> None:
    """Drop the bytes of most states; digests, root and seals stay.

    A challenged state comes back by training from the nearest kept one: `pol regenerate` does it at the prover's cost, and without
    it `pol verify` does it at the verifier's, which `pol inspect` shows beside the size.

    **Example**

    `pol thin run.pol --keep-every 100`
    """
    import proof_of_learning as pol

    with common.progress_bar(quiet=json == "-") as progress:
        _tell(pol.thin(proof, keep_every, out, progress=progress), json)


@common.command("interrupted; the proof is as it was")
def regenerate(
    proof: Annotated[Path, typer.Argument(help="The thinned proof's directory.")],
    task: Annotated[str, typer.Option("--task", help="The task it proves: `path.py:function` or `module:function`.")],
    segments: Annotated[str, typer.Option("--segments", help="Which ones: `7`, `0-3,12`, or `all`.")],
    out: Out = None,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="The proof whose final weights training started from.")
    ] = None,
    set_: options.Settings = None,
    data: options.DataFolder = None,
    json: Json = None,
) -> None:
    """Bring the states of challenged segments back into a thinned proof, by training from the nearest kept ones.

    **Example**

    `pol regenerate run.pol --task examples/digits.py:task --segments 17,42-44`
    """
    common.use_data(data)

    import proof_of_learning as pol
    from proof_of_learning.proof.reader import Proof

    wanted = _ranges(segments, len(Proof.open(proof).segments))
    with common.progress_bar(quiet=json == "-") as progress:
        made = pol.regenerate(
            proof, task, wanted, out, settings=common.settings(set_), start_from=start_from, progress=progress
        )
    _tell(made, json)


def _ranges(text: str, count: int) -> list[int]:
    from proof_of_learning.errors import UsageError

    found: list[int] = []
    try:
        for part in [f"0-{count - 1}"] if text == "all" else text.split(","):
            first, dash, last = part.strip().partition("-")
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high < count:
                raise UsageError(f"--segments {part.strip()}: the proof has the segments 0 to {count - 1}")
            found += range(low, high + 1)
    except ValueError:
        raise UsageError(f"--segments {text!r} is not a list such as `7`, `0-3,12` or `all`") from None
    return found


def _tell(made: Any, json: str | None) -> None:
    import msgspec

    from proof_of_learning.report.text import size

    summary = {
        "root": made.root, "path": str(made.path), "states_held": made.held, "states": made.states,
        "bytes_before": made.bytes_before, "bytes_after": made.bytes_after, "steps_replayed": made.steps_replayed,
    }  # fmt: skip
    common.write_json(msgspec.json.format(msgspec.json.encode(summary), indent=2), json)
    if json != "-":
        cost = f", {made.steps_replayed:,} steps replayed" if made.steps_replayed else ""
        common.say(
            f"{made.path}: {made.held:,} of {made.states:,} states held, "
            f"{size(made.bytes_before)} of states before, {size(made.bytes_after)} now{cost}"
        )
        common.say(f"root {made.root}")
