"""Small tasks that train well and cannot be replayed, each for one reason; and healthy ones beside them.

`tests/support_traps.py:task` with `trap=NAME`. Each call of :func:`task` makes fresh objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

import tasks
from proof_of_learning import Task

STEPS = 24


# ---- optimizers around optimizers -------------------------------------------------------------------


class Lookahead:
    """Slow weights beside an optimizer (Zhang et al., 2019), as public code has it: its state is the inner one's alone."""

    def __init__(self, inner: torch.optim.Optimizer, every: int = 5) -> None:
        self.inner, self.every, self.count = inner, every, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.inner.load_state_dict(values)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        self.count += 1
        if self.count % self.every == 0:
            for slow, fast in zip(self.slow, [p for g in self.inner.param_groups for p in g["params"]], strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


class SAM(torch.optim.SGD):
    """Sharpness-aware steps in two halves that keep the last perturbation, and start the next from it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05)
        self._last: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        mine = [p for group in self.param_groups for p in group["params"]]
        for p, e in zip(mine, self._last, strict=False):
            p.grad.add_(e)
        self._last = [0.05 * p.grad for p in mine]
        return super().step(closure)


# ---- models that remember ---------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Carries its hidden state in an attribute from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(tasks.FEATURES, 6)
        self.last = nn.Linear(6, tasks.CLASSES)
        self.hidden: Any = None

    def forward(self, x: Tensor) -> Tensor:
        out, hidden = self.rnn(x[None, :12] if len(x) >= 12 else F.pad(x, (0, 0, 0, 12 - len(x)))[None], self.hidden)
        self.hidden = tuple(h.detach() for h in hidden)
        return self.last(out[0])[: len(x)]


def recurrent_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1][:12])


class Bank(nn.Module):
    """Remembers what it saw, and looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tasks.Net()
        self.bank: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.bank.append(x.detach().mean(0))
        return self.net(x + 0.01 * torch.stack(self.bank).mean(0))


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.net, self.generator = tasks.Net(), generator

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            return self.net(x + 0.1 * torch.randn(x.shape, generator=self.generator))
        return self.net(x + 0.1 * torch.from_numpy(self.generator.standard_normal(x.shape)).float())


# ---- steps, losses, data ----------------------------------------------------------------------------


def pruned_step(context: Any, batches: list[Any]) -> Tensor:
    if context.step == 6:
        prune.l1_unstructured(context.model.middle, "weight", amount=0.3)
    loss = tasks.loss(context.model, batches[0])
    context.backward(loss)
    context.update()
    return loss


def unfreezing_step(context: Any, batches: list[Any]) -> Tensor:
    if context.step == 6:
        context.optimizer.add_param_group(
            {"params": list(context.model.middle.requires_grad_().parameters()), "lr": 0.01}
        )
    loss = tasks.loss(context.model, batches[0])
    context.backward(loss)
    context.update()
    return loss


def unfreezing_optimizer(model: Any) -> torch.optim.Optimizer:
    model.middle.requires_grad_(False)
    return torch.optim.SGD([*model.first.parameters(), *model.last.parameters()], lr=0.05)


def trained_loss() -> Callable[[nn.Module, list[Tensor]], Tensor]:
    """A criterion with weights and an optimizer of its own."""
    centres = nn.Linear(tasks.CLASSES, tasks.CLASSES)
    own: list[torch.optim.Optimizer] = []

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        own.extend([] if own else [torch.optim.SGD(centres.parameters(), lr=0.5)])
        own[0].step()
        own[0].zero_grad()
        return F.cross_entropy(centres(model(batch[0])), batch[1])

    return loss


def writing(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return sample[0].add_(0.1), sample[1]


def vocabulary() -> TensorDataset:
    """Tokens by their place in a set of words, whose order follows the process's hash seed."""
    words = [f"word{n}" for n in range(40)]
    place = {word: number for number, word in enumerate(set(words))}
    tokens = torch.tensor(
        [[place[words[(7 * i + j) % 40]] for j in range(tasks.FEATURES)] for i in range(tasks.SAMPLES)]
    )
    return TensorDataset(tokens / 40.0, tokens.sum(1) % tasks.CLASSES)


def hashed_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Sums in the order of a set of strings."""
    logits = model(batch[0])
    weights = torch.tensor([1.0 + 0.01 * number for number, _ in enumerate({"a", "b", "c", "d", "e", "f"})])
    first = next(iter({f"class{n}" for n in range(50)}))
    return F.cross_entropy(logits, batch[1]) * (weights[-1] + 0.001 * int(first[5:]))


def clocked_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Draws from a generator that nobody seeded."""
    return tasks.loss(model, batch) * (1 + 0.01 * float(np.random.default_rng().random()))


def unseeded_model() -> nn.Module:
    model = tasks.Net()
    with torch.no_grad():
        model.first.weight.copy_(torch.from_numpy(np.random.default_rng().standard_normal(model.first.weight.shape)))
    return model


def no_evaluation(model: nn.Module) -> Any:
    """Forgets its return."""


def task(trap: str = "") -> Task:
    whole = replace(tasks.task(steps=STEPS), evaluate=None, name=trap or "healthy")
    match trap:
        case "lookahead":
            return replace(whole, optimizer=lambda model: Lookahead(torch.optim.SGD(model.parameters(), lr=0.05)))
        case "sam":
            return replace(whole, optimizer=lambda model: SAM(model.parameters()))
        case "recurrent":
            return replace(whole, model=Recurrent, loss=recurrent_loss)
        case "bank":
            return replace(whole, model=Bank)
        case "torch generator":
            return replace(whole, model=lambda: Noisy(torch.Generator().manual_seed(1)))
        case "numpy generator":
            return replace(whole, model=lambda: Noisy(np.random.default_rng(1)))
        case "pruning":
            return replace(whole, loss=None, step=pruned_step)
        case "unfreezing":
            return replace(whole, loss=None, step=unfreezing_step, optimizer=unfreezing_optimizer)
        case "trained loss":
            return replace(whole, loss=trained_loss())
        case "writing":
            return replace(whole, augment=writing)
        case "vocabulary":
            return replace(whole, data=vocabulary)
        case "hashed":
            return replace(whole, loss=hashed_loss)
        case "clocked":
            return replace(whole, loss=clocked_loss)
        case "unseeded model":
            return replace(whole, model=unseeded_model)
        case "many":
            many = replace(whole, model=lambda: Noisy(np.random.default_rng(1)), data=vocabulary, augment=writing)
            many = replace(many, optimizer=lambda model: SAM(model.parameters()), evaluate=no_evaluation)
            return replace(many, loss=trained_loss())
        case "":
            return whole
    raise ValueError(trap)
