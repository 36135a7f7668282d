"""Cases of registered claims, of dates of statements, and of signed verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import drafts
from drafts import Draft, Files, draft
from signed import FIRST, OTHER, OWNER, SECOND, STRANGER, attached, seal, small
from suite import ZERO, Suite
from tokens import (
    Authority,
    Private,
    at,
    envelope,
    public,
    token,
)

from proof_of_learning import canonical, sources
from proof_of_learning.attestation import statements, timestamps
from proof_of_learning.proof import format


def cases(suite: Suite) -> None:
    _registered(suite)
    _verdicts(suite)


def claim_of(made: Draft, **changes: Any) -> dict[str, Any]:
    """The claim that a draft keeps to."""
    header = made.header
    fields: dict[str, Any] = {
        "format": header["format"],
        "task": header["task"]["digest"],
        "name": header["task"]["name"],
        "data": header["data"],
        "steps": header["training"]["planned"],
        "interval": header["training"]["interval"],
        "steps_per_epoch": header["training"]["steps_per_epoch"],
        "codec": header["codec"],
        "environment": drafts.ENVIRONMENT,
        "nonce": "ab" * 32,
        "arithmetic": header["arithmetic"],
        "sources": sources.digest(header["task"]["digest"], header["task"]["sources"]),
        "arguments": [],
        "settings": header["program"]["settings"],
        "sealed": None,
        "inputs": [],
        "start": None,
        "owners": [public(OWNER).digest],
        "threshold": 1,
        "recovery": None,
    }
    return fields | changes


def claim_digest(fields: dict[str, Any]) -> str:
    return canonical.sha256(b"pol/v2/claim\0", canonical.encode(fields))


def registered(
    *,
    signers: Sequence[Private] = (OWNER,),
    named: Sequence[Private] | None = None,
    stamps: Sequence[tuple[Authority, int]] = ((FIRST, 2022), (OTHER, 2022)),
    anchored: bool = True,
    anchor: str | None = None,
    change: Callable[[Draft], object] = lambda made: None,
    stamp_payload: bool = False,
    stated: dict[str, Any] | None = None,
    make: Callable[[], Draft] = small,
    **claimed: Any,
) -> Draft:
    """A run under a claim that was signed and stamped; the keywords say what deviates.

    signers: who signs the claim; named: whom its statement names (default: the owners).
    stamps: who stamps it, and when. anchored: whether the key follows from the last token; anchor: the one in its place.
    change: what becomes of the draft before it is finished. stated: the claim that is signed, if it is another one.
    make: what runs under it.
    """
    made = make()
    fields = claim_of(made, **claimed)
    digest = claim_digest(fields)
    told = stated or fields
    names = [public(key) for key in (named or [OWNER] if len(fields["owners"]) < 2 else [OWNER, SECOND])]
    raw = envelope(statements.claim(told, claim_digest(told), names), signers)
    attached(made, "claim-.dsse.json", raw)
    if stamp_payload:
        raw = statements.claim(told, claim_digest(told), names)
    found = None
    for number, (by, year) in enumerate(stamps):
        raw = token(by, raw, at(year, number))
        attached(made, "claim-.tsr", raw)
        found = timestamps.parse(raw, "").anchor
    own = anchor or (found if anchored else None)
    key = digest if own is None else canonical.sha256(b"pol/v2/anchored\0", digest.encode(), b"\0", own.encode())
    made.header["claim"] = fields
    made.header["randomness"] |= {"key": key[7:], "seed": None, "claim": digest, "anchor": own}
    change(made)
    return made


def finished(made: Draft, *, year: int = 2023, stamped: bool = True) -> Draft:
    """The same with the owner's signed seal, stamped."""
    raw = envelope(seal(made, OWNER), [OWNER])
    attached(made, "seal-.dsse.json", raw)
    if stamped:
        attached(made, "seal-.tsr", token(FIRST, raw, at(year)))
    return made


def head(made: Draft, number: int = 0, **changes: Any) -> bytes:
    """The unsigned statement on the log's line of a segment. ``changes``: of its predicate."""
    files = made.files()
    lines = [raw for raw in files["log.jsonl"].split(b"\n") if b'"kind":"segment"' in raw]
    value = json.loads(
        statements.head(
            drafts.sha(files["header.json"]), format.line_digest(lines[number]), made.segments[number]["stop"], []
        )
    )
    value["predicate"] |= changes
    return canonical.encode(value)


