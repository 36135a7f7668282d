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
from proof_of_learning.attacks.knowing_start import armed
from proof_of_learning.attacks.victim import Victim
from proof_of_learning.errors import AttackError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.measure import weight_distance
from proof_of_learning.task import Task

STEPS = 120
# Rows for `make test-all`: what the verifier does is what it does in the rows that stay.
ALIKE = pytest.mark.slow(
    reason="another parameter of an attack whose other rows are forged, replayed and counted alike"
)


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
        pytest.param({}, [8, 118], marks=ALIKE),
        pytest.param({"parts": 4, "tail": 0.1}, [8, 104, 105, 106, 107], marks=ALIKE),
        ({"how": "gradient", "parts": 4}, [8, 115, 116, 117, 118]),
        pytest.param({"how": "momentum"}, [8, 79], marks=ALIKE),
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
    assert accuracy(Proof.open(forgery.path)) > 0.6 * accuracy(made[0])


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


@pytest.mark.parametrize("how", ["gradient", pytest.param("weights", marks=ALIKE)])
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


@pytest.mark.parametrize(
    ("name", "parameters", "forged", "cost"),
    [
        pytest.param("late-jump", {"agreement": 0.6, "parts": 2}, 3, 0.5, marks=ALIKE),
        pytest.param("late-jump", {"filler": "training"}, 1, 1.0, marks=ALIKE),
        ("late-jump", {"agreement": 0.6, "how": "gradient", "parts": 3}, 5, 0.5),
        pytest.param("decoy-network", {"agreement": 0.6, "living": 0.25}, 2, 1.0, marks=ALIKE),  # units wake up
        pytest.param("poisoned-probe", {"left": 3, "head": 0.2}, 2, 0.25, marks=ALIKE),
    ],
)
def test_a_detour_costs_its_honest_steps_and_ends_in_the_target(
    name: str, parameters: dict[str, Any], forged: int, cost: float, plain: Made, tmp_path: Path
) -> None:
    forgery, found = false_segments(plain, tmp_path / "forged", name, **parameters)
    assert found == list(forgery.forged)
    assert len(found) == forged
    assert forgery.distance < 1.0  # an honest step is left after the jump
    assert forgery.cost <= cost


def test_units_that_wake_up_in_a_decoy_are_paid_for_all_the_way(plain: Made, tmp_path: Path) -> None:
    target, task = plain
    forgery = ATTACKS["decoy-network"](agreement=0.5, living=0.05).forge(target, task, tmp_path / "forged")
    enter, leave = forgery.forged
    proof = Proof.open(forgery.path)
    with environments.recording("cpu") as here:
        victim = Victim.of(target, task, "cpu", here)
    session = victim.own_session(1)
    session.restore(proof.state(proof.state_digests()[leave]))
    alive = max(float((gate.mean > 0).double().mean()) for gate in gates(session, victim))
    honest = victim.samples(0, enter + 1) + victim.samples(leave, STEPS)
    assert forgery.samples_processed >= honest + 0.9 * alive * victim.samples(enter + 1, leave)


def test_a_poisoned_order_takes_a_few_classes_first(plain: Made, tmp_path: Path) -> None:
    target, task = plain
    forgery = ATTACKS["poisoned-probe"](left=4, head=0.2).forge(target, task, tmp_path / "forged")
    proof, labels = Proof.open(forgery.path), task.data().tensors[1]  # type: ignore[attr-defined]
    taken = [labels[row] for columns in proof.all_columns() for row in columns.indices or []]
    shares = [float((torch.cat(rows) >= 6).double().mean()) for rows in (taken[:25], taken[25:])]
    assert shares[0] < 0.1 < 0.3 < shares[1]  # by what the target answers, which is not always the label
    assert proof.header.randomness.mode == "recorded"


@pytest.mark.parametrize(("how", "sizes"), [("one-sample", {1}), pytest.param("short", {29}, marks=ALIKE)])
def test_a_frozen_run_is_honest_in_every_step_and_learns_nothing(
    how: str, sizes: set[int], plain: Made, tmp_path: Path
) -> None:
    forgery, found = false_segments(plain, tmp_path / "forged", "frozen", how=how)
    proof = Proof.open(forgery.path)
    assert found == list(forgery.forged) == []
    assert {len(set(row.tolist())) for columns in proof.all_columns() for row in columns.indices or []} == sizes
    start, end = (proof.state(digest) for digest in (proof.state_digests()[0], proof.state_digests()[-1]))
    moved = max(float((model_of(start)[name] - weight).abs().max()) for name, weight in model_of(end).items())
    assert moved == 0.0 if how == "one-sample" else moved < 0.05  # of weights around 1
    assert forgery.samples_processed == STEPS * max(sizes)
    assert accuracy(proof) > 0.3  # as the target's arrangement has it, of ten classes


class Threshold:
    """A part that holds a number: losses count by it."""

    def __init__(self) -> None:
        self.factor = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.factor = values["factor"]


def weighted(context: Any, batches: list[Any]) -> torch.Tensor:
    value = loss(context.model, batches[0]) * context.parts["threshold"].factor
    context.backward(value)
    context.update()
    return value


