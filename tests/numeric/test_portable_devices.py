"""What portable arithmetic composes itself on accelerators gives the CPU's bits; tried on the CPU, where both ways can be taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from proof_of_learning.errors import NumericEnvironmentError
from proof_of_learning.numeric import environment
from proof_of_learning.numeric.portable import PORTABLE, recurrent, using, windows
from proof_of_learning.numeric.portable.selftest import numbers

aten = torch.ops.aten


def whole(seed: int, *shape: int) -> Tensor:
    return torch.randint(-50, 50, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(
    ("places", "kernel"), [((17,), (5,)), ((9, 8), (3, 3)), ((9, 8), (1, 2)), ((6, 5, 4), (3, 3, 2))]
)
def test_convolutions_by_windows_are_convolutions(places: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    tried, d = 0, len(places)
    for stride, padding, dilation, groups in itertools.product((1, 2, 3), (0, 2), (1, 2), (1, 2, 4)):
        x, w = whole(1, 3, 4, *places), whole(2, 8, 4 // groups, *kernel)
        settings = ([stride] * d, [padding] * d, [dilation] * d)
        if any(n + 2 * padding < dilation * (k - 1) + 1 for n, k in zip(places, kernel, strict=True)):
            continue
        y = aten.convolution.default(x, w, None, *settings, False, [0] * d, groups)
        g = whole(3, *y.shape)
        by_input, by_weight, _ = aten.convolution_backward.default(
            g, x, w, None, *settings, False, [0] * d, groups, [True, True, False]
        )
        assert torch.equal(windows.forward(x, w, *settings, groups), y)
        assert torch.equal(windows.by_input(g, w, x.shape, *settings, groups), by_input)
        assert torch.equal(windows.by_weight(g, x, w.shape, *settings, groups), by_weight)
        tried += 1
    assert tried >= 12


class Composing(TorchFunctionMode):
    """Recurrent layers as they are composed on an accelerator."""

    taken = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in recurrent.CELLS:
            Composing.taken += 1
            return recurrent.run(func.__name__, *args)
        return func(*args, **(kwargs or {}))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(5, 6),
    "two LSTMs both ways": lambda: nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True, dropout=0.3),
    "LSTM with a projection": lambda: nn.LSTM(5, 6, bias=False, proj_size=3),
    "GRU": lambda: nn.GRU(5, 6, 2, bidirectional=True),
    "tanh": lambda: nn.RNN(5, 6),
    "relu": lambda: nn.RNN(5, 6, nonlinearity="relu", bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_layers_are_composed_as_a_cpu_composes_them(name: str) -> None:
    def results() -> list[Tensor | None]:
        torch.manual_seed(3)
        layer = LAYERS[name]()
        torch.manual_seed(4)
        x = numbers(1, 7, 4, 5).requires_grad_()
        y, hidden = layer(x)
        states = hidden if isinstance(hidden, tuple) else (hidden,)
        (y.sum() + sum((h * h).sum() for h in states)).backward()
        return [y, *states, x.grad, *(p.grad for p in layer.parameters())]

    with using(PORTABLE):
        wanted = results()
        before = Composing.taken
        with Composing():
            found = results()
    assert Composing.taken == before + 1
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_in_one_operation_is_dropout_in_several(p: float) -> None:
    """An accelerator takes ``native_dropout`` where a CPU composes."""

    def results(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        x = numbers(1, 40, 30).requires_grad_()
        torch.manual_seed(5)
        y = call(x)
        y.backward(numbers(2, 40, 30))
        return y, x.grad

    with using(PORTABLE):
        wanted = results(lambda x: torch.dropout(x, p, True))
        found = results(lambda x: torch.native_dropout(x, p, True)[0])
    assert torch.equal(wanted[0], found[0]) and wanted[1] is not None and found[1] is not None
    assert torch.equal(wanted[1], found[1])


def test_the_switch_for_deterministic_operations_is_off_meanwhile_and_put_back() -> None:
    with environment.recording("cpu"):
        assert torch.are_deterministic_algorithms_enabled()
        with using(PORTABLE):
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda:0\n", "tpu"])
def test_a_device_that_is_not_known_is_named(device: str) -> None:
    with pytest.raises(NumericEnvironmentError, match="not known here"):
        environment.require(device)
