"""``pol inspect``."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from proof_of_learning.cli import common

SHOWN = 5  # events or inputs in the table; the JSON has all


@common.command("interrupted; the proof was only read")
def inspect(
    proof: Annotated[
        str, typer.Argument(help="The proof's directory, or its address (`s3://…`); or a claim (`pol register`).")
    ],
    program: Annotated[
        bool, typer.Option("--program", help="Show the sealed program: each operation, its shapes, what it carries.")
    ] = False,
    json: Annotated[
        str | None, typer.Option("--json", help="Write it as JSON to this file (`-`: standard output).")
    ] = None,
) -> None:
    """Show what is in a proof: the task as the prover describes it, data, randomness, environments, size; or what a claim fixes.
    Judges nothing.

    **Examples**

    `pol inspect run.pol`

    `pol inspect run.pol --program`

    `pol inspect claim.json`
    """
    import msgspec

    from proof_of_learning.errors import UsageError
    from proof_of_learning.proof.reader import Proof
    from proof_of_learning.proof.remote import local

    if os.path.isfile(proof):
        from proof_of_learning.cli import inspect_claim

        if program:
            raise UsageError(f"{proof} is a file, and a sealed program is in a proof's directory; leave --program out")
        claim = inspect_claim.describe(Path(proof))
        common.write_json(msgspec.json.format(msgspec.json.encode(claim), indent=2), json)
        if json != "-":
            common.print_rows(inspect_claim.rows(claim))
        return
    with local(proof) as folder:
        opened = Proof.open(folder)
        if program:
            return _show_program(opened)
        content = describe(opened)
    common.write_json(msgspec.json.format(msgspec.json.encode(content), indent=2), json)
    if json != "-":
        _show(content)


def _show_program(proof: Any) -> None:
    from proof_of_learning import canonical
    from proof_of_learning.errors import UsageError
    from proof_of_learning.program.checking import parse
    from proof_of_learning.program.show import lines

    held = proof.header.task.description.get("program")
    if held is None:
        raise UsageError("the proof has no sealed program (`pol prove --seal-program` records one)")
    for text in lines(parse(canonical.encode(held))):
        common.say(text, len(text) - len(text.lstrip(" ")))


def describe(proof: Any) -> dict[str, Any]:
    """The content of an opened proof as plain values."""
    import msgspec

    from proof_of_learning import sources
    from proof_of_learning.proof.codecs import KEYFRAMES
    from proof_of_learning.verifier.expected import expected_steps

    header = msgspec.to_builtins(proof.header)
    made_of = sources.digest(proof.header.task.digest, proof.header.task.sources)
    description = header["task"].pop("description")
    stored = list(proof.index.values())
    draws, steps = expected_steps(proof)
    recorded = header["randomness"]["mode"] == "recorded"
    per_step = ["loss", "learning rates"]
    per_step += ["course of the loop"] if header["program"]["kind"] == "script" else []
    per_step += ["batch", "generator states"] if recorded else []
    return {
        "schema": "pol/inspect/v1",
        "root": proof.root,
        "format": header["format"],
        "task": {**header["task"], "sources_digest": made_of,
                 "optimizers": description.get("optimizers"), "schedulers": description.get("schedulers"),
                 "step": description.get("step"), "modules": description.get("model", {}).get("modules")},
        "data": header["data"],
        "program": header["program"], "inputs": header["inputs"], "parts": header["parts"], "ranks": header["ranks"],
        "arithmetic": header["arithmetic"],
        "training": {**header["training"], "steps": proof.steps, "ended": proof.end.ended, "segments": len(proof.segments)},
        "per_step": per_step,
        "events": [{"step": event.step, **msgspec.to_builtins(event.event)} for event in proof.events],
        "randomness": header["randomness"],
        "initialization": header["initialization"],
        "codec": header["codec"],
        "environments": {digest: msgspec.to_builtins(env) for digest, env in proof.environments.items()},
        "parameters": parameters(description),
        "states": {"held": len(stored), "of": len(proof.segments) + 1, "bytes": sum(item.bytes for item in stored),
                   "differences": sum(item.base is not None for item in stored),
                   "bytes_of_differences": sum(item.bytes for item in stored if item.base is not None),
                   "whole_after": KEYFRAMES.get(header["codec"]["name"])},
        "verification": {"uniform_draws": draws, "steps": steps, "share": steps / proof.steps},
        "stamped": _stamped(proof),
        "final": {"weights": proof.end.final_weights, "evaluation": proof.end.evaluation},
    }  # fmt: skip


def _stamped(proof: Any) -> dict[str, Any]:
    """The heads that were stamped while training, by the tokens' own word, and where none was."""
    if not any(name.startswith(("head", "gaps")) for name in proof.attestations):
        return {"heads": 0, "stretches": [], "gaps": [], "false": []}
    from proof_of_learning.attestation.attested import rfc3339
    from proof_of_learning.attestation.gathering import gather

    found = gather(proof, None)
    stretches = [
        {
            "start": s.start,
            "stop": s.stop,
            "by": None if s.latest is None else rfc3339(s.latest),
            "stamps": s.stamps,
        }
        for s in found.stretches
    ]
    heads = len({stamp.about for stamp in found.stamps if stamp.kind == "head"})
    return {"heads": heads, "stretches": stretches, "gaps": list(found.gaps), "false": list(found.false)}


def _stretch(stretch: dict[str, Any]) -> str:
    by = stretch["by"]
    when = "without a date" if by is None else f"by {by.replace('T', ' ').replace('Z', ' UTC')}"
    return f"up to step {stretch['stop']:,} {when}"


