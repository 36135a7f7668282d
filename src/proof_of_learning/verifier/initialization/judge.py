"""Is a recorded initialization random? Every tensor is tested against a public pool of laws.

An initialization that follows from a key is recomputed. One that the prover merely wrote down can only be asked
whether it *looks* like a draw: for each tensor there must be a law in the pool (:mod:`schemes`) under which no test
finds it surprising. The tests, each with its null distribution:

- *support*: no element lies where the law has no mass.
- *marginal*: Kolmogorov-Smirnov over all elements (Jia et al., IEEE S&P 2021, propose it).
- *size*: the sum of squares is χ² for a normal law. Sharper than Kolmogorov-Smirnov against a wrong scale.
- *sums*: the squared row sums of a matrix add up to χ². Gradients of a layer that follows a ReLU point that way.
- *spectrum*: the largest singular value follows the Tracy-Widom law (Johnstone, 2001; centred and scaled as in Ma,
  2012; distribution function after Chiani, 2014; widened for small matrices). Training adds directions that stick out.

The last two see structure, the others only the set of values. For uniform and truncated laws, whose tails are
lighter, the χ² and Tracy-Widom tails are upper bounds.

Error rate. Under one law the p-value is Bonferroni's over its tests; a tensor gets the largest over the laws of the
pool. A tensor that was drawn from a law of the pool has at least the p-value under that law, so choosing the best
of many laws makes the test more lenient, never stricter: the p-value stays valid. Holm's procedure (1979) over the
tensors then bounds the probability of rejecting an honest initialization by ``alpha`` under any dependence; that
matters, because ``nn.TransformerEncoder`` starts all its layers as copies of one. Tensors that follow a scheme
without randomness (zeros, eye …) cannot be rejected by chance and take no share of ``alpha``.

What a rejection does not show: that the weights were trained. It says that they fit no law of the pool, and honest
people draw from others; a verifier who knows the law names it (:mod:`named`). Whether a rejected tensor could be a
draw from any law at all, another test asks (:mod:`dependence`).

What a pass does not show: a prover who knows these tests can arrange weights that are near any model and pass
(``docs/evidence/initialization.md`` measures how near). Only an initialization derived from a key excludes that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.errors import UsageError
from proof_of_learning.state.state import tensor_bytes
from proof_of_learning.verifier.initialization.dependence import independence
from proof_of_learning.verifier.initialization.laws import Array, Law, normal
from proof_of_learning.verifier.initialization.named import NamedLaw
from proof_of_learning.verifier.initialization.sample import Sample
from proof_of_learning.verifier.initialization.schemes import SPARSE_STDS, Pool, is_recurrent, parse, places

TensorStatus = Literal["fits", "few", "not-floating", "rejected"]

FEW = 20  # below this many elements a tensor can be rejected only where it is impossible or far out
LARGEST = 1e30  # of an element; more would only overflow
SINGLE = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class TensorJudgement:
    """One tensor: the law it fits best, the p-value under it, and the test that was closest to rejecting it.

    status: ``few`` fits but is too small to say much; ``not-floating`` is not judged (masks, counters); ``rejected`` fits no law
    of the pool. independence: of a rejected tensor, the p-value of draws from *any* law (:mod:`dependence`).
    """

    name: str
    elements: int
    scheme: str | None
    p_value: float
    test: str
    status: TensorStatus
    independence: float = 1.0


@dataclass(frozen=True)
class PoolResult:
    """The judgement of a whole initialization. ``tests``: distinct random tensors that shared ``alpha``."""

    accepted: bool
    alpha: float
    tests: int
    tensors: tuple[TensorJudgement, ...]

    @property
    def rejected(self) -> tuple[TensorJudgement, ...]:
        return tuple(t for t in self.tensors if t.status == "rejected")

    @property
    def dependent(self) -> tuple[TensorJudgement, ...]:
        """The rejected tensors that are no independent draws from any law, each held to its part of ``alpha``."""
        rejected = self.rejected
        return tuple(t for t in rejected if not t.independence > self.alpha / len(rejected))

    @property
    def few(self) -> tuple[TensorJudgement, ...]:
        return tuple(t for t in self.tensors if t.status == "few")

    @property
    def p_value(self) -> float:
        """The smallest p-value times the number of tests: the smallest ``alpha`` that rejects."""
        return min(1.0, max(1, self.tests) * min((t.p_value for t in self.tensors), default=1.0))

    @property
    def judged_share(self) -> float:
        """The share of elements that lie in tensors large enough to be judged."""
        elements = sum(t.elements for t in self.tensors)
        judged = sum(t.elements for t in self.tensors if t.status in ("fits", "rejected"))
        return judged / elements if elements else 0.0


def judge_initialization(
    tensors: Mapping[str, Tensor],
    *,
    alpha: float = 0.01,
    schemes: Iterable[str] | None = None,
    laws: Iterable[NamedLaw] = (),
) -> PoolResult:
    """Judge named initial tensors (``layer.weight``, or with a prefix such as ``model/parameters/layer.weight``).

    alpha: bound on the probability that any tensor of an honest initialization is rejected.
    schemes: names from :data:`schemes.SCHEMES` and laws such as ``normal(0, 0.03)``; the whole pool by default.
    laws: what a verifier named for some tensors, beside the pool.
    Raises UsageError for an unknown scheme or an alpha outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise UsageError(f"alpha must lie between 0 and 1, not {alpha}")
    pool, named = parse(schemes), tuple(laws)
    pools = {name: reduce(Pool.joined, (law.pool for law in named if law.fits(name)), pool) for name in tensors}
    where = places({name: tuple(t.shape) for name, t in tensors.items()})
    fits: dict[str, _Fit] = {}
    copies: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        fit = _exact(name, tensor, tensors, pools[name])
        if fit is not None:
            fits[name] = fit
        else:
            # Copies of a tensor are one draw and one test; it may have been drawn for any of its places.
            key = (tensor.dtype, tuple(tensor.shape), is_recurrent(name), _digest(tensor))
            copies.setdefault(key, []).append(name)
    drawn: list[_Fit] = []
    for names in copies.values():
        likely = {law.numbers: law for name in reversed(names) for law in reversed(pools[name].at(where[name]))}
        every = reduce(Pool.joined, dict.fromkeys(pools[name] for name in names))
        tensor = tensors[names[0]]
        if tensor.is_complex() and every is not pool:  # a named law is that of real and imaginary parts
            tensor = torch.view_as_real(tensor).flatten(-2)
        drawn.append(_random(names[0], tensor, list(likely.values()), every))
        fits.update(dict.fromkeys(names, drawn[-1]))
    limit = _holm([fit.p_value for fit in drawn], alpha)
    judged = tuple(_judgement(name, tensor, fits[name], limit) for name, tensor in tensors.items())
    return PoolResult(all(t.status != "rejected" for t in judged), alpha, len(drawn), judged)


