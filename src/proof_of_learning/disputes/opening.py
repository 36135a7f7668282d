"""The owner's last step: what an opening would disclose, said before it is made; then the opening."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proof_of_learning import canonical
from proof_of_learning.attestation.signatures import PrivateKey
from proof_of_learning.data import salts
from proof_of_learning.data.commit import leaves, merkle_root
from proof_of_learning.data.opened import Samples, decode_sample, witnesses
from proof_of_learning.disputes import OPENING_FILE, documents, ledger
from proof_of_learning.disputes import answers as answering
from proof_of_learning.disputes.answering import uses
from proof_of_learning.disputes.answers import Answers, shapes
from proof_of_learning.disputes.challenging import AnyTask, opened_proof, redraw, unopened
from proof_of_learning.disputes.documents import AnyPath, First, OpeningHead, Second
from proof_of_learning.disputes.ledger import Ledger
from proof_of_learning.disputes.looking import Asker, look
from proof_of_learning.errors import DataError, RecordingWarning, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import files, format
from proof_of_learning.proof.codecs.raw import encode_tensors
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.rewrite import rewrite
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.task import load_task
from proof_of_learning.verifier import guarantee
from proof_of_learning.verifier.function import SAMPLES
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.plan import Challenge
from proof_of_learning.verifier.survey import survey

SAMPLES_FILE = "samples.bin"
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Disclosure:
    """What an opening shows. ``before``, ``after``: samples that anybody was shown without it and with it; ``steps``: single steps of
    which both ends are opened, which shows their gradients."""

    samples: int
    of_samples: int
    states: int
    of_states: int
    segments: int
    steps: int
    before: int
    after: int
    states_after: int
    verifiers: int

    def lines(self) -> list[str]:
        """In words."""
        found = [
            f"opens {self.samples:,} of {self.of_samples:,} samples ({self.samples / self.of_samples:.1%}) and {self.states:,} of "
            f"{self.of_states:,} states ({self.states / self.of_states:.1%}), the final weights among them"
        ]
        if self.before:
            found.append(
                f"with what the ledger says was opened before to {self.verifiers:,} others: {self.after / self.of_samples:.1%} of the "
                f"samples, {self.states_after / self.of_states:.1%} of the states"
            )
        if self.steps:
            found.append(
                f"of {self.steps:,} single steps both ends are opened: that shows their gradients, from which samples can be "
                "reconstructed (these samples are opened, too)"
            )
        return found


@dataclass(frozen=True)
class Prepared:
    """All that an opening needs, found before anything is disclosed."""

    proof: Proof
    first: First
    second: Second
    answers: Answers
    picked: Challenge
    states: list[int]
    samples: Indices
    disclosure: Disclosure


def positions(proof: Proof, segments: Iterable[int]) -> list[int]:
    """The states that are opened: the first, the last, and both ends of each segment."""
    return sorted({0, len(proof.segments), *(place for index in segments for place in (index, index + 1))})


def asked_for(proof: Proof, second: Second, task: AnyTask, *, with_samples: bool = True) -> str:
    """What a challenge asks to be opened, in words; before its draw is made again, which is work. Raises UsageError."""
    count = len(proof.segments)
    segments = sorted({index for index, _ in second.segments})
    if second.root != proof.root or (segments and not 0 <= segments[0] <= segments[-1] < count):
        raise UsageError("the challenge is to another proof: its root, or its segments, are not those of this one")
    states = len(positions(proof, segments))
    text = f"the challenge asks for {len(segments):,} of {count:,} segments: {states:,} of {count + 1:,} states"
    text += f" ({states / (count + 1):.1%})"
    if with_samples:
        every, samples = uses(proof, task), proof.header.data.samples
        chosen = {*witnesses(samples), *(int(place) for index in segments for place in every[index])}
        text += f", and about {len(chosen):,} of {samples:,} samples ({len(chosen) / samples:.1%})"
    return f"{text}; the final weights are among them"


def prepare(
    path: AnyPath,
    first: First,
    answers: AnyPath,
    second: Second,
    task: AnyTask,
    *,
    with_samples: bool = True,
    kept: Ledger | None = None,
    options: Options | None = None,
) -> Prepared:
    """Draw again what the second challenge to the proof at ``path`` draws, and find out what opening it would disclose.

    Raises IntegrityError where the challenge asks for other segments than its nonce draws: that is curiosity, and no draw.
    """
    proof = opened_proof(path)
    given = answering.read(Path(answers), proof, first)
    with unopened(proof, task, options or Options()) as replayer:
        described = replayer.ask(Describe())
        assert isinstance(described, Described)
        found = look(proof, survey(manifest_of(proof)), given, replayer, described).found
        probed = Asker(proof, replayer, described, given.seed).samples if given.head.heads else np.empty(0, np.int64)
    picked = redraw(proof, found, second, given, own=False)
    shown = positions(proof, picked.segments)
    if not with_samples and proof.header.data.salted:
        raise UsageError("the data root is salted, so that nobody else has its samples; they have to be opened")
    chosen: Indices = np.empty(0, np.int64)
    if with_samples:
        every = uses(proof, task)
        shows = np.array(witnesses(proof.header.data.samples), np.int64)
        chosen = np.unique(np.concatenate([probed, shows, *(every[index] for index in picked.segments)]))
    data, kept = proof.header.data, kept or Ledger()
    known = kept.samples(data.root, data.samples)
    before = int(known.sum())
    known[chosen] = True
    both = [s for s in proof.segments if s.stop - s.start == 1 and s.index in shown and s.index + 1 in shown]
    told = Disclosure(
        samples=len(chosen), of_samples=data.samples, states=len(shown), of_states=len(proof.segments) + 1,
        segments=len(picked.segments), steps=len(both), before=before, after=int(known.sum()),
        states_after=len(kept.states(proof.root) | set(shown)), verifiers=kept.verifiers(data.root),
    )  # fmt: skip
    return Prepared(proof, first, second, given, picked, shown, chosen, told)


def manifest_of(proof: Proof) -> Proof:
    """The proof as a verifier sees it before an opening: without states."""
    return replace(proof, index={})


def open_(
    prepared: Prepared,
    task: AnyTask,
    key: PrivateKey,
    out: AnyPath,
    *,
    salt: AnyPath | None = None,
    book: AnyPath | None = None,
    verifier: str = "",
    progress: ProgressCallback = silent,
) -> Path:
    """Write the opening into the new folder ``out``.

    salt: the secret that the data's salts follow from. book: the owner's ledger, written before anything is disclosed; verifier: whom
    it names. Raises DataError where the task's data are not those under the root.
    """
    proof, target = prepared.proof, Path(out)
    files.require_new(target)
    if not set(prepared.answers.keys) & {key.public.digest}:
        raise UsageError("the answers were signed with another key; sign the opening with the same one")
    digests = proof.state_digests()
    if gone := [position for position in prepared.states if not proof.has_state(digests[position])]:
        raise UsageError(
            f"{len(gone)} of the states to open are not in the proof; bring them back first (`pol regenerate`)"
        )
    samples = _samples(proof, task, prepared.samples, salt, progress) if len(prepared.samples) else None
    if book is not None:
        data = proof.header.data
        entry = ledger.Opened(
            documents.told(documents.now()), verifier, prepared.second.digest(), proof.root, data.root, data.samples,
            prepared.states, ledger.bits(prepared.samples, data.samples),
        )  # fmt: skip
        ledger.save(book, ledger.load(book, Ledger).with_opening(entry))
    with files.writing(str(target)):
        (target / "answers").mkdir(parents=True)
    rewrite(
        proof, prepared.states, target / "proof", progress=lambda done, total: progress("opening states", done, total)
    )
    digest = None
    if samples is not None:
        raw = b"".join(bytes(piece) for piece in encode_tensors(samples.tensors()))
        digest = canonical.sha256(raw)
        files.write_atomic(target / SAMPLES_FILE, [raw], durable=True)
    for name in ("answers.json", "answers.dsse.json", answering.STATES_FILE, answering.OUTPUTS_FILE):
        _copy(prepared.answers.folder / name, target / "answers" / name)
    files.write_atomic(target / "first.json", [prepared.first.encoded()])
    files.write_atomic(target / "second.json", [prepared.second.encoded()])
    index = target / "proof" / format.INDEX_FILE
    head = OpeningHead(
        root=proof.root, challenge=prepared.second.digest(), index=answering.file_digest(index, index.stat().st_size),
        samples=digest,
    )  # fmt: skip
    files.write_atomic(target / "opening.dsse.json", [documents.sign(head, key)], durable=True)
    files.write_atomic(target / OPENING_FILE, [head.encoded()], durable=True)
    return target


def affordable(proof: Proof, task: AnyTask, share: float, kept: Ledger | None = None) -> int:
    """How many segments can be opened, whichever they are, with at most that share of the samples known to anybody afterwards.

    What is opened in any case (first and last segment, those whose states hold other tensors at their end, samples that outputs are
    looked at on or that show how many there are) counts.
    Raises UsageError where not even that is affordable.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a budget is a share of the samples, above 0 and up to 1, not {share:g}")
    data, every = proof.header.data, uses(proof, task)
    known = (kept or Ledger()).samples(data.root, data.samples)
    known[every[0]] = known[every[-1]] = known[witnesses(data.samples)] = True
    for index in _relaid(proof):
        known[every[index]] = True
    still = [index for index, columns in enumerate(proof.all_columns()) if (columns.rates == 0).all()]
    sizes = sorted((len(segment) for segment in every), reverse=True)
    beside = min(len(still), guarantee.uniform_draws_needed(len(still)))
    room = share * data.samples - int(known.sum()) - min(SAMPLES, data.samples) - sum(sizes[:beside])
    if room < 0:
        raise UsageError(f"a budget of {share:.1%} does not even cover what is opened in any case; raise it, or refuse")
    return int(np.searchsorted(np.cumsum(sizes), room, side="right"))


