"""``prove``: train a task while recording a proof."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from proof_of_learning import registration as registrations
from proof_of_learning.errors import EvaluationWarning, TaskError, TrainingError, UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.numeric.portable import NATIVE
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import codecs, format, remote
from proof_of_learning.proof.attach import attach
from proof_of_learning.proof.format import Header
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.writer import begun, remember
from proof_of_learning.recording.checkpoint import finite
from proof_of_learning.recording.recorder import Recorder
from proof_of_learning.recording.setup import Setup, prepared
from proof_of_learning.recording.stamping import Stamped, Stamping
from proof_of_learning.recording.trial import try_evaluation, try_gradients
from proof_of_learning.rehearsal import beside as rehearsals
from proof_of_learning.replay.pool import Job
from proof_of_learning.run.command import claimed
from proof_of_learning.task import Description, Task, TaskReference, is_script, load_task, resumable
from proof_of_learning.training.steps import Session, derived_feed

if TYPE_CHECKING:
    from proof_of_learning.attestation.signatures import PublicKey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A finished recording: where it lies, its root, the trained model and what it achieves.

    ``complete_before``: the proof was there already, and nothing was trained. ``stamped``: what came of stamping while training.
    """

    path: Path | str
    root: str
    model: torch.nn.Module
    steps: int
    interval: int
    evaluation: dict[str, float] | None
    complete_before: bool = False
    stamped: Stamped | None = None

    def __fspath__(self) -> str:
        """It stands for its path: ``pol.verify(pol.prove(task, path), task)``."""
        return str(self.path)


