"""``pol policy``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common


@common.command()
def policy(
    check: Annotated[Path | None, typer.Option(help="Read this policy instead, and list the rules it sets.")] = None,
) -> None:
    """Print a commented policy for `pol verify --policy`: every rule there is, with values that suit most runs.

    **Examples**

    `pol policy > policy.toml`

    `pol policy --check policy.toml`
    """
    from proof_of_learning.verifier.policy import default_policy, load_policy

    if check is None:
        sys.stdout.write(default_policy())
        return
    rules = load_policy(check).rules()
    common.say(
        f"{check}: {len(rules)} {'rule' if len(rules) == 1 else 'rules'}{': ' if rules else ''}{', '.join(rules)}"
    )
