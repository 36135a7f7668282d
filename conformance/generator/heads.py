"""Cases of log heads in a chain, of gaps, and of keys that take an owner's place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from claims import finished, head, registered
from drafts import Draft, draft
from signed import FIRST, OTHER, OWNER, SECOND, STRANGER, attached, seal, small
from suite import ZERO, Suite
from tokens import Authority, Private, at, ec_key, envelope, public, token

from proof_of_learning.attestation import statements
from proof_of_learning.attestation.gaps import Gap, encode

Step = tuple[int, Authority, int]  # the segment, who stamps its head, and the year


def cases(suite: Suite) -> None:
    _heads(suite)
    _gaps(suite)
    _recoveries(suite)


def chained(
    made: Draft, steps: Sequence[Step], before: bytes | None = None, *, keep: Sequence[int] = (0, 1, 2)
) -> Draft:
    """A draft with heads, each with the token before in it (the first one: ``before``). keep: which of the tokens stay there."""
    for number, (segment, by, year) in enumerate(steps):
        link = {} if before is None else {"previous": f"sha256:{hashlib.sha256(before).hexdigest()}"}
        raw = head(made, segment, **link)
        before = token(by, raw, at(year))
        attached(made, "head-.json", raw)
        if number in keep:
            attached(made, "head-.tsr", before)
    return made


def _claimed() -> tuple[Draft, bytes]:
    """A run under a stamped claim, and the last token on that."""
    made = registered(stamps=[(FIRST, 2022)])
    return made, next(raw for name, raw in made.attestations.items() if name.endswith(".tsr"))


def _heads(suite: Suite) -> None:
    roots = ["first-tsa.pem", "second-tsa.pem"]
    two: list[Step] = [(0, FIRST, 2022), (1, OTHER, 2023)]

    def good(name: str, made: Draft, reason: str, roots: list[str] = roots) -> None:
        suite.passes(f"heads-{name}", "heads", made.files(), "head", reason, roots=roots)

    def bad(name: str, base: str, made: Draft, rule: str, says: str, reason: str, **given: Any) -> None:
        suite.fails(f"heads-{name}", f"heads-{base}", made.files(), rule, says, reason, **given)

    def with_head(**changes: Any) -> Draft:
        made = chained(small(), two)
        attached(made, "head-.json", head(made, 2, **changes))
        return made

    good("two", chained(small(), two), "Two heads; the second one contains the token on the first.")
    made, last = _claimed()
    good("claim", chained(made, [(0, FIRST, 2023)], last), "A head that contains the token on the claim.")
    good("unlinked", chained(small(), [(1, FIRST, 2022)]), "One head, which contains no token.")
    early: list[Step] = [(0, FIRST, 2023), (1, OTHER, 2022)]
    good(
        "untrusted",
        chained(small(), early),
        "A head before its predecessor, by an authority that nobody named.",
        ["first-tsa.pem"],
    )
    foreign = chained(small(), two)
    attached(foreign, "head-.json", head(draft(planned=9)))
    good("foreign", foreign, "With a head of another run, which says nothing of this one.")
    false = "no such beginning"
    bad("steps", "two", with_head(steps=4), "head.false", false, "A head is said to be after fewer steps.")
    bad(
        "unknown",
        "two",
        with_head(head=ZERO),
        "head.false",
        false,
        "A head of a line that is not in the log: the same run, trained otherwise.",
    )
    bad("previous", "two", with_head(previous="x"), "head.false", false, "What a head says it contains is no digest.")
    bad("more", "two", with_head(more=1), "head.false", false, "A head says more than one can.")
    bad(
        "link-missing",
        "two",
        chained(small(), two, keep=(1,)),
        "head.chain",
        "not here",
        "The token between two heads was taken away.",
    )
    bad(
        "link-claim",
        "claim",
        chained(registered(stamps=[(FIRST, 2022)]), [(0, FIRST, 2023)], b"x"),
        "head.chain",
        "not here",
        "The head contains another token than the one on the claim.",
    )
    bad(
        "reordered",
        "two",
        chained(small(), [(1, FIRST, 2022), (0, OTHER, 2023)]),
        "head.chain",
        "reordered",
        "A head contains a token on one that is after more steps.",
    )
    sealed = finished(registered())
    chained(
        sealed,
        [(0, FIRST, 2024)],
        next(raw for name, raw in sealed.attestations.items() if name.startswith("seal") and name.endswith(".tsr")),
    )
    bad("on-seal", "claim", sealed, "head.chain", "reordered", "A head contains the token on the finished proof.")
    bad(
        "order",
        "untrusted",
        chained(small(), early),
        "head.order",
        "a time before",
        "The second head is dated a year before the token that it contains.",
        roots=roots,
    )


def _gaps(suite: Suite) -> None:
    gap = Gap(after=2, since="2026-01-01T00:00:00Z", tries=3, why="the authority did not answer")

    def with_gaps(raw: bytes, like: str = "gaps-.json") -> dict[str, bytes]:
        made = small()
        attached(made, like, raw)
        return made.files()

    def bad(name: str, raw: bytes, says: str, reason: str, like: str = "gaps-.json") -> None:
        suite.fails(f"heads-gaps-{name}", "heads-gaps", with_gaps(raw, like), "gaps", says, reason, status=2)

    suite.passes("heads-gaps", "heads", with_gaps(encode([gap])), "gaps", "A list of one gap.", roots=["first-tsa.pem"])
    bad("schema", encode([gap]).replace(b"gaps/v1", b"gaps/v9"), "pol/gaps/v1", "A list of gaps of another version.")
    bad(
        "negative",
        encode([gap]).replace(b'"tries":3', b'"tries":-3'),
        "out of range",
        "A gap with fewer than no attempts.",
    )
    bad("long", encode([Gap(after=0, since="", tries=1, why="x" * 202)]), "too long", "A gap whose reason is too long.")
    bad("form", encode([gap]), "no list of gaps", "A list of gaps under the name of an envelope.", "gaps-.dsse.json")


def _recoveries(suite: Suite) -> None:
    owner, spare = public(OWNER).digest, SECOND

    def files(
        *signers: Private, by: Private = SECOND, named: Private | None = None, of: str = owner, claimed: str | None = None,
        then: Callable[[Draft], object] = lambda made: None, raw: Callable[[bytes], tuple[str, bytes]] | None = None, **claim: Any,
    ) -> dict[str, bytes]:  # fmt: skip
        """A finished run under a claim with a recovery key, which put a stranger's key in the owner's place; ``signers`` sealed it."""
        made = registered(stamps=[(FIRST, 2022)], **{"recovery": public(spare).digest, **claim})
        said = statements.recovery(
            claimed or made.header["randomness"]["claim"], of, public(STRANGER), [public(named or by)]
        )
        like, content = ("recovery-.dsse.json", envelope(said, [by])) if raw is None else raw(said)
        attached(made, like, content)
        for signer in signers:
            attached(made, "seal-.dsse.json", envelope(seal(made, signer), [signer]))
        then(made)
        return made.files()

    def good(
        name: str, made: dict[str, bytes], reason: str, keys: Sequence[str] = ("owner.pem",), threshold: int = 1
    ) -> None:
        suite.passes(f"recovered-{name}", "signed", made, "recovery", reason, keys=list(keys), threshold=threshold)

    def bad(
        name: str,
        made: dict[str, bytes],
        says: str,
        reason: str,
        base: str = "successor",
        rule: str = "signature",
        **given: Any,
    ) -> None:
        suite.fails(f"recovered-{name}", f"recovered-{base}", made, rule, says, reason, **given)

    good("successor", files(STRANGER), "The recovery key of the claim put the key that signed in the owner's place.")
    good("owner", files(OWNER), "The owner's own key counts all the same.")
    good("both", files(STRANGER, OWNER), "Both sign, and count once.", ["owner.pem", "second.pem"])
    bad(
        "both-twice",
        files(STRANGER, OWNER),
        "too few",
        "Owner and successor are not two of two keys.",
        "both",
        threshold=2,
    )
    bad("stranger", files(STRANGER, by=STRANGER), "another claim", "A stranger signed the statement.", rule="statement")
    bad(
        "no-signature",
        files(STRANGER, by=STRANGER, named=SECOND),
        "no signature",
        "The statement names the recovery key, and somebody else signed it.",
    )
    bad("bare", files(STRANGER, raw=lambda said: ("recovery-.json", said)), "too few", "Nobody signed the statement.")
    bad(
        "claim",
        files(STRANGER, claimed=ZERO),
        "another claim",
        "The statement is about another claim.",
        rule="statement",
    )
    bad("no-owner", files(STRANGER, of=public(STRANGER).digest), "too few", "It replaces somebody who is no owner.")
    bad("none", files(STRANGER, recovery=None), "another claim", "The claim names no recovery key.", rule="statement")
    bad(
        "unsigned",
        files(STRANGER, signers=[]),
        "no signature",
        "No owner signed the claim that names the recovery key.",
    )
    third, two = ec_key("recovery"), [owner, public(SECOND).digest]
    given = files(STRANGER, by=third, signers=[SECOND], owners=two, recovery=public(third).digest)
    bad(
        "given-away",
        given,
        "too few",
        "Another owner's claim names the key that is replaced, and its holder did not sign that.",
    )
