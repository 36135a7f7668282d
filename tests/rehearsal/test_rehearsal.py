"""What cannot be replayed is found while training, by name; what can is recorded as if nobody had looked."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import proof_of_learning as pol
import support_traps
import tasks
from proof_of_learning import Task, TaskReference
from proof_of_learning.errors import RehearsalWarning, TaskError
from proof_of_learning.numeric import environment as environments
from proof_of_learning.numeric import randomness
from proof_of_learning.rehearsal import beside, causes, holdings, hops
from proof_of_learning.rehearsal.beside import Pace, Rehearsal
from proof_of_learning.rehearsal.structure import altered, structure
from proof_of_learning.replay import protocol
from proof_of_learning.replay.pool import Job
from proof_of_learning.state.optimizers import settle_groups
from proof_of_learning.state.state import State, capture
from proof_of_learning.training.steps import Session, derived_feed

HERE = Path(__file__).parents[1]
REGISTER = "Register it as a buffer"
ORDINARY = "Draw from PyTorch's, NumPy's or Python's ordinary generators"

# By trap: the place, the cause, the cure.
TRAPS = {
    "lookahead": ("steps 4 to 5", "attribute 'count' of part 'optimizer' (", "Keep it in the optimizer's own `state`"),
    "sam": ("after the update of step 1, whose loss agrees", "attribute '_last' of part 'optimizer'", "own `state`"),
    "recurrent": ("in the output of module 'rnn' at step 1", "attribute 'hidden' of the model", REGISTER),
    "bank": ("module 'net.first' at step 1", "attribute 'bank' of the model (0 entries", REGISTER),
    "torch generator": ("step 1", "attribute 'generator' of the model is a private generator", ORDINARY),
    "numpy generator": ("step 1", "attribute 'generator' of the model is a private generator", ORDINARY),
    "pruning": ("'middle.weight_orig' is new; before step 7", "pruning", "in the task's `model` factory"),
    "trained loss": (
        "loss of step 1",
        "'weight' of variable 'centres', which the task's loss uses",
        "`parts` return it",
    ),
    "writing": ("after step 0", "the data set is changed in place while training (sample", "Write into a copy"),
    "clocked": ("loss of step 1", "two replays of it in one process differ", "Seed it"),
    "unseeded model": ("1 of 7 tensors: model/parameters/first.weight", "without a seed", ORDINARY),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_named_within_the_first_steps(trap: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError) as raised:
        pol.prove(support_traps.task(trap), tmp_path / "run.pol", interval=1, rehearse=True)
    line = str(raised.value)
    for words in TRAPS[trap]:
        assert words in line
    assert "\n" not in line
    assert "what is recorded stays, and --no-rehearsal" in line


def test_what_was_stopped_is_recorded_and_goes_on_without_a_rehearsal(tmp_path: Path) -> None:
    task = support_traps.task("pruning")
    with pytest.raises(TaskError, match="other parameters than it was built with"):
        pol.prove(task, tmp_path / "run.pol", interval=2, rehearse=True)
    stood: list[int] = []

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training":
            stood.append(done)

    pol.prove(task, tmp_path / "run.pol", interval=2, rehearse=False, progress=progress)
    assert stood[0] == 6 and stood[-1] == support_traps.STEPS


HEALTHY: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"net": "dropout", "scheduler": "cosine"},
    "batchnorm": {"net": "batchnorm", "optimizer": "adamw", "accumulate": 2, "augment": True},
    "custom": {"custom": True, "scheduler": "exponential"},
    "scaler": {"scaler": True, "clip": 0.5, "net": "tied"},
}


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.parametrize("codec", ["raw", "quantised"])
def test_a_rehearsal_changes_no_bit_and_condemns_nothing_healthy(kind: str, codec: str, tmp_path: Path) -> None:
    task = tasks.task(steps=12, **HEALTHY[kind])
    roots = [
        pol.prove(task, tmp_path / f"{rehearse}.pol", interval=3, codec=codec, rehearse=rehearse).root
        for rehearse in (True, False)
    ]
    assert roots[0] == roots[1]


def test_a_resumed_run_and_runs_of_one_and_two_steps_are_rehearsed(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "training" and done == 7:
            raise StopError

    task = tasks.task(steps=12, net="dropout")
    with pytest.raises(StopError):
        pol.prove(task, tmp_path / "run.pol", interval=2, rehearse=True, progress=progress)
    resumed = pol.prove(task, tmp_path / "run.pol", interval=2, rehearse=True)
    assert resumed.root == pol.prove(task, tmp_path / "whole.pol", interval=2).root
    for steps in (1, 2):
        pol.prove(tasks.task(steps=steps), tmp_path / f"{steps}.pol", rehearse=True)
        with pytest.raises(TaskError, match="two replays of it"):
            pol.prove(replace(support_traps.task("clocked"), steps=steps), tmp_path / f"not{steps}.pol", rehearse=True)


def test_later_points_are_rehearsed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is healthy at first: found by a later round, and by none where there is no later one."""

    def loss(model: Any, batch: Any) -> Any:
        late = float(model.calls[0]) > 12
        return tasks.loss(model, batch) * (1 + 0.1 * float(np.random.default_rng().random()) * late)

    task = replace(tasks.task(steps=40), loss=loss, evaluate=None)
    for rounds, found in ((1, False), (8, True)):
        pace = Pace(hops=3, share=1e9, rounds=rounds)
        monkeypatch.setattr(beside, "Pace", lambda pace=pace: pace)
        monkeypatch.setattr(Rehearsal, "_since", lambda self: 1e9)
        if found:
            with pytest.raises(TaskError, match="two replays of it"):
                pol.prove(task, tmp_path / "late.pol", interval=1, rehearse=True)
        else:
            pol.prove(task, tmp_path / "early.pol", interval=1, rehearse=True)


