"""The owner's first two steps: the manifest, and answers to the first challenge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.disputes import documents
from proof_of_learning.disputes.answers import OUTPUTS_FILE, STATES_FILE, Cutter, heads_of, shapes
from proof_of_learning.disputes.challenging import AnyTask, opened_proof, reference
from proof_of_learning.disputes.documents import ANSWERS_FILE, AnswersHead, AnyPath, First, Head
from proof_of_learning.disputes.looking import TOGETHER, Asker
from proof_of_learning.disputes.owners import Owners
from proof_of_learning.errors import IntegrityError, NumericEnvironmentError, PolError, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import files
from proof_of_learning.proof.codecs.raw import written
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.rewrite import rewrite
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.state.state import State
from proof_of_learning.verifier.plan import survey_seed


def manifest(path: AnyPath, out: AnyPath) -> Path:
    """Write the manifest of the proof at ``path``: header, log and blocks under the same root, and no state."""
    return rewrite(opened_proof(path), (), Path(out))


def answer(
    path: AnyPath,
    first: First,
    task: AnyTask,
    key: PrivateKey,
    out: AnyPath,
    *,
    segments: int | None = None,
    progress: ProgressCallback = silent,
) -> AnswersHead:
    """Answer the first challenge to the proof at ``path``, whose states have to be there, into the new folder ``out``.

    segments: how many of those that will be drawn are opened at most, which cannot be changed afterwards; None: all of them.
    Raises UsageError, IntegrityError for a challenge to another proof, NumericEnvironmentError where outputs would have other bits.
    """
    proof, target = opened_proof(path), Path(out)
    if (first.root, first.claim) != (proof.root, proof.header.randomness.claim):
        raise IntegrityError(f"the challenge is to another proof (root {first.root[:19]}…), not to {path}")
    if missing := sum(not proof.has_state(digest) for digest in proof.state_digests()):
        raise UsageError(f"{missing:,} states are not in the proof; bring them back first (`pol regenerate`)")
    if segments is not None and not 0 <= segments <= len(proof.segments):
        raise UsageError(f"{segments} segments make no sense; the proof has {len(proof.segments):,}")
    try:
        Owners.of(proof).signed([key.public.digest], "answers")
    except IntegrityError:
        raise UsageError(
            "the proof's claim names its owners, and the key is none of theirs, nor was it put in the place of one (`pol recover`)"
        ) from None
    files.require_new(target)
    with files.writing(str(target)):
        target.mkdir(parents=True, exist_ok=True)
    head = _write(proof, first, task, target, segments, progress)
    files.write_atomic(target / ANSWERS_FILE, [head.encoded()], durable=True)
    files.write_atomic(target / "answers.dsse.json", [documents.sign(head, key)], durable=True)
    return head


def _write(
    proof: Proof, first: First, task: AnyTask, target: Path, segments: int | None, progress: ProgressCallback
) -> AnswersHead:
    seed, digests = survey_seed(proof.root, first.looking), proof.state_digests()
    cutter = Cutter.of(proof.state(digests[0]), seed)
    layouts: list[dict[str, list[int]]] = []
    layout: list[int] = []
    sizes: list[int] = []
    heads: list[Head] = []
    shown, hashed = hashlib.sha256(), hashlib.sha256()
    with Replayer(proof, reference(task)) as replayer:
        if unlike := replayer.differences(proof.segments[0].environment):
            raise NumericEnvironmentError(
                f"the recorded numeric environment cannot be had here ({unlike[0]}); answer where it was recorded"
            )
        described = replayer.ask(Describe())
        assert isinstance(described, Described)
        asker = Asker(proof, replayer, described, seed)

        def outputs(states: list[State]) -> Iterator[bytes]:
            glimpses = asker.show(states)
            for glimpse in glimpses:
                found = heads_of(glimpse.heads)
                if not heads:
                    heads.extend(found)
                if found != heads:
                    raise UsageError("the task's networks put out other things in some states than in others")
                raw = b"".join(one.values for one in glimpse.heads)
                shown.update(raw)
                yield raw

        try:  # a task that shows none is answered without
            asker.show([proof.state(digests[0])])
            shows = True
        except PolError:
            shows = False
        waiting: list[State] = []
        pieces: list[bytes] = []

        def cuts() -> Iterator[bytes | memoryview]:
            for position, digest in enumerate(digests):
                progress("answering for the states", position, len(digests))
                state = proof.state(digest)
                laid = shapes(state)
                if laid not in layouts:
                    layouts.append(laid)
                layout.append(layouts.index(laid))
                raw = written(cutter.cut(state))
                sizes.append(len(raw))
                hashed.update(raw)
                yield raw
                if shows:
                    waiting.append(state)
                if waiting and (len(waiting) == TOGETHER or position == len(digests) - 1):
                    pieces.extend(outputs(waiting))
                    waiting.clear()

        files.write_atomic(target / STATES_FILE, cuts(), durable=True)
        files.write_atomic(target / OUTPUTS_FILE, pieces, durable=True)
    progress("answering for the states", len(digests), len(digests))
    return AnswersHead(
        root=proof.root, challenge=first.digest(), coordinates=cutter.most, layouts=layouts, layout=layout, sizes=sizes,
        states=f"sha256:{hashed.hexdigest()}", outputs=f"sha256:{shown.hexdigest()}", heads=heads, segments=segments,
    )  # fmt: skip


def uses(proof: Proof, task: AnyTask) -> list[np.ndarray]:
    """Of each segment, the samples that it uses, each once. ``task`` is the owner's own, loaded in this process."""
    from proof_of_learning.task import load_task
    from proof_of_learning.training.batches import DerivedOrder

    if proof.header.randomness.mode == "recorded":
        rows = (columns.indices for columns in proof.all_columns())
        return [np.unique(np.concatenate(list(row or [np.empty(0, np.int64)]))) for row in rows]
    order = DerivedOrder(load_task(task), proof.header.data.samples, bytes.fromhex(proof.header.randomness.key))
    return [
        np.unique(np.concatenate([order.indices(step) for step in range(segment.start, segment.stop)]))
        for segment in proof.segments
    ]
