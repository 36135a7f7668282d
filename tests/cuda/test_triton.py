"""The kernels for CUDA give the plain engine's bits: each on shapes, layouts and extremes that take its different ways.

Skipped without a CUDA device. Where Triton is installed they run on a CPU too, slowly, with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from proof_of_learning.numeric.portable import PORTABLE, engine, table, using
from proof_of_learning.numeric.portable.selftest import EXTREMES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available() and not INTERPRETED, reason="needs a CUDA device")

aten = torch.ops.aten


@pytest.fixture(scope="module")
def launched() -> Iterator[Any]:
    """What kernels were launched, with the engine in use."""
    held = dict(table.IN_USE)
    if INTERPRETED:
        engine.prepare()  # its entries come after those below
        for name in engine._ENTRIES_FOR_CUDA:
            importlib.import_module(f"proof_of_learning.numeric.portable.cuda.{name}")
        table.use(table.CUDA)
    else:
        torch.empty(0, device=DEVICE)
        assert engine.prepare_for_cuda().name == "native", engine.prepare_for_cuda().reason
    launching: Any = importlib.import_module("proof_of_learning.numeric.portable.cuda.launching")
    launching.COUNTING = True
    yield launching.LAUNCHED
    launching.COUNTING = False
    if INTERPRETED:
        table.IN_USE.clear()
        table.IN_USE.update(held)


_drawn = itertools.count(1)


def draw(*shape: int, spread: int = 6) -> Tensor:
    """Float32 of magnitudes over ``2 * spread`` powers of two."""
    generator = torch.Generator().manual_seed(next(_drawn))
    x = torch.randn(shape, generator=generator)
    return (x * 2.0 ** torch.randint(-spread, spread, shape, generator=generator)).to(DEVICE)


def extreme(*shape: int) -> Tensor:
    """The same, with infinities, NaN, the largest and denormal numbers here and there."""
    x = draw(*shape)
    flat = x.view(-1)
    flat[:: max(1, len(flat) // len(EXTREMES))][: len(EXTREMES)] = torch.tensor(EXTREMES, device=DEVICE)[: len(flat)]
    return x


def tiny(*shape: int) -> Tensor:
    return draw(*shape) * 2.0**-135


def same(one: Any, other: Any) -> bool:
    """Equal bits, whatever those of a NaN."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    as_bits = torch.int32 if one.dtype is torch.float32 else torch.int64
    return bool(((one.view(as_bits) == other.view(as_bits)) | ((one != one) & (other != other))).all())


def check(launched: Any, kernel: str, call: Callable[..., Any], *inputs: Any) -> None:
    """Both engines agree on ``call``, and the kernel was used."""

    def own(given: Any) -> Any:
        return (
            [x.clone() for x in given]
            if isinstance(given, list)
            else given.clone()
            if isinstance(given, Tensor)
            else given
        )

    with using(PORTABLE), table.plainly():
        torch.default_generator.manual_seed(3)
        wanted = call(*[own(x) if x is None or not isinstance(x, Tensor) or x.is_contiguous() else x for x in inputs])
    before = launched[kernel]
    with using(PORTABLE):
        torch.default_generator.manual_seed(3)
        found = call(*[own(x) if x is None or not isinstance(x, Tensor) or x.is_contiguous() else x for x in inputs])
    assert launched[kernel] > before, f"{kernel} was not launched"
    assert same(wanted, found), f"{kernel} gives other bits"


MAKERS = [draw, extreme, tiny]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(3, 5, 4), (70, 33, 130), (17, 2100, 9), (300, 64, 48), (5, 9000, 3)])
def test_products(launched: Any, make: Callable[..., Tensor], shape: tuple[int, int, int]) -> None:
    m, k, n = shape if DEVICE == "cuda" else (shape[0], min(shape[1], 2100), shape[2])
    a, b, bias = make(m, k), draw(k, n), draw(n)
    check(launched, "quantise_kernel", torch.mm, a, b)
    check(launched, "quantise_kernel", torch.mm, draw(k, m).t(), make(n, k).t())
    check(launched, "finish_product_kernel", torch.addmm, bias, a, b)


