"""``pol selftest``."""

from __future__ import annotations

from typing import Annotated

import typer

from proof_of_learning.cli import common


@common.command("interrupted; nothing was written")
def selftest(
    device: Annotated[str, typer.Option(help="`cpu`, or `cuda` for a GPU.")] = "cpu",
    json: Annotated[
        str | None,
        typer.Option("--json", help="Write every case's digest as JSON to this file (`-`: standard output)."),
    ] = None,
) -> None:
    """See whether portable arithmetic gives the published bits on this machine: every operation, on fixed inputs.

    The output names the engine that computes on the device: `native` (on the CPU built once where there is a C++ compiler, on a GPU
    Triton's kernels) or `plain`; both give the same bits. `POL_PORTABLE_ENGINE=plain` or `native` demands one.

    Exit status: 0 all of them, 1 some are others (they are named), 2 wrong usage.

    **Example**

    `pol selftest --json selftest.json`

    `pol selftest --device cuda`
    """
    import msgspec

    from proof_of_learning.numeric import environment
    from proof_of_learning.numeric.portable import engine
    from proof_of_learning.numeric.portable import selftest as tests

    common.writable("--json", json)
    environment.require(device)
    runs = engine.prepare_for_cuda() if device.startswith("cuda") else engine.prepare()
    published, found = tests.published(), tests.digests(device)
    differing = tests.unlike(found)
    cases = {name: {"published": published.get(name), "here": found.get(name)} for name in sorted({*published, *found})}
    told = {
        "schema": "pol/selftest/v1", "engine": {"name": runs.name, "reason": runs.reason},
        "passed": not differing, "differing": differing, "cases": cases,
        "environment": msgspec.to_builtins(environment.current(device)),
    }  # fmt: skip
    common.write_json(msgspec.json.format(msgspec.json.encode(told), indent=2), json)
    if json != "-":
        for name in differing:
            common.say(f"{name}: {found.get(name)}, published {published.get(name)}")
        much = "gives the published bits" if not differing else f"gives other bits in {len(differing)} cases"
        common.say(f"portable arithmetic {much} on {device} ({len(cases)} cases, {runs.name} engine: {runs.reason})")
    if differing:
        raise typer.Exit(1)
