"""``dispute``: several proofs about one model, side by side. What each shows is found out in the same way, and nothing is added up.

Every proof is opened first; when all roots are known, one nonce is drawn, and each is verified once, by the rules of any
verification. Then ends and starts are compared, with the disputed model and with each other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import msgspec
from torch import Tensor

from proof_of_learning.disputes import findings, is_opening, likeness, models, starts
from proof_of_learning.disputes.dependence import depend
from proof_of_learning.disputes.likeness import EXACT, Likeness, liken
from proof_of_learning.disputes.models import Model, of_state, pair
from proof_of_learning.disputes.starts import FRESH, Rank
from proof_of_learning.disputes.table import Dispute, Named, Row, decide
from proof_of_learning.errors import PolError, UsageError
from proof_of_learning.progress import ProgressCallback, silent
from proof_of_learning.proof import remote
from proof_of_learning.proof.reader import Proof
from proof_of_learning.registration import owners
from proof_of_learning.replay.pool import MakePool
from proof_of_learning.replay.protocol import Describe
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.verifier import replaying
from proof_of_learning.verifier.chain import Link, open_links, parent_of
from proof_of_learning.verifier.checks.endpoint import compare_model
from proof_of_learning.verifier.options import Choices, Options
from proof_of_learning.verifier.plan import make_nonce
from proof_of_learning.verifier.verdict import Nonce, Verdict
from proof_of_learning.verifier.verify import verify

AnyPath = str | os.PathLike[str]
AnyTask = Task | TaskReference | str | None
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOT_LOOKED = "it was not looked at, for an earlier check failed"


@dataclass(frozen=True)
class Side:
    """One proof of a dispute: as it was named, and opened. ``links``: of the chain behind it, those that belong to it."""

    label: str
    named: str
    task: Task | TaskReference | None
    proof: Proof
    links: tuple[Link, ...]

    def tensors(self, digest: str) -> dict[str, Tensor] | None:
        """The weights in one of its states; None where it no longer holds that."""
        return of_state(self.proof.state(digest).part("model")) if self.proof.has_state(digest) else None

    @property
    def final(self) -> str:
        return self.proof.segments[-1].state


def dispute(
    model: AnyPath,
    /,
    proofs: Iterable[tuple[AnyPath, AnyTask]],
    options: Options | None = None,
    *,
    chain: Iterable[tuple[AnyPath, AnyTask]] = (),
    trust: Iterable[str] = (),
    fresh: int = FRESH,
    progress: ProgressCallback = silent,
    pool: MakePool | None = None,
    **choices: Unpack[Choices],
) -> Dispute:
    """Put side by side what each of several proofs shows about the model in a safetensors file, or in a folder of such files.

    proofs: each with the task that it is held against. options: as of :func:`verify`, the same for all; trusted keys are names that
    the verifier knows, and no proof has to be signed with one (but for those that a policy asks for). chain: the proofs behind runs
    that start from others. trust: roots that need no verification. fresh: how many starts from fresh keys the disputed model is held
    against, where a proof is registered; 0: none.

    Raises FormatError or UsageError for what cannot be read, TaskError where a task's code fails.
    """
    if options is not None and choices:
        raise TypeError("dispute() takes options, or their fields as keywords, not both")
    options = Options.of(choices) if options is None else options
    claims = options.claims
    drawn = options.draw.nonce is not None or options.draw.beacon is not None
    if claims.model is not None or claims.registration is not None or drawn:
        raise UsageError(
            "a dispute is about one model and draws its own nonce; model, registration, nonce and beacon cannot be set"
        )
    if fresh < 0:
        raise UsageError("the number of fresh keys cannot be negative")
    disputed = models.load(model)
    with ExitStack() as opened:
        sides = list(_opened(opened, proofs, open_links(chain), progress))
        nonce = make_nonce(None)  # all roots are known
        verdicts = [_verified(side, options, nonce, tuple(trust), progress, pool) for side in sides]
        rows = [
            _row(side, verdict, Path(model), disputed, options, fresh, progress, pool)
            for side, verdict in zip(sides, verdicts, strict=True)
        ]
        pairs = [(row, side) for row, side in zip(rows, sides, strict=True) if _readable(row)]
        common = depend([(row, _ends(side)) for row, side in pairs], disputed.tensors)
        found = findings.findings(rows, {row.label: side.proof for row, side in pairs}, common)
    outcome, reason = decide(rows)
    named = Named(os.fspath(model), dict(disputed.files), len(disputed.tensors), disputed.parameters)
    return Dispute(named, nonce, rows, common, outcome, reason, found)


def _opened(
    opened: ExitStack, proofs: Iterable[tuple[AnyPath, AnyTask]], links: Sequence[Link], progress: ProgressCallback
) -> Iterator[Side]:
    given = list(proofs)
    if not 1 <= len(given) <= len(LABELS):
        raise UsageError(f"a dispute has 1 to {len(LABELS)} proofs, not {len(given)}")
    used = set[str]()
    for label, (path, task) in zip(LABELS, given, strict=False):
        with _about(label, path):
            if not remote.is_remote(path) and is_opening(path):
                raise UsageError("it is an opening, whose states are not all there; verify it by itself (`pol verify`)")
            here = opened.enter_context(
                remote.local(path, lambda done, total: progress("copying a proof", done, total))
            )
            proof = Proof.open(here)
            behind = _behind(proof, links)
            used |= {link.root for link in behind}
            named = TaskReference(task).absolute() if isinstance(task, str) else task
            yield Side(label, os.fspath(path), named, proof, behind)
    if unused := [link for link in links if link.root not in used]:
        raise UsageError(f"--chain: {unused[0].path} lies behind none of the proofs")


def _behind(proof: Proof, links: Sequence[Link]) -> tuple[Link, ...]:
    """The links that a proof starts from, one behind the other."""
    found: list[Link] = []
    while (link := parent_of(proof, links)) is not None and link not in found:
        found.append(link)
        proof = Proof.open(link.path)
    return tuple(found)


def _of_one(options: Options, nonce: Nonce) -> Options:
    """The options for the verification of one proof: the common nonce, and no key that it has to be signed with but a policy's."""
    claims, policy = options.claims, options.claims.policy
    required = () if policy is None else tuple(policy.trust.keys or ())
    threshold = 1 if policy is None else policy.trust.threshold
    return dataclasses.replace(
        options,
        draw=dataclasses.replace(options.draw, drawn=nonce),
        claims=dataclasses.replace(claims, trusted_keys=required, threshold=threshold),
    )


