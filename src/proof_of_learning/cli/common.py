"""What every command shares: one line for an error, the documented exit status, progress bars, JSON output.

Whatever reaches a terminal passes here, and nothing in it is obeyed there: a proof, a task's errors and the last words of a worker
may hold escape sequences that paint a verdict of their own.

Nothing here or in the command modules imports torch at the top: a command pins the numeric environment first, and
``pol --help`` answers at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from proof_of_learning.errors import (
    EvaluationWarning,
    PolError,
    RecordingWarning,
    RehearsalWarning,
    StoreWarning,
    UsageError,
)
from proof_of_learning.report.text import line, visible

if TYPE_CHECKING:
    from proof_of_learning.task import TaskReference

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED, TERMINATED = 130, 143
UNWRAPPED = 4096  # columns
OWN_WARNINGS = (EvaluationWarning, RecordingWarning, RehearsalWarning, StoreWarning)
DATA_VARIABLE = "POL_DATA"


def messages() -> Console:
    """The console for what is not the result: standard error."""
    return SafeConsole(stderr=True)


def results() -> Console:
    """The console for results: standard output; lines are neither wrapped nor padded where it is a pipe or a file."""
    return SafeConsole(width=None if sys.stdout.isatty() else UNWRAPPED)


def print_rows(rows: Mapping[str, str | Sequence[str]]) -> None:
    """Names beside what is to be said of them, as results: a text on one line, or each of several on its own."""
    from rich.table import Table
    from rich.text import Text

    from proof_of_learning.report.text import line

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        parts = [value] if isinstance(value, str) else value
        table.add_row(line(name), Text("\n".join(line(part) for part in parts)))
    results().print(table)


_TAIL = re.compile(r"(?:[ \t]|\x1b\[[0-9;]*m)+$")  # of a line: padding, and the ends of colours


def _unpadded(tail: re.Match[str]) -> str:
    return re.sub(r"[ \t]", "", tail[0])


class SafeConsole(Console):
    """A console whose text is shown and never obeyed, whoever wrote it; only what rich itself draws with is passed on.

    Square brackets are text, too: markup is for what is printed with ``markup=True``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        if self.file.isatty():  # rich's own answer may be FORCE_COLOR's
            super().print(*objects, **options)
            return
        with self.capture() as printed:
            super().print(*objects, **options)
        self.file.write("\n".join(_TAIL.sub(_unpadded, row) for row in printed.get().split("\n")))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            yield segment if segment.control else segment._replace(text=visible(text, len(text)))


def say(message: str, indent: int = 0) -> None:
    """One line of a result, on standard output, behind ``indent`` spaces."""
    _write(sys.stdout, " " * indent + line(message))


def fail(message: str) -> None:
    """One line on standard error."""
    _write(sys.stderr, f"pol: {line(message)}")


def _quoted(text: str) -> str:
    """Several lines of another's making, none of which could pass for one of ours."""
    return visible(text.strip(), len(text)).replace("\n", "\n  | ")


def _write(stream: TextIO, text: str) -> None:
    """With what the stream's encoding cannot write spelled out."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Print our own warnings as one line each; what a task warns of keeps Python's form, which says where it comes from."""
    with warnings.catch_warnings():

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, OWN_WARNINGS):
                fail(f"warning: {message}")
            else:
                _write(sys.stderr, _quoted(warnings.formatwarning(message, category, *place[:2])))

        warnings.showwarning = show
        for own in OWN_WARNINGS:
            warnings.simplefilter("always", own)
        yield


class _Said(logging.Handler):
    """Shows what the library logs as lines of ours, with nothing in them that a terminal obeys."""

    def emit(self, record: logging.LogRecord) -> None:
        fail(f"{record.levelname.lower()}: {record.name.removeprefix('proof_of_learning.')}: {record.getMessage()}")


