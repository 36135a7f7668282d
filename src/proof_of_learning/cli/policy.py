"""``pol policy``."""

from __future__ import annotations

from proof_of_learning.cli import common


@common.command()
def policy() -> None:
    """Print a commented policy for `pol verify --policy`: every rule there is, with values that suit most runs.

    **Example**

    `pol policy > policy.toml`
    """
    import sys

    from proof_of_learning.verifier.policy import default_policy

    sys.stdout.write(default_policy())
