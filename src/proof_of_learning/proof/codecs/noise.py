"""The noise by which ``compact`` rounds up or down: whole numbers that follow from a tensor's name and the step.

No value of the base has a part in it: a prover whose replay is compared within noise may change the last bit of one, and would have
new noise for each try.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proof_of_learning.state.state import State

BITS = 24
ONE = 1 << BITS

Words = npt.NDArray[np.uint32]


def salts(names: Iterable[str], base: State) -> list[int]:
    """What makes the noise of each tensor, in the step after ``base``, another one."""
    step = _step(base)
    return [int.from_bytes(hashlib.sha256(f"{step}/{name}".encode()).digest()[:4], "little") for name in names]


def whole(salts: Sequence[int], sizes: Sequence[int], start: int = 0) -> Words:
    """From 0 to below ``ONE``, for each place of tensors of ``sizes`` elements end to end (a finaliser of MurmurHash3).

    start: the place in a single one at which its part begins.
    """
    ends = np.cumsum(sizes)
    mixed = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.uint32)
    firsts = [salt + start - int(end) + size & 0xFFFFFFFF for salt, end, size in zip(salts, ends, sizes, strict=True)]
    mixed += np.uint32(firsts[0]) if len(firsts) == 1 else np.repeat(np.array(firsts, np.uint32), sizes)
    mixed *= np.uint32(0x9E3779B1)
    shifted = np.empty_like(mixed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed ^= np.right_shift(mixed, np.uint32(shift), out=shifted)
        mixed *= np.uint32(factor)
    mixed ^= np.right_shift(mixed, np.uint32(16), out=shifted)
    mixed >>= np.uint32(32 - BITS)
    return mixed


def fractions(names: Sequence[str], sizes: Sequence[int], base: State) -> Tensor:
    """The same as parts of 1."""
    return torch.from_numpy(whole(salts(names, base), sizes).view(np.int32)).to(torch.float32).mul_(1.0 / ONE)


def _step(state: State) -> str:
    """The number of steps that a state says were done; nothing where it does not say it as states of a proof do.

    A part may have as many entries as there are tensors: keys are in their order.
    """
    node: Any = state.tree
    try:
        for key in ("s:progress", "s:step"):
            place = bisect.bisect_left(node["d"], key, key=itemgetter(0))
            if node["d"][place][0] != key:
                return ""
            node = node["d"][place][1]
        return str(node["i"])
    except (IndexError, KeyError, TypeError, ValueError):
        return ""
