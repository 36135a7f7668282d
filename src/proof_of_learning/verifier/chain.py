"""Chain of trust: a run that starts from the final state of another valid proof, followed back to a random or trusted start.

A forger lies in one link, so the weakest link decides; the paper multiplies the links' probabilities of success (section
VIII), which is reported beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proof_of_learning.errors import UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.task import Task, TaskReference
from proof_of_learning.verifier.verdict import Assurance, Chain, ChainLink, Verdict

ASSURANCE: tuple[Assurance, ...] = ("observed", "seed-derived", "registered")  # weakest first
STRENGTH = ("invalid", "inconclusive", "valid")


@dataclass(frozen=True)
class Link:
    """A proof of the chain, and the task to hold it against (None: only a trusted root can make it count)."""

    path: Path
    task: Task | TaskReference | None
    root: str


def open_links(given: Iterable[tuple[str | os.PathLike[str], Task | TaskReference | str | None]]) -> list[Link]:
    """Open the proofs of a chain. UsageError for one given twice: a link has one parent."""
    links: list[Link] = []
    for path, task in given:
        root = Proof.open(path).root
        for other in links:
            if other.root == root:
                raise UsageError(f"--chain: {path} and {other.path} are the same proof; a chain has each link once")
        links.append(Link(Path(path), TaskReference(task).absolute() if isinstance(task, str) else task, root))
    return links


def parent_of(proof: Proof, links: Sequence[Link]) -> Link | None:
    """The link that ``proof`` says it starts from; None if it starts from no proof or the link was not given."""
    root = proof.header.initialization.proof
    return next((link for link in links if link.root == root), None)


def follow(
    proof: Proof,
    links: Sequence[Link],
    trusted: Iterable[str],
    verify: Callable[[Link, Sequence[Link]], Verdict],
) -> Chain | None:
    """Verify the chain behind ``proof``; None if it starts from no other proof.

    ``verify`` verifies one link with the links that remain for its own chain. Raises UsageError for links that belong to no
    place in the chain, and where it loops.
    """
    wanted = proof.header.initialization.proof
    if wanted is None:
        if links:
            raise UsageError(f"--chain: {links[0].path} is not part of the chain; this proof starts from no other")
        return None
    if wanted == proof.root:
        raise UsageError("--chain: the proof names itself as its start; a chain cannot loop")
    parent = parent_of(proof, links)
    if parent is None:
        return Chain(links=[ChainLink(root=wanted, verdict="inconclusive", reason="the link was not given (--chain)")])
    rest = [link for link in links if link is not parent]
    if wanted in set(trusted):
        if rest:
            raise UsageError(f"--chain: {rest[0].path} lies behind a trusted start; leave it out")
        return Chain(links=[ChainLink(root=wanted, verdict="valid", reason="trusted by the verifier", trusted=True)])
    verdict = verify(parent, rest)
    link = ChainLink(
        root=wanted,
        verdict=verdict.verdict,
        reason=_reason(verdict),
        assurance=verdict.assurance,
        task=verdict.conditions.task,
        probability=1.0 - verdict.guarantee.miss_probability,
    )
    behind = verdict.chain.links if verdict.chain else []
    return Chain(links=[link, *behind])


def _reason(verdict: Verdict) -> str:
    """What decided about a link and, where it is valid, its own guarantee: its segments are drawn by themselves."""
    given, segments = verdict.guarantee, f"{len(verdict.segments)} of {verdict.proof.segments} segments"
    if verdict.verdict != "valid" or given.forged_fraction is None:
        return verdict.reason
    return (
        f"{verdict.reason}; {segments} were replayed, which miss a forgery of more than {given.forged_fraction:.2%} of them "
        f"with a probability of at most {given.miss_probability:.2%}"
    )


def assurance(proof: Proof, chain: Chain | None, *, registered: bool = False) -> Assurance:
    """What the proof's randomness rests on; with a chain, what that of its weakest link does.

    registered: whether its claim was signed by its owners and stamped before training.
    """
    header = proof.header
    derived = header.randomness.mode == "derived" and header.initialization.kind != "recorded"
    own: Assurance = "observed" if not derived else "registered" if registered else "seed-derived"
    return own if chain is None else min(own, weakest(chain).assurance, key=ASSURANCE.index)


def weakest(chain: Chain) -> ChainLink:
    """The link that decides: the worst verdict, then the weakest assurance."""
    return min(chain.links, key=lambda link: (STRENGTH.index(link.verdict), ASSURANCE.index(link.assurance)))
