"""One training in native or portable arithmetic, for ``portable.py``: prints its state's digest after every step, losses and times.

python experiments/portable_run.py TASK ARITHMETIC STEPS SEED [DEVICE]
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from cells import EXAMPLES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from proof_of_learning import Task, TaskReference, load_task
from proof_of_learning.data.digits import digits
from proof_of_learning.numeric import environment, randomness
from proof_of_learning.numeric.portable import using
from proof_of_learning.training.steps import Session, derived_feed

HELD = 360  # digits that are not trained on
CONTEXT = 32


def images() -> tuple[Tensor, Tensor]:
    x, y = (torch.tensor(part) for part in digits())
    return x.float() / 16 - 0.5, y


class Rows(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 48, batch_first=True)
        self.last = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0][:, -1])


class Characters(nn.Module):
    """A decoder of two blocks, as small as it learns something."""

    def __init__(self, letters: int, width: int = 64) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        found = self.blocks(self.letter(x) + self.place(torch.arange(x.shape[1], device=x.device)), mask=mask)
        return self.last(self.norm(found))


def classes(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def letters(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(128, 10),
    )  # fmt: skip


# The examples on real data, by the names that they have here; ``data`` is the folder in POL_DATA.
EXAMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "Fashion-MNIST CNN": ("fashion_mnist.py", {"batch_size": 64}),
    "CIFAR-10 ResNet-20": ("cifar10_resnet20.py", {"batch_size": 32}),
    "character Transformer": ("char_transformer.py", {"width": 64, "layers": 2, "window": 64, "batch_size": 16, "accumulate": 1}),
}  # fmt: skip


def task(name: str, steps: int, seed: int, text: str) -> tuple[Task, Callable[[nn.Module], float] | None]:
    """A task, and what its model achieves: accuracy on digits that were held back, or the loss on text; None: the task says."""
    if name in EXAMPLE:
        file, settings = EXAMPLE[name]
        return load_task(TaskReference(f"{EXAMPLES / file}:task", {**settings, "steps": steps, "seed": seed})), None
    x, y = images()
    sgd = lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)  # noqa: E731
    adamw = lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3)  # noqa: E731
    kinds: dict[str, tuple[Callable[[], nn.Module], Any]] = {
        "MLP": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), sgd),
        "CNN": (cnn, sgd),
        "LSTM": (Rows, adamw),
    }
    if name in kinds:
        model, optimizer = kinds[name]
        made = Task(
            name=name, data=lambda: TensorDataset(x[HELD:], y[HELD:]), model=model, optimizer=optimizer, loss=classes, batch_size=64,
            steps=steps, seed=seed,
        )  # fmt: skip
        return made, lambda m: float((m(x[:HELD]).argmax(1) == y[:HELD]).double().mean())
    alphabet = sorted(set(text))
    codes = torch.tensor([alphabet.index(letter) for letter in text])
    pieces = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    held = pieces[:: max(2, len(pieces) // 64)]
    made = Task(
        name=name, data=lambda: TensorDataset(pieces[:, :-1], pieces[:, 1:]), model=lambda: Characters(len(alphabet)), optimizer=adamw,
        loss=letters, batch_size=16, steps=steps, seed=seed,
    )  # fmt: skip
    return made, lambda m: float(letters(m, [held[:, :-1], held[:, 1:]]))


def main(name: str, arithmetic: str, steps: int, seed: int, device: str, text: str) -> dict[str, Any]:
    trained, achieves = task(name, steps, seed, text)
    with environment.recording(device):
        data = trained.data()
        session = Session(trained, randomness.key_from_seed(seed), device, arithmetic=arithmetic)
        feed, order = derived_feed(trained, data, session.key, device)
        digests, losses, weights, seconds = [session.capture().digest()], [], list[list[float]](), []
        steps_taken = session.run(steps, feed, order)
        while True:
            begun = time.process_time() if device == "cpu" else time.perf_counter()
            result = next(steps_taken, None)
            if result is None:
                break
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append((time.process_time() if device == "cpu" else time.perf_counter()) - begun)
            state = session.capture()
            digests.append(state.digest())
            losses.append(float(result.loss))
        flat = torch.cat([p.detach().reshape(-1) for p in session.model.parameters()])
        weights = [flat.tolist()] if flat.numel() <= 200_000 else []
        if achieves is None:
            achieved = next(iter((session.evaluate() or {"": 0.0}).values()))
        else:
            session.model.to("cpu").eval()
            with torch.no_grad(), using(arithmetic):
                achieved = achieves(session.model)
    seconds.sort()
    return {
        "digests": digests, "losses": losses, "achieved": achieved, "weights": weights, "typical_step": seconds[len(seconds) // 2],
    }  # fmt: skip


if __name__ == "__main__":
    chosen, how, count, start, where = [*sys.argv[1:], "cpu"][:5]
    found = main(chosen, how, int(count), int(start), where, os.environ["POL_TEXT"])
    print(json.dumps(found))
