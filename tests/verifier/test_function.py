"""What the states compute: seen through the task's own step, whatever kind of task it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import proof_of_learning as pol
import tasks
from proof_of_learning.errors import TaskError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.replay.protocol import Glimpse, Probe
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.task import Task
from proof_of_learning.training.context import StepContext

STEPS, TOKENS = 60, 300


def numbers(rows: int, columns: int) -> Tensor:
    words = np.random.Philox(key=3, counter=0).random_raw(rows * columns)
    return torch.from_numpy((words % 2048).astype(np.float32)).reshape(rows, columns) / 1024 - 1


# ---- one task of each kind -----------------------------------------------------------------------------


def classifier() -> Task:
    return tasks.task(optimizer="adam", steps=STEPS)


def regression() -> Task:
    """No labels: targets are numbers."""
    x = numbers(96, 4)
    return Task(
        name="regression", model=lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)),
        data=lambda: TensorDataset(x, torch.stack([x[:, 0] * x[:, 1], 1e3 * x[:, 2]], dim=1)),
        optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.05),
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), batch_size=16, steps=STEPS,
    )  # fmt: skip


def adversarial_step(context: StepContext, batches: list[Any]) -> Tensor:
    real, networks = batches[0][0], context.model
    made = networks["generator"](torch.randn(len(real), 2))
    told = [networks["critic"](x) for x in (real, made.detach())]
    context.backward(
        F.binary_cross_entropy_with_logits(told[0], torch.ones_like(told[0]))
        + F.binary_cross_entropy_with_logits(told[1], torch.zeros_like(told[1]))
    )
    context.update("critic")
    fooled = networks["critic"](made)
    loss = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
    context.backward(loss)
    context.update("generator")
    context.optimizers["critic"].zero_grad()
    return loss.detach()


def adversarial() -> Task:
    """Two networks with an optimizer each, in a step of its own."""
    x = 3 + numbers(96, 3)
    return Task(
        name="gan",
        model=lambda: nn.ModuleDict(
            {
                "generator": nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)),
                "critic": nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(), nn.Linear(16, 1)),
            }
        ),
        data=lambda: TensorDataset(x),
        optimizer=lambda m: {name: torch.optim.Adam(part.parameters(), lr=0.01) for name, part in m.named_children()},
        step=adversarial_step, batch_size=16, steps=STEPS,
    )  # fmt: skip


class Language(nn.Module):
    """Logits in three dimensions, of more tokens than are looked at; the answer is a mapping, as libraries have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(TOKENS, 16), nn.Linear(16, TOKENS)

    def forward(self, tokens: Tensor) -> Mapping[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.embedding(tokens)))}


def language() -> Task:
    text = ((numbers(96, 9) + 1) * 4).long()  # few of the tokens are used

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        logits = model(batch[0][:, :-1])["logits"]
        return F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

    return Task(
        name="language", model=Language, data=lambda: TensorDataset(text),
        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=0.02), loss=loss, batch_size=16, steps=STEPS,
    )  # fmt: skip


class Hidden(tasks.Net):
    def scores(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.weight.T) @ self.last.weight.T


def loss_of_scores(model: nn.Module, batch: list[Tensor]) -> Tensor:
    assert isinstance(model, Hidden)
    return F.cross_entropy(model.scores(batch[0]), batch[1])


def hidden() -> Task:
    """It shows no output: its loss calls a method of the model's, and no module."""
    task = tasks.task(optimizer="adam", steps=STEPS)
    return replace(task, model=Hidden, evaluate=None, loss=loss_of_scores)


def slope(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x = batch[0].requires_grad_(True)
    y = model(x)
    (dy,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return (dy - torch.cos(3 * x)).square().mean()


def physics() -> Task:
    """A loss that takes derivatives of its network."""
    return Task(
        name="physics", model=lambda: nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1)),
        data=lambda: TensorDataset(numbers(96, 1)), optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.02),
        loss=slope, batch_size=16, steps=STEPS,
    )  # fmt: skip


