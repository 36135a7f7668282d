"""Attacks: every forgery is structurally perfect, ends in the target's weights, and is not valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

import proof_of_learning as pol
from proof_of_learning.attacks import ATTACKS, Forgery, forge_proof
from proof_of_learning.errors import AttackError, PolError, UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.measure import weight_distance, weights
from proof_of_learning.state.state import State, decode_tree
from proof_of_learning.task import Task
from proof_of_learning.training.batches import DerivedOrder

SAMPLES, STEPS, INTERVAL, SEGMENTS = 1437, 120, 2, 60
COARSE = 4  # where nothing is counted by segments

NEAR = 0.5  # of the way from where the forgery starts: an attack that ends further from its target forges nothing
# But for those that need a far longer target to get anywhere, and those whose optimisation gets stuck; theirs also costs more.
SLOW = {"drift", "claimed-environment", "synthetic-data"}

# Where the verifier stops an attack; one that is not named here need only be stopped somewhere.
CAUGHT_BY = {
    "adam-freeze": "trajectory", "blindfold": "trajectory", "bridge": "trajectory", "codec-steering": "trajectory",
    "concatenation": "trajectory", "decoy": "trajectory", "decoy-network": "trajectory",
    "derivative": "trajectory", "directed-weights": "trajectory", "drift": "trajectory",
    "dropped-state": "trajectory", "false-settings": "hyperparameters", "few-segments": "trajectory",
    "grinding": "trajectory", "hidden-memory": "trajectory", "huge-rate": "trajectory", "idle-excursion": "trajectory",
    "infinitesimal-update": "trajectory", "inverse-gradient": "initialization", "knowing-start": "initialization",
    "late-jump": "trajectory", "lazy": "trajectory", "padding": "trajectory", "poisoned-probe": "trajectory",
    "rank-matched": "trajectory", "rate-steering": "trajectory", "scaler-freeze": "hyperparameters",
    "shadow": "trajectory", "slow-memory": "trajectory",
    "stolen": "initialization", "synthetic-data": "data", "task-weapon": "trajectory",
    "teleport": "trajectory",
}  # fmt: skip
DEARER_THAN_TRAINING = {"inverse-gradient"}  # the others would be no attacks if they were
# Those that files of their own forge and judge as well, with the same parameters or harder ones.
ELSEWHERE = {
    "bridge", "derivative", "directed-weights", "few-segments", "grinding", "huge-rate", "inverse-gradient", "lazy", "padding",
    "rank-matched", "rate-steering", "stolen", "task-weapon", "teleport",
}  # fmt: skip
TOO = pytest.mark.slow(reason="forged and judged in a file of its own, too")


@pytest.fixture(scope="module")
def task(digits: pol.TaskReference) -> Task:
    """The target's task, replayed in this process."""
    return replace(pol.load_task(pol.TaskReference(digits.target, {"steps": STEPS})), reference=None)


@pytest.fixture(scope="module")
def target(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """The honest proof of sixty segments that is attacked."""
    return Proof.open(pol.prove(task, tmp_path_factory.mktemp("honest") / "target", interval=INTERVAL).path)


@pytest.fixture(scope="module")
def coarse(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """The same run in thirty segments, for what is tried with every attack."""
    return Proof.open(pol.prove(task, tmp_path_factory.mktemp("honest") / "coarse", interval=COARSE).path)


# Attacks on what the target's task does not have, and what makes it one that has it.
NEEDS: dict[str, dict[str, Any]] = {
    "adam-freeze": {"optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)},
    "scaler-freeze": {"scaler": lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=500)},
}


@dataclass(frozen=True)
class Forged:
    name: str
    forgery: Forgery
    target: Proof
    task: Task


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=TOO if name in ELSEWHERE else ()) for name in sorted(ATTACKS)]
)
def forged(
    request: pytest.FixtureRequest, coarse: Proof, task: Task, tmp_path_factory: pytest.TempPathFactory
) -> Forged:
    name, folder, target = request.param, tmp_path_factory.mktemp("forged"), coarse
    if name in NEEDS:
        task = replace(task, **NEEDS[name])
        target = Proof.open(pol.prove(task, folder / "target", interval=COARSE).path)
    return Forged(name, ATTACKS[name]().forge(target, task, folder / "forged"), target, task)


def mount(name: str, target: Proof, task: Task, path: Path, **parameters: str | float) -> tuple[Forgery, pol.Verdict]:
    forgery = ATTACKS[name](**parameters).forge(target, task, path)
    assert pol.check(path).status == "pass"
    return forgery, pol.verify(path, task, everything=True)