def test_rounds_are_paced_by_what_they_cost() -> None:
    header = SimpleNamespace(training=SimpleNamespace(steps=1000))
    rehearsal = Rehearsal(Job(tasks.task(), "00" * 32), None, header, {})  # type: ignore[arg-type]
    rehearsal._first, rehearsal._rounds, rehearsal._spent = 0, 1, 3.0
    rehearsal._since = lambda: 299.0  # type: ignore[method-assign]
    assert not rehearsal._due(10)
    rehearsal._since = lambda: 301.0  # type: ignore[method-assign]
    assert rehearsal._due(10)
    rehearsal._rounds = 8
    assert not rehearsal._due(10)


# ---- in a process of its own ------------------------------------------------------------------------


def test_data_that_follow_the_hash_seed_are_named(tmp_path: Path) -> None:
    """Two processes, and training: three orders of a set."""
    task = TaskReference(f"{HERE}/support_traps.py:task", {"trap": "vocabulary"})
    with pytest.raises(TaskError, match=r"another process finds other data: a vocabulary .*from a set.*[Ss]ort"):
        pol.prove(task, tmp_path / "run.pol", interval=1, rehearse=True)


def test_a_healthy_reference_is_recorded_in_peace(tiny: TaskReference, tiny_proof: Path, tmp_path: Path) -> None:
    made = pol.prove(tiny, tmp_path / "run.pol", interval=5, rehearse=True)
    assert made.root == pol.Proof.open(tiny_proof).root


def test_a_task_that_only_this_process_can_build_is_named(tmp_path: Path) -> None:
    file = tmp_path / "vanishing.py"
    file.write_text("import tasks\n\ndef task():\n    return tasks.task(steps=4)\n")
    task = pol.load_task(f"{file}:task")
    file.unlink()
    with pytest.raises(TaskError, match=r"cannot be built in a fresh process .*there is no file"):
        pol.prove(task, tmp_path / "run.pol", rehearse=True)


def test_a_worker_that_fails_for_itself_condemns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rehearsal, "_short_of_memory", lambda self, size: "it needs more than there is")
    with pytest.warns(RehearsalWarning, match="could not be carried out: it needs more"):
        pol.prove(tasks.task(steps=4), tmp_path / "run.pol", rehearse=True)


# ---- loops of one's own -----------------------------------------------------------------------------


def observed(path: Path, task: Task, clip: float | None, rehearse: bool | None = True) -> None:
    """The user's loop, which clips by ``clip`` whatever the task says."""
    torch.manual_seed(3)
    random.seed(3)
    model = task.model()
    optimizer = task.optimizer(model)
    loader: DataLoader[Any] = DataLoader(pol.Indexed(task.data()), batch_size=task.batch_size, shuffle=True)  # type: ignore[arg-type]
    parts = {"model": model, "optimizer": optimizer}
    with pol.Recorder.observe(path, task, parts, interval=1, rehearse=rehearse) as recorder:
        while not recorder.finished:
            for x, y in recorder.watch(loader):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                recorder.loss(loss)
        recorder.close()


def test_a_loop_that_does_what_its_task_does_not_is_stopped(tmp_path: Path) -> None:
    task = tasks.task(steps=20, net="dropout", clip=0.1)  # the loop goes on after its rehearsal
    observed(tmp_path / "alike.pol", task, 0.1)
    observed(tmp_path / "alone.pol", task, 0.1, rehearse=False)
    alike, alone = (pol.Proof.open(tmp_path / f"{name}.pol").root for name in ("alike", "alone"))
    assert alike == alone
    with pytest.raises(TaskError, match=r"after the update of step 1, whose loss agrees.*the task's own step"):
        observed(tmp_path / "other.pol", task, 0.2)


