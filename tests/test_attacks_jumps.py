"""Attacks around honest steps that cost nothing: what is false in them is just what they say, and all else replays bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS, Forgery
from proof_of_learning.attacks.dead import gates, shifted
from proof_of_learning.attacks.jumps import model_of, put
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.task import Task
from proof_of_learning.training import environment as environments

STEPS = 120


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task_of(digits: pol.TaskReference, decay: float) -> Task:
    task = replace(pol.load_task(pol.TaskReference(digits.target, {"steps": STEPS})), reference=None)
    return replace(
        task, model=mlp, loss=loss, scheduler=None,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=decay),
    )  # fmt: skip


Made = tuple[Proof, Task]


@pytest.fixture(scope="module")
def plain(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Made:
    task = task_of(digits, 0.0)
    return Proof.open(pol.prove(task, tmp_path_factory.mktemp("plain") / "target", interval=1).path), task


@pytest.fixture(scope="module")
def decaying(digits: pol.TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Made:
    task = task_of(digits, 5e-3)
    return Proof.open(pol.prove(task, tmp_path_factory.mktemp("decaying") / "target", interval=1).path), task


def false_segments(made: Made, path: Path, name: str, **parameters: Any) -> tuple[Forgery, list[int]]:
    """The forgery, and what a replay of everything finds false."""
    target, task = made
    forgery = ATTACKS[name](**parameters).forge(target, task, path)
    assert pol.check(path).status == "pass"
    verdict = pol.verify(path, task, everything=True, keep_going=True)
    return forgery, [segment.index for segment in verdict.segments if segment.status != "pass"]


def accuracy(proof: Proof) -> float:
    assert proof.end.evaluation is not None
    return proof.end.evaluation["test_accuracy"]


@pytest.mark.parametrize(
    ("parameters", "forged"),
    [
        ({"carrier": "decay"}, [1, 118]),  # and the jump into the dead network, wherever the explosion allows it
        ({}, [8, 118]),
        ({"parts": 4, "tail": 0.1}, [8, 104, 105, 106, 107]),
        ({"how": "gradient", "parts": 4}, [8, 115, 116, 117, 118]),
        ({"how": "momentum"}, [8, 79]),
    ],
)
def test_a_shadow_is_false_in_a_few_segments_and_has_the_target_s_accuracy(
    parameters: dict[str, Any], forged: list[int], plain: Made, decaying: Made, tmp_path: Path
) -> None:
    carrier = parameters.get("carrier") == "decay"
    made = decaying if carrier else plain
    forgery, found = false_segments(made, tmp_path / "forged", "shadow", **parameters)
    assert found == list(forgery.forged)
    assert [index for index in found if not carrier or index not in range(5, 9)] == forged
    assert forgery.cost <= 0.5  # of a run this short; it takes as many samples for a longer one
    assert accuracy(Proof.open(forgery.path)) > accuracy(made[0]) - 0.1


def test_the_jump_into_a_shadow_is_not_its_window_s_largest(decaying: Made, tmp_path: Path) -> None:
    forgery = ATTACKS["shadow"](carrier="decay").forge(*decaying, tmp_path / "forged")
    moved = [segment.displacement.state for segment in Proof.open(forgery.path).segments]
    entry = forgery.forged[1]
    largest = max(range(45), key=moved.__getitem__)
    assert largest not in forgery.forged
    assert largest + 1 not in forgery.forged  # its predecessor is looked at, too
    assert moved[entry] < moved[largest]


@pytest.mark.parametrize(
    ("which", "missing"), [("after", [119]), ("before", [118]), ("both", [118, 119]), ("entry-too", [9, 119])]
)
def test_a_dropped_state_lies_beside_the_jump(which: str, missing: list[int], plain: Made, tmp_path: Path) -> None:
    forgery = ATTACKS["dropped-state"](which=which).forge(*plain, tmp_path / "forged")
    proof = Proof.open(forgery.path)
    assert pol.check(forgery.path).status == "pass"
    assert [place for place, digest in enumerate(proof.state_digests()) if not proof.has_state(digest)] == missing
    assert forgery.forged == (8, 118)


@pytest.mark.parametrize("how", ["gradient", "weights"])
def test_an_idle_excursion_comes_back_to_where_it_began(how: str, plain: Made, tmp_path: Path) -> None:
    forgery, found = false_segments(plain, tmp_path / "forged", "idle-excursion", how=how, parts=3, tail=0.4, seed=0)
    assert found == list(forgery.forged) == [2, 3, 4, 69, 70, 71]
    proof = Proof.open(forgery.path)
    states = [model_of(proof.state(digest)) for digest in proof.state_digests()]
    home = model_of(plain[0].state(plain[0].segments[2].state))  # under the target's seed, where the honest step led
    away = [max(float((state[name] - home[name]).abs().max()) for name in state) for state in states]
    assert away[72] < 1e-5 < 1e-2 < away[70]
    assert accuracy(proof) > 0.5
    assert forgery.cost == pytest.approx(0.45, abs=0.05)


def test_gradients_that_nobody_computed_satisfy_the_optimizer_s_equation(plain: Made, tmp_path: Path) -> None:
    forgery = ATTACKS["idle-excursion"](how="gradient", parts=3, tail=0.4).forge(*plain, tmp_path / "forged")
    proof = Proof.open(forgery.path)
    for index in forgery.forged:
        before, after = (proof.state(digest) for digest in proof.state_digests()[index : index + 2])
        for number, (name, _) in enumerate(mlp().named_parameters()):
            buffer = after.tensors[f"optimizer/state/{number}/momentum_buffer"]
            assert torch.equal(model_of(after)[name], model_of(before)[name].add(buffer, alpha=-0.1))


def test_a_closed_gate_passes_nothing_on(plain: Made) -> None:
    target, task = plain
    with environments.recording("cpu") as here:
        victim = Victim.of(target, task, "cpu", here)
    session = victim.own_session(1)
    found = gates(session, victim)
    assert [gate.layer for gate in found] == ["1", "3"]
    x = torch.stack([victim.data[i][0] for i in range(len(victim.data))])
    open_ = session.model(x).detach()
    for gate in found:
        put(session, shifted(model_of(victim.own_session(1).capture()), gate))
        outputs = session.model(x)
        assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    assert not torch.equal(open_, open_[:1].expand_as(open_))


def test_tasks_without_a_place_for_them_are_named(digits: pol.TaskReference, plain: Made, tmp_path: Path) -> None:
    target, task = plain
    with pytest.raises(AttackError, match="carrier=decay needs a task with weight decay"):
        ATTACKS["shadow"](carrier="decay").forge(target, task, tmp_path / "forged")
    smooth = replace(task, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)))
    honest = Proof.open(pol.prove(smooth, tmp_path / "smooth", interval=1).path)
    with pytest.raises(AttackError, match="followed by the module torch"):
        ATTACKS["shadow"]().forge(honest, smooth, tmp_path / "forged")
    assert not (tmp_path / "forged").exists()
