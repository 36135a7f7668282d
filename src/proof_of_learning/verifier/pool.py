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

What a pass does not show: a prover who knows these tests can arrange weights that are near any model and pass
(``docs/evidence/initialization.md`` measures how near). Only an initialization derived from a key excludes that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from proof_of_learning.errors import UsageError
from proof_of_learning.training.state import tensor_bytes
from proof_of_learning.verifier.schemes import SPARSE_STDS, Array, Law, Pool, is_recurrent, normal, parse, places

TensorStatus = Literal["fits", "few", "not-floating", "rejected"]

FEW = 20  # below this many elements a tensor can be rejected only where it is impossible or far out
EXACT = 1000  # up to this many elements the Kolmogorov-Smirnov p-value is exact; see _Sample.marginal
GRID = 1 << 16  # order statistics that Kolmogorov-Smirnov looks at; see _Sample.deviation
SMALL_SIDE = 512  # up to this many rows or columns the spectrum is computed exactly
CHUNK = 1 << 14
LARGEST = 1e30  # of an element; more would only overflow
SINGLE = float(torch.finfo(torch.float32).eps)
REDUCED = 1e-5  # machine epsilon from which on a dtype counts as reduced precision (float16, bfloat16 …)
SPECTRUM_SIDE = 8  # fewer rows or columns are too far from the Tracy-Widom limit


