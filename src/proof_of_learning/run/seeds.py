"""Seeds that a script sets, mapped through a key: the same set-up, with draws that nobody could know.

Weights that do not change with the key were not drawn. Only where a first state is asked for; training never sees it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from proof_of_learning.training import randomness

PURPOSE = "seed"


def map_through(key: bytes) -> None:
    """From here on, in this process, every seed that is set is another one that follows from ``key`` and it."""

    def mapped(seed: Any) -> int:
        return randomness.derive(key, PURPOSE, int(seed) & (2**64 - 1))

    def small(seed: Any) -> Any:
        """For NumPy's, which take None, numbers and lists of them."""
        if seed is None or isinstance(seed, (np.random.BitGenerator, np.random.Generator, np.random.SeedSequence)):
            return seed
        words = np.atleast_1d(np.asarray(seed)).astype(object).ravel().tolist()
        found = 0
        for word in words:
            found = mapped(found ^ int(word))
        return found & 0xFFFFFFFF

    def wrapped(function: Any, by: Any) -> Any:
        return lambda seed=None, *more, **options: function(None if seed is None else by(seed), *more, **options)

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> Any:
            super().manual_seed(mapped(seed))
            return self

    class RandomState(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(small(seed))

        def seed(self, seed: Any = None) -> None:
            super().seed(small(seed))

    class Random(random.Random):
        def seed(self, a: Any = None, version: int = 2) -> None:
            super().seed(a if a is None or not isinstance(a, int) else mapped(a), version)

    randomness.seed_everything(randomness.derive(key, randomness.INITIALIZATION))
    plain: Any = torch.manual_seed
    torch.manual_seed = torch.random.manual_seed = lambda seed: plain(mapped(seed))
    torch.Generator = Generator  # type: ignore[misc]
    for name in ("manual_seed", "manual_seed_all"):
        setattr(torch.cuda, name, wrapped(getattr(torch.cuda, name), mapped))
    numpy: Any = np.random
    numpy.seed, numpy.default_rng = wrapped(np.random.seed, small), wrapped(np.random.default_rng, small)
    numpy.RandomState = RandomState
    first: Any = random.seed
    random.seed = lambda a=None, version=2: first(mapped(a) if isinstance(a, int) else a, version)
    random.Random = Random  # type: ignore[misc]
