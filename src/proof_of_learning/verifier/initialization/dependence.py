"""Does anything speak against independent draws, whatever the law? The question for tensors that fit no law of the pool.

That a tensor fits none of a list of laws shows that the list is finite, not that the tensor was trained. Trained weights differ
from draws of *any* law: training adds directions to a matrix that stick out of its spectrum. The test is free of a law: values are
replaced by the normal scores of their ranks *within their row*, which makes a matrix of independent draws one of independent
normal elements, even where each row has a law of its own (blocks of unlike scale, gates, padding); then its largest singular
value is compared with the Tracy-Widom law. The same is done within columns, and only what both say counts. Rows and columns that are
copies of another, or constant, are left out.

What it cannot see: a tensor of one dimension, one of fewer than eight rows or columns, and weights trained so little, or arranged
so well, that no direction sticks out. Of these it is not known what they are, and nothing is claimed.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from proof_of_learning.verifier.initialization.laws import Array
from proof_of_learning.verifier.initialization.sample import SPECTRUM_SIDE, largest_square, spectrum_p_value

SIDE = 2048  # rows and columns that are looked at, drawn at random


def independence(tensor: Tensor) -> float:
    """A bound on the probability that a tensor of independent draws (each row, or each column, from any law) looks like this.

    0 where it holds what is not finite, 1 where there is nothing to see.
    """
    values = tensor.detach().cpu()
    values = torch.view_as_real(values).flatten(-2) if values.is_complex() else values
    values = values if values.dtype == torch.float64 else values.float()
    if not bool(torch.isfinite(values).all()):
        return 0.0
    if values.ndim < 2 or values.numel() == 0:
        return 1.0
    rng = np.random.default_rng(0)
    matrix = values.reshape(len(values), -1)
    for axis in (0, 1):
        if matrix.shape[axis] > SIDE:
            chosen = np.sort(rng.choice(matrix.shape[axis], SIDE, replace=False))
            matrix = matrix.index_select(axis, torch.from_numpy(chosen))
    distinct = _distinct(_distinct(matrix.double().numpy()).T).T
    return max(_spectrum(distinct), _spectrum(distinct.T))


def _distinct(matrix: Array) -> Array:
    """Without rows that are constant or copies of an earlier one."""
    if matrix.size == 0:
        return matrix
    _, first = np.unique(matrix, axis=0, return_index=True)
    kept: Array = matrix[np.sort(first)]
    varied: Array = kept[(kept != kept[:, :1]).any(axis=1)]
    return varied


def _spectrum(matrix: Array) -> float:
    """The p-value of the largest singular value after each row was replaced by the normal scores of its ranks."""
    if min(matrix.shape) < SPECTRUM_SIDE:
        return 1.0
    ranks = stats.rankdata(matrix, axis=1)  # ties share a rank, which lessens the spread: the p-value stays a bound
    scores = special.ndtri((ranks - 0.5) / matrix.shape[1])
    return spectrum_p_value(largest_square(torch.from_numpy(scores)), *matrix.shape)
