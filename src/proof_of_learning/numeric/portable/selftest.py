"""Whether portable arithmetic gives the published bits here: each entry of the table on fixed inputs, by digest.

What was published stands in ``selftest.json``. Inputs are made of integers, so that they are the same anywhere, and hold zeros, tiny,
huge and infinite numbers where the operation is defined for them.
"""

# mypy: disable-error-code="misc, no-untyped-call"
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proof_of_learning.numeric.portable import PORTABLE, using
from proof_of_learning.numeric.portable.table import plainly
from proof_of_learning.numeric.randomness import preserved, raw_words

PUBLISHED = "selftest.json"
Case = Callable[[], Any]


def numbers(seed: int, *shape: int, spread: int = 3) -> Tensor:
    """Float32 in (-2**spread, 2**spread), magnitudes spread over ``2 * spread`` powers of two."""
    count = int(np.prod(shape, dtype=np.int64))
    words = raw_words(seed, count)
    whole = (words >> np.uint64(40)).astype(np.int64) - (1 << 23)  # 24 bits, signed
    powers = (words & np.uint64(0xFFFFFFFF)).astype(np.int64) % (2 * spread) - spread
    values = np.ldexp(whole.astype(np.float64), powers - 22)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape).to(torch.get_default_device())


def integers(seed: int, high: int, *shape: int) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    found = torch.from_numpy((raw_words(seed, count) % np.uint64(high)).astype(np.int64))
    return found.reshape(shape).to(torch.get_default_device())


EXTREMES = (
    0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1.1754944e-38, 3.4028235e38, -3.4028235e38, float("inf"), float("-inf"), float("nan"),
    88.0, -88.0, -104.5, 1e-8, 0.5, 2.0, 20.0, -20.0, 0.75, 1e10, 65536.5, 3.1415927,
)  # fmt: skip


def _line(seed: int = 1) -> Tensor:
    return torch.cat([torch.tensor(EXTREMES), numbers(seed, 487, spread=6), numbers(seed + 1, 100, spread=30)])


def _gradients(call: Callable[..., Tensor], *inputs: Tensor, seed: int = 77) -> list[Tensor]:
    """The result, and what flows back to the floating-point inputs."""
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    found = call(*leaves)
    found.backward(numbers(seed, *found.shape))
    return [found, *(x.grad for x in leaves if x.grad is not None)]


def _optimized(make: Callable[[list[Tensor]], Any], steps: int = 4) -> list[Tensor]:
    weights = [numbers(5, 7, 9).requires_grad_(), numbers(6, 11).requires_grad_()]
    optimizer = make(weights)
    for step in range(steps):
        for place, weight in enumerate(weights):
            weight.grad = numbers(100 + 10 * step + place, *weight.shape)
        nn.utils.clip_grad_norm_(weights, 3.0)
        optimizer.step()
    return weights


def _drawn(call: Callable[[], Tensor]) -> Tensor:
    torch.default_generator.manual_seed(20)
    return call()


def _unary() -> Iterator[tuple[str, Case]]:
    names = ("exp", "expm1", "log", "log1p", "log2", "log10", "tanh", "sigmoid", "erf", "erfc", "sin", "cos", "sqrt", "rsqrt",
             "reciprocal")  # fmt: skip
    for name in names:
        yield name, lambda name=name: getattr(torch, name)(_line())
    smooth = {
        "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "softplus": F.softplus,
        "elu": F.elu, "logsigmoid": F.logsigmoid, "leaky_relu": F.leaky_relu, "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid, "mish": F.mish, "relu": F.relu, "selu": F.selu, "relu6": F.relu6, "softsign": F.softsign,
    }  # fmt: skip
    for name, call in smooth.items():
        yield name, lambda call=call: _gradients(call, torch.cat([_line(), numbers(9, 200, spread=2)]))
    for y in (2, 3, -1, 0.5, 1.7, -2.5, 7):
        yield f"pow {y}", lambda y=y: _line() ** y
    yield "pow of tensors", lambda: torch.pow(_line(), numbers(3, len(_line()), spread=4))


def _binary() -> Iterator[tuple[str, Case]]:
    pair = (lambda: _line(1), lambda: _line(30).flip(0))
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum,
        "add alpha": lambda x, y: torch.add(x, y, alpha=0.3), "sub alpha": lambda x, y: torch.sub(x, y, alpha=-0.7),
        "addcmul": lambda x, y: torch.addcmul(x, y, x, value=0.1), "addcdiv": lambda x, y: torch.addcdiv(x, y, x, value=0.1),
        "lerp": lambda x, y: torch.lerp(x, y, 0.9), "div by number": lambda x, y: x / 3 + y / 7,
        "where": lambda x, y: torch.where(x > y, x, y),
    }  # fmt: skip
    for name, call in calls.items():
        yield name, lambda call=call: call(pair[0](), pair[1]())


