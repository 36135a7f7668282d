"""What owner and verifier exchange in challenge and open, by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import claims
import drafts
import numpy as np
import torch
from drafts import Draft, Files, draft
from samples import Tensors, commitment, opened, stored
from signed import OWNER, SECOND, STRANGER, attached
from tokens import (
    Private,
    envelope,
    public,
)

from proof_of_learning import canonical
from proof_of_learning.attestation import statements
from proof_of_learning.disputes.answers import Cutter, shapes
from proof_of_learning.disputes.documents import AnswersHead, First, Head, OpeningHead, Second
from proof_of_learning.state.state import State
from proof_of_learning.verifier.plan import survey_seed


def wide(step: int) -> State:
    """A state of twelve weights, two of them so large that only some of their elements are looked at: by either rule."""
    numbers = torch.arange(600)
    parameters: dict[str, Any] = {f"w{n:02}": torch.tensor([float(n + step)]) for n in range(2, 12)}
    parameters["w00"] = ((numbers * 7 + step) % 251).to(torch.uint8)
    parameters["w01"] = (numbers[:100].float() + step).reshape(10, 10)
    return drafts.of(
        {
            "model": {"parameters": parameters, "buffers": {}, "frozen": [], "extra": {}},
            "optimizer": {"groups": [{"lr": 0.5, "params": list(range(12))}], "state": {}},
            "progress": {"step": step},
        }
    )


@dataclass
class Table:
    """What goes over the table, and ways to change each: later documents follow from earlier ones, whatever these say.

    Changes are of the documents' fields. key, answered_with: who signs opening and answers.
    """

    made: Draft = field(default_factory=lambda: draft(6, planned=6, commitment=commitment()))
    shown: tuple[int, ...] = (0,)
    first: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)
    opening: dict[str, Any] = field(default_factory=dict)
    cut: Callable[[list[State]], list[State]] = lambda states: states
    outputs: Callable[[bytes], bytes] = lambda raw: raw
    samples: Callable[[Tensors], object] = lambda tensors: None
    with_samples: bool = True
    kept: Sequence[int] | None = None
    key: Private = OWNER
    answered_with: Private = OWNER

    def files(self) -> Files:
        made, root = self.made, self.made.root
        claim = made.header["randomness"]["claim"]
        first = _document(First, self.first, root=root, claim=claim, seed="11" * 32, due="2026-01-31T12:00:00Z")
        looking = survey_seed(root, First(root=root, claim=claim, seed="11" * 32, due=None).looking)
        cutter = Cutter.of(made.states[0], looking)
        states = [drafts.raw_object(state) for state in self.cut([cutter.cut(state) for state in made.states])]
        count = len(made.states)
        outputs = self.outputs(np.arange(count * 6, dtype="<f4").tobytes())
        head = {
            "root": root,
            "challenge": canonical.sha256(first),
            "coordinates": cutter.most,
            "layouts": [shapes(made.states[0])],
            "layout": [0] * count,
            "sizes": [len(raw) for raw in states],
            "states": canonical.sha256(b"".join(states)),
            "outputs": canonical.sha256(outputs),
            "heads": [Head("out", 2, 3, False)],
            "segments": 1,
        }
        answers = _document(AnswersHead, self.answers, **head)
        told = {
            "root": root,
            "claim": claim,
            "first": canonical.sha256(first),
            "answers": canonical.sha256(answers),
            "nonce": "22" * 32,
            "segments": [(index, ["uniform"]) for index in self.shown],
            "due": None,
        }
        second = _document(Second, self.second, **told)
        proof = dataclasses.replace(made.copy())
        wanted = (
            self.kept if self.kept is not None else sorted({0, count - 1, *(p for i in self.shown for p in (i, i + 1))})
        )
        proof.drop(*[position for position in range(count) if position not in wanted])
        files = {f"proof/{name}": raw for name, raw in proof.files().items()}
        tensors = opened([1, 2, 7])
        self.samples(tensors)
        samples = stored(tensors) if self.with_samples else None
        opening = _document(
            OpeningHead,
            self.opening,
            root=root,
            challenge=canonical.sha256(second),
            index=canonical.sha256(files["proof/index.jsonl"]),
            samples=None if samples is None else canonical.sha256(samples),
        )
        files |= {
            "first.json": first,
            "second.json": second,
            "opening.json": opening,
            "opening.dsse.json": signed("opening", opening, self.key),
            "answers/answers.json": answers,
            "answers/answers.dsse.json": signed("answers", answers, self.answered_with),
            "answers/states.bin": b"".join(states),
            "answers/outputs.bin": outputs,
        }
        return files if samples is None else files | {"samples.bin": samples}


def _document(kind: Any, changes: dict[str, Any], **fields: Any) -> bytes:
    raw: bytes = kind(**fields).encoded()
    if not changes:
        return raw
    return canonical.encode({**canonical.decode(raw, dict[str, Any], ""), **changes})


def signed(kind: Any, raw: bytes, key: Private) -> bytes:
    """The envelope around the statement on a document, by what the document says."""
    value = canonical.decode(raw, dict[str, Any], "")
    return envelope(statements.disputed(kind, raw, value["root"], value["challenge"], [public(key)]), [key])


def claimed() -> Draft:
    """A registered proof with all its states and salted data."""
    return claims.registered(make=lambda: draft(6, planned=6, commitment=commitment()))


def succeeded(by: Private = SECOND, of: Private = OWNER) -> Draft:
    """The same, under a claim with a recovery key; with that (``by``), a stranger's key was put in the place of ``of``."""
    made = claims.registered(make=lambda: draft(6, planned=6, commitment=commitment()), recovery=public(SECOND).digest)
    claim, told = made.header["randomness"]["claim"], public(by)
    said = statements.recovery(claim, public(of).digest, public(STRANGER), [told])
    attached(made, "recovery-.dsse.json", envelope(said, [by]))
    return made


def with_wide() -> dict[str, Any]:
    return {"made": draft(4, planned=4, make=wide, commitment=commitment()), "shown": (0,)}


def payload(files: Files, kind: Any) -> bytes:
    folder = "answers/" if kind == "answers" else ""
    raw = files[f"{folder}{kind}.json"]
    value = canonical.decode(raw, dict[str, Any], "")
    return statements.disputed(kind, raw, value["root"], value["challenge"], [public(OWNER)])