def parameters(description: dict[str, Any]) -> int:
    """How many numbers the model's parameters are, by a task's description; 0 where this does not say."""
    try:
        return sum(math.prod(map(int, shape)) for _, _, shape, _ in description["model"]["parameters"])
    except (KeyError, TypeError, ValueError):  # the prover wrote it
        return 0


def _whole(states: dict[str, Any], parameters: int) -> str:
    """What whole states weigh beside differences, which a longer run has more of."""
    from proof_of_learning.report.text import size

    differences, apart = states["differences"], states["bytes_of_differences"]
    whole, bytes_ = states["held"] - differences, states["bytes"] - apart
    text = f"{whole:,} with {size(bytes_)}, beside {differences:,} differences with {size(apart)}"
    if parameters and states["whole_after"]:
        each = (apart / differences + bytes_ / whole / states["whole_after"]) / parameters
        now = states["bytes"] / states["held"] / parameters
        text += f": {now:.2f} bytes a parameter and checkpoint here, about {each:.2f} in a long run"
    return text


def _length(training: dict[str, Any]) -> str:
    """Planned and taken steps, in words."""
    taken, planned = f"{training['steps']:,} steps", training["planned"]
    if planned is None:
        return f"{taken}, without a plan how many"
    return taken if planned == training["steps"] else f"{taken}, stopped early (of {planned:,} planned)"


def _show(content: dict[str, Any]) -> None:
    from proof_of_learning.report.text import ARITHMETIC, size

    program, events = content["program"], content["events"]
    training, states, cost = content["training"], content["states"], content["verification"]
    optimizers = {
        n: o.get("class", "?") for n, o in (content["task"]["optimizers"] or {}).items() if isinstance(o, dict)
    }
    seed = content["randomness"]["seed"]
    source = f"claim {content['randomness']['claim']}" if seed is None else f"seed {seed}"
    recorded = content["randomness"]["mode"] == "recorded"
    rows = {
        "root": content["root"],
        "format": content["format"],
        "task": f"{content['task']['name']}  {content['task']['digest']}",
        "sources": content["task"]["sources_digest"] or "not available in full",
        "model": f"{len(content['task']['modules'] or [])} modules",
        "optimizer": ", ".join(f"{name}: {cls}" for name, cls in optimizers.items()),
        "data": f"{content['data']['samples']:,} samples  {content['data']['root']}",
        "program": program["reference"] or "not named",
        "settings": ", ".join(f"{name}={value}" for name, value in program["settings"].items()) or "none",
        "arguments": " ".join(program["arguments"]) or "none",
        **({"processes": f"{content['ranks']}, which trained together"} if content["ranks"] > 1 else {}),
        "training": f"{_length(training)}, {training['steps_per_epoch']:,} an epoch; "
        f"{training['segments']:,} segments of {training['interval']}",
        "randomness": "recorded: written down by the prover" if recorded else f"derived, {source}",
        "arithmetic": f"{content['arithmetic']}. {ARITHMETIC[content['arithmetic']]}",
        "per step": ", ".join(content["per_step"]),
        "states": f"{states['held']:,} of {states['of']:,} held, {size(states['bytes'])}, codec {content['codec']['name']}",
        "to verify": f"{cost['uniform_draws']:,} uniform draws replay about {cost['steps']:,} steps ({cost['share']:.1%}); "
        + ("weighted draws and what sticks out come on top" if states["held"] == states["of"]
           else "states are missing, so none are weighted"),
        **({} if states["held"] else {"to verify": "nothing can be replayed, for no state is here; `pol challenge` asks for some"}),
        **({"whole states": _whole(states, content["parameters"])} if states["differences"] else {}),
        "final model": content["final"]["weights"],
        "claims": ", ".join(f"{n} {v:.4g}" for n, v in (content["final"]["evaluation"] or {}).items()) or "nothing",
    }  # fmt: skip
    stamped = content["stamped"]
    if stamped["heads"] or stamped["gaps"] or stamped["false"]:
        parts = [_stretch(stretch) for stretch in stamped["stretches"]]
        rows["stamped"] = f"{stamped['heads']:,} heads of the log, by the timestamps' own word"
        rows["stamped"] += "".join(f"; {part}" for part in parts[:SHOWN]) + ("; …" if len(parts) > SHOWN else "")
    for name, lines in (("false", stamped["false"]), ("gaps", stamped["gaps"])):
        if lines:
            rows[name] = "; ".join(lines[:SHOWN]) + ("; …" if len(lines) > SHOWN else "")
    if events:
        rows["events"] = f"{len(events):,}: " + "; ".join(
            f"{e['name']} during step {e['step']:,}" for e in events[:SHOWN]
        )
        rows["events"] += "; …" if len(events) > SHOWN else ""
    if content["inputs"]:
        rows["inputs"] = ", ".join(f"{item['name']} ({item['digest'][7:19]}…)" for item in content["inputs"][:SHOWN])
        rows["inputs"] += ", …" if len(content["inputs"]) > SHOWN else ""
    for number, environment in enumerate(content["environments"].values(), 1):
        device = environment["device"]
        rows[f"environment {number}"] = (
            f"torch {environment['torch']}, {device.get('name') or device['type']}, {environment['machine']} "
            f"{environment['capability']}, {environment['threads']} threads"
            + "".join(f", {n}={v}" for n, v in environment["variables"].items())
        )
    common.print_rows(rows)
