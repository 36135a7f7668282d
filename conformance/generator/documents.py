"""Cases of whole proofs: those that pass, and those with a wrong header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import drafts
import torch
from drafts import Draft, draft
from suite import ZERO, Suite

from proof_of_learning.state.state import State

Edit = Callable[[Draft], object]


def put(where: Any, path: str, value: Any) -> None:
    """Set what a dotted path leads to."""
    *parts, last = path.split(".")
    for part in parts:
        where = where[part]
    where[last] = value


def header(path: str, value: Any) -> Edit:
    return lambda made: put(made.header, path, value)


def segment(number: int, path: str, value: Any) -> Edit:
    return lambda made: put(made.segments[number], path, value)


def line(kind: str, path: str, value: Any) -> Edit:
    return lambda made: put(made.of_kind(kind)[0], path, value)


def spelled(name: str, old: bytes, new: bytes) -> Edit:
    """Other bytes for a document, before it is hashed."""

    def edit(made: Draft) -> None:
        def change(raw: bytes) -> bytes:
            assert raw.count(old) == 1, (name, old)
            return raw.replace(old, new)

        made.spell[name] = change

    return edit


def many_types(step: int) -> State:
    """A state with one of everything."""
    ema = {
        "a/b~c": torch.tensor(3, dtype=torch.bfloat16),
        "empty": torch.zeros((0, 3)),
        "mask": torch.tensor([True, False, True]),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "double": torch.tensor([[0.1]], dtype=torch.float64),
        "count": torch.tensor(step, dtype=torch.int64),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
        "é": torch.tensor([1], dtype=torch.uint8),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "list": [1, 2.5, "x", None, True],
        "tuple": (float("-inf"), -0.0, 5e-324),
        "numbers": {10: 1, 2: {"deep": []}},
    }
    return drafts.state(step, ema=ema)


def script() -> Draft:
    made = draft(planned=None, script=True, metric=True)
    made.header["inputs"] = [
        {"name": "a.bin", "digest": ZERO, "bytes": 3},
        {"name": "b.bin", "digest": ZERO, "bytes": 0},
    ]
    reload = {"name": "reload", "parts": ["model", "optimizer"], "step": 1, "input": None, "state": ZERO}
    made.log.insert(3, {"kind": "event", "step": 2, "event": reload})
    return made


def two_environments() -> Draft:
    made = draft()
    second = {**drafts.ENVIRONMENT, "threads": 2}
    digest = drafts.environment_digest(second)
    made.log.insert(3, {"kind": "environment", "digest": digest, "environment": second})
    made.segments[1]["environment"] = made.segments[2]["environment"] = digest
    return made


def linked() -> Draft:
    made = draft()
    made.header["initialization"] = {"kind": "linked", "proof": ZERO}
    return made


def portable() -> Draft:
    made = draft()
    made.header["arithmetic"] = "portable"
    return made


def thinned() -> Draft:
    made = draft()
    made.drop(0, 1, 2)
    return made


PASSING: dict[str, tuple[Callable[[], Draft], str]] = {
    "raw": (draft, "Three segments, the last one shorter, randomness from a seed."),
    "recorded": (lambda: draft(recorded=True), "Order and generator states are recorded."),
    "script": (script, "A script with inputs, an event, a metric, the loop's own column, and no plan."),
    "stopped": (lambda: draft(planned=9), "The run stopped before its planned end."),
    "one-segment": (lambda: draft(1, planned=1), "One step, which is fewer than the interval."),
    "thinned": (thinned, "Of four states only the last is stored."),
    "two-environments": (two_environments, "The run went on in another numeric environment."),
    "types": (
        lambda: draft(make=many_types, parts={"ema": "stateful"}),
        "A state with every kind of value and of tensor.",
    ),
    "linked": (linked, "Training starts from the final state of another proof."),
    "portable": (portable, "Portable arithmetic."),
    "lossless": (
        lambda: draft(codec="lossless"),
        "Differences from the state before, in the container of the compressing codecs.",
    ),
    "in-loop": (
        lambda: draft(codec="float16", arrived=True),
        "A codec in the loop: training goes on from what was stored.",
    ),
    "version-1": (lambda: draft(version=1), "A proof of version 1 of the format."),
}


def cases(suite: Suite) -> None:
    for name, (make, reason) in PASSING.items():
        suite.passes(f"proof-{name}", "proof", make().files(), "proof", reason)
    _documents(suite)


def bad_proof(
    suite: Suite, name: str, edit: Edit, rule: str, says: str, reason: str, *, base: str = "raw", status: int = 1
) -> None:
    """A proof that contradicts itself in what ``edit`` did, with every digest that hangs on it made right again."""
    made = PASSING[base][0]()
    edit(made)
    suite.fails(f"proof-{name}", f"proof-{base}", made.files(), rule, says, reason, status=status)


def _documents(suite: Suite) -> None:
    def bad(name: str, edit: Edit, rule: str, says: str, reason: str, base: str = "thinned", status: int = 2) -> None:
        bad_proof(suite, name, edit, rule, says, reason, base=base, status=status)

    bad(
        "version-unknown",
        header("format", "pol/proof/v3"),
        "version",
        "has format",
        "A version of the format that nobody knows.",
    )
    bad(
        "seal-version",
        lambda m: m.seal.update(schema="pol/seal/v1"),
        "version",
        "has schema",
        "The seal is of another version than the header.",
    )
    bad(
        "field-unknown",
        header("note", 1),
        "json.field",
        "unknown field",
        "The header has a field that the format does not have.",
    )
    bad(
        "field-missing",
        lambda m: m.header.pop("ranks"),
        "json.field",
        "canonical",
        "The header lacks a field, even if there is a usual value.",
    )
    bad(
        "field-type",
        header("training.interval", "2"),
        "json.type",
        "Expected `int`",
        "A number is written as a string.",
    )
    bad(
        "header-float",
        spelled("header.json", b'"ranks":1', b'"ranks":1.0'),
        "json.canonical",
        "got `float`",
        "1 is spelled as 1.0.",
    )
    bad(
        "header-duplicate",
        spelled("header.json", b'"ranks":1', b'"ranks":1,"ranks":1'),
        "json.canonical",
        "canonical",
        "A key stands twice in the header.",
    )
    bad(
        "header-space",
        spelled("header.json", b'"ranks":1', b'"ranks": 1'),
        "json.canonical",
        "canonical",
        "The header holds white space.",
    )
    bad(
        "version-1-field",
        header("ranks", 1),
        "json.field",
        "unknown field",
        "A field of version 2 in a proof of version 1.",
        "version-1",
    )
    bad(
        "task-digest",
        header("task.digest", ZERO),
        "task",
        "task's digest",
        "The task's digest is not that of its description.",
        status=1,
    )
    bad(
        "task-description",
        header("task.description.step.batch_size", 8),
        "task",
        "task's digest",
        "The description was edited, and its digest was not.",
        status=1,
    )
    bad("digest-case", header("data.root", "sha256:" + "A" * 64), "digest", "not a digest", "A digest in upper case.")
    bad("interval-zero", header("training.interval", 0), "range", "out of range", "An interval of 0 steps.")
    bad("planned-zero", header("training.planned", 0), "range", "out of range", "A plan of 0 steps.")
    bad("samples-zero", header("data.samples", 0), "range", "0 samples", "A data set without samples.")
    bad("key-short", header("randomness.key", "ab"), "randomness", "64 hex digits", "The key is not 32 bytes.")
    bad(
        "seed-spelling",
        header("randomness.seed", "07"),
        "randomness",
        "decimal integer",
        "The seed has a leading zero.",
    )
    bad("seed-large", header("randomness.seed", str(2**64)), "randomness", "2^64", "The seed is not below 2^64.")
    bad(
        "seed-missing",
        header("randomness.seed", None),
        "randomness",
        "either a seed or a claim",
        "The key comes from neither a seed nor a claim.",
    )
    bad(
        "claim-missing",
        lambda m: m.header["randomness"].update(seed=None, claim=ZERO),
        "randomness",
        "either a seed or a claim",
        "The key follows from a claim that the header does not hold.",
    )
    bad(
        "anchor-without-claim",
        header("randomness.anchor", ZERO),
        "randomness",
        "timestamp of a claim",
        "A timestamp of a claim, and no claim.",
    )
    bad(
        "linked-to-nothing",
        header("initialization.proof", None),
        "initialization",
        "linked initialization",
        "A linked start that names no proof.",
        "linked",
    )
    bad(
        "start-named",
        header("initialization.proof", ZERO),
        "initialization",
        "linked initialization",
        "A derived start that names a proof.",
    )
    bad("codec-unknown", header("codec.name", "gzip"), "codec", "unknown", "A codec that nobody knows.")
    bad("codec-version", header("codec.version", 2), "codec", "unknown", "A version of a codec that nobody knows.")
    bad("codec-in-loop", header("codec.in_loop", True), "codec", "options", "An exact codec is said to be in the loop.")
    bad(
        "codec-options",
        header("codec.options", {"bits": 8}),
        "codec",
        "options",
        "A codec has options that it does not have.",
    )
    bad("ranks", header("ranks", 2), "reserved", "processes took part", "Two processes, which is reserved.")
    bad("arithmetic", header("arithmetic", "decimal"), "reserved", "arithmetic", "An arithmetic that nobody knows.")
    bad(
        "portable-recorded",
        header("arithmetic", "portable"),
        "reserved",
        "native arithmetic",
        "Portable arithmetic with recorded randomness.",
        "recorded",
    )
    bad(
        "script-derived",
        lambda m: m.header.update(
            program={**m.header["program"], "kind": "script"},
            initialization={**m.header["initialization"], "kind": "recorded"},
        ),
        "program",
        "recorded or derived, as its order is",
        "A script with derived randomness and a recorded start.",
    )
    bad(
        "reference-path",
        header("program.reference", "/home/me/task.py:task"),
        "program",
        "names no file",
        "A path lies under the root.",
    )
    bad(
        "sealed-digest",
        header("program.sealed", ZERO),
        "program",
        "sealed program",
        "A sealed program that the description does not hold.",
    )
    bad(
        "argument-long",
        header("program.settings", {"x": "y" * 4097}),
        "program",
        "more than",
        "A setting of more characters than allowed.",
    )
    bad(
        "inputs-order",
        lambda m: m.header["inputs"].reverse(),
        "inputs",
        "not in order",
        "The inputs are not in the order of their names.",
        "script",
    )
    bad(
        "input-path",
        lambda m: m.header["inputs"][0].update(name="../a"),
        "inputs",
        "no name of a file",
        "An input is named by a path.",
        "script",
    )
    bad("parts-no-model", lambda m: m.header["parts"].pop("model"), "parts", "no model", "The states have no model.")
    bad(
        "parts-rank",
        header("parts.ema@1", "module"),
        "parts",
        "another process",
        "A part is named as another process's.",
    )
    bad(
        "part-kind",
        header("parts.optimizer", "magic"),
        "json.type",
        "Invalid enum",
        "A part of a kind that nobody knows.",
    )
