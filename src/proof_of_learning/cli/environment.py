"""``pol environment``: what it takes to have a proof's numeric environment again, and what of it this machine lacks.

What a proof says of its environment is text of the prover's, and goes into files that pip and a shell read: versions have to look
like versions, and all else is quoted or stands in comments of one line.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proof_of_learning.cli import common

if TYPE_CHECKING:
    from proof_of_learning.numeric.environment import Environment
    from proof_of_learning.proof.reader import Proof

PATIENCE = 300.0  # seconds for a process that imports torch
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+_-]{0,63}", re.ASCII)
_LOOK = """
import sys, msgspec, torch
from proof_of_learning.numeric import environment
wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=environment.Environment)
environment.apply(wanted, lasting=True)
gpu = wanted.device.type == "cuda" and torch.cuda.is_available()
sys.stdout.buffer.write(msgspec.json.encode(environment.current("cuda" if gpu else "cpu")))
"""
_README = """\
# The numeric environment of a proof

Root {root}: a replay gives the recorded bits where libraries, code paths and processor are those of the recording, \
which are {machines}.
In a fresh virtual environment of the Python named in `{first}`, install with `pip install -r {first}` (a version of torch \
that ends in `+cpu` or `+cu…` is a build of PyTorch's own package index), and then this package and what the task needs.
`pol verify` sets threads and variables of its replays itself; to set them for a process of your own, source `{shell}` \
before Python starts.
"""


@common.command("interrupted; the proof was only read")
def environment(
    proof: Annotated[str, typer.Argument(help="The proof's directory, or its address (`s3://…`).")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new folder for the files.  [default: NAME-environment]")
    ] = None,
) -> None:
    """Write what a verifier needs to have the proof's numeric environment again; say what differs on this machine.

    The folder holds `requirements.txt`, `variables.sh` and a README; of each further environment of the run one more pair.

    **Example**

    `pol environment run.pol -o run-environment`
    """
    from proof_of_learning.errors import FormatError, UsageError
    from proof_of_learning.proof.files import write_atomic, writing
    from proof_of_learning.proof.reader import Proof
    from proof_of_learning.proof.remote import local
    from proof_of_learning.replay.replayer import MAX_ENVIRONMENTS

    name = proof.rstrip("/").rpartition("/")[2].removesuffix(".pol") or "proof"
    folder = out or Path(f"{name}-environment")
    if folder.exists():
        raise UsageError(f"-o {folder} exists already; name a new folder")
    with local(proof) as place:
        opened = Proof.open(place)
    found = list(opened.environments.values())
    if len(found) > MAX_ENVIRONMENTS:
        raise FormatError(
            f"the proof names {len(found):,} numeric environments, of which at most {MAX_ENVIRONMENTS} are tried"
        )
    written = files(opened)
    if not folder.parent.is_dir():
        raise UsageError(f"-o {folder}: there is no folder {folder.parent}")
    with writing(str(folder)):
        folder.mkdir()
    for file, text in written.items():
        write_atomic(folder / file, [text.encode()])
    common.say(f"{folder}: {', '.join(written)}")
    for number, recorded in enumerate(found, 1):
        with common.progress_bar() as progress:
            progress(f"setting up environment {number} here", 0, 0)
            lacking = missing(
                recorded, own_numpy=opened.header.own_code, portable=opened.header.arithmetic == "portable"
            )
        same = "a process on this machine has it; replays can give the recorded bits"
        differs = f"not reproduced here: {'; '.join(lacking)}" if lacking else same
        common.say(f"environment {number} of {len(found)}: {differs}")


def files(proof: Proof) -> dict[str, str]:
    """What is written, by name. Raises FormatError where a version is none."""
    written: dict[str, str] = {}
    machines: list[str] = []
    for number, recorded in enumerate(proof.environments.values(), 1):
        place = "" if number == 1 else f"-{number}"
        written[f"requirements{place}.txt"] = requirements(recorded)
        written[f"variables{place}.sh"] = variables(recorded)
        machines.append(_machine(recorded))
    first, shell = list(written)[:2]
    written["README.md"] = _README.format(root=proof.root, machines="; ".join(machines), first=first, shell=shell)
    return written


def requirements(recorded: Environment) -> str:
    """For pip: what decides on bits, in the versions of the recording."""
    found = {name: _version(name, getattr(recorded, name)) for name in ("python", "torch", "numpy")}
    return f"# Python {found['python']}\ntorch=={found['torch']}\nnumpy=={found['numpy']}\n"


def variables(recorded: Environment) -> str:
    """For a shell: the variables of a process that takes part, and in comments what is set inside it."""
    import msgspec

    from proof_of_learning.numeric.environment import VARIABLES

    threads = {"OMP_NUM_THREADS": str(recorded.threads), "MKL_NUM_THREADS": str(recorded.threads)}
    wanted = {**recorded.variables, **threads}
    flags = " ".join(f"{name}={_text(value)}" for name, value in msgspec.structs.asdict(recorded.flags).items())
    lines = [
        f"# Environment {recorded.digest()}",
        f"# {_machine(recorded)}",
        f"# Inside PyTorch: threads={recorded.threads} interop_threads={recorded.interop_threads} {flags}",
        f"unset {' '.join(name for name in VARIABLES if name not in wanted)}",
        *(f"export {name}={shlex.quote(value)}" for name, value in wanted.items()),
    ]
    return "\n".join(lines) + "\n"


def missing(recorded: Environment, *, own_numpy: bool, portable: bool = False) -> list[str]:
    """What a process that is started for ``recorded`` does not have on this machine, as a replay worker would find it."""
    import msgspec

    from proof_of_learning.errors import NumericEnvironmentError
    from proof_of_learning.numeric import environment as environments

    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOOK],
            input=msgspec.json.encode(recorded),
            env=environments.process_variables(recorded),
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        here = msgspec.json.decode(done.stdout, type=environments.Environment)
    except (subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise NumericEnvironmentError(
            f"a process with the recorded variables could not be started here: {error}"
        ) from None
    return environments.differences(recorded, here, own_numpy=own_numpy, portable=portable)


def _machine(recorded: Environment) -> str:
    device = recorded.device
    gpu = "" if device.type == "cpu" else f", {device.name} (CUDA {device.cuda}, cuDNN {device.cudnn})"
    return _text(f"{recorded.vendor} {recorded.machine}, {recorded.capability} ({' '.join(recorded.isa)}){gpu}")


def _text(value: object) -> str:
    """On one line, in characters that no shell and no page takes for anything but text."""
    return re.sub(r"[^\w .,:()+-]", "?", str(value), flags=re.ASCII)[:300]


def _version(name: str, value: str) -> str:
    from proof_of_learning.errors import FormatError

    if not _VERSION.fullmatch(value):
        raise FormatError(f"the recorded version of {name} is {value[:64]!r}, which is no version")
    return value
