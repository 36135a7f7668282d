"""What steps take their batches from: loaders, whose batches carry their samples' indices, and plain counting.

A loader is neither rebuilt nor started late. While it makes an iterator, its data set and collate function are exchanged for ones
that hand indices on; worker processes inherit these. Where fetching draws from generators, in a worker too, the states before
are handed on as well, so that a batch can be made again from its indices.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate, default_convert
from torch.utils.data._utils.pin_memory import pin_memory

from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.numeric.randomness import RngSnapshot
from proof_of_learning.run.mode import ACTIVE

Drawn = dict[str, bytes]
_WITHOUT_DRAWS = (default_collate, default_convert)  # no need to look whether they draw


@dataclass
class Handed:
    """A batch with its samples' indices; ``drawn``: of generators that fetching it moved, the states before."""

    indices: list[int]
    batch: Any
    drawn: Drawn | None = None

    def pin_memory(self) -> Handed:
        self.batch = pin_memory(self.batch)  # type: ignore[no-untyped-call]
        return self


class Planned(list[Any]):
    """The samples of a batch before it is fetched. ``key``: what the sampler gave; ``seed``: what the generators follow from then."""

    def __init__(self, key: Any) -> None:
        super().__init__(key if isinstance(key, (list, tuple)) else [key])
        self.key, self.seed = key, 0

    def at(self, seed: int) -> Planned:
        self.seed = seed
        return self


class Source(Protocol):
    """What a walk goes through.

    ``open``: a real iteration, over the batches of a ``plan`` where there is one; ``order``: the batches that its own sampler gives,
    None where the loop makes them; ``again``: the batch at a position of a walk from the indices of its samples.
    """

    loader: Any

    def __len__(self) -> int: ...
    def open(self, plan: list[Planned] | None = None) -> Iterator[Handed]: ...
    def order(self) -> list[Planned] | None: ...
    def again(self, indices: Sequence[int], position: int) -> Any: ...


class Counted:
    """``run.steps``: numbers, without samples."""

    def __init__(self, numbers: range) -> None:
        self.loader = self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def order(self) -> None:
        return None

    def open(self, plan: list[Planned] | None = None) -> Iterator[Handed]:
        return (Handed([], number) for number in self.numbers)

    def again(self, indices: Sequence[int], position: int) -> int:
        if not 0 <= position < len(self.numbers):
            raise FormatError(f"a recorded step has number {position}; the script's loop has {len(self.numbers)}")
        return self.numbers[position]


class Named:
    """``run.begin``: batches whose samples the script names itself."""

    def __init__(self) -> None:
        self.loader: Any = self
        self.named: list[int] = []

    def __len__(self) -> int:
        return 0

    def name(self, indices: Sequence[int]) -> None:
        self.named = [int(index) for index in indices]

    def order(self) -> None:
        return None

    def open(self, plan: list[Planned] | None = None) -> Iterator[Handed]:
        while True:
            yield Handed(self.named, self.named)

    def again(self, indices: Sequence[int], position: int) -> list[int]:
        return list(indices)


class Loaded:
    """``run.batches``: a loader over a data set with indices."""

    def __init__(self, loader: Any) -> None:
        base = getattr(loader, "base_dataloader", loader)
        if not isinstance(base, DataLoader) or isinstance(base.dataset, IterableDataset):
            what = type(base.dataset if isinstance(base, DataLoader) else loader).__name__
            raise UsageError(
                f"run.batches was given a {what}, whose samples have no indices; use a torch DataLoader over a data set with "
                "len() and [index]"
            )
        self.loader, self.base = loader, base

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def data(self) -> Any:
        return self.base.dataset

    @property
    def batch_size(self) -> int:
        """Samples of a batch; 0 where a sampler of its own decides."""
        return self.base.batch_size or (0 if self.base.batch_sampler is not None else 1)

    def gives(self, samples: int, position: int) -> bool:
        """Whether the batch at a position can have so many samples: only a walk's last one may be short."""
        size = self.batch_size
        short = not self.base.drop_last and position == len(self) - 1
        return not size or samples == size or (short and 0 < samples < size)

    @property
    def drops(self) -> bool:
        """Whether a last batch that is short is left out."""
        return bool(self.base.drop_last)

    @property
    def shuffles(self) -> bool:
        return not isinstance(self.base.sampler, torch.utils.data.SequentialSampler)

    def order(self) -> list[Planned]:
        base, most = self.base, len(self.base)
        method = getattr(base.multiprocessing_context, "get_start_method", multiprocessing.get_start_method)()
        if base.num_workers and method != "fork":
            raise UsageError(
                f"the loader's workers are started by {method!r}, where no key reaches them; use multiprocessing_context='fork', or "
                "num_workers=0"
            )
        batches = [Planned(batch) for batch in islice(iter(base._index_sampler), most + 1)]
        if len(batches) > most:
            raise UsageError(f"the loader's {self.sampler} gives more than the {most:,} batches that it has")
        return batches

    @property
    def sampler(self) -> str:
        """What decides on the order, by name."""
        own: Any = self.base._index_sampler
        return type(own.sampler if type(own) is torch.utils.data.BatchSampler else own).__name__

    def open(self, plan: list[Planned] | None = None) -> Iterator[Handed]:
        # A loader that wraps another begins with its first batch only.
        return self._late(plan) if self.base is not self.loader else self._begun(plan)[0]

    def _late(self, plan: list[Planned] | None) -> Iterator[Handed]:
        iterator, first = self._begun(plan, 1)
        yield from first
        del first
        yield from iterator

    def _begun(self, plan: list[Planned] | None, batches: int = 0) -> tuple[Iterator[Handed], list[Handed]]:
        """An iteration, and its first batches."""
        base = self.base
        data, collate, kept = base.dataset, base.collate_fn, base._iterator
        which = "sampler" if base.batch_sampler is None else "batch_sampler"
        sampler = getattr(base, which)
        if plan is not None:  # workers that persist keep the object
            ours = base.__dict__.setdefault("_pol_plan", _Plan())
            ours.batches = plan
            object.__setattr__(base, which, ours)
        # A loader refuses a new data set in the usual way.
        object.__setattr__(base, "dataset", _Fetching(data))
        base.collate_fn = _Collating(collate)
        if base.persistent_workers:  # workers of ours, beside those of the script's own iterations
            base._iterator = getattr(base, "_pol_iterator", None)
        try:
            iterator: Iterator[Handed] = iter(self.loader)
            first = list(islice(iterator, batches))
            if base.persistent_workers:
                object.__setattr__(base, "_pol_iterator", base._iterator)
            return iterator, first
        finally:
            object.__setattr__(base, "dataset", data)
            object.__setattr__(base, which, sampler)
            base.collate_fn, base._iterator = collate, kept

    def again(self, indices: Sequence[int], position: int) -> Any:
        data, base = self.data, self.base
        if any(not 0 <= index < len(data) for index in indices):
            raise FormatError(f"a recorded batch names samples outside the data set of {len(data):,}")
        if base.batch_sampler is not None:
            return base.collate_fn(_samples(data, list(indices)))
        many = len(indices) != 1 or isinstance(base.sampler, torch.utils.data.BatchSampler)
        return base.collate_fn(data[list(indices) if many else indices[0]])


