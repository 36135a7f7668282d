"""``pol verify``."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common, options
from proof_of_learning.errors import UsageError

if TYPE_CHECKING:
    from proof_of_learning.replay.early import Early
    from proof_of_learning.replay.pool import MakePool
    from proof_of_learning.verifier.options import Choices


def _fetched(path: Path | None) -> None:
    """Refuse an address for a round's file, and a file that is not there: nothing is fetched here."""
    if path is not None and str(path).startswith(("http:/", "https:/")):
        raise UsageError("--beacon takes a file, and nothing is fetched here: `curl -o round.json ADDRESS` before")
    if path is not None and not path.exists():
        from proof_of_learning.attestation.beacon import QUICKNET

        raise UsageError(
            f"--beacon {path}: there is no such file; fetch the round once, from whom you like (`curl -o {path.name} "
            f"https://api.drand.sh/{QUICKNET.hash}/public/ROUND`)"
        )


@common.command("interrupted; the proof was only read, and there is no verdict")
def verify(
    proof: Annotated[str, typer.Argument(help="The proof's directory, or its address (`s3://…`).")],
    task: Annotated[
        str | None,
        typer.Option(help="The task you hold the proof against; without it nothing is run, and no proof is valid."),
    ] = None,
    top_q: Annotated[
        int, typer.Option("--top-q", min=0, help="Largest segments in each tenth of the run to replay.")
    ] = 1,
    random: options.Random = None,
    everything: options.Everything = False,
    nonce: Annotated[
        str | None, typer.Option(help="Challenge in hex, to repeat a verdict; with it no proof is valid by default.")
    ] = None,
    beacon: Annotated[
        Path | None,
        typer.Option(
            help="Draw from public randomness: the JSON of a drand round (quicknet), the first after the seal was stamped."
        ),
    ] = None,
    beacon_chain: Annotated[
        Path | None, typer.Option("--beacon-chain", help="The network of that round, if it is another: its /info.")
    ] = None,
    accept_nonce: Annotated[
        bool, typer.Option("--accept-nonce", help="A proof may be valid although the nonce was handed in.")
    ] = False,
    accept_order: options.AcceptOrder = False,
    accept_uniform: options.AcceptUniform = False,
    accept_stopped: options.AcceptStopped = False,
    allow_calibrated: options.AllowCalibrated = False,
    reproduce: Annotated[
        bool,
        typer.Option(
            "--reproduce/--own-environment", help="Replay in the recorded numeric environment, or in this one."
        ),
    ] = True,
    require: options.Require = None,
    registration: Annotated[
        Path | None, typer.Option(help="The claim under which the proof must have been made.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A safetensors file, or a folder with some (as Hugging Face has them), that the proof must end in."
        ),
    ] = None,
    approve_fixed: options.ApproveFixed = None,
    initial_law: options.InitialLaw = None,
    chain: options.Chain = None,
    trust: options.Trust = None,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option("--trusted-key", help="A public key (PEM) that must have signed the proof; may be repeated."),
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many of the trusted keys must have signed.")] = 1,
    trusted_tsa: options.TrustedTsa = None,
    revoked: options.Revoked = None,
    challenge: Annotated[
        Path | None,
        typer.Option(help="Of an opening: your own copy of the second challenge, by which the nonce counts as drawn."),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option("--data-root", help="Of an opening: the root of the data that you expect it to be of.")
    ] = None,
    docket: Annotated[
        Path | None, typer.Option(help="Of an opening: the file that keeps what you asked (`pol challenge --docket`).")
    ] = None,
    accept_budget: Annotated[
        bool,
        typer.Option(
            "--accept-budget",
            help="Of an opening: it may be valid although the owner's budget leaves weaker guarantees.",
        ),
    ] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Run all checks even after a failure.")] = False,
    timeout: options.Timeout = 600.0,
    workers: options.Workers = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Replay on the Ray cluster at this address (`local`: start one here), with as many workers."),
    ] = None,
    double_check: Annotated[
        float | None,
        typer.Option(
            "--double-check",
            help="The workers of --ray are not yours: replay this share of what they did here again (0.2 is a fifth), and all that "
            "does not agree with the record; who lied is named.",
        ),
    ] = None,
    policy: options.Policy = None,
    sandbox: options.Sandbox = "auto",
    allow_read: options.AllowRead = None,
    sealed: Annotated[
        bool,
        typer.Option(
            "--sealed",
            help="Hold the proof against the program sealed in it, which you have to read; with --data, the folder of its samples.",
        ),
    ] = False,
    set_: options.Settings = None,
    data: options.DataFolder = None,
    json: Annotated[
        str | None, typer.Option("--json", help="Write the verdict as JSON to this file (`-`: standard output).")
    ] = None,
    report: options.Report = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Of a script, behind `--`: other arguments than the recorded ones (paths, say)."),
    ] = None,
) -> None:
    """Verify a proof, or an opening of one (`pol open`), against the task that you name.

    Exit status: 0 valid, 1 invalid, 2 usage or unreadable input, 3 inconclusive.

    **Examples**

    `pol verify run.pol --task examples/digits.py:task --report report.html`

    `pol verify run.pol --task examples/digits.py:task --all --json -`

    `pol verify run.pol --task task.py:task --trusted-key key.pub.pem --trusted-tsa roots.pem --revoked revoked.toml`

    `pol verify run.pol --task task.py:task --trusted-tsa roots.pem --beacon round.json`

    `pol verify opening --task task.py:task --challenge second.json --data-root sha256:… --docket docket.json`

    `pol verify run.pol --sealed --data digits-data`
    """
    common.use_data(data)
    _fetched(beacon)
    if ray is None:
        common.enough(workers)
    common.writable("--report", report)
    common.writable("--json", json)

    from proof_of_learning.replay.early import ahead
    from proof_of_learning.task import sealed_program

    if sealed and (task is not None or set_ or arguments):
        raise UsageError("--sealed takes the program in the proof for the task; name the one or the other")
    folder = os.environ.get(common.DATA_VARIABLE)
    if sealed and folder is None:
        raise UsageError("--sealed needs the samples: name the folder that `pol export-data` wrote (--data)")
    reference = None if task is None else common.reference(task, common.settings(set_), arguments)
    if sealed:
        reference = sealed_program(str(folder))
    named = reference if reproduce and ray is None and double_check is None else None
    with ahead(proof, named, sandbox, allow_read or (), timeout, workers) as early:
        import proof_of_learning as pol
        from proof_of_learning.disputes import is_opening
        from proof_of_learning.verifier.options import Options

        choices: Choices = {
            "top_q": top_q, "random": random, "everything": everything, "nonce": nonce, "beacon": beacon, "beacon_chain": beacon_chain,
            "accept_nonce": accept_nonce,
            "accept_order": accept_order, "accept_uniform": accept_uniform, "accept_stopped": accept_stopped,
            "allow_calibrated": allow_calibrated, "reproduce": reproduce, "require": require, "registration": registration,
            "model": model, "approve_fixed": approve_fixed or (), "laws": initial_law or (), "trusted_keys": trusted_key or (),
            "threshold": threshold, "trusted_tsa": trusted_tsa or (), "revoked": revoked or (),
            "keep_going": keep_going, "timeout": timeout, "policy": policy,
            "sandbox": sandbox, "allow_read": allow_read or (), "workers": workers, "double_check": double_check,
        }  # fmt: skip
        links, roots = [common.proof_and_task(item) for item in chain or []], trust or ()
        with _workers(ray, workers, early) as pool, common.progress_bar(quiet=json == "-") as progress:
            if is_opening(proof):
                from proof_of_learning.disputes.verifying import Terms, verify_opening

                drawn = (random, nonce, beacon) != (None, None, None) or everything or top_q != 1
                if reference is None or sealed or drawn:
                    raise UsageError(
                        "an opening is verified against a task (--task), not sealed, and what was drawn stands in its challenge: "
                        "--random, --all, --top-q, --nonce and --beacon have no meaning"
                    )
                terms = Terms(challenge, data_root, docket, accept_budget)
                verdict = verify_opening(
                    proof, reference, Options.of(choices), terms, chain=links, trust=roots, progress=progress, pool=pool
                )
            elif challenge is not None or data_root is not None or docket is not None:
                raise UsageError(
                    f"--challenge, --data-root and --docket are for openings (`pol open`), and {proof} is none"
                )
            else:
                verdict = pol.verify(
                    proof, reference, Options.of(choices), chain=links, trust=roots, pool=pool, progress=progress
                )
    if json != "-":  # before any file: a disk that is full does not cost the verdict
        from proof_of_learning.report.terminal import print_verdict

        print_verdict(verdict, common.results())
    common.write_json(verdict.to_json(), json)
    if report is not None:
        from proof_of_learning.report.html import write_html

        write_html(verdict, report)
        if json != "-":
            common.say(f"report: {report}")
    raise typer.Exit(verdict.exit_status)


def _workers(address: str | None, workers: int, early: Early | None) -> AbstractContextManager[MakePool | None]:
    """Where replay workers come from, if not from this machine; of those on this one, the first may have been started ``early``."""
    if address is None:
        from proof_of_learning.replay.pool import LocalPool

        return nullcontext(None if early is None else partial(LocalPool, workers=workers, early=early))
    from proof_of_learning.distributed.ray import cluster

    return cluster(address, workers)