def _registered(suite: Suite) -> None:
    roots = ["first-tsa.pem", "second-tsa.pem"]

    def good(name: str, made: Draft, reason: str, roots: list[str] = roots) -> None:
        suite.passes(f"registered-{name}", "registered", made.files(), "registered", reason, roots=roots)

    def bad(name: str, made: Draft, rule: str, says: str, reason: str, base: str = "owner", **given: Any) -> None:
        suite.fails(f"registered-{name}", f"registered-{base}", made.files(), rule, says, reason, **given)

    good(
        "owner",
        registered(),
        "The owner signed the claim, two authorities stamped it in turn, and the key follows from the last token.",
    )
    good("last-trusted", registered(), "Of two authorities only the last one is named: it decides.", ["second-tsa.pem"])
    two = [public(OWNER).digest, public(SECOND).digest]
    good("two-owners", registered(signers=[OWNER, SECOND], owners=two, threshold=2), "Two owners, who both signed.")
    good("finished", finished(registered()), "With a signed and stamped seal.")
    bad(
        "first-trusted",
        registered(),
        "registered",
        "last timestamp",
        "Only the first of two authorities is named, and the last one chose the key.",
        "last-trusted",
        roots=["first-tsa.pem"],
    )
    bad("unsigned", registered(signers=[]), "registered", "is not here", "Nobody signed the claim that was stamped.")
    bad(
        "stranger",
        registered(signers=[STRANGER], named=[STRANGER]),
        "registered",
        "as many of its owners",
        "A stranger signed the owner's claim.",
    )
    bad(
        "threshold",
        registered(signers=[OWNER], owners=two, threshold=2),
        "registered",
        "as many of its owners",
        "One of two owners signed.",
        "two-owners",
    )
    bad(
        "unstamped",
        registered(stamps=[], anchored=False),
        "registered",
        "does not follow from a timestamp",
        "Nobody stamped the claim.",
    )
    bad(
        "stamped-later",
        registered(anchored=False),
        "registered",
        "does not follow from a timestamp",
        "The claim is stamped, but the key is the claim's own: it could have been stamped after training.",
    )
    bad(
        "anchor-missing",
        registered(anchor=ZERO),
        "registered",
        "is not here",
        "The key follows from a token that is not here.",
    )
    bad(
        "payload-stamped",
        registered(stamp_payload=True),
        "registered",
        "is not here",
        "The statement was stamped without its signatures.",
    )
    gone = registered()
    gone.attestations = {
        name: raw for name, raw in gone.attestations.items() if name.endswith(".json") or b"Second root" in raw
    }
    bad(
        "link-missing",
        gone,
        "registered",
        "is not here",
        "The first of two tokens was taken away, so the second one is on nothing that is here.",
    )
    bad("no-sources", registered(sources=None), "registered", "sources", "The claim does not fix the task's sources.")
    bad("no-owners", registered(owners=[], threshold=0), "registered", "no owner", "The claim names no owner.")
    bad(
        "another-claim",
        registered(stated=claim_of(small(), nonce="cd" * 32)),
        "registered",
        "is not here",
        "The owner signed another claim.",
    )
    bad(
        "key",
        registered(change=lambda m: m.header["randomness"].update(key="ab" * 32)),
        "claim.key",
        "the key is not",
        "The key is not the one that follows from claim and token.",
    )
    bad(
        "digest",
        registered(change=lambda m: m.header["randomness"].update(claim=ZERO)),
        "claim.key",
        "is not here",
        "The header names another claim's digest.",
    )
    bad("steps", registered(steps=9), "claim.kept", "the claim fixes", "The run has other steps than claimed.")
    bad(
        "data",
        registered(data={**drafts.data(), "root": ZERO}),
        "claim.kept",
        "the claim fixes",
        "The run has other data than claimed.",
    )
    bad(
        "setting",
        registered(settings={"rate": 0.25}),
        "claim.kept",
        "the claim fixes",
        "The run has other settings than claimed.",
    )
    bad(
        "environment",
        registered(environment={**drafts.ENVIRONMENT, "threads": 2}),
        "claim.kept",
        "the claim fixes",
        "The run has another environment than claimed.",
    )
    bad(
        "recorded",
        registered(change=lambda m: m.header["initialization"].update(kind="recorded")),
        "claim.kept",
        "recorded",
        "Under a claim, the initial state was recorded.",
    )

    def stamped(name: str, statement: str, made: Draft, reason: str) -> None:
        suite.passes(
            f"stamped-{name}", "stamped", made.files(), "stamp", reason, roots=["first-tsa.pem"], statement=statement
        )

    def unstamped(name: str, made: Draft, rule: str, says: str, reason: str, base: str, **given: Any) -> None:
        suite.fails(f"stamped-{name}", f"stamped-{base}", made.files(), rule, says, reason, **given)

    def with_head(make: Callable[[Draft], bytes], *, others: bytes | None = None, like: str = "head") -> Draft:
        made = small()
        raw = make(made)
        attached(made, "head-.json", raw)
        attached(made, f"{like}-.tsr", token(FIRST, raw if others is None else others, at(2022)))
        return made

    ignored = "says something else"
    stamped("head", "head", with_head(head), "An unsigned statement on a line of the log, stamped while training.")
    unstamped(
        "head-steps",
        with_head(lambda m: head(m, steps=4)),
        "statement",
        ignored,
        "The log head is said to be after more steps.",
        "head",
    )
    unstamped(
        "head-unknown",
        with_head(lambda m: head(m, head=ZERO)),
        "statement",
        ignored,
        "The log head is of a line that is not in the log.",
        "head",
    )
    unstamped(
        "head-elsewhere",
        with_head(lambda m: head(draft(planned=9))),
        "statement",
        ignored,
        "The log head is of another proof.",
        "head",
    )
    unstamped(
        "head-other-bytes",
        with_head(head, others=b"x"),
        "stamp",
        "stamps something else",
        "The token is on something else.",
        "head",
    )
    unstamped(
        "head-kind",
        with_head(head, like="seal"),
        "stamp",
        "stamps something else",
        "A token on a log head under the name of one on a seal.",
        "head",
    )
    stamped("seal", "seal", finished(registered()), "A signed seal, stamped.")
    early = finished(registered(), year=2021)
    unstamped(
        "seal-early",
        early,
        "stamp.order",
        "before the claim was stamped",
        "A finished proof dated before the claim that its key follows from.",
        "seal",
        roots=roots,
    )
    unstamped(
        "seal-untrusted",
        finished(registered()),
        "token.chain",
        "vouches",
        "Of an authority that the verifier did not name.",
        "seal",
        roots=["second-tsa.pem"],
    )


