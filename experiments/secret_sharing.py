"""Arithmetic on secrets for two parties, as small as it gets (NumPy alone): additive shares modulo 2^64, fixed point, Beaver triples.

A dealer hands out correlated randomness and sees shapes alone. Semi-honest: who deviates from the protocol can bend the result unseen.
All three run the same program, whose course depends on no value: the dealer on zeros, to know which randomness is needed; each party
once offline, to receive that, and once online, on its shares. The randomness is NumPy's, which is seeded and no cipher: an experiment.

Truncation and comparison follow Escudero et al., CRYPTO 2020 (exact to the last bit), and Catrina and de Hoogh, SCN 2010.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Shares = npt.NDArray[np.uint64]
Dealt = tuple[Shares, bool]  # a value, and whether its shares are joined by exclusive or, rather than added up
U = np.uint64
LOW = U((1 << 63) - 1)
ONE, TOP, ALL = U(1), U(63), U((1 << 64) - 1)
HALF = U(1 << 62)  # what is truncated is smaller, of either sign
DEALER = 2


class Link:
    """One end of a socket; ``sent``: bytes so far."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.sent = connection, 0

    def send(self, array: npt.NDArray[Any]) -> None:
        raw = np.ascontiguousarray(array).data.cast("B")
        self.sent += len(raw)
        self._connection.sendall(raw)

    def receive(self, shape: Sequence[int], kind: type[np.generic] = np.uint64) -> Any:
        array = np.empty(shape, kind)
        view = array.data.cast("B")
        while view:
            count = self._connection.recv_into(view)
            if not count:
                raise ConnectionError("the other side hung up")
            view = view[count:]
        return array


