"""Cases of whole openings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from drafts import Files, draft
from samples import SAMPLE_EDITS, commitment, opened, stored
from signed import OWNER, STRANGER
from suite import LINK, ZERO, Suite
from tables import Table, claimed, payload, signed, succeeded, with_wide
from tokens import (
    envelope,
)

from proof_of_learning import canonical
from proof_of_learning.disputes.answers import shapes
from proof_of_learning.state.state import State


def cases(suite: Suite) -> None:
    suite.given["second.json"] = Table().files()["second.json"]
    suite.given["second-other.json"] = Table(second={"nonce": "33" * 32}).files()["second.json"]
    suite.given["second-wide.json"] = Table(**with_wide()).files()["second.json"]

    def good(
        name: str, made: Table, reason: str, challenge: str | None = "second.json", keys: Sequence[str] = ()
    ) -> None:
        suite.passes(
            f"opening-{name}", "opening", made.files(), "opening", reason, challenge=challenge, keys=list(keys)
        )

    def bad(
        name: str,
        made: Table | Files,
        rule: str,
        says: str,
        reason: str,
        status: int = 1,
        base: str = "plain",
        **given: Any,
    ) -> None:
        files = made.files() if isinstance(made, Table) else made
        suite.fails(f"opening-{name}", f"opening-{base}", files, rule, says, reason, status=status, **given)

    good("signed", Table(), "Three of four states, three of thirteen salted samples, by the verifier's own challenge.")
    good("plain", Table(), "The same, by a verifier who kept no copy of the challenge.", None)
    good("trusted", Table(), "Signed with a key that the verifier named.", "second.json", ["owner.pem"])
    good(
        "wide",
        Table(**with_wide()),
        "Of two tensors only some elements are looked at, by each of the two rules.",
        "second-wide.json",
    )
    good("claimed", Table(made=claimed()), "Of a proof under a claim, signed by its owner.", None)
    strangers: dict[str, Any] = {"key": STRANGER, "answered_with": STRANGER}
    good(
        "successor",
        Table(made=succeeded(), **strangers),
        "Signed with the key that the claim's recovery key put in the owner's place; a verifier named the owner's.",
        None,
        ["owner.pem"],
    )
    unsalted = draft(6, planned=6, commitment=commitment(salted=False))
    good(
        "no-samples",
        Table(made=unsalted, with_samples=False),
        "No samples are opened, of a data set that the verifier has.",
        None,
    )

    bad(
        "other-challenge",
        Table(),
        "opening.challenge",
        "another challenge than yours",
        "The opening answers another challenge than the verifier's.",
        base="signed",
        challenge="second-other.json",
    )
    bad(
        "other-key",
        Table(),
        "opening.key",
        "no trusted key",
        "Signed with another key than the verifier named.",
        base="trusted",
        keys=["stranger.pem"],
    )
    swapped = Table().files() | {"second.json": suite.given["second-other.json"]}
    bad(
        "challenge-put",
        swapped,
        "opening.challenge",
        "for another challenge",
        "Another second challenge was put into its place.",
    )
    bad(
        "first-put",
        Table().files() | {"first.json": Table(first={"seed": "44" * 32}).files()["first.json"]},
        "opening.answers",
        "another challenge",
        "Another first challenge was put into its place.",
    )
    late = Table(answers={"segments": 2}).files()
    after = Table().files() | {name: late[name] for name in ("answers/answers.json", "answers/answers.dsse.json")}
    bad(
        "answers-after",
        after,
        "opening.challenge",
        "on other answers",
        "The answers were changed after the draw, and signed again.",
    )
    bad(
        "second-first",
        Table(second={"first": ZERO}),
        "opening.challenge",
        "on other answers",
        "The second challenge follows another first one.",
    )
    bad(
        "root",
        Table(opening={"root": ZERO}),
        "opening.challenge",
        "of another proof",
        "The opening is said to be of another root.",
    )
    bad(
        "answers-root",
        Table(answers={"root": ZERO}),
        "opening.answers",
        "the roots differ",
        "The answers are said to be of another root.",
    )
    bad(
        "first-root",
        Table(first={"root": ZERO}),
        "opening.answers",
        "the roots differ",
        "The first challenge is to another root.",
    )
    bad(
        "first-claim",
        Table(first={"claim": ZERO}),
        "opening.claim",
        "another claim",
        "The first challenge names a claim that the proof was not made under.",
    )
    bad(
        "second-claim",
        Table(second={"claim": ZERO}),
        "opening.claim",
        "another claim",
        "The second challenge names a claim that the proof was not made under.",
    )
    bad(
        "answers-challenge",
        Table(answers={"challenge": ZERO}),
        "opening.answers",
        "another challenge",
        "The answers are to another first challenge.",
    )
    other = {f"proof/{name}": raw for name, raw in draft(6, planned=8, commitment=commitment()).files().items()}
    kept = {name: raw for name, raw in Table().files().items() if not name.startswith("proof/")}
    bad("proof-put", kept | other, "opening.challenge", "of another proof", "The proof is another one.")
    for name, change in (
        ("round", {"round": 2}),
        ("schema", {"schema": "pol/challenge/v2"}),
        ("seed", {"seed": "AB" * 32}),
        ("field", {"note": 1}),
    ):
        rule, says = {
            "round": ("json.type", "is the second challenge"),
            "schema": ("version", "has schema"),
            "seed": ("opening.document", "64 hex digits"),
            "field": ("json.field", "unknown field"),
        }[name]
        bad(f"first-{name}", Table(first=change), rule, says, f"The first challenge has a wrong {name}.", 2)
    bad(
        "due",
        Table(first={"due": "2026-02-30T12:00:00Z"}),
        "opening.document",
        "not a time",
        "A term on a day that there is not.",
        2,
    )
    bad(
        "due-zone",
        Table(first={"due": "2026-01-31T12:00:00+00:00"}),
        "opening.document",
        "not a time",
        "A term in another spelling.",
        2,
    )

    def flipped(position: int) -> Callable[[list[State]], list[State]]:
        def change(states: list[State]) -> list[State]:
            state = states[position]
            name = sorted(state.tensors)[0]
            tensors = {**state.tensors, name: state.tensors[name].clone()}
            raw = tensors[name].view(torch.uint8)
            raw.view(-1)[-1] ^= 1
            return [*states[:position], State(state.tree, tensors), *states[position + 1 :]]

        return change

    def rescheduled(states: list[State]) -> list[State]:
        tree = canonical.decode(
            canonical.encode(states[1].tree).replace(b"0x1.0000000000000p-1", b"0x1.0000000000000p-2", 1),
            dict[str, Any],
            "",
        )
        return [states[0], State(tree, states[1].tensors), *states[2:]]

    bad(
        "answer-false",
        Table(cut=flipped(1)),
        "opening.cut",
        "not the one that was answered for",
        "One bit of an answer is false, and was so before the draw.",
    )
    bad(
        "answer-setting",
        Table(cut=rescheduled),
        "opening.cut",
        "not the one that was answered for",
        "A learning rate was answered falsely.",
    )
    bad(
        "answer-wide",
        Table(**with_wide(), cut=flipped(0)),
        "opening.cut",
        "not the one that was answered for",
        "One bit of one looked-at element is false.",
        base="wide",
        challenge=None,
    )
    raw = Table().files()
    bad(
        "states-changed",
        raw | {"answers/states.bin": raw["answers/states.bin"][:-1] + b"\x55"},
        "opening.file",
        "not the file",
        "The cut states were changed.",
    )
    bad(
        "outputs-changed",
        raw | {"answers/outputs.bin": raw["answers/outputs.bin"][:-1] + b"\x55"},
        "opening.file",
        "not the file",
        "The outputs were changed.",
    )
    bad(
        "outputs-cut",
        Table(outputs=lambda r: r[:-4]),
        "opening.size",
        "does not have the",
        "The outputs are shorter than the heads say.",
        2,
    )
    ranges: dict[str, tuple[dict[str, Any], str]] = {
        "coordinates": ({"coordinates": 349}, "Fewer coordinates than there have to be."),
        "layout": ({"layout": [0, 0, 0, 1]}, "A state has a layout that is not there."),
        "layout-count": ({"layout": [0, 0, 0]}, "A state has no layout."),
        "budget": ({"segments": 4}, "A budget of more segments than there are."),
        "rows": (
            {"heads": [{"name": "out", "rows": 65, "columns": 3, "scores": False}]},
            "An output of too many rows.",
        ),
        "head-twice": (
            {"heads": [{"name": "out", "rows": 1, "columns": 3, "scores": False}] * 2},
            "An output stands twice.",
        ),
        "size": ({"sizes": [0, 1, 1, 1]}, "A state of 0 bytes."),
    }
    for name, (changes, reason) in ranges.items():
        bad(f"answers-{name}", Table(answers=changes), "opening.range", "answers.json", reason, 2)
    doubled = shapes(Table().made.states[0])
    bad(
        "answers-layouts",
        Table(answers={"layouts": [doubled, doubled]}),
        "opening.range",
        "stands twice",
        "A layout stands twice.",
        2,
    )
    bad(
        "answers-shape",
        Table(answers={"layouts": [{**doubled, "model/parameters/bias": [3]}]}),
        "opening.cut",
        "other tensors or parts",
        "A layout with another shape than the states have.",
        2,
    )

    bad(
        "state-missing",
        Table(kept=[0, 3]),
        "opening.states",
        "were not opened",
        "A state that was drawn was not opened.",
    )
    bad("last-missing", Table(kept=[0, 1]), "opening.states", "were not opened", "The last state was not opened.")
    fewer = Table(kept=[0, 3]).files()
    taken = {name: data for name, data in raw.items() if not name.startswith("proof/")}
    bad(
        "index-put",
        taken | {name: data for name, data in fewer.items() if name.startswith("proof/")},
        "opening.index",
        "other states",
        "The opening was signed with other states than it holds.",
    )
    for name, (edit, rule, says, reason, status) in SAMPLE_EDITS.items():
        if name in ("salt", "reordered"):
            bad(f"samples-{name}", Table(samples=edit), rule, says, f"{reason[:-1]}, and all was signed again.", status)
    bad(
        "samples-changed",
        raw | {"samples.bin": stored(opened([1, 2]))},
        "opening.file",
        "not the file",
        "Other samples than were signed, and good ones.",
    )
    bad(
        "samples-missing",
        Table(with_samples=False),
        "opening.samples",
        "nobody else has",
        "No samples under a salted root.",
    )
    extra = Table(made=unsalted, with_samples=False).files() | {"samples.bin": stored(opened([1], salted=False))}
    bad(
        "samples-unsaid",
        extra,
        "files.unexpected",
        "unexpected file",
        "Samples in an opening that says it has none.",
        2,
        "no-samples",
    )

    bad(
        "stripped",
        raw | {"opening.dsse.json": envelope(payload(raw, "opening"), [])},
        "signature",
        "no signature that is good",
        "The signature was taken out.",
    )
    bad(
        "kind",
        raw | {"opening.dsse.json": raw["answers/answers.dsse.json"]},
        "statement",
        "something else",
        "The answers' statement in the opening's place.",
    )
    bad(
        "statement",
        raw | {"opening.dsse.json": signed("opening", Table(opening={"index": ZERO}).files()["opening.json"], OWNER)},
        "statement",
        "something else",
        "A good statement on another opening.",
    )
    bad(
        "keys",
        Table(key=STRANGER),
        "opening.key",
        "different keys",
        "Answers and opening are signed with different keys.",
    )
    bad(
        "owner",
        Table(made=claimed(), key=STRANGER, answered_with=STRANGER),
        "opening.owner",
        "none of the owners",
        "Signed by nobody whom the claim names.",
        base="claimed",
    )
    for name, made, reason in (
        (
            "recovered-by",
            succeeded(by=STRANGER),
            "Another key than the claim's recovery key put the signer in the owner's place.",
        ),
        ("recovered-of", succeeded(of=STRANGER), "The signer was put in the place of somebody who is no owner."),
    ):
        bad(
            name,
            Table(made=made, **strangers),
            "opening.owner",
            "none of the owners",
            reason,
            base="successor",
            keys=["owner.pem"],
        )
    bad(
        "answers-stripped",
        raw | {"answers/answers.dsse.json": envelope(payload(raw, "answers"), [])},
        "signature",
        "no signature that is good",
        "The answers' signature was taken out.",
    )
    bad("unexpected", raw | {"notes": b"x"}, "files.unexpected", "unexpected file", "A file that no opening has.", 2)
    bad(
        "link",
        raw | {"first.json": LINK + b"second.json"},
        "files.link",
        "unexpected file",
        "A file is a symbolic link.",
        2,
    )
    bad(
        "space",
        raw | {"opening.json": raw["opening.json"] + b"\n"},
        "json.canonical",
        "canonical",
        "A newline follows the opening.",
        2,
    )