@contextmanager
def _logged() -> Iterator[None]:
    """With POL_DEBUG, what the library logs, on standard error."""
    if not os.environ.get("POL_DEBUG"):
        yield
        return
    logger, handler = logging.getLogger("proof_of_learning"), _Said()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A command that is told to end (SIGTERM) ends its workers first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(interrupted: str = "interrupted; nothing was changed") -> Callable[[F], F]:
    """Give a command its error handling: one line each, and the exit status that README documents."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                with _own_warnings(), _logged(), _ended_in_order():
                    return function(*args, **kwargs)
            except typer.Exit:
                raise
            except PolError as error:
                fail(str(error))
                raise typer.Exit(error.exit_status) from None
            except KeyboardInterrupt as error:
                fail(str(error) or interrupted)
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
                    _write(sys.stderr, _quoted(traceback.format_exc()))
                    raise typer.Exit(2) from None
                fail(
                    f"unexpected {type(error).__name__}: {error} (set POL_DEBUG=1 for the traceback, and please report it)"
                )
                raise typer.Exit(2) from None

        return guarded  # type: ignore[return-value]

    return decorate


def not_for_scripts(options: list[str]) -> str:
    """What is said where options are given that only a task can have."""
    states = (
        "; its states are recorded to the bit (codec raw): rounding them in the loop needs a task"
        if "--codec" in options
        else ""
    )
    return f"{', '.join(options)} cannot be used with a script, whose own arguments stand behind `--`{states}"


def settings(pairs: list[str] | None) -> dict[str, str | int | float | bool]:
    """``--set`` options as a dict."""
    parsed: dict[str, str | int | float | bool] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--set {pair!r}: expected NAME=VALUE")
        parsed[name] = value
    return parsed


def reference(task: str, settings: dict[str, Any], arguments: list[str] | None) -> TaskReference:
    """The task that a command names, with what stands behind ``--``."""
    from proof_of_learning.task import TaskReference, is_script

    if arguments and not is_script(task):
        raise UsageError(f"a task takes no arguments ({arguments[0]!r}); hand settings over with --set NAME=VALUE")
    return TaskReference(task, settings, tuple(arguments) if arguments else None).absolute()


def proof_and_task(item: str) -> tuple[str, TaskReference | None]:
    """``DIR``, ``DIR=TASK`` or ``DIR=TASK?NAME=VALUE&NAME=VALUE``."""
    from proof_of_learning.task import TaskReference

    folder, _, task = item.partition("=")
    target, _, query = task.partition("?")
    given = settings(query.split("&") if query else [])
    return folder, TaskReference(target, given).absolute() if target else None


def pinned(*, portable: bool = False, device: str = "cpu", threads: int | None = None) -> None:
    """Have this process train in a numeric environment that is known, before anything imports torch.

    PyTorch's compiler, whose import takes as long as its own, waits until a task asks for it.
    """
    from proof_of_learning.numeric import environment
    from proof_of_learning.training.uncompiled import defer_compiler

    environment.pin_process(portable=portable, device=device, threads=threads)
    defer_compiler()


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
    if quiet or not (console.is_terminal and console.file.isatty()):  # FORCE_COLOR makes a terminal of a log, too
        yield lambda doing, done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
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


MANY = 8  # workers of this machine, for which nobody is asked how many cores it has


def enough(workers: int) -> None:
    """Refuse more replay workers than could ever pay: each is a Python with PyTorch, the task and its data."""
    from proof_of_learning.replay import fork

    if workers > max(MANY, 2 * fork.cores()):
        raise UsageError(
            f"--workers {workers}: this machine has {fork.cores()} cores, and each worker loads PyTorch, the task and its data; "
            "take at most one for each core"
        )


def writable(option: str, target: str | Path | None) -> None:
    """Refuse a file that could not be written, before the work is done that it is for."""
    if target is None or target == "-":
        return
    path = Path(target)
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file")


# What JSON may hold as it is and a terminal obeys: DEL and the C1 controls, joiners, directions, line separators, tags.
_INVISIBLE = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def write_json(raw: bytes, target: str | None) -> None:
    """Write to a file, or to standard output for ``-``."""
    if target == "-":
        sys.stdout.buffer.write(_INVISIBLE.sub(_escaped, raw.decode()).encode().rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()
    elif target is not None:
        from proof_of_learning.proof.files import write_atomic

        writable("--json", target)
        write_atomic(Path(target), [raw.rstrip(b"\n") + b"\n"])
