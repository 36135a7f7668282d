"""Cases of statements and signatures beside a proof."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import drafts
from cryptography.hazmat.primitives.serialization import Encoding
from drafts import Draft, Files, draft
from suite import ZERO, Suite
from tokens import (
    Private,
    authority,
    ec_key,
    ed_key,
    encoded,
    envelope,
    pem,
    public,
    sign,
    text,
)

from proof_of_learning import canonical, sources
from proof_of_learning.attestation import statements
from proof_of_learning.attestation.signatures import PublicKey, pae
from proof_of_learning.attestation.statements import Sealed

OWNER, SECOND, STRANGER, EDWARDS = ec_key("owner"), ec_key("second owner"), ec_key("stranger"), ed_key("owner")
FIRST, OTHER = authority("First"), authority("Second", kind="rsa")


def cases(suite: Suite) -> None:
    suite.given |= {
        "owner.pem": pem(OWNER),
        "second.pem": pem(SECOND),
        "stranger.pem": pem(STRANGER),
        "edwards.pem": pem(EDWARDS),
        "first-tsa.pem": FIRST.roots(),
        "second-tsa.pem": OTHER.roots(),
        "first-tsa-leaf.pem": FIRST.leaf.public_bytes(Encoding.PEM),
    }
    _signed(suite)


def attached(made: Draft, like: str, raw: bytes) -> str:
    """Put a file beside the root, under the name that it then has."""
    kind, _, rest = like.partition("-")
    name = f"{kind}-{drafts.sha(raw)[:16]}.{rest.partition('.')[2]}"
    made.attestations[name] = raw
    return name


def facts(made: Draft) -> Sealed:
    """What a seal statement says of a draft."""
    files, header = made.files(), made.header
    return Sealed(
        header=drafts.sha(files["header.json"]),
        log=drafts.sha(files["log.jsonl"]),
        root=made.root,
        format=header["format"],
        claim=header["randomness"]["claim"],
        anchor=header["randomness"]["anchor"],
        task=header["task"]["digest"],
        name=header["task"]["name"],
        sources=sources.digest(header["task"]["digest"], header["task"]["sources"]),
        data=header["data"]["root"],
        samples=header["data"]["samples"],
        parent=header["initialization"]["proof"],
        steps=made.log[-1]["steps"],
        segments=len(made.segments),
        interval=header["training"]["interval"],
        final_weights=made.log[-1]["final_weights"],
    )


def seal(made: Draft, *keys: Private | PublicKey) -> bytes:
    """The statement that a draft is finished."""
    return statements.seal(facts(made), [key if isinstance(key, PublicKey) else public(key) for key in keys])


def small() -> Draft:
    made = draft()
    made.drop(0, 1, 2)
    return made


def _signed(suite: Suite) -> None:
    def files(change: Callable[[Draft], object]) -> Files:
        made = small()
        change(made)
        return made.files()

    def beside(raw: bytes) -> Callable[[Draft], object]:
        return lambda made: attached(made, "seal-.dsse.json", raw)

    def good(
        name: str,
        change: Callable[[Draft], object],
        reason: str,
        keys: Sequence[str] = ("owner.pem",),
        threshold: int = 1,
    ) -> None:
        suite.passes(
            f"signed-{name}", "signed", files(change), "signature", reason, keys=list(keys), threshold=threshold
        )

    def bad(
        name: str,
        change: Callable[[Draft], object],
        rule: str,
        says: str,
        reason: str,
        base: str = "p256",
        status: int = 1,
        **given: Any,
    ) -> None:
        suite.fails(f"signed-{name}", f"signed-{base}", files(change), rule, says, reason, status=status, **given)

    plain = small()
    payload = seal(plain, OWNER)
    value = json.loads(payload)
    true = sign(OWNER, pae(payload))
    good("p256", beside(envelope(payload, [OWNER])), "Signed with ECDSA over P-256.")
    good("ed25519", beside(envelope(seal(plain, EDWARDS), [EDWARDS])), "Signed with Ed25519.", ["edwards.pem"])
    both = seal(plain, OWNER, SECOND)
    good(
        "two", beside(envelope(both, [SECOND, OWNER])), "Two keys signed one statement.", ["owner.pem", "second.pem"], 2
    )

    def apart(made: Draft) -> None:
        attached(made, "seal-.dsse.json", envelope(payload, [OWNER]))
        attached(made, "seal-.dsse.json", envelope(seal(plain, SECOND), [SECOND]))

    good("apart", apart, "Two keys signed a statement each.", ["owner.pem", "second.pem"], 2)
    url_safe = text(true).replace("+", "-").replace("/", "_")
    lenient = {
        "payloadType": "application/vnd.in-toto+json",
        "payload": text(payload),
        "unknown": {"a": 1},
        "signatures": [
            {"sig": "//////"},
            {"keyid": "somebody else", "sig": url_safe, "extra": [1]},
            {"keyid": "x", "sig": text(true)},
        ],
    }
    good(
        "lenient",
        beside(json.dumps(lenient, indent=1).encode()),
        "Envelopes are read leniently: key ids, unknown fields, repetitions, white space.",
    )

    def with_false(made: Draft) -> None:
        attached(made, "seal-.dsse.json", envelope(payload, [OWNER]))
        attached(
            made,
            "seal-.dsse.json",
            envelope(statements.seal(_changed(plain, root=ZERO), [public(STRANGER)]), [STRANGER]),
        )

    good(
        "false-beside", with_false, "A stranger's statement about another root lies beside: it neither helps nor harms."
    )

    def fields(change: Callable[[dict[str, Any]], Any]) -> Callable[[Draft], object]:
        copy = json.loads(payload)
        change(copy)
        return beside(envelope(canonical.encode(copy), [OWNER]))

    other = "says something else"
    bad("none", lambda made: None, "signature", "too few", "Nobody signed.")
    bad(
        "stripped",
        beside(envelope(payload, [])),
        "signature",
        "no signature that is good",
        "The signature was taken out of the envelope.",
    )
    forged = [{"keyid": public(OWNER).digest, "sig": text(sign(STRANGER, pae(payload)))}]
    bad(
        "replaced",
        beside(envelope(payload, [], signatures=forged)),
        "signature",
        "no signature that is good",
        "A stranger's signature under the owner's key id.",
    )
    bad(
        "stranger",
        beside(envelope(seal(plain, STRANGER), [STRANGER])),
        "signature",
        "too few",
        "A stranger signed a statement of their own.",
    )
    named = seal(plain, OWNER, STRANGER)
    bad(
        "named",
        beside(envelope(named, [STRANGER])),
        "signature",
        "too few",
        "The statement names the owner's key, and only a stranger signed it.",
    )
    unnamed = [{"keyid": public(OWNER).digest, "sig": text(sign(OWNER, pae(seal(plain, STRANGER))))}]
    bad(
        "unnamed",
        beside(envelope(seal(plain, STRANGER), [], signatures=unnamed)),
        "signature",
        "no signature that is good",
        "The owner's signature is good, but the statement names another key.",
    )
    twice = [{"keyid": str(n), "sig": text(sign(OWNER, pae(both)))} for n in range(3)]
    bad(
        "counted",
        beside(envelope(both, [], signatures=twice)),
        "signature",
        "too few",
        "Three signatures of one key where two keys are asked for.",
        "two",
    )
    bare = [{"keyid": public(OWNER).digest, "sig": text(sign(OWNER, payload))}]
    bad(
        "payload-only",
        beside(envelope(payload, [], signatures=bare)),
        "signature",
        "no signature that is good",
        "The signature is over the payload without its type (DSSE's pre-authentication encoding).",
    )
    kind = "text/plain"
    retyped = [{"keyid": "", "sig": text(sign(OWNER, pae(payload, kind)))}]
    bad(
        "payload-type",
        beside(envelope(payload, [], payloadType=kind, signatures=retyped)),
        "envelope",
        "no DSSE envelope",
        "The payload has another type, and the signature is good for that.",
        status=2,
    )
    bad(
        "trailing",
        beside(envelope(payload, [OWNER]) + b"x"),
        "json.syntax",
        "not valid",
        "A byte follows the envelope.",
        status=2,
    )
    bad(
        "not-base64",
        beside(envelope(payload, [OWNER], payload=text(payload)[:-4] + "!!!!")),
        "envelope",
        "no payload in base64",
        "The payload is not base64.",
        status=2,
    )
    many = [{"sig": "AAAA"}] * 16 + [{"sig": text(true)}]
    bad(
        "many",
        beside(envelope(payload, [], signatures=many)),
        "envelope",
        "at most 16",
        "More signatures than allowed.",
        status=2,
    )
    zeros = "0" * 64
    bad(
        "other-root",
        fields(lambda v: v["predicate"].update(root=ZERO)),
        "statement",
        other,
        "A foreign root beside the true files.",
    )
    bad(
        "other-subject",
        fields(lambda v: v["subject"][1]["digest"].update(sha256=zeros)),
        "statement",
        other,
        "One subject is a foreign file, the other one and the root are true.",
    )
    bad(
        "subject-more",
        fields(lambda v: v["subject"].append({"name": "model", "digest": {"sha256": zeros}})),
        "statement",
        other,
        "One subject more.",
    )
    bad("subject-less", fields(lambda v: v["subject"].pop()), "statement", other, "One subject less.")
    bad("subjects-swapped", fields(lambda v: v["subject"].reverse()), "statement", other, "The subjects are swapped.")
    bad(
        "weights",
        fields(lambda v: v["predicate"].update(finalWeights=ZERO)),
        "statement",
        other,
        "Other final weights.",
    )
    bad("steps", fields(lambda v: v["predicate"].update(steps=10**6)), "statement", other, "More steps.")
    bad(
        "name",
        fields(lambda v: v["predicate"]["task"].update(name="better")),
        "statement",
        other,
        "Another name of the task.",
    )
    bad("field", fields(lambda v: v["predicate"].update(certified=True)), "statement", other, "A field more.")
    bad(
        "signer-digest",
        fields(lambda v: v["predicate"]["signers"][0].update(digest=ZERO)),
        "statement",
        other,
        "A signer's digest that is not its key's.",
    )
    unordered = json.loads(both)
    unordered["predicate"]["signers"].reverse()
    bad(
        "signers-order",
        beside(envelope(canonical.encode(unordered), [OWNER, SECOND])),
        "statement",
        other,
        "The signers are not in the order of their digests.",
        "two",
    )
    bad(
        "type-unknown",
        fields(lambda v: v.update(predicateType="urn:proof-of-learning:training:seal:v2")),
        "statement.type",
        "does not know",
        "A predicate type that nobody knows.",
        status=2,
    )
    bad(
        "type-head",
        fields(lambda v: v.update(predicateType=statements.TYPES["head"])),
        "statement.type",
        "of the kind",
        "The statement is of another type than the file's name says.",
        status=2,
    )
    bad(
        "no-statement",
        fields(lambda v: v.update(_type="https://in-toto.io/Statement/v0.1")),
        "statement.type",
        "no in-toto statement",
        "Another version of in-toto statements.",
        status=2,
    )
    spaced = json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    bad(
        "payload-space",
        beside(envelope(spaced, [OWNER])),
        "json.canonical",
        "canonical",
        "The payload parses to the same, and is not canonical.",
        status=2,
    )
    doubled = payload.replace(b'"steps":5', b'"steps":5,"steps":5')
    bad(
        "payload-duplicate",
        beside(envelope(doubled, [OWNER])),
        "json.canonical",
        "canonical",
        "A key stands twice in the payload.",
        status=2,
    )
    identity = bytes.fromhex("302a300506032b6570032100" + "01" + "00" * 31)
    anybody = statements.seal(facts(plain), [PublicKey(identity)])
    base_point = bytes.fromhex("58" + "66" * 31)
    universal = [{"keyid": "", "sig": text(base_point + (1).to_bytes(32, "little"))}]
    bad(
        "small-order",
        beside(envelope(anybody, [], signatures=universal)),
        "key.order",
        "small order",
        "The signer is an Ed25519 key of small order, with a signature that is good for any message.",
        "ed25519",
        2,
    )
    crowd = json.loads(payload)
    crowd["predicate"]["signers"] = [
        {"digest": public(k).digest, "publicKey": text(encoded(k))} for k in (ec_key(f"crowd {n}") for n in range(65))
    ]
    bad(
        "crowd",
        beside(envelope(canonical.encode(crowd), [OWNER])),
        "statement",
        "at most 64 signers",
        "More signers than allowed.",
        status=2,
    )
    elsewhere = draft(planned=9)
    bad(
        "elsewhere",
        beside(envelope(seal(elsewhere, OWNER), [OWNER])),
        "statement",
        other,
        "A good seal of another proof.",
    )


def _changed(made: Draft, **changes: Any) -> Sealed:
    return dataclasses.replace(facts(made), **changes)
