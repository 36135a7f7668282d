"""The native engine of portable arithmetic gives the plain one's bits, and is used only where it does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proof_of_learning.errors import NumericEnvironmentError
from proof_of_learning.numeric.portable import PORTABLE, engine, selftest, using
from proof_of_learning.numeric.portable.native import build
from proof_of_learning.numeric.portable.selftest import EXTREMES, numbers
from proof_of_learning.numeric.portable.table import IN_USE, NATIVE

aten = torch.ops.aten
RUNS = engine.prepare()
native_only = pytest.mark.skipif(RUNS.name != "native", reason=f"there is no native engine here: {RUNS.reason}")


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    held = dict(IN_USE)
    IN_USE.clear()
    try:
        yield
    finally:
        IN_USE.update(held)


# ---- the same bits --------------------------------------------------------------------------------------


class Draw:
    """Shapes, numbers and layouts that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.seed = seed * 1000

    def size(self, most: int = 20) -> int:
        return int(self.random.integers(1, most + 1))

    def choice(self, *of: Any) -> Any:
        return of[int(self.random.integers(len(of)))]

    def tensor(self, *shape: int, spread: int | None = None) -> Tensor:
        """Now and then with zeros, denormal, huge, infinite numbers or NaN in it, and in another layout."""
        self.seed += 1
        x = numbers(self.seed, *shape, spread=spread or self.choice(2, 6, 25, 60))
        if self.random.random() < 0.3 and x.numel():
            places = self.random.integers(0, x.numel(), 3)
            x.view(-1)[torch.from_numpy(places)] = torch.tensor(EXTREMES)[
                torch.from_numpy(self.random.integers(0, len(EXTREMES), 3))
            ]
        if self.random.random() < 0.2:
            x = x * torch.from_numpy(self.random.integers(0, 2, shape)).float()
        return self.laid(x)

    def laid(self, x: Tensor) -> Tensor:
        kind = self.choice("dense", "dense", "transposed", "strided", "offset")
        if kind == "transposed" and x.dim() > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "strided":
            return torch.stack([x, x], -1)[..., 0]
        if kind == "offset":
            return torch.cat([torch.zeros(3), x.reshape(-1)])[3:].view(x.shape)
        return x


def _matmul(d: Draw) -> Callable[[], Any]:
    k = d.choice(1, 3, 17, 65, 320, 321, 700, 2049, 9000, 17000)
    a, b = d.tensor(d.size(30), k), d.tensor(k, d.size(30))
    return lambda: a @ b


def _bmm(d: Draw) -> Callable[[], Any]:
    n, k = d.size(4), d.size(70)
    a, b = d.tensor(n, d.size(40), k), d.tensor(n, k, d.size(20))
    return lambda: [torch.bmm(a, b), torch.bmm(b.transpose(1, 2), a.transpose(1, 2))]


def _addmm(d: Draw) -> Callable[[], Any]:
    m, k, n = d.size(), d.size(), d.size()
    a, b, c = d.tensor(m, k), d.tensor(k, n), d.tensor(*d.choice((n,), (m, n), (1, n), (m, 1)))
    beta = d.choice(1, 1, 0.5)
    return lambda: torch.addmm(c, a, b, beta=beta)


