"""Setting a run up: what decides its numbers beyond the task, the data with their commitment, the environment and the header."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec

from proof_of_learning.data import salts
from proof_of_learning.data.commit import Dataset, check_deterministic, commit, encode_sample
from proof_of_learning.errors import DataError, UsageError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.portable import ARITHMETICS, NATIVE, using
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import codecs
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import Proof
from proof_of_learning.recording.header import make_header, program_of
from proof_of_learning.state.state import State
from proof_of_learning.task import Task, TaskReference, load_task, task_code
from proof_of_learning.training.steps import Session

LOOKS = 16  # samples that are compared where data are loaded twice


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What decides a run's numbers and its header beyond the task, and what a claim therefore fixes.

    The fields are the arguments of :func:`proof_of_learning.prove` of the same names.
    """

    interval: int | None = None
    device: str = "cpu"
    portable: bool = False
    threads: int | None = None
    seed: int | None = None
    start_from: str | os.PathLike[str] | None = None
    codec: str = codecs.DEFAULT
    arithmetic: str = NATIVE
    salt: str | os.PathLike[str] | None = None
    seal_program: bool = False


@dataclass(frozen=True)
class Prepared:
    """The data, the environment, the header of the run made from the task's seed, and the fresh session that it describes,
    whose objects never train: what is tried out on them leaves no trace in the run.

    task: as it will run: with the seed of the setup, sealed where that is asked for. base: the weights to start from, or None.
    """

    task: Task
    data: Dataset
    environment: Environment
    header: Header
    base: State | None
    trial: Session


@contextmanager
def prepared(task: Task | str | TaskReference, setup: Setup, progress: ProgressCallback = silent) -> Iterator[Prepared]:
    """Everything that proving and registering need before the first step; the numeric environment holds until the context ends.

    Raises UsageError, TaskError or DataError, with a line that says what to change.
    """
    task = load_task(task)
    if setup.seed is not None:
        task = replace(task, seed=setup.seed)
    if setup.arithmetic not in ARITHMETICS:
        raise UsageError(f"there is no arithmetic {setup.arithmetic[:40]!r}; choose one of {', '.join(ARITHMETICS)}")
    environments.pin_process(portable=setup.portable, device=setup.device, threads=setup.threads)
    threads = environments.PORTABLE_THREADS if setup.portable and setup.threads is None else setup.threads
    with randomness.preserved(), environments.recording(setup.device, threads) as environment:
        with using(setup.arithmetic), task_code("loading the data"):
            data = task.data()
            total = len(data)
            check_deterministic(data)
            check_loading(task, data)
            own = None if setup.salt is None else salts.load(setup.salt).salts(total)
            commitment = commit(data, salts=own, progress=lambda done: progress("hashing the data", done, total))
        progress("hashing the data", total, total)
        program = program_of(task)
        if setup.seal_program:
            progress("sealing the program", 0, 0)
            task = sealed_task(task, data)
        base = root = None
        if setup.start_from is not None:
            parent = Proof.open(setup.start_from)
            base, root = parent.state(parent.segments[-1].state).part("model"), parent.root
        session = Session(task, randomness.key_from_seed(task.seed), setup.device, base, setup.arithmetic)
        header = make_header(
            task,
            session,
            data,
            interval=setup.interval,
            data_commitment=commitment,
            start_root=root,
            codec=setup.codec,
        )
        header = msgspec.structs.replace(header, program=msgspec.structs.replace(program, sealed=header.program.sealed))
        yield Prepared(task, data, environment, header, base, session)


def sealed_task(task: Task, data: Dataset) -> Task:
    """The task as a sealed program. Raises TaskError for what cannot be sealed, by name."""
    # Not at the top of the file: tracing loads much of PyTorch.
    from proof_of_learning.program.sealed import task_of
    from proof_of_learning.program.tracing import seal

    return replace(task_of(seal(task, data), task.data), seed=task.seed)


def check_loading(task: Task, data: Dataset) -> None:
    """Load the data once more, with the generators elsewhere; DataError if a few samples differ: a verifier would find other data."""
    randomness.seed_everything(randomness.derive(bytes(randomness.KEY_BYTES), "loading"))
    again = task.data()
    places = sorted({len(data) * part // LOOKS for part in range(LOOKS)} | {len(data) - 1})
    if len(again) != len(data) or any(encode_sample(data[i]) != encode_sample(again[i]) for i in places):
        raise DataError(
            "the data differ each time they are loaded; seed what draws in the task's `data` (split with "
            "generator=torch.Generator().manual_seed(0), numpy.random.default_rng(0)), so that a verifier finds the same"
        )