@dataclass(frozen=True)
class _Fit:
    scheme: str | None
    p_value: float
    test: str


def _judgement(name: str, tensor: Tensor, fit: _Fit, limit: float) -> TensorJudgement:
    status: TensorStatus = "few" if tensor.numel() < FEW else "fits"
    if fit.test == "not floating":
        status = "not-floating"
    elif not fit.p_value > limit:
        status = "rejected"
    free = independence(tensor) if status == "rejected" else 1.0
    return TensorJudgement(name, tensor.numel(), fit.scheme, fit.p_value, fit.test, status, free)


def _holm(p_values: Sequence[float], alpha: float) -> float:
    """The largest p-value that Holm's step-down procedure rejects; negative infinity if none."""
    limit = -math.inf
    for rank, p in enumerate(sorted(p_values)):
        if p > alpha / (len(p_values) - rank):
            break
        limit = p
    return limit


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor_bytes(tensor.detach().cpu().contiguous())).digest()


# ---- schemes without randomness ---------------------------------------------------------------------


def _exact(name: str, tensor: Tensor, tensors: Mapping[str, Tensor], pool: Pool) -> _Fit | None:
    """A fit that needs no test: it holds exactly, or no law can hold. None where a test must decide."""
    if tensor.numel() == 0:
        return _Fit("empty", 1.0, "exact")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return _Fit(None, 1.0, "not floating")
    if not bool(torch.isfinite(torch.view_as_real(tensor) if tensor.is_complex() else tensor.float()).all()):
        return None
    if tensor.element_size() == 1:
        tensor = tensor.float()  # few operations know the 8-bit types
    schemes: dict[str, Callable[[], bool]] = {
        "zeros": lambda: not bool(tensor.count_nonzero()),
        "ones": lambda: bool((tensor == 1).all()),
        "constant": lambda: _constant(name, tensor),
        "eye": lambda: tensor.ndim == 2 and torch.equal(tensor, torch.eye(*tensor.shape).to(tensor)),
        "dirac": lambda: _dirac(tensor),
        "weight_norm": lambda: _is_weight_norm(name, tensor, tensors),
    }
    for scheme, holds in schemes.items():
        if scheme in pool.names and holds():
            return _Fit(scheme, 1.0, "exact")
    for value in pool.constants:
        if bool((tensor == torch.tensor(value, dtype=tensor.dtype)).all()):
            return _Fit(f"constant({value:g})", 1.0, "exact")
    return None