@pytest.mark.parametrize("make", MAKERS)
def test_products_of_batches(launched: Any, make: Callable[..., Tensor]) -> None:
    heads = make(6, 2, 4 * 8).view(6, 8, 8).transpose(0, 1)  # as attention has them: rows of one head lie apart
    check(launched, "quantise_kernel", torch.bmm, heads, draw(8, 8, 5))
    check(launched, "quantise_kernel", torch.bmm, draw(8, 7, 6).transpose(1, 2), make(8, 9, 7).transpose(1, 2))
    check(launched, "quantise_kernel", torch.bmm, draw(8, 5, 6), heads[:, :6])


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_linear_layers_take_one_step(launched: Any) -> None:
    def both(x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Any:
        leaves = [t.requires_grad_() for t in (x, w, b)]
        y = F.linear(x, w, b)
        assert y.grad_fn is not None
        assert y.grad_fn.name() == "LinearBackward"
        y.backward(g)
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    check(launched, "quantise_kernel", both, draw(4, 30, 20), draw(7, 20), draw(7), draw(4, 30, 7))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (33, 70, 1), (4, 64, 200), (3000, 40, 2), (2, 3, 9000)])
def test_sums(launched: Any, make: Callable[..., Tensor], shape: tuple[int, int, int]) -> None:
    x = make(*shape)
    for dims in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        check(launched, "sum_kernel", lambda x, dims=dims: x.sum(dims, keepdim=True), x)
        check(launched, "sum_kernel", lambda x, dims=dims: torch.linalg.vector_norm(x, 2, dims), x)
    check(launched, "sum_kernel", torch.sum, x.transpose(0, 2))
    check(launched, "sum_kernel", torch.mean, x)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "log2", "log10", "tanh", "sigmoid", "erf", "erfc"])
def test_functions(launched: Any, name: str, make: Callable[..., Tensor]) -> None:
    check(launched, "function_kernel", getattr(torch, name), make(1500))
    check(launched, "function_kernel", getattr(torch, name), make(30, 20).abs().t())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("call", [F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu, F.logsigmoid])
def test_functions_and_their_gradients(launched: Any, call: Callable[..., Tensor], make: Callable[..., Tensor]) -> None:
    def both(x: Tensor, g: Tensor) -> Any:
        x.requires_grad_()
        y = call(x)
        y.backward(g)
        return [y.detach(), x.grad]

    check(launched, "function_kernel", both, make(1500), draw(1500))


def test_square_roots(launched: Any) -> None:
    check(launched, "one_kernel", torch.sqrt, torch.cat([extreme(3000).abs(), tiny(3000).abs(), draw(3000)]))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(5, 3), (40, 64), (3, 1000), (2, 5000)])
def test_softmax(launched: Any, make: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    x = make(*shape)
    x[0] = -float("inf")
    for call in (torch.softmax, torch.log_softmax, aten._safe_softmax.default):
        check(launched, "softmax_kernel", lambda x, call=call: call(x, -1), x)
    y, g = torch.rand(shape, device=DEVICE), make(*shape)
    for gradient in (aten._softmax_backward_data.default, aten._log_softmax_backward_data.default):
        check(launched, "softmax_backward_kernel", lambda g, y, f=gradient: f(g, y, 1, torch.float32), g, y)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(6, 3), (40, 64), (3, 1000), (300, 128)])
