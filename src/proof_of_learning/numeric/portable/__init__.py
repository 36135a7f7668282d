"""Portable arithmetic: the same bits on any machine.

Every sum is exact, so that its order cannot matter; every other operation is a fixed sequence of operations that IEEE 754 rounds in
one way. ADR 0028 defines each mathematically, and an engine is right if it gives those bits. This one is plain PyTorch: slow, and the
reference. ``table`` has the entries, ``grid`` the exact sums, ``mode`` the switch.
"""

from __future__ import annotations

NATIVE, PORTABLE = "native", "portable"
ARITHMETICS = (NATIVE, PORTABLE)
