"""Hypothesis strategies for tensors, trees and states, and equality to the bit."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from proof_of_learning.errors import TaskError
from proof_of_learning.state.state import DTYPES, State, encode_tree
from support_proofs import tree_of

RECORDED = [dtype for dtype in DTYPES.values() if dtype != torch.complex128]


def tensor_of(dtype: torch.dtype, shape: list[int], raw: bytes) -> Tensor:
    """A tensor whose bytes repeat ``raw``: NaNs, infinities and denormals of every kind among them."""
    size = math.prod(shape) * dtype.itemsize
    flat = torch.frombuffer(bytearray((raw * (size // len(raw) + 1))[:size] or b"\0"), dtype=torch.uint8)[:size]
    return (flat % 2 if dtype == torch.bool else flat.clone()).view(dtype).reshape(shape)


TENSORS = st.builds(
    tensor_of, st.sampled_from(RECORDED), st.lists(st.integers(0, 3), max_size=3), st.binary(min_size=1, max_size=40)
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
NAMES = TEXT | st.sampled_from(["a/b", "~", "~1", "i:1", "s:", ""])
KEYS = NAMES | st.integers(-3, 3) | st.integers()
TREES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=3).map(Counter)
    ),
    max_leaves=12,
)


@st.composite
def states(draw: st.DrawFn) -> State:
    values = draw(st.dictionaries(NAMES, TREES, max_size=3))
    tensors: dict[str, Tensor] = {}
    try:
        names = {name: name.replace("~", "~0").replace("/", "~1") for name in values}
        tree = [[f"s:{name}", encode_tree(values[name], names[name], tensors)] for name in sorted(values)]
    except TaskError:  # keys 1 and "1" in one dict, both with tensors below
        assume(False)
    return State({"d": tree}, tensors)


KEPT = ["momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_avg", "square_avg", "step", "exp_inf"]
NUMBERS = [0.0, -0.0, 1e-45, -1e-39, 1e-20, 0.1, 1.0, -1.5, 1e20, 3.4028235e38, math.nan, math.inf]


@st.composite
def optimizer_states(draw: st.DrawFn) -> State:
    """A weight or two and what optimizers keep for them, mostly of their shape: noise of any size, or special numbers."""
    generator, tensors = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16))), dict[str, Tensor]()

    def tensor(shape: list[int]) -> Tensor:
        if draw(st.booleans()):
            among = torch.tensor(draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4)))
            return among[torch.randint(0, len(among), shape, generator=generator)]
        return torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-44, 36))

    shapes = st.lists(st.sampled_from([0, 1, 2, 5, 40]), max_size=3)
    for place in range(draw(st.integers(1, 2))):
        shape = draw(shapes)
        tensors[f"model/parameters/{place}"] = tensor(shape)
        for key in draw(st.lists(st.sampled_from(KEPT), unique=True, max_size=4)):
            tensors[f"optimizer/state/{place}/{key}"] = tensor(draw(st.sampled_from([shape, shape, shape, []])))
    return State(tree_of(tensors), tensors)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """All there is to a tensor: type, shape and bytes."""
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, NaNs and the signs of zeros included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return bits(a) == bits(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a.hex() == b.hex() if isinstance(a, float) else bool(a == b)