# ---- names ------------------------------------------------------------------------------------------


def test_what_a_session_holds_beside_its_state_is_named() -> None:
    """And nothing of what its state does hold: a healthy task with all kinds of parts changes nothing else."""
    task = tasks.task(net="batchnorm", optimizer="adam", scheduler="onecycle", custom=True, scaler=True, augment=True)
    session = Session(task, randomness.key_from_seed(0))
    data = task.data()
    before = holdings.look(session.parts, task, data)
    feed, order = derived_feed(task, data, session.key, "cpu")
    list(session.run(5, feed, order))
    assert not holdings.changed(before, holdings.look(session.parts, task, data))
    assert before  # it did look
    first: Any = session.model.first
    first.seen = [1, 2]
    session.extra["shadow"].count = 3
    found = {c.place: c.how for c in holdings.changed(before, holdings.look(session.parts, task, data))}
    assert found == {"attribute 'seen' of module 'first' of the model": "", "attribute 'count' of part 'shadow'": ""}


def test_generators_are_seen_wherever_they_are_held() -> None:
    held: dict[str, Any] = {
        "torch": torch.Generator(), "numpy": np.random.default_rng(1), "old": np.random.RandomState(1),
        "python": random.Random(1),
    }  # fmt: skip

    def augment(sample: Any, generator: Any, drawn: Any = held["numpy"]) -> Any:
        return held, drawn

    task = replace(tasks.task(), augment=augment)
    before = holdings.look({}, task)
    torch.rand(2, generator=held["torch"])
    for name in ("numpy", "old", "python"):
        held[name].random()
    changes = holdings.changed(before, holdings.look({}, task))
    assert {change.kind for change in changes} == {"generator"}
    assert {change.place for change in changes} == {"variable 'held', which the task's augment uses"}


def test_evidence_becomes_a_cause() -> None:
    difference = hops.Difference(3, 5, 4, True, ("model/parameters/w",), 2)
    change = holdings.Change("attribute 'h' of the scheduler", "value", "1 → 2")

    def cause(changes: list[holdings.Change] | None = None, rewritten: int | None = None, **found: Any) -> str:
        return causes.explain(hops.Evidence(difference, **found), changes or [], rewritten)[0].line()

    assert "the order of a set" in cause(hashed=True) and "sort what comes from a set" in cause(hashed=True).lower()
    assert "attribute 'h' of the scheduler (1 → 2)" in cause([change], hashed=True)
    assert "other data" in cause([change], data_differ=True)
    assert "sample 7" in cause([change], 7, data_differ=True)
    assert "cannot be seen" in cause(hashed=False, data_differ=False)
    refused = replace(difference, refused="the state does not fit the task")
    assert "the state before step 3 cannot be replayed from" in causes.explain(hops.Evidence(refused), [])[0].line()


def test_a_replay_in_this_process_leaves_its_generators_and_switches() -> None:
    flags = environments.Flags(deterministic=not torch.are_deterministic_algorithms_enabled())
    environment = msgspec.structs.replace(environments.current(), flags=flags)
    player = hops.LocalPlayer(Job(tasks.task(), "00" * 32), environment)
    torch.manual_seed(5)
    drawn, switch = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    answer, _ = player.ask(protocol.Describe())
    assert isinstance(answer, protocol.Described)
    assert torch.equal(torch.get_rng_state(), drawn) and torch.are_deterministic_algorithms_enabled() == switch


def test_a_changed_structure_is_named_by_part() -> None:
    def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        return capture({"model": model, "optimizer": optimizer})

    model = tasks.Net()
    optimizer = torch.optim.SGD([{"params": m.parameters()} for m in (model.first, model.middle)], lr=0.1, momentum=0.9)
    settle_groups(optimizer)
    built = structure(state(model, optimizer))
    model(torch.zeros(2, tasks.FEATURES)).sum().backward()
    optimizer.step()
    assert altered(built, structure(state(model, optimizer)), 1) is None  # entries that a first step makes
    optimizer.add_param_group({"params": list(model.last.parameters())})
    # Nor a group that is added, which a replay adds too.
    assert altered(built, structure(state(model, optimizer)), 2) is None
    del optimizer.param_groups[1:]
    optimizer.state.clear()
    found = altered(built, structure(state(model, optimizer)), 2)
    assert found is not None and "'optimizer' has other parameter groups" in found.what
    model.last = nn.Linear(16, tasks.CLASSES, bias=False)
    found = altered(built, structure(state(model, optimizer)), 2)
    assert found is not None and found.where == "'last.bias' is gone; before step 2"
