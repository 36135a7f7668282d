"""Random numbers: from a counter-based generator in integers, keyed by the next word of the generator that was asked.

PyTorch's CPU generator is an integer machine whose words are the same everywhere; what it makes of them by floating point is not. So
each operation takes one word from it (63 bits) as the key of Philox4x64 (numeric/randomness.py), whose words belong to the
numbers in order. What seeds, saves and restores generators stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from proof_of_learning.numeric.portable import functions
from proof_of_learning.numeric.portable.elementwise import divide
from proof_of_learning.numeric.portable.table import RefusedError, portable, single
from proof_of_learning.numeric.randomness import permutation, raw_words

aten = torch.ops.aten


def key_of(generator: Generator | None) -> int:
    """The next word of a generator (63 bits), by which the numbers of one operation are drawn."""
    if generator is not None and generator.device.type != "cpu":
        raise RefusedError("a generator on an accelerator; draw from one on the CPU")
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def _words(count: int, generator: Generator | None) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """``count`` words of 32 bits: the halves of Philox's words, the lower first."""
    return raw_words(key_of(generator), -(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]


def _shaped(values: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(values).reshape(like.shape).to(like.device)


def _fractions(x: Tensor, generator: Generator | None) -> Tensor:
    """Multiples of 2**-24 in [0, 1), float32."""
    words = _words(x.numel(), generator) >> np.uint32(8)
    return _shaped(words.astype(np.float32) * np.float32(2.0**-24), x)


def _hits(x: Tensor, p: float, generator: Generator | None) -> Tensor:
    """True with probability ``p``, to the nearest multiple of 2**-32."""
    if not 0 <= p <= 1:
        raise RefusedError(f"a probability of {p}")
    limit = round(p * 2**32)
    words = _words(x.numel(), generator)
    return _shaped(words < np.uint32(limit) if limit < 2**32 else np.ones(x.numel(), bool), x)


def _floating(x: Tensor, what: str) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise RefusedError(f"{what} of {str(x.dtype).removeprefix('torch.')} numbers")


@portable("native_dropout.default")
def _native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = _hits(x, 1 - p, None)
    return x * _scaled(kept, 1 - p, x), kept


def _scaled(kept: Tensor, share: float, like: Tensor) -> Tensor:
    """What numbers are multiplied by: as a CPU's dropout has it, which is composed of `bernoulli_`, `div_` and a product."""
    return kept.to(like.dtype) if share == 0 else divide(kept.to(like.dtype), share)


@portable("native_dropout_backward.default")
def _native_dropout_backward(g: Tensor, kept: Tensor, scale: float) -> Tensor:
    return g * _scaled(kept, 1 / scale if scale else 0.0, g)


@portable("bernoulli_.float")
def _bernoulli_into(x: Tensor, p: float = 0.5, *, generator: Generator | None = None) -> Tensor:
    return x.copy_(_hits(x, p, generator))


@portable("bernoulli.p")
def _bernoulli_p(x: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    return _hits(x, p, generator).to(x.dtype)


@portable("bernoulli.default")
def _bernoulli(x: Tensor, *, generator: Generator | None = None) -> Tensor:
    limits = (x.to(torch.float64) * 2.0**32).round().to(torch.int64)
    words = _shaped(_words(x.numel(), generator).astype(np.int64), x)
    return (words < limits).to(x.dtype)


@portable("bernoulli_.Tensor")
def _bernoulli_of(x: Tensor, p: Tensor, *, generator: Generator | None = None) -> Tensor:
    return x.copy_(_bernoulli(p.expand(x.shape), generator=generator))


@portable("uniform_.default")
def _uniform_into(x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    _floating(x, "uniform_")
    return x.copy_(_fractions(x, generator).mul_(high - low).add_(low))


def _normals(x: Tensor, generator: Generator | None) -> Tensor:
    """Box and Muller: of each two fractions, the first (plus 2**-24, so that it is not 0) gives the length, the other the angle."""
    n = x.numel()
    both = _words(2 * n, generator) >> np.uint32(8)
    first = torch.from_numpy((both[:n].astype(np.float32) + np.float32(1)) * np.float32(2.0**-24))
    angle = torch.from_numpy(both[n:].astype(np.float32) * np.float32(2.0**-24))
    length = functions.square_root(functions.apply(functions.log, first).mul_(-2))
    turned = functions.apply(lambda a: functions.cos(a.mul_(2 * math.pi)), angle)
    return length.mul_(turned).reshape(x.shape).to(x.device)


@portable("normal_.default")
def _normal_into(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    _floating(x, "normal_")
    return x.copy_(_normals(x, generator).mul_(std).add_(mean))


@portable("normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor")
def _normal(mean: Any, std: Any = 1.0, *, generator: Generator | None = None) -> Tensor:
    like = mean if isinstance(mean, Tensor) else std
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        mean, std = torch.broadcast_tensors(mean, std)  # type: ignore[no-untyped-call]
    return _normals(single(like, "normal"), generator) * std + mean  # type: ignore[no-any-return]


@portable("normal.float_float")
def _normal_of(
    mean: float, std: float, size: Sequence[int], *, generator: Generator | None = None, **options: Any
) -> Tensor:
    return _normal_into(torch.empty(size, **options), mean, std, generator=generator)


@portable("rand.default", "rand.generator")
def _rand(size: Sequence[int], *, generator: Generator | None = None, **options: Any) -> Tensor:
    return _uniform_into(torch.empty(size, **options), generator=generator)


@portable("randn.default", "randn.generator")
def _randn(size: Sequence[int], *, generator: Generator | None = None, **options: Any) -> Tensor:
    return _normal_into(torch.empty(size, **options), generator=generator)


@portable("rand_like.default")
def _rand_like(x: Tensor, **options: Any) -> Tensor:
    return _uniform_into(torch.empty_like(x, **options))


@portable("randn_like.default")
def _randn_like(x: Tensor, **options: Any) -> Tensor:
    return _normal_into(torch.empty_like(x, **options))


def _integers(x: Tensor, low: int, high: int, generator: Generator | None) -> Tensor:
    if not low < high:
        raise RefusedError(f"random integers from {low} up to {high}")
    words = raw_words(key_of(generator), x.numel())
    return _shaped((words % np.uint64(high - low)).astype(np.int64) + low, x)


@portable("randint.default", "randint.generator")
def _randint(high: int, size: Sequence[int], *, generator: Generator | None = None, **options: Any) -> Tensor:
    return _randint_from(0, high, size, generator=generator, **options)


@portable("randint.low", "randint.low_generator")
def _randint_from(
    low: int, high: int, size: Sequence[int], *, generator: Generator | None = None, **options: Any
) -> Tensor:
    options["dtype"] = options.get("dtype") or torch.int64
    x = torch.empty(size, **options)
    return x.copy_(_integers(x, low, high, generator))


@portable("randint_like.default")
def _randint_like(x: Tensor, high: int, **options: Any) -> Tensor:
    x = torch.empty_like(x, **options)
    return x.copy_(_integers(x, 0, high, None))


@portable("random_.from")
def _random_from(x: Tensor, low: int, high: int | None, *, generator: Generator | None = None) -> Tensor:
    return x.copy_(_integers(x, low, 2**63 - 1 if high is None else high, generator))


@portable("random_.to")
def _random_to(x: Tensor, high: int, *, generator: Generator | None = None) -> Tensor:
    return _random_from(x, 0, high, generator=generator)


@portable("random_.default")
def _random(x: Tensor, *, generator: Generator | None = None) -> Tensor:
    most = {torch.float32: 2**24, torch.float64: 2**53, torch.bool: 1}.get(x.dtype)
    return _random_from(x, 0, torch.iinfo(x.dtype).max if most is None else most + 1, generator=generator)


@portable("randperm.default", "randperm.generator")
def _randperm(n: int, *, generator: Generator | None = None, **options: Any) -> Tensor:
    order = torch.from_numpy(permutation(key_of(generator), n))
    return order.to(dtype=options.get("dtype") or torch.int64, device=options.get("device"))


@portable("exponential_.default")
def _exponential_into(x: Tensor, rate: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    _floating(x, "exponential_")
    fractions = _fractions(x, generator).add_(2.0**-25)
    return x.copy_(functions.apply(functions.log, fractions).neg_().div_(torch.full((), rate, device=x.device)))
