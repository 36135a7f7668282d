"""The kernels as Python functions: their arguments, and what their exit status means."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch

from proof_of_learning.numeric.portable import functions

P, L = c_void_p, c_int64
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pol_matmul": (P, L, L, L, P, L, L, L, P, L, L, L, P, L, L, L, L, L, L, L),
    "pol_convolution": (P, P, P, P, L, L, P, L),
    "pol_convolution_by_weight": (P, P, P, L, L, P, L),
    "pol_function": (L, P, P, L, P, L),
    "pol_elementwise": (L, L, P, P, P, P, P, P),
    "pol_bernoulli": (c_uint64, L, c_uint64, c_float, c_float, P),
    "pol_sum_rows": (P, L, L, P, L),
    "pol_sum_columns": (P, L, L, P),
    "pol_sum_channels": (P, L, L, L, P, L),
    "pol_embedding_backward": (P, P, L, L, L, L, P),
    "pol_max_pool": (P, L, L, L, L, L, P, P, P, L),
    "pol_max_pool_backward": (P, P, L, L, L, L, L, P, L),
    "pol_softmax": (L, P, L, L, P, L),
    "pol_softmax_backward": (L, P, P, L, L, P, L),
    "pol_layer_norm": (P, L, L, P, P, c_float, P, P, P, L),
    "pol_layer_norm_backward": (P, P, L, L, P, P, P, P, P, L),
    "pol_batch_norm": (P, L, L, L, P, P, c_float, P, P, P, P, L),
    "pol_batch_norm_backward": (P, P, L, L, L, P, P, P, P, P, P, L),
}
# In the order of KERNELS in functions.cpp.
FUNCTIONS = {
    kernel: place
    for place, kernel in enumerate((
        functions.exp, functions.expm1, functions.log, functions.log1p, functions.tanh, functions.sigmoid, functions.erf,
        functions.erfc, functions.gelu, functions.gelu_backward, functions.gelu_tanh, functions.gelu_tanh_backward, functions.silu,
        functions.silu_backward, functions.log_sigmoid, functions.log_sigmoid_backward,
    ))
}  # fmt: skip
SQUARE_ROOT = len(FUNCTIONS)
_LOADED: dict[str, Any] = {}


def load(path: Path) -> None:
    """Take the kernels of a library. OSError where it is none."""
    library = ctypes.CDLL(str(path))
    try:
        found = {name: getattr(library, name) for name in ARGUMENTS}
    except AttributeError as error:
        raise OSError(str(error)) from None
    for name, function in found.items():
        function.argtypes, function.restype = ARGUMENTS[name], c_int
    _LOADED.update(found)


def run(name: str, *args: Any) -> None:
    """Run a kernel."""
    status = _LOADED[name](*args)
    if status:
        raise IndexError("an index is out of range") if status == 3 else MemoryError(f"{name} ({status})")


def threads() -> int:
    return torch.get_num_threads()
