"""What a training step in portable arithmetic costs over the same step in PyTorch's own: CPU time, one thread, one process
(``--threads N``: wall time on so many).

A CNN with BatchNorm and dropout (SGD, images of 28 by 28, batch 64) and Transformers (AdamW, 16 sequences of 64), in alternating
blocks; the ratio of the two modes' minima. With ``--profile 1`` says which operations take the time. POL_PORTABLE_ENGINE=plain
measures the plain engine.

    python benchmarks/portable_cost.py [--quick | --tiny] [--profile 1] [--threads N] --json FILE
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import sys
from collections.abc import Callable

import torch
from common import Cost, alternate, benchmark, timed
from torch import Tensor, nn
from torch.nn import functional as F

from proof_of_learning.numeric.portable import NATIVE, PORTABLE, engine, using

TARGETS = {"plain": dict.fromkeys(("CNN", "Transformer 64", "Transformer 256"), 8.0),
           "native": {"CNN": 1.3, "Transformer 64": 1.6, "Transformer 256": 1.7}}  # fmt: skip
LENGTH = 64


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, 4, 0.1, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        x = x + self.mix(y, y, y, attn_mask=self.mask, need_weights=False)[0]
        return x + self.feed(self.b(x))


def transformer(width: int, letters: int = 65) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(letters, width), Block(width), Block(width), nn.LayerNorm(width), nn.Linear(width, letters)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 49, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def steps(name: str, batch: int) -> Callable[[], None]:
    """A step of one of the trainings."""
    if name == "CNN":
        model, x, y = cnn(), torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    else:
        model = transformer(int(name.rpartition(" ")[2]))
        x, y = torch.randint(65, (batch // 4, LENGTH)), torch.randint(65, (batch // 4 * LENGTH,))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(x).reshape(len(y), -1), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    with benchmark(__doc__ or "", profile=0, threads=1) as run:
        threads = run.numbers["threads"]
        torch.set_num_threads(threads)
        runs = engine.prepare()
        run.note(f"{runs.name} engine: {runs.reason}")
        blocks, each, batch = run.size.of(12, 4, 1), run.size.of(4, 2, 1), run.size.of(64, 64, 4)

        def taken(cost: Cost) -> float:
            return cost.cpu if threads == 1 else cost.wall

        def consume(step: Callable[[], None]) -> None:
            for _ in range(each):
                step()

        for name in ("CNN", "Transformer 64", "Transformer 256")[: run.size.of(3, 2, 2)]:
            modes: dict[str, Callable[[], Cost]] = {}
            for arithmetic in (NATIVE, PORTABLE):
                step = steps(name, batch)

                def block(step: Callable[[], None] = step, arithmetic: str = arithmetic) -> Cost:
                    with using(arithmetic):
                        return timed(lambda: consume(step))

                block()
                modes[arithmetic] = block
            costs = alternate(modes, blocks)
            ratios = [taken(p) / taken(n) for p, n in zip(costs[PORTABLE], costs[NATIVE], strict=True)]
            quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
            least = {mode: min(map(taken, found)) / each for mode, found in costs.items()}
            run.add(f"{name}: step, native", least[NATIVE] * 1e3, "ms")
            run.add(f"{name}: step, portable", least[PORTABLE] * 1e3, "ms")
            run.add(
                f"{name}: portable over native",
                least[PORTABLE] / least[NATIVE],
                "times",
                target=TARGETS[runs.name][name],
                spread=(quarters[0], quarters[2]),
            )
            if run.numbers["profile"]:
                profile = cProfile.Profile()
                profile.enable()
                modes[PORTABLE]()
                profile.disable()
                pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
