"""Cases of proofs whose log, or list of files, is wrong."""

from __future__ import annotations

from collections.abc import Callable

import drafts
from documents import PASSING, Edit, bad_proof, header, line, segment
from drafts import Draft, Files
from suite import LINK, ZERO, Suite


def cases(suite: Suite) -> None:
    _log(suite)
    _files(suite)


def _log(suite: Suite) -> None:
    def bad(name: str, edit: Edit, rule: str, says: str, reason: str, base: str = "thinned", status: int = 1) -> None:
        bad_proof(suite, name, edit, rule, says, reason, base=base, status=status)

    def swap(made: Draft) -> None:
        made.log[2], made.log[3] = made.log[3], made.log[2]

    bad(
        "segments-swapped",
        swap,
        "log.order",
        "expected segment 0",
        "Two lines of the log are swapped, and chained anew.",
    )
    bad(
        "segment-dropped",
        lambda m: m.log.pop(3),
        "log.order",
        "expected segment 1",
        "A segment is left out, and the rest chained anew.",
    )
    bad("end-missing", lambda m: m.log.pop(), "log.end", "incomplete", "The log has no end.")
    bad(
        "end-twice",
        lambda m: m.log.append(dict(m.log[-1])),
        "log.order",
        "cannot stand here",
        "A line follows the end.",
    )
    bad(
        "start-missing",
        lambda m: m.log.pop(0),
        "log.order",
        "cannot stand here",
        "The log does not begin with the initial state.",
    )
    bad(
        "line-kind",
        lambda m: m.log.insert(2, {"kind": "note"}),
        "json.type",
        "Invalid value 'note'",
        "A line of a kind that nobody knows.",
        status=2,
    )
    bad(
        "line-field",
        segment(0, "note", 1),
        "json.field",
        "unknown field",
        "A line has a field that it does not have.",
        status=2,
    )
    bad("stop", segment(0, "stop", 3), "log.order", "expected segment 0", "A segment ends one step late.")
    bad("index", segment(1, "index", 2), "log.order", "expected segment 1", "A segment has the number of the next one.")
    bad("steps", line("end", "steps", 6), "log.end", "incomplete", "The end says one step more than the log holds.")
    bad(
        "completed",
        line("end", "ended", "completed"),
        "log.end",
        "says that the run completed",
        "A run that stopped says that it completed.",
        "stopped",
    )
    bad(
        "beyond-plan",
        header("training.planned", 4),
        "log.order",
        "expected segment 2",
        "More steps were taken than planned.",
    )
    bad(
        "arrived",
        segment(0, "arrived", ZERO),
        "log.arrived",
        "another state than it arrived at",
        "Without a codec in the loop, training goes on from another state than it arrived at.",
    )
    bad(
        "arrived-last",
        segment(2, "arrived", ZERO),
        "log.arrived",
        "last segment ends",
        "The last state is not rounded, and says so.",
        "in-loop",
    )
    bad(
        "seal-count",
        lambda m: m.seal.update(segments=4),
        "seal.root",
        "root is another",
        "The seal counts another number of segments.",
    )
    bad("seal-root", lambda m: m.seal.update(root=ZERO), "seal.root", "root is another", "The seal names another root.")
    bad(
        "seal-index",
        lambda m: m.seal.update(index=ZERO),
        "index.chain",
        "is not the one",
        "The seal names another index.",
    )
    bad(
        "displacement-negative",
        segment(0, "displacement.state", -1.0),
        "range",
        "out of range",
        "A displacement below 0.",
        status=2,
    )
    bad(
        "displacement",
        segment(0, "displacement.weights", 1.5),
        "displacement",
        "claims a displacement",
        "A displacement that is not that of the two states.",
        "raw",
    )
    bad("block-size-zero", segment(0, "block.bytes", 0), "range", "out of range", "A block of 0 bytes.", status=2)
    bad(
        "environment-digest",
        line("environment", "digest", ZERO),
        "environment",
        "not its own",
        "An environment under a digest that is not its own.",
    )
    bad(
        "environment-late",
        segment(0, "environment", drafts.environment_digest({**drafts.ENVIRONMENT, "threads": 2})),
        "environment",
        "not written before",
        "A segment names an environment that comes later.",
        "two-environments",
    )

    def preload(made: Draft) -> None:
        one = made.of_kind("environment")[0]
        one["environment"]["variables"] = {"LD_PRELOAD": "/tmp/x.so"}
        one["digest"] = drafts.environment_digest(one["environment"])
        for each in made.segments:
            each["environment"] = one["digest"]

    bad(
        "environment-variable",
        preload,
        "environment",
        "not allowed",
        "An environment sets a variable that no proof may set.",
        status=2,
    )

    def repeated(made: Draft) -> None:
        made.segments[1].update(arrived=made.segments[0]["state"], state=made.segments[0]["state"])
        made.drop(1, 2)

    bad(
        "state-twice",
        repeated,
        "log.states",
        "one state after different steps",
        "One state stands after different steps.",
        "raw",
    )
    bad(
        "event-name",
        line("event", "event.name", "rewind"),
        "json.type",
        "Invalid value 'rewind'",
        "An event of a name that nobody knows.",
        "script",
        2,
    )
    bad(
        "event-late",
        line("event", "step", 4),
        "event",
        "does not belong",
        "An event of a later segment's step.",
        "script",
    )
    bad(
        "event-parts",
        line("event", "event.parts", ["optimizer", "model"]),
        "event",
        "out of order",
        "An event's parts are not in order.",
        "script",
        2,
    )
    bad(
        "event-source",
        line("event", "event.input", ZERO),
        "event",
        "says which",
        "A reload from both an earlier step and a file.",
        "script",
        2,
    )


