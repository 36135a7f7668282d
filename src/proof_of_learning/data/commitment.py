"""What a commitment to data is. The rest of this package reads data, and so needs torch; who only reads a proof does not."""

from __future__ import annotations

import msgspec


class DataCommitment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``root`` over ``samples`` leaves; ``salted`` if each leaf carries a secret salt."""

    root: str
    samples: int
    salted: bool = False
