"""What a script says of itself at its first step: its parts, its data, its batches. Recording and replay ask the same."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from proof_of_learning.data.commit import Dataset
from proof_of_learning.errors import UsageError
from proof_of_learning.replay.probe import integers
from proof_of_learning.run import ranks, script
from proof_of_learning.run.loaders import Loaded, Named, Source
from proof_of_learning.run.mode import ACTIVE, Given
from proof_of_learning.run.parts import GENERATORS, MODEL, PLACE, Generators, arrange
from proof_of_learning.state import state as states
from proof_of_learning.state.parts import family, of_kind
from proof_of_learning.task import Description, describe_parts

BLOCK = 4096  # elements of a tensor or array that is drawn from, committed to together


class Blocks:
    """A tensor or array in pieces of equal length, each a sample of its own."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return -(-len(self._values) // BLOCK)

    def __getitem__(self, index: int) -> Any:
        return torch.as_tensor(np.ascontiguousarray(self._values[index * BLOCK : (index + 1) * BLOCK]))


class Several:
    """Several tensors or arrays, one behind the other."""

    def __init__(self, pieces: list[Blocks]) -> None:
        self._places = [(piece, index) for piece in pieces for index in range(len(piece))]
        self.first = [sum(map(len, pieces[:number])) for number, piece in enumerate(pieces) if len(piece)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        piece, place = self._places[index]
        return piece[place]


@dataclass(frozen=True)
class Facts:
    """``batch``: samples of a batch; 0 where it is not known before. ``walk``: batches of a walk. ``counted``: whether the loop draws
    its own samples. ``shuffle``: whether the loader takes them in another than the data set's own order. ``ranks``: how many
    processes train together; data and batches are those of each.
    """

    parts: dict[str, Any]
    data: Dataset
    batch: int
    walk: int
    counted: bool
    drop_last: bool = False
    shuffle: bool = False
    ranks: int = 1

    def describe(self) -> Description:
        """The description of the script's objects as they are now."""
        named = {name: family(self.parts, name) for name in ("optimizer", "scheduler")}
        others = {
            name: part
            for name, part in self.parts.items()
            if name not in (MODEL, PLACE, GENERATORS, ranks.BUCKETS)
            and not any(name in found for found in named.values())
        }
        content = describe_parts(self.parts[MODEL], named["optimizer"], named["scheduler"], others, {"__main__"})
        step = {
            "script": True, "counted": self.counted, "batch_size": self.batch, "drop_last": self.drop_last,
            "shuffle": self.shuffle, **({"ranks": self.ranks} if self.ranks > 1 else {}),
        }  # fmt: skip
        return Description({**content, "step": step}, script.of_script())

    def labelled(self) -> bool:
        """Whether the data hold labels or tokens: of several tensors that a loop draws from, any of them."""
        first = self.data.first if isinstance(self.data, Several) else range(min(1, len(self.data)))
        return integers([self.data[index] for index in first])

    def modules(self) -> list[str]:
        return list(of_kind(self.parts, "module"))

    def capture(self) -> states.State:
        """The state; of a further one of several processes, what is its own."""
        state = states.capture(self.parts, live=True)
        return state if self.ranks == 1 else ranks.told(self.parts, state)[0]


def facts(given: Given, source: Source) -> Facts:
    """What is known when the first step begins. Raises UsageError where something is missing."""
    unwrapped, wrappers = ranks.apart(given.parts)
    size = ranks.place().size
    if size > 1 and ACTIVE.seeds is not None:
        raise UsageError(
            "the randomness of several processes is recorded, and follows from no key yet; record without --seed and --registration"
        )
    parts = arrange(unwrapped)
    if wrappers:  # restored first: to arrange buckets takes a backward pass
        parts = {ranks.BUCKETS: ranks.Buckets(wrappers), **parts}
    if isinstance(source, Loaded):
        data = given.data if given.data is not None else source.data
        return Facts(parts, _dataset(data), source.batch_size, len(source), False, source.drops, source.shuffles, size)
    if given.data is None and isinstance(source, Named):
        raise UsageError(
            "run.begin knows no loader, so say which data set its indices are of: pol.Run(data=train_set, …)"
        )
    if isinstance(source, Named):
        return Facts(parts, _dataset(given.data), 0, 0, False, shuffle=True, ranks=size)
    if given.data is None:
        raise UsageError(
            "run.steps knows no loader, so say what the script draws its samples from: pol.Run(data=tokens, …), a tensor, an array "
            "or several of them"
        )
    flowing = {} if ACTIVE.seeds is not None else {GENERATORS: Generators()}
    return Facts({**parts, **flowing}, _dataset(given.data), 0, len(source), True, ranks=size)


def _dataset(data: Any) -> Dataset:
    if isinstance(data, (torch.Tensor, np.ndarray)):
        return Blocks(data)
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, (list, tuple)) and data and all(isinstance(x, (torch.Tensor, np.ndarray)) for x in data):
        return Several([Blocks(values) for values in data])
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UsageError(
            f"the data set is a {type(data).__name__} without len() and [index], which cannot be committed to"
        )
    return data  # type: ignore[no-any-return]


def device_of(parts: dict[str, Any]) -> str:
    """Where the model is."""
    parameter = next(parts[MODEL].parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)


def script_path() -> str | None:
    """The file of the script that runs."""
    return getattr(sys.modules["__main__"], "__file__", None)