def model(proof: Proof) -> State:
    """The final state."""
    return proof.state(proof.segments[-1].state)


def stopped_by(verdict: pol.Verdict) -> list[str]:
    return [check.name for check in verdict.checks if check.status == "fail"]


def states_of(proof: Proof) -> Iterator[State]:
    return (proof.state(digest) for digest in proof.state_digests())


# ---- every attack -----------------------------------------------------------------------------------


def test_forgery_is_structurally_perfect_and_ends_where_it_says(forged: Forged) -> None:
    name, forgery, target = forged.name, forged.forgery, forged.target
    assert pol.check(forgery.path).status == "pass"
    proof = Proof.open(forgery.path)
    assert proof.root == forgery.root != target.root
    assert (proof.end.final_weights == target.end.final_weights) == (forgery.distance == 0.0)
    start = weight_distance(weights(proof.state(proof.initial_state)), weights(model(target)))
    assert name in SLOW or not ATTACKS[name].ends_in_target or forgery.distance <= NEAR * start
    assert set(forgery.forged) <= set(range(len(proof.segments)))
    assert forgery.honest_samples == 2 * SAMPLES + 30 * 32  # an epoch of 45 steps ends in a smaller one
    assert forgery.samples_processed >= 0
    assert name in SLOW | DEARER_THAN_TRAINING or forgery.cost <= 1
    assert forgery.cost == forgery.samples_processed / forgery.honest_samples


@pytest.mark.parametrize("nonce", ["c0ffee"])
def test_forgery_is_not_valid(forged: Forged, nonce: str) -> None:
    name = forged.name
    verdict = pol.verify(forged.forgery.path, forged.task, nonce=nonce, accept_nonce=True)
    assert verdict.verdict != "valid"
    if name in CAUGHT_BY:
        assert verdict.verdict == "invalid"
        assert stopped_by(verdict) == [CAUGHT_BY[name]]


def test_nothing_marks_a_forgery(forged: Forged) -> None:
    forgery = forged.forgery
    assert {item.name for item in forgery.path.iterdir()} == {item.name for item in forged.target.path.iterdir()}
    for name in ("header.json", "log.jsonl", "index.jsonl", "seal.json"):
        text, honest = ((path / name).read_text().lower() for path in (forgery.path, forged.target.path))
        assert not any(word in text and word not in honest for word in ("forge", "attack", "spoof", "stolen"))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attack_says_what_it_is(name: str) -> None:
    attack = ATTACKS[name]
    assert attack.name == name == name.lower().replace("_", "-")
    assert all(text and "\n" not in text for text in (attack.summary, attack.source, attack.knowledge))
    for field in attack.parameters().values():
        assert field.metadata["help"]
        text = {} if field.default is None else {field.name: str(field.default)}
        assert getattr(attack(**text), field.name) == field.default


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": "1"}, "no parameter 'speed'; its parameters: fraction, tail, seed"),
        ({"fraction": "much"}, "fraction='much': expected a number from 0.0 to 1.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": "nan"}, "fraction=nan"),
        ({"fraction": True}, "fraction=True"),
        ({"seed": "-1"}, "seed=-1: expected an integer"),
        ({"tail": "borrowed"}, "tail='borrowed': expected 'stolen' or 'fine-tuned'"),
    ],
)
def test_wrong_parameters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        ATTACKS["concatenation"](**settings)
    assert message in str(error.value)


# ---- what an attack does ----------------------------------------------------------------------------


@pytest.mark.usefixtures("every_segment")
@pytest.mark.quick
@pytest.mark.parametrize(("tail", "fraction"), [("stolen", "0.5"), ("fine-tuned", "0.8")])
def test_concatenation_forges_exactly_one_segment(
    tail: str, fraction: str, target: Proof, task: Task, tmp_path: Path
) -> None:
    forgery, verdict = mount("concatenation", target, task, tmp_path / "forged", tail=tail, fraction=fraction)
    joint = round(float(fraction) * SEGMENTS)
    assert [segment.index for segment in verdict.segments if segment.status != "pass"] == [joint]
    assert forgery.forged == (joint,)
    assert sum(segment.exact for segment in verdict.segments) == SEGMENTS - 1
    assert stopped_by(verdict) == ["trajectory"]
    if tail == "stolen":
        assert (verdict.randomness, forgery.distance) == ("recorded", 0.0)
        assert forgery.samples_processed == SAMPLES + 15 * 32  # sixty steps
    else:
        assert verdict.randomness == "derived"
        assert 0.0 < forgery.distance < 1.0
        assert forgery.samples_processed == forgery.honest_samples - INTERVAL * 32