def _files(suite: Suite) -> None:
    def bad(
        name: str,
        change: Callable[[Files], Files | None],
        rule: str,
        says: str,
        reason: str,
        base: str = "raw",
        status: int = 2,
    ) -> None:
        files = PASSING[base][0]().files()
        files = change(files) or files
        suite.fails(f"proof-{name}", f"proof-{base}", files, rule, says, reason, status=status)

    def swapped(files: Files) -> None:
        lines = files["log.jsonl"].splitlines(keepends=True)
        lines[2], lines[3] = lines[3], lines[2]
        files["log.jsonl"] = b"".join(lines)

    def edited(name: str, old: bytes, new: bytes) -> Callable[[Files], None]:
        def change(files: Files) -> None:
            assert files[name].count(old) >= 1
            files[name] = files[name].replace(old, new, 1)

        return change

    objects = lambda files: sorted(name for name in files if name.startswith("objects/"))  # noqa: E731
    bad(
        "chain-swapped",
        swapped,
        "log.chain",
        "chain is broken",
        "Two lines of the log are swapped, and the chain was not mended.",
        status=1,
    )
    bad(
        "chain-header",
        edited("header.json", b'"steps_per_epoch":4', b'"steps_per_epoch":8'),
        "log.chain",
        "chain is broken",
        "The header was edited: the log's first line no longer follows it.",
        status=1,
    )
    bad(
        "chain-log",
        edited("log.jsonl", b'"accuracy":0.5', b'"accuracy":0.9'),
        "log.chain",
        "chain is broken",
        "A line of the log was edited.",
        status=1,
    )
    bad(
        "chain-index",
        edited("index.jsonl", b'"base":null,"bytes":1', b'"base":null,"bytes":2'),
        "index.chain",
        "chain is broken",
        "A line of the index was edited.",
        status=1,
    )
    bad(
        "log-cut",
        lambda f: f.update({"log.jsonl": f["log.jsonl"][:-1]}),
        "log.cut",
        "cut short",
        "The log's last line has no newline.",
    )
    bad(
        "log-empty-line",
        lambda f: f.update({"log.jsonl": f["log.jsonl"] + b"\n"}),
        "json.canonical",
        "not valid",
        "An empty line at the log's end.",
    )
    bad(
        "blocks-trailing",
        lambda f: f.update({"blocks.bin": f["blocks.bin"] + b"\0"}),
        "files.size",
        "another size",
        "A byte behind the last block.",
    )
    bad(
        "file-unexpected",
        lambda f: f.update(notes=b"x"),
        "files.unexpected",
        "unexpected file",
        "A file that no proof has.",
    )
    bad(
        "file-missing",
        lambda f: {n: r for n, r in f.items() if n != "blocks.bin"},
        "files.missing",
        "missing",
        "A file is missing.",
    )
    bad(
        "seal-missing",
        lambda f: {n: r for n, r in f.items() if n != "seal.json"},
        "files.missing",
        "not finished",
        "The recording was not finished.",
    )
    bad(
        "object-missing",
        lambda f: {n: r for n, r in f.items() if n != objects(f)[0]},
        "files.missing",
        "missing",
        "An object of the index is missing.",
    )
    bad(
        "object-unexpected",
        lambda f: f.update({objects(f)[0][:-1] + "g": b"x"}),
        "files.unexpected",
        "unexpected file",
        "An object that the index does not name.",
    )
    bad(
        "object-cut",
        lambda f: f.update({objects(f)[0]: f[objects(f)[0]][:-1]}),
        "files.size",
        "does not have the",
        "An object is a byte too short.",
    )
    bad(
        "link",
        lambda f: f.update({"blocks.bin": LINK + b"header.json"}),
        "files.link",
        "link",
        "A file is a symbolic link.",
    )
    bad(
        "attestation-name",
        lambda f: f.update({"attestations/seal-0123456789abcdef.json": b"{}"}),
        "files.attestation",
        "bytes that its name says",
        "An attestation is not what its name says.",
    )
    bad(
        "attestation-kind",
        lambda f: f.update({"attestations/note.txt": b"x"}),
        "files.unexpected",
        "unexpected file",
        "A file beside the root that is no attestation.",
    )