def _convolution(d: Draw) -> Callable[[], Any]:
    dims, groups = d.choice(1, 2, 2, 2), d.choice(1, 1, 2, 3)
    kernel = [d.size(4) for _ in range(dims)]
    stride, padding, dilation = d.choice(1, 1, 2, 3), d.choice(0, 1, 2), d.choice(1, 1, 2)
    places = [dilation * (k - 1) + 1 + d.size(12) for k in kernel]
    x = d.tensor(d.size(5), groups * d.size(5), *places)
    w = d.tensor(groups * d.size(10), x.shape[1] // groups, *kernel)
    bias = d.choice(None, numbers(d.seed, w.shape[0]))
    settings = ([stride] * dims, [padding] * dims, [dilation] * dims, False, [0] * dims, groups)

    def call() -> Any:
        y = aten.convolution.default(x, w, bias, *settings)
        g = numbers(d.seed + 1, *y.shape, spread=9)
        return [y, *aten.convolution_backward.default(g, x, w, [w.shape[0]], *settings, [True, True, True])]

    return call


def _transposed(d: Draw) -> Callable[[], Any]:
    x, w = d.tensor(2, 4, d.size(6), d.size(6)), d.tensor(4, d.size(6), 3, 3)
    stride = d.choice(1, 2)
    return lambda: F.conv_transpose2d(x, w, stride=stride, padding=1)


def _sums(d: Draw) -> Callable[[], Any]:
    x = d.tensor(d.size(), d.size(50), d.size(40))
    dims = d.choice((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2))
    keep = d.choice(True, False)
    return lambda: [x.sum(dims, keepdim=keep), x.mean(dims), x.var(dims), x.sum(), x[0, 0].sum()]


def _functions(d: Draw) -> Callable[[], Any]:
    x, g = d.tensor(d.size(70), d.size(20)), d.tensor(70, 20)[: d.size(1)]
    g = numbers(d.seed, *x.shape, spread=30)
    calls: list[Callable[..., Tensor]] = [
             torch.exp, torch.expm1, torch.log, torch.log1p, torch.tanh, torch.sigmoid, torch.erf, torch.erfc, torch.sqrt, torch.rsqrt,
             F.gelu, lambda t: F.gelu(t, approximate="tanh"), F.silu, F.logsigmoid]  # fmt: skip
    return lambda: [*(call(x) for call in calls), aten.gelu_backward.default(g, x), aten.silu_backward.default(g, x),
                    aten.gelu_backward.default(g, x, approximate="tanh"),
                    aten.log_sigmoid_backward.default(g, x, x.new_empty(0))]  # fmt: skip


def _softmax(d: Draw) -> Callable[[], Any]:
    x = d.tensor(d.size(30), d.size(70), spread=4)
    if d.random.random() < 0.5:
        x = x.masked_fill(torch.from_numpy(d.random.integers(0, 2, x.shape)).bool(), -float("inf"))
    g = numbers(d.seed, *x.shape)

    def call() -> Any:
        y, z = torch.softmax(x, -1), torch.log_softmax(x, -1)
        return [y, z, aten._safe_softmax.default(x, -1), torch.softmax(x, 0),
                aten._softmax_backward_data.default(g, y, -1, torch.float32),
                aten._log_softmax_backward_data.default(g, z, 1, torch.float32)]  # fmt: skip

    return call


def _layer_norm(d: Draw) -> Callable[[], Any]:
    shape = [d.size(40) for _ in range(d.choice(1, 2))]
    x = d.tensor(*(d.size(6) for _ in range(d.choice(1, 2))), *shape)
    w, b = (d.choice(None, numbers(d.seed + i, *shape)) for i in (1, 2))
    g = numbers(d.seed, *x.shape, spread=9)
    mask = [d.choice(True, True, False) for _ in range(3)]

    def call() -> Any:
        y, mean, inverse = aten.native_layer_norm.default(x, shape, w, b, 1e-5)
        return [y, mean, inverse, *aten.native_layer_norm_backward.default(g, x, shape, mean, inverse, w, b, mask)]

    return call


def _batch_norm(d: Draw) -> Callable[[], Any]:
    channels, training = d.size(9), d.choice(True, True, False)
    x = d.tensor(d.size(6), channels, *(d.size(20) for _ in range(d.choice(0, 1, 2))))
    w, b = (d.choice(None, numbers(d.seed + i, channels)) for i in (1, 2))
    g = numbers(d.seed, *x.shape, spread=9)
    mask = [d.choice(True, True, False), True, True]

    def call() -> Any:
        mean, var = numbers(5, channels), numbers(6, channels).abs()
        y, saved, inverse = aten.native_batch_norm.default(x, w, b, mean, var, training, 0.1, 1e-5)
        more = aten.native_batch_norm_backward.default(g, x, w, mean, var, saved, inverse, training, 1e-5, mask)
        return [y, saved, inverse, mean, var, *more]

    return call


def _pooling(d: Draw) -> Callable[[], Any]:
    kernel, padding = d.choice(2, 2, 3), d.choice(0, 0, 1)
    x = d.tensor(d.size(3), d.size(4), 5 + d.size(12), 5 + d.size(12)).round()
    stride, dilation = d.choice(2, 1, 3), d.choice([1], [1], [1, 2])

    def call() -> Any:
        y, places = aten.max_pool2d_with_indices.default(x, [kernel], [stride], [padding], dilation)
        g = numbers(d.seed, *y.shape, spread=9)
        by = aten.max_pool2d_with_indices_backward.default(g, x, [kernel], [stride], [padding], dilation, False, places)
        return [y, places, by]

    return call


def _embedding(d: Draw) -> Callable[[], Any]:
    rows, n = d.size(9), d.size(20)
    places = torch.from_numpy(d.random.integers(0, rows, (d.size(6), d.size(7))))
    g = d.tensor(*places.shape, n)
    padding = d.choice(-1, 0)
    return lambda: aten.embedding_dense_backward.default(g, places, rows, padding, False)


def _dropout(d: Draw) -> Callable[[], Any]:
    shape, p = (d.size(90), d.size(9)), d.choice(0.0, 0.1, 0.5, 1.0, 0.37)

    def call() -> Any:
        torch.manual_seed(d.seed)
        return torch.empty(shape).bernoulli_(p)

    return call


def _elementwise(d: Draw) -> Callable[[], Any]:
    shape = (d.size(40), d.size(9))
    x, a, b = d.tensor(*shape), d.tensor(*shape), d.tensor(*shape)
    n = float(d.random.normal())
    calls: list[Callable[..., Any]] = [
        lambda x: torch.add(x, a, alpha=n), lambda x: torch.addcmul(x, a, b, value=n), lambda x: torch.addcdiv(x, a, b, value=n),
        lambda x: torch.lerp(x, a, n), lambda x: x / n, lambda x: x.clone().add_(a, alpha=n), lambda x: x.clone().div_(n),
        lambda x: x.clone().lerp_(a, n), lambda x: x.clone().addcmul_(a, b, value=n), lambda x: x.clone().addcdiv_(a, b, value=n),
        lambda x: x.clone().addcmul_(a, a), lambda x: torch.add(x, a[:1], alpha=n),
    ]  # fmt: skip
    return lambda: [call(x) for call in calls]


def _lists(d: Draw) -> Callable[[], Any]:
    shapes = [(d.size(30), d.size(4)) for _ in range(4)]
    dense = d.choice(True, True, True, False)  # else the plain engine has all of it
    x, a, b = ([d.tensor(*shape) for shape in shapes] for _ in range(3))
    if dense:
        x, a, b = ([t.contiguous() for t in tensors] for tensors in (x, a, b))
    n = float(d.random.normal())
    several = [float(v) for v in d.random.normal(size=4)]
    one = torch.tensor(1.0)

    def copied(call: Callable[[list[Tensor]], Any]) -> list[Tensor]:
        own = [t.clone() for t in x]
        call(own)
        return own

    return lambda: [
        *torch._foreach_add(x, a, alpha=n), *torch._foreach_add(x, a), *torch._foreach_mul(x, n), *torch._foreach_mul(x, a),
        *torch._foreach_div(x, several), *torch._foreach_div(x, a), *torch._foreach_sqrt(x), *torch._foreach_lerp(x, a, n),
        *torch._foreach_addcmul(x, a, b, n), *torch._foreach_addcdiv(x, a, b, several), *torch._foreach_add(x, n),
        *copied(lambda own: torch._foreach_add_(own, one, alpha=1.0)), *copied(lambda own: torch._foreach_lerp_(own, a, n)),
        *copied(lambda own: torch._foreach_addcdiv_(own, a, b, several)), *copied(lambda own: torch._foreach_mul_(own, n)),
    ]  # fmt: skip


OPERATIONS: dict[str, Callable[[Draw], Callable[[], Any]]] = {
    "matrix product": _matmul, "batches of products": _bmm, "addmm": _addmm, "convolution": _convolution,
    "transposed convolution": _transposed, "sums": _sums, "functions": _functions, "softmax": _softmax, "layer_norm": _layer_norm,
    "batch_norm": _batch_norm, "max_pool": _pooling, "embedding": _embedding, "dropout": _dropout, "elementwise": _elementwise,
    "lists": _lists,
}  # fmt: skip
TRIES = 25


def same(one: Any, other: Any) -> bool:
    """Bit for bit, all NaN being one."""
    if one is None or other is None:
        return one is other
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one.shape == other.shape) and selftest.digest(one) == selftest.digest(other)


