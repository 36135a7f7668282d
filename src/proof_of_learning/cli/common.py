"""What every command shares: one line for an error, the documented exit status, progress bars, JSON output.

Nothing here or in the command modules imports torch at the top: a command pins the numeric environment first, and
``pol --help`` answers at once.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from proof_of_learning.errors import PolError, StoreWarning, UsageError

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130
DATA_VARIABLE = "POL_DATA"

SET_HELP = "A setting of the task, NAME=VALUE, handed to its function; may be repeated."
DATA_HELP = f"Folder with the task's data sets (the environment variable {DATA_VARIABLE} does the same)."


def messages() -> Console:
    """The console for what is not the result: standard error."""
    return Console(stderr=True)


def results() -> Console:
    return Console()


def fail(message: str) -> None:
    print(f"pol: {message}", file=sys.stderr)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Print our own warnings as one line each; what a task warns of keeps Python's form, which says where it comes from."""
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, StoreWarning):
                fail(f"warning: {message}")
            else:
                elsewhere(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", StoreWarning)
        yield


def command(interrupted: str = "interrupted; nothing was changed") -> Callable[[F], F]:
    """Give a command its error handling: one line each, and the exit status that README documents."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                with _own_warnings():
                    return function(*args, **kwargs)
            except typer.Exit:
                raise
            except PolError as error:
                fail(str(error))
                raise typer.Exit(error.exit_status) from None
            except KeyboardInterrupt:
                fail(interrupted)
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away; end quietly
                raise typer.Exit(0) from None
            except MemoryError:
                fail("there is not enough memory for this")
                raise typer.Exit(2) from None
            except OSError as error:
                where = f" ({error.filename})" if error.filename else ""
                hint = "; free some space and run it again" if error.errno == errno.ENOSPC else ""
                fail(f"{error.strerror or error}{where}{hint}")
                raise typer.Exit(2) from None
            except Exception as error:
                if os.environ.get("POL_DEBUG"):
                    raise
                fail(
                    f"unexpected {type(error).__name__}: {error} (set POL_DEBUG=1 for the traceback, and please report it)"
                )
                raise typer.Exit(2) from None

        return guarded  # type: ignore[return-value]

    return decorate


def settings(pairs: list[str] | None) -> dict[str, str | int | float | bool]:
    """``--set`` options as a dict."""
    parsed: dict[str, str | int | float | bool] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {pair!r}: expected NAME=VALUE")
        parsed[name] = value
    return parsed


def use_data(folder: Path | None) -> None:
    """Let the task (and the workers that build it again) find its data."""
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(f"--data {folder}: there is no such folder")
        os.environ[DATA_VARIABLE] = str(folder.resolve())


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback that draws bars with the time left on a terminal, and nothing elsewhere."""
    console = messages()
    if quiet or not console.is_terminal:
        yield lambda doing, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        lines: dict[str, Any] = {}

        def show(doing: str, done: int, total: int) -> None:
            for name, line in lines.items():
                if name != doing:
                    bar.update(line, visible=False)
            if doing not in lines:
                lines[doing] = bar.add_task(doing, total=total or None)
            bar.update(lines[doing], completed=done, total=total or None, visible=True)

        yield show


def write_json(raw: bytes, target: str | None) -> None:
    """Write to a file, or to standard output for ``-``."""
    if target == "-":
        sys.stdout.buffer.write(raw.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()
    elif target is not None:
        from proof_of_learning.proof.files import write_atomic

        parent = Path(target).parent
        if not parent.is_dir():
            raise UsageError(f"--json {target}: there is no folder {parent}")
        write_atomic(Path(target), [raw.rstrip(b"\n") + b"\n"])