@pytest.mark.usefixtures("every_segment")
def test_the_joint_is_among_the_largest_displacements(target: Proof, task: Task, tmp_path: Path) -> None:
    ATTACKS["concatenation"](fraction=0.5).forge(target, task, tmp_path / "forged")
    verdict = pol.verify(tmp_path / "forged", task, random=0)
    assert verdict.verdict == "invalid"
    assert next(segment.why for segment in verdict.segments if segment.status == "fail")[0] == "top-q"


@pytest.mark.parametrize(
    ("claimed", "stored", "check"),
    [
        ("tiny", "tiny", "hyperparameters"),
        pytest.param(
            "schedule", "tiny", "hyperparameters", marks=pytest.mark.slow(reason="stored rates are judged above")
        ),
        ("schedule", "schedule", "trajectory"),
    ],
)
def test_infinitesimal_updates_are_caught_whatever_they_claim(
    claimed: str, stored: str, check: str, target: Proof, task: Task, tmp_path: Path
) -> None:
    forgery, verdict = mount("infinitesimal-update", target, task, tmp_path / "forged", claimed=claimed, stored=stored)
    assert forgery.cost == 0.0
    assert stopped_by(verdict) == [check]
    moved = np.array(verdict.trajectory.weights)
    assert moved.max() < 1.01 * moved.min()  # a straight line in equal steps


def test_targets_that_cannot_be_attacked(target: Proof, task: Task, tiny: pol.TaskReference, tmp_path: Path) -> None:
    def refused(victim: Proof, its: Task, message: str, **parameters: str | float) -> None:
        with pytest.raises(AttackError) as error:
            ATTACKS["concatenation"](**parameters).forge(victim, its, tmp_path / "forged")
        assert message in str(error.value)
        assert not (tmp_path / "forged").exists()

    thinned = {digest: stored for digest, stored in target.index.items() if digest != target.segments[-1].state}
    refused(replace(target, index=thinned), task, "final state is not in its proof")
    refused(target, pol.load_task(tiny), "another task")
    program = structs.replace(target.header.program, sealed="sha256:" + "0" * 64)
    refused(replace(target, header=structs.replace(target.header, program=program)), task, "without --seal-program")
    refused(target, replace(task, steps=121), "the target has 120 steps, the task 121")
    refused(target, task, "seed 0 is the target's own", seed=0)
    middle = {digest: stored for digest, stored in target.index.items() if digest != target.segments[40].state}
    refused(replace(target, index=middle), task, "1 of the target's last 59 checkpoints")


# ---- forge_proof ------------------------------------------------------------------------------------


def honest_claims(target: Proof) -> dict[str, Any]:
    return {
        "interval": INTERVAL, "environment": next(iter(target.environments.values())), "evaluation": target.end.evaluation,
        "hyperparameters": {"loss": [loss for columns in target.all_columns() for loss in columns.loss]},
    }  # fmt: skip


def test_an_honest_run_forged_from_its_own_states_is_the_honest_proof(
    target: Proof, task: Task, tmp_path: Path
) -> None:
    root = forge_proof(tmp_path / "again", task, states_of(target), None, **honest_claims(target))
    assert root == target.root
    assert pol.verify(tmp_path / "again", task).verdict == "valid"


def test_weights_alone_are_laid_over_a_fresh_session(target: Proof, task: Task, tmp_path: Path) -> None:
    def bare(state: State) -> dict[str, Any]:
        named = {name.split("/")[2]: tensor.double() for name, tensor in weights(state).items()}
        return {**named, "0.weight": named["0.weight"].numpy()}

    path = tmp_path / "forged"
    forge_proof(path, task, [bare(state) for state in states_of(target)], None)
    assert pol.check(path).status == "pass"
    proof = Proof.open(path)
    assert proof.header.training.interval == INTERVAL  # what makes sixty segments of the steps
    assert proof.end.final_weights == target.end.final_weights
    assert proof.initial_state == target.initial_state
    for position, state in enumerate(states_of(proof)):
        values = decode_tree(state.tree, state.tensors)
        assert values["progress"] == {"step": INTERVAL * position}
        assert values["scheduler"]["last_epoch"] == INTERVAL * position
        assert values["optimizer"]["state"] == {}
    assert stopped_by(pol.verify(path, task)) == ["trajectory"]