@native_only
@pytest.mark.parametrize("name", OPERATIONS)
def test_both_engines_give_the_same_bits(name: str) -> None:
    for seed in range(TRIES):
        call = OPERATIONS[name](Draw(seed))
        with using(PORTABLE):
            found = call()
            with plainly():
                wanted = call()
        assert same(found, wanted), f"seed {seed}"


def test_a_sum_of_one_term_is_never_minus_zero() -> None:
    zeros, negative = torch.zeros(3, 1), -torch.ones(1, 5)
    image, filters = torch.zeros(2, 1, 3, 3), -torch.ones(4, 1, 1, 1)
    for engine_of in (contextlib.nullcontext, plainly):
        with using(PORTABLE), engine_of():
            by_input, by_weight, _ = aten.convolution_backward.default(
                torch.zeros(1, 4, 1, 1), -torch.ones(1, 1, 1, 1), filters, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
                [True, True, False],
            )  # fmt: skip
            found = [zeros @ negative, F.conv2d(image, filters), by_input, by_weight]
        assert not any(torch.signbit(x).any() for x in found)


def test_the_gradient_of_spread_out_windows_that_share_places_adds_up() -> None:
    x = torch.tensor([[[[0.0, 0, 5, 0, 0, 0]]]], requires_grad=True)
    for engine_of in (contextlib.nullcontext, plainly):
        with using(PORTABLE), engine_of():
            y = F.max_pool2d(x, (1, 2), (1, 2), dilation=(1, 2))
            (by,) = torch.autograd.grad(y.sum(), x)
        assert by.flatten().tolist() == [0, 0, 2, 0, 0, 0]