def _verified(
    side: Side,
    options: Options,
    nonce: Nonce,
    trust: tuple[str, ...],
    progress: ProgressCallback,
    pool: MakePool | None,
) -> Verdict:
    with _about(side.label, side.named):
        verdict = verify(
            side.proof.path,
            side.task,
            _of_one(options, nonce),
            chain=[(link.path, link.task) for link in side.links],
            trust=trust,
            progress=progress,
            pool=pool,
        )
        if verdict.proof.root not in ("", side.proof.root):
            raise UsageError("it was changed while it was being verified")
    known = options.claims.trusted_keys
    signers = [msgspec.structs.replace(signer, trusted=signer.key in known) for signer in verdict.signers]
    return msgspec.structs.replace(verdict, signers=signers)


def _readable(row: Row) -> bool:
    """Whether what it holds can be believed to be what it says: a refused proof contradicts itself."""
    return bool(row.verdict.proof.root)


def _row(
    side: Side,
    verdict: Verdict,
    path: Path,
    disputed: Model,
    options: Options,
    fresh: int,
    progress: ProgressCallback,
    pool: MakePool | None,
) -> Row:
    with _about(side.label, side.named):
        end = _end(side, verdict, path, disputed)
        unregistered = _unregistered(verdict)
        return Row(
            label=side.label,
            proof=side.named,
            task=_target(side.task),
            verdict=verdict,
            owners=owners(side.proof.header),
            unregistered=unregistered,
            end=end,
            finished=findings.finished(verdict, side.proof),
            rank=_rank(side, verdict, unregistered, disputed, options, fresh, progress, pool),
        )


def _end(side: Side, verdict: Verdict, path: Path, disputed: Model) -> Likeness:
    """What the disputed model is to the proof's end."""
    if not verdict.proof.root:
        return likeness.missing("the proof contradicts itself, so that nothing in it is what it says")
    final = side.tensors(side.final)
    if final is None:
        return likeness.missing("the proof does not hold its final state any more")
    if not compare_model(side.proof, path):
        return EXACT
    start = side.tensors(side.proof.initial_state)
    found = liken(pair(final, disputed.tensors), None if start is None else pair(start, disputed.tensors))
    if found.kind == "other" and (share := models.shared_values(final, disputed.tensors)) > likeness.COMPARED:
        text = f"tensors of other shapes, with {share:.0%} of the numbers of the proof's end in them"
        return msgspec.structs.replace(found, kind="related", summary=text)
    return found


def _unregistered(verdict: Verdict) -> str:
    """Why its claim does not count as made before training; empty where it does."""
    evidence = verdict.check("attestation").evidence
    if not evidence:
        return NOT_LOOKED
    return str(evidence.get("not_registered", ""))


def _rank(
    side: Side,
    verdict: Verdict,
    unregistered: str,
    disputed: Model,
    options: Options,
    fresh: int,
    progress: ProgressCallback,
    pool: MakePool | None,
) -> Rank:
    if unregistered or verdict.verdict != "valid" or side.task is None:
        why = (
            "the proof is not valid"
            if verdict.verdict != "valid"
            else "it is not registered: its key could have been chosen"
        )
        return Rank(why=why)
    proof = side.proof
    if not fresh or not proof.has_state(proof.initial_state):
        return Rank(why="the proof does not hold its first state" if fresh else "not asked for (--fresh)")
    parent, isolation = parent_of(proof, side.links), replaying.isolated(side.task, options.runtime, pool)
    behind = None if parent is None else parent.path
    with replaying.replayer(proof, side.task, options, isolation, behind, pool) as replayer:
        replayer.begin()
        replayer.ask(Describe())
        start = proof.state(proof.initial_state).part("model")
        return starts.rank(disputed.tensors, start, replayer, make_nonce(None), fresh, progress)


def _ends(side: Side) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """The weights at both ends of the run."""
    return side.tensors(side.proof.initial_state), side.tensors(side.final)


def _target(task: Task | TaskReference | None) -> str | None:
    if task is None:
        return None
    reference = task if isinstance(task, TaskReference) else task.reference
    return "(an object)" if reference is None else reference.target


@contextmanager
def _about(label: str, path: AnyPath) -> Iterator[None]:
    """Errors that say which of the proofs they are about."""
    try:
        yield
    except PolError as error:
        raise type(error)(f"proof {label} ({os.fspath(path)}): {error}") from error
