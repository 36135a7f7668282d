"""Proofs that earlier versions of the package recorded, in every version of the format: today's code must read, check and verify them.

``golden/make.py`` records them; what is in ``golden/vN`` stays as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_spec import minireader

import proof_of_learning as pol
from proof_of_learning import registration
from proof_of_learning.proof.pack import unpack
from proof_of_learning.verifier.verdict import Verdict

GOLDEN = Path(__file__).parents[1] / "golden"
TASK = f"{GOLDEN}/task.py:task"
ROOTS = json.loads((GOLDEN / "roots.json").read_text())
STEPS, INTERVAL = 22, {"observed": 8}


@pytest.fixture(params=sorted(ROOTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def golden(name: str, tmp_path: Path) -> Path:
    return unpack(GOLDEN / f"{name}.tar", tmp_path / "proof.pol")


def condemned(verdict: Verdict) -> list[str]:
    """What a verdict holds against the proof, but for a task that another PyTorch describes in other words."""
    foreign = any(line.startswith("torch") for line in verdict.unreproduced)
    return [
        f"{c.name}: {c.summary}" for c in verdict.checks if c.status == "fail" and not (foreign and c.name == "task")
    ]


def test_a_golden_proof_is_read_as_it_was_written(name: str, golden: Path) -> None:
    proof = pol.Proof.open(golden)
    version, kind = name.split("/")
    assert proof.root == ROOTS[name]
    assert f"pol/proof/{version}" == proof.header.format
    assert proof.header.encoded() == (golden / "header.json").read_bytes()
    planned = proof.header.training.planned
    assert planned == STEPS and proof.steps == proof.end.steps == (14 if kind == "stopped" else STEPS)
    assert proof.end.ended == ("stopped" if kind == "stopped" else "completed")
    assert len(proof.segments) == -(-proof.steps // INTERVAL.get(kind, 4))
    assert pol.check(golden).status == "pass"
    if proof.header.codec.name == "raw":
        assert minireader.check(golden) == proof.root
    if proof.header.claim is not None:
        claim = registration.load(GOLDEN / version / "claim.json").claim
        assert claim.digest() == proof.header.randomness.claim == registration.claim_of(proof.header).digest()
        assert not registration.violations(proof.header, proof.environments)


def test_a_golden_proof_is_not_condemned(name: str, golden: Path) -> None:
    # In this process, whose numeric environment is another one; `raw` by a worker, in the recorded one if it can be had here.
    version, kind = name.split("/")
    task = TASK if kind == "raw" else pol.Task(**{**vars(pol.load_task(TASK)), "reference": None})
    claim = GOLDEN / version / "claim.json" if kind == "registered" else None
    verdict = pol.verify(golden, task, registration=claim, everything=kind == "raw")
    assert condemned(verdict) == []
    if kind == "raw" and not verdict.unreproduced:
        assert all(segment.exact for segment in verdict.segments)


def test_a_golden_proof_is_thinned_and_packed_under_its_root(name: str, golden: Path, tmp_path: Path) -> None:
    thinned = pol.thin(golden, 3, tmp_path / "thinned.pol")
    assert thinned.root == ROOTS[name] and thinned.held < thinned.states
    assert pol.check(thinned.path).status == "pass"
