"""``pol dispute``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common, options
from proof_of_learning.errors import UsageError

if TYPE_CHECKING:
    from proof_of_learning.verifier.options import Choices

PROOFS = "The proofs, each with the task you hold it against: DIR=TASK (settings as DIR=TASK?NAME=VALUE&…)."


@common.command("interrupted; the proofs were only read, and there is no table")
def dispute(
    model: Annotated[
        Path, typer.Argument(help="The disputed model: a safetensors file, or a folder with some.", show_default=False)
    ],
    proofs: Annotated[list[str], typer.Argument(help=PROOFS, show_default=False)],
    fresh: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Starts from fresh keys that the model is held against, where a proof is registered (0: none).  [default: 199]",
        ),
    ] = None,
    random: options.Random = None,
    everything: options.Everything = False,
    accept_order: options.AcceptOrder = False,
    accept_uniform: options.AcceptUniform = False,
    accept_stopped: options.AcceptStopped = False,
    allow_calibrated: options.AllowCalibrated = False,
    require: options.Require = None,
    approve_fixed: options.ApproveFixed = None,
    initial_law: options.InitialLaw = None,
    chain: options.Chain = None,
    trust: options.Trust = None,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--trusted-key",
            help="A public key (PEM) whose owner you know; no proof has to be signed with it; may be repeated.",
        ),
    ] = None,
    trusted_tsa: options.TrustedTsa = None,
    revoked: options.Revoked = None,
    timeout: options.Timeout = 600.0,
    workers: options.Workers = 1,
    policy: options.Policy = None,
    sandbox: options.Sandbox = "auto",
    allow_read: options.AllowRead = None,
    data: options.DataFolder = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the table as JSON to this file (`-`: standard output).")
    ] = None,
    report: options.Report = None,
) -> None:
    """Who shows what about a model: several proofs side by side, each verified once, after one draw. A table, and no ranking.

    Exit status: 0 exactly one proof is valid and ends in the model, bit for bit, and no other one may; 1 none does (each is invalid
    or ends elsewhere); 2 usage or unreadable input; 3 undecided: several do, one is inconclusive, or something is only near. Near is
    never equal.

    **Examples**

    `pol dispute model.safetensors mine.pol=task.py:task theirs.pol=theirs.py:task --trusted-tsa roots.pem --report dispute.html`

    `pol dispute model.safetensors mine.pol=task.py:task --json -`
    """
    common.use_data(data)
    common.enough(workers)
    common.writable("--report", report)
    common.writable("--json", json)

    from proof_of_learning.disputes.dispute import dispute as compare
    from proof_of_learning.disputes.starts import FRESH
    from proof_of_learning.verifier.options import Options

    named = [common.proof_and_task(item) for item in proofs]
    if without := next((folder for folder, task in named if task is None), None):
        raise UsageError(f"{without}: expected DIR=TASK; a proof is held against a task that you name")
    choices: Choices = {
        "random": random, "everything": everything, "accept_order": accept_order, "accept_uniform": accept_uniform,
        "accept_stopped": accept_stopped, "allow_calibrated": allow_calibrated, "require": require,
        "approve_fixed": approve_fixed or (), "laws": initial_law or (), "trusted_keys": trusted_key or (),
        "trusted_tsa": trusted_tsa or (), "revoked": revoked or (), "timeout": timeout, "policy": policy, "sandbox": sandbox,
        "allow_read": allow_read or (), "workers": workers,
    }  # fmt: skip
    links = [common.proof_and_task(item) for item in chain or []]
    with common.progress_bar(quiet=json == "-") as progress:
        found = compare(
            model, named, Options.of(choices), chain=links, trust=trust or (),
            fresh=FRESH if fresh is None else fresh, progress=progress,
        )  # fmt: skip
    if json != "-":  # before any file: a disk that is full does not cost the answer
        from proof_of_learning.report.dispute import print_dispute

        print_dispute(found, common.results())
    common.write_json(found.to_json(), json)
    if report is not None:
        from proof_of_learning.report.dispute import write_dispute

        write_dispute(found, report)
        if json != "-":
            common.say(f"report: {report}")
    raise typer.Exit(found.exit_status)
