"""Tasks: loaded by reference, described canonically, and trusted with nothing when their code misbehaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import proof_of_learning as pol
import support_bad_tasks
import tasks
from proof_of_learning import Task, TaskReference, load_task
from proof_of_learning.errors import DataError, PolError, TaskError, UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.task import compare, default_interval
from proof_of_learning.training.steps import Session

HERE = Path(__file__).parents[1]
BAD = f"{HERE}/support_bad_tasks.py"


def digest(task: Task) -> str:
    with randomness.preserved():
        return Session(task, randomness.key_from_seed(task.seed)).describe().digest()


# ---- loading -------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_a_task_is_loaded_by_file_by_module_or_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_file = load_task(f"{HERE}/tasks.py:task", {"batch_size": "8"})
    assert by_file.batch_size == 8
    assert by_file.reference == TaskReference(f"{HERE}/tasks.py:task", {"batch_size": "8"})
    by_module = load_task("tasks:task", {"batch_size": 8})
    assert digest(by_file) == digest(by_module) == digest(tasks.task(batch_size=8))
    assert load_task(by_file) is by_file
    assert load_task(f"{BAD}:ready").batch_size == 16
    monkeypatch.chdir(HERE)
    relative = TaskReference("tasks.py:task", {"steps": 3})
    assert load_task(relative).steps == 3
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no file"):
        load_task(relative)
    monkeypatch.chdir(HERE)
    absolute = relative.absolute()
    monkeypatch.chdir(tmp_path)
    assert load_task(absolute).steps == 3
    assert TaskReference("tasks:task").absolute().target == "tasks:task"


@pytest.mark.parametrize(
    ("target", "settings", "error", "words"),
    [
        ("tasks.py", {}, UsageError, "path.py:function"),
        (":task", {}, UsageError, "path.py:function"),
        ("", {}, UsageError, "path.py:function"),
        (f"{HERE}/tasks.py:not a name", {}, UsageError, "path.py:function"),
        (f"{HERE}/nowhere.py:task", {}, UsageError, "no file"),
        (f"{HERE}:task", {}, UsageError, "no module"),
        ("nowhere_at_all:task", {}, UsageError, "no module"),
        ("tasks.nowhere:task", {}, (UsageError, TaskError), "tasks"),
        (f"{HERE}/tasks.py:nothing", {}, UsageError, "has no 'nothing'"),
        (f"{BAD}:not_a_function", {}, TaskError, "neither a function nor a Task"),
        (f"{BAD}:returns", {}, TaskError, "NoneType, not a proof_of_learning.Task"),
        (f"{BAD}:returns", {"kind": "text"}, TaskError, "str, not a proof_of_learning.Task"),
        (f"{BAD}:returns", {"kind": "class"}, TaskError, "not a proof_of_learning.Task"),
        (f"{BAD}:raises", {}, TaskError, r"RuntimeError: boom \(support_bad_tasks.py:\d+\)"),
        (f"{BAD}:raises", {"kind": "exit"}, TaskError, "SystemExit"),
        (f"{HERE}/tasks.py:task", {"nothing": 1}, UsageError, "no setting 'nothing'; it takes optimizer"),
        (f"{HERE}/tasks.py:task", {"steps": "many"}, UsageError, "steps='many' is not of type int"),
        (f"{HERE}/tasks.py:task", {"clip": "x"}, UsageError, "clip='x' is not of type float"),
        (f"{HERE}/tasks.py:task", {"custom": "perhaps"}, UsageError, "custom='perhaps' is not of type bool"),
        (f"{HERE}/tasks.py:task", {"steps": 0}, TaskError, "steps must be a positive integer, not 0"),
        (f"{HERE}/tasks.py:task", {"seed": -1}, TaskError, "seed must be"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(target: str, settings: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        load_task(target, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["raise ValueError('not today')", "import sys; sys.exit(3)", "def task(:", "import nowhere_"]
)
def test_a_file_that_does_not_import_is_the_tasks_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    for _ in range(2):  # and stays so, rather than being half imported the second time
        with pytest.raises(TaskError, match=r"failed while loading .*broken\.py"):
            load_task(f"{tmp_path}/broken.py:task")


def test_settings_become_what_the_parameter_is(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(
        "from __future__ import annotations\nimport tasks\nfrom dataclasses import replace\n"
        "def task(a: int = 0, b: float = 0, c: bool = False, d: str = '', e: int | None = None, f=0, **rest):\n"
        "    return replace(tasks.task(), name=repr((a, b, c, d, e, f, rest)))\n"
    )

    def made(**settings: Any) -> Any:
        return load_task(f"{tmp_path}/settings.py:task", settings).name

    assert made() == repr((0, 0, False, "", None, 0, {}))
    given = made(a="3", b="1e-3", c="true", d="5", e="7", f="0.5", more="x", number="3")
    assert given == repr((3, 1e-3, True, "5", 7, 0.5, {"more": "x", "number": 3}))
    assert made(c="0", b="2", f="yes", d="true") == repr((0, 2.0, False, "true", None, True, {}))
    assert made(c="no", f="1", e="-4") == repr((0, 0, False, "", -4, 1, {}))
    assert made(a=3, b=0.5, c=True, d="x") == repr((3, 0.5, True, "x", None, 0, {}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loss": None}, "exactly one of loss and step"),
        ({"step": lambda context, batches: None}, "exactly one of loss and step"),
        ({"steps": None}, "exactly one of steps and epochs"),
        ({"epochs": 2}, "exactly one of steps and epochs"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer"),
        ({"accumulate": True}, "accumulate must be a positive integer"),
        ({"steps": "10"}, "steps must be a positive integer"),
        ({"schedule": "batch"}, "schedule must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"clip_norm": float("nan")}, "clip_norm must be above 0"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        replace(tasks.task(), **changed)


def test_the_length_of_a_run() -> None:
    task = tasks.task(batch_size=10, accumulate=3)
    assert (task.steps_per_epoch(90), task.steps_per_epoch(91), task.steps_per_epoch(1)) == (3, 4, 1)
    assert task.total_steps(91) == 24
    short = replace(task, drop_last=True, steps=None, epochs=5)
    assert (short.steps_per_epoch(90), short.steps_per_epoch(119), short.total_steps(119)) == (3, 3, 15)
    with pytest.raises(TaskError, match="29 samples make no step of 30"):
        short.steps_per_epoch(29)
    assert [default_interval(steps) for steps in (1, 999, 1999, 2000, 10**6)] == [1, 1, 1, 2, 1000]


# ---- description ---------------------------------------------------------------------------------------


def test_the_digest_is_that_of_how_not_of_what_or_how_long() -> None:
    base = tasks.task()
    same: list[Task] = [
        tasks.task(seed=5),
        tasks.task(steps=1000),
        replace(base, steps=None, epochs=3),
        replace(base, data=lambda: tasks.data()),
        replace(base, name="another name", evaluate=None),
    ]
    assert {digest(task) for task in same} == {digest(base)}


def test_the_digest_tells_every_other_task_apart() -> None:
    class Renamed(tasks.Net):
        pass

    others: list[Task] = [
        tasks.task(),
        *(tasks.task(optimizer=name) for name in tasks.OPTIMIZERS if name != "momentum"),
        *(tasks.task(scheduler=name) for name in tasks.SCHEDULERS),
        *(tasks.task(net=name) for name in ("batchnorm", "dropout", "tied")),
        *(tasks.task(**{name: True}) for name in ("drop_last", "augment", "collate", "custom", "scaler")),  # type: ignore[arg-type]
        tasks.task(batch_size=8),
        tasks.task(accumulate=2),
        tasks.task(clip=1.0),
        tasks.task(clip=2.0),
        tasks.task(shuffle=False),
        tasks.task(scheduler="cosine", schedule="epoch"),
        replace(
            tasks.task(),
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.0501, momentum=0.9, weight_decay=1e-3),
        ),
        replace(
            tasks.task(), optimizer=lambda m: torch.optim.SGD(list(m.parameters())[::-1], 0.05, 0.9, weight_decay=1e-3)
        ),
        replace(
            tasks.task(),
            optimizer=lambda m: torch.optim.SGD(m.get_submodule("first").parameters(), 0.05, 0.9, weight_decay=1e-3),
        ),
        replace(tasks.task(), model=lambda: tasks.Net().double()),
        replace(tasks.task(), model=lambda: Renamed()),
        replace(tasks.task(), model=lambda: frozen(tasks.Net())),
        replace(tasks.task(), model=lambda: nn.Sequential(tasks.Net())),
    ]
    assert len({digest(task) for task in others}) == len(others)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def test_the_parts_of_a_description_do_not_depend_on_where_the_file_lies(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.py"
    copy.write_text((HERE / "tasks.py").read_text())
    assert digest(load_task(f"{copy}:task", {"custom": True})) == digest(tasks.task(custom=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 8}, "step.batch_size: the task has 8, the proof has 16"),
        ({"clip": 1.0}, "step.clip_norm: the task has 0x1.0000000000000p+0, the proof has None"),
        ({"optimizer": "nesterov"}, "optimizers.optimizer.groups[0].options"),
        ({"optimizer": "adam"}, "optimizers.optimizer.class: the task has torch.optim.adam.Adam"),
        ({"net": "dropout"}, "p=0.3, inplace=False, the proof has p=0.0, inplace=False"),
        ({"scheduler": "cosine"}, "schedulers.scheduler"),
        ({"custom": True}, "parts.ema"),
    ],
)
def test_a_mismatch_names_what_differs_and_both_values(tiny_proof: Path, settings: Any, words: str) -> None:
    verdict = pol.verify(tiny_proof, tasks.task(**settings))
    assert verdict.verdict == "invalid"
    assert verdict.check("task").status == "fail"
    lines = verdict.check("task").evidence["differences"]
    assert any(words in line for line in lines), lines
    assert verdict.check("trajectory").status == "skipped"


def test_differences_are_found_at_every_depth() -> None:
    assert compare({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []
    assert compare({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["a[1].b: the task has 2, the proof has 3"]
    assert compare({"a": 1}, {"b": 1}) == [
        "a: the task has 1, the proof has None",
        "b: the task has None, the proof has 1",
    ]
    assert compare([1], [1, 2]) == [": the task has [1], the proof has [1, 2]"]
    assert compare({"a": True}, {"a": 1}) == ["a: the task has True, the proof has 1"]
    assert compare({"lr": {"f": "0x1.8p+0"}}, {"lr": {"f": "0x1p+0"}}) == ["lr: the task has 1.5, the proof has 1.0"]


# ---- misbehaviour --------------------------------------------------------------------------------------


def test_each_segment_is_judged_by_itself_when_the_tasks_code_fails(tiny_proof: Path) -> None:
    task = TaskReference(f"{BAD}:task", {"schedule": "2:print 7:raise 13:exit 17:print"})
    verdict = pol.verify(tiny_proof, task, everything=True)
    assert verdict.verdict == "inconclusive"
    assert [segment.status for segment in verdict.segments] == ["pass", "inconclusive", "inconclusive", "pass", "pass"]
    assert "RuntimeError: boom (support_bad_tasks.py:" in verdict.segments[1].note
    assert "SystemExit" in verdict.segments[2].note
    assert "taking step 7" in verdict.segments[1].note


def test_what_fails_in_this_process_is_told_the_same_way(tiny_proof: Path) -> None:
    verdict = pol.verify(tiny_proof, support_bad_tasks.task("7:raise"), everything=True)
    assert [segment.status for segment in verdict.segments] == ["pass", "inconclusive", "pass", "pass", "pass"]


def test_a_worker_that_dies_takes_nothing_with_it(tiny_proof: Path) -> None:
    verdict = pol.verify(tiny_proof, TaskReference(f"{BAD}:task", {"schedule": "7:die"}), everything=True)
    assert [s.status for s in verdict.segments] == ["pass", "inconclusive", "pass", "pass", "pass"]
    assert "ended unexpectedly (status" in verdict.segments[1].note


def test_a_segment_that_breaks_off_does_not_spoil_the_next(tiny_proof: Path) -> None:
    def loss(model: Any, batch: Any) -> torch.Tensor:
        if model.calls[0] == 7:
            model.broken = True  # what no state knows of
        if hasattr(model, "broken"):
            raise RuntimeError("still broken")
        return tasks.loss(model, batch)

    verdict = pol.verify(tiny_proof, replace(tasks.task(), loss=loss), everything=True)
    assert [segment.status for segment in verdict.segments] == ["pass", "inconclusive", "pass", "pass", "pass"]


def test_a_task_that_hangs_while_loading_is_given_up(tiny_proof: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(3600)")
    with pytest.raises(TaskError, match="no sign of life for 2 seconds"):
        pol.verify(tiny_proof, f"{tmp_path}/slow.py:task", timeout=2)


def test_a_task_that_hangs_while_training_is_given_up(tiny_proof: Path) -> None:
    task = TaskReference(f"{BAD}:task", {"schedule": "12:hang"})
    verdict = pol.verify(tiny_proof, task, everything=True, timeout=8)
    assert verdict.verdict == "inconclusive"
    assert [segment.status for segment in verdict.segments] == ["pass", "pass", *["inconclusive"] * 3]
    assert all("no sign of life for 8 seconds" in segment.note for segment in verdict.segments[2:])


def test_a_task_that_fails_to_load_in_the_worker(tiny_proof: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("print('hello')\nraise ValueError('not today')")
    with pytest.raises(TaskError, match=r"ValueError: not today \(broken.py:2\)"):
        pol.verify(tiny_proof, f"{tmp_path}/broken.py:task")


@pytest.mark.parametrize("part", ["model", "data", "optimizer", "scheduler", "parts", "scaler"])
def test_a_factory_that_raises_is_named(part: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=f"ValueError: no {part} today"):
        pol.prove(support_bad_tasks.factory(part), tmp_path / "new.pol")
    assert not (tmp_path / "new.pol").exists()


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("empty", (DataError, TaskError), "empty|no step"),
        ("length raises", TaskError, "no such disk"),
        ("read raises", TaskError, "bad sector"),
        ("random", DataError, "reads differently"),
    ],
)
def test_data_that_cannot_be_used_is_refused(kind: str, error: type[PolError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        pol.prove(support_bad_tasks.data(kind), tmp_path / "new.pol")
    assert not (tmp_path / "new.pol").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": lambda: 5}, "int"),
        ({"optimizer": lambda model: None}, "optimizer factory returned a NoneType"),
        ({"parts": lambda model: {"model": model}}, "'model', which is reserved"),
        ({"loss": lambda model, batch: model(batch[0])}, "scalar|one element"),
        ({"loss": None, "step": lambda context, batches: 0.5}, "must return its loss as a tensor"),
        ({"loss": None, "step": lambda context, batches: context.parts["x"]}, "KeyError"),
        ({"collate": lambda samples: 1 / 0}, "preparing the batches of step 0: ZeroDivisionError"),
        ({"augment": lambda sample, generator: 1 / 0}, "preparing the batches of step 0: ZeroDivisionError"),
        ({"evaluate": lambda model: {"a": "high"}}, "evaluating the model"),
        ({"evaluate": lambda model: 1 / 0}, "evaluating the model: ZeroDivisionError"),
        ({"parts": lambda model: {"ema": object()}}, "capturing the state.*state_dict"),
    ],
)
def test_a_task_that_fails_while_training_says_where(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=words):
        pol.prove(replace(tasks.task(steps=3), **changed), tmp_path / "new.pol")


def test_training_that_diverges_is_no_proof(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return tasks.loss(model, batch) * (float("inf") if model.get_buffer("calls")[0] > 3 else 1.0)

    with pytest.raises(pol.errors.TrainingError, match="no longer finite between steps 2 and 4"):
        pol.prove(replace(tasks.task(), loss=loss), tmp_path / "new.pol", interval=2)
    with pytest.raises(pol.errors.TrainingError, match=r"evaluation of the .*model is not finite"):
        pol.prove(replace(tasks.task(steps=2), evaluate=lambda model: {"x": float("nan")}), tmp_path / "other.pol")


def test_proving_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def flags() -> Any:
        return (
            torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(), torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        )  # fmt: skip

    before, numbers = flags(), randomness.RngSnapshot.take()
    pol.prove(tasks.task(steps=2), tmp_path / "new.pol")
    pol.verify(tmp_path / "new.pol", tasks.task(steps=2))
    with pytest.raises(TaskError):
        pol.prove(replace(tasks.task(steps=2), evaluate=lambda model: {"x": 1 / 0}), tmp_path / "other.pol")
    assert flags() == before
    after = randomness.RngSnapshot.take()
    assert all(after.states[name].tobytes() == state.tobytes() for name, state in numbers.states.items())
