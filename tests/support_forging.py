"""Structurally perfect proofs of anything: what a dishonest prover could write with the package's own tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proof_of_learning import canonical
from proof_of_learning.numeric.environment import Environment
from proof_of_learning.proof import format
from proof_of_learning.proof.blocks import Columns
from proof_of_learning.proof.format import Displacement, Header
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.writer import ProofWriter
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import State


def write(
    path: Path,
    header: Header,
    states: Sequence[State],
    columns: Sequence[Columns],
    environment: Environment,
    *,
    arrived: Mapping[int, str] | None = None,
    claims: Mapping[int, Displacement] | None = None,
    evaluation: dict[str, float] | None = None,
) -> Path:
    """A proof of ``states`` (one more than ``columns``) with every digest, link and displacement in order."""
    with ProofWriter.create(path, header) as writer:
        writer.start(states[0])
        for index, (before, after, rows) in enumerate(zip(states[:-1], states[1:], columns, strict=True)):
            writer.segment(
                arrived=(arrived or {}).get(index, after.digest()),
                state=after,
                displacement=(claims or {}).get(index) or displacement(before, after),
                environment=environment,
                columns=rows,
            )
        writer.seal(evaluation)
    return path


def rewrite(
    source: Path,
    path: Path,
    *,
    header: Callable[[Header], Header] = lambda header: header,
    states: Callable[[list[State]], list[State]] = lambda states: states,
    columns: Callable[[list[Columns]], list[Columns]] = lambda columns: columns,
    environment: Callable[[Environment], Environment] = lambda environment: environment,
    arrived: Mapping[int, str] | None = None,
    claims: Mapping[int, Displacement] | None = None,
    evaluation: dict[str, float] | None = None,
) -> Path:
    """The proof at ``source`` with parts exchanged, and everything that hangs on them made consistent again."""
    proof = Proof.open(source)
    return write(
        path,
        header(proof.header),
        states([proof.state(digest) for digest in proof.state_digests()]),
        columns(list(proof.all_columns())),
        environment(next(iter(proof.environments.values()))),
        arrived=arrived,
        claims=claims,
        evaluation=evaluation or proof.end.evaluation,
    )


def relog(path: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """Change the log's lines in place, and make chain, root and seal consistent again."""
    header = (path / format.HEADER_FILE).read_bytes()
    start = format.header_digest(header)
    head, lines = start, [json.loads(line) for line in (path / format.LOG_FILE).read_bytes().splitlines()]
    lines = edit(lines) or lines
    with (path / format.LOG_FILE).open("wb") as log:
        for line in lines:
            raw = canonical.encode({**line, "prev": head})
            head = format.line_digest(raw)
            log.write(raw + b"\n")
    return reseal(path, root=format.root(start, head), segments=sum(line["kind"] == "segment" for line in lines))


def reindex(path: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """Change the index's lines in place, and make its chain and the seal consistent again."""
    head = format.index_start(format.header_digest((path / format.HEADER_FILE).read_bytes()))
    lines = [json.loads(line) for line in (path / format.INDEX_FILE).read_bytes().splitlines()]
    lines = edit(lines) or lines
    with (path / format.INDEX_FILE).open("wb") as index:
        for line in lines:
            raw = canonical.encode({**line, "prev": head})
            head = format.line_digest(raw)
            index.write(raw + b"\n")
    return reseal(path, index=head)


def reseal(path: Path, **changed: Any) -> Path:
    """Change the seal in place."""
    seal = json.loads((path / format.SEAL_FILE).read_bytes())
    (path / format.SEAL_FILE).write_bytes(canonical.encode({**seal, **changed}))
    return path
