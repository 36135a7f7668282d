"""LSTM, GRU and plain recurrent layers as PyTorch composes them on a CPU, for devices on which it takes one fused operation instead.

The order of the operations is the CPU's, so that the backward passes, which add up gradients in that order, give the same bits too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Cell = Callable[[Tensor, Any, Sequence[Tensor | None]], Any]  # (what comes from the input, hidden, weights) -> hidden


def _hidden_product(hidden: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    w, b = weights[1], weights[3]
    assert w is not None
    return F.linear(hidden, w, b)


def _lstm_cell(given: Tensor, hidden: tuple[Tensor, Tensor], weights: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    h, c = hidden
    gates = _hidden_product(h, weights).add_(given)
    first, forget, cell, out = gates.unsafe_chunk(4, 1)
    first, forget, cell, out = first.sigmoid_(), forget.sigmoid_(), cell.tanh_(), out.sigmoid_()
    c = (forget * c).add_(first * cell)
    h = out * c.tanh()
    if len(weights) > 4 and weights[4] is not None:  # a projection
        h = h.matmul(weights[4].t())
    return h, c


def _gru_cell(given: Tensor, hidden: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    ours, theirs = given.unsafe_chunk(3, 1), _hidden_product(hidden, weights).unsafe_chunk(3, 1)
    reset = theirs[0].add_(ours[0]).sigmoid_()
    update = theirs[1].add_(ours[1]).sigmoid_()
    new = ours[2].add(theirs[2].mul_(reset)).tanh_()
    return (hidden - new).mul_(update).add_(new)


def _simple_cell(nonlinearity: Callable[[Tensor], Tensor]) -> Cell:
    return lambda given, hidden, weights: nonlinearity(_hidden_product(hidden, weights).add_(given))


CELLS: dict[str, Cell] = {
    "lstm": _lstm_cell, "gru": _gru_cell, "rnn_tanh": _simple_cell(torch.tanh), "rnn_relu": _simple_cell(torch.relu),
}  # fmt: skip


def _through(cell: Cell, x: Tensor, hidden: Any, weights: Sequence[Tensor | None], backwards: bool) -> tuple[Any, Any]:
    """(the outputs of all times, the last hidden state) of one direction of one layer; ``x`` [times, batch, features]."""
    assert weights[0] is not None
    given = list(F.linear(x, weights[0], weights[2]).unbind(0))
    outputs = []
    for one in reversed(given) if backwards else given:
        hidden = cell(one, hidden, weights)
        outputs.append(hidden[0] if isinstance(hidden, tuple) else hidden)
    return torch.stack(outputs[::-1] if backwards else outputs, 0), hidden


def run(
    kind: str, x: Tensor, hidden: Any, weights: Sequence[Tensor], biases: bool, layers: int, dropout: float, training: bool,
    both: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What ``torch.lstm`` and its like return for a tensor: the outputs and the last hidden states (an LSTM: and cells)."""
    cell, directions = CELLS[kind], 2 if both else 1
    pair = kind == "lstm"
    states = list(zip(*(h.unbind(0) for h in hidden), strict=True)) if pair else list(hidden.unbind(0))
    each = len(weights) // (layers * directions)
    parts: list[list[Tensor | None]] = []
    for i in range(layers * directions):
        own: list[Tensor | None] = list(weights[i * each : (i + 1) * each])
        parts.append(own if biases else [*own[:2], None, None, *own[2:]])
    if batch_first:
        x = x.transpose(0, 1)
    last = []
    for layer in range(layers):
        found = [
            _through(cell, x, states[layer * directions + d], parts[layer * directions + d], bool(d))
            for d in range(directions)
        ]
        x = torch.cat([out for out, _ in found], -1) if both else found[0][0]
        last += [h for _, h in found]
        if dropout and training and layer + 1 < layers:
            x = F.dropout(x, dropout, True)
    if batch_first:
        x = x.transpose(0, 1)
    if pair:
        return x, torch.stack([h for h, _ in last], 0), torch.stack([c for _, c in last], 0)
    return x, torch.stack(last, 0)