def test_layer_norm(launched: Any, make: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    x, w, b = make(*shape), draw(shape[1]), draw(shape[1])
    for weight, bias in ((w, b), (None, None)):
        call = lambda x, w, b: aten.native_layer_norm.default(x, [shape[1]], w, b, 1e-5)  # noqa: E731
        check(launched, "layer_norm_kernel", call, x, weight, bias)
        with using(PORTABLE):
            _, mean, inverse = call(x, weight, bias)
        mask = [True, weight is not None, bias is not None]
        backward = lambda g, x, m, i, w, b, mask=mask: aten.native_layer_norm_backward.default(  # noqa: E731
            g, x, [shape[1]], m, i, w, b, mask
        )
        check(launched, "layer_norm_backward_kernel", backward, make(*shape), x, mean, inverse, weight, bias)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (9, 2), (2, 3, 70, 70)])
def test_batch_norm(launched: Any, make: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    c = shape[1]

    def both(x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor, var: Tensor, g: Tensor) -> Any:
        leaves = [t for t in (x, w, b) if t is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        y = F.batch_norm(x, mean, var, w, b, True, 0.1, 1e-5)
        y.backward(g)
        return [y.detach(), mean, var, *(leaf.grad for leaf in leaves)]

    for weight, bias in ((draw(c), draw(c)), (None, None)):
        given = (make(*shape), weight, bias, draw(c), draw(c).abs(), draw(*shape))
        check(launched, "batch_norm_kernel", both, *given)
        check(launched, "batch_norm_backward_kernel", both, *given)


CONVOLUTIONS = [
    {"stride": s, "padding": p, "dilation": d, "groups": g} for s, p, d, g in
    ((1, 1, 1, 1), (2, 1, 1, 1), (1, 0, 2, 2), ((2, 1), (2, 0), 1, 4), (3, 2, 2, 1))
]  # fmt: skip


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("make", [draw, tiny])
def test_convolutions(launched: Any, options: dict[str, Any], make: Callable[..., Tensor]) -> None:
    def both(x: Tensor, w: Tensor, b: Tensor) -> Any:
        leaves = [t.requires_grad_() for t in (x, w, b)]
        y = F.conv2d(x, w, b, **options)
        y.backward(torch.ones_like(y) * 0.7)
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    x, w, b = make(3, 4, 13, 12), draw(8, 4 // options["groups"], 3, 3), draw(8)
    check(launched, "windows_kernel", both, x, w, b)
    check(launched, "stretches_kernel", both, x, w, b)


def test_convolutions_of_many_terms(launched: Any) -> None:
    """Sums that are cut into stretches, and a sample with more places than one stretch may have."""

    def both(x: Tensor, w: Tensor) -> Any:
        leaves = [t.requires_grad_() for t in (x, w)]
        y = F.conv2d(x, w, padding=1)
        y.backward(y.detach() * 0.3)
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    if DEVICE == "cuda":
        check(launched, "windows_kernel", both, draw(2, 1000, 6, 5), draw(3, 1000, 3, 3))
        check(launched, "windows_kernel", both, draw(2, 3, 6, 5), draw(1000, 3, 3, 3))
        check(launched, "windows_kernel", both, draw(2, 2, 100, 101), draw(3, 2, 3, 3))
        check(launched, "windows_kernel", both, draw(30, 2, 30, 31), draw(3, 2, 3, 3))
    check(launched, "windows_kernel", both, draw(9, 1, 31, 31), draw(2, 1, 3, 3))
    check(launched, "windows_kernel", lambda x, w: F.conv1d(x, w, stride=2), draw(3, 4, 17), draw(6, 4, 5))


def test_embeddings(launched: Any) -> None:
    def gradient(g: Tensor, places: Tensor) -> Tensor:
        return aten.embedding_dense_backward.default(g, places, 13, -1, False)

    for make, n in itertools.product(MAKERS, (1, 50, 1500)):
        places = torch.randint(0, 13, (n,), device=DEVICE)
        check(launched, "gridded_kernel", gradient, make(n, 24), places)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout(launched: Any, p: float) -> None:
    for shape in ((1,), (7,), (33, 70), (4100,)):
        check(launched, "drawn_kernel", lambda x: x.bernoulli_(1 - p), draw(*shape))
        check(launched, "drawn_kernel", lambda x: torch.native_dropout(x, p, True), extreme(*shape))
        kept = torch.rand(shape, device=DEVICE) > 0.5
        backward = lambda g, kept: aten.native_dropout_backward.default(g, kept, 1 / (1 - p))  # noqa: E731
        check(launched, "kept_kernel", backward, extreme(*shape), kept)


def lists(make: Callable[..., Tensor]) -> list[Tensor]:
    return [make(5), make(40, 30), make(1), make(3000)]


@pytest.mark.parametrize("make", MAKERS)
def test_lists(launched: Any, make: Callable[..., Tensor]) -> None:
    x, y, z = lists(make), lists(draw), lists(draw)
    numbers = [0.3, -1.7, 5.0, 1e-3]
    calls: dict[str, Callable[..., Any]] = {
        "add": lambda x, y, z: torch._foreach_add(x, y), "add alpha": lambda x, y, z: torch._foreach_add(x, y, alpha=0.3),
        "add number": lambda x, y, z: torch._foreach_add(x, 1e-8), "mul": lambda x, y, z: torch._foreach_mul(x, y),
        "mul number": lambda x, y, z: torch._foreach_mul(x, 0.9), "mul tensor": lambda x, y, z: torch._foreach_mul(x, y[2].squeeze()),
        "div": lambda x, y, z: torch._foreach_div(x, y), "div numbers": lambda x, y, z: torch._foreach_div(x, numbers),
        "addcmul": lambda x, y, z: torch._foreach_addcmul(x, y, z, 0.1),
        "addcdiv": lambda x, y, z: torch._foreach_addcdiv(x, y, z, numbers),
        "lerp": lambda x, y, z: torch._foreach_lerp(x, y, 0.1), "sqrt": lambda x, y, z: torch._foreach_sqrt(x),
    }  # fmt: skip
    for call in calls.values():
        check(launched, "lists_kernel", call, x, y, z)

    def into(x: list[Tensor], y: list[Tensor], z: list[Tensor]) -> list[Tensor]:
        torch._foreach_mul_(x, 0.9)
        torch._foreach_add_(x, y, alpha=-0.05)
        torch._foreach_addcdiv_(x, y, z, -0.1)
        torch._foreach_addcmul_(x, x, y, 0.5)
        return x

    check(launched, "lists_kernel", into, x, y, z)
    check(launched, "norm_sum_kernel", lambda x: torch._foreach_norm(x, 2.0), x)


@pytest.mark.parametrize("make", MAKERS)
def test_operations_of_several_roundings(launched: Any, make: Callable[..., Tensor]) -> None:
    x, y, z = make(50, 41), draw(50, 41), draw(50, 41)
    for call in (
        lambda x, y, z: torch.add(x, y, alpha=0.3), lambda x, y, z: torch.addcmul(x, y, z, value=0.1),
        lambda x, y, z: torch.addcdiv(x, y, z, value=0.1), lambda x, y, z: torch.lerp(x, y, 0.9), lambda x, y, z: x / 3,
        lambda x, y, z: x.div_(7), lambda x, y, z: x.addcdiv_(y, z, value=-0.3),
    ):  # fmt: skip
        check(launched, "one_kernel", call, x, y, z)


def test_what_kernels_do_not_take_is_left_to_the_plain_engine(launched: Any) -> None:
    for call in (
        lambda: torch.empty(0, 5, device=DEVICE).sum(0),
        lambda: torch.mm(torch.ones(3, 0, device=DEVICE), torch.ones(0, 4, device=DEVICE)),
        lambda: draw(6, 5).double().sum(), lambda: torch.softmax(draw(5, 6), 0), lambda: draw(2, 9000).softmax(-1),
        lambda: F.conv3d(torch.ones(1, 1, 4, 4, 4, device=DEVICE), torch.ones(1, 1, 2, 2, 2, device=DEVICE)),
    ):  # fmt: skip
        with using(PORTABLE):
            assert isinstance(call(), Tensor)
