"""A character-level transformer: AdamW, warm-up and cosine schedule per step, clipping, gradient accumulation.

Reads ``tiny_shakespeare.txt`` from the folder in the setting ``data`` or in the environment variable ``POL_DATA``; the
setting ``text`` names any other text file. A character is a byte.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from _data import find
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proof_of_learning import Task
from proof_of_learning.errors import DataError

SYMBOLS = 256
TEST_SHARE = 10  # the last tenth of the text is for testing


class Transformer(nn.Module):
    """Predicts the next character. Positions are learned: a fixed table would not depend on the run's key."""

    def __init__(self, window: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.positions = nn.Embedding(window, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        length = symbols.shape[1]
        x = self.symbols(symbols) + self.positions(torch.arange(length, device=symbols.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=symbols.device)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))


def windows(path: Path, window: int) -> tuple[Tensor, Tensor]:
    """The text cut into windows of ``window`` characters and the one that follows; those for training, those for testing."""
    text = path.read_bytes()
    count = (len(text) - 1) // window
    if count < TEST_SHARE:
        raise DataError(f"{path} has {len(text)} characters, too few for windows of {window}; lower the setting window")
    symbols = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    cut = torch.stack([symbols[i * window : (i + 1) * window + 1] for i in range(count)])
    return cut[: -(count // TEST_SHARE)], cut[-(count // TEST_SHARE) :]


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    (symbols,) = (column.long() for column in batch)
    return F.cross_entropy(model(symbols[:, :-1]).flatten(0, 1), symbols[:, 1:].flatten())


def task(
    data: str | None = None,
    text: str | None = None,
    steps: int = 2000,
    batch_size: int = 16,
    accumulate: int = 2,
    lr: float = 1e-3,
    warmup: int = 100,
    window: int = 128,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.1,
    seed: int = 0,
) -> Task:
    def cut() -> tuple[Tensor, Tensor]:
        return windows(Path(text) if text else find("tiny_shakespeare.txt", data), window)

    def rate(step: int) -> float:
        """Share of ``lr``: a linear rise over ``warmup`` steps, then half a cosine down to a tenth."""
        if step < warmup:
            return (step + 1) / warmup
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        parts = [loss(model, [part.to(device)]).item() * len(part) for part in cut()[1].split(64)]
        return {"test_loss": sum(parts) / len(cut()[1])}

    return Task(
        name="char-transformer",
        model=lambda: Transformer(window, width, layers, heads, dropout),
        data=lambda: TensorDataset(cut()[0]),
        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=lr, weight_decay=0.1),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        loss=loss,
        evaluate=evaluate,
        batch_size=batch_size,
        accumulate=accumulate,
        clip_norm=1.0,
        steps=steps,
        seed=seed,
    )
