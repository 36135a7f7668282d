"""A script's randomness under a key: the seeds that it sets are mapped, and its generators follow the places of its loop.

Of a run whose randomness is derived, prover and verifier do both (``docs/adr/0037-derived-scripts.md``). Of any other, the seeds alone
are mapped, where a first state under a second key is asked for: weights that do not change with the key were not drawn.
"""

from __future__ import annotations

import hashlib
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from proof_of_learning.numeric import randomness

MASK = 2**64 - 1
Place = tuple[int, int, int]  # phase, epoch, walk


@dataclass
class Seeds:
    """What follows from ``key`` in this process."""

    key: bytes
    _made: list[weakref.ref[Any]] = field(default_factory=list)
    _begun: bool = False
    _unseeded: int = 0

    # ---- seeds that the script sets --------------------------------------------------------------------

    def mapped(self, seed: Any) -> int:
        """The seed, of 64 bits, in the place of one that the script sets, whatever it is; of None, the next one of those."""
        if seed is None:
            self._unseeded += 1
            return randomness.derive(self.key, randomness.SEED, self._unseeded, 1)
        if isinstance(seed, np.random.SeedSequence):
            seed = seed.generate_state(4)
        if isinstance(seed, (str, bytes, bytearray, float)):
            seed = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "little")
        found = 0
        for word in np.atleast_1d(np.asarray(seed)).astype(object).ravel().tolist():
            found = randomness.derive(self.key, randomness.SEED, (found ^ int(word)) & MASK)
        return found

    def made(self, generator: Any) -> None:
        """The script made a generator; those of its set-up follow the places of its loop."""
        if not self._begun:
            self._made.append(weakref.ref(generator))

    # ---- places of its loop ----------------------------------------------------------------------------

    def begun(self) -> None:
        """The set-up is over."""
        self._begun = True

    def epoch(self, phase: int, number: int) -> None:
        """All generators as they are where an epoch begins; -1: where the epochs of the phase are over."""
        self._put(randomness.derive(self.key, randomness.EPOCH, number & MASK, phase))

    def behind(self, place: Place) -> None:
        """… behind a walk."""
        self._put(self._at(randomness.WALK, place))

    def order(self, place: Place) -> None:
        """… where the order of a walk is drawn."""
        self._put(self._at(randomness.ORDER, place))

    def fetching(self, place: Place, position: int) -> int:
        """The seed at which a batch is fetched; see :meth:`fetch`."""
        return randomness.derive(self.key, randomness.AUGMENTATION, self._at(randomness.ORDER, place), position)

    def fetch(self, seed: int) -> None:
        """… where a batch is fetched."""
        self._put(seed)

    def step(self, place: Place, position: int) -> None:
        """… where a batch is handed over."""
        self._put(randomness.derive(self.key, randomness.STEP, self._at(randomness.ORDER, place), position))

    def _at(self, purpose: str, place: Place) -> int:
        phase, epoch, walk = place
        return randomness.derive(self.key, purpose, epoch & MASK, (phase << 32 | walk) & MASK)

    def _put(self, seed: int) -> None:
        randomness.seed_everything(seed)
        for number, reference in enumerate(self._made):
            if (generator := reference()) is not None:
                _seed(generator, randomness.derive(self.key, randomness.OWN, seed, number))


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, Generator):
        _Plain.torch.manual_seed(generator, seed)
    elif isinstance(generator, RandomState) and type(generator._bit_generator) is np.random.MT19937:
        _Plain.state.seed(generator, seed & 0xFFFFFFFF)
    elif isinstance(generator, (NumpyGenerator, RandomState)):
        held: Any = generator
        bits = held._bit_generator
        bits.state = type(bits)(seed).state
    elif isinstance(generator, Random):
        _Plain.python.seed(generator, seed)


# What a script's names stand for once they are mapped. On the floor of the module, so that they can be pickled.
_now: list[Seeds] = []
_default_rng: Any = np.random.default_rng


class _Plain:
    """What the names stand for before."""

    torch: TypeAlias = torch.Generator
    numpy: TypeAlias = np.random.Generator
    state: TypeAlias = np.random.RandomState
    python: TypeAlias = random.Random


class Generator(_Plain.torch):
    """``torch.Generator``; without a seed it would always begin alike."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        made = super().__new__(cls, *arguments, **options)
        _Plain.torch.manual_seed(made, _now[-1].mapped(None))
        _now[-1].made(made)
        return made

    def manual_seed(self, seed: int) -> Any:
        super().manual_seed(_now[-1].mapped(seed))
        return self

    def seed(self) -> int:
        super().manual_seed(_now[-1].mapped(None))
        return self.initial_seed()


class NumpyGenerator(_Plain.numpy):
    """``numpy.random.Generator``, and what ``default_rng`` gives."""

    def __init__(self, bit_generator: Any) -> None:
        super().__init__(bit_generator)
        _now[-1].made(self)


class RandomState(_Plain.state):
    def __init__(self, seed: Any = None) -> None:
        super().__init__(seed if isinstance(seed, np.random.BitGenerator) else _now[-1].mapped(seed) & 0xFFFFFFFF)
        _now[-1].made(self)

    def seed(self, seed: Any = None) -> None:
        super().seed(_now[-1].mapped(seed) & 0xFFFFFFFF)


class Random(_Plain.python):
    def __init__(self, x: Any = None) -> None:
        super().__init__(x)  # which seeds
        _now[-1].made(self)

    def seed(self, a: Any = None, version: int = 2) -> None:
        super().seed(_now[-1].mapped(a), version)


def _rng(seed: Any = None) -> Any:
    if isinstance(seed, (np.random.BitGenerator, _Plain.numpy)):
        return _default_rng(seed)
    return NumpyGenerator(_default_rng(_now[-1].mapped(seed)).bit_generator)


def map_through(key: bytes) -> Seeds:
    """From here on, in this process, every seed that is set is another one that follows from ``key`` and it. Once in a process."""
    assert not _now
    found = Seeds(key)
    _now.append(found)

    def wrapped(function: Callable[..., Any], bits: int = 64) -> Callable[..., Any]:
        return lambda seed=None, *more: function(found.mapped(seed) & (2**bits - 1), *more)

    first = randomness.derive(key, randomness.INITIALIZATION)
    randomness.seed_everything(first)
    torch.cuda.manual_seed_all(first)  # once they are in use
    names: Any = torch
    names.manual_seed = names.random.manual_seed = wrapped(torch.manual_seed)
    names.seed = names.random.seed = lambda: torch.manual_seed(None).initial_seed()
    names.Generator = Generator
    for name in ("manual_seed", "manual_seed_all"):
        setattr(torch.cuda, name, wrapped(getattr(torch.cuda, name)))
    names = np.random
    names.seed, names.default_rng = wrapped(np.random.seed, 32), _rng
    names.Generator, names.RandomState = NumpyGenerator, RandomState
    names = random
    plain: Any = random.seed
    names.seed, names.Random = lambda a=None, version=2: plain(found.mapped(a), version), Random
    return found
