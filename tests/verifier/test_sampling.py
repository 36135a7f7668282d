"""What is kept of hostile states for the selection of segments: bounded, and nothing hides beside what is larger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import proof_of_learning as pol
import tasks
from proof_of_learning.attacks.forge import forge_proof
from proof_of_learning.errors import FormatError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.state.state import State
from proof_of_learning.verifier import sampling
from proof_of_learning.verifier.progress import weight_measures
from proof_of_learning.verifier.sampling import Memory, Sampler


def state(count: int, size: int = 512) -> State:
    names = [f"model/{number}" for number in range(count)]
    return State(
        {"d": [["s:model", {"l": [{"t": name} for name in names]}]]}, {name: torch.zeros(size) for name in names}
    )


def test_tensors_that_appear_late_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes room for every state, and zeros compress to nothing: 650 kB were four gigabytes."""
    monkeypatch.setattr(sampling, "MAX_VALUES", 1 << 16)
    sampler = Sampler(600, 1)
    sampler.add(0, state(2))
    sampler.add(1, state(2 * sampling.SPARE))  # what an optimizer may keep
    with pytest.raises(FormatError, match="segment 1 holds more tensors"):
        sampler.add(2, state(40 * sampling.SPARE))


def test_a_counter_without_elements_is_no_crash(tmp_path: Path) -> None:
    task = replace(tasks.task(steps=6), optimizer=lambda m: torch.optim.Adam(m.parameters()), scheduler=None)
    task = replace(task, reference=None, evaluate=None)
    proof = Proof.open(pol.prove(task, tmp_path / "run", interval=1).path)
    states = [proof.state(digest) for digest in proof.state_digests()]
    changed = [
        State(s.tree, {name: torch.zeros(0) if name.endswith("/step") else t for name, t in s.tensors.items()})
        for s in states
    ]
    forge_proof(tmp_path / "forged", task, changed, None, interval=1)
    assert pol.verify(tmp_path / "forged", task, random=2).verdict == "invalid"


def test_a_false_memory_beside_a_bias_does_not_vanish_beside_matrices() -> None:
    """A slow mean of gradients carried a bias on for thousands of steps, after which most of the units were silent."""
    rng = np.random.default_rng(0)
    honest = np.cumsum(rng.normal(size=(101, 64)), axis=0) / 100
    false = honest.copy()
    false[50:] += 30.0
    found = weight_measures({}, [Memory("optimizer/slow", honest, 8192, 2), Memory("optimizer/slow", false, 128, 1)])
    shares = {measure.name: measure.shares[49] for measure in found}
    assert shares["optimizer/slow: away"] < 0.1
    assert shares["optimizer/slow, vectors 1 of 1: away"] > 0.8