def _products() -> Iterator[tuple[str, Case]]:
    for m, k, n in ((5, 7, 3), (16, 600, 9), (4, 3000, 5), (3, 20000, 2)):
        yield (
            f"mm {m} {k} {n}",
            lambda m=m, k=k, n=n: _gradients(torch.mm, numbers(1, m, k), numbers(2, k, n, spread=9)),
        )
    yield "mm transposed", lambda: torch.mm(numbers(1, 40, 13).t(), numbers(2, 9, 40).t())
    yield "mm of extremes", lambda: torch.mm(numbers(1, 24, 24, spread=60), torch.diag(torch.tensor(EXTREMES)))
    yield "addmm", lambda: torch.addmm(numbers(3, 6), numbers(1, 5, 7), numbers(2, 7, 6), beta=0.5, alpha=1.3)
    yield "bmm", lambda: _gradients(torch.bmm, numbers(1, 3, 5, 7), numbers(2, 3, 7, 4))
    yield "linear", lambda: _gradients(F.linear, numbers(1, 2, 5, 7), numbers(2, 6, 7), numbers(3, 6))
    for name, options in (
        ("plain", {"padding": 1}), ("strided", {"stride": 2, "padding": (2, 1)}), ("dilated", {"dilation": 2, "padding": 2}),
        ("grouped", {"groups": 2, "padding": 1}), ("depthwise", {"groups": 4, "stride": (1, 2)}),
    ):  # fmt: skip
        yield f"conv2d {name}", lambda options=options: _gradients(
            lambda x, w, b: F.conv2d(x, w, b, **options),
            numbers(1, 3, 4, 9, 8), numbers(2, 8, 4 // options.get("groups", 1), 3, 3), numbers(3, 8),
        )  # fmt: skip
        yield f"conv_transpose2d {name}", lambda options=options: _gradients(
            lambda x, w, b: F.conv_transpose2d(x, w, b, **{**options, "padding": 1}),
            numbers(1, 3, 4, 5, 6), numbers(2, 4, 8 // options.get("groups", 1), 3, 3), numbers(3, 8),
        )  # fmt: skip
    yield "conv1d", lambda: _gradients(F.conv1d, numbers(1, 3, 4, 17), numbers(2, 6, 4, 5))
    yield "conv3d", lambda: _gradients(F.conv3d, numbers(1, 2, 3, 6, 5, 4), numbers(2, 4, 3, 3, 3, 2))
    yield (
        "conv2d wide",
        lambda: _gradients(lambda x, w: F.conv2d(x, w, padding=1), numbers(1, 9, 2, 40, 41), numbers(2, 3, 2, 3, 3)),
    )
    yield "attention", lambda: _gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        numbers(1, 2, 2, 6, 8), numbers(2, 2, 2, 6, 8), numbers(3, 2, 2, 6, 8),
    )  # fmt: skip


def _sums() -> Iterator[tuple[str, Case]]:
    wide = lambda: numbers(1, 6, 5, 40, spread=30)  # noqa: E731
    calls: dict[str, Callable[[Tensor], Any]] = {
        "sum": torch.sum, "sum of rows": lambda x: x.sum(-1), "sum of columns": lambda x: x.sum((0, 2), keepdim=True),
        "mean": torch.mean, "mean of rows": lambda x: x.mean((1, 2)), "var": lambda x: x.var(2), "std": lambda x: x.std(),
        "norm": lambda x: x.norm(), "norm of rows": lambda x: torch.linalg.vector_norm(x, dim=1), "norm 1": lambda x: x.norm(1),
        "cumsum": lambda x: x.cumsum(1), "softmax": lambda x: torch.softmax(x.clamp(-30, 30), -1),
        "log_softmax": lambda x: torch.log_softmax(x.clamp(-30, 30), 1), "logsumexp": lambda x: torch.logsumexp(x.clamp(-30, 30), 2),
        "max": lambda x: x.max(1)[0], "index": lambda x: x[torch.tensor([0, 3, 3, 1, 0])],
    }  # fmt: skip
    for name, call in calls.items():
        yield name, lambda call=call: _gradients(call, wide())
    yield (
        "sum of extremes",
        lambda: torch.cat([torch.tensor(EXTREMES)[:9].sum()[None], torch.tensor(EXTREMES).sum()[None]]),
    )
    yield "argmax", lambda: numbers(1, 8, 50).round().argmax(1)
    yield "topk", lambda: list(numbers(1, 8, 50).round().topk(9))
    table, places = numbers(1, 13, 8, spread=9), integers(2, 13, 6, 11)
    yield "embedding", lambda: _gradients(lambda w: F.embedding(places, w, padding_idx=3), table)
    yield "index_add", lambda: table.index_add(0, places[0], numbers(4, 11, 8, spread=9), alpha=0.3)
    yield "scatter_add", lambda: table.scatter_add(0, places[:, :8], numbers(4, 6, 8, spread=9))
    yield "gather", lambda: _gradients(lambda x: x.gather(0, places[:, :8]), table)
    classes = integers(3, 8, 13)
    for reduction in ("mean", "sum", "none"):
        yield (
            f"cross_entropy {reduction}",
            lambda reduction=reduction: _gradients(
                lambda x: F.cross_entropy(x, classes, reduction=reduction, ignore_index=2), table
            ),
        )
    yield (
        "cross_entropy smoothed",
        lambda: _gradients(lambda x: F.cross_entropy(x, classes, numbers(8, 8).abs(), label_smoothing=0.1), table),
    )
    yield (
        "cross_entropy of images",
        lambda: _gradients(lambda x: F.cross_entropy(x, integers(3, 5, 2, 4, 3)), numbers(4, 2, 5, 4, 3)),
    )
    other = lambda: numbers(14, 13, 8)  # noqa: E731
    for name, loss in {
        "mse_loss": F.mse_loss, "l1_loss": F.l1_loss, "smooth_l1_loss": F.smooth_l1_loss, "huber_loss": F.huber_loss,
        "binary_cross_entropy_with_logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
        "binary_cross_entropy": lambda x, y: F.binary_cross_entropy((x / 8).sigmoid(), y.sigmoid()),
        "kl_div": lambda x, y: F.kl_div(x, y.softmax(1), reduction="batchmean"),
        "cosine_similarity": lambda x, y: F.cosine_similarity(x, y),
    }.items():  # fmt: skip
        yield name, lambda loss=loss: _gradients(loss, table, other())


def _norms() -> Iterator[tuple[str, Case]]:
    def batch(training: bool) -> list[Tensor]:
        mean, var = numbers(5, 6), numbers(6, 6).abs()
        return [
            *_gradients(
                lambda x, w, b: F.batch_norm(x, mean, var, w, b, training), numbers(1, 4, 6, 5, 3), numbers(2, 6), numbers(3, 6)
            ),
            mean, var,
        ]  # fmt: skip

    yield "batch_norm", lambda: batch(True)
    yield "batch_norm in use", lambda: batch(False)
    yield (
        "layer_norm",
        lambda: _gradients(
            lambda x, w, b: F.layer_norm(x, (8,), w, b), numbers(1, 3, 5, 8), numbers(2, 8), numbers(3, 8)
        ),
    )
    yield "layer_norm of planes", lambda: _gradients(lambda x: F.layer_norm(x, (5, 8)), numbers(1, 3, 5, 8))
    yield (
        "group_norm",
        lambda: _gradients(lambda x, w, b: F.group_norm(x, 2, w, b), numbers(1, 3, 6, 4), numbers(2, 6), numbers(3, 6)),
    )
    yield "rms_norm", lambda: _gradients(lambda x, w: F.rms_norm(x, (8,), w), numbers(1, 3, 8), numbers(2, 8))
    image = lambda: numbers(1, 2, 3, 8, 8)  # noqa: E731
    for name, call in {
        "max_pool2d": lambda x: F.max_pool2d(x, 2), "max_pool2d overlapping": lambda x: F.max_pool2d(x.round(), 3, 2, 1),
        "avg_pool2d": lambda x: F.avg_pool2d(x, 2), "avg_pool2d overlapping": lambda x: F.avg_pool2d(x, 3, 2, 1),
        "avg_pool2d uncounted": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
        "adaptive_avg_pool2d of all": lambda x: F.adaptive_avg_pool2d(x, 1),
        "pad": lambda x: F.pad(x, (1, 2, 0, 1)), "pad by reflection": lambda x: F.pad(x, (2, 2, 1, 1), mode="reflect"),
        "interpolate": lambda x: F.interpolate(x, scale_factor=2), "unfold": lambda x: F.unfold(x, 3),
        "max_pool1d": lambda x: F.max_pool1d(x[0], 2),
    }.items():  # fmt: skip
        yield name, lambda call=call: _gradients(call, image())


def _draws() -> Iterator[tuple[str, Case]]:
    blank = lambda: torch.empty(33, 7)  # noqa: E731
    calls: dict[str, Callable[[], Tensor]] = {
        "dropout": lambda: F.dropout(numbers(1, 33, 7), 0.3), "dropout2d": lambda: F.dropout2d(numbers(1, 3, 5, 4, 4), 0.3),
        "bernoulli": lambda: torch.bernoulli(numbers(1, 33, 7).abs().clamp(max=1)), "bernoulli_": lambda: blank().bernoulli_(0.2),
        "uniform_": lambda: blank().uniform_(-0.3, 0.7), "normal_": lambda: blank().normal_(0.1, 2.0), "rand": lambda: torch.rand(33),
        "randn": lambda: torch.randn(5, 9), "randint": lambda: torch.randint(3, 90, (40,)), "randperm": lambda: torch.randperm(50),
        "exponential_": lambda: blank().exponential_(1.5), "random_": lambda: torch.empty(40, dtype=torch.int64).random_(),
        "kaiming_uniform_": lambda: nn.init.kaiming_uniform_(blank()), "xavier_normal_": lambda: nn.init.xavier_normal_(blank()),
        "own generator": lambda: torch.rand(9, generator=torch.Generator().manual_seed(5)),
    }  # fmt: skip
    for name, call in calls.items():
        yield name, lambda call=call: _drawn(call)


def _training() -> Iterator[tuple[str, Case]]:
    optimizers: dict[str, Callable[[list[Tensor]], Any]] = {
        "SGD": lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
        "Adam": lambda w: torch.optim.Adam(w, 0.01, amsgrad=True), "AdamW": lambda w: torch.optim.AdamW(w, 0.01),
        "AdamW foreach": lambda w: torch.optim.AdamW(w, 0.01, foreach=True), "NAdam": lambda w: torch.optim.NAdam(w, 0.01),
        "SGD foreach": lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, foreach=True),
        "RMSprop": lambda w: torch.optim.RMSprop(w, 0.01, momentum=0.5, centered=True),
        "Adagrad": lambda w: torch.optim.Adagrad(w, 0.1), "Adadelta": lambda w: torch.optim.Adadelta(w, 0.5),
        "Adamax": lambda w: torch.optim.Adamax(w, 0.01),
    }  # fmt: skip
    for name, make in optimizers.items():
        yield name, lambda make=make: _optimized(make)

    def module(make: Callable[[], nn.Module], *shape: int) -> list[Tensor]:
        made = make()
        with torch.no_grad():
            for place, parameter in enumerate(made.parameters()):
                parameter.copy_(numbers(30 + place, *parameter.shape, spread=2) * 0.25)
        x = numbers(1, *shape).requires_grad_()
        found = made(x)
        found = found[0] if isinstance(found, tuple) else found
        found.backward(numbers(2, *found.shape))
        return [found, *(p.grad for p in made.parameters() if p.grad is not None)]

    yield "LSTM", lambda: module(lambda: nn.LSTM(5, 6, batch_first=True), 3, 4, 5)
    yield "GRU", lambda: module(lambda: nn.GRU(5, 6), 3, 4, 5)
    yield (
        "Transformer",
        lambda: module(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, 5, 8),
    )