class _Plan:
    """In a sampler's place: its batches, which are known."""

    batches: list[Planned]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.batches)


class _Samples(list[Any]):
    """Samples on their way to the collate function."""

    indices: list[int]
    drawn: Drawn | None
    alone: bool  # the one item is what the function takes


class _Fetching:
    """The data set while ours is the iteration."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_data":
            raise AttributeError(name)
        return getattr(self._data, name)

    def __getitems__(self, indices: list[Any]) -> _Samples:
        before = None if type(self._data) is TensorDataset or _derived(indices) else generators()
        return _packed(_samples(self._data, list(indices)), indices, before, alone=False)

    def __getitem__(self, index: Any) -> _Samples:
        """Without automatic batches: whatever the sampler gives is one index."""
        before = None if _derived(index) else generators()
        index = index.key if isinstance(index, Planned) else index
        indices = list(index) if isinstance(index, (list, tuple)) else [index]
        return _packed([self._data[index]], indices, before, alone=True)


def _derived(indices: Any) -> bool:
    """Whether a batch's draws follow from a key; then the generators are put where they do, here or in a worker."""
    if not isinstance(indices, Planned):
        return False
    assert ACTIVE.seeds is not None
    ACTIVE.seeds.fetch(indices.seed)
    return True


def _packed(items: list[Any], indices: Sequence[Any], before: Any, alone: bool) -> _Samples:
    samples = _Samples(items)
    samples.indices = [int(index) for index in indices]
    samples.drawn, samples.alone = None if before is None else moved(before), alone
    return samples


def _samples(data: Any, indices: list[Any]) -> list[Any]:
    """As PyTorch's own fetcher gets them."""
    several = getattr(data, "__getitems__", None)
    return list(several(indices)) if several else [data[index] for index in indices]


class _Collating:
    """The collate function while ours is the iteration."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, samples: _Samples) -> Handed:
        before = None if self._collate in _WITHOUT_DRAWS or ACTIVE.seeds is not None else generators()
        batch = self._collate(samples[0] if samples.alone else list(samples))
        drawn = None if before is None else moved(before)
        # What the data set drew came first; a function that draws goes on from there.
        return Handed(samples.indices, batch, {**(drawn or {}), **(samples.drawn or {})} or None)


def generators() -> tuple[Any, Any, Any]:
    """What batches may draw from, cheap to take and to compare; see :func:`moved`."""
    return torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()


def moved(before: tuple[Any, Any, Any]) -> Drawn | None:
    """Of the generators that moved since, the states before; None if none did."""
    now = generators()
    same_numpy = before[1]["state"]["pos"] == now[1]["state"]["pos"] and bool(
        (before[1]["state"]["key"] == now[1]["state"]["key"]).all()
    )
    kept = {
        "torch": torch.equal(before[0], now[0]),
        "numpy": same_numpy and before[1]["has_gauss"] == now[1]["has_gauss"],
        "python": before[2] == now[2],
    }
    if all(kept.values()):
        return None
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])
    random.setstate(before[2])
    states = RngSnapshot.take().states
    torch.set_rng_state(now[0])
    np.random.set_state(now[1])
    random.setstate(now[2])
    return {name: states[name].tobytes() for name, same in kept.items() if not same}
