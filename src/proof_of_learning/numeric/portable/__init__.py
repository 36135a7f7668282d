"""Portable arithmetic: the same bits on any machine.

Every sum is exact, so that its order cannot matter; every other operation is a fixed sequence of operations that IEEE 754 rounds in
one way. ADR 0028 defines each mathematically, and an engine is right if it gives those bits. This one is plain PyTorch: slow, and the
reference. ``table`` has the entries, ``grid`` the exact sums, ``mode`` the switch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

NATIVE, PORTABLE = "native", "portable"
ARITHMETICS = (NATIVE, PORTABLE)


def using(arithmetic: str) -> AbstractContextManager[None]:
    """Within it, tensors are computed with in that arithmetic; nothing changes where it is native, or in force already."""
    if arithmetic == NATIVE:
        return nullcontext()
    if arithmetic != PORTABLE:
        raise ValueError(f"there is no arithmetic {arithmetic!r}")
    # Not at the top of the file: who trains natively need not load it.
    from proof_of_learning.numeric.portable.mode import portable_arithmetic

    return portable_arithmetic()
