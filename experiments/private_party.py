"""One party of a private replay: a training step on shares, and whether it arrives at the recorded weights (NumPy alone).

`private_replay.py` starts three of these and hands each its sockets; what they write is measured there.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from secret_sharing import DEALER, Link, Party, Shares, U, fixed

EXPONENT = 10  # exp(x) is (1 + x / 2^10)^(2^10)
NEWTON, FIRST = 8, 0.18  # of 1 / s for s from 1 to 10 classes
RATIO = 16  # bits of the squared tolerance
WINDOW = 3


class Dense:
    def __init__(self, weight: Shares, bias: Shares) -> None:
        self.parameters = [weight, bias]
        self._x = weight

    def forward(self, party: Party, x: Shares) -> Shares:
        self._x = x
        weight, bias = self.parameters
        return party.truncate(party.matmul(x, weight)) + bias

    def gradients(self, party: Party, dz: Shares, shrink: int) -> list[Shares]:
        """Of weight and bias, divided by 2^shrink."""
        weight = party.truncate(party.matmul(self._x.T, dz), party.bits + shrink)
        return [weight, party.truncate(dz.sum(0, dtype=np.uint64), shrink)]

    def backward(self, party: Party, dz: Shares) -> Shares:
        return party.truncate(party.matmul(dz, self.parameters[0].T))


class Convolution(Dense):
    """Of 3 x 3, with a margin: a matrix product over patches, which everybody cuts out of their own shares."""

    def forward(self, party: Party, x: Shares) -> Shares:
        self._shape = x.shape
        z = super().forward(party, patches(x))
        return z.reshape(*x.shape[:3], -1)

    def gradients(self, party: Party, dz: Shares, shrink: int) -> list[Shares]:
        return super().gradients(party, dz.reshape(-1, dz.shape[3]), shrink)

    def backward(self, party: Party, dz: Shares) -> Shares:
        return gathered(super().backward(party, dz.reshape(-1, dz.shape[3])), self._shape)


def patches(x: Shares) -> Shares:
    """(batch, height, width, channels) to (batch * height * width, 9 * channels)."""
    batch, height, width, channels = x.shape
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cut = [wide[:, i : i + height, j : j + width] for i in range(WINDOW) for j in range(WINDOW)]
    return np.stack(cut, 3).reshape(batch * height * width, WINDOW * WINDOW * channels)


def gathered(columns: Shares, shape: tuple[int, ...]) -> Shares:
    """What patches add up to."""
    batch, height, width, channels = shape
    wide = np.zeros((batch, height + 2, width + 2, channels), np.uint64)
    parts = columns.reshape(batch, height, width, WINDOW * WINDOW, channels)
    for place in range(WINDOW * WINDOW):
        i, j = divmod(place, WINDOW)
        wide[:, i : i + height, j : j + width] += parts[:, :, :, place]
    return wide[:, 1:-1, 1:-1]


class Relu:
    parameters: list[Shares]

    def __init__(self) -> None:
        self.parameters = []

    def forward(self, party: Party, x: Shares) -> Shares:
        self._passes = party.public(1, x) - party.negative(x)
        return party.mul(x, self._passes)

    def backward(self, party: Party, dz: Shares) -> Shares:
        return party.mul(dz, self._passes)


class Pool:
    """The mean of 2 x 2."""

    def __init__(self) -> None:
        self.parameters: list[Shares] = []

    def forward(self, party: Party, x: Shares) -> Shares:
        return party.truncate(x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2], 2)

    def backward(self, party: Party, dz: Shares) -> Shares:
        return party.truncate(dz.repeat(2, 1).repeat(2, 2), 2)


class Flatten:
    def __init__(self) -> None:
        self.parameters: list[Shares] = []

    def forward(self, party: Party, x: Shares) -> Shares:
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, party: Party, dz: Shares) -> Shares:
        return dz.reshape(self._shape)


def softmax(party: Party, logits: Shares) -> Shares:
    """Along the last axis: the largest by pairs, powers by squaring, the quotient by Newton's method."""
    largest = logits
    while (count := largest.shape[1]) > 1:
        one, other, left = (
            largest[:, : count // 2],
            largest[:, count // 2 : count // 2 * 2],
            largest[:, count // 2 * 2 :],
        )
        difference = other - one
        kept = party.public(1, one) - party.negative(difference)
        largest = np.concatenate([one + party.mul(difference, kept), left], 1)
    power = party.truncate(logits - largest, EXPONENT) + party.public(1 << party.bits, logits)
    for _ in range(EXPONENT):
        power = party.truncate(party.mul(power, power))
    total = power.sum(1, dtype=np.uint64, keepdims=True)
    inverse = party.public(int(FIRST * 2**party.bits), total)
    for _ in range(NEWTON):
        rest = party.public(2 << party.bits, total) - party.truncate(party.mul(total, inverse))
        inverse = party.truncate(party.mul(inverse, rest))
    return party.truncate(party.mul(power, np.repeat(inverse, power.shape[1], 1)))


def network(kind: str, given: list[Shares]) -> list[Any]:
    """The layers, with their parameters two by two."""
    pairs = [given[n : n + 2] for n in range(0, len(given), 2)]
    if kind == "mlp":
        return [Dense(*pairs[0]), Relu(), Dense(*pairs[1])]
    return [
        Convolution(*pairs[0]), Relu(), Pool(), Convolution(*pairs[1]), Relu(), Pool(), Flatten(), Dense(*pairs[2]),
    ]  # fmt: skip


def step(party: Party, told: dict[str, Any], secret: Callable[[str], Shares]) -> tuple[list[Shares], list[Shares]]:
    """Shares of the weights after one step of SGD with momentum, and of whether they are those that were recorded, for each record."""
    count, bits = told["parameters"], party.bits
    weights = [secret(f"weight{n}") for n in range(count)]
    momenta = [secret(f"momentum{n}") for n in range(count)]
    layers = network(told["kind"], weights)
    x, labels = secret("x"), secret("y")
    for layer in layers:
        x = layer.forward(party, x)
    dz, found = softmax(party, x) - labels, list[Shares]()
    shrink = int(told["batch"]).bit_length() - 1
    for n, layer in reversed(list(enumerate(layers))):
        if layer.parameters:
            found = layer.gradients(party, dz, shrink) + found
        if n:
            dz = layer.backward(party, dz)
    keep, rate = (U(round(told[name] * 2**bits)) for name in ("momentum", "rate"))
    after = []
    for weight, momentum, gradient in zip(weights, momenta, found, strict=True):
        moved = party.truncate(momentum * keep) + gradient
        after.append(weight - party.truncate(moved * rate))
    tolerance = U(round(told["rho"] ** 2 * 2**RATIO))
    answers = []
    for record in range(told["records"]):
        recorded = [secret(f"record{record}.{n}") for n in range(count)]
        errors = _squares(party, after, recorded)
        allowed = party.truncate(_squares(party, recorded, weights) * tolerance, RATIO)
        answers.append(party.negative(errors - allowed - party.public(1, errors)))  # errors <= allowed
    return after, answers


def _squares(party: Party, ones: list[Shares], others: list[Shares]) -> Shares:
    """The sum of squared differences, of integers, which have to stay small."""
    flat = np.concatenate([(one - other).reshape(-1) for one, other in zip(ones, others, strict=True)])
    return party.mul(flat, flat).sum(dtype=np.uint64).reshape(1)


def main(arguments: list[str]) -> None:
    """ROLE FOLDER SOCKET SOCKET: what is public is ``told.json``, what the first party holds ``secrets.npz``."""
    role, folder = int(arguments[0]), Path(arguments[1])
    told = json.loads((folder / "told.json").read_text())
    party = Party(
        role, [Link(socket.socket(fileno=int(number))) for number in arguments[2:]], told["bits"], told["seed"]
    )
    held = dict(np.load(folder / "secrets.npz", allow_pickle=False)) if role == 0 else {}

    def secret(name: str) -> Shares:
        value = fixed(held[name], told["bits"]) if held else None
        return party.given(value, told["shapes"][name])

    begun = time.monotonic(), time.process_time()
    step(party, told, secret)
    dealt = sum(link.sent for link in party._links)
    offline = time.monotonic() - begun[0], time.process_time() - begun[1]
    document: dict[str, Any] = {"offline": offline, "dealt": dealt}
    if role != DEALER:
        party.online, party.rounds = True, 0
        for link in party._links:
            link.sent = 0
        begun = time.monotonic(), time.process_time()
        after, answers = step(party, told, secret)
        shares = np.concatenate(answers)
        if party.first:
            shares[told["cheats"]] += U(1)  # where semi-honest parties would not
        (bits,) = party.open(shares)
        document |= {
            "online": (time.monotonic() - begun[0], time.process_time() - begun[1]), "rounds": party.rounds,
            "sent": party._links[0].sent, "answers": [int(bit) for bit in bits],
        }  # fmt: skip
        np.savez(folder / f"shares{role}.npz", *after)  # for the measurement alone: in earnest nobody joins them
    (folder / f"done{role}.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1:])
