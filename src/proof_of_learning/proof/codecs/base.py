"""What a codec is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.proof.codecs.room import Room
from proof_of_learning.state.state import State

PIECE = 1 << 17  # elements that are worked on at a time: what lies beside them fits the cache as well
SMALL = 1 << 14  # elements up to which what looks at a tensor costs more than what it looks at
T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """An encoded state: ``state`` is what decoding gives (the encoded one itself where the codec is exact).

    ``chunks()`` makes the object's bytes; that is the costly part, which may be done later and elsewhere. ``kept``: of a codec that
    rounds, the names of the tensors that it kept to the bit.
    """

    state: State
    chunks: Callable[[], Iterable[bytes | memoryview]]
    kept: Collection[str] = ()


class Codec(Protocol):
    """Turns states into bytes and back.

    ``exact``: whether decoding gives the encoded state bit for bit. A codec that does not is used in the loop: training continues
    from what it decodes, and a replay's end is encoded as well. Its result must follow from state and base alone, on every platform.
    """

    name: str
    version: int
    exact: bool

    def encode(self, state: State, base: State | None) -> Encoded:
        """``base``: the checkpoint before, as a difference needs it; None for a keyframe. Neither is changed."""
        ...

    def decode(self, raw: bytearray, base: State | None, room: Room | None = None) -> State:
        """The inverse; ``base`` as in ``encode``. Raises FormatError for anything that ``encode`` does not write.

        ``room``: from what its states together may weigh, a compressing codec takes this one's part before it makes anything of it.
        """
        ...

    def nearest(self, arrived: State, recorded: State, base: State) -> State:
        """Of the states that encode to ``recorded`` on ``base``, the one nearest to ``arrived``: what a replay is held against."""
        ...


def same_kind(tensor: Tensor, base: State | None, name: str) -> bool:
    """Whether the base has a tensor of that name, dtype and shape."""
    before = None if base is None else base.tensors.get(name)
    return before is not None and before.dtype == tensor.dtype and before.shape == tensor.shape


def float_array(tensor: Tensor) -> bool:
    """Whether it is float32, has dimensions, and is not empty: codecs that round or foretell look at no other."""
    return tensor.dtype == torch.float32 and tensor.ndim > 0 and tensor.numel() > 0


def finite(tensor: Tensor) -> bool:
    """Whether all values are, of at least one; far faster than asking each of them."""
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor))


def ranges(tensors: Iterable[Tensor]) -> list[tuple[float, float]]:
    """The smallest and the largest value of tensors of one dtype, none of them empty; NaN where one is. Small ones are looked at
    together."""
    found: list[tuple[float, float]] = []
    for batch in batched(tensors, Tensor.numel, SMALL):
        if len(batch) == 1:
            low, high = torch.aminmax(batch[0])
            found.append((float(low), float(high)))
            continue
        flat = torch.cat([tensor.reshape(-1) for tensor in batch]).numpy()
        starts = first_places([tensor.numel() for tensor in batch])
        ends = (np.minimum.reduceat(flat, starts).tolist(), np.maximum.reduceat(flat, starts).tolist())
        found += zip(*ends, strict=True)
    return found


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Flat tensors end to end; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def first_places(sizes: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of some tensors begins that lie end to end."""
    ends = np.cumsum(sizes, dtype=np.int64)
    return ends - np.asarray(sizes, np.int64)


def batched(items: Iterable[T], size: Callable[[T], int], most: int = PIECE) -> Iterator[list[T]]:
    """Items in their order: one large one, or several that have at most so many elements together."""
    batch, filled = list[T](), 0
    for item in items:
        count = size(item)
        if batch and filled + count > most:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += count
    if batch:
        yield batch
