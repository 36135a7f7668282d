"""Situations from public bug reports, each as a tiny task: it is recorded, and valid under every draw, or refused before training."""

from __future__ import annotations

import math
import textwrap
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proof_of_learning as pol
import tasks
from proof_of_learning import Task
from proof_of_learning.errors import (
    DataError,
    EvaluationWarning,
    RecordingError,
    RecordingWarning,
    TaskError,
    TrainingError,
    UsageError,
)
from proof_of_learning.replay.measure import displacement
from proof_of_learning.state.state import capture, restore, tensor_bytes
from proof_of_learning.training.batches import to_device
from support_proofs import contents
from support_situations import Lazy, interrupted, judged


def survives(task: Task, folder: Path) -> None:
    """Recorded, valid under every draw, and resumed to the root of an undisturbed run."""
    whole = pol.prove(task, folder / "whole.pol", interval=2)
    judged(whole.path, task)
    interrupted(task, folder / "killed.pol", 7, interval=2)
    assert pol.prove(task, folder / "killed.pol", interval=2).root == whole.root


# ---- evaluation -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (lambda model: None, "evaluate must return a mapping of names to numbers, not NoneType"),
        (lambda model: {"loss": math.nan}, "not finite.*untrained model, nothing was recorded"),
        (lambda model: {"loss": 1 / 0}, "evaluating the model: ZeroDivisionError"),
    ],
)
def test_an_evaluation_that_cannot_work_is_found_before_training(
    evaluate: Callable[[nn.Module], Any], words: str, tmp_path: Path
) -> None:
    steps: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        steps.append(1)
        return tasks.loss(model, batch)

    with pytest.raises((TaskError, TrainingError), match=words):
        pol.prove(replace(tasks.task(steps=4), evaluate=evaluate, loss=loss), tmp_path / "run.pol")
    assert not steps and not (tmp_path / "run.pol" / "header.json").exists()


@pytest.mark.parametrize("result", [None, {"loss": math.nan}, {"loss": 1}])
def test_an_evaluation_that_fails_later_loses_no_training(result: Any, tmp_path: Path) -> None:
    def evaluate(model: Any) -> Any:
        if float(model.calls[0]) < 4:
            return {"loss": 0.5}
        if isinstance(result, dict) and result["loss"] == 1:
            raise ValueError("too well trained")
        return result

    task = replace(tasks.task(steps=8), evaluate=evaluate)
    with pytest.warns(EvaluationWarning, match="without a claim of what the model achieves after step 8"):
        recording = pol.prove(task, tmp_path / "run.pol", interval=2, evaluations=4)
    assert recording.evaluation is None
    claims = [segment.evaluation for segment in pol.Proof.open(recording.path).segments]
    assert claims[0] == {"loss": 0.5} and claims[-1] is None
    judged(recording.path, task)


def test_the_rehearsed_evaluation_changes_no_bit(tmp_path: Path) -> None:
    def evaluate(model: Any) -> dict[str, float]:
        torch.rand(7)
        model.calls += 3
        if "made" not in model._buffers:
            model.register_buffer("made", torch.ones(2))
        return {"loss": 0.5}

    one = pol.prove(replace(tasks.task(steps=4), evaluate=evaluate), tmp_path / "one.pol", interval=2, evaluations=2)
    two = pol.prove(replace(tasks.task(steps=4), evaluate=None), tmp_path / "two.pol", interval=2)
    states = [[segment.state for segment in pol.Proof.open(r.path).segments] for r in (one, two)]
    assert states[0] == states[1]
    judged(one.path, replace(tasks.task(steps=4), evaluate=evaluate))


PROGRAM = """
import os
import torch
from torch import nn
from torch.utils.data import TensorDataset
from proof_of_learning import Task

SCALE = 0.5

def helped(model):
    return {helper}

def better(model):
    return {{"loss": {body}}}

def loss(model, batch):
    return SCALE * nn.functional.mse_loss(model(batch[0]), batch[1])

def task():
    x = torch.arange(16.0).reshape(8, 2) / 16
    return Task(
        name="edited",
        model=lambda: nn.Linear(2, 1),
        data=lambda: TensorDataset(x, x.sum(1, keepdim=True)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=loss,
        evaluate={evaluate},
        batch_size=2,
        steps=8,
    )
"""


