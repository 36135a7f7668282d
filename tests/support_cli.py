"""What the tests of commands share: one is called in this process, and an error is one line."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from proof_of_learning.cli.main import app


def pol(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line(result: Result, status: int) -> str:
    """The one line that an error consists of."""
    assert result.exit_code == status, (result.exit_code, result.output)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("pol: "), result.stderr
    assert "Traceback" not in result.output
    return lines[0]