def _relaid(proof: Proof) -> Iterator[int]:
    """Segments that end in other tensors than they start from, of the states that are at hand."""
    before = None
    for position, digest in enumerate(proof.state_digests()):
        here = shapes(proof.state(digest)) if proof.has_state(digest) else None
        if position and None not in (before, here) and here != before:
            yield position - 1
        before = here


def left(proof: Proof, segments: int) -> str:
    """What so many drawn segments guarantee at least, in words."""
    count = len(proof.segments)
    forged = guarantee.forgeable_segments(count, min(count, -(-segments // 2)))
    return (
        f"at most {segments:,} segments are opened beside what is opened in any case: forging {forged:,} of {count:,} segments "
        f"({forged / count:.0%}) could then be missed with more than {guarantee.MISS_PROBABILITY:.0%}"
    )


def _samples(proof: Proof, task: AnyTask, chosen: Indices, salt: AnyPath | None, progress: ProgressCallback) -> Samples:
    claim = proof.header.data
    if claim.salted and salt is None:
        raise UsageError("the data root is salted; name the secret that it was made with (--salt)")
    data = load_task(task).data()
    own = salts.load(salt).salts(len(data)) if claim.salted and salt is not None else None
    hashed = leaves(data, salts=own, progress=lambda done: progress("hashing the data", done, len(data)))
    if "sha256:" + merkle_root(hashed).hex() != claim.root:
        raise DataError("the task's data (or the secret of their salts) are not those that the proof was made with")
    made = Samples.of(data, hashed, chosen.tolist(), own or [])
    first = int(chosen[0])
    if not _alike(data[first], decode_sample(made.encoded[0])):
        warnings.warn(
            RecordingWarning(
                "samples come back as tensors, tuples and plain dicts; an `augment` or `collate` that asks for other types may fail "
                "at the verifier's. Verify the opening yourself before you hand it over"
            ),
            stacklevel=2,
        )
    return made


def _alike(here: Any, back: Any) -> bool:
    """Whether a sample is of the same types when it was opened."""
    if isinstance(here, Mapping):
        return type(here) is dict and all(_alike(here[name], back[name]) for name in here)
    if isinstance(here, tuple) and type(here) is tuple:
        return all(map(_alike, here, back))
    return type(here) is type(back)


def _copy(source: Path, target: Path) -> None:
    with files.writing(str(target)):
        descriptor = files.open_regular(source)
        with os.fdopen(descriptor, "rb") as stream:
            files.write_atomic(target, iter(lambda: stream.read(1 << 20), b""))