def test_what_is_infinite_reaches_no_place_that_no_window_does() -> None:
    x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
    x[0, 0, 0, 0] = float("inf")
    for engine_of in (contextlib.nullcontext, plainly):
        with using(PORTABLE), engine_of():
            y = F.conv_transpose2d(x, w, stride=2)
        assert y.isnan().flatten().tolist() == [True, False, True, False, False, False, True, False, True]


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


PLACES_OF_A_POOL = torch.full((1, 1, 2, 2), 1 << 40)
MISFITS: dict[str, Callable[[], Any]] = {
    "bias of a convolution": lambda: aten.conv2d.default(ones(2, 3, 5, 5), ones(64, 3, 3, 3), ones(1)),
    "channels": lambda: aten.conv2d.default(ones(2, 3, 5, 5), ones(64, 30, 3, 3)),
    "groups": lambda: aten.conv2d.default(ones(2, 4, 5, 5), ones(6, 1, 3, 3), None, [1, 1], [0, 0], [1, 1], 4),
    "padding": lambda: aten.conv2d.default(ones(2, 4, 9, 9), ones(6, 4, 3, 3), None, [1, 1], [-2, -2]),
    "dilation": lambda: aten.conv2d.default(ones(2, 4, 9, 9), ones(6, 4, 3, 3), None, [1, 1], [0, 0], [-1, -1]),
    "stride": lambda: aten.conv2d.default(ones(2, 4, 3, 3), ones(6, 4, 9, 9), None, [-1, -1]),
    "transposed": lambda: aten.conv_transpose2d.input(ones(2, 4, 3, 3), ones(40, 4, 3, 3)),
    "gradient of a convolution": lambda: aten.convolution_backward.default(
        ones(2, 3, 9, 9), ones(2, 3, 3, 3), ones(3, 3, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True],
    ),
    "parameters of layer_norm": lambda: aten.layer_norm.default(ones(2, 400), [400], ones(4)),
    "shape of layer_norm": lambda: aten.native_layer_norm.default(ones(2, 400), [7], None, None, 1e-5),
    "gradient of layer_norm": lambda: aten.native_layer_norm_backward.default(
        ones(1, 4), ones(90, 4), [4], ones(90, 1), ones(90, 1), None, None, [True] * 3
    ),
    "parameters of batch_norm": lambda: aten.native_batch_norm.default(
        ones(2, 400), ones(4), None, None, None, True, 0.1, 1e-5
    ),
    "gradient of batch_norm": lambda: aten.native_batch_norm_backward.default(
        ones(2, 4), ones(90, 4), None, None, None, ones(4), ones(4), True, 1e-5, [True] * 3
    ),
    "embedding": lambda: aten.embedding_dense_backward.default(ones(1, 4), torch.zeros(900, dtype=torch.int64), 3, -1, False),
    "kernel of a pool": lambda: aten.max_pool2d.default(ones(2, 4, 9, 9), [-5, -5], [1, 1], [-3, -3]),
    "gradient of a pool": lambda: aten.max_pool2d_with_indices_backward.default(
        ones(1, 1, 1, 1), ones(1, 1, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False, PLACES_OF_A_POOL
    ),
    "places of a pool": lambda: aten.max_pool2d_with_indices_backward.default(
        ones(1, 1, 2, 2), ones(1, 1, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False, PLACES_OF_A_POOL
    ),
    "dimension of a softmax": lambda: torch.softmax(ones(2, 3), 5),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_sizes_that_do_not_fit_are_refused_before_any_kernel_trusts_them(name: str) -> None:
    for engine_of in (contextlib.nullcontext, plainly):
        with using(PORTABLE), engine_of(), pytest.raises((RuntimeError, IndexError)):
            MISFITS[name]()


OVERLAPPING: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add_": lambda x, y: x.add_(y, alpha=2),
    "addcmul_": lambda x, y: x.addcmul_(y, y, value=0.5),
    "lerp_": lambda x, y: x.lerp_(y, 0.5),
    "_foreach_add_": lambda x, y: torch._foreach_add_([x], [y], alpha=2),
    "_foreach_addcdiv_": lambda x, y: torch._foreach_addcdiv_([x], [y], [y], value=0.3),
}


@native_only
@pytest.mark.parametrize("name", OVERLAPPING)
def test_what_is_written_over_what_is_read_gives_the_same_bits(name: str) -> None:
    def call() -> Tensor:
        x = numbers(1, 4097, spread=6)
        OVERLAPPING[name](x[1:], x[:-1])
        OVERLAPPING[name](x[:-1], x[1:])
        return x

    with using(PORTABLE):
        natively = call()
        with plainly():
            assert torch.equal(natively.view(torch.int32), call().view(torch.int32))


@native_only
def test_a_sum_of_very_many_products_is_cut_into_stretches_alike() -> None:
    """Half of the terms take the other half away: added up in one go, the sum would pass 2**53 and lose what is left of it."""
    half = 15_000
    a = 1 - numbers(1, 1, half).abs() * 2.0**-8
    b = 1 - numbers(2, half, 9).abs() * 2.0**-8
    b2 = b.clone()
    b2[7] = b2[7] * 0.999
    with using(PORTABLE):
        found = torch.cat([a, a], 1) @ torch.cat([b, -b2])
        with plainly():
            assert same(found, torch.cat([a, a], 1) @ torch.cat([b, -b2]))


@native_only
def test_several_threads_give_the_same_bits() -> None:
    x, w = numbers(1, 40, 3, 30, 30), numbers(2, 9, 3, 3, 3)
    a, b = numbers(3, 300, 200), numbers(4, 200, 300)

    def results() -> list[Tensor]:
        with using(PORTABLE):
            y = F.conv2d(x, w, padding=1)
            ones = [1, 1]
            return [y, a @ b, F.gelu(x), F.batch_norm(x, None, None, training=True), torch.softmax(a, 1), x.sum((0, 2, 3)),
                    *aten.convolution_backward.default(y, x, w, [9], ones, ones, ones, False, [0, 0], 1, [True] * 3)]  # fmt: skip

    wanted, before = results(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert same(results(), wanted)
    finally:
        torch.set_num_threads(before)


@native_only
def test_training_gives_the_same_bits() -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(1)
        with using(PORTABLE):
            model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
                                  nn.Dropout(0.2), nn.Linear(54, 5), nn.LayerNorm(5))  # fmt: skip
            optimizer = torch.optim.AdamW(model.parameters(), 0.01)
            for step in range(4):
                loss = F.cross_entropy(model(numbers(step, 9, 2, 8, 8)), selftest.integers(step, 5, 9))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
        return [t.detach() for t in (*model.parameters(), *model.buffers())]

    found = trained()
    with plainly():
        assert same(trained(), found)


@native_only
def test_an_index_that_is_out_of_range_is_an_error_in_both() -> None:
    g, places = numbers(1, 4, 3), torch.tensor([0, 1, 7, 2])
    for context in (contextlib.nullcontext(), plainly()):
        with context, using(PORTABLE), pytest.raises((IndexError, RuntimeError)):
            aten.embedding_dense_backward.default(g, places, 3, -1, False)


@native_only
@pytest.mark.slow
@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="of this make of processors the sets of instructions are known"
)
@pytest.mark.parametrize("instructions", ["x86-64", "x86-64-v3"])
def test_the_width_of_vectors_does_not_matter(instructions: str, tmp_path: Path) -> None:
    """Two, four or eight numbers at a time, with fused operations and without."""
    code = f"""
import json
from proof_of_learning.numeric.portable import engine, selftest
from proof_of_learning.numeric.portable.native import build
build.COMPILE = tuple("-march={instructions}" if flag == "-march=native" else flag for flag in build.COMPILE)
print(json.dumps([engine.prepare().name, selftest.differing()]))
"""
    variables = {**os.environ, build.FOLDER: str(tmp_path / "cache"), engine.VARIABLE: "untried"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["native", []]


def test_what_is_native_has_a_plain_form() -> None:
    from proof_of_learning.numeric.portable.table import TABLE

    blocks = {"grid.total", "functions.apply", "functions.square_root", "normalisation.normalised",
              "products.matmul", "products.forward", "products.by_input", "products.by_weight"}  # fmt: skip
    assert {name for name in NATIVE if name not in TABLE and not name.startswith("_foreach_")} <= blocks


# ---- which engine runs ----------------------------------------------------------------------------------


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a new process, with a cache of its own. What is built is tiny, and taken for the kernels."""
    held = dict(IN_USE)
    IN_USE.clear()
    monkeypatch.setattr(engine, "_chosen", None)
    monkeypatch.delenv(engine.VARIABLE, raising=False)
    cache = tmp_path / "cache"
    monkeypatch.setenv(build.FOLDER, str(cache))
    monkeypatch.setattr(build, "SOURCES", ("small.cpp",))
    monkeypatch.setattr(build, "sources", lambda: {"small.cpp": b'extern "C" int small() { return 1; }\n'})
    monkeypatch.setattr(engine.calls, "load", lambda path: None)
    yield cache
    IN_USE.clear()
    IN_USE.update(held)


def has_compiler() -> bool:
    try:
        return bool(build.compiler())
    except build.UnavailableError:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler here")


def test_without_a_compiler_the_plain_engine_runs_with_the_published_bits(tmp_path: Path) -> None:
    code = ("import json; from proof_of_learning.numeric.portable import engine, selftest; runs = engine.prepare(); "
            "cases = selftest.cases(); from proof_of_learning.numeric.portable import using\n"
            "with using('portable'): found = {n: selftest.digest(cases[n]()) for n in ('mm 5 7 3', 'gelu', 'layer_norm')}\n"
            "print(json.dumps([runs.name, runs.reason, found]))")  # fmt: skip
    variables = {**os.environ, "PATH": str(tmp_path), build.FOLDER: str(tmp_path / "cache"), engine.VARIABLE: "auto"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    name, reason, found = json.loads(done.stdout)
    assert name == "plain" and "no C++ compiler" in reason
    assert found == {name: selftest.published()[name] for name in found}


def test_the_variable_decides(undecided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engine.VARIABLE, "plain")
    assert engine.prepare().name == "plain" and not undecided.exists()
    monkeypatch.setattr(engine, "_chosen", None)
    monkeypatch.setenv(engine.VARIABLE, "fast")
    with pytest.raises(NumericEnvironmentError, match=r"POL_PORTABLE_ENGINE=fast: expected plain, native or auto"):
        engine.prepare()
    monkeypatch.setenv(engine.VARIABLE, "native")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NumericEnvironmentError, match=r"no C\+\+ compiler"):
        engine.prepare()


@needs_compiler
def test_a_library_is_tried_once_and_then_taken(undecided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def trial() -> list[str]:
        tried.append(1)
        return []

    monkeypatch.setattr(engine, "_trial", trial)
    assert engine.prepare().name == "native" and IN_USE
    monkeypatch.setattr(engine, "_chosen", None)
    assert engine.prepare().name == "native"
    assert tried == [1]


@needs_compiler
def test_a_library_that_gives_other_bits_is_refused_with_a_warning(
    undecided: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "_trial", lambda: ["mm 5 7 3"])
    for _ in range(2):  # the second time without trying it again
        caplog.clear()
        monkeypatch.setattr(engine, "_chosen", None)
        with caplog.at_level(logging.WARNING):
            assert engine.prepare().name == "plain"
        assert not IN_USE and "mm 5 7 3" in caplog.text
        monkeypatch.setattr(engine, "_trial", list)


@native_only
def test_a_library_is_tried_in_a_process_of_its_own() -> None:
    assert engine._trial() == []


# ---- the cache ------------------------------------------------------------------------------------------


@pytest.fixture
def builds(undecided: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    real = build._built

    def counted(place: Path, name: str, program: str) -> build.Library:
        made.append(name)
        return real(place, name, program)

    monkeypatch.setattr(build, "_built", counted)
    return made


@needs_compiler
@pytest.mark.parametrize("damage", ["library", "record", "writable", "link", "cut"])
def test_a_cache_that_was_damaged_is_built_again(builds: list[str], tmp_path: Path, damage: str) -> None:
    first = build.find(build.compiler())
    build.remember(first, [])
    assert build.find(build.compiler()).differing == [] and len(builds) == 1
    record = first.path.with_suffix(".json")
    if damage == "library":
        first.path.chmod(0o600)
        first.path.write_bytes(first.path.read_bytes()[:-1] + b"x")
    elif damage == "record":
        record.write_text('{"library": 7}')
    elif damage == "writable":
        first.path.chmod(0o666)
    elif damage == "link":
        moved = tmp_path / "elsewhere.so"
        first.path.rename(moved)
        first.path.symlink_to(moved)
    else:
        record.unlink()
    again = build.find(build.compiler())
    assert len(builds) == 2 and again.differing is None and again.path == first.path
    assert not again.path.is_symlink()


@needs_compiler
def test_a_cache_that_others_may_write_to_is_refused(builds: list[str], undecided: Path) -> None:
    undecided.mkdir()
    for mode in (0o770, 0o757):
        undecided.chmod(mode)
        with pytest.raises(build.UnavailableError, match="others may write"):
            build.find(build.compiler())
    undecided.chmod(0o700)
    undecided.parent.chmod(0o777)
    with pytest.raises(build.UnavailableError, match="others may write"):
        build.find(build.compiler())
    undecided.parent.chmod(0o700)
    build.find(build.compiler())
    assert len(builds) == 1


@needs_compiler
def test_two_that_build_at_once_build_once(builds: list[str]) -> None:
    found: list[build.Library] = []
    threads = [threading.Thread(target=lambda: found.append(build.find(build.compiler()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and len({library.digest for library in found}) == 1 and len(found) == 4


@needs_compiler
def test_another_source_or_flag_is_another_library(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.find(build.compiler())
    monkeypatch.setattr(build, "COMPILE", (*build.COMPILE, "-DOTHER"))
    assert build.find(build.compiler()).path != first.path
    monkeypatch.setattr(build, "sources", lambda: {"small.cpp": b"nonsense"})
    with pytest.raises(build.UnavailableError, match="could not build the kernels"):
        build.find(build.compiler())
    assert not list(first.path.parent.glob("tmp*"))
