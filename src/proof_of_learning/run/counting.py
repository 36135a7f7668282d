"""``enumerate`` around a walk that begins in the middle: it counts on from there, as it did when the proof was recorded.

The counter of an ``enumerate`` object cannot be set from Python. It is found through the garbage collector, and is CPython's
``en_index``, the first field behind the object's head; that it holds what the object says of itself is checked before it is changed.
"""

from __future__ import annotations

import ctypes
import gc
import types
from typing import Any

_DEPTH = 4  # generators (of a progress bar, say) that may lie between
_WRAPPERS = ("generator", "tqdm", "tqdm_asyncio", "tqdm_notebook", "zip", "map", "tuple", "method-wrapper")


def advance(walk: Any, by: int) -> bool:
    """Whether an ``enumerate`` around ``walk`` was found, and now is ``by`` ahead."""
    around: list[Any] = [walk]
    known = {id(walk)}
    for _ in range(_DEPTH):
        outer: list[Any] = []
        for item in gc.get_referrers(*around):
            if id(item) in known or isinstance(item, types.FrameType):
                continue
            known.add(id(item))
            if isinstance(item, enumerate):
                return _set(item, by)
            if type(item).__name__ in _WRAPPERS:
                outer.append(item)
        if not outer:
            return False
        around = outer
    return False


def _set(counter: enumerate[Any], by: int) -> bool:
    place = ctypes.c_ssize_t.from_address(id(counter) + object.__basicsize__)
    if counter.__reduce__()[1][1] != place.value:
        return False
    place.value += by
    return True
