"""Handwritten digits for the demo, the examples and the tests: 1,797 images of 8×8 pixels, beside this file.

They are the test set of E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49, under CC BY 4.0 (see NOTICE), in the values and the order in which scikit-learn ships them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("digits.npz")


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (1,797 × 8 × 8, how many of 16 dots are dark: 0 to 16) and the digits that they show (1,797, 0 to 9)."""
    images, labels = _read()
    return images.copy(), labels.copy()  # a task may write into its own


@cache  # each replayed segment asks for its task's data anew
def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(FILE, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"].astype(np.int64)