@dataclass(frozen=True)
class TensorJudgement:
    """One tensor: the law it fits best, the p-value under it, and the test that was closest to rejecting it.

    status: ``few`` fits but is too small to say much; ``not-floating`` is not judged (masks, counters).
    """

    name: str
    elements: int
    scheme: str | None
    p_value: float
    test: str
    status: TensorStatus


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
    tensors: Mapping[str, Tensor], *, alpha: float = 0.01, schemes: Iterable[str] | None = None
) -> PoolResult:
    """Judge named initial tensors (``layer.weight``, or with a prefix such as ``model/parameters/layer.weight``).

    alpha: bound on the probability that any tensor of an honest initialization is rejected.
    schemes: names from :data:`schemes.SCHEMES` and laws such as ``normal(0, 0.03)``; the whole pool by default.
    Raises UsageError for an unknown scheme or an alpha outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise UsageError(f"alpha must lie between 0 and 1, not {alpha}")
    pool = parse(schemes)
    where = places({name: tuple(t.shape) for name, t in tensors.items()})
    fits: dict[str, _Fit] = {}
    copies: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        fit = _exact(name, tensor, tensors, pool)
        if fit is not None:
            fits[name] = fit
        else:
            # Copies of a tensor are one draw and one test; it may have been drawn for any of its places.
            key = (tensor.dtype, tuple(tensor.shape), is_recurrent(name), _digest(tensor))
            copies.setdefault(key, []).append(name)
    drawn: list[_Fit] = []
    for names in copies.values():
        laws = {law.numbers: law for name in reversed(names) for law in reversed(pool.at(where[name]))}
        drawn.append(_random(names[0], tensors[names[0]], list(laws.values()), pool))
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
    return TensorJudgement(name, tensor.numel(), fit.scheme, fit.p_value, fit.test, status)


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
    plain = _best(_Sample(_without_constants(name, values), rounding), laws)
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


def _best(sample: _Sample, laws: Sequence[Law]) -> _Fit:
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
        sample = _Sample(torch.from_numpy(spread), rounding)
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
    return _best(_Sample(values[values != 0], rounding), laws)


# ---- tests of independent elements ------------------------------------------------------------------


class _Sample:
    """The elements of one tensor, and the tests of the hypothesis that a law drew them independently."""

    def __init__(self, values: Tensor, rounding: float) -> None:
        flat = values.reshape(-1).numpy()
        self._matrix = values.reshape(len(values), -1) if values.ndim >= 2 else None
        self._sorted = np.sort(flat)
        self._sums = float(flat.sum(dtype=np.float64)), float(np.square(flat, dtype=np.float64).sum())
        self._coarse, self._fine = self._quantiles(256), self._quantiles(GRID)
        self._rounding = rounding
        self._tops: dict[float, float] = {}

    def _quantiles(self, count: int) -> tuple[npt.NDArray[np.int64], Array]:
        n = len(self._sorted)
        ranks = np.linspace(0, n - 1, min(n, count)).astype(np.int64)
        return ranks, self._sorted[ranks].astype(np.float64)

    def tests(self, law: Law) -> dict[str, Callable[[Law], float]]:
        """The tests that apply, cheapest first."""
        found: dict[str, Callable[[Law], float]] = {"marginal": lambda law: self.marginal(self.deviation(law))}
        if not law.symmetric:
            return found
        # Eleven bits and less shift means and variances by more than a sum over many elements forgives.
        precise = self._rounding < REDUCED
        if precise:
            found["size"] = self.size
        if self._matrix is not None:
            if precise and min(self._matrix.shape) >= 2:
                found["sums"] = self.sums
            if min(self._matrix.shape) >= SPECTRUM_SIDE:
                found["spectrum"] = self.spectrum
        return found

    def possible(self, law: Law) -> bool:
        slack = 4 * self._rounding * max(abs(law.low), abs(law.high)) if math.isfinite(law.low) else 0.0
        return bool(law.low - slack <= self._sorted[0] and self._sorted[-1] <= law.high + slack)

    def deviation(self, law: Law, coarse: bool = False) -> float:
        """The Kolmogorov-Smirnov statistic over all elements.

        It is evaluated at up to ``GRID`` evenly spaced order statistics. With more elements it comes out at most
        1/GRID too small, never too large; ``coarse`` gives a quick lower bound.
        """
        n = len(self._sorted)
        ranks, values = self._coarse if coarse else self._fine
        below = law.cdf(values)
        found = max(float(((ranks + 1) / n - below).max()), float((below - ranks / n).max()))
        # Rounding to few bits moves every value by up to a step, and the distribution function with it.
        return max(0.0, found - (self._rounding if self._rounding >= REDUCED else 0.0))

    def marginal(self, deviation: float, quick: bool = False) -> float:
        """The probability of at least this deviation: exact for small samples, else (or ``quick``) a bound from above.

        The bound of Dvoretzky, Kiefer, Wolfowitz and Massart (1990) holds for every n and is within 8 % of the exact
        p-value in the range that decides, whose computation would take seconds.
        """
        n = len(self._sorted)
        bound = min(1.0, 2 * math.exp(-2 * n * deviation**2))
        return bound if quick or n > EXACT else float(stats.kstwo.sf(deviation, n))

    def size(self, law: Law) -> float:
        n, (total, squares) = len(self._sorted), self._sums
        statistic = (squares - 2 * law.center * total + n * law.center**2) / law.std**2
        return min(1.0, 2 * min(float(stats.chi2.sf(statistic, n)), float(stats.chi2.cdf(statistic, n))))

    def sums(self, law: Law) -> float:
        assert self._matrix is not None
        rows, columns = self._matrix.shape
        sums = self._matrix.sum(dim=1, dtype=torch.float64).numpy() - columns * law.center
        return float(stats.chi2.sf(float(np.square(sums).sum()) / (columns * law.std**2), rows))

    def spectrum(self, law: Law) -> float:
        assert self._matrix is not None
        if law.center not in self._tops:
            self._tops[law.center] = _largest_square(self._matrix - law.center if law.center else self._matrix)
        return spectrum_p_value(self._tops[law.center] / law.std**2, *self._matrix.shape)


def spectrum_p_value(square: float, rows: int, columns: int) -> float:
    """A bound on the probability that the largest singular value of a standard normal matrix has at least this square.

    The law of a small matrix has a heavier far tail than its limit; the exponent makes up for it from ``SPECTRUM_SIDE``
    rows and columns on, down to 1e-6 (``experiments/initialization.py`` measures it).
    """
    a, b = math.sqrt(rows - 0.5), math.sqrt(columns - 0.5)
    scale = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(tracy_widom((square - (a + b) ** 2) / scale) ** 0.85)


def tracy_widom(value: float) -> float:
    """The upper tail of the Tracy-Widom law (β = 1), approximated by a shifted gamma law (Chiani, 2014)."""
    return float(stats.gamma.sf(value + 9.84801, 46.446, scale=0.186054))


def _largest_square(matrix: Tensor) -> float:
    """The square of the largest singular value; for large matrices a bound from below, which spares honest ones."""
    unit = float(matrix.abs().max()) or 1.0  # products of extreme values would overflow
    wide = (matrix if len(matrix) <= matrix.shape[1] else matrix.T) / unit
    side = len(wide)
    if side <= SMALL_SIDE:
        gram = torch.zeros(side, side, dtype=torch.float64)
        for start in range(0, wide.shape[1], CHUNK):
            part = wide[:, start : start + CHUNK].double()
            gram += part @ part.T
        return float(torch.linalg.eigvalsh(gram)[-1]) * unit**2

    def product(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        image: npt.NDArray[Any] = (wide @ (wide.T @ torch.from_numpy(vector.ravel()))).numpy()
        return image

    start_vector = np.random.default_rng(0).standard_normal(side).astype(wide.numpy().dtype)
    operator = LinearOperator((side, side), matvec=product, dtype=start_vector.dtype)
    try:
        found = eigsh(operator, k=1, v0=start_vector, tol=1e-4, maxiter=100, return_eigenvectors=False)[0]
    except ArpackNoConvergence:
        found = start_vector @ product(start_vector) / (start_vector @ start_vector)
    return float(found) * unit**2
