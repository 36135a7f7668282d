"""The command ``pol``: one file per command, registered here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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

EXAMPLE = 70  # columns of an example; help is written for 80

app = typer.Typer(
    name="pol",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut names, and leave a few columns for what an option means
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


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo.demo,
    "register": register.register,
    "manifest": opening.manifest,
    "challenge": opening.challenge,
    "answer": opening.answer,
    "open": opening.open_,
    "keygen": sign.keygen,
    "sign": sign.sign,
    "recover": sign.recover,
    "timestamp": sign.timestamp,
    "doctor": doctor.doctor,
    "prove": prove.prove,
    "verify": verify.verify,
    "plan": plan.plan,
    "check": check.check,
    "policy": policy.policy,
    "inspect": inspect.inspect,
    "diff": diff.diff,
    "dispute": dispute.dispute,
    "environment": environment.environment,
    "export": export.export,
    "export-data": export_data.export_data,
    "selftest": selftest.selftest,
    "thin": thin.thin,
    "regenerate": thin.regenerate,
    "pack": pack.pack,
    "unpack": pack.unpack,
    "calibrate": calibrate.calibrate,
    "attack": attack.attack,
}


class _Command(TyperCommand):
    """Says where a script's own arguments stand, where one was taken for an option of ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            told: Any = error
            scripts = any(parameter.name == "arguments" for parameter in self.params)
            # By its name: some releases of typer bring a click of their own.
            if type(error).__name__ == "NoSuchOption" and scripts and "--" not in given:
                told.message += "; a script's own arguments stand behind `--`"
            raise


def _plain(text: str) -> str:
    """A docstring as the terminal shows it: an example is a line to copy, continued where it is long."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return "\n\n".join(
        "\b\n" + " \\\n    ".join(textwrap.wrap(part[1:-1], EXAMPLE, break_long_words=False, break_on_hyphens=False))
        if part.startswith("`pol ") and part.endswith("`")
        else part.replace("**Examples**", "Examples:").replace("**Example**", "Example:")
        for part in paragraphs
    )


for _name, _command in COMMANDS.items():
    _help = _plain(_command.__doc__ or "")
    app.command(_name, help=_help, short_help=_help.partition("\n\n")[0], cls=_Command)(_command)


def run() -> None:
    """Entry point, by either of its names."""
    app(prog_name="pol")