def _constant(name: str, tensor: Tensor) -> bool:
    if bool((tensor == tensor.reshape(-1)[0]).all()):
        return True
    blocks = tensor.chunk(4) if is_recurrent(name) and tensor.ndim == 1 and len(tensor) % 4 == 0 else ()
    return bool(blocks) and all(bool((block == block[0]).all()) for block in blocks)


def _dirac(tensor: Tensor) -> bool:
    spikes = int(tensor.count_nonzero())
    if tensor.ndim not in (3, 4, 5) or tensor.is_complex() or not 0 < spikes <= tensor.shape[0]:
        return False
    divisors = (g for g in range(1, tensor.shape[0] + 1) if tensor.shape[0] % g == 0)
    # Each group holds the same number of spikes, so the count leaves only a few divisors to try.
    likely = [g for g in divisors if g * min(tensor.shape[0] // g, tensor.shape[1]) == spikes]
    return any(torch.equal(tensor, _dirac_like(tensor, groups)) for groups in likely)


def _dirac_like(tensor: Tensor, groups: int) -> Tensor:
    target = torch.zeros_like(tensor)
    size, middle = tensor.shape[0] // groups, tuple(side // 2 for side in tensor.shape[2:])
    for row in range(tensor.shape[0]):
        if row % size < tensor.shape[1]:
            target[(row, row % size, *middle)] = 1
    return target


def _is_weight_norm(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    for magnitude, direction in (("original0", "original1"), ("weight_g", "weight_v")):
        if name.endswith(magnitude):
            other = tensors.get(name[: -len(magnitude)] + direction)
            if other is None or other.ndim != tensor.ndim:
                return False
            axes = [axis for axis in range(tensor.ndim) if tensor.shape[axis] == 1]
            norms = torch.linalg.vector_norm(other.float(), dim=axes, keepdim=True)
            return norms.shape == tensor.shape and torch.allclose(
                tensor.float(), norms, rtol=16 * torch.finfo(tensor.dtype).eps
            )
    return False


# ---- schemes with randomness ------------------------------------------------------------------------


def _random(name: str, tensor: Tensor, laws: Sequence[Law], pool: Pool) -> _Fit:
    if tensor.is_complex():
        return _Fit(None, 0.0, "complex, which no scheme of the pool draws")
    values = tensor.detach().cpu()
    values = values if values.dtype == torch.float64 else values.float()
    rounding = float(torch.finfo(tensor.dtype).eps)
    if not float(values.abs().max()) <= LARGEST:
        return _Fit(None, 0.0, "not finite, or beyond all reason")
    structured = _orthogonal(name, values, rounding, pool.gains) or _sparse(values, rounding, pool)
    # Four vectors are not orthogonal, or four columns equally sparse, by chance: no other law need be asked.
    if structured and min(len(values), values[0].numel()) >= 4:
        return structured
    plain = _best(Sample(_without_constants(name, values), rounding), laws)
    return structured if structured and structured.p_value > plain.p_value else plain


def _without_constants(name: str, values: Tensor) -> Tensor:
    """Without what a layer fills by rule after drawing: a padding row of an embedding, one gate of a recurrent bias."""
    if values.ndim == 2 and len(values) > 1:
        empty = (values == 0).all(dim=1)
        return values[~empty] if int(empty.sum()) == 1 else values
    if is_recurrent(name) and values.ndim == 1 and len(values) % 4 == 0:
        drawn = [block for block in values.chunk(4) if not bool((block == block[0]).all())]
        return torch.cat(drawn) if drawn else values
    return values


def _best(sample: Sample, laws: Sequence[Law]) -> _Fit:
    """The law with the largest p-value, testing no further than it takes to know it."""
    best = _Fit(None, 0.0, "support" if laws else "no law of the pool fits this shape")
    possible = [(sample.deviation(law, coarse=True), law) for law in laws if sample.possible(law)]
    for least, law in sorted(possible, key=lambda item: item[0]):
        tests = sample.tests(law)
        if best.scheme is not None and len(tests) * sample.marginal(least, quick=True) <= best.p_value:
            continue
        found: dict[str, float] = {}
        for name, test in tests.items():
            found[name] = test(law)
            if len(tests) * found[name] <= best.p_value:
                break
        closest = min(found, key=lambda name: found[name])
        p_value = min(1.0, len(tests) * found[closest])
        if p_value > best.p_value or best.scheme is None:
            best = _Fit(law.label, p_value, closest)
    return best


def _orthogonal(name: str, values: Tensor, rounding: float, gains: Sequence[float]) -> _Fit | None:
    """Orthonormal rows or columns times one gain; then the matrix must be a draw from the uniform (Haar) law.

    Times an independent triangular matrix of χ and normal elements (Bartlett's decomposition) a Haar matrix becomes
    one of independent normal elements, which Kolmogorov-Smirnov tests without approximation.
    """
    if values.ndim < 2 or not gains:
        return None
    matrix = values.reshape(len(values), -1).double().numpy()
    # What the decomposition leaves, in single precision at best, and what rounding its result adds.
    tolerance = 16 * SINGLE * max(1.0, math.log2(max(matrix.shape))) + 8 * rounding / math.sqrt(max(matrix.shape))
    for count in (4, 3, 1) if is_recurrent(name) else (1,):  # orthogonal blocks make an orthogonal stack
        if len(matrix) % count:
            continue
        blocks = [block if len(block) >= block.shape[1] else block.T for block in np.split(matrix, count)]
        square = float(np.square(blocks[0]).sum() / blocks[0].shape[1])
        gain = next((g for g in gains if abs(square / (g * g) - 1) <= tolerance), None)
        if gain is None or not all(_is_orthonormal(block / gain, tolerance) for block in blocks):
            continue
        rng = np.random.default_rng(0)
        spread = np.concatenate([(block / gain @ _bartlett(block.shape, rng)).ravel() for block in blocks])
        law = normal(f"orthogonal(gain {gain:.4g}{f', per block of {count}' if count > 1 else ''})", 1.0)
        sample = Sample(torch.from_numpy(spread), rounding)
        return _Fit(law.label, sample.marginal(sample.deviation(law)), "marginal")
    return None


def _is_orthonormal(block: Array, tolerance: float) -> bool:
    # One row of the product first: nearly every matrix that is not orthogonal shows it there.
    if float(np.abs(block[:, 0] @ block - np.eye(1, block.shape[1])).max()) > tolerance:
        return False
    return float(np.abs(block.T @ block - np.eye(block.shape[1])).max()) <= tolerance


def _bartlett(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    rows, columns = shape
    triangle: Array = np.triu(rng.standard_normal((columns, columns)), 1)
    triangle += np.diag(np.sqrt(rng.chisquare(rows - np.arange(columns))))
    return triangle


def _sparse(values: Tensor, rounding: float, pool: Pool) -> _Fit | None:
    if values.ndim != 2 or "sparse" not in pool.names:
        return None
    zeros = (values == 0).sum(dim=0)
    padding = int((values == 0).all(dim=1).sum()) == 1 and int(zeros[0]) == 1
    if padding or not 0 < int(zeros[0]) < len(values) or not bool((zeros == zeros[0]).all()):
        return None
    laws = [normal(f"sparse({int(zeros[0])} zeros a column, std {std:g})", std) for std in SPARSE_STDS]
    return _best(Sample(values[values != 0], rounding), laws)
