"""The verifier's two rounds: what is looked at follows from a seed drawn after the root, what is opened from a nonce drawn after the
answers. The owner draws again, so that a verifier cannot ask for what they like."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from proof_of_learning.data.opened import closed
from proof_of_learning.disputes import documents
from proof_of_learning.disputes.answers import Answers, read
from proof_of_learning.disputes.documents import AnyPath, First, Second
from proof_of_learning.disputes.looking import look
from proof_of_learning.disputes.owners import Owners
from proof_of_learning.errors import IntegrityError, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Describe, Described
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.verifier import guarantee, replaying
from proof_of_learning.verifier.options import Draw, Options
from proof_of_learning.verifier.plan import Challenge, challenge
from proof_of_learning.verifier.survey import Survey, survey
from proof_of_learning.verifier.verdict import Nonce
from proof_of_learning.verifier.walks import refuse_other_kind, refuse_other_settings

AnyTask = Task | TaskReference | str


def challenge_first(manifest: AnyPath, *, days: float | None = None) -> First:
    """The first challenge to the proof that a manifest is of. ``days``: until when answers are expected."""
    proof = opened_proof(manifest)
    return First(
        root=proof.root, claim=proof.header.randomness.claim, seed=documents.fresh(), due=documents.until(days)
    )


def challenge_second(
    manifest: AnyPath,
    first: First,
    answers: AnyPath,
    task: AnyTask,
    *,
    random: int | None = None,
    days: float | None = None,
    options: Options | None = None,
    progress: ProgressCallback = silent,
) -> tuple[Second, Challenge]:
    """The second challenge, on answers to the first; the nonce is drawn when these have been read whole.

    random: fewer segments than all guarantees need, half of them uniform. Returns what is drawn, too, with what it guarantees. Raises
    FormatError or IntegrityError for answers that are none, or are no answers to ``first``.
    """
    proof = opened_proof(manifest)
    given = read(Path(answers), proof, first, _whose(proof, options or Options()))
    with ExitStack() as stack:
        replayer = stack.enter_context(unopened(proof, task, options or Options()))
        found = looked(proof, given, replayer, reference(task))
        nonce = documents.fresh()
        drawn = documents.challenge_nonce(first.digest(), given.digest, nonce, own=True)
        picked = draw(proof, found, drawn, given, random)
    made = Second(
        root=proof.root, claim=proof.header.randomness.claim, first=first.digest(), answers=given.digest, nonce=nonce,
        segments=list(picked.segments.items()), due=documents.until(days),
    )  # fmt: skip
    return made, picked


def answered_by(manifest: AnyPath, answers: AnyPath, options: Options | None = None) -> list[str]:
    """Digests of the keys that signed the answers, of an owner's among them where the claim names owners."""
    head = documents.load(Path(answers) / documents.ANSWERS_FILE, documents.AnswersHead)
    whose = _whose(opened_proof(manifest), options or Options())
    return documents.signers(head, documents.envelope(Path(answers), "answers"), whose)


def _whose(proof: Proof, options: Options) -> Owners:
    return Owners.of(proof, options.claims.authorities, options.claims.revoked)


def draw(proof: Proof, found: Survey, nonce: Nonce, answers: Answers, random: int | None = None) -> Challenge:
    """What a nonce draws: by the rules of any verification, but nothing by rank, and no more than the owner set when they answered."""
    enough = _drawn(proof, found, nonce, answers, None)
    most = min((number for number in (answers.head.segments, random) if number is not None), default=None)
    return _drawn(proof, found, nonce, answers, most) if most is not None and most < _count(enough) else enough


def lowered(proof: Proof, found: Survey, nonce: Nonce, answers: Answers, picked: Challenge) -> tuple[int, int] | None:
    """How many random segments were drawn, of how many that all guarantees need; None where these are enough."""
    few, enough = _count(picked), _count(_drawn(proof, found, nonce, answers, None))
    return (few, enough) if few < enough else None


def _drawn(proof: Proof, found: Survey, nonce: Nonce, answers: Answers, number: int | None) -> Challenge:
    # No state is missing from the answers, and what the states at hand show must not steer the draw.
    seen = replace(found, missing=0, relaid=relaid(answers), irregular={})
    rules = Draw(top_q=0, random=number)
    return challenge(proof.steps, proof.header.training.interval, proof.root, seen, nonce, rules)


def _count(picked: Challenge) -> int:
    return picked.guarantee.uniform_draws + picked.guarantee.progress_draws


def relaid(answers: Answers) -> list[int]:
    """Segments that end in other tensors than they start from."""
    layout = answers.head.layout
    return [index for index in range(len(layout) - 1) if layout[index] != layout[index + 1]]


def redraw(proof: Proof, found: Survey, second: Second, answers: Answers, *, own: bool) -> Challenge:
    """What the second challenge draws. Raises IntegrityError where it says something else, or was made for other answers."""
    if second.root != proof.root or second.first != answers.first.digest() or second.answers != answers.digest:
        raise IntegrityError("the second challenge is about another proof, another first challenge or other answers")
    nonce = second.drawn(own=own)
    told = dict(second.segments)
    uniform = sum("uniform" in why for why in told.values())
    for random in (None, *_fewer(proof, answers, uniform)):
        picked = draw(proof, found, nonce, answers, random)
        if picked.segments == told and len(told) == len(second.segments):
            return picked
    raise IntegrityError("the second challenge names other segments than its nonce draws")


def _fewer(proof: Proof, answers: Answers, uniform: int) -> list[int]:
    """How many random segments a verifier may have asked for, by how many of them are uniform."""
    most = answers.head.segments
    return [number for number in (2 * uniform, 2 * uniform - 1) if number >= 0 and (most is None or number < most)]


def looked(proof: Proof, answers: Answers, replayer: Replayer, task: Task | TaskReference) -> Survey:
    """What draws are made from: the log and the answers, and no state. Raises UsageError where ``task`` has other settings."""
    described = replayer.ask(Describe())
    assert isinstance(described, Described)
    refuse_other_settings(proof, task, described)
    return look(proof, survey(proof), answers, replayer, described).found


def unopened(proof: Proof, task: AnyTask, options: Options) -> Replayer:
    """Somebody who can say what the task is, and is shown no sample."""
    named = reference(task)
    refuse_other_kind(proof, named)
    return replaying.replayer(proof, named, options, replaying.isolated(named, options.runtime), opened=closed())


def reference(task: AnyTask) -> Task | TaskReference:
    return TaskReference(task) if isinstance(task, str) else task


def opened_proof(path: AnyPath) -> Proof:
    """A proof, or the manifest of one, that can be challenged."""
    proof = Proof.open(path)
    if proof.header.program.kind == "script":
        raise UsageError(
            f"{path} is of a script; challenge and open needs a task, whose samples are those of one data set"
        )
    return proof


def chance(picked: Challenge, proof: Proof) -> str:
    """What a draw guarantees, in words."""
    told = picked.guarantee
    parts = [
        f"{share:.0%} of {what}"
        for share, what in (
            (told.forged_fraction, "the segments"),
            (told.function_fraction, "the function's progress"),
            (told.progress_fraction, "the weights' progress"),
        )
        if share is not None
    ]
    return (
        f"a forgery of more than {', '.join(parts)} is hit with {1 - guarantee.MISS_PROBABILITY:.0%}"
        if parts
        else "nothing"
    )
