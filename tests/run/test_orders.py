"""An order that is the same in every epoch is said, once, and where it is not the data set's own."""

from __future__ import annotations

import numpy as np

from proof_of_learning.run.orders import Orders


def said(*epochs: list[int], batch: int = 4) -> list[bool]:
    orders = Orders()
    return [
        orders.add(position, epoch[position * batch : (position + 1) * batch])
        for epoch in epochs
        for position in range(len(epoch) // batch)
    ]


def test_the_same_order_twice_is_said_once() -> None:
    first, other = np.random.default_rng(0).permutation(32).tolist(), np.random.default_rng(1).permutation(32).tolist()
    assert sum(said(first, first, first)) == 1
    assert sum(said(first, first)[:8]) == 0  # not before the second epoch
    assert not any(said(first, other, first))
    assert not any(said(first))
    own = list(range(32))
    assert not any(said(own, own))  # nobody wanted these shuffled
    assert not any(said(first, [*first[:8], *other[8:]]))  # chance makes a few alike


def test_a_loop_without_batches_of_its_own_has_no_order() -> None:
    orders = Orders()
    assert not any(orders.add(position, []) for _ in range(3) for position in range(9))