BETTER = 'def better(model):\n    return {"loss": helped(model)}'


def edited(file: Path, helper: str = "1.0", body: str = "helped(model)", evaluate: str = "better", **other: str) -> str:
    text = PROGRAM.format(helper=helper, body=body, evaluate=evaluate)
    for old, new in other.items():
        text = text.replace(old, new)
    file.parent.mkdir()
    file.write_text(textwrap.dedent(text))
    return f"{file}:task"


@pytest.mark.parametrize(
    "change",
    [
        {"helper": "2.0"},
        {"body": "helped(model) + 1"},
        {"evaluate": 'lambda model: {"loss": 3.0}', "def helped(model):\n    return 1.0": "", BETTER: ""},
        {"import os\n": "import os\nimport math  # a comment\n", "body": "math.pi"},
    ],
)
def test_a_corrected_evaluation_does_not_bar_resuming(change: dict[str, str], tmp_path: Path) -> None:
    first = pol.load_task(edited(tmp_path / "one" / "program.py"))
    interrupted(first, tmp_path / "run.pol", 5, interval=2)
    corrected = pol.load_task(edited(tmp_path / "two" / "program.py", **change))
    resumed = pol.prove(corrected, tmp_path / "run.pol", interval=2)
    whole = pol.prove(corrected, tmp_path / "whole.pol", interval=2)
    one, two = (pol.Proof.open(recording.path) for recording in (resumed, whole))
    assert one.header.task.digest == two.header.task.digest
    assert [s.state for s in one.segments] == [s.state for s in two.segments]
    assert one.end.evaluation == two.end.evaluation
    assert not [name for name in contents(Path(resumed.path)) if name.startswith(".")]
    judged(resumed.path, corrected)


@pytest.mark.parametrize(
    "change", [{"SCALE = 0.5": "SCALE = 0.6"}, {"SCALE *": "2 * SCALE *"}, {"lr=0.1": "lr=0.1 + 0.0"}]
)
def test_a_change_of_what_is_trained_still_does(change: dict[str, str], tmp_path: Path) -> None:
    interrupted(pol.load_task(edited(tmp_path / "one" / "program.py")), tmp_path / "run.pol", 5, interval=2)
    with pytest.raises(RecordingError, match=r"the source text of the task's .* has changed since"):
        pol.prove(
            pol.load_task(edited(tmp_path / "two" / "program.py", helper="2.0", **change)),
            tmp_path / "run.pol",
            interval=2,
        )


# ---- buffers ----------------------------------------------------------------------------------------