def test_each_state_says_that_it_stands_at_its_own_step(target: Proof, task: Task, tmp_path: Path) -> None:
    first = next(states_of(target))
    forge_proof(tmp_path / "forged", task, (first for _ in range(61)), None, interval=2, data=target.header.data)
    assert pol.check(tmp_path / "forged").status == "pass"
    trees = [decode_tree(state.tree, state.tensors) for state in states_of(Proof.open(tmp_path / "forged"))]
    assert [tree["progress"]["step"] for tree in trees] == list(range(0, 121, 2))


def test_given_batches_claim_recorded_randomness(target: Proof, task: Task, tmp_path: Path) -> None:
    order = DerivedOrder(task, SAMPLES, bytes.fromhex(target.header.randomness.key))
    batches = [order.indices(step) for step in range(STEPS)]
    path, claims = tmp_path / "forged", honest_claims(target)
    forge_proof(
        path, task, states_of(target), (batch.tolist() for batch in batches), initialization="derived", **claims
    )
    assert pol.check(path).status == "pass"
    proof = Proof.open(path)
    assert (proof.header.randomness.mode, proof.header.initialization.kind) == ("recorded", "derived")
    found = [row for columns in proof.all_columns() for row in columns.indices or []]
    assert all(map(np.array_equal, found, batches))
    # The steps of this task draw nothing, so that the right batches replay whatever the generators' states.
    assert pol.verify(path, task).check("trajectory").status == "pass"


def test_every_claim_is_written(target: Proof, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "forged"
    states = list(states_of(target))[:3]
    data = replace_struct(target.header.data, samples=9)
    forge_proof(path, task, states, None, steps=6, seed=12, data=data, evaluation={"test_accuracy": 1.0},
                keep_progress=True, hyperparameters={"rates": 0.25, "loss": 1.5})  # fmt: skip
    assert pol.check(path).status == "pass"
    proof = Proof.open(path)
    assert (proof.header.training.planned, proof.header.training.interval) == (6, 3)
    assert (proof.header.randomness.seed, proof.header.data.samples) == ("12", 9)
    assert proof.end.evaluation == {"test_accuracy": 1.0}
    assert [state.digest() for state in states_of(proof)] == [state.digest() for state in states]
    assert all((c.rates == 0.25).all() and (c.loss == 1.5).all() for c in proof.all_columns())


def replace_struct(value: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(value, **changes)


Change = Callable[[list[Any]], list[Any]]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda s: s[:-1], {"interval": 2}, "the states end before step 120 of 120; a run with the interval 2 has 61"),
        (lambda s: [*s, s[0]], {"interval": 2}, "more than the 61 states"),
        (lambda s: s * 9, {}, "549 states make no run of 120 steps"),
        (lambda s: s, {"colour": "red"}, "there is no claim 'colour'; known: interval"),
        (lambda s: s, {"interval": 0}, "interval of at least 1"),
        (lambda s: [s[0], 3, *s[2:]], {}, "not of the type int"),
        (lambda s: [*s[:-1], {"9.weight": torch.zeros(1)}], {}, "no weights named '9.weight'"),
        (lambda s: [*s[:-1], {"0.bias": torch.zeros(3)}], {}, "0.bias: the task's model has the shape (8,)"),
        (lambda s: [*s[:-1], {"0.bias": torch.full((8,), float("nan"))}], {}, "the state at step 120 is not finite"),
        (lambda s: s, {"batches": [[0]] * 119, "steps": 120}, "the batches end at step 119"),
        (lambda s: s, {"batches": [[0.5]] * 120}, "a row of sample indices"),
        (lambda s: s, {"hyperparameters": {"momentum": 1}}, "no hyperparameter 'momentum'"),
        (lambda s: s, {"hyperparameters": {"loss": [0.0] * 119}}, "loss: 119 rows are given for 120 steps"),
        (lambda s: s, {"hyperparameters": {"rates": [[0.1, 0.2]] * 120}}, "a step has 1 rates"),
        (lambda s: s, {"hyperparameters": {"loss": float("nan")}}, "not finite"),
        (lambda s: s, {"environment": []}, "environments for 0 of 60 segments"),
    ],
)  # fmt: skip
def test_what_makes_no_proof_is_refused(
    change: Change, arguments: dict[str, Any], message: str, target: Proof, task: Task, tmp_path: Path
) -> None:
    given = {"data": target.header.data, **arguments}
    batches = given.pop("batches", None)
    with pytest.raises(AttackError) as error:
        forge_proof(tmp_path / "forged", task, change(list(states_of(target))), batches, **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "forged").exists()


def test_a_folder_that_was_there_is_left_alone(target: Proof, task: Task, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(PolError):
        forge_proof(tmp_path, task, states_of(target), None, interval=INTERVAL)
    assert [item.name for item in tmp_path.iterdir()] == ["letter.txt"]