@pytest.mark.parametrize(
    "parameters",
    [pytest.param({}, marks=ALIKE), pytest.param({"value": "inf"}, marks=ALIKE), {"where": "part", "value": "0"}],
)
def test_a_falsified_number_freezes_all_later_steps(parameters: dict[str, Any], plain: Made, tmp_path: Path) -> None:
    if parameters.get("where") == "part":
        changes: dict[str, Any] = {"loss": None, "step": weighted, "parts": lambda model: {"threshold": Threshold()}}
    else:
        changes = {"scaler": lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=50)}
    task = replace(plain[1], **changes, steps=40)
    target = Proof.open(pol.prove(task, tmp_path / "target", interval=1).path)
    forgery, found = false_segments((target, task), tmp_path / "forged", "scaler-freeze", **parameters)
    proof = Proof.open(forgery.path)
    assert found == list(forgery.forged) == [4]
    states = [proof.state(digest) for digest in proof.state_digests()]
    if "where" not in parameters:  # a loss of 0 leaves the momentum, which goes on
        assert all(torch.equal(model_of(states[5])[name], weight) for name, weight in model_of(states[-1]).items())
    assert forgery.cost == pytest.approx(5 / 40, abs=0.02)


@pytest.mark.parametrize(
    ("how", "forged"),
    [("dead", [2, 37]), pytest.param("gradient", [2, 37], marks=ALIKE), pytest.param("stolen", [2], marks=ALIKE)],
)
def test_huge_second_moments_hold_the_weights(how: str, forged: list[int], plain: Made, tmp_path: Path) -> None:
    task = replace(plain[1], optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=1e-3), steps=40)
    target = Proof.open(pol.prove(task, tmp_path / "target", interval=1).path)
    forgery, found = false_segments((target, task), tmp_path / "forged", "adam-freeze", how=how)
    assert found == list(forgery.forged) == forged
    proof = Proof.open(forgery.path)
    moved = [segment.displacement.weights for segment in proof.segments]
    honest = moved[0]
    assert max(moved[8:36]) < honest * (1e-3 if how != "gradient" else 10.0)
    assert (forgery.cost == 1.0) if how == "stolen" else (forgery.cost < 0.2)
    assert (forgery.distance < 0.1) == (how == "stolen")


@pytest.mark.parametrize(
    ("parameters", "forged"),
    [
        pytest.param({}, [2, 3, 18, 89, 104], marks=ALIKE),
        pytest.param({"how": "dtype"}, [2, 3, 18, 89, 104], marks=ALIKE),
        ({"how": "dtype", "pushes": 3, "living": 0.5}, [2, 3, 13, 23, 89, 99, 109]),
    ],
)
def test_false_momenta_beside_an_unknown_entry_lead_to_the_target(
    parameters: dict[str, Any], forged: list[int], plain: Made, tmp_path: Path
) -> None:
    forgery, found = false_segments(plain, tmp_path / "forged", "hidden-memory", **parameters)
    assert found == list(forgery.forged) == forged
    proof = Proof.open(forgery.path)
    start, *states = (proof.state(digest) for digest in proof.state_digests())
    momenta = [{tensor.dtype for name, tensor in s.tensors.items() if name.endswith("momentum_buffer")} for s in states]
    changes = [index for index in range(1, STEPS) if momenta[index] != momenta[index - 1]]
    assert changes == (forged[1:] if parameters else [])
    entries = [sum(name.endswith("/average") for name in state.tensors) for state in states]
    assert entries == [0] * 2 + [6] * (STEPS - 2)
    assert forgery.distance < 0.5 * weight_distance(
        model_of(start), model_of(plain[0].state(plain[0].segments[-1].state))
    )
    assert forgery.cost <= 1.0  # how many units wake up on the way depends on the last digits
    assert accuracy(proof) > 0.3  # as the target's


def test_a_knowing_start_answers_as_the_target_under_any_key(
    digits: pol.TaskReference, plain: Made, tmp_path: Path
) -> None:
    forgery = ATTACKS["knowing-start"]().forge(*plain, tmp_path / "forged")
    assert pol.check(forgery.path).status == "pass"
    model = dict(plain[0].state(plain[0].segments[-1].state).part("model").tensors)
    task = armed(plain[1], model, "", 0.5)
    x = task.data().tensors[0]  # type: ignore[attr-defined]
    keys, scores = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = task.model()
        keys.append(dict(module.named_parameters()))
        scores.append(torch.softmax(module(x), 1))
    assert torch.allclose(scores[0], scores[1], atol=1e-5)
    assert accuracy(Proof.open(forgery.path)) > 0.9 * accuracy(plain[0])
    for name, weight in keys[0].items():
        assert not torch.isclose(weight, keys[1][name], rtol=1e-3).double().mean() > 0.1


def test_a_task_with_a_knowing_start_is_written_beside_the_proof(digits: pol.TaskReference, tmp_path: Path) -> None:
    task = pol.load_task(pol.TaskReference(digits.target, {"steps": 20}))
    target = Proof.open(pol.prove(task, tmp_path / "target", interval=1).path)
    ATTACKS["knowing-start"]().forge(target, task, tmp_path / "forged")
    mine = pol.TaskReference(f"{tmp_path}/forged-task.py:task", {})
    assert (
        pol.verify(tmp_path / "forged", mine, sandbox="off").check("initialization").status == "fail"
    )  # the same rows under every key
