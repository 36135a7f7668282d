"""``pol prove``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proof_of_learning.cli import common, options
from proof_of_learning.errors import RecordingError, UsageError

if TYPE_CHECKING:
    from proof_of_learning.recording.stamping import Stamping


_GOES_ON = (
    "interrupted; what is recorded is intact, and the same command goes on from the last checkpoint (from the start, where there is "
    "none yet)"
)


@common.command(_GOES_ON)
def prove(
    task: Annotated[
        str, typer.Argument(help="The task: `path.py:function`, `module:function`, or a script (`path.py`).")
    ],
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            help="Directory for the proof, or an address (`s3://…`); an interrupted run in it is resumed.",
        ),
    ],
    interval: options.Interval = None,
    device: options.Device = "cpu",
    portable: options.Portable = False,
    threads: options.Threads = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Replaces the task's seed; of a script, all randomness follows from it.")
    ] = None,
    registration: Annotated[
        Path | None,
        typer.Option(
            help="The claim (`pol register`) from whose hash all randomness follows; its interval, codec, arithmetic and sealed "
            "program are the run's."
        ),
    ] = None,
    start_from: options.StartFrom = None,
    evaluations: Annotated[int, typer.Option(min=0, help="Evaluate the model at so many checkpoints on the way.")] = 0,
    codec: options.Codec = None,
    keep_every: Annotated[
        int | None,
        typer.Option("--keep-every", min=1, help="Keep only every so many-th state; of the others, their digests."),
    ] = None,
    asynchronous: Annotated[
        bool | None,
        typer.Option("--async/--sync", help="Encode and write beside the training loop.  [default: on an accelerator]"),
    ] = None,
    no_rehearsal: Annotated[
        bool,
        typer.Option(
            "--no-rehearsal",
            help="Do not replay short stretches beside the training to see whether a proof can be valid.",
        ),
    ] = False,
    arithmetic: options.Arithmetic = None,
    salt: options.Salt = None,
    seal_program: options.SealProgram = None,
    stamp_every: Annotated[
        int | None,
        typer.Option(
            "--stamp-every", help="Have the log's head stamped every so many segments, in the background (--tsa)."
        ),
    ] = None,
    tsa: Annotated[
        list[str] | None,
        typer.Option("--tsa", help="Address of a timestamp authority (RFC 3161); of several, each in its turn."),
    ] = None,
    trusted_tsa: options.TrustedTsa = None,
    set_: options.Settings = None,
    data: options.DataFolder = None,
    save_model: Annotated[
        Path | None, typer.Option("--save-model", help="Also write the trained model to this safetensors file.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write a summary as JSON to this file (`-`: standard output).")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            help="Of a script: run it in so many processes that train together, as torchrun does on one machine."
        ),
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Of a script: its own arguments, behind `--`.")] = None,
) -> None:
    """Train a task and record a proof; go on where a killed run stopped (of a script, where it is under a key).

    Exit status: 0 the proof is finished; 2 it is not, because of a full disk, say: training was stopped, or of a script with
    `pol.Run(strict=False)` went on without it.

    **Examples**

    `pol prove examples/digits.py:task -o run.pol`

    `pol prove examples/fashion_mnist.py:task -o run.pol -k 50 --data DATA --set epochs=3`

    `pol prove train.py -o run.pol --seed 7 -- --lr 0.1`

    `pol prove train.py -o run.pol --ranks 2 -- --lr 0.1`

    `pol prove examples/digits.py:task -o run.pol --seal-program --arithmetic portable`

    `pol prove examples/digits.py:task -o run.pol --stamp-every 100 --tsa https://freetsa.org/tsr`
    """
    common.use_data(data)
    common.writable("--save-model", save_model)
    common.writable("--json", json)
    keyed = seed is not None or registration is not None
    if ranks is not None:
        return _launch(ranks, task, out, keyed=keyed)
    common.pinned(portable=portable, device=device, threads=threads)

    import proof_of_learning as pol
    from proof_of_learning.task import is_script

    stamping = _stamping(stamp_every, tsa, trusted_tsa)
    if is_script(task):
        given = {
            "--start-from": start_from, "--evaluations": evaluations or None,
            "--codec": codec, "--keep-every": keep_every, "--async": asynchronous, "--set": set_ or None,
            "--save-model": save_model, "--arithmetic": arithmetic, "--salt": salt, "--seal-program": seal_program,
        }  # fmt: skip
        if unused := [name for name, value in given.items() if value is not None]:
            raise UsageError(common.not_for_scripts(unused))
        return _script(
            task,
            out,
            arguments or [],
            interval,
            json,
            rehearse=False if no_rehearsal else None,
            seed=seed,
            registration=registration,
            stamping=stamping,
        )
    if arguments:
        raise UsageError(f"a task takes no arguments ({arguments[0]!r}); hand settings over with --set NAME=VALUE")
    with common.progress_bar() as progress:
        recording = pol.prove(
            pol.load_task(task, common.settings(set_)), out,
            interval=interval, device=device, portable=portable, threads=threads, seed=seed,
            registration=registration, start_from=start_from, evaluations=evaluations, codec=codec,
            keep_every=keep_every, asynchronous=asynchronous, rehearse=False if no_rehearsal else None, arithmetic=arithmetic,
            salt=salt, seal_program=seal_program, stamping=stamping, progress=progress,
        )  # fmt: skip
    if save_model is not None:
        _save(recording.model, save_model)
    summary = {
        "root": recording.root, "path": str(recording.path), "steps": recording.steps, "interval": recording.interval,
        "segments": -(-recording.steps // recording.interval), "evaluation": recording.evaluation,
        "complete_before": recording.complete_before, "stamped": recording.stamped,
    }  # fmt: skip
    _told(out, summary, json)


def _stamping(every: int | None, tsa: list[str] | None, roots: list[Path] | None) -> Stamping | None:
    """None where nothing is to be stamped. Raises UsageError for one option without the other."""
    from proof_of_learning.recording.stamping import Stamping

    if every is not None:
        return Stamping(every, tsa or (), roots or ())
    if tsa:
        raise UsageError(
            "the log's head is to be stamped while training: say every how many segments (--stamp-every N), too"
        )
    return None


def _told(out: str, summary: dict[str, Any], json: str | None) -> None:
    if json is not None:
        import msgspec

        common.write_json(msgspec.json.format(msgspec.json.encode(summary), indent=2), json)
    if json != "-":
        achieved = "".join(f", {name} {value:.4g}" for name, value in (summary["evaluation"] or {}).items())
        before = "complete already, nothing was trained; " if summary.get("complete_before") else ""
        common.say(
            f"{out}: {before}{summary['steps']:,} steps in {summary['segments']:,} segments of {summary['interval']}{achieved}"
        )
        common.say(f"root {summary['root']}")
        if (stamped := summary["stamped"]) is not None:
            for line in stamped.lines():
                common.say(line)


def _script(
    path: str,
    out: str,
    arguments: list[str],
    interval: int | None,
    json: str | None,
    *,
    rehearse: bool | None,
    seed: int | None,
    registration: Path | None,
    stamping: Stamping | None,
) -> None:
    from proof_of_learning.run.command import prove_script
    from proof_of_learning.run.launching import LAUNCHED
    from proof_of_learning.run.ranks import place

    keyed = seed is not None or registration is not None
    if place().size > 1 and keyed:
        if place().rank:  # process 0 says it
            raise typer.Exit(UsageError.exit_status)
        raise UsageError(_NO_KEY)
    try:
        recorded = prove_script(
            path,
            out,
            arguments,
            interval=interval,
            rehearse=rehearse,
            seed=seed,
            registration=registration,
            stamping=stamping,
        )
    except RecordingError:
        if place().rank:  # process 0 says how it ended
            raise typer.Exit(RecordingError.exit_status) from None
        raise
    except KeyboardInterrupt:
        if place().size > 1:
            if place().rank or LAUNCHED in os.environ:  # process 0 says it, or who started all of them
                raise typer.Exit(common.INTERRUPTED) from None
            raise KeyboardInterrupt(_SEVERAL_INTERRUPTED.format(out=out)) from None
        raise KeyboardInterrupt(
            _GOES_ON
            if keyed
            else "interrupted; a script's recording goes on only under a key (--seed, --registration): "
            f"remove {out}, and run the command again"
        ) from None
    summary = {
        "root": recorded.root, "path": str(recorded.path), "steps": recorded.steps, "interval": recorded.interval,
        "segments": -(-recorded.steps // recorded.interval), "evaluation": None,
        "stamped": recorded.stamped,
    }  # fmt: skip
    if not place().rank:
        _told(out, summary, json)


_NO_KEY = (
    "the randomness of several processes is recorded, and follows from no key yet: leave --seed and --registration out"
)
_SEVERAL_INTERRUPTED = (
    "interrupted; a recording of several processes cannot be gone on with: remove {out}, and run the command again"
)


def _launch(ranks: int, task: str, out: str, *, keyed: bool) -> None:
    """This very command, in several processes."""
    from proof_of_learning.run.launching import launch
    from proof_of_learning.run.ranks import place
    from proof_of_learning.task import is_script

    if not is_script(task):
        raise UsageError(
            "--ranks is for scripts, which make a process group of their own; a task trains in one process"
        )
    if (own := place()).size > 1:
        if own.rank:
            raise typer.Exit(UsageError.exit_status)
        raise UsageError(
            f"--ranks {ranks}: torchrun started this as process {own.rank} of {own.size} already; leave --ranks out there"
        )
    if keyed:
        raise UsageError(_NO_KEY)
    try:
        status, killed = launch(ranks, [sys.executable, "-m", "proof_of_learning", *_without("--ranks", sys.argv[1:])])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_SEVERAL_INTERRUPTED.format(out=out)) from None
    if killed:
        raise RecordingError(killed)
    if status:
        raise typer.Exit(status)


def _without(option: str, arguments: list[str]) -> list[str]:
    """The command's arguments without an option and its value."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [a for a in arguments[:end] if not a.startswith(f"{option}=")]
    while option in kept:
        del kept[kept.index(option) : kept.index(option) + 2]
    return kept + arguments[end:]


def _save(model: object, path: Path) -> None:
    from safetensors.torch import save_file
    from torch import Tensor

    state: dict[str, object] = model.state_dict()  # type: ignore[attr-defined]
    # Clones: safetensors refuses tensors that share memory, as tied weights do. Extra state need not be a tensor.
    save_file({name: t.detach().cpu().clone() for name, t in state.items() if isinstance(t, Tensor)}, path)