def _verdicts(suite: Suite) -> None:
    told: dict[str, Any] = {
        "schema": "pol/verdict/v1",
        "verdict": "valid",
        "assurance": "registered",
        "randomness": "derived",
        "exactness": "exact",
        "conditions": {"task": ZERO, "sources": None, "data": ZERO, "more": 1},
        "proof": {"root": ZERO, "steps": 5, "segments": 3, "interval": 2, "final_weights": ZERO},
        "checks": [],
        "guarantee": {"forged_fraction": 0.1, "miss_probability": 0.01},
        "nonce": {"value": "ab" * 32, "origin": "drawn"},
        "rules": "0.1.0",
        "policy": None,
    }
    raw = json.dumps(told, indent=2).encode()

    def part(name: str, *fields: str) -> dict[str, Any]:
        return {field: told[name].get(field) for field in fields}

    repeated = {
        "verdict": "valid",
        "assurance": "registered",
        "proof": part("proof", "root", "final_weights"),
        "conditions": part("conditions", "task", "sources", "data"),
        "nonce": told["nonce"],
        "guarantee": told["guarantee"],
        "rules": "0.1.0",
        "policy": None,
    }

    def files(fields: dict[str, Any], file: bytes = raw, kind: str | None = None) -> Files:
        payload = statements.verdict(raw, fields, [public(OWNER)])
        if kind is not None:
            payload = payload.replace(b"training:verdict:v1", kind.encode())
        return {"verdict.json": file, "verdict.json.dsse.json": envelope(payload, [OWNER])}

    suite.passes(
        "verdict-signed",
        "verdict",
        files(repeated),
        "verdict",
        "A verdict signed by whom the verifier trusts.",
        keys=["owner.pem"],
    )

    def bad(name: str, made: Files, says: str, reason: str, status: int = 1, rule: str = "statement") -> None:
        suite.fails(f"verdict-{name}", "verdict-signed", made, rule, says, reason, status=status)

    none = "none of the keys"
    bad("edited", files(repeated, raw.replace(b'"valid"', b'"invalid"')), none, "The verdict's file was edited.")
    bad(
        "repeats",
        files({**repeated, "verdict": "invalid"}),
        none,
        "The statement repeats another verdict than the file's.",
    )
    bad("more", files({**repeated, "certified": True}), none, "The statement says more than is repeated of a verdict.")
    bad("space", files(repeated, raw + b"\n"), none, "The file has a byte more, and means the same.")
    bad("type", files(repeated, kind="training:seal:v1"), none, "The statement is of another type.")
    suite.fails(
        "verdict-stranger",
        "verdict-signed",
        files(repeated),
        "signature",
        none,
        "Signed by somebody whom the verifier does not trust.",
        keys=["stranger.pem"],
    )
