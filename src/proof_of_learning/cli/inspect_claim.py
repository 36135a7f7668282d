"""What ``pol inspect`` shows of a claim: what was fixed before training, and what lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def describe(path: Path) -> dict[str, Any]:
    """The content of ``claim.json`` as plain values. Raises UsageError for another file, FormatError for a malformed claim."""
    import msgspec

    from proof_of_learning import canonical, registration
    from proof_of_learning.errors import FormatError, UsageError
    from proof_of_learning.limits import MAX_CLAIM
    from proof_of_learning.proof import files

    class Schema(msgspec.Struct):
        schema: str

    try:
        schema = canonical.lenient(bytes(files.read_bounded(path, MAX_CLAIM, str(path))), Schema, str(path)).schema
    except FormatError:
        schema = ""
    if not schema.startswith("pol/claim/"):
        what = f"its schema is {canonical.brief(schema)}" if schema else "it says of no schema what it is"
        raise UsageError(
            f"{path} is neither a claim (`pol register`) nor a proof, which is the directory that `pol prove -o` wrote: {what}"
        )
    made = registration.load(path)
    claim = msgspec.to_builtins(made.claim)
    return {
        "schema": "pol/inspect-claim/v1",
        "digest": made.claim.digest(),
        "created": made.created,
        "claim": {**claim, "environment": {**claim["environment"], "digest": made.claim.environment.digest()}},
        "beside": sorted(made.attestations()),
        "runs": [{"header": run.header, "root": run.root} for run in made.runs],
    }


def rows(content: dict[str, Any]) -> dict[str, str | list[str]]:
    """The same, by name, for a table."""
    from proof_of_learning.report.text import ARITHMETIC, plural

    claim, runs, beside = content["claim"], content["runs"], content["beside"]
    steps = "as many steps as the script takes" if claim["steps"] is None else f"{claim['steps']:,} steps"
    environment = claim["environment"]
    stamps = sum(name.endswith(".tsr") for name in beside)
    owners = (
        [f"{claim['threshold']} of {len(claim['owners'])} sign", *claim["owners"]]
        if claim["owners"]
        else ["none named"]
    )
    held = (
        f"{plural(len(beside) - stamps, 'statement')}, {plural(stamps, 'timestamp')}"
        if beside
        else "nobody signed or stamped it"
    )
    found: dict[str, str | list[str]] = {
        "claim": content["digest"],
        "made": f"{content['created']} (by its own word)",
        "format": claim["format"],
        "task": f"{claim['name']}  {claim['task']}",
        "sources": claim["sources"] or "not fixed",
        "data": f"{claim['data']['samples']:,} samples  {claim['data']['root']}",
        "settings": ", ".join(f"{name}={value}" for name, value in claim["settings"].items()) or "none",
        "arguments": " ".join(claim["arguments"]) or "none",
        "training": f"{steps}, {claim['steps_per_epoch']:,} an epoch, in segments of {claim['interval']}",
        "codec": claim["codec"]["name"],
        "arithmetic": f"{claim['arithmetic']}. {ARITHMETIC[claim['arithmetic']]}",
        "environment": f"torch {environment['torch']}, {environment['device'].get('name') or environment['device']['type']}, "
        f"{environment['machine']} {environment['capability']}, {environment['threads']} threads",
        "owners": owners,
        "signed": held,
        "runs": f"{len(runs):,} begun, {sum(run['root'] is not None for run in runs):,} finished",
    }  # fmt: skip
    optional: dict[str, str | list[str] | None] = {
        "recovery": claim["recovery"], "starts from": claim["start"], "sealed step": claim["sealed"],
        "inputs": ", ".join(f"{item['name']} ({item['digest'][7:19]}…)" for item in claim["inputs"]),
        "roots": [run["root"] for run in runs if run["root"]],
    }  # fmt: skip
    return found | {name: value for name, value in optional.items() if value}