class Buffered(nn.Module):
    """The tiny network with a buffer of one awkward kind, which its output depends on."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, tasks.Net()
        self.held: Any
        start: dict[str, Tensor | None] = {
            "none": None,
            "extremes": torch.tensor([math.inf, -math.inf]),
            "resized": torch.ones(1),
            "vanishing": torch.ones(3),
            "expanded": torch.ones(1, 1).expand(2, 3),
        }
        if kind in start:
            self.register_buffer("held", start[kind], persistent=kind != "none")

    def forward(self, x: Tensor) -> Tensor:
        scale = getattr(self, f"_{self.kind}")(x.detach())
        return self.net(x) * (1.0 + 1e-3 * scale)

    def _none(self, x: Tensor) -> Tensor:
        self.held = x.mean(0) if self.held is None else 0.9 * self.held + 0.1 * x.mean(0)
        return self.held.sum()

    def _appearing(self, x: Tensor) -> Tensor:
        if not hasattr(self, "held"):
            self.register_buffer("held", torch.zeros(x.shape[1]), persistent=False)
        self.held += x.mean(0)
        return self.held.sum()

    def _extremes(self, x: Tensor) -> Tensor:
        self.held.copy_(torch.stack([torch.minimum(self.held[0], x.min()), torch.maximum(self.held[1], x.max())]))
        return self.held.sum()

    def _resized(self, x: Tensor) -> Tensor:
        if len(self.held) < 5:
            self.held.resize_(len(self.held) + 1)
            self.held.copy_(torch.arange(len(self.held)) * x.mean())
        return self.held.sum()

    def _vanishing(self, x: Tensor) -> Tensor:
        if self.held is not None:
            self.held = self.held + 1 if self.held[0] < 4 else None
        return torch.zeros(()) if self.held is None else self.held.sum()

    def _expanded(self, x: Tensor) -> Tensor:
        self.held = (self.held[:1, :1] + x.mean()).expand(2, 3)
        return self.held.sum()


BUFFERS = ["none", "appearing", "extremes", "resized", "vanishing", "expanded"]


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_every_kind_are_recorded_replayed_and_resumed(kind: str, tmp_path: Path) -> None:
    survives(replace(tasks.task(steps=12), model=lambda: Buffered(kind), evaluate=tasks.accuracy), tmp_path)


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("after", [0, 2, 9])
def test_any_state_of_a_module_fits_any_other(kind: str, after: int) -> None:
    """Also back to the state before a buffer was made; a buffer stays persistent or not."""
    first, second = Buffered(kind), Buffered(kind)
    x = torch.rand(4, tasks.FEATURES)
    for _ in range(4):
        first(x)
    for _ in range(after):
        second(x)
    state = capture({"model": first})
    restore({"model": second}, state)
    assert capture({"model": second}).digest() == state.digest()
    assert set(second.state_dict()) == set(first.state_dict()) or kind == "appearing"
    assert torch.equal(first(x), second(x))


def test_hashing_leaves_a_storage_resizable() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    raw = tensor_bytes(tensor)
    assert bytes(raw) == tensor.numpy().tobytes() and raw.format == "B"
    live = torch.ones(2)
    tensor_bytes(live)
    assert live.resize_(400).shape == (400,)
    raw, tensor = tensor_bytes(torch.full((1 << 16,), 7.0)), torch.zeros(1 << 16)
    assert bytes(raw[:4]) == b"\0\0\xe0\x40"  # the bytes outlive the name of their tensor


def test_a_displacement_from_infinity_counts_nothing_and_one_to_it_everything() -> None:
    a, b = (capture({"model": Buffered("extremes")}) for _ in range(2))
    b.tensors["model/buffers/held"].copy_(torch.tensor([1.0, 2.0]))
    for name in a.tensors:
        if name != "model/buffers/held":
            b.tensors[name].copy_(a.tensors[name])
    b.tensors["model/buffers/net.calls"] += 3
    assert displacement(a, b).state == pytest.approx(math.sqrt(18))
    assert displacement(b, a).state == math.inf


# ---- state that lies elsewhere ----------------------------------------------------------------------


class Global(torch.optim.SGD):
    """Keeps a count and a mean that belong to no parameter, and steps by them. Its ``zero_grad`` takes no argument."""

    def zero_grad(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None if parameter.grad is None else parameter.grad.zero_()

    def step(self, closure: Any = None) -> Any:
        held = self.state["global"]  # type: ignore[index]
        held["count"] = held.get("count", 0) + 1
        held["mean"] = held.get("mean", torch.zeros(2)) + 1.0 / held["count"]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(1.0 + held["mean"][0] / held["count"])
        return super().step(closure)


def test_an_optimizers_state_that_belongs_to_no_parameter_is_recorded(tmp_path: Path) -> None:
    survives(replace(tasks.task(steps=12), optimizer=lambda model: Global(model.parameters(), lr=0.05)), tmp_path)


def test_an_optimizers_state_for_a_stranger_is_refused() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[torch.zeros(1)] = {"momentum_buffer": torch.zeros(1)}
    with pytest.raises(TaskError, match="neither one of its parameters nor a name"):
        capture({"model": model, "optimizer": optimizer})


def test_parameters_that_no_part_holds_are_refused_before_training(tmp_path: Path) -> None:
    outside = nn.Linear(tasks.CLASSES, 1)

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([*model.parameters(), *outside.parameters()], lr=0.05)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return tasks.loss(model, batch) + 0.01 * outside(model(batch[0])).square().mean()

    task = replace(tasks.task(steps=4), optimizer=optimizer, loss=loss)
    with pytest.raises(
        TaskError, match="parameter 6 of 'optimizer' belongs neither to the model nor to a further part"
    ):
        pol.prove(task, tmp_path / "run.pol")
    assert not (tmp_path / "run.pol").exists()
    pol.prove(replace(task, parts=lambda model: {"outside": outside}), tmp_path / "run.pol")


def stepper(clear: str, every: int = 1) -> Callable[[Any, list[Any]], Tensor]:
    def step(context: Any, batches: list[Any]) -> Tensor:
        if clear == "first":
            context.optimizer.zero_grad()
        loss = tasks.loss(context.model, batches[0])
        loss.backward()
        if (context.step + 1) % every == 0:
            context.optimizer.step()
            if clear == "last":
                context.optimizer.zero_grad()
        return loss

    return step


def test_gradients_left_for_the_next_step_are_refused_before_training(tmp_path: Path) -> None:
    task = replace(tasks.task(steps=12), loss=None, step=stepper("last", every=4))
    with pytest.raises(TaskError, match="adds to gradients that the step before it left"):
        pol.prove(task, tmp_path / "run.pol")
    assert not (tmp_path / "run.pol" / "header.json").exists()
    for clear in ("first", "last"):
        (tmp_path / clear).mkdir()
        survives(replace(task, step=stepper(clear)), tmp_path / clear)


class Ordered:
    """A part whose next number follows from the order in which its keys came."""

    def __init__(self) -> None:
        self.held = {"b": 1.0, "a": 2.0}

    def state_dict(self) -> dict[str, float]:
        return dict(self.held)

    def load_state_dict(self, values: dict[str, float]) -> None:
        self.held = dict(values)


def test_a_part_that_counts_on_the_order_of_a_dict_is_named(tmp_path: Path) -> None:
    def step(context: Any, batches: list[Any]) -> Tensor:
        held = context.parts["order"].held
        first = next(iter(held))
        loss = tasks.loss(context.model, batches[0]) * (1 + 0.1 * held[first])
        held[first] = held.pop(first) + 0.5  # the other comes first now
        context.backward(loss)
        context.update()
        return loss

    task = replace(tasks.task(steps=12), loss=None, step=step, parts=lambda model: {"order": Ordered()})
    with pytest.raises(TaskError, match="attribute 'held' of part 'order'"):
        pol.prove(task, tmp_path / "run.pol", interval=2, rehearse=True)


# ---- batches ----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    x: Tensor
    y: Any


def test_batches_of_any_container_reach_a_device() -> None:
    batch = Pair(torch.ones(2), UserDict(a=torch.ones(3), b=[OrderedDict(c=(torch.ones(1), "text"))]))
    moved = to_device(batch, "meta")
    assert type(moved) is Pair and type(moved.y) is UserDict and type(moved.y["b"][0]) is OrderedDict
    found = [moved.x, moved.y["a"], moved.y["b"][0]["c"][0]]
    assert [tensor.device.type for tensor in found] == ["meta"] * 3
    assert batch.y["a"].device.type == "cpu" and moved.y["b"][0]["c"][1] == "text"


@pytest.mark.parametrize(("scheme", "advised"), [("s3", True), ("gs", False)])
def test_the_extra_for_s3_is_advised_for_s3(scheme: str, advised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(address: str) -> Any:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(UsageError, match=f"writes {scheme}:// is not installed") as raised:
        pol.prove(tasks.task(steps=2), f"{scheme}://bucket/run.pol")
    assert ("[s3]" in str(raised.value)) == advised


# ---- refused in one line ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "custom", "filled"])
def test_lazy_layers_get_their_shapes_before_anything_is_captured(kind: str, tmp_path: Path) -> None:
    """By the first batch, in the prover and in a worker; or in the factory. A pass that draws or counts leaves no trace."""

    def filled() -> nn.Module:
        model = Lazy().eval()
        model(torch.zeros(1, tasks.FEATURES))
        return model

    task = replace(tasks.task(steps=12), model=filled if kind == "filled" else Lazy)
    task = replace(task, loss=None, step=stepper("first")) if kind == "custom" else task
    survives(task, tmp_path)
    proof = pol.Proof.open(tmp_path / "whole.pol")
    first = proof.state(proof.initial_state).tensors
    assert float(first["model/buffers/calls"][0]) == (kind == "filled")
    check = pol.verify(proof.path, task, random=0, top_q=0).check("initialization")
    assert check.status == "pass", check.summary  # the values follow from the key: none of them is brought along


def test_lazy_layers_that_the_first_batch_does_not_reach_are_refused_by_name(tmp_path: Path) -> None:
    task = replace(tasks.task(steps=12), model=lambda: Lazy(unused=True))
    with pytest.raises(TaskError, match=r"'unused.weight' of the model has no shape before the first forward pass"):
        pol.prove(task, tmp_path / "run.pol")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise ValueError("not today")

    with pytest.raises(
        TaskError, match=r"'body.1.weight' of the model .*; with the first batch: ValueError: not today"
    ):
        pol.prove(replace(task, model=Lazy, loss=loss), tmp_path / "run.pol")
    with pytest.raises(TaskError, match=r"'weight' of the model has no shape .* call the model once on a sample"):
        capture({"model": nn.LazyLinear(3)})


def identity() -> nn.Module:
    model = tasks.Net()
    nn.init.eye_(model.middle.weight)
    return model


def orthogonal() -> nn.Module:
    model = tasks.Net()
    nn.utils.parametrizations.orthogonal(model.middle)
    return model


def seeded() -> nn.Module:
    torch.manual_seed(42)
    return tasks.Net()


@pytest.mark.parametrize(
    ("model", "name"),
    [(identity, "middle.weight"), (orthogonal, "middle.parametrizations.weight.original"), (seeded, "first.bias")],
)
def test_a_start_that_follows_from_no_key_is_said_with_both_cures(
    model: Callable[[], nn.Module], name: str, tmp_path: Path
) -> None:
    task, name = replace(tasks.task(steps=6), model=model), f"model/parameters/{name}"
    with pytest.warns(RecordingWarning, match=r"leave the seed out|Leave the seed out") as told:
        pol.prove(task, tmp_path / "run.pol", interval=2, rehearse=True)
    assert f"--approve-fixed '{name}'" in str(told[0].message) and name in str(told[0].message)
    verdict = pol.verify(tmp_path / "run.pol", task)
    assert verdict.verdict == "invalid" and f"--approve-fixed '{name}'" in verdict.reason
    approved = pol.verify(tmp_path / "run.pol", task, approve_fixed=("model/parameters/*",), everything=True)
    assert approved.check("initialization").status == "pass"


@pytest.mark.parametrize("absent", [True, False])
def test_a_group_without_a_rate_is_refused_by_name(absent: bool, tmp_path: Path) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.SGD(model.parameters(), lr=0.1)
        made.param_groups[0].pop("lr") if absent else made.param_groups[0].update(lr=None)
        return made

    with pytest.raises(TaskError, match="parameter group 0 of the optimizer 'optimizer' has no learning rate"):
        pol.prove(replace(tasks.task(steps=4), optimizer=optimizer), tmp_path / "run.pol")
    assert not (tmp_path / "run.pol").exists()


@pytest.mark.parametrize("draw", [lambda n: torch.randperm(n), lambda n: torch.from_numpy(np.random.permutation(n))])
def test_data_that_are_drawn_anew_are_refused(draw: Callable[[int], Tensor], tmp_path: Path) -> None:
    def data() -> Any:
        return torch.utils.data.Subset(tasks.data(), draw(tasks.SAMPLES)[:60].tolist())

    with pytest.raises(DataError, match="the data differ each time they are loaded; seed"):
        pol.prove(replace(tasks.task(steps=4), data=data), tmp_path / "run.pol")
    assert not (tmp_path / "run.pol").exists()
