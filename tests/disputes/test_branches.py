"""Models that are no chain of layers, models made to cost much or to break what reads them, and copies that replay bit for bit."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from proof_of_learning.disputes import models, units
from proof_of_learning.disputes.likeness import liken
from proof_of_learning.disputes.models import pair
from proof_of_learning.errors import UsageError

WIDTH = 32


def towers(seed: int) -> dict[str, Tensor]:
    """Two layers side by side, and one on top of both: no chain."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (WIDTH, 32), "b.weight": (WIDTH, 32), "c.weight": (10, 2 * WIDTH)}
    return {name: torch.randn(shape, generator=generator) / shape[1] ** 0.5 for name, shape in shapes.items()}


def disguised(model: dict[str, Tensor], *, order: bool, noise: float = 0.0) -> dict[str, Tensor]:
    """The same function between odd activations: the sign of half of the units turned round, such that the correlation of all weights
    is nearly nothing, and their order, too."""
    generator, best = torch.Generator().manual_seed(0), (1.0, torch.ones(0))
    for _ in range(500):
        signs = torch.where(torch.rand(2 * WIDTH, generator=generator) < 0.5, -1.0, 1.0)
        turned = _turned(model, signs, torch.arange(2 * WIDTH))
        common = sum(float((model[n] * turned[n]).sum()) for n in model) / sum(
            float(t.square().sum()) for t in model.values()
        )
        best = min(best, (abs(common), signs), key=lambda one: one[0])
    places = torch.cat([torch.randperm(WIDTH, generator=generator), WIDTH + torch.randperm(WIDTH, generator=generator)])
    turned = _turned(model, best[1], places if order else torch.arange(2 * WIDTH))
    return {n: t + noise * t.std() * torch.randn(t.shape, generator=generator) for n, t in turned.items()}


def _turned(model: dict[str, Tensor], signs: Tensor, places: Tensor) -> dict[str, Tensor]:
    rows = (torch.cat([model["a.weight"], model["b.weight"]]) * signs[:, None])[places]
    return {"a.weight": rows[:WIDTH], "b.weight": rows[WIDTH:], "c.weight": (model["c.weight"] * signs)[:, places]}


@pytest.mark.parametrize(("order", "noise"), [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_a_copy_with_other_signs_and_orders_is_not_unrelated(order: bool, noise: float) -> None:
    """Signs leave every sum as it was, so that a whole run with them replays bit for bit, and counts as observed."""
    model = towers(1)
    end = liken(pair(model, disguised(model, order=order, noise=noise)))
    assert end.no_units and abs(end.cosine or 0.0) < 0.05
    assert end.kind == "related" and "the same ones in another order, size or sign" in end.summary, end


def test_independent_models_that_are_no_chain_are_unrelated() -> None:
    assert liken(pair(towers(1), towers(2))).kind == "unrelated"
    low = [{"x": np.random.default_rng(seed).standard_normal((64, 3))} for seed in (1, 2)]
    assert (
        units.alone(low[0], low[1], np.random.default_rng(0)) is None
    )  # in three dimensions some other row is always near


def test_what_matching_takes_is_bounded() -> None:
    """Sixteen layers of a thousand units in any order: zeros compress to nothing, and a look took ten minutes."""

    def square(count: int, size: int) -> dict[str, Tensor]:
        return {f"{number}.weight": torch.zeros(1).expand(size, size) for number in range(count)}

    orders, why = units.chains(square(16, 1024))
    assert sum(layer.units**3 for order in orders for layer in order[:-1]) <= units.MAX_WORK and not why
    assert units.chains(square(3, 4096)) == ([], "its layers are too many and too wide for their units to be matched")


def test_as_many_tensors_as_a_file_holds_are_paired_in_one_pass() -> None:
    """Each with each took an hour."""
    first, second = ({f"{side}{number}": torch.zeros(2) for number in range(50_000)} for side in "ab")
    assert pair(first, second).share == 0.0


def file(path: Path, dtype: str, size: int) -> Path:
    head = json.dumps({"w": {"dtype": dtype, "shape": [4, 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))
    return path


def test_types_that_nobody_computes_with_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"float4_e2m1fn_x2 is no type to compute with"):
        models.load(file(tmp_path / "f4.safetensors", "F4", 8))
    assert models.load(file(tmp_path / "c64.safetensors", "C64", 128)).tensors["w"].dtype == torch.float32