class Party:
    """Who computes (``role`` 0 and 1), or deals (2). links: to the other party and to the dealer; of the dealer, to both.

    bits: of the fraction. Shares are of integers, in two's complement.
    """

    def __init__(self, role: int, links: Sequence[Link], bits: int, seed: int) -> None:
        self.role, self.bits, self.online, self.rounds = role, bits, False, 0
        self._links, self._tape = links, deque[Shares]()
        self._random = np.random.Generator(np.random.Philox(key=[seed, role]))

    @property
    def first(self) -> bool:
        """Whether what is public is added here."""
        return self.role == 0

    def zeros(self, *shape: int) -> Shares:
        return np.zeros(shape, np.uint64)

    def public(self, value: Any, like: Shares) -> Shares:
        """Shares of an integer that everybody knows."""
        return np.full_like(like, value) if self.first else np.zeros_like(like)

    def uniform(self, shape: Sequence[int]) -> Shares:
        return self._random.integers(0, 1 << 64, shape, np.uint64)

    # ---- talking -------------------------------------------------------------------------------------

    def given(self, value: Shares | None, shape: Sequence[int]) -> Shares:
        """Shares of what the first party holds."""
        if not self.online:
            return self.zeros(*shape)
        if not self.first:
            found: Shares = self._links[0].receive(shape)
            return found
        assert value is not None and value.shape == tuple(shape)
        mask = self.uniform(shape)
        self._links[0].send(mask)
        return value - mask

    def _exchange(self, array: npt.NDArray[Any]) -> Any:
        """The other's array of the same shape."""
        self.rounds += 1
        if self.first:
            self._links[0].send(array)
            return self._links[0].receive(array.shape, array.dtype.type)
        other = self._links[0].receive(array.shape, array.dtype.type)
        self._links[0].send(array)
        return other

    def open(self, *secrets: Shares) -> list[Shares]:
        """What shares add up to: in one round, and known to both afterwards."""
        if not self.online:
            return [np.zeros_like(one) for one in secrets]
        flat = np.concatenate([one.reshape(-1) for one in secrets])
        return _apart(flat + self._exchange(flat), secrets)

    def _open_words(self, *secrets: Shares) -> list[Shares]:
        if not self.online:
            return [np.zeros_like(one) for one in secrets]
        flat = np.concatenate([one.reshape(-1) for one in secrets])
        return _apart(flat ^ self._exchange(flat), secrets)

    def _open_bits(self, secret: Shares) -> Shares:
        if not self.online:
            return np.zeros_like(secret)
        own = np.packbits(secret.reshape(-1).astype(np.uint8))
        both = np.unpackbits(own ^ self._exchange(own), count=secret.size)
        return both.astype(np.uint64).reshape(secret.shape)

    def _dealt(self, shapes: Sequence[Sequence[int]], make: Callable[[], list[Dealt]]) -> list[Shares]:
        """Shares of what the dealer makes."""
        if self.role == DEALER:
            for value, exclusive in make():
                one = self.uniform(value.shape)
                self._links[0].send(one)
                self._links[1].send(value ^ one if exclusive else value - one)
        elif self.online:
            return [self._tape.popleft() for _ in shapes]
        else:
            self._tape.extend(self._links[1].receive(shape) for shape in shapes)
        return [self.zeros(*shape) for shape in shapes]

    # ---- computing -----------------------------------------------------------------------------------

    def matmul(self, x: Shares, y: Shares) -> Shares:
        """With twice the bits of the fraction."""

        def make() -> list[Dealt]:
            a, b = self.uniform(x.shape), self.uniform(y.shape)
            return [(a, False), (b, False), (product(a, b), False)]

        a, b, c = self._dealt([x.shape, y.shape, (x.shape[0], y.shape[1])], make)
        d, e = self.open(x - a, y - b)
        return c + product(d, b + e if self.first else b) + product(a, e)

    def mul(self, x: Shares, y: Shares) -> Shares:
        """Element by element, with the bits of both fractions."""

        def make() -> list[Dealt]:
            a, b = self.uniform(x.shape), self.uniform(x.shape)
            return [(a, False), (b, False), (a * b, False)]

        a, b, c = self._dealt([x.shape] * 3, make)
        d, e = self.open(x - a, y - b)
        return c + d * (b + e if self.first else b) + a * e

    def truncate(self, x: Shares, bits: int | None = None) -> Shares:
        """x / 2^bits, to the last bit, where x is smaller than 2^62, of either sign."""
        bits = self.bits if bits is None else bits
        by = U(bits)

        def make() -> list[Dealt]:
            r = self.uniform(x.shape)
            return [(r, False), ((r & LOW) >> by, False), (r >> TOP, False)]

        r, shifted, top = self._dealt([x.shape] * 3, make)
        (c,) = self.open(x + r + self.public(HALF, x))
        high = c >> TOP
        wrapped = top * (ONE - U(2) * high) + (high if self.first else U(0))
        known = ((c & LOW) >> by) - (HALF >> by)
        return (known if self.first else np.zeros_like(x)) - shifted + (wrapped << (TOP - by))

    def _ands(self, pairs: Sequence[tuple[Shares, Shares]]) -> list[Shares]:
        """Of words whose shares are joined by exclusive or; all of them in one round."""
        shape = pairs[0][0].shape

        def make() -> list[Dealt]:
            found: list[Dealt] = []
            for _ in pairs:
                a, b = self.uniform(shape), self.uniform(shape)
                found += [(a, True), (b, True), (a & b, True)]
            return found

        dealt = self._dealt([shape] * (3 * len(pairs)), make)
        masked = [word ^ mask for n, pair in enumerate(pairs) for word, mask in zip(pair, dealt[3 * n :], strict=False)]
        opened, found = self._open_words(*masked), list[Shares]()
        for n in range(len(pairs)):
            (a, b, c), (d, e) = dealt[3 * n : 3 * n + 3], opened[2 * n : 2 * n + 2]
            found.append(c ^ (d & (b ^ e if self.first else b)) ^ (a & e))
        return found

    def negative(self, x: Shares) -> Shares:
        """1 where x < 0, else 0: an integer without fraction."""

        def make() -> list[Dealt]:
            r, bit = self.uniform(x.shape), self.uniform(x.shape) & ONE
            return [(r, False), (r, True), (bit, True), (bit, False)]

        r, word, mask, added = self._dealt([x.shape] * 4, make)
        (m,) = self.open(x + r)
        # x = m - r: does that borrow from the highest bit? From bit to bit: it begins, or goes on.
        begins = word & ~m & LOW
        goes = (word ^ ~m if self.first else word) & LOW
        for width in (1, 2, 4, 8, 16, 32):
            by = U(width)
            more, goes = self._ands([(goes, begins << by), (goes, goes << by)])
            begins = begins ^ more
        bit = ((begins >> U(62)) ^ (word >> TOP) ^ (m >> TOP if self.first else U(0))) & ONE
        v = self._open_bits((bit ^ mask) & ONE)
        return added * (ONE - U(2) * v) + (v if self.first else U(0))


def product(x: Shares, y: Shares) -> Shares:
    """Modulo 2^64."""
    found: Shares = np.matmul(np.ascontiguousarray(x), np.ascontiguousarray(y))
    return found


def _apart(flat: Shares, like: Sequence[Shares]) -> list[Shares]:
    ends = np.cumsum([one.size for one in like])[:-1]
    return [part.reshape(one.shape) for part, one in zip(np.split(flat, ends), like, strict=True)]


def fixed(values: npt.NDArray[Any], bits: int) -> Shares:
    """Numbers as integers of so many bits after the point."""
    return np.round(np.asarray(values, np.float64) * 2.0**bits).astype(np.int64).view(np.uint64)


def real(integers: Shares, bits: int) -> npt.NDArray[np.float64]:
    return integers.view(np.int64).astype(np.float64) / 2.0**bits