def prove(
    task: Task | str | TaskReference,
    path: str | os.PathLike[str],
    *,
    interval: int | None = None,
    device: str = "cpu",
    portable: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    registration: str | os.PathLike[str] | None = None,
    start_from: str | os.PathLike[str] | None = None,
    evaluations: int = 0,
    codec: str | None = None,
    keep_every: int | None = None,
    asynchronous: bool | None = None,
    rehearse: bool | None = None,
    arithmetic: str | None = None,
    salt: str | os.PathLike[str] | None = None,
    seal_program: bool | None = None,
    stamping: Stamping | None = None,
    progress: ProgressCallback = silent,
) -> Recording:
    """Train ``task`` and write its proof to ``path``, a directory or an address that fsspec knows (``s3://…``); go on where an
    interrupted call stopped.

    interval: steps between checkpoints, k (default: what the claim says, else about a thousand segments a run).
    device: ``cpu`` or ``cuda``; the deterministic switches are set while training and recorded.
    portable: pin one thread and AVX2 code paths, which more machines of the same make share (slower by about a tenth).
    seed: replaces the task's seed.
    registration: a ``claim.json`` made by :func:`register`; all randomness then follows from its hash.
    start_from: another proof, whose final weights are the start wherever they fit the task's model (a chain of trust).
    evaluations: at how many checkpoints, evenly spread, the model is evaluated on the way (the end always is).
    codec: how states are stored (default: what the claim says, else ``raw``): ``raw`` and ``lossless`` keep them to the bit;
        ``float16``, ``quantised`` and ``compact`` round them in the loop, so that training goes on from the rounded state.
    keep_every: keep the bytes of only every so many-th state (and the first and last); the digests of all are recorded.
    asynchronous: encode and write beside the training loop (default: where it runs on an accelerator; on CPU cores that training
        keeps busy it gains nothing).
    rehearse: replay short stretches while training goes on, each from its recorded state alone, and stop with a TaskError that
        names the cause where the bits differ (default: yes, unless the environment variable ``POL_REHEARSAL`` is ``0``). A task
        with a reference is replayed in a fresh process. One that is an object is replayed in this process; what it keeps in
        globals and closures, and what differs from process to process, is then not found.
    arithmetic: ``native`` (PyTorch's own; the default, unless the claim says otherwise), or ``portable``, which gives the same bits on
        any machine, is slower, and refuses operations that it does not have.
    salt: the secret (``pol keygen --salt``) from which each sample's salt in the data commitment follows, for data that stay private.
    seal_program: record the step as data in the proof (:mod:`.program`; default: what the claim says), so that it can be
        replayed without the task's code. Refused by name where the task has something that no program can hold.
    stamping: have the log's head stamped by timestamp authorities in the background, ``pol.Stamping(every=50, tsa="https://…")``.
    Raises PolError subclasses, each with one line that says what to do.
    """
    claim = None if registration is None else registrations.load(registration)
    if claim is not None and seed is not None:
        raise UsageError(registrations.TWO_SOURCES)
    if stamping is not None:
        stamping.authorities()  # what is wrong with them is said before anything is loaded
    if claim is not None and interval is None:
        interval = claim.claim.interval
    if codec is None:
        codec = codecs.DEFAULT if claim is None else claim.claim.codec.name
    if arithmetic is None:
        arithmetic = NATIVE if claim is None else claim.claim.arithmetic
    if seal_program is None:
        seal_program = claim is not None and claim.claim.sealed is not None
    setup = Setup(
        interval=interval, device=device, portable=portable, threads=threads, seed=seed, start_from=start_from, codec=codec,
        arithmetic=arithmetic, salt=salt, seal_program=seal_program,
    )  # fmt: skip
    with remote.recording(path) as (folder, copy), prepared(task, setup, progress) as ready:
        header = ready.header if claim is None else registrations.apply(claim, ready.header, ready.environment)
        identity = resumable(ready.task)
        header = begun(folder, header, identity)
        if stamping is not None:
            stamping.check(header)  # before the claim is used up
        if not (folder / format.SEAL_FILE).exists():
            try_evaluation(ready.trial)
            try_gradients(ready.trial, ready.data)
        if registration is not None:
            resuming = (folder / format.HEADER_FILE).exists()
            registrations.begin(Path(registration), header, resuming)
        session = Session(ready.task, bytes.fromhex(header.randomness.key), device, ready.base, arithmetic)
        feed, order = derived_feed(ready.task, ready.data, session.key, device)
        steps = header.training.planned
        assert steps is not None  # a task says how many
        rehearsal = None
        if rehearsals.wanted(rehearse):
            job = Job(ready.task, header.randomness.key, ready.task.seed, ready.base, arithmetic=arithmetic)
            live = rehearsals.Live(session, ready.data, feed, order)
            rehearsal = rehearsals.Rehearsal(job, ready.environment, header, session.parts, live)
        beside = device != "cpu" if asynchronous is None else asynchronous
        every = max(1, -(-steps // header.training.interval) // evaluations) if evaluations > 0 else 0
        with Recorder(
            folder,
            header,
            session.parts,
            ready.environment,
            keep_every=keep_every,
            asynchronous=beside,
            rehearsal=rehearsal,
            stamping=stamping,
        ) as recorder:
            if recorder.complete:
                log.info("%s is complete already", path)
                return _finished(session, folder, path)
            remember(folder, identity)
            if claim is not None:
                for name, raw in claim.attestations().items():
                    attach(folder, name, raw)
            log.info("recording into %s from step %d of %d", folder, recorder.steps_done, steps)
            progress("training", recorder.steps_done, steps)
            for result in session.run(steps, feed, order):
                due = every and recorder.closes_segment() and (result.step // header.training.interval + 1) % every == 0
                if recorder.step(result.loss, result.rates, evaluation=_evaluated(session) if due else None):
                    copy()
                progress("training", recorder.steps_done, steps)
            evaluation = _evaluated(session)
            root = recorder.close(evaluation)
    if registration is not None:
        registrations.finish(Path(registration), header, root)
    return Recording(
        _home(path), root, session.model, steps, header.training.interval, evaluation, stamped=recorder.stamped
    )


def register(
    task: Task | str | TaskReference,
    path: str | os.PathLike[str],
    *,
    interval: int | None = None,
    device: str = "cpu",
    portable: bool = False,
    threads: int | None = None,
    owners: Iterable[str | os.PathLike[str] | PublicKey] = (),
    threshold: int | None = None,
    recovery: str | os.PathLike[str] | PublicKey | None = None,
    start_from: str | os.PathLike[str] | None = None,
    codec: str | None = None,
    arithmetic: str | None = None,
    salt: str | os.PathLike[str] | None = None,
    seal_program: bool | None = None,
    progress: ProgressCallback = silent,
) -> registrations.Registration:
    """Write a claim (``claim.json``) that fixes a run of ``task`` before it begins; arguments as for :func:`prove`. Of a script (a
    reference with its arguments), the set-up is run up to its first batch.

    owners: public keys (PEM files) of those who own what will be trained; the claim names them, and :func:`sign` signs it.
    threshold: how many of them have to (default: all).
    recovery: the public key that may later put another key in an owner's place (:func:`recover`); keep its private half elsewhere.
    seal_program: the claim fixes the sealed program, too.
    """
    reference = TaskReference(task) if isinstance(task, str) else task
    if isinstance(reference, TaskReference) and is_script(reference.target):
        if any(option is not None for option in (start_from, codec, arithmetic, salt, seal_program)):
            raise UsageError("a script's run has no start_from, codec, arithmetic, salt or seal_program")
        header, environment = claimed(reference.target, reference.arguments or (), interval=interval)
        return _registered(header, environment, path, owners, threshold, recovery)
    setup = Setup(
        interval=interval, device=device, portable=portable, threads=threads, start_from=start_from, codec=codec or codecs.DEFAULT,
        arithmetic=arithmetic or NATIVE, salt=salt, seal_program=bool(seal_program),
    )  # fmt: skip
    with prepared(task, setup, progress) as ready:
        return _registered(ready.header, ready.environment, path, owners, threshold, recovery)


def _registered(
    header: Header,
    environment: Environment,
    path: str | os.PathLike[str],
    owners: Iterable[str | os.PathLike[str] | PublicKey],
    threshold: int | None,
    recovery: str | os.PathLike[str] | PublicKey | None,
) -> registrations.Registration:
    keys, spare = _public_keys(owners), _public_keys([] if recovery is None else [recovery])
    registration = registrations.new_claim(
        header, environment, [key.digest for key in keys], threshold, spare[0].digest if spare else None
    )
    if keys:
        from proof_of_learning.signing import unsigned_claim

        registration = unsigned_claim(registration, keys)
    registrations.save_new(Path(path), registration)
    return registration


def _public_keys(owners: Iterable[str | os.PathLike[str] | PublicKey]) -> list[PublicKey]:
    given = list(owners)
    if not given:
        return []
    from proof_of_learning.attestation import signatures

    return [item if isinstance(item, signatures.PublicKey) else signatures.load_public(item) for item in given]


def describe(task: Task | str | TaskReference) -> Description:
    """The description of a task, with its sources, as a fresh session gives it."""
    loaded = load_task(task)
    with randomness.preserved():
        return Session(loaded, randomness.key_from_seed(loaded.seed)).describe()


def _evaluated(session: Session) -> dict[str, float] | None:
    """What the model achieves; None, with a warning, where the task cannot say: no training is lost to that."""
    try:
        return finite(values) if (values := session.evaluate()) is not None else None
    except (TaskError, TrainingError) as error:
        warnings.warn(
            f"{error}; the recording goes on, without a claim of what the model achieves after step {session.progress.step}",
            EvaluationWarning,
            stacklevel=3,
        )
        return None


def _finished(session: Session, folder: Path, path: str | os.PathLike[str]) -> Recording:
    proof = Proof.open(folder)
    session.restore(proof.state(proof.segments[-1].state))
    return Recording(
        _home(path),
        proof.root,
        session.model,
        proof.steps,
        proof.header.training.interval,
        proof.end.evaluation,
        complete_before=True,
    )


def _home(path: str | os.PathLike[str]) -> Path | str:
    return os.fspath(path) if remote.is_remote(path) else Path(path)
