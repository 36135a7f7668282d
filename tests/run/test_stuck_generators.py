"""A loop that draws its own samples takes few of them where its generator is put into a state that no seed leads to."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import proof_of_learning as pol
from proof_of_learning.replay.twins import stuck
from proof_of_learning.run.parts import Generators
from proof_of_learning.state.state import State, capture
from support_scripts import script, variables, verdict

WORDS = slice(24, 24 + 8 * 624)  # of the state of PyTorch's generator


def blank(filled: int = 0) -> torch.Tensor:
    """A state of PyTorch's generator of zeros, but for its first words."""
    state = torch.get_rng_state()
    state[WORDS] = 0
    state[24 : 24 + 8 * filled] = torch.arange(8 * filled, dtype=torch.int64).to(torch.uint8)
    return state


def generators(put: Callable[[], object]) -> State:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    put()
    return capture({"generators": Generators()})


@pytest.mark.parametrize(
    ("put", "found"),
    [
        (lambda: torch.set_rng_state(blank()), ("torch",)),
        (lambda: torch.set_rng_state(blank(filled=2)), ("torch",)),
        (lambda: np.random.set_state(("MT19937", np.zeros(624, np.uint32), 624, 0, 0.0)), ("numpy",)),
        (lambda: random.setstate((3, (0,) * 624 + (624,), None)), ("python",)),
    ],
)
def test_a_generator_that_draws_few_numbers_is_found(put: Callable[[], object], found: tuple[str, ...]) -> None:
    state = generators(put)
    before = torch.get_rng_state()
    assert stuck(state) == found and torch.equal(before, torch.get_rng_state())
    assert stuck(state, state) == ()  # nothing was drawn


def test_what_seeds_lead_to_is_random() -> None:
    for seed in range(25):

        def put(seed: int = seed) -> None:
            torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
            torch.rand(997 * seed), np.random.rand(seed), random.random()

        assert stuck(generators(put)) == ()


# What a prover runs in the place of `pol prove`: the script is as it was.
FORGING = """
import sys, torch
made = torch.optim.SGD.__init__
def init(self, *args, **named):
    made(self, *args, **named)
    state = torch.get_rng_state()
    state[24 : 24 + 8 * 624] = 0
    torch.set_rng_state(state)
torch.optim.SGD.__init__ = init
from proof_of_learning.cli.main import run
sys.argv = ["pol", "prove", sys.argv[1], "-o", sys.argv[2], "-k", "4"]
run()
"""


def test_the_same_sample_over_and_over_does_not_pass_for_those_that_a_script_draws(tmp_path: Path) -> None:
    path = script(tmp_path, begin="i = torch.randint(640, (32,)); a, b = data.tensors[0][i], data.tensors[1][i]")
    text = path.read_text().replace("for epoch in run.epochs(2):", "if True:").replace("Dropout(0.2)", "Identity()")
    text = text.replace("in enumerate(run.batches(loader))", "in ((n, (None, None)) for n in run.steps(40))")
    path.write_text(
        text.replace("pol.Run(model", "pol.Run(data=data, model").replace("lr=0.1, momentum=0.9", "lr=0.01")
    )
    for name, code in (("honest", FORGING.replace("] = 0", "] ^= 0")), ("forged", FORGING)):
        proof = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-c", code, path, proof], env=variables(), cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = verdict(proof, path, keep_going=True)
        assert found.check("trajectory").status == "pass"
        order = found.check("order")
        assert order.status == ("pass" if name == "honest" else "inconclusive"), order.summary
    assert "a few numbers over and over" in order.summary
    pol.thin(proof, 100)
    thinned = verdict(proof, path, accept_uniform=True, keep_going=True).check("order")
    assert thinned.status == "inconclusive" and "after 4 steps" in thinned.summary  # seen where it was trained again
    assert verdict(proof, path, accept_order=True).check("order").status == "pass"