KINDS = {
    "classifier": classifier, "regression": regression, "adversarial": adversarial, "language": language, "physics": physics,
}  # fmt: skip


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    made = {**KINDS, "hidden": hidden}
    return {name: Path(pol.prove(task(), folder / name, interval=2).path) for name, task in made.items()}


def glimpses(
    path: Path, task: Task, positions: list[int], *, seed: int = 5, samples: int = 32, gradients: bool = False
) -> list[Glimpse]:
    proof = Proof.open(path)
    chosen = np.arange(samples, dtype="<i8").tobytes()
    with Replayer(proof, task) as replayer:
        states = [proof.state(proof.state_digests()[position]) for position in positions]
        return replayer.probe(Probe(chosen, seed, gradients), states)


def outputs(glimpse: Glimpse) -> dict[str, np.ndarray]:
    return {head.name: np.frombuffer(head.values, "<f4").reshape(head.rows, -1) for head in glimpse.heads}


# ---- every kind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_task_shows_what_it_learned(kind: str, proofs: dict[str, Path]) -> None:
    verdict = pol.verify(proofs[kind], KINDS[kind](), random=8)
    found = verdict.check("learning")
    assert (verdict.verdict, found.status) == ("valid", "pass"), verdict.reason
    assert not verdict.guarantee.missing
    assert 0 < found.evidence["first_to_final"] <= 1
    assert found.evidence["evaluated_states"] == STEPS // 2 + 1
    assert found.evidence["idle_states"] == 0
    assert found.evidence["known_under_a_fresh_key"] < 0.3


