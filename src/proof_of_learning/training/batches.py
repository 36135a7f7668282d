"""From an order to batches: which samples a step takes, and how they become tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import FormatError
from proof_of_learning.numeric import randomness
from proof_of_learning.task import Task, task_code

Indices = npt.NDArray[np.int64]


class Order(Protocol):
    """Which samples each step takes."""

    def indices(self, step: int) -> Indices: ...


class DerivedOrder:
    """The order that follows from a key: a fresh permutation each epoch (or the data set's own order), cut into steps."""

    def __init__(self, task: Task, samples: int, key: bytes) -> None:
        self.samples, self.key, self.shuffle = samples, key, task.shuffle
        self.per_step = task.batch_size * task.accumulate
        self.steps_per_epoch = task.steps_per_epoch(samples)
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> Indices:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            seed = randomness.derive(self.key, randomness.ORDER, epoch)
            self._permutation = (
                randomness.permutation(seed, self.samples) if self.shuffle else np.arange(self.samples, dtype=np.int64)
            )
            self._epoch = epoch
        return self._permutation[position * self.per_step : (position + 1) * self.per_step]


class RecordedOrder:
    """The order a prover wrote down: ``start`` is the first step of ``lists``."""

    def __init__(self, start: int, lists: list[Indices], samples: int) -> None:
        self.start, self.lists, self.samples = start, lists, samples

    def indices(self, step: int) -> Indices:
        chosen = self.lists[step - self.start]
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= self.samples:
            raise FormatError(f"step {step} names samples outside the data set of {self.samples}")
        return chosen


class Feed:
    """Batches for a step: fetch, augment, collate, cut into ``accumulate`` batches, move to the device."""

    def __init__(self, task: Task, data: Dataset, key: bytes, device: str = "cpu") -> None:
        self.task, self.data, self.key, self.device = task, data, key, device
        self._generator = torch.Generator()
        self._columns = data.tensors if type(data) is TensorDataset else None

    def batches(self, step: int, indices: Indices, only: range | None = None) -> list[Any]:
        """The step's batches, in order; ``only``: those at these places."""
        size = self.task.batch_size
        starts = range(0, len(indices), size)
        with task_code(f"preparing the batches of step {step}"):
            return [
                to_device(self._batch(step, start, indices[start : start + size]), self.device)
                for start in (starts if only is None else starts[only.start : only.stop])
            ]

    def _batch(self, step: int, slot: int, indices: Indices) -> Any:
        augment, collate = self.task.augment, self.task.collate
        if self._columns is not None and augment is None and collate is None:
            chosen = torch.from_numpy(np.ascontiguousarray(indices))
            return [column[chosen] for column in self._columns]  # what default_collate would give, in one copy
        samples = [self.data[int(index)] for index in indices]
        if augment is not None:
            for offset, sample in enumerate(samples):
                seed = randomness.derive(self.key, randomness.AUGMENTATION, step, slot + offset)
                self._generator.manual_seed(seed)
                samples[offset] = augment(sample, self._generator)
        return (collate or default_collate)(samples)


def to_device(value: Any, device: str) -> Any:
    """Move the tensors of nested containers to ``device``."""
    if device == "cpu":
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        moved = {key: to_device(item, device) for key, item in value.items()}
        if not isinstance(value, MutableMapping) or type(value) is dict:
            return moved
        alike = copy.copy(value)  # whatever its constructor takes
        for key, item in moved.items():
            alike[key] = item
        return alike
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value
