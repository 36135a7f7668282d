"""Where the examples find their data: the folder in the setting ``data``, else in the environment variable ``POL_DATA``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from proof_of_learning.errors import DataError


def find(name: str, folder: str | None) -> Path:
    """The file ``name`` in the data folder; DataError with what to do if it is not there."""
    chosen = folder or os.environ.get("POL_DATA")
    if not chosen:
        raise DataError(f"this task reads {name}; name the folder that holds it: --set data=DIR, or POL_DATA=DIR")
    path = Path(chosen) / name
    if not path.is_file():
        raise DataError(
            f"there is no {name} in {chosen}; name the folder that holds it: --set data=DIR, or POL_DATA=DIR"
        )
    return path


def images(name: str, part: str, folder: str | None) -> tuple[Tensor, Tensor]:
    """Images (uint8, N×C×H×W) and labels (int64) of the ``part`` ``"train"`` or ``"test"`` of an .npz file."""
    try:
        with np.load(find(name, folder), allow_pickle=False) as arrays:
            x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{name} is not what this task expects (arrays {part}_x and {part}_y): {error}") from None
    pixels = torch.from_numpy(x)
    return (pixels.unsqueeze(1) if pixels.ndim == 3 else pixels), torch.from_numpy(y.astype(np.int64))