@pytest.mark.parametrize(
    ("kind", "heads", "scores"),
    [
        ("classifier", {"model": (32, 4)}, True),
        ("regression", {"model": (32, 2)}, False),
        ("physics", {"model": (32, 1)}, False),
        ("adversarial", {"model.generator": (32, 3), "model.critic": (64, 1)}, False),
        ("language", {"model": (64, 128)}, True),  # 32 texts of 8 tokens, cut down; 300 classes, thrown together
    ],
)
def test_its_outputs_are_looked_at_in_a_form_that_fits_them(
    kind: str, heads: dict[str, tuple[int, int]], scores: bool, proofs: dict[str, Path]
) -> None:
    (glimpse,) = glimpses(proofs[kind], KINDS[kind](), [STEPS // 2])
    found = outputs(glimpse)
    assert {name: table.shape for name, table in found.items() if name in heads} == heads  # of all the samples
    assert all(head.scores == scores for head in glimpse.heads)
    if scores:
        for table in found.values():
            assert table.sum(axis=1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_seen_alike_whichever_was_looked_at_before(kind: str, proofs: dict[str, Path]) -> None:
    """Each is one step from the state itself, whose result is thrown away."""
    task = KINDS[kind]()
    for gradients in (False, True):
        alone = glimpses(proofs[kind], task, [20], gradients=gradients)
        among = glimpses(proofs[kind], task, [30, 0, 20], gradients=gradients)
        assert among[2] == alone[0] != among[0]


def test_what_a_step_evaluates_now_and_then_shows_in_no_state(proofs: dict[str, Path]) -> None:
    """With gradients, before it learns, and moving the generators; by a count of its own."""
    count = itertools.count(1)

    def step(context: StepContext, batches: list[Any]) -> Tensor:
        if next(count) % 3 == 0:
            context.model["generator"](torch.randn(50, 2))
        return adversarial_step(context, batches)

    states = [0, 10, 20, 30]
    seen = glimpses(proofs["adversarial"], replace(adversarial(), step=step), states)
    assert [glimpse.heads for glimpse in seen] == [
        g.heads for g in glimpses(proofs["adversarial"], adversarial(), states)
    ]


def test_what_a_step_draws_follows_from_the_seed(proofs: dict[str, Path]) -> None:
    task = adversarial()
    one, again, other = (outputs(glimpses(proofs["adversarial"], task, [20], seed=s)[0]) for s in (5, 5, 6))
    assert np.array_equal(one["model.generator"], again["model.generator"])
    assert not np.array_equal(one["model.generator"], other["model.generator"])


def test_gradients_reach_every_layer_of_an_honest_network(proofs: dict[str, Path]) -> None:
    (glimpse,) = glimpses(proofs["classifier"], classifier(), [10], gradients=True)
    assert {"model.first", "model.middle", "model.last"} <= set(glimpse.living)
    assert min(glimpse.living.values()) > 0.5


# ---- a task that shows nothing -------------------------------------------------------------------------


def test_a_task_that_shows_no_output_says_what_to_do(proofs: dict[str, Path]) -> None:
    task = hidden()
    with pytest.raises(TaskError, match=r"should call its modules \(`model\(x\)`, not a method of theirs\)"):
        glimpses(proofs["hidden"], task, [0])
    verdict = pol.verify(proofs["hidden"], task)
    assert verdict.verdict == "inconclusive"
    found = verdict.check("learning")
    assert (found.status, found.mandatory) == ("skipped", True)
    assert "should call its modules" in found.summary
    assert verdict.guarantee.missing == ["function"]
    accepted = pol.verify(proofs["hidden"], task, accept_uniform=True)
    assert accepted.verdict == "valid", accepted.reason
    assert not accepted.check("learning").mandatory


@pytest.mark.parametrize("kind", ["raises", "text"])
def test_a_task_that_cannot_be_evaluated_on_the_samples_is_not_valid(
    kind: str, proofs: dict[str, Path], tmp_path: Path
) -> None:
    """Its step fails where it is not given a batch that it trained with, or its networks answer with text."""
    trained = set[bytes]()

    class Picky(tasks.Net):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return {"text": "no", "scores": "four"} if kind == "text" else found

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        x, y = batch
        if kind == "raises" and len(trained) == 20 and x.numpy().tobytes() not in trained:
            raise RuntimeError("not this one")
        if len(trained) < 20:
            trained.add(x.numpy().tobytes())
        scores = Hidden.scores(model, x) if kind == "text" else model(x)  # type: ignore[arg-type]
        model(x)
        return F.cross_entropy(scores, y)

    task = replace(tasks.task(steps=20), model=Picky, loss=loss, evaluate=None)
    path = pol.prove(task, tmp_path / "run", interval=2).path
    verdict = pol.verify(path, task)
    assert verdict.verdict == "inconclusive"
    found = verdict.check("learning")
    if kind == "raises":
        assert "on the verifier's samples" in found.summary and "not this one" in found.summary
    assert pol.verify(path, task, accept_uniform=True).verdict == "valid"


# ---- what it costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classifier, adversarial])
def test_a_state_is_looked_at_once_and_by_a_plain_loss_without_its_optimizer(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make()
    path = pol.prove(task, tmp_path / "run.pol", interval=2)
    looks = list[tuple[bool, str, bool]]()
    asked = Replayer.probe

    def counted(replayer: Replayer, request: Probe, states: Any, *more: Any) -> Any:
        for state in states:
            looks.append((request.gradients, state.part("model").digest(), "optimizer" in "".join(state.parts())))
        return asked(replayer, request, states, *more)

    monkeypatch.setattr(Replayer, "probe", counted)
    assert pol.verify(path, task, top_q=0, random=2).verdict == "valid"
    proof = Proof.open(path)
    models = [proof.state(digest).part("model").digest() for digest in proof.state_digests()]
    ends = {models[0], models[-1]}  # they come first, for all others are compared with them
    seen = [model for _, model, _ in looks if model in models and model not in ends]
    assert sorted(seen) == sorted(set(models) - ends)
    plain = [optimizer for gradients, _, optimizer in looks if not gradients]
    assert plain and any(plain) == (task.step is not None)
    assert all(optimizer for gradients, _, optimizer in looks if gradients)