def cases() -> dict[str, Case]:
    """What is tried, by name."""
    parts = (_unary, _binary, _products, _sums, _norms, _draws, _training)
    return {name: case for part in parts for name, case in part()}


def digest(found: Any) -> str:
    """SHA-256 of the numbers (the beginning, in hex); all NaN count as one."""
    hashed = hashlib.sha256()
    for tensor in found if isinstance(found, Sequence) else [found]:
        value = tensor.detach().cpu().contiguous()  # a GPU writes NaN with other bits
        if value.is_floating_point():
            value = torch.where(value != value, torch.full_like(value, float("nan")).abs(), value)
        hashed.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    return hashed.hexdigest()[:16]


def digests(device: str = "cpu", names: Collection[str] | None = None) -> dict[str, str]:
    """Of each case (or of those named) what this machine gives on a device; a word instead where it gives nothing."""
    found = {}
    torch.empty(0, device=device)  # starts it, so that its engine is chosen
    with preserved(), torch.device(device):
        for name, case in cases().items():
            if names is not None and name not in names:
                continue
            try:
                with torch.enable_grad(), using(PORTABLE):
                    result = case()
                found[name] = digest(result)
            except Exception as error:  # whatever goes wrong here is this machine's
                found[name] = f"failed: {type(error).__name__}: {error}"[:200]
    return found


def published() -> dict[str, str]:
    """What the definitions give."""
    return json.loads(files(__package__).joinpath(PUBLISHED).read_text())  # type: ignore[no-any-return]


def differing(device: str = "cpu") -> list[str]:
    """The names of the cases that give other bits here, on a device, than were published."""
    return unlike(digests(device))


def unlike(found: Mapping[str, str]) -> list[str]:
    """The names of the cases whose digests, as :func:`digests` gives them, are not those published."""
    wanted = published()
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def engines_differ(device: str) -> list[str]:
    """The names of the cases in which the engine that is in use gives other bits on a device than the plain one there.

    Which operations a backward pass consists of is decided by PyTorch's release, so that both may differ from what was published.
    """
    found = digests(device)
    names = unlike(found)
    with plainly():
        plain = digests(device, names)
    return [name for name in names if found.get(name) != plain.get(name)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(engines_differ(sys.argv[1]) if len(sys.argv) > 1 else differing()))
