"""The command ``pol``: one file per command, registered here."""

from __future__ import annotations

from typing import Annotated

import typer

from proof_of_learning._version import __version__
from proof_of_learning.cli import (
    attack,
    calibrate,
    check,
    demo,
    diff,
    dispute,
    doctor,
    environment,
    export,
    export_data,
    inspect,
    opening,
    pack,
    plan,
    policy,
    prove,
    register,
    selftest,
    sign,
    thin,
    verify,
)

app = typer.Typer(
    name="pol",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"proof-of-learning {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Prove that a PyTorch model was trained the way its owner says, and check it for a few percent of the cost.

    Exit status of `verify` and `check`: 0 valid, 1 invalid, 2 usage or unreadable input, 3 inconclusive.
    """


app.command("demo")(demo.demo)
app.command("register")(register.register)
app.command("manifest")(opening.manifest)
app.command("challenge")(opening.challenge)
app.command("answer")(opening.answer)
app.command("open")(opening.open_)
app.command("keygen")(sign.keygen)
app.command("sign")(sign.sign)
app.command("recover")(sign.recover)
app.command("timestamp")(sign.timestamp)
app.command("doctor")(doctor.doctor)
app.command("prove")(prove.prove)
app.command("verify")(verify.verify)
app.command("plan")(plan.plan)
app.command("check")(check.check)
app.command("policy")(policy.policy)
app.command("inspect")(inspect.inspect)
app.command("diff")(diff.diff)
app.command("dispute")(dispute.dispute)
app.command("environment")(environment.environment)
app.command("export")(export.export)
app.command("export-data")(export_data.export_data)
app.command("selftest")(selftest.selftest)
app.command("thin")(thin.thin)
app.command("regenerate")(thin.regenerate)
app.command("pack")(pack.pack)
app.command("unpack")(pack.unpack)
app.command("calibrate")(calibrate.calibrate)
app.command("attack")(attack.attack)


def run() -> None:
    """Entry point, by either of its names."""
    app(prog_name="pol")
